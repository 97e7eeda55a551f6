"""Which networks count when numbers of several seeds are put together, and which are left out."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import pandas as pd

#: What tells one contestant from another; budgets of different resources are not the same budget.
SERIES_KEYS = ("facet", "resource", "series")
#: Of `Comparison.networks`, the achieved cost over the dense network's, by the resource it is of.
COST_COLUMNS = {"macs": "macs_ratio", "params": "params_ratio", "latency_ms": "latency_ratio"}


def compressed_networks(networks: pd.DataFrame) -> pd.DataFrame:
    """The rows of `Comparison.networks` to compare: not dense, test accuracy known, one per seed, budget and stage.

    Where several runs of one series found a network for the same seed, on several devices say, the first counts.
    """
    return _known(networks).drop_duplicates([*SERIES_KEYS, "budget", "stage", "seed"])


def networks_on_axis(networks: pd.DataFrame, cost: str) -> pd.DataFrame:
    """As `compressed_networks`, those whose `cost` (a column) is known; of latencies one per device.

    ``device`` is "" in what comes back for any other cost, so that grouping by it puts nothing apart.
    """
    rows = _known(networks)
    rows = rows[rows[cost].notna()]
    if cost != COST_COLUMNS["latency_ms"]:
        rows = rows.assign(device="")
    return rows.drop_duplicates([*SERIES_KEYS, "budget", "stage", "seed", "device"])


def _known(networks: pd.DataFrame) -> pd.DataFrame:
    return networks[(networks["stage"] != "dense") & networks["accuracy_test"].notna()]


def budget_label(budget: float) -> str:
    """``0.3``, or ``none`` for NaN."""
    return "none" if math.isnan(budget) else f"{budget:g}"


def budgets_text(budgets: Collection[str]) -> str:
    """Labels as a list, ``0.3, 0.5, 0.7``, falling budgets last."""
    return ", ".join(sorted(budgets, key=lambda label: math.inf if label == "none" else float(label)))


@dataclass(frozen=True)
class CompleteSeeds:
    """`rows` of the seeds that have a network at every one of `budgets`; `note` says which were left out and why."""

    rows: pd.DataFrame
    budgets: frozenset[str]
    seeds: tuple[int, ...]
    note: str = ""


def budgets_of(rows: pd.DataFrame) -> frozenset[str]:
    """The budgets' labels in a table with a column ``budget``."""
    return frozenset(budget_label(budget) for budget in rows["budget"])


def complete_seeds(rows: pd.DataFrame, budgets: Collection[str] | None = None) -> CompleteSeeds:
    """Of one series, its rows at `budgets` (None: all that any of its seeds has), complete seeds only.

    A front with a budget missing is smaller for no fault of its own, so such a seed would drag a mean down.
    """
    wanted = budgets_of(rows) if budgets is None else frozenset(budgets)
    rows = rows[[budget_label(budget) in wanted for budget in rows["budget"]]]
    seeds, left_out = [], []
    for seed, of_seed in rows.groupby("seed", sort=True):
        missing = wanted - budgets_of(of_seed)
        if missing:
            left_out.append(f"seed {seed} lacks {budgets_text(missing)}")
        else:
            seeds.append(int(seed))
    note = f"left out: {'; '.join(left_out)}" if left_out else ""
    return CompleteSeeds(rows[rows["seed"].isin(seeds)], wanted, tuple(seeds), note)


def columns_in_order(rows: Sequence[dict[str, object]], columns: Sequence[str]) -> pd.DataFrame:
    """A table with exactly `columns`, also where there are no rows."""
    assert all(set(row) == set(columns) for row in rows), "a row must have every column and no other"
    return pd.DataFrame(list(rows), columns=list(columns))
