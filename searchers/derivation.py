"""From probabilities to one network within a budget, which it uses as far as it can.

Widths are numbers, so a network is derived from their means: the expected cost of a layer is that of its expected
widths. Operations are not, so there the most probable ones are taken, and changed where that gives up least.
"""

from __future__ import annotations

import numpy as np

from compsearch.budget import Budget, largest_within
from compsearch.candidates import Candidates
from compsearch.protocols import CostModel
from compsearch.space import BoolArray, FloatArray, IntArray, SearchSpace


def scaled(
    counts: FloatArray,
    kept: FloatArray,
    *,
    space: SearchSpace,
    cost_model: CostModel,
    budget: Budget | None,
    fill: bool,
) -> IntArray:
    """The choices [num_groups + num_blocks] nearest to `counts` [num_groups], scaled so that they are within `budget`.

    `kept` [num_blocks] are the probabilities that blocks are not skipped. All groups go towards their fewest units
    together, or with `fill` towards all of them where the budget allows more, each to an allowed count; a block is kept
    from a probability above a half on, of less where there is room and of more where there is not. Without a budget
    nothing is scaled. Raises ValueError when even the smallest network is over the budget.
    """
    smallest, dense = space.min_counts.astype(np.float64), space.sizes.astype(np.float64)

    def path(t: float) -> IntArray:  # the smallest network at 0, what is wanted at a half, the dense one at 1
        start, end, part = (smallest, counts, 2 * t) if t <= 0.5 else (counts, dense, 2 * t - 1)
        kept_counts = space.staggered_counts(start + part * (end - start))
        return np.concatenate([kept_counts, (kept <= 1 - t).astype(np.int64)])

    wanted = path(0.5)
    if budget is None or (not fill and budget.allows(float(cost_model.costs(wanted[None])[0]))):
        return wanted
    return largest_within(budget, path, cost_model=cost_model)


def within(
    path: IntArray,
    log_probabilities: FloatArray,
    *,
    candidates: Candidates,
    cost_model: CostModel,
    budget: Budget | None,
    fill: bool,
) -> IntArray:
    """The path [num_choices] that `path` becomes when it must be within `budget`; `path` itself without one.

    While it is over, the choice changes that gives up least log-probability per unit of cost saved. What that saved too
    much of is taken back where there is room. With `fill`, changes that make it dearer are then taken by the same rule
    as long as the budget allows them, so that a network does not stay small for want of training. Raises ValueError
    when even the cheapest candidates are over the budget.
    """
    if budget is None:
        return path
    wanted, path = path, path.copy()
    cost = float(cost_model.costs(candidates.choices(path[None]))[0])
    while not budget.allows(cost):
        costs = _changed_costs(path, candidates, cost_model)
        found = _best_change(path, log_probabilities, costs < cost, cost - costs)
        if found is None:
            raise ValueError(
                f"the budget must reach what the smallest candidates cost, {cost:.6g} {cost_model.resource}, but got "
                f"limit={budget.limit:.6g}; raise it, or add smaller candidate widths"
            )
        choice, candidate = found
        path[choice], cost = candidate, float(costs[choice, candidate])
    is_wanted = np.arange(candidates.values.shape[1]) == wanted[:, None]
    # Back to what was wanted first, which leaves a path alone that never was over the budget.
    for dearer in (is_wanted, candidates.is_one) if fill else (is_wanted,):
        while True:
            costs = _changed_costs(path, candidates, cost_model)
            found = _best_change(
                path, log_probabilities, dearer & (costs <= budget.limit) & (costs > cost), costs - cost
            )
            if found is None:
                break
            choice, candidate = found
            path[choice], cost = candidate, float(costs[choice, candidate])
    return path


def _changed_costs(path: IntArray, candidates: Candidates, cost_model: CostModel) -> FloatArray:
    """What the network costs with one choice changed, [num_choices, most candidates]; NaN where there is none."""
    rows, columns = candidates.is_one.nonzero()
    changed = np.repeat(path[None], len(rows), axis=0)
    changed[np.arange(len(rows)), rows] = columns
    costs = np.full(candidates.values.shape, np.nan)
    costs[rows, columns] = cost_model.costs(candidates.choices(changed))
    return costs


def _current(path: IntArray, log_probabilities: FloatArray) -> FloatArray:
    """The log-probability of each choice's candidate on `path`, [num_choices, 1]."""
    current: FloatArray = np.take_along_axis(log_probabilities, path[:, None], axis=1)
    return current


def _best_change(
    path: IntArray, log_probabilities: FloatArray, allowed: BoolArray, amounts: FloatArray
) -> tuple[int, int] | None:
    """The allowed change that gives up least log-probability per amount, as choice and candidate; None if none is."""
    given_up = _current(path, log_probabilities) - np.where(allowed, log_probabilities, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        # What costs nothing comes first, and of that the most.
        prices = np.where(given_up > 0, given_up / amounts, given_up * amounts)
    prices = np.where(allowed, prices, np.inf)
    best = int(prices.argmin())
    if not np.isfinite(prices.flat[best]):
        return None
    choice, candidate = divmod(best, prices.shape[1])
    return choice, candidate
