"""Numbers that grow linearly with the units kept in each group, and change with the operations of blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compsearch.candidates import Candidates
from compsearch.space import FloatArray, IntArray


@dataclass(frozen=True, eq=False)
class Affine:
    """Numbers [num] that grow linearly with counts: ``base + counts @ slope``; `slope` is [num_groups, num]."""

    base: FloatArray
    slope: FloatArray


@dataclass(frozen=True, eq=False)
class Change:
    """What is added to the numbers `rows` [num] where `block` (its place) has this operation (its index)."""

    block: int
    operation: int
    rows: IntArray
    by: Affine


class Amounts:
    """Numbers [num] of networks: those with the dense one's operations, and what other operations change.

    Blocks change numbers independently of each other, so that their changes add up.
    """

    def __init__(self, dense: Affine, changes: Sequence[Change] = (), *, num_blocks: int = 0) -> None:
        self.dense = dense
        self.changes = tuple(changes)
        self.num_blocks = num_blocks
        self._num_groups = len(dense.slope)
        self._base, self._slope = torch.from_numpy(dense.base), torch.from_numpy(dense.slope)
        # All changes in a row, [num_changed]: of which number, block and operation, and by how much.
        empty = Change(0, 0, np.zeros(0, dtype=np.int64), Affine(np.zeros(0), np.zeros((self._num_groups, 0))))
        several = (empty, *self.changes)
        self._rows = torch.from_numpy(np.concatenate([change.rows for change in several]))
        self._block = torch.from_numpy(np.repeat([c.block for c in several], [len(c.rows) for c in several]))
        self._operation = torch.from_numpy(np.repeat([c.operation for c in several], [len(c.rows) for c in several]))
        self._by_base = torch.from_numpy(np.concatenate([change.by.base for change in several]))
        self._by_slope = torch.from_numpy(np.concatenate([change.by.slope for change in several], axis=1))

    @property
    def num(self) -> int:
        """How many numbers there are."""
        return len(self.dense.base)

    def __call__(self, choices: IntArray) -> FloatArray:
        """The numbers [num_policies, num] of `choices`, as `at` takes them. Raises ValueError."""
        values: FloatArray = self.at(torch.from_numpy(np.asarray(choices, dtype=np.float64))).numpy()
        return values

    def at(self, choices: Tensor) -> Tensor:
        """The numbers [num_policies, num] of kept units per group and, if given, operations per block behind them.

        `choices` is [num_policies, num_groups] or [num_policies, num_groups + num_blocks]; without operations they are
        the dense network's. Differentiable in the counts, which may be fractions. Raises ValueError for other shapes.
        """
        counts, operations = split_choices(choices, self._num_groups, self.num_blocks)
        values = counts @ self._slope + self._base
        if operations is not None and len(self._rows):
            chosen = operations[:, self._block] == self._operation
            values = values.index_add(1, self._rows, (counts @ self._by_slope + self._by_base) * chosen)
        return values

    def expected(self, candidates: Candidates, probabilities: Tensor) -> Tensor:
        """The mean numbers [num] over networks drawn choice by choice; differentiable in `probabilities`.

        `probabilities` is [num_choices, most candidates], float64. Exact, as widths and operations are drawn
        independently.
        """
        values = torch.from_numpy(candidates.values).to(probabilities)
        counts = (probabilities * values)[: self._num_groups].sum(1)
        mean = counts @ self._slope + self._base
        if len(self._rows):
            chosen = probabilities[self._num_groups + self._block, self._operation]
            mean = mean.index_add(0, self._rows, (counts @ self._by_slope + self._by_base) * chosen)
        return mean

    def sum(self, where: Any = slice(None)) -> Amounts:
        """Their total, one number, over those that `where` selects."""
        selected = np.zeros(self.num, dtype=np.bool_)
        selected[where] = True
        totals: dict[tuple[int, int], Affine] = {}
        for change in self.changes:
            key, total = (change.block, change.operation), _total(change.by, selected[change.rows])
            totals[key] = _sum(totals[key], total) if key in totals else total
        rows = np.zeros(1, dtype=np.int64)
        changes = [Change(*key, rows, total) for key, total in totals.items() if total.base.any() or total.slope.any()]
        return Amounts(_total(self.dense, selected), changes, num_blocks=self.num_blocks)

    def __add__(self, other: Amounts) -> Amounts:
        return Amounts(_sum(self.dense, other.dense), (*self.changes, *other.changes), num_blocks=self.num_blocks)

    def to_json(self) -> list[Any]:
        """Plain values: the base and slopes of the dense network's, then the number of blocks and changes, if any."""
        dense = [self.dense.base.tolist(), self.dense.slope.tolist()]
        if not self.num_blocks:
            return dense
        changes = [
            [change.block, change.operation, change.rows.tolist(), change.by.base.tolist(), change.by.slope.tolist()]
            for change in self.changes
        ]
        return [*dense, self.num_blocks, changes]

    @classmethod
    def from_json(cls, data: Sequence[Any]) -> Amounts:
        """The inverse of `to_json`; of one number, base and slopes may stand by themselves."""
        base, slope, *blocks = data
        if not isinstance(base, list):  # kept before there were blocks
            base, slope = [base], [[value] for value in slope]
        num_blocks, changes = blocks or (0, [])
        return cls(
            _affine(base, slope),
            [
                Change(block, operation, np.array(rows, dtype=np.int64), _affine(base, slope))
                for block, operation, rows, base, slope in changes
            ],
            num_blocks=num_blocks,
        )


def split_choices(choices: Tensor, num_groups: int, num_blocks: int) -> tuple[Tensor, Tensor | None]:
    """Units kept per group [num_policies, num_groups], and operations [num_policies, num_blocks] where they are given.

    Raises ValueError for another shape.
    """
    if choices.dim() != 2 or choices.shape[1] not in (num_groups, num_groups + num_blocks):
        raise ValueError(f"counts must be [num_policies, {num_groups}], but got {list(choices.shape)}")
    has_operations = num_blocks > 0 and choices.shape[1] > num_groups
    return choices[:, :num_groups], choices[:, num_groups:] if has_operations else None


def _total(numbers: Affine, selected: Any) -> Affine:
    base, slope = numbers.base[selected], numbers.slope[:, selected]
    return Affine(base.sum(keepdims=True), slope.sum(axis=1, keepdims=True))


def _sum(one: Affine, other: Affine) -> Affine:
    return Affine(one.base + other.base, one.slope + other.slope)


def _affine(base: Sequence[float], slope: Sequence[Sequence[float]]) -> Affine:
    return Affine(np.array(base, dtype=np.float64), np.array(slope, dtype=np.float64).reshape(len(slope), len(base)))
