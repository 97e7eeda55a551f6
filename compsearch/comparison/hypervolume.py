"""Hypervolume: one number for how good a whole front of networks is, per searcher, with its spread over seeds.

The reference point is cost_ratio 1 (a network as expensive as the dense one) and accuracy 0. So the number is the
fraction of the accuracy × cost_ratio square that the front dominates: 1 would be a network that is always right and
costs nothing. Chance level instead of accuracy 0 would spread the numbers more, but depends on the number of classes,
and a network below chance would count for nothing; the order of series that share a front's budgets hardly changes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import moocore
import numpy as np
import pandas as pd

from compsearch.comparison.estimate import Estimate
from compsearch.comparison.seeds import (
    COST_COLUMNS,
    CompleteSeeds,
    budgets_of,
    budgets_text,
    columns_in_order,
    complete_seeds,
    networks_on_axis,
)
from compsearch.space import FloatArray

#: cost_ratio (minimised) and accuracy (maximised) that a network must be better than in both to count.
REFERENCE = (1.0, 0.0)

COSTS = tuple(COST_COLUMNS.values())

#: One row per series, stage and cost axis. `low` and `high` are the bootstrap interval of the mean.
HYPERVOLUME_COLUMNS = (
    "facet",
    "resource",  # that the budgets limit
    "series",
    "stage",  # before | after (fine-tuning)
    "cost",  # the axis: macs_ratio | params_ratio | latency_ratio
    "device",  # of the latencies, "" for another axis
    "budgets",  # of the fronts, as text
    "num_budgets",
    "num_seeds",
    "mean",
    "std",
    "low",
    "high",
    "common_budgets",  # those that every series of the facet has: what can be compared between rows
    "common_num_budgets",
    "common_num_seeds",
    "common_mean",
    "common_std",
    "common_low",
    "common_high",
    "note",
    "common_note",
)


def reference_sentence() -> str:
    """For captions: what the number is."""
    cost_ratio, accuracy = REFERENCE
    return (
        f"Hypervolume: the area between the front and the reference point (cost_ratio {cost_ratio:g}, accuracy "
        f"{accuracy:g}); larger is better, 1 would be a network that is always right and costs nothing."
    )


def hypervolume(points: FloatArray) -> float:
    """Of (cost_ratio, accuracy) [num_points, 2] with regard to `REFERENCE`; rows that are not finite don't count."""
    points = points[np.isfinite(points).all(axis=1)]  # a NaN would count as non-dominated
    if not len(points):
        return 0.0
    return float(moocore.hypervolume(points, ref=REFERENCE, maximise=[False, True]))


@dataclass(frozen=True)
class Interval:
    """95% of the means of resampled seeds lie within; NaN where there is one seed."""

    low: float
    high: float


def bootstrap_interval(values: Sequence[float], *, rng: np.random.Generator, num_resamples: int) -> Interval:
    """The percentile interval (95%) of the mean, resampling `values` with replacement.

    It never exceeds the range of `values`, so with a few seeds it is narrower than the truth.
    """
    if len(values) < 2:
        return Interval(math.nan, math.nan)
    means = rng.choice(np.asarray(values, dtype=np.float64), size=(num_resamples, len(values))).mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(low), float(high))


def hypervolumes(
    networks: pd.DataFrame,
    *,
    rng: np.random.Generator,
    costs: Sequence[str] = COSTS,
    num_resamples: int = 2000,
) -> pd.DataFrame:
    """`HYPERVOLUME_COLUMNS` of `Comparison.networks`: the front of a seed is of its networks at all budgets together.

    Only seeds that have every budget of their series count. The columns ``common_…`` are of the budgets that all series
    of the facet have, as more budgets make a larger front; NaN where there are none. Latencies of different devices
    are never put together.
    """
    rows: list[dict[str, object]] = []
    for cost in costs:
        known = networks_on_axis(networks, cost)
        for (facet, resource, stage, device), contest in known.groupby(
            ["facet", "resource", "stage", "device"], sort=False
        ):
            by_series = dict(list(contest.groupby("series", sort=False)))
            common = frozenset.intersection(*(budgets_of(of_series) for of_series in by_series.values()))
            for series, of_series in by_series.items():
                own, shared = complete_seeds(of_series), complete_seeds(of_series, common)
                rows.append(
                    {"facet": facet, "resource": resource, "series": series, "stage": stage, "cost": cost}
                    | {"device": device, "budgets": budgets_text(own.budgets), "num_budgets": len(own.budgets)}
                    | _statistics(own, cost, rng, num_resamples)
                    | {"common_budgets": budgets_text(common), "common_num_budgets": len(common)}
                    | {f"common_{k}": v for k, v in _statistics(shared, cost, rng, num_resamples).items()}
                    | {"note": _note(own), "common_note": _note(shared)}
                )
    return columns_in_order(rows, HYPERVOLUME_COLUMNS)


def _statistics(complete: CompleteSeeds, cost: str, rng: np.random.Generator, num_resamples: int) -> dict[str, object]:
    values = []
    for seed in complete.seeds:
        of_seed = complete.rows[complete.rows["seed"] == seed]
        values.append(hypervolume(of_seed[[cost, "accuracy_test"]].to_numpy(dtype=np.float64)))
    estimate = Estimate.of(values)
    interval = bootstrap_interval(values, rng=rng, num_resamples=num_resamples)
    return {
        "num_seeds": estimate.num,
        "mean": estimate.mean,
        "std": estimate.std,
        "low": interval.low,
        "high": interval.high,
    }


def _note(complete: CompleteSeeds) -> str:
    if not complete.budgets:
        return "no budget is covered by every series"
    missing = {0: "no seed has every budget", 1: "one seed: no interval"}.get(len(complete.seeds), "")
    return "; ".join(filter(None, [complete.note, missing]))
