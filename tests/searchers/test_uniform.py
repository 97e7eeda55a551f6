import dataclasses
import functools
import itertools

import numpy as np
import pytest

from compsearch.budget import Budget
from compsearch.collaborators import collaborate
from compsearch.space import Block, Operation, SearchSpace
from compsearch.testing import SearcherContract
from compsearch.toy import ToyCost, collaborators, toy_space
from searchers.uniform import Uniform, uniform_choices


class TestUniform(SearcherContract):
    make = staticmethod(functools.partial(Uniform))
    not_compared = "uniform is itself a baseline"


def make(**changes: object) -> Uniform:
    return Uniform(**collaborate(Uniform, collaborators() | changes))


def every_uniform_policy(space: SearchSpace) -> list[np.ndarray]:
    """By brute force: the distinct counts on a fine grid of ratios, ascending."""
    policies = {tuple(uniform_choices(space, ratio)): None for ratio in np.linspace(0.0, 1.0, 4001)}
    return [np.array(policy) for policy in policies]


@pytest.mark.parametrize("resource", ["macs", "params"])
@pytest.mark.parametrize("cost_ratio", [0.1, 0.37, 0.5, 0.83, 1.0])
def test_the_policy_is_the_largest_uniform_one_within_budget(resource: str, cost_ratio: float) -> None:
    given = collaborators(resource=resource, cost_ratio=cost_ratio)
    searcher = Uniform(**collaborate(Uniform, given))
    candidates = np.stack(every_uniform_policy(given["space"]))
    costs = given["cost_model"].costs(candidates)
    assert np.array_equal(searcher.counts, candidates[costs <= given["budget"].limit][-1])


def test_larger_ratios_never_remove_more() -> None:
    assert all((after >= before).all() for before, after in itertools.pairwise(every_uniform_policy(toy_space())))


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.61])
def test_every_group_is_within_one_rounding_step_of_the_ratio(ratio: float) -> None:
    space = toy_space()
    for group, count in zip(space.groups, uniform_choices(space, ratio), strict=True):
        assert abs(count - ratio * group.size) < group.counts[1] - group.counts[0]


def test_little_of_the_budget_stays_unused() -> None:
    given = collaborators(cost_ratio=0.5)
    assert Uniform(**collaborate(Uniform, given)).step()[0].cost_ratio > 0.47


def test_a_budget_met_exactly_is_met() -> None:
    space = toy_space()
    cost_model = ToyCost(space)
    counts = uniform_choices(space, 0.5)
    [cost] = cost_model.costs(counts[None])
    searcher = make(budget=Budget("macs", float(cost), 2 * float(cost)))
    assert np.array_equal(searcher.counts, counts)


def test_without_a_budget_nothing_is_removed() -> None:
    assert np.array_equal(make(budget=None).counts, toy_space().sizes)


def test_a_budget_below_the_smallest_policy_is_refused() -> None:
    with pytest.raises(ValueError, match="the budget must reach what the smallest policy costs"):
        make(budget=Budget("macs", 10.0, 1e6))


def test_where_there_are_no_groups_all_blocks_have_neighbouring_operations() -> None:
    operations = tuple(Operation(name) for name in ("k7", "k5", "k3", "zero"))
    blocks = tuple(Block(str(index), operations) for index in range(9))
    space = dataclasses.replace(toy_space(), groups=(), blocks=blocks)
    assert (uniform_choices(space, 1.0) == 0).all()
    assert (uniform_choices(space, 0.0) == 3).all()
    previous = uniform_choices(space, 0.0)
    for ratio in np.linspace(0.0, 1.0, 500):
        choices = uniform_choices(space, float(ratio))
        assert choices.max() - choices.min() <= 1
        assert (choices <= previous).all()
        previous = choices


def test_blocks_beside_groups_are_left_alone() -> None:
    space = dataclasses.replace(toy_space(), blocks=(Block("a", (Operation("keep"), Operation("zero"))),))
    assert uniform_choices(space, 0.1)[-1] == 0
