"""Who is ahead at one budget, by how much, and whether that is more than the seeds differ among themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from compsearch.comparison.estimate import Estimate, is_beyond, joint_spread
from compsearch.comparison.seeds import COST_COLUMNS, compressed_networks

#: What needs no search worth its name. A method that doesn't beat these isn't worth its seconds.
BASELINES = frozenset({"uniform", "random", "global_magnitude"})


@dataclass(frozen=True)
class Standing:
    """One series in a contest: test accuracy by seed, and the mean achieved cost of the budget's resource.

    `cost_ratio` is NaN for a resource that the comparison doesn't tell of.
    """

    series: str
    searcher: str
    accuracies: Mapping[int, float]
    cost_ratio: float

    @property
    def accuracy(self) -> Estimate:
        """Over seeds."""
        return Estimate.of(self.accuracies.values())

    @property
    def is_baseline(self) -> bool:
        return self.searcher in BASELINES


@dataclass(frozen=True)
class Lead:
    """`difference` of two means of accuracy, a fraction, and the `spread` it is held against.

    The spread is sqrt(s1² + s2²), of two single seeds; a difference within it may be the seeds'. NaN with one seed.
    `paired` is the mean difference on the seeds that both have, where one has others too: None where they are the same.
    """

    difference: float
    spread: float
    paired: Estimate | None = None

    @property
    def is_beyond_spread(self) -> bool | None:
        """None where the spread is unknown."""
        return is_beyond(self.difference, self.spread)


@dataclass(frozen=True)
class Contest:
    """All series at one budget and stage (before or after fine-tuning), the most accurate first; at least one."""

    facet: str
    resource: str
    budget: float
    stage: str
    standings: tuple[Standing, ...]

    def lead(self, one: Standing, other: Standing) -> Lead:
        """Of `one` over `other`."""
        paired = None
        if set(one.accuracies) != set(other.accuracies):
            shared = [seed for seed in one.accuracies if seed in other.accuracies]
            paired = Estimate.of(one.accuracies[seed] - other.accuracies[seed] for seed in shared)
        difference = one.accuracy.mean - other.accuracy.mean
        return Lead(difference, joint_spread(one.accuracy, other.accuracy), paired)

    @property
    def best(self) -> Standing:
        return self.standings[0]

    @property
    def runner_up(self) -> Standing | None:
        return self.standings[1] if len(self.standings) > 1 else None

    @property
    def best_baseline(self) -> Standing | None:
        return next((standing for standing in self.standings if standing.is_baseline), None)

    @property
    def best_method(self) -> Standing | None:
        """The best of those that are no baseline."""
        return next((standing for standing in self.standings if not standing.is_baseline), None)


def contests(networks: pd.DataFrame) -> list[Contest]:
    """Of `Comparison.networks`: every facet, resource, budget and stage in the order met, budgets falling."""
    found = []
    groups = compressed_networks(networks).groupby(["facet", "resource", "budget", "stage"], sort=False, dropna=False)
    for (facet, resource, budget, stage), rows in groups:
        standings = []
        for (series, searcher), of_series in rows.groupby(["series", "searcher"], sort=False):
            column = COST_COLUMNS.get(resource)
            ratio = float(of_series[column].mean()) if column else float("nan")
            accuracies = dict(zip(of_series["seed"], of_series["accuracy_test"], strict=True))
            standings.append(Standing(series, searcher, accuracies, ratio))
        standings.sort(key=lambda standing: -standing.accuracy.mean)
        found.append(Contest(facet, resource, float(budget), stage, tuple(standings)))
    facets = list(dict.fromkeys((contest.facet, contest.resource) for contest in found))
    stages = {"before": 0, "after": 1}

    def order(contest: Contest) -> tuple[int, float, int]:
        budget = -contest.budget if np.isfinite(contest.budget) else np.inf
        return facets.index((contest.facet, contest.resource)), budget, stages.get(contest.stage, len(stages))

    return sorted(found, key=order)
