import pytest
import torch

from backends.workers import Workers, on_one_core


def test_results_come_in_the_order_of_the_items() -> None:
    assert Workers(3).map(lambda item: item * item, range(20)) == [item * item for item in range(20)]


def test_each_worker_computes_on_one_core_and_the_caller_keeps_its_own_number() -> None:
    before = torch.get_num_threads()
    assert set(Workers(2).map(lambda _: torch.get_num_threads(), range(8))) == {1}
    assert torch.get_num_threads() == before


def test_a_caller_may_compute_on_one_core_for_a_while() -> None:
    before, workers, inside = torch.get_num_threads(), Workers(2), []

    def fail() -> None:
        inside.extend([torch.get_num_threads(), *workers.map(lambda _: torch.get_num_threads(), range(8))])
        raise KeyError("inside")

    with pytest.raises(KeyError), on_one_core():
        fail()
    assert set(inside) == {1}
    assert torch.get_num_threads() == before
    assert set(workers.map(lambda _: torch.get_num_threads(), range(8))) == {1}


def test_workers_compute_without_gradients() -> None:
    weight = torch.ones(3, requires_grad=True)
    [result] = Workers(1).map(lambda item: weight * item, [2.0])
    assert not result.requires_grad


def test_an_error_in_a_worker_reaches_the_caller() -> None:
    def fail(item: int) -> int:
        raise KeyError(item)

    with pytest.raises(KeyError):
        Workers(2).map(fail, [1])


def test_no_workers_are_refused() -> None:
    with pytest.raises(ValueError, match="num_workers >= 1"):
        Workers(0)
