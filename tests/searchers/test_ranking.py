import itertools
from dataclasses import replace

import numpy as np
import pytest

from compsearch.budget import Budget, budget_from_ratio
from compsearch.space import FloatArray, Group, IntArray, Policy, SearchSpace
from compsearch.toy import ToyCost, toy_space
from searchers.ranking import Ranking


class UnitCost:
    """Every kept unit costs one."""

    resource = "units"

    def cost(self, policy: Policy) -> float:
        return float(sum(policy.counts.values()))

    def costs(self, counts: IntArray) -> FloatArray:
        return counts.sum(axis=1).astype(np.float64)


def two_groups(*, a: tuple[int, ...], b: tuple[int, ...]) -> SearchSpace:
    """Two groups, which may keep `a` and `b` units."""
    groups = tuple(Group(name, counts[-1], 1, counts, (name,), ()) for name, counts in (("a", a), ("b", b)))
    return SearchSpace(groups, layers=(), frozen=(), sites=(), fingerprint="two")


def kept(space: SearchSpace, scores: list[float], limit: float) -> dict[str, tuple[int, ...]]:
    budget = Budget("units", limit, float(space.num_units))
    return dict(Ranking(space, np.array(scores)).policy(budget, cost_model=UnitCost()).kept)


ANY = (1, 2, 3, 4)
SCORES = [4.0, 1.0, 3.0, 2.0, 10.0, 20.0, 30.0, 5.0]


def test_the_lowest_of_all_groups_together_go_first() -> None:
    space = two_groups(a=ANY, b=ANY)
    assert kept(space, SCORES, 8) == {"a": (0, 1, 2, 3), "b": (0, 1, 2, 3)}
    assert kept(space, SCORES, 6) == {"a": (0, 2), "b": (0, 1, 2, 3)}
    assert kept(space, SCORES, 5) == {"a": (0,), "b": (0, 1, 2, 3)}


def test_a_group_at_its_minimum_keeps_it_while_the_others_go_on() -> None:
    space = two_groups(a=(2, 3, 4), b=ANY)
    assert kept(space, SCORES, 5) == {"a": (0, 2), "b": (0, 1, 2)}
    assert kept(space, SCORES, 3) == {"a": (0, 2), "b": (2,)}
    with pytest.raises(ValueError, match="the budget must reach what the smallest policy costs, 3 units, but got"):
        kept(space, SCORES, 2)


def test_counts_are_rounded_to_what_a_group_may_keep() -> None:
    space = two_groups(a=(2, 4), b=ANY)
    # With one unit of a gone it would keep 3; of 2 and 4, equally near, it keeps the lower.
    assert kept(space, SCORES, 7) == {"a": (0, 2), "b": (0, 1, 2, 3)}
    assert kept(space, SCORES, 5) == {"a": (0, 2), "b": (0, 1, 2)}


def test_of_equal_units_the_first_are_kept() -> None:
    space = two_groups(a=ANY, b=ANY)
    assert kept(space, [1.0] * 8, 6) == {"a": (0, 1, 2, 3), "b": (0, 1)}
    assert kept(space, [1.0] * 8, 3) == {"a": (0, 1), "b": (0,)}


def by_brute_force(space: SearchSpace, scores: FloatArray) -> list[Policy]:
    """The policy of every prefix of the sorted units, from none removed to all."""
    group_of = [index for index, group in enumerate(space.groups) for _ in range(group.size)]
    order = sorted(range(space.num_units), key=lambda unit: (scores[unit], -unit))
    policies = []
    for num_removed in range(space.num_units + 1):
        counts, keeps = [], []
        for index, group in enumerate(space.groups):
            left = group.size - sum(group_of[unit] == index for unit in order[:num_removed])
            counts.append(min(group.counts, key=lambda count: (abs(count - left), count)))
            best = [unit - int(space.offsets[index]) for unit in reversed(order) if group_of[unit] == index]
            keeps.append((group.name, tuple(sorted(best[: counts[-1]]))))
        policies.append(Policy(space.fingerprint, tuple(keeps)))
    return policies


def rounded_by_ones() -> SearchSpace:
    """The toy space with every count from an eighth of each group up."""
    space = toy_space()
    return replace(
        space,
        groups=tuple(replace(group, counts=tuple(range(group.size // 8, group.size + 1))) for group in space.groups),
    )


@pytest.mark.parametrize("space", [toy_space(), rounded_by_ones()], ids=["multiples", "ones"])
@pytest.mark.parametrize("resource", ["macs", "params"])
@pytest.mark.parametrize("with_ties", [False, True], ids=["distinct", "ties"])
def test_the_ranking_stops_exactly_at_the_budget(space: SearchSpace, resource: str, with_ties: bool) -> None:
    cost_model = ToyCost(space, resource)
    scores = np.random.default_rng(3).standard_normal(space.num_units)
    if with_ties:
        scores = np.round(scores)
    policies = by_brute_force(space, scores)
    ranking = Ranking(space, scores)
    assert len(set(policies)) > 20
    for cost_ratio in (0.05, 0.1, 0.3, 0.5, 0.77, 0.99, 1.0):
        budget = budget_from_ratio(cost_ratio=cost_ratio, cost_model=cost_model, space=space)
        found = ranking.policy(budget, cost_model=cost_model)
        allowed = [policy for policy in policies if budget.allows(cost_model.cost(policy))]
        assert found == allowed[0]  # the one with the fewest removed
        first = policies.index(found)
        # Putting the unit back that went last, its whole rounding step with it, is over the budget.
        assert first == 0 or not budget.allows(cost_model.cost(policies[first - 1]))
        space.check(found)
        assert all(count in group.counts for group, count in zip(space.groups, space.counts(found), strict=True))


def test_a_budget_met_exactly_is_met() -> None:
    space = rounded_by_ones()
    cost_model = ToyCost(space)
    scores = np.random.default_rng(0).random(space.num_units)
    dense = cost_model.cost(space.full_policy())
    for policy in list(dict.fromkeys(by_brute_force(space, scores)))[::10]:
        cost = cost_model.cost(policy)
        assert Ranking(space, scores).policy(Budget("macs", cost, dense), cost_model=cost_model) == policy
        below = Budget("macs", cost - 1, dense)
        if policy.counts != dict(zip([group.name for group in space.groups], space.min_counts, strict=True)):
            assert Ranking(space, scores).policy(below, cost_model=cost_model) != policy


def test_without_a_budget_nothing_is_removed() -> None:
    space = toy_space()
    ranking = Ranking(space, np.random.default_rng(0).random(space.num_units))
    assert ranking.policy(None, cost_model=ToyCost(space)) == space.full_policy()


def test_policies_of_one_ranking_are_nested() -> None:
    space = toy_space()
    cost_model = ToyCost(space)
    budgets = [budget_from_ratio(cost_ratio=x, cost_model=cost_model, space=space) for x in np.linspace(1.0, 0.05, 20)]
    for seed in range(5):
        scores = np.round(np.random.default_rng(seed).standard_normal(space.num_units), 1)
        ranking = Ranking(space, scores)
        masks = [space.keep_mask(ranking.policy(budget, cost_model=cost_model)) for budget in budgets]
        assert all((larger | ~smaller).all() for larger, smaller in itertools.pairwise(masks))
        assert len({mask.tobytes() for mask in masks}) > 10
