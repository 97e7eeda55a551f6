"""Several operations in the place of one, of which one at a time is computed: what over-parameterised networks are of.

The mixed operation of ProxylessNAS (Cai et al., ICLR 2019, arXiv:1812.00332, section 3.1). Which operation is active
is a plain attribute, no part of the state_dict; probabilities and gates are kept elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from compsearch.space import KEEP, ZERO, IntArray, SearchSpace


class Zero(nn.Module):
    """Gives zeros, whatever it is given."""

    def forward(self, x: Tensor) -> Tensor:
        """Of the shape of `x`."""
        return torch.zeros_like(x)


class MixedOperation(nn.Module):
    """One of `candidates`, by name: the dense network's first, then cheaper ones, the cheapest last.

    `active` is the index of the one that is computed; the others cost neither time nor memory for activations. All must
    give the same shape.
    """

    def __init__(self, candidates: Mapping[str, nn.Module]) -> None:
        super().__init__()
        if not candidates:
            raise ValueError("a mixed operation must have at least one candidate, but got none")
        self.names = tuple(candidates)
        self.candidates = nn.ModuleList(candidates.values())
        self.active = 0

    def forward(self, x: Tensor) -> Tensor:
        """What the active candidate makes of `x`."""
        result: Tensor = self.candidates[self.active](x)
        return result

    def extra_repr(self) -> str:
        return f"{', '.join(self.names)}; active={self.names[self.active]}"


class Cell(nn.Module):
    """An operation, to whose result its input is added where `has_shortcut`."""

    def __init__(self, operation: nn.Module, *, has_shortcut: bool) -> None:
        super().__init__()
        self.operation = operation
        self.has_shortcut = has_shortcut

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to what the operation gives."""
        result: Tensor = self.operation(x)
        return result + x if self.has_shortcut else result


def mixed_operations(network: nn.Module) -> dict[str, MixedOperation]:
    """Every mixed operation by its module's name, in the order the network holds them."""
    return {name: module for name, module in network.named_modules() if isinstance(module, MixedOperation)}


def block_operations(network: nn.Module, space: SearchSpace) -> list[MixedOperation]:
    """The mixed operation of each block of `space`, whose candidates are the block's operations.

    Raises ValueError unless `space` was traced from such a network.
    """
    found = mixed_operations(network)
    for block in space.blocks:
        names = tuple(operation.name for operation in block.operations)
        held = found[block.name].names if block.name in found else ()
        if held != names:
            raise ValueError(
                f"the model must be the one its space was traced from, but {block.name!r} chooses between "
                f"{', '.join(held) or 'nothing'} here and {', '.join(names)} there"
            )
    return [found[block.name] for block in space.blocks]


def set_operations(network: nn.Module, space: SearchSpace, operations: Sequence[int] | IntArray) -> None:
    """Makes the operation of that index active in every block of `space`, [num_blocks].

    Raises ValueError when an index is of none, or `space` is another network's.
    """
    indices = [int(index) for index in operations]
    blocks = block_operations(network, space)
    if len(indices) != len(blocks) or any(
        not 0 <= index < len(mixed.candidates) for mixed, index in zip(blocks, indices, strict=True)
    ):
        raise ValueError(
            f"one operation per block must be given, as an index, but got {indices} for blocks of "
            f"{[len(mixed.candidates) for mixed in blocks]} operations"
        )
    for mixed, index in zip(blocks, indices, strict=True):
        mixed.active = index


def is_of_operations(space: SearchSpace) -> bool:
    """Whether policies choose between operations, not only between keeping a block of the network and skipping it."""
    names = {operation.name for block in space.blocks for operation in block.operations}
    return bool(names - {KEEP, ZERO})
