"""How good each search is after so many trials, and after so many seconds: what an impatient user gets.

Two quantities, of the trials within the budget, on the search split: the best accuracy so far, which is the readable
one where a search keeps to one budget and so has nearly one cost, and the hypervolume so far. Each is a staircase per
run, put together over seeds.

Not every search can be compared by trials. One that trains a network of its own while it searches scores few policies,
most of them at the end; what it pays with is training, which the number of trials doesn't show. Its rows say
`is_by_trials` False; against seconds it is a contestant like any other. Searches of one trial (uniform,
global_magnitude, a ranking that was learned at another budget) are no curves but `references`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from compsearch.comparison.comparison import Comparison, Run
from compsearch.comparison.hypervolume import hypervolume
from compsearch.comparison.seeds import SERIES_KEYS, columns_in_order
from compsearch.comparison.settings import difference_labels, flatten
from compsearch.report.captions import counted
from compsearch.space import FloatArray

BEST_ACCURACY, HYPERVOLUME = "best_accuracy", "hypervolume"
QUANTITIES = (BEST_ACCURACY, HYPERVOLUME)
#: A trial at the budget may be above it by as much, from rounding in the file.
_TOLERANCE = 1e-9

#: One row per step of a staircase: the value holds from `x` to the next row's `x` of the same curve.
CURVE_COLUMNS = (
    "facet",
    "resource",
    "series",
    "searcher",
    "budget",
    "quantity",  # best_accuracy | hypervolume
    "clock",  # what `x` counts: trials | cpu_s | wall_s
    "x",
    "mean",
    "std",  # NaN with one seed
    "low",  # the lowest and the highest seed
    "high",
    "num_seeds",
    "is_by_trials",  # False where the number of trials doesn't tell what the search costs
    "scored_otherwise",  # as ``recover=bn`` where candidates are repaired before their scores in another way than most
    "note",
)
#: One row per series and budget whose searches are of one trial.
REFERENCE_COLUMNS = (
    "facet",
    "resource",
    "series",
    "searcher",
    "budget",
    "quantity",
    "mean",
    "std",
    "low",
    "high",
    "num_seeds",
    "is_learned_elsewhere",  # what it took is counted with another run
)


@dataclass(frozen=True)
class Progress:
    """One run, scored trial by trial: `x` [num_trials] trials or seconds, `y` [num_trials] what was reached by then.

    `y` never falls; it is NaN before there is anything. `is_finished` says whether the search has come to its end, so
    that its last value holds from then on.
    """

    run: str
    seed: int
    x: FloatArray
    y: FloatArray
    is_finished: bool

    @property
    def end(self) -> float:
        return float(self.x[-1])

    def at(self, x: float) -> float:
        """What was reached at `x`; NaN before there is anything, and beyond the end of an unfinished search."""
        position = int(np.searchsorted(self.x, x, side="right")) - 1
        if position < 0 or (x > self.end and not self.is_finished):
            return math.nan
        return float(self.y[position])


@dataclass(frozen=True)
class Contestant:
    """The runs of one series at one budget, a seed each. `keys` are facet, resource, series, searcher and budget."""

    keys: dict[str, object]
    runs: tuple[pd.DataFrame, ...]
    finished: frozenset[str]
    learned_elsewhere: frozenset[str]
    is_by_trials: bool = True
    num_members: int = 1  # networks that each run was asked for: the budgets of a family
    scored_otherwise: str = ""  # how the recovery before its scores differs from most of the facet's: ``recover=bn``
    note: str = ""

    @property
    def is_reference(self) -> bool:
        """Whether every run scored one policy per network it was asked for: a point, not a search that gets better."""
        return self.is_finished and all(len(run) <= self.num_members for run in self.runs)

    @property
    def is_finished(self) -> bool:
        return all(_name(run) in self.finished for run in self.runs)

    @property
    def is_learned_elsewhere(self) -> bool:
        return any(_name(run) in self.learned_elsewhere for run in self.runs)

    def progress(self, clock: str, quantity: str) -> list[Progress]:
        """Of every run, against the `clock` (trials, cpu_s or wall_s)."""
        found = []
        for run in self.runs:
            x = np.arange(1, len(run) + 1) if clock == "trials" else run[clock].to_numpy()
            found.append(
                Progress(
                    run=_name(run),
                    seed=int(run["seed"].iloc[0]),
                    x=x.astype(np.float64),
                    y=so_far(run, quantity),
                    is_finished=_name(run) in self.finished,
                )
            )
        return found


def so_far(run: pd.DataFrame, quantity: str) -> FloatArray:
    """After each trial of `run` the best of those within the budget so far, [num_trials].

    `run` are its rows of `Comparison.trials`, in order.
    Failed trials, and those above the budget (a penalty instead of a limit; the other members of a family), count as
    trials and change nothing. NaN until there is a best accuracy, 0 until there is a hypervolume.
    """
    counts = _within_budget(run).index
    points = run[["cost_ratio", "accuracy"]].to_numpy(dtype=np.float64)
    counts = run.index.isin(counts) & np.isfinite(points).all(axis=1)
    if quantity == BEST_ACCURACY:
        best = np.fmax.accumulate(np.where(counts, points[:, 1], np.nan))
        return np.asarray(best, dtype=np.float64)
    assert quantity == HYPERVOLUME, quantity
    values, reached = np.zeros(len(points)), 0.0
    front = np.zeros((0, 2))
    for position, point in enumerate(points):
        if counts[position] and not ((front[:, 0] <= point[0]) & (front[:, 1] >= point[1])).any():
            is_beaten = (front[:, 0] >= point[0]) & (front[:, 1] <= point[1])
            front = np.vstack([front[~is_beaten], point])
            reached = hypervolume(front)
        values[position] = reached
    return values


def contestants(comparison: Comparison) -> list[Contestant]:
    """Every series at every budget, in the order met; of several runs of one seed the first counts.

    Where the series has finished runs at that budget its unfinished ones are left out, and where it has runs that
    searched those that took over what was learned at another budget are; `note` says so.
    """
    finished = frozenset(run.name for run in comparison.runs if run.summary is not None)
    trained = frozenset(run.name for run in comparison.runs if run.trains_network)
    members = {run.name: run.num_members for run in comparison.runs}
    otherwise = _scored_otherwise(comparison.runs)
    networks = comparison.networks
    elsewhere = frozenset(networks.loc[networks["is_learned_elsewhere"].eq(True), "run"])
    found = []
    for keys, rows in comparison.trials.groupby([*SERIES_KEYS, "searcher", "budget"], sort=False, dropna=False):
        # Folders of one name, from two machines say, are told apart by nothing: the first one's trials count.
        runs = [of_run.drop_duplicates("index").sort_values("index") for _, of_run in rows.groupby("run", sort=False)]
        notes = []
        for unwanted, kind in (
            ({run.name for run in comparison.runs} - finished, "unfinished"),
            (elsewhere, "learned at another budget"),
        ):
            wanted = [run for run in runs if _name(run) not in unwanted]
            if not wanted:
                notes.append(kind)
            elif len(wanted) < len(runs):
                notes.append(f"left out: {counted(len(runs) - len(wanted), 'run', 'runs')} {kind}")
                runs = wanted
        by_seed: dict[int, pd.DataFrame] = {}
        for run in runs:
            by_seed.setdefault(int(run["seed"].iloc[0]), run.reset_index(drop=True))
        found.append(
            Contestant(
                keys=dict(zip([*SERIES_KEYS, "searcher", "budget"], keys, strict=True)),
                runs=tuple(by_seed.values()),
                finished=finished,
                learned_elsewhere=elsewhere,
                num_members=max(members[_name(run)] for run in by_seed.values()),
                scored_otherwise="; ".join(filter(None, {otherwise[_name(run)]: None for run in by_seed.values()})),
                is_by_trials=trained.isdisjoint(map(_name, by_seed.values())),
                note="; ".join(notes),
            )
        )
    return found


def _scored_otherwise(runs: Sequence[Run]) -> dict[str, str]:
    """By a run's name, how the recovery before its scores differs from that of most runs of its facet; "" if not."""
    found: dict[str, str] = {}
    for facet in dict.fromkeys(run.facet for run in runs):
        members = [run for run in runs if run.facet == facet]
        parts = [{key: run.config[key] for key in ("recover", "calibration") if key in run.config} for run in members]
        labels = difference_labels([flatten(part) for part in parts])
        found |= {run.name: label for run, label in zip(members, labels, strict=True)}
    return found


def seconds_clocks(trials: pd.DataFrame) -> dict[str, str]:
    """Per facet what seconds are of: cpu_s where all its runs counted it, otherwise wall_s.

    The processor's seconds are steadier where several runs share a machine; a facet is never of both.
    """
    return {
        facet: "cpu_s" if rows["cpu_s"].notna().all() else "wall_s"
        for facet, rows in trials.groupby("facet", sort=False)
    }


def anytime_curves(comparison: Comparison, *, quantities: Sequence[str] = QUANTITIES) -> pd.DataFrame:
    """`CURVE_COLUMNS`: mean, spread and range over seeds of each search that has more than one trial.

    Against trials and against seconds (`clock` says whose). A curve begins where every seed has something. Finished
    searches hold their last value until the longest of them ends; of unfinished ones the curve ends with the shortest.
    """
    clocks = seconds_clocks(comparison.trials)
    rows: list[dict[str, object]] = []
    for contestant in contestants(comparison):
        if contestant.is_reference:
            continue
        for clock in ("trials", clocks[str(contestant.keys["facet"])]):
            for quantity in quantities:
                shared = {"quantity": quantity, "clock": clock, "is_by_trials": contestant.is_by_trials}
                shared["scored_otherwise"] = contestant.scored_otherwise
                for step in _steps(contestant.progress(clock, quantity)):
                    rows.append({**contestant.keys, **shared, **step, "note": contestant.note})
    return columns_in_order(rows, CURVE_COLUMNS)


def anytime_references(comparison: Comparison, *, quantities: Sequence[str] = QUANTITIES) -> pd.DataFrame:
    """`REFERENCE_COLUMNS`: what the searches of one trial come to, to be drawn as a level."""
    rows: list[dict[str, object]] = []
    for contestant in contestants(comparison):
        if not contestant.is_reference:
            continue
        for quantity in quantities:
            values = np.array([run.y[-1] for run in contestant.progress("trials", quantity)])
            values = values[np.isfinite(values)]
            if len(values):
                shared = {"quantity": quantity, "is_learned_elsewhere": contestant.is_learned_elsewhere}
                rows.append({**contestant.keys, **shared, **over_seeds(values)})
    return columns_in_order(rows, REFERENCE_COLUMNS)


def over_seeds(values: FloatArray) -> dict[str, object]:
    """mean, std, low, high and num_seeds of `values` [num_seeds], all finite, at least one."""
    return {
        "mean": float(values.mean()),
        "std": float(values.std(ddof=1)) if len(values) > 1 else math.nan,
        "low": float(values.min()),
        "high": float(values.max()),
        "num_seeds": len(values),
    }


def _steps(runs: Sequence[Progress]) -> Iterator[dict[str, object]]:
    """The mean staircase: a row wherever it changes, one at its end. None where a run has no result, or no seconds."""
    ends = [run.end for run in runs]
    end = max(ends) if all(run.is_finished for run in runs) else min(ends)
    first = [run.x[np.isfinite(run.y)][:1] for run in runs]
    if any(not len(x) for x in first) or not all(np.isfinite(run.x).all() for run in runs):
        return
    start = float(np.concatenate(first).max())
    changes = [run.x[1:][np.diff(run.y) > 0] for run in runs]  # NaN to a number is no change: `start` has it
    grid = np.unique(np.concatenate([*changes, [start, end]]))
    for x in grid[(grid >= start) & (grid <= end)]:
        yield {"x": float(x), **over_seeds(np.array([run.at(x) for run in runs]))}


def _within_budget(run: pd.DataFrame) -> pd.DataFrame:
    """The trials that keep to the budget, all without one; failed ones among them."""
    return run[~(run["cost_ratio"] > run["budget"] + _TOLERANCE)]


def _name(run: pd.DataFrame) -> str:
    return str(run["run"].iloc[0])
