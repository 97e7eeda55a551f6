"""What each choice of a space is between, where a search weighs a handful of candidates per choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compsearch.space import BoolArray, FloatArray, IntArray, Policy, SearchSpace


@dataclass(frozen=True, eq=False)
class Candidates:
    """The candidates of every choice: numbers of units for each group, then operations for each block.

    `values` is [num_choices, most candidates]: units kept, or an operation's index; -1 where a choice has fewer. The
    dense network's come first. `labels` say what people call them.
    """

    space: SearchSpace
    values: IntArray
    names: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...]

    @property
    def is_one(self) -> BoolArray:
        """Where there is a candidate, [num_choices, most candidates]."""
        found: BoolArray = self.values >= 0
        return found

    @property
    def sizes(self) -> IntArray:
        """How many candidates each choice has, [num_choices]."""
        sizes: IntArray = self.is_one.sum(axis=1)
        return sizes

    def choices(self, paths: IntArray) -> IntArray:
        """What cost models price, [..., num_choices], of candidates' indices of the same shape."""
        chosen: IntArray = self.values[np.arange(len(self.values)), paths]
        return chosen

    def policy(self, path: IntArray, importance: FloatArray) -> Policy:
        """The policy of `path` [num_choices] that keeps the units of the highest `importance` [num_units]."""
        chosen, num_groups = self.choices(path), len(self.space.groups)
        return self.space.select(chosen[:num_groups], importance, chosen[num_groups:])


def candidates_of(space: SearchSpace, keep_ratios: Sequence[float]) -> Candidates:
    """All operations of each block, and of each group the allowed counts nearest to `keep_ratios`, the largest first.

    A group without smaller counts near them has a single candidate. Raises ValueError unless `keep_ratios` are distinct
    and in (0, 1], with 1 among them.
    """
    ratios = sorted(set(keep_ratios), reverse=True)
    if len(ratios) != len(keep_ratios) or not ratios or ratios[0] != 1 or ratios[-1] <= 0:
        raise ValueError(
            f"candidate widths must be distinct keep_ratios in (0, 1] with 1 among them, but got {list(keep_ratios)}"
        )
    rows: list[list[int]] = []
    labels: list[tuple[str, ...]] = []
    for index, group in enumerate(space.groups):
        counts = sorted({space.nearest_count(index, ratio) for ratio in ratios}, reverse=True)
        rows.append(counts)
        labels.append(tuple(f"{count / group.size:.3g}" for count in counts))
    for block in space.blocks:
        rows.append(list(range(len(block.operations))))
        labels.append(tuple(operation.name for operation in block.operations))
    values = np.full((len(rows), max(map(len, rows), default=1)), -1, dtype=np.int64)
    for number, row in enumerate(rows):
        values[number, : len(row)] = row
    names = (*(group.name for group in space.groups), *(block.name for block in space.blocks))
    return Candidates(space, values, names, tuple(labels))
