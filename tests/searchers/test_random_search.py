import numpy as np
import pytest

from compsearch.testing import SearcherContract
from compsearch.toy import ToyCost, collaborators, toy_space
from searchers.random_search import RandomSearch


class TestRandomSearch(SearcherContract):
    make = staticmethod(lambda **kw: RandomSearch(**kw, num_steps=12))
    not_compared = "random search is the yardstick itself"


def draws(number: int, **options: object) -> np.ndarray:
    searcher = RandomSearch(**collaborators(**options), num_steps=number)  # type: ignore[arg-type]
    return np.stack([searcher.draw() for _ in range(number)])


@pytest.mark.parametrize("cost_ratio", [0.15, 0.5, 0.8])
def test_policies_sit_at_the_budget(cost_ratio: float) -> None:
    space = toy_space()
    cost_model = ToyCost(space)
    cost_ratios = cost_model.costs(draws(100, cost_ratio=cost_ratio)) / cost_model.costs(space.sizes[None])
    assert cost_ratios.max() <= cost_ratio
    assert np.median(cost_ratios) > cost_ratio - 0.05


def test_every_group_gets_small_and_large_counts() -> None:
    ratios = draws(200, cost_ratio=0.5) / toy_space().sizes
    low, high = np.quantile(ratios, [0.05, 0.95], axis=0)
    assert (low < 0.5).all()
    assert (high > 0.9).all()


def test_policies_are_distinct() -> None:
    assert len({tuple(counts) for counts in draws(100)}) == 100


def test_without_a_budget_keep_ratios_are_uniform() -> None:
    ratios = draws(400, cost_ratio=None) / toy_space().sizes
    # Rounding to eighths, the smallest count apart, leaves the mean of U(0, 1) within a sixteenth.
    assert np.abs(ratios.mean(axis=0) - 0.5).max() < 0.0625 + 3 * 0.29 / 20


def test_no_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="`num_steps >= 1` must hold, but got num_steps=0"):
        RandomSearch(**collaborators(), num_steps=0)
