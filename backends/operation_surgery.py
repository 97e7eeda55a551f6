"""The ordinary network that a choice of operations leaves of an over-parameterised one."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import numpy as np
import torch
from torch import nn

from backends.mixed_operation import Cell, Zero, block_operations, is_of_operations
from backends.operation_space import operation_macs
from compsearch.space import Block, FloatArray, Policy, SearchSpace


class OperationSurgery:
    """Keeps the chosen operation of each block, with its weights."""

    def check(self, space: SearchSpace) -> None:
        """Raises ValueError unless `space` is one of operations."""
        if not is_of_operations(space):
            kind = "weights" if space.sparse else "channels"
            raise ValueError(
                f"surgery=operations chooses operations, but the space is one of {kind}; use "
                f"surgery={'magnitude' if space.sparse else 'channels'}, or space=mbconv"
            )

    def __call__(self, model: nn.Module, space: SearchSpace, policy: Policy) -> nn.Module:
        """A copy of `model` with the chosen operations in the place of the mixed ones, which shares no memory with it.

        A cell that adds its input to nothing (its operation is zero) becomes the identity. Dtype, device, memory
        format, train/eval mode and `requires_grad` are kept. Raises ValueError when `policy` does not fit `space`, or
        `space` was not traced from `model`.
        """
        self.check(space)
        space.check(policy)
        blocks = zip(block_operations(model, space), space.operations(policy).tolist(), strict=True)
        # What deepcopy meets in the memo it takes for copied: the candidates left out are never touched.
        memo: dict[int, Any] = {}
        chosen = {id(mixed): mixed.candidates[index] for mixed, index in blocks}
        for module in model.modules():
            if isinstance(module, Cell) and module.has_shortcut and isinstance(chosen.get(id(module.operation)), Zero):
                memo[id(module)] = nn.Identity().train(module.training)
        for mixed, candidate in chosen.items():
            memo[mixed] = copy.deepcopy(candidate, memo)
        return copy.deepcopy(model, memo)

    def structure(self, model: nn.Module, space: SearchSpace, policy: Policy) -> nn.Module:
        """The network itself, as its modules are the policy's, in the contiguous format.

        `model` may be in the one that it was trained in, and what is read back is to be the same to the last bit.
        """
        return self(model, space, policy).to(memory_format=torch.contiguous_format)

    def typical(self, model: nn.Module, space: SearchSpace, keep_ratio: float) -> Policy:
        """The operations whose MACs are nearest to `keep_ratio` of their block's dearest.

        Where operations differ in their layers, one block has another kind than the dense network: what holds for this
        network and the dense one does not follow from their having the same modules.
        """
        indices = [int(np.abs(_ratios(space, block) - keep_ratio).argmin()) for block in space.blocks]
        kinds = [_kinds(space, block) for block in space.blocks]
        varied = [number for number, kind in enumerate(kinds) if len(set(kind)) > 1]
        if varied and all(kinds[number][indices[number]] == kinds[number][0] for number in varied):
            number = varied[-1]
            others = [index for index, kind in enumerate(kinds[number]) if kind != kinds[number][0]]
            ratios = _ratios(space, space.blocks[number])
            indices[number] = min(others, key=lambda index: abs(ratios[index] - keep_ratio))
        return space.select([], np.zeros(0), indices)

    def held(self, network: nn.Module, space: SearchSpace) -> contextlib.AbstractContextManager[None]:
        """Nothing to hold: what was not chosen is not there."""
        return contextlib.nullcontext()


def _ratios(space: SearchSpace, block: Block) -> FloatArray:
    macs = operation_macs(space, block)
    ratios: FloatArray = macs / max(1.0, macs[0])
    return ratios


def _kinds(space: SearchSpace, block: Block) -> list[tuple[str, ...]]:
    """The names of each operation's layers, as they are called inside it."""
    return [
        tuple(
            layer.name.removeprefix(f"{module}.")
            for module in operation.modules
            for layer in space.layers
            if layer.name.startswith(f"{module}.")
        )
        for operation in block.operations
    ]
