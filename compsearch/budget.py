"""What a user can afford: a resource and the most of it a network may cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from compsearch.protocols import CostModel
from compsearch.space import IntArray, SearchSpace


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
    dense, lowest = _extremes(cost_model, space)
    if lowest > cost_ratio * dense:
        raise ValueError(
            f"the budget must reach what the smallest policy costs, {lowest / dense:.4f} of the dense "
            f"{cost_model.resource}, but got {cost_ratio=}; raise it, or lower space.min_keep_ratio"
        )
    return Budget(cost_model.resource, cost_ratio * dense, dense)


def budget_from_limit(*, limit: float, cost_model: CostModel, space: SearchSpace) -> Budget:
    """The budget of an absolute `limit`, in the resource's own unit.

    Raises ValueError unless it is between what the smallest policy of `space` and the dense network cost.
    """
    dense, lowest = _extremes(cost_model, space)
    if not lowest <= limit <= dense:
        raise ValueError(
            f"`budget.limit` must be between what the smallest policy and the dense network cost, {lowest:.6g} and "
            f"{dense:.6g} {cost_model.resource}, but got {limit=:.6g}"
        )
    return Budget(cost_model.resource, limit, dense)


def _extremes(cost_model: CostModel, space: SearchSpace) -> tuple[float, float]:
    dense, lowest = cost_model.costs(np.stack([space.dense_choices, space.smallest_choices]))
    if dense <= 0:
        resource = cost_model.resource
        raise ValueError(f"a budget must be of what the dense network costs, but its {resource} is {dense:g}")
    return float(dense), float(lowest)


def largest_within(budget: Budget | None, path: Callable[[float], IntArray], *, cost_model: CostModel) -> IntArray:
    """The counts [num_groups] furthest along `path` that `budget` allows, to 2^-40 of the path; all of it without one.

    `path` leads from the smallest policy at 0 to the dense one at 1 and never removes a unit on the way. Where the cost
    falls somewhere along it (a measured latency may), the result still meets the budget but may not be the furthest.
    Raises ValueError when even ``path(0)`` is over the budget.
    """
    best, dense = path(0.0), path(1.0)
    if budget is None:
        return dense
    costs = cost_model.costs(np.stack([best, dense]))
    if budget.allows(float(costs[1])):
        return dense
    if not budget.allows(float(costs[0])):
        raise ValueError(
            f"the budget must reach what the smallest policy costs, {costs[0]:.6g} {cost_model.resource}, but got "
            f"limit={budget.limit:.6g}; raise it, or lower space.min_keep_ratio"
        )
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        counts = path(middle)
        if budget.allows(float(cost_model.costs(counts[None])[0])):
            low, best = middle, counts
        else:
            high = middle
    return best
