"""What a network's weights take on disk: dense, in CSR and in BSR, raw and compressed.

A weight [outputs, …] is stored as the matrix [outputs, all else].

- dense: every value, in the weight's own number format;
- CSR (compressed sparse rows): the values that are not zero, the column of each, and where each row begins;
- BSR (block sparse rows): the blocks that hold a value, zeros and padding at the edge included, the block column of
  each, and where each row of blocks begins.

Indices take the smallest of 8, 16 or 32 unsigned bits that holds the largest one: columns by the matrix's width,
beginnings by the number of values (or blocks). Biases, norms and buffers are stored as they are in every format, and
counted, so that a ratio of sizes is one of whole networks. "Compressed" is one zlib stream over all arrays in order.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from backends.magnitude_levels import Shape, check_block, padded_blocks
from compsearch.space import SearchSpace
from compsearch.summary import StoredSize

Array = NDArray[Any]


def csr_arrays(matrix: Tensor) -> tuple[Array, Array, Array]:
    """Values, column indices and row beginnings of `matrix` [rows, columns]."""
    dense = _numpy(matrix)
    is_value = dense != 0
    columns = np.nonzero(is_value)[1]
    return dense[is_value], _indices(columns, dense.shape[1] - 1), _beginnings(is_value.sum(axis=1))


def bsr_arrays(matrix: Tensor, block: Shape) -> tuple[Array, Array, Array]:
    """Values [blocks, rows, columns] of a block, block columns, and beginnings of block rows of `matrix`."""
    blocks = _numpy(padded_blocks(matrix, block, 0.0).transpose(1, 2))  # [block rows, block columns, rows, columns]
    is_value = (blocks != 0).any(axis=(2, 3))
    columns = np.nonzero(is_value)[1]
    return blocks[is_value], _indices(columns, blocks.shape[1] - 1), _beginnings(is_value.sum(axis=1))


class StoredSizes:
    """Sizes of networks made from `space`'s; `block` is BSR's, `level` is zlib's, 1 to 9."""

    def __init__(self, *, space: SearchSpace, block: Sequence[int], level: int) -> None:
        if not 1 <= level <= 9:
            raise ValueError(f"`1 <= sizes.level <= 9` must hold, but got {level=}")
        self._weights = {layer.parameter for layer in space.layers}
        self._block = check_block(block, "sizes.block")
        self._level = level

    def __call__(self, network: nn.Module) -> StoredSize:
        """Bytes of all parameters and buffers of `network` that its state_dict holds."""
        weights: list[Tensor] = []
        others: list[Tensor] = []
        for name, tensor in network.state_dict(keep_vars=True).items():
            is_weight = name in self._weights and tensor.dim() > 1
            (weights if is_weight else others).append(tensor.detach().cpu())
        rest = [_numpy(tensor) for tensor in others]
        matrices = [weight.flatten(1) for weight in weights]
        dense, dense_zlib = self._bytes([*map(_numpy, matrices), *rest])
        csr, csr_zlib = self._bytes([*(part for matrix in matrices for part in csr_arrays(matrix)), *rest])
        bsr, bsr_zlib = self._bytes([*(part for m in matrices for part in bsr_arrays(m, self._block)), *rest])
        return StoredSize(dense, dense_zlib, csr, csr_zlib, bsr, bsr_zlib, block="×".join(map(str, self._block)))

    def _bytes(self, arrays: Iterable[Array]) -> tuple[int, int]:
        """Of the arrays as they are, and of one zlib stream over them."""
        compressor = zlib.compressobj(self._level)
        raw = packed = 0
        for array in arrays:
            raw += array.nbytes
            packed += len(compressor.compress(np.ascontiguousarray(array).tobytes()))
        return raw, packed + len(compressor.flush())


def _numpy(tensor: Tensor) -> Array:
    tensor = tensor.contiguous()
    # NumPy knows no bfloat16: the same bits under another name, of which zero is zero.
    array: Array = (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array


def _indices(values: NDArray[np.int64], largest: int) -> Array:
    return values.astype(np.min_scalar_type(max(0, largest)))


def _beginnings(sizes: NDArray[np.int64]) -> Array:
    total = np.concatenate([[0], np.cumsum(sizes)])
    return _indices(total, int(total[-1]))
