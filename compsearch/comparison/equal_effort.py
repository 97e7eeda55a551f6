"""What each search had found when all had been given equally much: as many trials, or as many seconds.

The amount is the smallest total that any search of that budget ran to, so that nobody's number is extrapolated.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from compsearch.comparison.anytime import BEST_ACCURACY, Contestant, contestants, over_seeds, seconds_clocks
from compsearch.comparison.comparison import Comparison
from compsearch.comparison.seeds import columns_in_order

#: One row per series and budget: `mean` and the rest are of the best search accuracy when `effort` was spent.
EQUAL_EFFORT_COLUMNS = (
    "facet",
    "resource",
    "series",
    "searcher",
    "budget",
    "clock",  # what effort is: trials | cpu_s | wall_s
    "effort",  # the same for every series of the budget
    "own_total",  # what the search ran to, mean over seeds
    "mean",
    "std",
    "low",
    "high",
    "num_seeds",
    "scored_otherwise",  # as ``recover=bn`` where the accuracy is one after another recovery than most
    "note",
)


def at_equal_trials(comparison: Comparison) -> pd.DataFrame:
    """`EQUAL_EFFORT_COLUMNS` after as many trials as the shortest search took.

    Searches that train a network of their own have no number here (trials are not what they pay with), and unfinished
    ones neither. Searches of one trial stand for what they come to.
    """
    return _at_equal(comparison, by_trials=True)


def at_equal_seconds(comparison: Comparison) -> pd.DataFrame:
    """`EQUAL_EFFORT_COLUMNS` after as many seconds as the shortest search took, the processor's where all counted them.

    A series that had nothing by then on some seed has no number; searches of one trial are not held to the clock.
    """
    return _at_equal(comparison, by_trials=False)


def _at_equal(comparison: Comparison, *, by_trials: bool) -> pd.DataFrame:
    clocks = seconds_clocks(comparison.trials)
    cells: dict[tuple[object, object, str], list[Contestant]] = {}
    for contestant in contestants(comparison):
        budget = str(contestant.keys["budget"])  # a NaN is not equal to itself, its text is
        cells.setdefault((contestant.keys["facet"], contestant.keys["resource"], budget), []).append(contestant)
    rows: list[dict[str, object]] = []
    for (facet, _, _), cell in cells.items():
        clock = "trials" if by_trials else clocks[str(facet)]
        totals = [
            run.end
            for contestant in cell
            if not _excuse(contestant, clock) and not contestant.is_reference
            for run in contestant.progress(clock, BEST_ACCURACY)
        ]
        if totals:
            rows.extend(_row(contestant, clock, min(totals)) for contestant in cell)
    return columns_in_order(rows, EQUAL_EFFORT_COLUMNS)


def _row(contestant: Contestant, clock: str, effort: float) -> dict[str, object]:
    runs = contestant.progress(clock, BEST_ACCURACY)
    excuse = _excuse(contestant, clock)
    values = np.array([run.y[-1] if contestant.is_reference else run.at(effort) for run in runs])
    if not excuse and not np.isfinite(values).all():
        excuse = "nothing found by then"
    nothing = {"mean": math.nan, "std": math.nan, "low": math.nan, "high": math.nan, "num_seeds": 0}
    reference = "one trial" if contestant.is_reference else ""
    otherwise = contestant.scored_otherwise
    scored = f"scored otherwise ({otherwise}): does not compare" if otherwise else ""
    return {
        **contestant.keys,
        "clock": clock,
        "effort": effort,
        "own_total": float(np.mean([run.end for run in runs])),
        **(nothing if excuse else over_seeds(values)),
        "scored_otherwise": contestant.scored_otherwise,
        "note": "; ".join(filter(None, dict.fromkeys([excuse, reference, scored, contestant.note]))),
    }


def _excuse(contestant: Contestant, clock: str) -> str:
    """Why there is no number of `contestant`; empty when there is."""
    if not contestant.is_finished:
        return "unfinished"
    if clock == "trials":
        return "" if contestant.is_by_trials else "trains its own network: not told by trials"
    is_timed = all(run[clock].notna().all() for run in contestant.runs)
    return "" if is_timed or contestant.is_reference else "seconds unknown"
