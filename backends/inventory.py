"""What one forward of any policy's network does to memory, without building that network.

Between layers a channel count enters every tensor once, so whatever an operation reads, writes or finds alive grows
linearly with the units kept in each group: the dense network, and one network per group with only that group at its
fewest units, say it for all policies. Layers' weights, which grow with the product of two counts, are the ledger's
(`backends.macs`). What linear growth leaves out (a weight that the forward computes, attention over pruned channels) is
found by a network kept at random, and refused.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from backends import forwards
from backends.recording import Recording, record
from backends.surgery import extract
from compsearch.space import FloatArray, IntArray, Policy, SearchSpace


@dataclass(frozen=True, eq=False)
class Affine:
    """Numbers [num] that grow linearly with counts: ``base + counts @ slope``; `slope` is [num_groups, num]."""

    base: FloatArray
    slope: FloatArray

    def __call__(self, counts: IntArray) -> FloatArray:
        """The numbers [num_policies, num] of kept units per group [num_policies, num_groups]. Raises ValueError."""
        if counts.ndim != 2 or counts.shape[1] != len(self.slope):
            raise ValueError(f"counts must be [num_policies, {len(self.slope)}], but got {list(counts.shape)}")
        values: FloatArray = counts @ self.slope + self.base
        return values

    def sum(self, where: Any = slice(None)) -> Affine:
        """Their total [1] over the entries `where` selects."""
        return Affine(self.base[where].sum(keepdims=True), self.slope[:, where].sum(axis=1, keepdims=True))

    def __add__(self, other: Affine) -> Affine:
        return Affine(self.base + other.base, self.slope + other.slope)


class Inventory:
    """The operations of a network in the order they run, views left out, and what they do per image.

    All amounts are functions of counts, kept units per group [num_policies, num_groups], in elements as
    `backends.recording` counts them. `layer_names` are those of the space's layers, empty where an operation is none.
    """

    def __init__(
        self,
        *,
        ops: tuple[str, ...],
        layer_names: tuple[str, ...],
        places: tuple[str, ...],
        amounts: Mapping[str, Affine],
    ) -> None:
        self.ops = ops
        self.layer_names = layer_names
        #: The modules that run the operations.
        self.places = places
        self._amounts = amounts
        others = np.array([not name for name in layer_names], dtype=np.bool_)
        moved = amounts["activations_read"] + amounts["elements_written"]
        self._activation_traffic = moved.sum()
        self._other_traffic = (moved + amounts["constants_read"]).sum(others)

    @property
    def num_kernels(self) -> int:
        """How many operations do something: all but views and reservations of memory."""
        return len(self.ops)

    def activations_read(self, counts: IntArray) -> FloatArray:
        """Elements of activations that each operation reads, [num_policies, num_ops]."""
        return self._amounts["activations_read"](counts)

    def constants_read(self, counts: IntArray) -> FloatArray:
        """Elements of parameters and buffers that each operation reads, [num_policies, num_ops]; 0 for layers."""
        return self._amounts["constants_read"](counts)

    def elements_written(self, counts: IntArray) -> FloatArray:
        """Elements that each operation writes, in place too, [num_policies, num_ops]."""
        return self._amounts["elements_written"](counts)

    def alive(self, counts: IntArray) -> FloatArray:
        """Elements of activation memory alive while each operation runs, [num_policies, num_ops]."""
        return self._amounts["alive"](counts)

    def activation_traffic(self, counts: IntArray) -> FloatArray:
        """Elements of activations read and written by all operations, [num_policies]."""
        return self._activation_traffic(counts)[:, 0]

    def other_traffic(self, counts: IntArray) -> FloatArray:
        """Elements read (constants too) and written by all operations that are not layers, [num_policies]."""
        return self._other_traffic(counts)[:, 0]


def take_inventory(model: nn.Module, space: SearchSpace, example_input: Tensor | tuple[Any, ...]) -> Inventory:
    """The inventory of the networks that policies of `space` leave of `model`, for one image of `example_input`.

    The model is not changed: copies of it run in eval mode, on shapes alone where the forward allows, else on its
    values. A forward that refuses a single image runs on the whole batch, whose amounts are divided by its size.

    Raises ValueError when the model does not run on the example, or where operations or amounts follow the kept
    channels in another way than linearly.
    """
    inputs = example_input if isinstance(example_input, tuple) else (example_input,)
    layers = {layer.parameter: layer.name for layer in space.layers}
    subject, dense = forwards.first_that_runs(
        model, inputs, lambda subject: record(forwards.copied(subject.module), subject.inputs, layers)
    )

    def of(policy: Policy) -> Recording:
        return record(extract(subject.module, space, policy), subject.inputs, layers)

    num_images = subject.batch_size
    full = _amounts(dense, num_images)
    slopes = {name: np.zeros((len(space.groups), len(values))) for name, values in full.items()}
    # Where single weights are removed, no tensor gets smaller.
    sliced = {unit for site in (*space.sites, *space.size_sites) for unit in np.unique(site.units).tolist()}
    for index, group in enumerate(space.groups):
        if int(space.offsets[index]) not in sliced:
            continue
        counts = space.sizes.copy()
        counts[index] = group.counts[0]
        found = of(space.select(counts, np.zeros(space.num_units)))
        _same_operations(dense, found, f"{group.name} keeps {counts[index]} of {group.size}")
        for name, values in _amounts(found, num_images).items():
            slopes[name][index] = (full[name] - values) / (group.size - counts[index])
    amounts = {name: Affine(full[name] - space.sizes @ slope, slope) for name, slope in slopes.items()}
    _check(space, of, dense, amounts, num_images)
    return Inventory(ops=dense.ops, layer_names=dense.layer_names, places=dense.places, amounts=amounts)


def _amounts(recording: Recording, num_images: int) -> dict[str, FloatArray]:
    """The amounts that grow linearly, per image; constants are read once for all images."""
    is_layer = np.array([bool(name) for name in recording.layer_names], dtype=np.bool_)
    return {
        "activations_read": recording.activations_read / num_images,
        "constants_read": np.where(is_layer, 0.0, recording.constants_read),
        "elements_written": recording.elements_written / num_images,
        "alive": recording.alive / num_images,
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


def _check(
    space: SearchSpace,
    of: Callable[[Policy], Recording],
    dense: Recording,
    amounts: Mapping[str, Affine],
    num_images: int,
) -> None:
    """Raises ValueError unless a network kept at random is what `amounts` say."""
    rng = np.random.default_rng(0)
    policy = space.select([rng.choice(group.counts) for group in space.groups], rng.random(space.num_units))
    recording = of(policy)
    _same_operations(dense, recording, "channels are kept at random")
    for name, found in _amounts(recording, num_images).items():
        told = amounts[name](space.counts(policy)[None])[0]
        wrong = np.flatnonzero(~np.isclose(told, found, rtol=1e-9, atol=1e-6))
        if len(wrong):
            index = int(wrong[0])
            raise ValueError(
                "memory, energy and latency need sizes that grow linearly with the channels kept, but for "
                f"{_at(dense, index)} {name.replace('_', ' ')} is {found[index]:,.6g} elements where "
                f"{told[index]:,.6g} follow; freeze what causes it (space.freeze), or set a budget in macs or params"
            )


def _at(recording: Recording, index: int) -> str:
    if index >= len(recording.ops):
        return "the end"
    return f"{recording.ops[index]} in {recording.places[index] or 'the forward'}"
