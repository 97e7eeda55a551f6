"""Sizes that modules hold as plain numbers, and which channels they count.

A forward may say ``torch.split(x, self.width, 1)`` or ``F.conv2d(x, self.filter, groups=self.channels)``. Which
channels such a number counts is guessed: as many channels as the number says, in a tensor that the module itself works
on. A guess is good for nothing but to be tried out (`backends.verification`).
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from backends.labels import ANY, Labels, Mark

#: Labels of the channels that entries of attributes count: (attribute path, index) -> [entry].
Held = dict[tuple[str, int], Tensor]
#: How many guesses about one module are tried.
_MOST_GUESSES = 16


def numbers(module: nn.Module) -> dict[str, list[int]]:
    """The whole numbers that attributes of `module` hold, alone or in lists and tuples of nothing else.

    PyTorch's own modules hold what their tensors say, which surgery knows.
    """
    if type(module).__module__.startswith("torch.nn."):
        return {}
    found = {}
    for attribute, value in vars(module).items():
        several = list(value) if type(value) in (list, tuple) else [value]
        if several and all(type(number) is int for number in several):
            found[attribute] = several
    return found


@dataclass(frozen=True)
class _Holder:
    """What a module holds, and the channels it met in its own operations: by number and, once each, by labels."""

    kind: type
    numbers: Mapping[str, list[int]]
    met: dict[int, dict[bytes, Tensor]]


class Meetings:
    """The channels that modules met, of as many as a number that they hold says."""

    def __init__(self) -> None:
        self._holders: dict[str, _Holder] = {}

    def holds(self, name: str, module: nn.Module, sizes: Iterable[int]) -> bool:
        """Whether each of `sizes` is a number that the module holds."""
        return set(self._holder(name, module).met).issuperset(sizes)

    def note(self, name: str, module: nn.Module, marks: Iterable[Mark]) -> None:
        """Remembers what an operation of the module took and gave."""
        met = self._holder(name, module).met
        if not met:
            return
        for labels in (part for mark in marks for part in mark.parts):
            for dim, size in enumerate(labels.shape):
                if size in met and labels.numel():
                    line = labels.movedim(dim, -1).reshape(-1, size)[0]
                    if bool((line > ANY).any()):
                        met[size].setdefault(line.numpy().tobytes(), line.clone())

    def alike(self, name: str) -> list[str]:
        """The modules of the same class that ran operations, this one included, in forward order; else none."""
        if name not in self._holders:
            return []
        return [other for other, holder in self._holders.items() if holder.kind is self._holders[name].kind]

    def guesses(self, name: str, labels: Labels) -> Iterator[tuple[tuple[str, ...], int]]:
        """Attributes of a module that may count channels, first each alone, then all, each with places for `guess`."""
        counted = self._counted(name, labels)
        alone = [(attribute,) for attribute in counted]
        together = [tuple(counted)] if len(counted) > 1 else []
        most = [
            max(len(found) for attribute in several for found in counted[attribute]) for several in alone + together
        ]
        every = ((several, place) for several, end in zip(alone + together, most, strict=True) for place in range(end))
        return itertools.islice(every, _MOST_GUESSES)

    def guess(self, name: str, labels: Labels, attributes: Collection[str], place: int) -> Held:
        """What these attributes of a module count: of the channels of each number, those at `place`."""
        counted = self._counted(name, labels)
        held = {}
        for attribute in attributes:
            for index, found in enumerate(counted.get(attribute, ())):
                if found:
                    # Of parts of one size in a list, the first counts what was met first.
                    sizes = self._holders[name].numbers[attribute]
                    turn = place + sizes[:index].count(sizes[index])
                    held[f"{name}.{attribute}".lstrip("."), index] = found[turn % len(found)]
        return held

    def _counted(self, name: str, labels: Labels) -> dict[str, list[list[Tensor]]]:
        """For each attribute with any, for each of its numbers: the channels it may count."""
        if name not in self._holders:
            return {}
        holder = self._holders[name]
        counted = {
            attribute: [_distinct(holder.met.get(size, {}).values(), labels) for size in sizes]
            for attribute, sizes in holder.numbers.items()
        }
        return {attribute: each for attribute, each in counted.items() if any(each)}

    def _holder(self, name: str, module: nn.Module) -> _Holder:
        if name not in self._holders:
            held = numbers(module)
            wanted = {size for sizes in held.values() for size in sizes if size > 1}
            self._holders[name] = _Holder(type(module), held, {size: {} for size in wanted})
        return self._holders[name]


def _distinct(lines: Iterable[Tensor], labels: Labels) -> list[Tensor]:
    """Of lines of channels those with other classes than any before."""
    found: dict[tuple[int, ...], Tensor] = {}
    for line in lines:
        found.setdefault(tuple(np.sort(labels.roots(line.numpy())).tolist()), line)
    return list(found.values())
