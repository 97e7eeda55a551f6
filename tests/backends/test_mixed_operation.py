"""Several operations in one place, of which only the active one is computed."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from backends.mixed_operation import (
    Cell,
    MixedOperation,
    Zero,
    block_operations,
    is_of_operations,
    mixed_operations,
    set_operations,
)
from backends.operation_space import operation_space
from compsearch.space import SearchSpace


class Counting(nn.Module):
    def __init__(self, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, kernel_size, padding=kernel_size // 2)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.conv(x)


def network() -> nn.Sequential:
    return nn.Sequential(
        Cell(MixedOperation({"large": Counting(3), "small": Counting(1), "zero": Zero()}), has_shortcut=True),
        Cell(MixedOperation({"large": Counting(3), "small": Counting(1)}), has_shortcut=False),
    )


def space_of(model: nn.Module) -> SearchSpace:
    return operation_space(model, torch.zeros(1, 4, 5, 5))


def test_only_the_active_candidate_is_computed() -> None:
    model = network()
    space = space_of(model)
    set_operations(model, space, [1, 0])
    model(torch.zeros(1, 4, 5, 5))
    calls = [
        getattr(candidate, "calls", 0) for mixed in mixed_operations(model).values() for candidate in mixed.candidates
    ]
    assert calls == [0, 1, 0, 1, 0]


def test_the_active_candidate_is_no_part_of_the_state() -> None:
    model = network()
    before = model.state_dict().keys()
    set_operations(model, space_of(model), [2, 1])
    assert model.state_dict().keys() == before
    assert not any("active" in key for key in before)


def test_zero_gives_zeros_and_a_shortcut_passes_on() -> None:
    x = torch.full((2, 4, 3, 3), torch.inf)
    assert not Zero()(x).any()
    assert torch.equal(Cell(Zero(), has_shortcut=True)(x), x)


@pytest.mark.parametrize("operations", [[0], [0, 2], [-1, 0]])
def test_operations_that_are_none_are_refused(operations: list[int]) -> None:
    model = network()
    with pytest.raises(ValueError, match="one operation per block must be given"):
        set_operations(model, space_of(model), operations)


def test_a_space_of_another_network_is_refused() -> None:
    model = network()
    space = space_of(model)
    with pytest.raises(ValueError, match=r"'1\.operation' chooses between nothing here and large, small there"):
        block_operations(model[:1], space)
    renamed = dataclasses.replace(space.blocks[0], operations=space.blocks[0].operations[:2])
    with pytest.raises(ValueError, match="chooses between large, small, zero here and large, small there"):
        block_operations(model, dataclasses.replace(space, blocks=(renamed,)))


def test_a_mixed_operation_without_candidates_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one candidate"):
        MixedOperation({})


def test_a_space_is_of_operations_where_there_is_nothing_else_to_choose() -> None:
    space = space_of(network())
    assert is_of_operations(space)
    assert not is_of_operations(dataclasses.replace(space, blocks=()))
