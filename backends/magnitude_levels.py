"""The order in which a weight loses its entries: quantiles of magnitude, over single entries or blocks of them.

A weight [outputs, …] is seen as the matrix [rows, columns] = [outputs, all else] and cut into blocks from its first
entry on. Where the block's shape doesn't divide the matrix, the last blocks reach over its edge and have fewer entries
of their own. A block's magnitude is the mean of |W| over its own entries; of equal ones the first, row by row, is the
larger.

The units of a weight are `num_levels` quantiles of its blocks, level 0 the largest. Quantiles are taken among blocks
with equally many entries (whole ones, those at the right edge, those at the bottom, the corner): so the number of
entries that the first levels hold follows from shapes alone, and a cost model that never sees a weight is exact.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from compsearch.space import IntArray

#: (rows, columns) of a block, or of a weight seen as a matrix.
Shape = tuple[int, int]


def matrix_shape(shape: Sequence[int]) -> Shape:
    """(outputs, all else) of a weight of this shape."""
    return shape[0], math.prod(shape[1:])


def num_levels_of(shape: Sequence[int], block: Shape, most: int) -> int:
    """How many levels a weight of `shape` has: `most`, or as many as it has blocks of its commonest kind."""
    return min(most, max(count for count, _ in _kinds(matrix_shape(shape), block)))


def kept_entries(shape: Sequence[int], block: Shape, num_levels: int) -> IntArray:
    """How many entries the first 0, 1, …, `num_levels` levels of a weight of `shape` hold, [num_levels + 1]."""
    levels = np.arange(num_levels + 1, dtype=np.int64)
    kinds = _kinds(matrix_shape(shape), block)
    kept: IntArray = np.array([levels * count // num_levels * area for count, area in kinds]).sum(axis=0)
    return kept


def entry_levels(weight: Tensor, block: Shape, num_levels: int) -> Tensor:
    """The level of every entry of `weight`, int32 of its shape, on the CPU."""
    matrix = weight.detach().cpu().abs().flatten(1)  # [rows, columns]
    magnitude = _summed(matrix, block)  # the mean, but for a factor that blocks of one kind share
    levels = torch.empty(magnitude.shape, dtype=torch.int32)
    for rows, columns in _parts(matrix_shape(weight.shape), block):
        part = magnitude[rows, columns]
        order = part.flatten().sort(descending=True, stable=True).indices
        # The block of rank r is among the first k levels of n where r < k * count // n.
        rank_levels = ((torch.arange(1, len(order) + 1) * num_levels - 1) // len(order)).int()
        levels[rows, columns] = torch.empty_like(rank_levels).scatter_(0, order, rank_levels).view(part.shape)
    return spread(levels, block, matrix.shape).reshape(weight.shape)


def spread(blocks: Tensor, block: Shape, shape: Sequence[int]) -> Tensor:
    """The value of every entry's block: [block rows, block columns] to the matrix `shape`."""
    entries = blocks.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return entries[: shape[0], : shape[1]]


def padded_blocks(matrix: Tensor, block: Shape, fill: float) -> Tensor:
    """`matrix` cut into blocks, [block rows, rows, block columns, columns], with `fill` beyond its edges."""
    missing = [-size % step for size, step in zip(matrix.shape, block, strict=True)]
    padded = F.pad(matrix, (0, missing[1], 0, missing[0]), value=fill)
    return padded.view(padded.shape[0] // block[0], block[0], padded.shape[1] // block[1], block[1])


def check_block(block: Sequence[int], place: str) -> Shape:
    """`block` as (rows, columns). Raises ValueError naming the setting `place` unless it is two sizes of at least 1."""
    if len(block) != 2 or any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in block):
        raise ValueError(f"`{place}` must be two sizes of at least 1, [rows, columns], but got {list(block)}")
    return block[0], block[1]


def _summed(matrix: Tensor, block: Shape) -> Tensor:
    """The sum of each block's entries; single entries as they are."""
    return matrix if block == (1, 1) else padded_blocks(matrix.double(), block, 0.0).sum((1, 3))


def _extents(size: int, step: int) -> list[tuple[slice, int]]:
    """The whole blocks along one side of a matrix and the one over its edge: which they are, and how far they reach."""
    whole, rest = divmod(size, step)
    return [(slice(0, whole), step)] * (whole > 0) + [(slice(whole, whole + 1), rest)] * (rest > 0)


def _parts(shape: Shape, block: Shape) -> Iterator[tuple[slice, slice]]:
    """The ranges of block rows and columns whose blocks have equally many entries."""
    sides = (_extents(size, step) for size, step in zip(shape, block, strict=True))
    for (rows, _), (columns, _) in itertools.product(*sides):
        yield rows, columns


def _kinds(shape: Shape, block: Shape) -> list[tuple[int, int]]:
    """(number of blocks, entries in each) of every part."""
    sides = (_extents(size, step) for size, step in zip(shape, block, strict=True))
    return [
        ((rows.stop - rows.start) * (columns.stop - columns.start), height * width)
        for (rows, height), (columns, width) in itertools.product(*sides)
    ]
