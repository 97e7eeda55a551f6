"""The comparison in numbers: what every series reaches at every budget, and what the searches took.

Each table is a data frame of plain numbers (for CSV) and, from it, a table for people.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from compsearch.comparison.comparison import Comparison
from compsearch.comparison.contest import Contest, contests
from compsearch.comparison.estimate import NEGLIGIBLE, Estimate, mean_and_spread
from compsearch.comparison.seeds import (
    COST_COLUMNS,
    SERIES_KEYS,
    budget_label,
    columns_in_order,
    compressed_networks,
)
from compsearch.comparison.text_table import TextCell, TextTable
from compsearch.report.captions import counted
from compsearch.report.style import RESOURCE_LABELS
from compsearch.report.table import NOT_MEASURED

STAGES = ("before", "after")
CLOCK_LABELS: Mapping[str, str] = {"cpu_s": "processor seconds", "wall_s": "seconds by the clock"}

_STAGE_COLUMNS = (
    "mean",  # of test accuracy over seeds, a fraction
    "std",
    "num_seeds",
    "is_best",  # of its budget and stage; several where they are level
    "runner_up",  # of the best: the next series, what it leads by, and whether that is beyond both's spread
    "lead",
    "spread",
    "is_beyond_spread",  # True, False or nothing: one seed
)
#: One row per series and budget, the dense network's first in each facet.
SUMMARY_COLUMNS = (
    *(*SERIES_KEYS, "searcher", "budget", "num_seeds"),
    *("trials", "clock", "search_s_mean", "search_s_std"),  # of searches that aren't counted with another run
    "is_learned_elsewhere",  # of any seed
    *(f"{column}_{end}" for column in COST_COLUMNS.values() for end in ("min", "max")),  # achieved
    "device",
    *(f"{stage}_{column}" for stage in STAGES for column in _STAGE_COLUMNS),
)
#: One row per series: every search once, however many networks it gave.
SEARCH_COST_COLUMNS = (
    *(*SERIES_KEYS, "searcher"),
    "num_searches",
    "num_networks",  # at all budgets and seeds
    *(
        f"{quantity}_{part}"
        for quantity in ("trials", "images", "wall_s", "cpu_s")
        for part in ("mean", "std", "total")
    ),
)


def search_clock(networks: pd.DataFrame) -> str:
    """cpu_s where every search of `networks` counted it, else wall_s."""
    searches = networks[networks["stage"].ne("dense") & networks["trials"].ne(0)]
    return "cpu_s" if len(searches) and searches["cpu_s"].notna().all() else "wall_s"


def summary_frame(comparison: Comparison) -> pd.DataFrame:
    """`SUMMARY_COLUMNS` of all facets. Of a family's networks each names the whole family's search."""
    networks = comparison.networks
    compressed = compressed_networks(networks)
    judged = {
        (contest.facet, contest.resource, budget_label(contest.budget), contest.stage): contest
        for contest in contests(networks)
    }
    rows: list[dict[str, object]] = []
    for facet in dict.fromkeys(networks["facet"]):
        of_facet = networks[networks["facet"] == facet]
        clock = search_clock(of_facet)
        dense = of_facet[of_facet["stage"] == "dense"]
        if len(dense):
            rows.append(_dense_row(dense, str(facet), clock))
        groups = compressed[compressed["facet"] == facet].groupby(
            [*SERIES_KEYS, "searcher", "budget"], sort=False, dropna=False
        )
        found = []
        for (_, resource, series, searcher, budget), networks_there in groups:
            shared = {"facet": facet, "resource": resource, "series": series, "searcher": searcher, "budget": budget}
            place = (str(facet), str(resource), budget_label(budget))
            stages = {
                f"{stage}_{column}": value
                for stage in STAGES
                for column, value in _stage(judged.get((*place, stage)), str(series)).items()
            }
            found.append(shared | _achieved(networks_there) | _search(networks_there, clock) | stages)
        resources = list(dict.fromkeys(str(row["resource"]) for row in found))
        found.sort(key=lambda row: (resources.index(str(row["resource"])), _falling(row["budget"])))
        rows.extend(found)
    return columns_in_order(rows, SUMMARY_COLUMNS)


def search_cost_frame(comparison: Comparison) -> pd.DataFrame:
    """`SEARCH_COST_COLUMNS`: mean and spread per search, and the total. What was learned elsewhere is counted there."""
    rows: list[dict[str, object]] = []
    compressed = compressed_networks(comparison.networks)
    for (facet, resource, series, searcher), networks in compressed.groupby([*SERIES_KEYS, "searcher"], sort=False):
        searches = _searches(networks)
        if not len(searches):
            continue
        row: dict[str, object] = {"facet": facet, "resource": resource, "series": series, "searcher": searcher}
        row |= {"num_searches": len(searches)}
        row |= {"num_networks": len(networks[networks["trials"].ne(0)].drop_duplicates(["budget", "seed"]))}
        for quantity in ("trials", "images", "wall_s", "cpu_s"):
            values = searches[quantity].astype("float64")
            # A mean of some searches would stand beside one of all.
            estimate = Estimate.of(values) if values.notna().all() else Estimate.of(())
            total = float(values.sum()) if estimate.num else math.nan
            row |= {f"{quantity}_mean": estimate.mean, f"{quantity}_std": estimate.std, f"{quantity}_total": total}
        rows.append(row)
    return columns_in_order(rows, SEARCH_COST_COLUMNS)


def summary_tables(summary: pd.DataFrame) -> list[TextTable]:
    """`summary_frame` for people: a table per facet and resource, the dense network on top.

    The best of each budget and stage is bold, with a star where its lead over the next is beyond the spread.
    """
    tables = []
    for facet in dict.fromkeys(summary["facet"]):
        of_facet = summary[summary["facet"] == facet]
        dense, rest = of_facet[of_facet["series"] == "dense"], of_facet[of_facet["series"] != "dense"]
        for resource in dict.fromkeys(rest["resource"]) or [""]:
            rows = pd.concat([dense, rest[rest["resource"] == resource]]) if len(rest) else dense
            tables.append(_summary_table(str(facet), str(resource), rows))
    return tables


def search_cost_tables(costs: pd.DataFrame) -> list[TextTable]:
    """`search_cost_frame` for people: a table per facet and resource."""
    headings = ("series", "searches", "networks found", "trials", "images", "seconds by the clock", "processor seconds")
    tables = []
    for (facet, resource), rows in costs.groupby(["facet", "resource"], sort=False):
        lines = []
        for row in rows.to_dict("records"):
            cells = [row["series"], str(row["num_searches"]), str(row["num_networks"])]
            for quantity in ("trials", "images", "wall_s", "cpu_s"):
                estimate = _estimate(row, quantity, num="num_searches")
                decimals = 1 if quantity.endswith("_s") else 0
                cells.append(mean_and_spread(estimate, decimals=decimals))
            lines.append(tuple(map(TextCell, cells)))
        caption = f"{facet}: what the searches took{_budgets_of(resource)}, mean ± standard deviation per search"
        notes = ("A search that gave networks at several budgets is counted once.",)
        tables.append(TextTable(caption, headings, tuple(lines), notes=notes))
    return tables


def _summary_table(facet: str, resource: str, rows: pd.DataFrame) -> TextTable:
    clock = str(rows["clock"].iloc[0])
    headings = (
        *("series", "budget", "seeds", "trials"),
        *(f"{RESOURCE_LABELS[name]} ratio" for name in COST_COLUMNS),
        *("test accuracy before fine-tuning (%)", "after (%)", CLOCK_LABELS[clock]),
    )
    lines = []
    for row in rows.to_dict("records"):
        is_dense = row["series"] == "dense"
        cells = [
            TextCell(row["series"]),
            TextCell("–" if is_dense else budget_label(row["budget"])),
            TextCell("–" if is_dense else str(row["num_seeds"])),
            TextCell(NOT_MEASURED if math.isnan(row["trials"]) or is_dense else f"{row['trials']:.0f}"),
        ]
        cells += [TextCell(_range(row[f"{column}_min"], row[f"{column}_max"])) for column in COST_COLUMNS.values()]
        cells += [_accuracy_cell(row, stage) for stage in STAGES]
        cells.append(TextCell(mean_and_spread(_estimate(row, "search_s"), decimals=1)))
        lines.append(tuple(cells))
    caption = f"{facet}{_budgets_of(resource)}: mean ± standard deviation over seeds, achieved ratios min–max"
    return TextTable(caption, headings, tuple(lines), num_labels=1, notes=_summary_notes(rows))


def _summary_notes(rows: pd.DataFrame) -> tuple[str, ...]:
    notes = [
        "Bold: the best of its budget. A star: its lead over the next is more than the seeds' spread, the square root "
        "of the sum of both variances.",
    ]
    if rows["is_learned_elsewhere"].any():
        notes.append("Trials and seconds are not told where the search is that of another budget; it is counted there.")
    devices = [device for device in dict.fromkeys("; ".join(rows["device"]).split("; ")) if device]
    if devices:
        differ = " These differ: do not compare latencies between them." if len(devices) > 1 else ""
        notes.append(f"Latency of: {'; '.join(devices)}.{differ}")
    return tuple(notes)


def _accuracy_cell(row: Mapping[str, Any], stage: str) -> TextCell:
    estimate = _estimate(row, stage, num=f"{stage}_num_seeds")
    text = mean_and_spread(estimate, scale=100.0)
    if estimate.num and estimate.num != row["num_seeds"]:
        text += f" ({counted(estimate.num, 'seed', 'seeds')})"
    star = "*" if row[f"{stage}_is_beyond_spread"] is True else ""
    return TextCell(text + star, is_bold=row[f"{stage}_is_best"] is True)


def _estimate(row: Mapping[str, Any], quantity: str, num: str = "") -> Estimate:
    mean = float(row[f"{quantity}_mean"])
    count = int(row[num]) if num else 1
    return Estimate(mean, float(row[f"{quantity}_std"]), 0 if math.isnan(mean) else count)


def _budgets_of(resource: object) -> str:
    return f", budgets of {RESOURCE_LABELS.get(str(resource), str(resource))}" if resource else ""


def _range(low: float, high: float) -> str:
    if math.isnan(low):
        return NOT_MEASURED
    return f"{low:.3f}" if f"{low:.3f}" == f"{high:.3f}" else f"{low:.3f}–{high:.3f}"


def _falling(budget: object) -> float:
    assert isinstance(budget, float)
    return math.inf if math.isnan(budget) else -budget


def _dense_row(dense: pd.DataFrame, facet: str, clock: str) -> dict[str, object]:
    # The same network is in every run's summary: distinct accuracies are distinct networks, and their number the seeds.
    estimate = Estimate.of(dense["accuracy_test"].unique())
    row: dict[str, object] = {"facet": facet, "resource": "", "series": "dense", "searcher": "dense"}
    row |= {"budget": math.nan} | _achieved(dense) | {"num_seeds": estimate.num}
    row |= {"trials": 0.0, "clock": clock, "search_s_mean": math.nan, "search_s_std": math.nan}
    row |= {"is_learned_elsewhere": False}
    for stage in STAGES:
        row |= {f"{stage}_{column}": value for column, value in _stage(None, "").items()}
    return row | {"before_mean": estimate.mean, "before_std": estimate.std, "before_num_seeds": estimate.num}


def _achieved(rows: pd.DataFrame) -> dict[str, object]:
    achieved: dict[str, object] = {"num_seeds": rows["seed"].nunique()}
    for column in COST_COLUMNS.values():
        achieved |= {f"{column}_min": float(rows[column].min()), f"{column}_max": float(rows[column].max())}
    timed = rows[rows[COST_COLUMNS["latency_ms"]].notna()]
    return achieved | {"device": "; ".join(dict.fromkeys(map(str, timed["device"])))}


def _search(rows: pd.DataFrame, clock: str) -> dict[str, object]:
    searches = _searches(rows)
    seconds = Estimate.of(searches[clock].astype("float64"))
    return {
        "trials": Estimate.of(searches["trials"].astype("float64")).mean,
        "clock": clock,
        "search_s_mean": seconds.mean,
        "search_s_std": seconds.std,
        "is_learned_elsewhere": bool(rows["is_learned_elsewhere"].eq(True).any()),
    }


def _searches(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per search: a run's networks share one.

    What was learned elsewhere is none, nor is a network that another run was compared with (no trials).
    """
    return rows[rows["is_learned_elsewhere"].ne(True) & rows["trials"].ne(0)].drop_duplicates("run")


def _stage(contest: Contest | None, series: str) -> dict[str, object]:
    """`_STAGE_COLUMNS` of `series` in `contest`; nothing where it wasn't in it."""
    own = next((one for one in (contest.standings if contest else ()) if one.series == series), None)
    estimate = own.accuracy if own else Estimate.of(())
    values: dict[str, object] = {"mean": estimate.mean, "std": estimate.std, "num_seeds": estimate.num}
    values |= {"is_best": None, "runner_up": "", "lead": math.nan, "spread": math.nan, "is_beyond_spread": None}
    if contest is None or own is None:
        return values
    is_level = own.accuracy.mean >= contest.best.accuracy.mean - NEGLIGIBLE
    values["is_best"] = is_level and contest.runner_up is not None
    if own is contest.best and contest.runner_up is not None:
        lead = contest.lead(own, contest.runner_up)
        values |= {"runner_up": contest.runner_up.series, "lead": lead.difference, "spread": lead.spread}
        values["is_beyond_spread"] = lead.is_beyond_spread
    return values
