import functools
import itertools
from dataclasses import replace

import numpy as np
import pytest

from compsearch.budget import Budget, budget_from_ratio
from compsearch.collaborators import collaborate
from compsearch.protocols import FamilySearcher
from compsearch.testing import SearcherContract
from compsearch.toy import ToyCost, collaborators, toy_importance, toy_space
from searchers.global_magnitude import GlobalMagnitude


class TestGlobalMagnitude(SearcherContract):
    make = staticmethod(functools.partial(GlobalMagnitude))
    not_compared = "global magnitude is itself a baseline"


def make(**changes: object) -> GlobalMagnitude:
    return GlobalMagnitude(**collaborate(GlobalMagnitude, collaborators() | changes))


def test_what_goes_are_the_least_important_units_of_the_whole_network() -> None:
    space = toy_space()
    groups = tuple(replace(group, counts=tuple(range(1, group.size + 1))) for group in space.groups)
    space = replace(space, groups=groups)  # no rounding, next to no minimum
    [trial] = make(space=space, budget=collaborators(cost_ratio=0.8)["budget"]).step()
    removed = np.flatnonzero(~space.keep_mask(trial.policy))
    lowest_first = np.argsort(toy_importance(space).scores())
    assert len(removed) > 20
    assert set(removed) == set(lowest_first[: len(removed)])


def test_objective_is_top1_accuracy() -> None:
    [trial] = make().step()
    assert trial.objective == trial.measurement.accuracy


def test_without_a_budget_nothing_is_removed() -> None:
    assert make(budget=None).step()[0].policy == toy_space().full_policy()


def test_a_budget_below_the_smallest_policy_is_refused() -> None:
    with pytest.raises(ValueError, match="the budget must reach what the smallest policy costs"):
        make(budget=Budget("macs", 10.0, 1e6))


def test_the_family_is_nested_and_each_member_is_the_policy_of_its_own_search() -> None:
    space = toy_space()
    cost_model = ToyCost(space)
    budgets = [budget_from_ratio(cost_ratio=x, cost_model=cost_model, space=space) for x in (0.9, 0.7, 0.5, 0.3, 0.1)]
    searcher = make(budget=budgets[-1])
    assert isinstance(searcher, FamilySearcher)
    [trial] = searcher.step()
    family = searcher.family(trial, budgets)
    assert [member.policy for member in family] == [make(budget=budget).step()[0].policy for budget in budgets]
    masks = [space.keep_mask(member.policy) for member in family]
    assert all((larger | ~smaller).all() for larger, smaller in itertools.pairwise(masks))
    assert len({member.policy for member in family}) == 5
    for member, budget in zip(family, budgets, strict=True):
        assert budget.allows(cost_model.cost(member.policy))
        assert member.objective == member.measurement.accuracy
