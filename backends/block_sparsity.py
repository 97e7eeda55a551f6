"""The block-sparsity factor: how many of the blocks that a runtime could skip are zero."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from torch import nn

from backends.macs import Ledger, LedgerTotal, policy_counts
from backends.magnitude_levels import check_block, matrix_shape, padded_blocks
from backends.sparsity import MagnitudeMasks
from backends.surgery import Surgery
from compsearch.space import FloatArray, IntArray, Policy, SearchSpace


class BlockSparsity:
    """The fraction of all weight blocks of convolutions and linear layers that hold nothing but zeros, in [0, 1].

    `block` is (rows, columns) of a weight seen as [outputs, all else]; blocks over the edge count like others. Where
    the space is one of weights, blocks are counted in the order in which `surgery` removes entries of `model`, which
    must have its weights by the first question. Where it is one of channels, that is 1 - kept / all weights: of blocks
    that fit into channels as many go as of weights, and which channels go does not matter.

    Higher is sparser and the dense network has none, so it limits nothing: it is for rewards and reports.
    """

    resource = "block_sparsity"

    def __init__(self, *, model: nn.Module, space: SearchSpace, surgery: Surgery, block: Sequence[int]) -> None:
        self._model = model
        self._space = space
        self._surgery = surgery
        self._block = check_block(block, "cost_models.block_sparsity.block")
        surgery.check(space)

    def cost(self, policy: Policy) -> float:
        """Of one policy. Raises ValueError when it belongs to another space."""
        return float(self.costs(policy_counts(self._space, policy))[0])

    def costs(self, counts: IntArray) -> FloatArray:
        """[num_policies] of kept units per group [num_policies, num_groups]."""
        if not self._space.sparse:
            kept: FloatArray = self._weights_kept(counts)
            return 1 - kept / self._weights_kept(self._space.sizes[None])
        num_zero = np.zeros(len(counts), dtype=np.int64)  # exact until the one division
        for group, zero in self._zero_blocks:
            num_zero += zero[counts[:, group]]
        zeros: FloatArray = num_zero / self._num_blocks
        return zeros

    @functools.cached_property
    def _weights_kept(self) -> LedgerTotal:
        sizes = {layer.parameter: float(layer.num_weights) for layer in self._space.layers}
        return Ledger(self._space).total(sizes)

    @functools.cached_property
    def _num_blocks(self) -> int:
        shapes = {name: matrix_shape(parameter.shape) for name, parameter in self._model.named_parameters()}
        layers = [shapes[layer.parameter] for layer in self._space.layers if layer.parameter in shapes]
        return sum(-(-rows // self._block[0]) * -(-columns // self._block[1]) for rows, columns in layers)

    @functools.cached_property
    def _zero_blocks(self) -> list[tuple[int, IntArray]]:
        """For each sparse weight its group, and its zero blocks by number of units kept, [size + 1]."""
        assert isinstance(self._surgery, MagnitudeMasks), "its check has found the space to be one of weights"
        levels = self._surgery.levels(self._model, self._space)
        tables = []
        for weight in self._space.sparse:
            size = self._space.groups[weight.group].size
            matrix = levels[weight.parameter].flatten(1).cpu().float()
            first = padded_blocks(matrix, self._block, float(size)).amin((1, 3))  # the level that fills the block
            filled = np.bincount(first.flatten().int().numpy(), minlength=size)
            tables.append((weight.group, filled.sum() - np.concatenate([[0], np.cumsum(filled)]).astype(np.int64)))
        return tables
