"""From one score per unit to a policy: the lowest go first, over all groups together, until the budget is met."""

from __future__ import annotations

import numpy as np

from compsearch.budget import Budget, largest_within
from compsearch.protocols import CostModel
from compsearch.space import FloatArray, IntArray, Policy, SearchSpace


class Ranking:
    """All units of `space` in one order, by `scores` [num_units], higher is kept longer; of equal ones the first.

    Policies of one ranking are nested: a smaller budget keeps a subset of what a larger one keeps.
    """

    def __init__(self, space: SearchSpace, scores: FloatArray) -> None:
        self._space = space
        self._scores = scores
        # Within a group `space.select` keeps the first of equals, so the last of equals goes first.
        order = np.argsort(scores[::-1], kind="stable")
        group_of = np.repeat(np.arange(len(space.groups)), space.sizes)
        self._groups_removed: IntArray = group_of[::-1][order]

    def policy(self, budget: Budget | None, *, cost_model: CostModel) -> Policy:
        """The largest policy of this ranking that `budget` allows; the dense network without one.

        Raises ValueError when even the smallest policy costs more.
        """
        counts = largest_within(budget, self._counts, cost_model=cost_model)
        return self._space.select(counts, self._scores)

    def _counts(self, fraction: float) -> IntArray:
        """Units per group [num_groups] after all but `fraction` of the units went, rounded to what a group may keep.

        A group at its minimum keeps it while the others go on.
        """
        num_removed = self._space.num_units - int(fraction * self._space.num_units)
        removed = np.bincount(self._groups_removed[:num_removed], minlength=len(self._space.groups))
        return self._space.nearest_counts(self._space.sizes - removed)
