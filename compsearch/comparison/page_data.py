"""What the plots of the comparison's page draw: plain values per facet, which the page's script reads as JSON.

Nothing is computed in the browser but places on the screen: means, spreads and best-so-far curves come from here.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd

from compsearch.comparison.anytime import QUANTITIES, so_far
from compsearch.comparison.comparison import Comparison, Run
from compsearch.comparison.look import Look, looks
from compsearch.comparison.page_policies import PageSpaces, kept_of, trial_choices
from compsearch.comparison.pareto_plots import STAGES, CostAxis, cost_axes, over_seeds
from compsearch.comparison.seeds import COST_COLUMNS
from compsearch.report.style import RESOURCE_LABELS

#: A facet with more trials than this shows some of them; browsers draw this many without a delay one notices.
MAX_TRIALS = 5000
#: Files of a run that people open, in the order they ask for them.
LINKED_FILES = (
    *("summary.json", "policy.json", "family.json", "config.yaml", "trials.jsonl"),
    *("pareto.png", "family.png", "policy.png", "kept.png", "search.png", "latency.png"),
)


def facet_data(comparison: Comparison, facet: str, *, page: Path) -> dict[str, Any]:
    """Everything that the plots of `facet` show; links go from the file `page`."""
    runs = [run for run in comparison.runs if run.facet == facet]
    index_of = {run.name: index for index, run in enumerate(runs)}
    networks = comparison.networks[comparison.networks["facet"] == facet]
    trials = comparison.trials[comparison.trials["facet"] == facet]
    axes = cost_axes(networks)
    spaces = PageSpaces()
    rows = _networks(networks, runs, comparison.kept, axes, spaces)
    shown = thinned(trials)
    return {
        "name": facet,
        "axes": [{"label": axis.label, "device": axis.device, "column": axis.column} for axis in axes],
        "stages": {stage: label for stage, label in STAGES.items() if (networks["stage"] == stage).any()},
        "series": _series(comparison, facet, looks(comparison)),
        "runs": [_run(run, page) for run in runs],
        "networks": rows,
        "means": _means(networks, axes),
        "trials": _trials(shown, networks, runs, spaces) | {"num_all": len(trials)},
        "curves": _curves(trials, index_of),
        "spaces": spaces.to_json(),
    }


def link_to(target: Path, *, page: Path) -> str:
    """A link from the file `page` to `target`: relative, or a file URI where they share no folder but the root.

    A folder's link ends in a slash.
    """
    target, start = target.resolve(), page.resolve().parent
    slash = "/" if target.is_dir() else ""
    if Path(os.path.commonpath([target, start])) == Path(target.anchor):
        return target.as_uri() + slash
    return quote(os.path.relpath(target, start).replace(os.sep, "/")) + slash


def thinned(trials: pd.DataFrame, most: int = MAX_TRIALS) -> pd.DataFrame:
    """At most about `most` rows of a frame of `TRIAL_COLUMNS`: every improvement within a run, evenly chosen others."""
    if len(trials) <= most:
        return trials
    is_best = trials.groupby("run", sort=False)["accuracy"].transform(_is_improvement).astype(bool)
    others = np.flatnonzero(~is_best.to_numpy())
    room = max(most - int(is_best.sum()), 0)
    evenly = others[np.linspace(0, len(others) - 1, num=min(room, len(others)), dtype=np.int64)]
    keep = is_best.to_numpy().copy()
    keep[evenly] = True
    return trials[keep]


def _is_improvement(accuracy: pd.Series) -> pd.Series:
    before = accuracy.cummax().shift(fill_value=-math.inf).ffill()
    return accuracy > before


def _series(comparison: Comparison, facet: str, looks_by_series: Mapping[str, Look]) -> list[dict[str, Any]]:
    networks, trials = comparison.networks, comparison.trials
    here = {run.series for run in comparison.runs if run.facet == facet}
    here |= {*networks.loc[networks["facet"] == facet, "series"], *trials.loc[trials["facet"] == facet, "series"]}
    found = []
    for series, look in looks_by_series.items():
        if series not in here:
            continue
        seeds = networks.loc[(networks["facet"] == facet) & (networks["series"] == series), "seed"].nunique()
        found.append(
            {
                "name": series,
                "label": look.label,
                "color": look.color,
                "symbol": look.symbol,
                "dash": look.plotly_dash,
                "size": look.size,
                "num_seeds": int(seeds),
                "is_dense": series == "dense",
            }
        )
    return found


def _run(run: Run, page: Path) -> dict[str, Any]:
    return {
        "name": run.name,
        "series": run.series,
        "seed": run.seed,
        "command": run.command,
        "href": link_to(run.path, page=page),
        "files": [
            {"name": name, "href": link_to(run.path / name, page=page)}
            for name in LINKED_FILES
            if (run.path / name).exists()
        ],
    }


def _networks(
    networks: pd.DataFrame, runs: list[Run], kept: pd.DataFrame, axes: list[CostAxis], spaces: PageSpaces
) -> list[dict[str, Any]]:
    by_name = {run.name: (index, run) for index, run in enumerate(runs)}
    known = networks[networks["accuracy_test"].notna()]
    # A baseline stands in the summary of every run; its own run, which has its policy, comes first.
    is_own = np.array([by_name[row.run][1].series == row.series for row in known.itertuples()], dtype=bool)
    known = known.assign(is_own=is_own).sort_values("is_own", ascending=False, kind="stable")
    dense = known[known["stage"] == "dense"].drop_duplicates(["accuracy_test"]).assign(is_again=False)
    others = known[known["stage"] != "dense"]
    what = ["series", "resource", "budget", "stage", "seed"]
    others = others.drop_duplicates([*what, "device"])
    # A network timed on two devices has two latencies, but is one network on the other axes.
    others = others.assign(is_again=others.duplicated(what))
    found = []
    for row in pd.concat([others, dense]).to_dict("records"):
        index, run = by_name[row["run"]]
        policy = run.policies.get(row["budget"], run.policies.get(None)) if row["is_own"] else None
        compact = None
        if policy is not None:
            compact = spaces.compact(policy.counts, dict(policy.operations), each_operation=True)
            is_family = None not in run.policies
            sizes = run.summary.groups if run.summary is not None else {}
            kept_there = kept_of(kept, run.name, row["budget"] if is_family else None)
            spaces.learn_sizes(policy.counts, sizes, kept_there)
        costs = {column: row[column] for column in ("macs", "params", "latency_ms", "latency_p10", "latency_p90")}
        found.append(
            {
                "run": index,
                "series": row["series"],
                "seed": int(row["seed"]),
                "budget": _budget_text(row["resource"], row["budget"]),
                "stage": row["stage"],
                "test": row["accuracy_test"],
                "search": row["accuracy_search"],
                "top5": row["top5_test"],
                **costs,
                "ratios": {resource: row[column] for resource, column in COST_COLUMNS.items()},
                "x": [_place(row, axis) for axis in axes],
                "asked": row["budget"],
                "resource": row["resource"],
                "trials": row["trials"],
                "wall_s": row["wall_s"],
                "is_own": row["is_own"],
                "policy": compact,
            }
        )
    return found


def _place(row: Mapping[str, Any], axis: CostAxis) -> float | None:
    """Where on `axis` the network of `row` is drawn, None for not at all."""
    is_shown = row["device"] == axis.device if axis.device else not row["is_again"]
    return row[axis.column] if is_shown else None


def _means(networks: pd.DataFrame, axes: list[CostAxis]) -> list[dict[str, Any]]:
    """Per axis and stage, a line over the budgets for every series: mean cost, mean accuracy and its deviation."""
    found = []
    for number, axis in enumerate(axes):
        for stage in STAGES:
            table = over_seeds(networks[networks["stage"] == stage], axis)
            for (series, resource), line in table.groupby(["series", "resource"], sort=False, dropna=False):
                found.append(
                    {
                        "axis": number,
                        "stage": stage,
                        "series": series,
                        "resource": resource,
                        **{key: line[key].tolist() for key in ("cost", "accuracy", "std", "low", "high", "num_seeds")},
                        "budget": [_budget_text(resource, budget) for budget in line["budget"]],
                    }
                )
    return found


def _trials(shown: pd.DataFrame, networks: pd.DataFrame, runs: list[Run], spaces: PageSpaces) -> dict[str, Any]:
    """Columns, one entry per trial of `shown`, run by run; `costs` are the ratios of the resources there are any of."""
    shown = shown.sort_values("run", kind="stable")
    index_of = {run.name: index for index, run in enumerate(runs)}
    policies: list[dict[str, Any] | None] = []
    for name, rows in shown.groupby("run", sort=False):
        choices = trial_choices(runs[index_of[str(name)]], list(map(int, rows["index"])))
        for index in rows["index"]:
            choice = choices.get(int(index))
            policies.append(spaces.compact(*choice, each_operation=False) if choice else None)
    costs = {resource: _rounded(ratios) for resource, ratios in _trial_ratios(shown, networks).items()}
    return {
        "run": [index_of[name] for name in shown["run"]],
        "index": shown["index"].tolist(),
        "accuracy": _rounded(shown["accuracy"]),
        "objective": _rounded(shown["objective"]),
        "budget": [_budget_text(*pair) for pair in zip(shown["resource"], shown["budget"], strict=True)],
        "costs": [
            {
                "column": COST_COLUMNS.get(resource, resource),
                "label": RESOURCE_LABELS.get(resource, resource),
                "ratios": ratios,
            }
            for resource, ratios in costs.items()
            if any(map(math.isfinite, ratios))
        ],
        "policy": policies,
    }


def _trial_ratios(shown: pd.DataFrame, networks: pd.DataFrame) -> dict[str, pd.Series]:
    """What the trials cost over what the dense network does, by resource: counted, or as the search predicted it."""
    dense = networks[networks["stage"] == "dense"]
    found = {}
    for resource in dict.fromkeys(["macs", "params", *sorted(set(shown["resource"]) - {""})]):
        asked = shown["cost_ratio"].astype("float64").where(shown["resource"] == resource)
        whole = dense[resource].mean() if resource in {"macs", "params"} else math.nan
        found[resource] = asked if math.isnan(whole) else asked.fillna(shown[resource].astype("float64") / whole)
    return found


def _curves(trials: pd.DataFrame, index_of: Mapping[str, int]) -> list[dict[str, Any]]:
    """Per run and quantity what it reached so far, within the budget and on the search split.

    Where that changed, and at the end; a list per clock, as long as `values`.
    """
    found = []
    for name, rows in trials.groupby("run", sort=False):
        for quantity in QUANTITIES:
            reached = so_far(rows, quantity)
            is_there = reached > 0  # NaN is not
            if not is_there.any():
                continue
            corners = is_there & (np.diff(reached, prepend=0.0) != 0)
            corners[-1] = True
            steps = rows[corners]
            found.append(
                {
                    "run": index_of[str(name)],
                    "series": rows["series"].iloc[0],
                    "budget": _budget_text(rows["resource"].iloc[0], rows["budget"].iloc[0]),
                    "quantity": quantity,
                    "trials": (steps["index"] + 1).tolist(),
                    "wall_s": _rounded(steps["wall_s"]),
                    "cpu_s": _rounded(steps["cpu_s"]),
                    "values": _rounded(pd.Series(reached[corners])),
                }
            )
    return found


def _budget_text(resource: Any, budget: Any) -> str:
    """``0.3 of FLOPs (MACs)``; "" without a budget."""
    if not isinstance(resource, str) or not resource or budget is None or math.isnan(budget):
        return ""
    return f"{budget:g} of {RESOURCE_LABELS.get(resource, resource)}"


def _rounded(values: pd.Series) -> list[float]:
    """To six significant digits: half the bytes, and no difference on a screen."""
    return [float(f"{value:.6g}") for value in values.astype("float64")]
