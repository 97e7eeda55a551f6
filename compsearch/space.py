"""What may be removed from a network, and what a policy keeps of it.

A `Group` is a set of channels among which a searcher chooses, a `Block` a part of the network that one of several
operations does; a `SearchSpace` is every group and block of one network in the order the network runs them; a `Policy`
is the exact channels kept and the operations chosen. All are plain values: no tensors, no modules.
The channels of all groups are numbered through as *units*: group ``g`` owns the units ``offsets[g]:offsets[g + 1]``. A
unit is one channel, or several that can only go together (a whole group of a grouped convolution, say).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Layer:
    """One convolution or linear layer of the dense network, as the trace met it.

    `positions` is how often each weight element is used for one image (output height × width, or tokens, summed over
    calls), so that ``macs = positions * weight.numel()``. `height` and `width` are those of the input feature map.
    """

    name: str
    parameter: str
    kind: str
    in_channels: int
    out_channels: int
    height: int
    width: int
    stride: int
    kernel_size: int
    positions: float
    macs: float
    num_weights: int


@dataclass(frozen=True)
class Group:
    """Channels that are decided on together.

    `size` counts units, `width` the channels of one unit in the group's first producer. `counts` are the numbers of
    units a policy may keep, ascending, the last one being `size` unless every policy removes some. `producers` and
    `consumers` name layers (forward order) that emit and read the channels; `tied_by` names the operations that tie
    several producers together.
    """

    name: str
    size: int
    width: int
    counts: tuple[int, ...]
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    tied_by: tuple[str, ...] = ()

    @property
    def is_coupled(self) -> bool:
        """Whether more than one layer emits these channels."""
        return len(self.producers) > 1


@dataclass(frozen=True)
class Frozen:
    """Channels that always stay, and why."""

    name: str
    size: int
    reason: str


@dataclass(frozen=True, eq=False)
class Site:
    """One dimension of one parameter or buffer: which unit each of its entries belongs to, -1 for always kept."""

    parameter: str
    dim: int
    units: IntArray


@dataclass(frozen=True, eq=False)
class SparseWeight:
    """A weight of which single entries, or blocks of them, may become zero: the choice of one group.

    The group's units are quantiles of magnitude, unit 0 the largest; a policy keeps the first of them. `kept` are the
    entries that stay by number of units kept, [size + 1]. `block` is (rows, columns) of the weight seen as
    [outputs, all else]; (1, 1) for single entries.
    """

    parameter: str
    group: int
    block: tuple[int, int]
    kept: IntArray


#: The operation of a block that does nothing: the block passes on what it is given.
ZERO = "zero"
#: The dense network's operation of a block that may be skipped.
KEEP = "keep"


@dataclass(frozen=True)
class Operation:
    """One way to do a block. `modules` names the network's modules that are there for it alone."""

    name: str
    modules: tuple[str, ...] = ()


@dataclass(frozen=True)
class Block:
    """A part of the network that is done by one of several operations, the dense network's first, the cheapest last."""

    name: str
    operations: tuple[Operation, ...]


def allowed_counts(
    size: int, *, width: int = 1, divisor: int = 8, min_keep_ratio: float = 0.1, min_choices: int = 8
) -> tuple[int, ...]:
    """Numbers of units that may be kept of a group of `size` units, ascending; `size` itself is always the last.

    Multiples of `divisor` channels where the group has at least `min_choices` such multiples; smaller groups use the
    largest power of two that leaves them as many, so that a 16-channel layer is not limited to 8 or 16.
    """
    if divisor < 1:
        raise ValueError(f"`divisor >= 1` must hold, but got {divisor=}; use divisor=1 for no rounding")
    if not 0 < min_keep_ratio <= 1:
        raise ValueError(f"`0 < min_keep_ratio <= 1` must hold, but got {min_keep_ratio=}")
    if min_choices < 1:
        raise ValueError(f"`min_choices >= 1` must hold, but got {min_choices=}")
    step = max(1, divisor // width)
    if size // step < min_choices:
        step = 1 << max(0, (max(1, size // min_choices)).bit_length() - 1)
        step = min(step, max(1, divisor // width))
    lowest = max(1, int(np.ceil(size * min_keep_ratio - 1e-9)))
    counts = [count for count in range(step, size, step) if count >= lowest]
    return (*counts, size)


@dataclass(frozen=True)
class Policy:
    """What is kept: for each group of one space the kept units, ascending, and for each searchable block an operation.

    Hashable and comparable. `space` is the fingerprint of the space it belongs to.
    """

    space: str
    kept: tuple[tuple[str, tuple[int, ...]], ...]
    operations: tuple[tuple[str, str], ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """Units kept per group."""
        return {name: len(units) for name, units in self.kept}

    def to_json(self) -> dict[str, Any]:
        """Plain values; kept units are written as ranges such as ``"0-3,7"``."""
        return {
            "space": self.space,
            "kept": {name: _to_ranges(units) for name, units in self.kept},
            "operations": dict(self.operations),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Policy:
        """The inverse of `to_json`. Raises ValueError when `data` is not a policy."""
        try:
            return cls(
                space=str(data["space"]),
                kept=tuple((str(name), _from_ranges(ranges)) for name, ranges in data["kept"].items()),
                operations=tuple((str(block), str(op)) for block, op in data.get("operations", {}).items()),
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"a policy must be a mapping with 'space' and 'kept', but got {data!r:.80}") from error

    def __str__(self) -> str:
        return " ".join(f"{name}={choice}" for name, choice in [*self.counts.items(), *self.operations])


def _to_ranges(units: Sequence[int]) -> str:
    parts: list[list[int]] = []
    for unit in units:
        if parts and unit == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], unit]
        else:
            parts.append([unit])
    return ",".join("-".join(map(str, part)) for part in parts)


def _from_ranges(text: str) -> tuple[int, ...]:
    units: list[int] = []
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        units.extend(range(int(first), int(last or first) + 1))
    return tuple(units)


@dataclass(frozen=True, eq=False)
class SearchSpace:
    """Every group of one network in forward order, what is frozen, and which entries of which tensors each unit is.

    `fingerprint` identifies the network (names, shapes) and the choices offered; policies carry it.
    """

    groups: tuple[Group, ...]
    layers: tuple[Layer, ...]
    frozen: tuple[Frozen, ...]
    sites: tuple[Site, ...]
    fingerprint: str
    #: Multiply-accumulates that no policy changes and that belong to no weight (attention products).
    constant_macs: float = 0.0
    #: Elements of every parameter (not buffer) of the dense network, by name.
    parameter_sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    #: Sizes that modules without tensors hold in an attribute ("norm.num_features"), with the units counted there.
    size_sites: tuple[Site, ...] = ()
    #: Weights that lose entries and keep their shape; a space has these or `sites`.
    sparse: tuple[SparseWeight, ...] = ()
    #: Parts with a choice of operations, in forward order.
    blocks: tuple[Block, ...] = ()

    @functools.cached_property
    def offsets(self) -> IntArray:
        """Where each group's units begin; one longer than `groups`."""
        return np.concatenate([[0], np.cumsum([group.size for group in self.groups])]).astype(np.int64)

    @property
    def num_units(self) -> int:
        return int(self.offsets[-1])

    @functools.cached_property
    def sizes(self) -> IntArray:
        """Units per group, [num_groups]."""
        return np.array([group.size for group in self.groups], dtype=np.int64)

    @functools.cached_property
    def min_counts(self) -> IntArray:
        """The fewest units each group may keep, [num_groups]."""
        return np.array([group.counts[0] for group in self.groups], dtype=np.int64)

    @functools.cached_property
    def dense_choices(self) -> IntArray:
        """The dense network as cost models take it, [num_groups + num_blocks]: see `choices`."""
        return np.concatenate([self.sizes, np.zeros(len(self.blocks), dtype=np.int64)])

    @functools.cached_property
    def smallest_choices(self) -> IntArray:
        """The fewest units of every group and the last operation of every block, [num_groups + num_blocks]."""
        return np.concatenate(
            [self.min_counts, np.array([len(block.operations) - 1 for block in self.blocks], dtype=np.int64)]
        )

    @functools.cached_property
    def layer_by_name(self) -> Mapping[str, Layer]:
        return {layer.name: layer for layer in self.layers}

    def describe(self) -> str:
        """A table of groups, what ties them, and what is frozen why; for people to read."""
        from compsearch.describe import describe

        return describe(self)

    def full_policy(self) -> Policy:
        """The dense network."""
        return self._policy((np.arange(group.size) for group in self.groups), [0] * len(self.blocks))

    def select(
        self, counts: Iterable[int], importance: FloatArray, operations: Sequence[int] | IntArray | None = None
    ) -> Policy:
        """Keeps the `counts[g]` most important units of every group `g`; equal importance keeps the lower index.

        `importance` is [num_units], higher is better. `operations` are indices, one per block; left out, every block
        keeps the dense network's. Raises ValueError when a count is not one of `Group.counts`, or an index is of none.
        """
        counts = [int(count) for count in counts]
        if len(counts) != len(self.groups) or importance.shape != (self.num_units,):
            raise ValueError(
                f"one count per group and one importance per unit must be given, but got {len(counts)} counts for "
                f"{len(self.groups)} groups and importance of shape {importance.shape} for {self.num_units} units"
            )
        kept = []
        for index, (group, count) in enumerate(zip(self.groups, counts, strict=True)):
            if count not in group.counts:
                raise ValueError(
                    f"a count must be one of {group.counts}, but got {count} for group {group.name!r}; "
                    "SearchSpace.nearest_count rounds"
                )
            scores = importance[self.offsets[index] : self.offsets[index + 1]]
            kept.append(np.sort(np.argsort(-scores, kind="stable")[:count]))
        return self._policy(kept, [0] * len(self.blocks) if operations is None else operations)

    def nearest_count(self, index: int, keep_ratio: float, *, at_most: int | None = None) -> int:
        """The allowed count of group `index` nearest to `keep_ratio`, never above `at_most` (the minimum excepted)."""
        counts = self.groups[index].counts
        wanted = keep_ratio * self.groups[index].size
        offered = [count for count in counts if at_most is None or count <= at_most] or [counts[0]]
        return min(offered, key=lambda count: (abs(count - wanted), count))

    def nearest_counts(self, wanted: IntArray) -> IntArray:
        """The allowed counts nearest to `wanted` whole units, both [num_groups]; of two equally near the lower."""
        starts, table = self._nearest
        nearest: IntArray = table[starts + wanted]
        return nearest

    def staggered_counts(self, wanted: FloatArray) -> IntArray:
        """The allowed count of each group just below or just above `wanted` units, both [num_groups].

        Group g takes the one above once `wanted` is past a fraction of the way up; the fractions are the multiples of
        the golden ratio modulo 1, which spread evenly over any stretch of groups. As `wanted` grows, groups so change
        one after the other, and costs move in small steps.
        """
        counts = []
        for index, (group, units) in enumerate(zip(self.groups, wanted.tolist(), strict=True)):
            threshold = (index + 1) * _GOLDEN % 1.0
            lower = max((count for count in group.counts if count <= units), default=group.counts[0])
            upper = min((count for count in group.counts if count >= units), default=group.counts[-1])
            counts.append(upper if upper > lower and units - lower > threshold * (upper - lower) else lower)
        return np.array(counts, dtype=np.int64)

    def staggered_operations(self, wanted: FloatArray) -> IntArray:
        """The operation of each block just cheaper or just dearer than `wanted`, both [num_blocks], as indices.

        `wanted` goes from 0, the last operation, to 1, the dense network's. Blocks change one after the other, as
        groups do in `staggered_counts`.
        """
        indices = []
        for number, (block, part) in enumerate(zip(self.blocks, wanted.tolist(), strict=True)):
            place = (1 - part) * (len(block.operations) - 1)
            dearer = math.floor(place)
            threshold = (number + 1) * _GOLDEN % 1.0
            indices.append(dearer + (place - dearer > threshold))
        return np.array(indices, dtype=np.int64)

    def richness(self, operations: IntArray) -> FloatArray:
        """Where `operations` stand between the last one of their block, 0, and the dense network's, 1; [num_blocks]."""
        last = np.array([max(1, len(block.operations) - 1) for block in self.blocks], dtype=np.float64)
        found: FloatArray = 1 - operations / last
        return found

    @functools.cached_property
    def _nearest(self) -> tuple[IntArray, IntArray]:
        """For each group where its part of the table begins, and the table: the allowed count nearest to 0, 1, …."""
        starts = np.cumsum([0, *(group.size + 1 for group in self.groups)])[:-1].astype(np.int64)
        nearest = [
            min(group.counts, key=lambda count: (abs(count - wanted), count))
            for group in self.groups
            for wanted in range(group.size + 1)
        ]
        return starts, np.array(nearest, dtype=np.int64)

    def counts(self, policy: Policy) -> IntArray:
        """Units kept per group, [num_groups]."""
        return np.array([len(units) for _, units in policy.kept], dtype=np.int64)

    def choices(self, policy: Policy) -> IntArray:
        """What cost models price, [num_groups + num_blocks]: units kept per group, then each block's operation's index.

        `policy` must be one of this space, which `check` tells.
        """
        return np.concatenate([self.counts(policy), self.operations(policy)])

    def operations(self, policy: Policy) -> IntArray:
        """The index of each block's operation, [num_blocks]."""
        chosen = dict(policy.operations)
        indices = [
            [operation.name for operation in block.operations].index(chosen[block.name]) for block in self.blocks
        ]
        return np.array(indices, dtype=np.int64)

    def keep_mask(self, policy: Policy) -> BoolArray:
        """Which units stay, [num_units]. Raises ValueError as `check` does."""
        self.check(policy)
        mask = np.zeros(self.num_units, dtype=np.bool_)
        for offset, (_, units) in zip(self.offsets, policy.kept, strict=False):
            mask[offset + np.asarray(units, dtype=np.int64)] = True
        return mask

    def check(self, policy: Policy) -> None:
        """Raises ValueError, in one line, unless `policy` can be extracted from this space's network."""
        names = {group.name for group in self.groups}
        for name, _ in policy.kept:
            if name not in names:
                raise ValueError(f"a policy must name groups of this network, but got group {name!r}")
        if policy.space != self.fingerprint:
            raise ValueError(
                f"a policy must belong to this network, but got one of space {policy.space!r}, not "
                f"{self.fingerprint!r}; trace the network it was made for with the same space options"
            )
        given = dict(policy.kept)
        for group in self.groups:
            units = given.get(group.name)
            if units is None:
                raise ValueError(f"a policy must name every group, but group {group.name!r} is missing")
            if not units:
                raise ValueError(
                    f"a group must keep at least one of its {group.size} channels, but {group.name!r} keeps none"
                )
            if units[0] < 0 or units[-1] >= group.size or any(a >= b for a, b in itertools.pairwise(units)):
                raise ValueError(
                    f"kept channels must ascend within 0..{group.size - 1}, but got {_to_ranges(units)} "
                    f"for group {group.name!r}"
                )
        if len(policy.kept) != len(self.groups) or any(
            name != group.name for (name, _), group in zip(policy.kept, self.groups, strict=False)
        ):
            raise ValueError(
                "a policy must name the groups once each, in forward order; build it with SearchSpace.select"
            )
        if tuple(name for name, _ in policy.operations) != tuple(block.name for block in self.blocks):
            raise ValueError(
                "a policy must give every block an operation, in forward order, but got "
                f"{len(policy.operations)} for {len(self.blocks)} blocks; build it with SearchSpace.select"
            )
        for block, (_, chosen) in zip(self.blocks, policy.operations, strict=True):
            offered = [operation.name for operation in block.operations]
            if chosen not in offered:
                raise ValueError(
                    f"a block's operation must be one of {', '.join(offered)}, but got {chosen!r} for {block.name!r}"
                )

    def _policy(self, kept: Iterable[IntArray], operations: Sequence[int] | IntArray) -> Policy:
        indices = [int(index) for index in operations]
        if len(indices) != len(self.blocks) or any(
            not 0 <= index < len(block.operations) for block, index in zip(self.blocks, indices, strict=True)
        ):
            raise ValueError(
                f"one operation per block must be given, as an index, but got {indices} for blocks of "
                f"{[len(block.operations) for block in self.blocks]} operations"
            )
        named = zip(self.groups, kept, strict=True)
        return Policy(
            self.fingerprint,
            tuple((group.name, tuple(map(int, units))) for group, units in named),
            tuple(
                (block.name, block.operations[index].name) for block, index in zip(self.blocks, indices, strict=True)
            ),
        )
