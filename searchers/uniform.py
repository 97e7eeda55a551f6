"""Uniform: one keep_ratio for every group, as large as the budget allows. The line that every search must beat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from compsearch.budget import Budget, largest_within
from compsearch.importance import LayerImportance
from compsearch.protocols import CostModel, Evaluator
from compsearch.scoring import score
from compsearch.space import IntArray, Policy, SearchSpace
from compsearch.trial import Trial

#: A keep_ratio at which every group has its fewest units.
_NO_WIDTH = 1e-3


class Uniform:
    """One step, one trial: the largest uniform policy that meets the budget after rounding.

    The keep_ratio is bisected. A group keeps the allowed count just below or just above it, and groups go from one to
    the other at staggered points: if all groups of one size changed at once, the cost would move in jumps and much of
    the budget stay unused, which makes a weak baseline. Without a budget the policy is the dense network.
    """

    num_steps = 1
    #: It can search spaces without groups, too.
    chooses_operations = True

    def __init__(
        self,
        *,
        space: SearchSpace,
        evaluator: Evaluator,
        cost_model: CostModel,
        budget: Budget | None,
        importance: LayerImportance,
    ) -> None:
        self.space = space
        self.evaluator = evaluator
        self.cost_model = cost_model
        self.importance = importance.scores()
        self.policy = self._policy(budget)
        self.counts = space.counts(self.policy)

    def step(self) -> list[Trial]:
        """Scores the one policy."""
        return self._score([self.policy])

    def family(self, trial: Trial, budgets: Sequence[Budget]) -> list[Trial]:
        """The largest uniform policy of each budget, scored."""
        return self._score([self._policy(budget) for budget in budgets])

    def state_dict(self) -> dict[str, Any]:
        """Empty: nothing changes from step to step."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to load."""

    def _score(self, policies: Sequence[Policy]) -> list[Trial]:
        return score(policies, space=self.space, evaluator=self.evaluator, cost_model=self.cost_model)

    def _policy(self, budget: Budget | None) -> Policy:
        choices = largest_within(budget, lambda ratio: uniform_choices(self.space, ratio), cost_model=self.cost_model)
        num_groups = len(self.space.groups)
        return self.space.select(choices[:num_groups], self.importance, choices[num_groups:])


def uniform_choices(space: SearchSpace, keep_ratio: float) -> IntArray:
    """The allowed count of each group just below or just above one `keep_ratio`, [num_groups + num_blocks].

    Blocks keep the dense network's operation, but at ratios below any width's, where they go one after the other. Where
    there are no groups, all have the operation at `keep_ratio` of the way from the last one to the dense network's, or
    the one next to it.
    """
    counts = space.staggered_counts(keep_ratio * space.sizes.astype(np.float64))
    richness = min(1.0, keep_ratio / _NO_WIDTH) if space.groups else keep_ratio
    return np.concatenate([counts, space.staggered_operations(np.full(len(space.blocks), richness))])
