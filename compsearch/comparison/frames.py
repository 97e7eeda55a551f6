"""The tables of a comparison, counted out of what its run folders hold."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from compsearch.comparison.comparison import KEPT_COLUMNS, NETWORK_COLUMNS, TRIAL_COLUMNS, Run
from compsearch.comparison.facets import learns_weights, part
from compsearch.comparison.folders import RunFiles, TrialRow
from compsearch.comparison.options import option_word
from compsearch.comparison.series import budget_of, is_family
from compsearch.space import ZERO, Policy
from compsearch.summary import NetworkRow, Summary

#: Rows of a summary, and the stage that they are.
_STAGES: Mapping[str, str] = {"compressed": "before", "fine-tuned": "after"}
_LEARNED_NOTE = "nothing was learned here"
_TEXTS = frozenset({"run", "facet", "series", "searcher", "variant", "resource", "stage", "device", "group"})
_INTEGERS = frozenset({"seed", "trials", "images", "index"})
_TRUTHS = frozenset({"is_learned_elsewhere"})


@dataclass(frozen=True)
class ReadRun:
    """A run with the content of its folder."""

    run: Run
    files: RunFiles

    @property
    def about(self) -> dict[str, Any]:
        """The columns that say which run a row is of."""
        run = self.run
        return {
            "run": run.name,
            "facet": run.facet,
            "series": run.series,
            "searcher": run.searcher,
            "variant": run.variant,
            "seed": run.seed,
            "resource": budget_of(self.files)[0],
        }


def networks_frame(runs: Sequence[ReadRun]) -> pd.DataFrame:
    """`NETWORK_COLUMNS`: the dense network, and those of every finished run, each at the budget asked for.

    The dense row is of the facet's first run on its most common device; each seed has one where each trained its own.
    A family's members all carry what their one search took. The uniform network that a run was compared with stands as
    one of series ``uniform``, which took nothing, where the facet has no uniform run for that budget and seed. Where
    each search trains its own weights there is none such, and no accuracy of the dense network.
    """
    rows: list[dict[str, Any]] = []
    for facet in dict.fromkeys(read.run.facet for read in runs):
        members = [read for read in runs if read.run.facet == facet and read.run.summary is not None]
        rows.extend(_dense_rows(members))
        found = [row for read in members for row in _own_rows(read)]
        rows.extend(found)
        rows.extend(_uniform_rows(members, found))
    return _frame(rows, NETWORK_COLUMNS)


def trials_frame(runs: Sequence[ReadRun]) -> pd.DataFrame:
    """`TRIAL_COLUMNS`: what every search scored, in order. A family's larger networks are no trials of the search."""
    rows: list[dict[str, Any]] = []
    for read in runs:
        about, budget = read.about, budget_of(read.files)[1]
        rows.extend({**about, "budget": budget, **vars(trial)} for trial in _searched(read.files, budget))
    return _frame(rows, TRIAL_COLUMNS)


def kept_frame(runs: Sequence[ReadRun]) -> pd.DataFrame:
    """`KEPT_COLUMNS`: what every network found keeps of each group.

    Groups inside a block that is skipped keep nothing: 0. What operations blocks have otherwise isn't told, nor are
    blocks without groups. Where the run is of a version that doesn't say how large its groups are, they are taken to be
    as large as what any trial or network of the facet, in the same space, keeps of them.
    """
    rows: list[dict[str, Any]] = []
    sizes: dict[tuple[str, str], Counter[str]] = {}
    for read in runs:
        for space, found in read.files.sizes.items():
            known = sizes.setdefault((read.run.facet, space), Counter())
            known |= Counter(found)  # the larger of each
    for read in runs:
        for cost_ratio, policy in read.files.policies:
            budget = budget_of(read.files)[1] if cost_ratio is None else cost_ratio
            whole = {**sizes.get((read.run.facet, policy.space), {}), **read.files.groups}
            rows.extend(
                {**read.about, "budget": budget, "group": group, "keep_ratio": ratio}
                for group, ratio in _keep_ratios(policy, whole)
            )
    return _frame(rows, KEPT_COLUMNS)


def _keep_ratios(policy: Policy, sizes: Mapping[str, int]) -> Iterable[tuple[str, float]]:
    skipped = tuple(f"{block}." for block, operation in policy.operations if operation == ZERO)
    for group, units in policy.kept:
        size = max(sizes.get(group, 0), len(units), 1)
        yield group, 0.0 if group.startswith(skipped) else len(units) / size


def _searched(files: RunFiles, budget: float) -> Sequence[TrialRow]:
    """The trials of the search: without those that a family's larger networks were scored in, its last step."""
    trials = files.trials
    if files.summary is not None:
        return trials[: files.summary.search_cost.num_trials]
    num_larger = len(files.config["budget"]["cost_ratios"]) - 1 if is_family(files) else 0
    searched, last = trials[: len(trials) - num_larger], trials[len(trials) - num_larger :]
    return searched if all(trial.cost_ratio > budget * (1 + 1e-9) for trial in last) else trials


def _dense_rows(runs: Sequence[ReadRun]) -> list[dict[str, Any]]:
    devices = Counter(_device(read.files.summary.dense) for read in runs if read.files.summary is not None)
    usual = max(devices, key=lambda device: (bool(device), devices[device]), default="")
    rows: dict[tuple[float | None, float, float], dict[str, Any]] = {}
    # A stable sort: the usual device first.
    for read in sorted(runs, key=lambda read: _device(_summary(read).dense) != usual):
        dense = _summary(read).dense
        about = {**read.about, "series": "dense", "searcher": "dense", "variant": "", "resource": ""}
        row = {**about, "budget": math.nan, "stage": "dense", **_measured(dense, dense), **_nothing_searched()}
        if learns_weights(read.files.config):
            row |= dict.fromkeys(("accuracy_test", "accuracy_search", "top5_test"))
        rows.setdefault((row["accuracy_test"], dense.macs, dense.params), row)
    return list(rows.values())


def _own_rows(read: ReadRun) -> list[dict[str, Any]]:
    summary = _summary(read)
    cost = summary.search_cost
    taken = {
        "trials": cost.num_trials,
        "images": cost.num_images,
        "wall_s": cost.wall_s,
        "cpu_s": cost.cpu_s,
        "is_learned_elsewhere": bool(read.files.learned_by)
        or any(note.startswith(_LEARNED_NOTE) for note in summary.notes),
    }
    return [
        {**read.about, "budget": budget, "stage": _STAGES[row.name], **_measured(row, summary.dense), **taken}
        for budget, networks in _by_budget(read)
        for row in networks
        if row.name in _STAGES
    ]


def _by_budget(read: ReadRun) -> list[tuple[float, Sequence[NetworkRow]]]:
    """The networks at each budget; a family has its own at the lowest among its members."""
    summary = _summary(read)
    if summary.family:
        return [(member.cost_ratio, member.networks) for member in summary.family]
    return [(budget_of(read.files)[1], summary.networks)]


def _uniform_rows(runs: Sequence[ReadRun], found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of several runs with one at the same budget and seed, the first with the usual settings counts.

    What uniform pruning reaches depends on how channels are chosen and how the network is recovered, so a network that
    was made in another way than the facet's own uniform runs, or than most, is a series that says so.
    """
    known = {(row["series"], *_point(row)) for row in found if row["searcher"] == "uniform"}
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    given = [read for read in runs if not learns_weights(read.files.config)]
    own = [read for read in given if read.run.series == "uniform"]
    makings = Counter(_making(read) for read in own or given)
    usual = max(makings, key=lambda making: makings[making], default=())
    for read in sorted(given, key=_oddity):
        differing = [text for text, common in zip(_making(read), usual, strict=True) if text != common]
        series = ", ".join(["uniform", *differing])
        about = {**read.about, "series": series, "searcher": "uniform", "variant": ""}
        for budget, networks in _by_budget(read):
            for network in networks:
                row = {**about, "budget": budget, "stage": "before"}
                point = (series, *_point(row))
                if network.name == "uniform" and point not in known:
                    rows.setdefault(point, {**row, **_measured(network, _summary(read).dense), **_nothing_searched()})
    return list(rows.values())


def _making(read: ReadRun) -> tuple[str, ...]:
    """How the baseline of a run was made: whose channels go, and what recovers the network, as typed."""
    config = read.files.config
    finalist = part(config, "finalist")
    nodes = {"importance": part(config, "importance"), "recover": part(finalist, "recover")}
    words = {group: option_word(group, node) if "_target_" in node else "" for group, node in nodes.items()}
    return (
        f"importance={words['importance']}",
        f"recover@finalist.recover={words['recover']}",
        f"finalist.calibration_images={finalist.get('calibration_images')}",
    )


def _oddity(read: ReadRun) -> int:
    """0 for a series that is bare its searcher, 1 for an ablation's default, 2 for others."""
    return 0 if read.run.series == read.run.searcher else 2 - (read.run.variant == "default")


def _point(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["resource"], f"{row['budget']:.6g}", row["seed"]


def _measured(row: NetworkRow, dense: NetworkRow) -> dict[str, Any]:
    """What a network is, and what it costs of the `dense` one of its own run."""
    latency = row.latency
    ratio = row.ratios(dense).get("latency_ms")
    return {
        "accuracy_test": row.accuracy_test,
        "accuracy_search": row.accuracy_search,
        "top5_test": row.top5_test,
        "macs": row.macs,
        "params": row.params,
        "latency_ms": latency.median_ms if latency else None,
        "macs_ratio": row.macs / dense.macs,
        "params_ratio": row.params / dense.params,
        "latency_ratio": ratio,
        "latency_p10": latency.ratio_p10 if latency and ratio is not None else None,
        "latency_p90": latency.ratio_p90 if latency and ratio is not None else None,
        "device": _device(row),
    }


def _nothing_searched() -> dict[str, Any]:
    return {"trials": 0, "images": 0, "wall_s": 0.0, "cpu_s": 0.0, "is_learned_elsewhere": False}


def _device(row: NetworkRow) -> str:
    return row.latency.runtime if row.latency else ""


def _summary(read: ReadRun) -> Summary:
    assert read.files.summary is not None, "only finished runs have networks"
    return read.files.summary


def _frame(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    """`rows` as a table of `columns`, each of its type also where there are none; None becomes NaN."""
    kinds = {
        column: "str"
        if column in _TEXTS
        else "int64"
        if column in _INTEGERS
        else "bool"
        if column in _TRUTHS
        else "float64"
        for column in columns
    }
    return pd.DataFrame(list(rows), columns=list(columns)).astype(kinds)
