"""The space of an over-parameterised network: one operation for each of its mixed operations."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from typing import Any

import numpy as np
from torch import Tensor, nn

from backends.groups import trace_layers
from backends.macs import is_part_of
from backends.mixed_operation import MixedOperation, Zero, mixed_operations
from backends.surgery import named_tensors
from compsearch.space import Block, FloatArray, Operation, SearchSpace


def operation_space(model: nn.Module, example_input: Tensor) -> SearchSpace:
    """A block for every `MixedOperation` of `model`, in the order in which a forward meets them, and no groups.

    `layers` are those of all candidates, each as it runs where it is the active one: all candidates of a block read and
    give the same shapes. `example_input` is a batch [B, C, H, W], of which only the shape counts where the model's
    forward allows. The model is not changed.

    Raises ValueError when there is nothing to choose, the candidates of a block give different shapes or are not in the
    order of their cost, or the model does not run.
    """
    found = mixed_operations(model)
    if not found:
        raise ValueError(
            "a space of operations must be of a network with mixed operations, but this one has none; use model=mbconv "
            "or model=mbconv_imagenet, or another space"
        )
    if "" in found:
        raise ValueError("a mixed operation must be a part of a network, but the model is one itself; wrap it")
    for name in found:
        inside = [other for other in found if other.startswith(f"{name}.")]
        if inside:
            raise ValueError(f"mixed operations must not be inside each other, but {name!r} has {inside[0]!r}")
    traced = trace_layers(_with_all_candidates(model), example_input)
    if traced.constant_macs and traced.constant_macs != trace_layers(model, example_input).constant_macs:
        raise ValueError(
            "candidates must have no products of activations (attention), which no ledger could count by operation"
        )
    met = {name: place for place, name in reversed(list(enumerate(layer.name for layer in traced.layers)))}

    def first_met(name: str) -> int:
        return min((place for layer, place in met.items() if is_part_of(layer, (name,))), default=len(met))

    blocks = tuple(_block(name, found[name]) for name in sorted(found, key=first_met))
    shapes = [(name, tuple(parameter.shape)) for name, parameter in model.named_parameters()]
    choices = [(block.name, tuple(operation.name for operation in block.operations)) for block in blocks]
    space = dataclasses.replace(
        traced,
        frozen=(),
        blocks=blocks,
        fingerprint=hashlib.sha256(repr((shapes, choices)).encode()).hexdigest()[:16],
    )
    for block in blocks:
        macs = operation_macs(space, block)
        if macs[0] < macs.max() or macs[-1] > macs.min():
            listed = ", ".join(
                f"{operation.name} {count:g}" for operation, count in zip(block.operations, macs, strict=True)
            )
            raise ValueError(
                f"a block's first operation must cost most and its last least, but in {block.name!r} MACs are {listed}"
            )
    return space


def operation_macs(space: SearchSpace, block: Block) -> FloatArray:
    """Multiply-accumulates of each operation of `block` for one image, [num_operations]."""
    return np.array(
        [
            sum(layer.macs for layer in space.layers if is_part_of(layer.parameter, operation.modules))
            for operation in block.operations
        ],
        dtype=np.float64,
    )


def _block(name: str, mixed: MixedOperation) -> Block:
    return Block(
        name,
        tuple(
            Operation(label, () if isinstance(candidate, Zero) else (f"{name}.candidates.{index}",))
            for index, (label, candidate) in enumerate(zip(mixed.names, mixed.candidates, strict=True))
        ),
    )


class _AllOf(nn.Module):
    """Runs all candidates and gives what the first does."""

    def __init__(self, mixed: MixedOperation) -> None:
        super().__init__()
        self.names, self.candidates = mixed.names, mixed.candidates

    def forward(self, x: Tensor) -> Tensor:
        results: list[Tensor] = [candidate(x) for candidate in self.candidates]
        for name, result in zip(self.names, results, strict=True):
            if result.shape != results[0].shape:
                raise ValueError(
                    f"candidates must give the same shape, but {name} gives {list(result.shape)} and "
                    f"{self.names[0]} {list(results[0].shape)}"
                )
        return results[0]


def _with_all_candidates(model: nn.Module) -> nn.Module:
    """A copy of `model`'s modules around its own tensors that runs every candidate."""
    memo: dict[int, Any] = {id(tensor): tensor for _, tensor in named_tensors(model)}
    everything = copy.deepcopy(model, memo)
    for name, mixed in mixed_operations(everything).items():
        everything.set_submodule(name, _AllOf(mixed))
    return everything
