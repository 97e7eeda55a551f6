"""What one forward of any policy's network does to memory, without building that network.

Between layers a channel count enters every tensor once, so whatever an operation reads, writes or finds alive grows
linearly with the units kept in each group: the dense network, and one network per group with only that group at its
fewest units, say it for all policies. Where blocks have other operations, as many networks in which all have their
second one, and so on, say what each operation changes around the block. Layers' weights, which grow with the product of
two counts, are the ledger's (`backends.macs`). What that leaves out (a weight that the forward computes, attention over
pruned channels, blocks that change each other's share) is found by networks drawn at random, and refused.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from backends import forwards
from backends.amounts import Affine, Amounts, Change
from backends.forwards import Subject
from backends.macs import is_part_of
from backends.recording import Recording, record
from backends.switching import networks_of
from compsearch.space import FloatArray, IntArray, Policy, SearchSpace

#: What differences of whole numbers of elements may be off by.
_NOISE = 1e-6


class Inventory:
    """The operations of a network in the order they run, views left out, and what they do per image.

    Behind the dense network's come those that only run where a block has another operation than it. All amounts are
    functions of choices, kept units per group and, if given, operations per block behind them [num_policies,
    num_groups (+ num_blocks)], in elements as `backends.recording` counts them; what does not run moves and keeps
    nothing. `layer_names` are those of the space's layers, empty where an operation is none. `runs` are 1 where an
    operation runs.
    """

    def __init__(
        self,
        *,
        ops: tuple[str, ...],
        layer_names: tuple[str, ...],
        places: tuple[str, ...],
        amounts: Mapping[str, Amounts],
    ) -> None:
        self.ops = ops
        self.layer_names = layer_names
        #: The modules that run the operations.
        self.places = places
        self.amounts = amounts
        others = np.array([not name for name in layer_names], dtype=np.bool_)
        moved = amounts["activations_read"] + amounts["elements_written"]
        #: Elements of activations read and written by all operations, one number.
        self.activation_traffic = moved.sum()
        #: Elements read (constants too) and written by all operations that are not layers, one number.
        self.other_traffic = (moved + amounts["constants_read"]).sum(others)

    @property
    def num_kernels(self) -> int:
        """How many operations of the dense network do something: all but views and reservations of memory."""
        return int(self.amounts["runs"].dense.base.sum())

    def activations_read(self, choices: IntArray) -> FloatArray:
        """Elements of activations that each operation reads, [num_policies, num_ops]."""
        return self.amounts["activations_read"](choices)

    def constants_read(self, choices: IntArray) -> FloatArray:
        """Elements of parameters and buffers that each operation reads, [num_policies, num_ops]; 0 for layers."""
        return self.amounts["constants_read"](choices)

    def elements_written(self, choices: IntArray) -> FloatArray:
        """Elements that each operation writes, in place too, [num_policies, num_ops]."""
        return self.amounts["elements_written"](choices)

    def alive(self, choices: IntArray) -> FloatArray:
        """Elements of activation memory alive while each operation runs, [num_policies, num_ops]."""
        return self.amounts["alive"](choices)


def take_inventory(model: nn.Module, space: SearchSpace, example_input: Tensor | tuple[Any, ...]) -> Inventory:
    """The inventory of the networks that policies of `space` leave of `model`, for one image of `example_input`.

    The model is not changed: copies of it run in eval mode, on shapes alone where the forward allows, else on its
    values. A forward that refuses a single image runs on the whole batch, whose amounts are divided by its size.

    Raises ValueError when the model does not run on the example, or where operations or amounts follow the kept
    channels in another way than linearly.
    """
    inputs = example_input if isinstance(example_input, tuple) else (example_input,)
    layers = {layer.parameter: layer.name for layer in space.layers}

    def run(subject: Subject) -> tuple[Recorder, Recording]:
        networks = networks_of(subject.module, space)

        def of(policy: Policy) -> Recording:
            return record(networks(policy), subject.inputs, layers)

        return of, of(space.full_policy())

    subject, (of, dense) = forwards.first_that_runs(model, inputs, run)
    survey = _Survey(space, of, subject.batch_size)
    most = max((len(block.operations) for block in space.blocks), default=1)
    inventory = _joined(
        space, survey.affine(dense, 0), [survey.variant(dense, index) for index in range(1, most)], dense
    )
    survey.check(dense, inventory)
    return inventory


#: Records the network of a policy.
Recorder = Callable[[Policy], Recording]


@dataclass(frozen=True, eq=False)
class _Variant:
    """The network in which every block that has it runs the operation of index `operation`, and its numbers.

    `same` are pairs of rows, of the dense network's operations and of its own, that are one operation; `blocks` are the
    blocks that its rows are of, -1 for those before the first.
    """

    operation: int
    recording: Recording
    numbers: Mapping[str, Affine]
    same: Sequence[tuple[int, int]]
    blocks: IntArray


class _Survey:
    """Records networks of a space to find how their amounts grow."""

    def __init__(self, space: SearchSpace, of: Recorder, num_images: int) -> None:
        self._space = space
        self._of = of
        self._num_images = num_images
        # Where single weights are removed, no tensor gets smaller.
        sliced = {unit for site in (*space.sites, *space.size_sites) for unit in np.unique(site.units).tolist()}
        self._groups = [index for index, start in enumerate(space.offsets[:-1].tolist()) if start in sliced]

    def affine(self, recording: Recording, operation: int) -> dict[str, Affine]:
        """The amounts of networks whose blocks have that operation; `recording` is of the one with all channels."""
        space, full = self._space, _amounts(recording, self._num_images)
        slopes = {name: np.zeros((len(space.groups), len(values))) for name, values in full.items()}
        for index in self._groups:
            group, counts = space.groups[index], space.sizes.copy()
            counts[index] = group.counts[0]
            found = self._of(_policy(space, counts, _all_with(space, operation)))
            _same_operations(recording, found, f"{group.name} keeps {counts[index]} of {group.size}")
            for name, values in _amounts(found, self._num_images).items():
                slopes[name][index] = (full[name] - values) / (group.size - counts[index])
        return {name: Affine(full[name] - space.sizes @ slope, slope) for name, slope in slopes.items()}

    def variant(self, dense: Recording, operation: int) -> _Variant:
        """The network of all blocks with that operation."""
        space = self._space
        recording = self._of(_policy(space, space.sizes, _all_with(space, operation)))
        ours, theirs = ([*zip(r.ops, r.layer_names, r.places, strict=True)] for r in (dense, recording))
        # What runs in a block's modules need not be alike to stand in the same place.
        anchors: list[list[object]] = [
            [block if block >= 0 else key for block, key in zip(_in_modules(space, r), keys, strict=True)]
            for r, keys in ((dense, ours), (recording, theirs))
        ]
        matches = difflib.SequenceMatcher(None, anchors[0], anchors[1], autojunk=False).get_matching_blocks()
        pairs = [(match.a + step, match.b + step) for match in matches for step in range(match.size)]
        same = [(one, other) for one, other in pairs if ours[one] == theirs[other]]
        return _Variant(operation, recording, self.affine(recording, operation), same, _blocks(space, recording))

    def check(self, dense: Recording, inventory: Inventory) -> None:
        """Raises ValueError unless networks drawn at random are what the inventory says."""
        space, rng = self._space, np.random.default_rng(0)
        counts = np.array([rng.choice(group.counts) for group in space.groups], dtype=np.int64)
        recording = self._of(_policy(space, counts, _all_with(space, 0)))
        _same_operations(dense, recording, "channels are kept at random")
        for name, found in _amounts(recording, self._num_images).items():
            told = inventory.amounts[name](counts[None])[0][: len(found)]
            wrong = np.flatnonzero(~np.isclose(told, found, rtol=1e-9, atol=1e-6))
            if len(wrong):
                index = int(wrong[0])
                raise ValueError(
                    "memory, energy and latency need sizes that grow linearly with the channels kept, but for "
                    f"{_at(dense, index)} {name.replace('_', ' ')} is {found[index]:,.6g} elements where "
                    f"{told[index]:,.6g} follow; freeze what causes it (space.freeze), or set a budget in macs or "
                    "params"
                )
        sizes = [len(block.operations) for block in space.blocks]
        # Neighbours that differ, either way round, show what one does in the other.
        mixed = [[(place + turn) % size for place, size in enumerate(sizes)] for turn in range(2)]
        for operations in (*mixed, rng.integers(sizes).tolist()) if sizes else ():
            self._check_mixed(inventory, rng, operations)

    def _check_mixed(self, inventory: Inventory, rng: np.random.Generator, operations: Sequence[int]) -> None:
        """The same with these operations; which stand where, no one asks."""
        space = self._space
        counts = np.array([rng.choice(group.counts) for group in space.groups], dtype=np.int64)
        policy = _policy(space, counts, operations)
        choices = space.choices(policy)[None]
        runs = inventory.amounts["runs"](choices)[0] > 0.5
        for name, values in _amounts(self._of(policy), self._num_images).items():
            told, found = np.sort(inventory.amounts[name](choices)[0][runs]), np.sort(values)
            if told.shape != found.shape or not np.allclose(told, found, rtol=1e-9, atol=_NOISE):
                raise ValueError(
                    "memory, energy and latency need blocks whose operations change nothing beside them, but when "
                    f"several change, {name.replace('_', ' ')} is {found.sum():,.6g} elements in all where "
                    f"{told.sum():,.6g} follow; set a budget in macs or params"
                )


def _policy(space: SearchSpace, counts: IntArray, operations: Sequence[int]) -> Policy:
    return space.select(counts, np.zeros(space.num_units), operations)


def _all_with(space: SearchSpace, operation: int) -> list[int]:
    """Every block with that operation, or the dense network's where it has none so far behind."""
    return [operation if operation < len(block.operations) else 0 for block in space.blocks]


def _in_modules(space: SearchSpace, recording: Recording) -> list[int]:
    """The block in whose operations' modules each operation runs, -1 for none."""
    modules = [[name for operation in block.operations for name in operation.modules] for block in space.blocks]
    return [
        next((block for block, names in enumerate(modules) if is_part_of(place, names)), -1)
        for place in recording.places
    ]


def _blocks(space: SearchSpace, recording: Recording) -> IntArray:
    """The block that each operation runs in or after, -1 before the first."""
    inside = np.array(_in_modules(space, recording), dtype=np.int64)
    last = np.maximum.accumulate(np.where(inside >= 0, np.arange(len(inside)), -1))
    blocks: IntArray = np.where(last >= 0, inside[last], -1)
    return blocks


def _joined(
    space: SearchSpace, numbers: Mapping[str, Affine], variants: Sequence[_Variant], dense: Recording
) -> Inventory:
    """The operations of the dense network, then those that only the variants have, with amounts for all."""
    rows = [*zip(dense.ops, dense.layer_names, dense.places, strict=True)]
    blocks = _blocks(space, dense)
    changed: dict[str, list[tuple[IntArray, IntArray, int, Affine]]] = {name: [] for name in numbers}
    for variant in variants:
        ours, theirs = np.array(variant.same, dtype=np.int64).reshape(-1, 2).T
        gone = np.setdiff1d(np.arange(len(dense.ops)), ours)
        own = np.setdiff1d(np.arange(len(variant.recording.ops)), theirs)
        at = np.concatenate([ours, gone, len(rows) + np.arange(len(own))])
        of = np.concatenate([blocks[ours], blocks[gone], variant.blocks[own]])
        recorded = variant.recording
        rows += [(recorded.ops[row], recorded.layer_names[row], recorded.places[row]) for row in own]
        for name, found in variant.numbers.items():
            was = numbers[name]
            base = [found.base[theirs] - was.base[ours], -was.base[gone], found.base[own]]
            slope = [found.slope[:, theirs] - was.slope[:, ours], -was.slope[:, gone], found.slope[:, own]]
            by = Affine(np.concatenate(base), np.concatenate(slope, axis=1))
            changed[name].append((at, of, variant.operation, by))
    amounts = {
        name: Amounts(_padded(numbers[name], len(rows)), _changes(parts), num_blocks=len(space.blocks))
        for name, parts in changed.items()
    }
    ops, layer_names, places = ([*zip(*rows, strict=True)]) if rows else [(), (), ()]
    return Inventory(ops=ops, layer_names=layer_names, places=places, amounts=amounts)


def _changes(parts: Sequence[tuple[IntArray, IntArray, int, Affine]]) -> list[Change]:
    """One per block and operation; of each part the rows, the blocks they are of, the operation, and what is added."""
    changes = []
    for at, of, operation, by in parts:
        differs = (np.abs(by.base) > _NOISE) | (np.abs(by.slope) > _NOISE).any(axis=0)
        # What changes before the first block is no block's, and left to the check.
        for block in np.unique(of[differs & (of >= 0)]).tolist():
            [its] = (differs & (of == block)).nonzero()
            changes.append(Change(block, operation, at[its], Affine(by.base[its], by.slope[:, its])))
    return changes


def _padded(numbers: Affine, num: int) -> Affine:
    """With 0 for operations that are none of its own."""
    more = num - len(numbers.base)
    return Affine(np.pad(numbers.base, (0, more)), np.pad(numbers.slope, ((0, 0), (0, more))))


def _amounts(recording: Recording, num_images: int) -> dict[str, FloatArray]:
    """The amounts that grow linearly, per image; constants are read once for all images."""
    is_layer = np.array([bool(name) for name in recording.layer_names], dtype=np.bool_)
    return {
        "activations_read": recording.activations_read / num_images,
        "constants_read": np.where(is_layer, 0.0, recording.constants_read),
        "elements_written": recording.elements_written / num_images,
        "alive": recording.alive / num_images,
        "runs": np.ones(len(recording.ops)),
    }


def _same_operations(dense: Recording, other: Recording, when: str) -> None:
    if (other.ops, other.layer_names, other.lifetimes) == (dense.ops, dense.layer_names, dense.lifetimes):
        return
    pairs = itertools.zip_longest(dense.ops, other.ops)
    index = next((index for index, (ours, theirs) in enumerate(pairs) if ours != theirs), None)
    change = (
        "memory is used for longer or shorter" if index is None else f"{_at(dense, index)} becomes {_at(other, index)}"
    )
    raise ValueError(
        f"memory, energy and latency need a network that runs the same operations at every width, but {change} when "
        f"{when}; freeze what causes it (space.freeze), or raise space.min_keep_ratio"
    )


def _at(recording: Recording, index: int) -> str:
    if index >= len(recording.ops):
        return "the end"
    return f"{recording.ops[index]} in {recording.places[index] or 'the forward'}"
