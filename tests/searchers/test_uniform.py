import functools
import itertools

import numpy as np
import pytest

from compsearch.budget import Budget
from compsearch.collaborators import collaborate
from compsearch.space import SearchSpace
from compsearch.testing import SearcherContract, ToyCost, collaborators, toy_space
from searchers.uniform import Uniform, uniform_counts


class TestUniform(SearcherContract):
    make = staticmethod(functools.partial(Uniform))
    not_compared = "uniform is itself a baseline"


def make(**changes: object) -> Uniform:
    return Uniform(**collaborate(Uniform, collaborators() | changes))


def every_uniform_policy(space: SearchSpace) -> list[np.ndarray]:
    """By brute force: the counts at every ratio where some group changes, just past it."""
    ratios = {0.0, 1.0}
    for group in space.groups:
        ratios |= {(a + b) / 2 / group.size + 1e-6 for a, b in itertools.pairwise(group.counts)}
    return [uniform_counts(space, ratio) for ratio in sorted(ratios)]


@pytest.mark.parametrize("resource", ["macs", "params"])
@pytest.mark.parametrize("cost_ratio", [0.1, 0.37, 0.5, 0.83, 1.0])
def test_the_policy_is_the_largest_uniform_one_within_budget(resource: str, cost_ratio: float) -> None:
    given = collaborators(resource=resource, cost_ratio=cost_ratio)
    searcher = Uniform(**collaborate(Uniform, given))
    candidates = np.stack(every_uniform_policy(given["space"]))
    costs = given["cost_model"].costs(candidates)
    assert np.array_equal(searcher.counts, candidates[costs <= given["budget"].limit][-1])


def test_a_budget_met_exactly_is_met() -> None:
    space = toy_space()
    cost_model = ToyCost(space)
    counts = uniform_counts(space, 0.5)
    [cost] = cost_model.costs(counts[None])
    searcher = make(budget=Budget("macs", float(cost), 2 * float(cost)))
    assert np.array_equal(searcher.counts, counts)


def test_two_equally_near_counts_round_down() -> None:
    space = toy_space()
    assert space.groups[0].counts[:2] == (2, 4)
    assert uniform_counts(space, 3 / 16)[0] == 2


def test_without_a_budget_nothing_is_removed() -> None:
    assert np.array_equal(make(budget=None).counts, toy_space().sizes)


def test_a_budget_below_the_smallest_policy_is_refused() -> None:
    with pytest.raises(ValueError, match="the budget must reach what the smallest policy costs"):
        make(budget=Budget("macs", 10.0, 1e6))
