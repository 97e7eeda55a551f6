"""From probabilities to a network of operations within a budget."""

from dataclasses import replace

import numpy as np
import pytest

from compsearch.budget import Budget
from compsearch.candidates import Candidates, candidates_of
from compsearch.space import Block, FloatArray, IntArray, Operation, Policy, SearchSpace
from compsearch.toy import toy_space
from searchers.derivation import within

COSTS = np.array([8.0, 5.0, 3.0, 0.0])
SPACE = replace(
    toy_space(),
    groups=(),
    blocks=tuple(Block(str(index), tuple(Operation(name) for name in "abcz")) for index in range(6)),
)


class Sum:
    """Every block costs by its operation alone."""

    resource = "macs"

    def __init__(self, space: SearchSpace) -> None:
        self.space = space

    def cost(self, policy: Policy) -> float:
        return float(self.costs(self.space.choices(policy)[None])[0])

    def costs(self, counts: IntArray) -> FloatArray:
        costs: FloatArray = COSTS[counts].sum(axis=1)
        return costs


def derive(path: IntArray, logs: FloatArray, limit: float, *, fill: bool) -> IntArray:
    candidates: Candidates = candidates_of(SPACE, [1.0])
    budget = Budget("macs", limit, 48.0)
    return within(path, logs, candidates=candidates, cost_model=Sum(SPACE), budget=budget, fill=fill)


def problem(seed: int) -> tuple[IntArray, FloatArray]:
    rng = np.random.default_rng(seed)
    logs = np.log(rng.dirichlet(np.ones(4), size=6))
    return rng.integers(4, size=6), logs


@pytest.mark.parametrize("seed", range(20))
def test_a_path_within_the_budget_is_left_alone_unless_it_is_to_be_filled(seed: int) -> None:
    path, logs = problem(seed)
    cost = float(COSTS[path].sum())
    assert (derive(path, logs, cost, fill=False) == path).all()
    assert (derive(path, logs, cost + 20, fill=False) == path).all()
    filled = derive(path, logs, cost + 5, fill=True)
    assert cost <= COSTS[filled].sum() <= cost + 5


@pytest.mark.parametrize("fill", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_what_is_derived_is_within_the_budget_and_uses_it_to_a_step(seed: int, fill: bool) -> None:
    path, logs = problem(seed)
    limit = 0.6 * float(COSTS[path].sum())
    found = derive(path, logs, limit, fill=fill)
    assert COSTS[found].sum() <= limit
    for choice in range(6):  # no single change back to what was wanted fits
        back = found.copy()
        back[choice] = path[choice]
        assert COSTS[back].sum() <= COSTS[found].sum() or COSTS[back].sum() > limit


def test_what_is_least_probable_goes_first() -> None:
    logs = np.log(np.full((6, 4), 0.25))
    logs[2] = np.log([0.1, 0.1, 0.7, 0.1])
    path = np.zeros(6, dtype=np.int64)
    found = derive(path, logs, 43.0, fill=False)
    assert found.tolist() == [0, 0, 2, 0, 0, 0]


def test_a_budget_below_the_cheapest_candidates_is_refused_in_one_line() -> None:
    logs = np.log(np.full((6, 4), 0.25))
    with pytest.raises(ValueError, match="the budget must reach what the smallest candidates cost") as caught:
        derive(np.zeros(6, dtype=np.int64), logs, -1.0, fill=False)
    assert "\n" not in str(caught.value)
