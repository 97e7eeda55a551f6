"""What a user can afford: a resource and the most of it a network may cost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from compsearch.protocols import CostModel
from compsearch.space import SearchSpace


@dataclass(frozen=True)
class Budget:
    """At most `limit` of `resource`, where the dense network costs `dense` (same unit)."""

    resource: str
    limit: float
    dense: float

    @property
    def cost_ratio(self) -> float:
        """The limit as a fraction of the dense cost."""
        return self.limit / self.dense

    def allows(self, cost: float) -> bool:
        """Whether `cost` is within the limit; equal is within."""
        return cost <= self.limit


def budget_from_ratio(*, cost_ratio: float, cost_model: CostModel, space: SearchSpace) -> Budget:
    """The budget of `cost_ratio` times the dense cost.

    Raises ValueError unless `cost_ratio` is in (0, 1] and the smallest policy of `space` meets it.
    """
    if not 0 < cost_ratio <= 1:
        raise ValueError(f"`0 < budget.cost_ratio <= 1` must hold, but got {cost_ratio=}")
    dense, lowest = (float(cost) for cost in cost_model.costs(np.stack([space.sizes, space.min_counts])))
    if lowest > cost_ratio * dense:
        raise ValueError(
            f"the budget must reach what the smallest policy costs, {lowest / dense:.4f} of the dense "
            f"{cost_model.resource}, but got {cost_ratio=}; raise it, or lower space.min_keep_ratio"
        )
    return Budget(cost_model.resource, cost_ratio * dense, dense)
