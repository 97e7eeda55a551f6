import numpy as np
import pytest

from compsearch.budget import Budget, budget_from_ratio, largest_within
from compsearch.space import FloatArray, IntArray, Policy
from compsearch.toy import ToyCost, toy_space


def test_equal_is_within() -> None:
    budget = Budget("macs", 50.0, 100.0)
    assert budget.allows(50.0)
    assert not budget.allows(50.1)
    assert budget.cost_ratio == 0.5


def test_ratio_is_of_the_dense_cost() -> None:
    space = toy_space()
    cost_model = ToyCost(space, "params")
    budget = budget_from_ratio(cost_ratio=0.3, cost_model=cost_model, space=space)
    assert budget.resource == "params"
    assert budget.dense == sum(layer.num_weights for layer in space.layers)
    assert budget.limit == pytest.approx(0.3 * budget.dense)


@pytest.mark.parametrize("cost_ratio", [0.0, -0.5, 1.5, float("nan")])
def test_a_ratio_outside_zero_to_one_is_refused(cost_ratio: float) -> None:
    space = toy_space()
    with pytest.raises(ValueError, match=r"`0 < budget.cost_ratio <= 1` must hold"):
        budget_from_ratio(cost_ratio=cost_ratio, cost_model=ToyCost(space), space=space)


def test_a_ratio_below_the_smallest_policy_is_refused_with_what_that_costs() -> None:
    space = toy_space()
    cost_model = ToyCost(space)
    lowest = cost_model.costs(space.min_counts[None])[0] / cost_model.costs(space.sizes[None])[0]
    with pytest.raises(ValueError, match=f"{lowest:.4f} of the dense macs"):
        budget_from_ratio(cost_ratio=0.9 * lowest, cost_model=cost_model, space=space)
    assert budget_from_ratio(cost_ratio=lowest, cost_model=cost_model, space=space).limit > 0


class Line:
    """One group; the cost is a function of its count."""

    resource = "steps"

    def __init__(self, table: dict[int, float]) -> None:
        self.table = table

    def cost(self, policy: Policy) -> float:
        raise NotImplementedError

    def costs(self, counts: IntArray) -> FloatArray:
        return np.array([self.table[int(count)] for count in counts[:, 0]])


def path(t: float) -> IntArray:
    return np.array([1 + int(t * 9)])  # 1..10


def test_furthest_point_of_a_path_within_budget_is_found() -> None:
    cost_model = Line({count: float(count) for count in range(1, 11)})
    for limit in range(1, 11):
        assert largest_within(Budget("steps", limit, 10), path, cost_model=cost_model)[0] == limit
        assert largest_within(Budget("steps", limit + 0.5, 10), path, cost_model=cost_model)[0] == limit
    assert largest_within(None, path, cost_model=cost_model)[0] == 10


def test_a_path_whose_cost_falls_somewhere_still_ends_within_budget() -> None:
    costs = {1: 1.0, 2: 5.0, 3: 2.0, 4: 6.0, 5: 3.0, 6: 7.0, 7: 4.0, 8: 8.0, 9: 9.0, 10: 10.0}
    for limit in np.arange(1.0, 10.0, 0.5):
        [count] = largest_within(Budget("steps", limit, 10), path, cost_model=Line(costs))
        assert costs[int(count)] <= limit


def test_a_path_that_starts_over_budget_is_refused() -> None:
    cost_model = Line({count: float(count) for count in range(1, 11)})
    with pytest.raises(ValueError, match=r"smallest policy costs, 1 steps, but got limit=0.5"):
        largest_within(Budget("steps", 0.5, 10), path, cost_model=cost_model)
