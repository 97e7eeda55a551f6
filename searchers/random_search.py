"""Random search: policies drawn at the budget, independently. The file to copy for a searcher of your own.

A searcher names in `__init__` the collaborators it needs (searchers/RANDOM_SEARCH.md lists them), then its own options;
it proposes policies in `step`, and saves in `state_dict` whatever the next step depends on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from compsearch.budget import Budget, largest_within
from compsearch.importance import LayerImportance
from compsearch.protocols import CostModel, Evaluator
from compsearch.scoring import score
from compsearch.space import IntArray, SearchSpace
from compsearch.trial import Trial

#: A point on the way from the smallest policy where every group still has its fewest units.
_NO_WIDTH = 1e-3


class RandomSearch:
    """One step, one random policy at the budget.

    Each group draws u from U(0, 1); its keep_ratio is u^p, with one exponent p for all groups, the smallest with which
    the rounded policy meets the budget. Any budget can be met so, none is left unused but for the rounding, and the
    keep_ratios spread without piling up at the ends. Without a budget p is 1.

    Where there are no groups, each block draws the same, and has the operation at u^p of the way from its last one to
    the dense network's. Beside groups, blocks are left alone as long as any width within the budget is left.
    """

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
        seed: int,
        num_steps: int,
    ) -> None:
        if num_steps < 1:
            raise ValueError(f"`num_steps >= 1` must hold, but got {num_steps=} for searcher random")
        self.space = space
        self.evaluator = evaluator
        self.cost_model = cost_model
        self.budget = budget
        self.importance = importance.scores()
        self.num_steps = num_steps
        self.rng = np.random.default_rng(seed)

    def step(self) -> list[Trial]:
        """Draws, scores and returns one policy."""
        choices, num_groups = self.draw(), len(self.space.groups)
        policy = self.space.select(choices[:num_groups], self.importance, choices[num_groups:])
        return score([policy], space=self.space, evaluator=self.evaluator, cost_model=self.cost_model)

    def draw(self) -> IntArray:
        """Units to keep per group and the operation of each block, [num_groups + num_blocks]."""
        space = self.space
        u = self.rng.random(len(space.groups) or len(space.blocks))

        def path(t: float) -> IntArray:  # from p = infinity, the smallest policy, to p = 0, the dense one
            ratios = u ** ((1 - t) / t) if t > 0 else np.zeros_like(u)
            if not space.groups:
                return space.staggered_operations(ratios)
            counts = [space.nearest_count(index, ratio) for index, ratio in enumerate(ratios)]
            # Where the narrowest widths are not enough, blocks go one after the other.
            operations = space.staggered_operations(np.full(len(space.blocks), min(1.0, t / _NO_WIDTH)))
            return np.concatenate([np.array(counts, dtype=np.int64), operations])

        return path(0.5) if self.budget is None else largest_within(self.budget, path, cost_model=self.cost_model)

    def state_dict(self) -> dict[str, Any]:
        """The generator: all that one step leaves for the next."""
        return {"rng": self.rng.bit_generator.state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues after the step at which `state` was taken."""
        self.rng.bit_generator.state = state["rng"]
