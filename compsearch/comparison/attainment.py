"""Attainment surfaces: what accuracy at what cost a share of the seeds attains, the median run and its quartiles.

A point is attained by a run when a network of it costs no more and is at least as accurate. The surface at 50 bounds
what at least half of the runs attain, that at 25 what the best quarter does, that at 75 what three quarters do (Fonseca
and Fleming, 1996; Grunert da Fonseca, Fonseca and Hall, 2001). Of three runs these are at least 2, 1 and 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import moocore
import numpy as np
import pandas as pd

from compsearch.comparison.hypervolume import COSTS
from compsearch.comparison.seeds import SERIES_KEYS, complete_seeds, networks_on_axis
from compsearch.space import FloatArray

PERCENTILES = (25, 50, 75)


@dataclass(frozen=True)
class Surface:
    """What at least `percentile` percent of `num_runs` runs attain.

    `corners` are (cost, accuracy) [num_corners, 2], rising in both, of all budgets together. `stage` is ``before`` or
    ``after``, `cost` the axis.
    """

    facet: str
    resource: str
    series: str
    stage: str
    cost: str
    device: str
    percentile: int
    num_runs: int
    corners: FloatArray
    note: str = ""

    def polyline(self, right: float = 1.0) -> FloatArray:
        """The staircase through the corners, [num_vertices, 2], going on to the cost `right` at its highest accuracy.

        Between two corners, what is affordable is the cheaper one.
        """
        steps = np.repeat(self.corners, 2, axis=0)
        steps[1:-1:2, 0] = steps[2::2, 0]
        steps[-1:, 0] = np.maximum(steps[-1:, 0], right)
        return steps


def attainment(points: FloatArray, runs: Sequence[int], percentile: float) -> FloatArray:
    """Corners of the surface that at least `percentile` percent of the runs attain, (cost, accuracy) rising in both.

    `points` are (cost, accuracy) [num_points, 2], of which `runs` names the run of each; those that are not finite
    don't count. Empty, [0, 2], where there is no point.
    """
    is_finite = np.isfinite(points).all(axis=1)  # a NaN would count as non-dominated
    points, sets = points[is_finite], np.asarray(runs)[is_finite]
    if not len(points):
        return np.zeros((0, 2))
    # moocore counts the points of each set and takes them to lie together: unsorted, its answer is silently wrong.
    order = np.argsort(sets, kind="stable")
    found = moocore.eaf(points[order] * [1.0, -1.0], sets[order], percentiles=[percentile])  # it minimises both
    corners = np.asarray(found[:, :2] * [1.0, -1.0], dtype=np.float64)
    return corners[np.argsort(corners[:, 0], kind="stable")]


def surfaces(
    networks: pd.DataFrame, *, costs: Sequence[str] = COSTS, percentiles: Sequence[int] = PERCENTILES
) -> list[Surface]:
    """Of `Comparison.networks` on the test split, per series, stage and cost axis.

    A run is here a seed with all its budgets. Seeds that lack a budget which others of the series have are left out;
    `Surface.note` says so.
    """
    found = []
    for cost in costs:
        known = networks_on_axis(networks, cost)
        for (facet, resource, series, stage, device), rows in known.groupby(
            [*SERIES_KEYS, "stage", "device"], sort=False
        ):
            complete = complete_seeds(rows)
            if not complete.seeds:
                continue
            points = complete.rows[[cost, "accuracy_test"]].to_numpy(dtype=np.float64)
            for percentile in percentiles:
                found.append(
                    Surface(
                        facet=facet,
                        resource=resource,
                        series=series,
                        stage=stage,
                        cost=cost,
                        device=device,
                        percentile=percentile,
                        num_runs=len(complete.seeds),
                        corners=attainment(points, list(complete.rows["seed"]), percentile),
                        note=complete.note,
                    )
                )
    return found
