"""Channel labels: an integer for every entry of every dimension of every parameter and buffer.

Labels are *unified* when channels stay or go together, and *frozen* when channels always stay, for a reason. What a
tensor of a forward carries is its mark: `Channels`, a tensor of labels, or `Weight`, a view of a parameter. As all
labels belong to parameters and buffers from the beginning, tied weights and modules called twice need nothing special.

Two label values are no channels: `NONE` is data that does not come from any channel (the network's input, a constant),
so that whatever must line up with it cannot be removed; `ANY` is the same value everywhere (a tensor of zeros, an
expanded one-channel gate), which lines up with whatever is left.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

from compsearch.space import BoolArray, IntArray

NONE, ANY = 0, 1
_FIRST = 2


class Conflict(Exception):
    """While verifying: channels met that the dense network never tied, or a live channel would have to stay."""

    def __init__(self, roots: IntArray, message: str) -> None:
        super().__init__(message)
        self.roots = roots


class Labels:
    """Union-find over the labels of named tensors.

    `shapes` are the tensors' dense shapes. `axis(name, dim)` are the labels of one dimension, [shape[dim]]. After
    `seal(live)` nothing changes any more: to unify labels that were not unified before, one with the other, or to
    freeze a live class, raises Conflict.
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]]) -> None:
        self._axes: dict[tuple[str, int], IntArray] = {}
        start = _FIRST
        for name, shape in shapes.items():
            for dim, size in enumerate(shape):
                self._axes[name, dim] = np.arange(start, start + size)
                start += size
        self._parent = np.arange(start)
        self._emitted = np.zeros(start, dtype=np.bool_)
        self._dense_size = np.ones(start, dtype=np.int64)
        for axis in self._axes.values():
            self._dense_size[axis] = len(axis)
        self._live: BoolArray | None = None
        #: The first conflict since `seal`, in case a forward swallows the exception.
        self.conflict: Conflict | None = None
        self._met: list[IntArray] = []
        #: Labels that an operation tied although different layers emit them, with the operation's name.
        self.ties: list[tuple[int, str]] = []
        #: Labels that always stay, with the reason.
        self.frozen: list[tuple[IntArray, str]] = []

    @property
    def size(self) -> int:
        """One more than the largest label."""
        return len(self._parent)

    def axis(self, name: str, dim: int) -> IntArray:
        """The labels of one dimension of a tensor, [size]."""
        return self._axes[name, dim]

    def was_single(self, axis: Tensor) -> bool:
        """Whether the dimension that this slice of labels comes from has one entry in the dense network."""
        return len(axis) == 1 and self._dense_size[int(axis[0])].item() == 1

    def roots(self, labels: IntArray) -> IntArray:
        """One representative label per class, elementwise; NONE and ANY represent themselves."""
        roots = self._parent[labels]
        while True:
            above = self._parent[roots]
            if np.array_equal(above, roots):
                self._parent[labels] = roots
                return roots
            roots = above

    def classes(self, labels: Tensor) -> Tensor:
        """`roots` of a tensor of labels."""
        return torch.from_numpy(np.asarray(self.roots(labels.numpy())))

    def emit(self, labels: Tensor) -> None:
        """Says that a layer computes these channels."""
        if self._live is None:
            self._emitted[self.roots(labels.numpy())] = True

    def unify(self, first: Tensor, second: Tensor, cause: str) -> None:
        """Ties two tensors of labels of the same shape, position by position; NONE and ANY tie to nothing."""
        ones, others = first.numpy().ravel(), second.numpy().ravel()
        real = (ones >= _FIRST) & (others >= _FIRST)
        ones, others = ones[real], others[real]
        # Not the classes but the very labels must meet again: channels of one unit could also change places.
        pairs = np.minimum(ones, others) * self.size + np.maximum(ones, others)
        if self._live is not None:
            new = ~_contains(self._met[0], pairs)
            if new.any():
                self.refuse(np.concatenate([ones[new], others[new]]), f"{cause} would join other channels")
            return
        self._met.append(np.unique(pairs))
        while True:
            ones, others = self.roots(ones), self.roots(others)
            differ = ones != others
            if not differ.any():
                return
            ones, others = ones[differ], others[differ]
            both = self._emitted[ones] & self._emitted[others]
            self.ties.extend((int(label), cause) for label in np.unique(ones[both]))
            low, high = np.minimum(ones, others), np.maximum(ones, others)
            np.minimum.at(self._parent, high, low)
            np.logical_or.at(self._emitted, self.roots(high), self._emitted[high])

    def freeze(self, labels: Tensor | Iterable[Tensor], reason: str) -> None:
        """Says that these channels always stay; NONE and ANY are passed over."""
        for part in [labels] if isinstance(labels, Tensor) else labels:
            ids = np.unique(part.numpy())
            ids = ids[ids >= _FIRST]
            if not len(ids):
                continue
            if self._live is not None:
                roots = self.roots(ids)
                if self._live[roots].any():
                    self.refuse(roots[self._live[roots]], reason)
            else:
                self.frozen.append((ids, reason))

    def forget_meetings(self) -> None:
        """Forgets which labels met, though not what followed from it."""
        self._met = []

    def progress(self) -> tuple[int, int]:
        """The numbers of classes and of frozen classes: the same after a forward when it brought nothing new."""
        roots = self.roots(np.arange(self.size))
        frozen = np.unique(roots[np.concatenate([np.zeros(0, dtype=np.int64), *(ids for ids, _ in self.frozen)])])
        return len(np.unique(roots)), len(frozen)

    def ties_within_an_axis(self) -> bool:
        """Whether two entries of one dimension of one tensor are in one class."""
        roots = self.roots(np.arange(self.size))
        return any(len(np.unique(roots[axis])) < len(axis) for axis in self._axes.values())

    def seal(self, live: BoolArray) -> None:
        """From now on only verifies; `live` says which class representatives may be removed, [size]."""
        self._met = [np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *self._met]))]
        self._live = live
        self.conflict = None

    def refuse(self, labels: IntArray, message: str) -> NoReturn:
        """Raises Conflict over these labels."""
        conflict = Conflict(np.unique(self.roots(labels[labels > ANY])), message)
        self.conflict = self.conflict or conflict
        raise conflict


def _contains(ascending: IntArray, values: IntArray) -> BoolArray:
    """Which of `values` are among `ascending`."""
    places = np.searchsorted(ascending, values)
    found: BoolArray = np.append(ascending, -1)[places] == values
    return found


@dataclass(frozen=True)
class Channels:
    """What an activation carries: `labels` has its number of dimensions, each of them full or 1 (all alike).

    `why` says what the data is where a label is NONE. `over` are the channels whose mean or variance this is: a norm as
    long as it goes back to these channels, or else it depends on how many there are.
    """

    labels: Tensor
    why: str = ""
    over: Tensor | None = None

    @property
    def parts(self) -> list[Tensor]:
        """All labels."""
        return [self.labels] if self.over is None else [self.labels, self.over]


@dataclass(frozen=True)
class Weight:
    """A view of a parameter or buffer: labels per dimension, None for a dimension that the view added.

    `folded` are several dimensions that the view made its last one, [1, rows, entries], of which `axes` says None.
    """

    name: str
    axes: tuple[Tensor | None, ...]
    folded: tuple[Tensor, ...] = ()

    @property
    def parts(self) -> list[Tensor]:
        """All labels, by dimension."""
        return [*(axis for axis in self.axes if axis is not None), *self.folded]


Mark = Channels | Weight
