"""Uniform: one keep_ratio for every group, as large as the budget allows. The line that every search must beat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from compsearch.budget import Budget, largest_within
from compsearch.protocols import CostModel, Evaluator
from compsearch.space import FloatArray, IntArray, SearchSpace
from compsearch.trial import Trial, scored_trial


class Uniform:
    """One step, one trial: the largest uniform policy that meets the budget after rounding.

    The keep_ratio is bisected; each group takes its allowed count nearest to it, the lower one when two are equally
    near. Groups of one size therefore change together, and what that leaves of the budget stays unused. Without a
    budget the policy is the dense network.
    """

    num_steps = 1

    def __init__(
        self,
        *,
        space: SearchSpace,
        evaluator: Evaluator,
        cost_model: CostModel,
        budget: Budget | None,
        importance: FloatArray,
    ) -> None:
        self.evaluator = evaluator
        self.counts = largest_within(budget, lambda ratio: uniform_counts(space, ratio), cost_model=cost_model)
        self.policy = space.select(self.counts, importance)
        self.cost_ratio = cost_model.cost(self.policy) / cost_model.cost(space.full_policy())

    def step(self) -> list[Trial]:
        """Scores the one policy."""
        [measurement] = self.evaluator.measure([self.policy])
        return [scored_trial(self.policy, measurement, objective=measurement.accuracy, cost_ratio=self.cost_ratio)]

    def state_dict(self) -> dict[str, Any]:
        """Empty: nothing changes from step to step."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to load."""


def uniform_counts(space: SearchSpace, keep_ratio: float) -> IntArray:
    """The allowed count of each group nearest to one `keep_ratio`, [num_groups]."""
    return np.array([space.nearest_count(index, keep_ratio) for index in range(len(space.groups))], dtype=np.int64)
