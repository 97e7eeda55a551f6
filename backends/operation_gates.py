"""Gates on the operations of an over-parameterised network, with one operation's activations in memory.

ProxylessNAS (Cai et al., ICLR 2019, arXiv:1812.00332, section 3.2 and eq. 4): ∂L/∂g_j of a mixed operation
``Σ_j g_j o_j(x)`` is <∂L/∂out, o_j(x)>. The forward computes the active operation only; the others' results are made in
the backward pass from the block's input, one after another without a graph of their own, and dropped at once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from backends.looking import statistics_kept, without_gradients
from backends.macs import is_part_of
from backends.mixed_operation import MixedOperation, Zero, block_operations, is_of_operations, set_operations
from compsearch.candidates import candidates_of
from compsearch.space import BoolArray, FloatArray, IntArray, SearchSpace


class OperationGates:
    """A `Gating` on the mixed operations of `model`, which it works with in place; `space` is its space of operations.

    Paths are indices of operations. Which operations of `model` are active outside of a call does not change.
    """

    def __init__(self, *, model: nn.Module, space: SearchSpace) -> None:
        if not is_of_operations(space):
            raise ValueError(
                "gates on operations need a space that chooses between operations alone, but this one has "
                f"{len(space.groups)} groups and {len(space.blocks)} blocks; use space=mbconv"
            )
        self.network = model
        # There are no groups, hence no widths.
        self.candidates = candidates_of(space, keep_ratios=[1.0])
        self._space = space
        self._blocks = block_operations(model, space)
        #: The block and operation that each parameter is there for alone.
        self._owners: dict[str, tuple[int, int] | None] = {name: None for name, _ in model.named_parameters()}
        for number, block in enumerate(space.blocks):
            for index, operation in enumerate(block.operations):
                for name in self._owners:
                    if is_part_of(name, operation.modules):
                        self._owners[name] = (number, index)

    def logits(self, images: Tensor, path: IntArray) -> Tensor:
        """Logits [B, num_classes] of `images` [B, C, H, W] along `path`; gradients reach the path's weights.

        Only the active operations are computed, and only their norms' running statistics move.
        """
        with self._on(path):
            logits: Tensor = self.network(images)
        return logits

    def logits_with_gates(
        self, images: Tensor, path: IntArray, wanted: BoolArray
    ) -> tuple[Tensor, Callable[[], FloatArray]]:
        """Logits along `path`, and what to call after the loss's backward pass for the gates' gradients.

        Both `wanted` and the gradients are [num_choices, most candidates]; what is not wanted is 0, and not computed.
        Weights get no gradients. In training mode norms use the batch's statistics, and running ones stay as they are.
        """
        shape = self.candidates.values.shape
        if wanted.shape != shape:
            raise ValueError(f"`wanted` must be {list(shape)}, but got {list(wanted.shape)}")
        gates = [
            torch.zeros(len(mixed.candidates), dtype=torch.float64, device=images.device, requires_grad=True)
            for mixed in self._blocks
        ]
        handles = [
            mixed.register_forward_hook(_gate(gate, int(index), row.nonzero()[0].tolist()))
            for mixed, gate, index, row in zip(self._blocks, gates, path, wanted, strict=True)
        ]
        try:
            with self._on(path), without_gradients(self.network), statistics_kept(self.network):
                logits: Tensor = self.network(images)
        finally:
            for handle in handles:
                handle.remove()

        def gradients() -> FloatArray:
            found = np.zeros(shape)
            for row, gate in zip(found, gates, strict=True):
                assert gate.grad is not None, "the loss's backward pass comes first"
                row[: len(gate)] = gate.grad.cpu().numpy()
            return found

        return logits, gradients

    def movable(self, path: IntArray) -> Mapping[str, Tensor | None]:
        """The parameters outside of blocks and those of the active operations, by name; all of their entries."""
        operations = self.candidates.choices(path).tolist()
        return {name: None for name, owner in self._owners.items() if owner is None or operations[owner[0]] == owner[1]}

    @contextlib.contextmanager
    def _on(self, path: IntArray) -> Iterator[None]:
        before = [mixed.active for mixed in self._blocks]
        set_operations(self.network, self._space, self.candidates.choices(path))
        try:
            yield
        finally:
            for mixed, active in zip(self._blocks, before, strict=True):
                mixed.active = active


def _gate(gate: Tensor, active: int, wanted: Sequence[int]) -> Callable[[nn.Module, Any, Any], Any]:
    """A hook that puts a mixed operation's result behind its gates."""

    def hook(module: nn.Module, args: Any, result: Any) -> Any:
        assert isinstance(module, MixedOperation)
        (x,) = args
        device = x.device.type
        # What runs in the backward pass must run as the forward does.
        context = (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
        return _Gates.apply(gate, x, result, module.candidates, active, wanted, context)

    return hook


class _Gates(torch.autograd.Function):
    """Passes on the active operation's result; its backward finds the gates' gradients.

    Gate gradients are summed in double precision: they are sums over all activations of terms that nearly cancel.
    """

    @staticmethod
    def forward(
        ctx: Any,
        gate: Tensor,
        x: Tensor,
        result: Tensor,
        candidates: nn.ModuleList,
        active: int,
        wanted: Sequence[int],
        context: tuple[str, torch.dtype, bool],
    ) -> Tensor:
        ctx.save_for_backward(x, result if active in wanted else None)
        ctx.candidates, ctx.active, ctx.wanted, ctx.context = candidates, active, wanted, context
        ctx.num_gates = len(gate)
        return result.view_as(result)

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        (gradient,) = upstream
        x, result = ctx.saved_tensors
        found = torch.zeros(ctx.num_gates, dtype=torch.float64, device=gradient.device)
        device, dtype, enabled = ctx.context
        with torch.no_grad(), torch.autocast(device, dtype=dtype, enabled=enabled), statistics_kept(ctx.candidates):
            for index in ctx.wanted:
                candidate = ctx.candidates[index]
                if isinstance(candidate, Zero):
                    continue  # its result is 0, and so is the product
                other = result if index == ctx.active else candidate(x)
                found[index] = (gradient * other).sum(dtype=torch.float64)
                del other  # before the next one is made
        return found, None, gradient, None, None, None, None
