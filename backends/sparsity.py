"""Sparse surgery: a network of the dense one's shape in which the weights that a policy removes are exactly zero."""

from __future__ import annotations

import contextlib
import copy
import functools
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from backends.magnitude_levels import entry_levels
from backends.surgery import Surgery, rebuild
from backends.weights import load_weights
from compsearch.importance import LayerImportance
from compsearch.space import Policy, SearchSpace


@dataclass(frozen=True)
class _Ranked:
    """The level of every entry of the sparse weights, by name, and what it was found for.

    `start` is the network to cut where that isn't the dense one; `versions` are those of the dense one's parameters.
    """

    space: str
    versions: tuple[int, ...]
    levels: Mapping[str, Tensor]
    start: nn.Module | None


class MagnitudeMasks:
    """Zeroes the smallest weights of each layer, single ones or blocks, as many as the policy says.

    `start` is a file with the weights to cut instead of the dense network's own: those that an earlier stage of pruning
    ended with. The results are dense tensors with plain names. A weight that is zero before the cut counts as kept
    where it is among the largest.
    """

    def __init__(self, *, start: str | None = None) -> None:
        self._start = start
        self._ranked: weakref.WeakKeyDictionary[nn.Module, _Ranked] = weakref.WeakKeyDictionary()

    def check(self, space: SearchSpace) -> None:
        """Raises ValueError unless `space` is one of weights."""
        if not space.sparse:
            raise ValueError(
                "surgery=magnitude zeroes single weights, but the space is one of channels; use surgery=channels, or "
                "space=fine_grained or space=blocks"
            )

    def __call__(self, model: nn.Module, space: SearchSpace, policy: Policy) -> nn.Module:
        """A copy of `model` in which what `policy` removes is zero; `model` is not changed and shares no memory.

        Raises ValueError when `policy` does not fit `space`, keeps other than a layer's largest weights, or `space` was
        made from another model.
        """
        space.check(policy)
        for name, units in policy.kept:
            if units[-1] != len(units) - 1:
                raise ValueError(
                    f"a policy of a sparse space must keep the largest weights, its first units, but for {name!r} it "
                    f"keeps {len(units)} of the first {units[-1] + 1}; use importance=magnitude"
                )
        ranked = self._rank(model, space)
        counts = {
            weight.parameter: int(count)
            for weight, count in zip(space.sparse, space.counts(policy)[[w.group for w in space.sparse]], strict=True)
        }

        def zero(name: str, tensor: Tensor) -> Tensor:
            if name not in counts:
                return tensor
            return tensor.masked_fill(ranked.levels[name].to(tensor.device) >= counts[name], 0.0)

        return rebuild(ranked.start or model, zero)

    def structure(self, model: nn.Module, space: SearchSpace, policy: Policy) -> nn.Module:
        """A copy of `model`, which any policy's weights fit. Raises ValueError when `policy` does not fit `space`."""
        space.check(policy)
        return copy.deepcopy(model)

    def typical(self, model: nn.Module, space: SearchSpace, keep_ratio: float) -> Policy:
        """The policy that keeps about `keep_ratio` of every group."""
        counts = [space.nearest_count(index, keep_ratio) for index in range(len(space.groups))]
        return space.select(counts, -np.arange(space.num_units, dtype=np.float64))

    @contextlib.contextmanager
    def held(self, network: nn.Module, space: SearchSpace) -> Iterator[None]:
        """Inside, entries of `network`'s sparse weights that are zero stay zero, whatever trains or changes it.

        Their gradients are zero, so that no optimiser moves them: weight decay of zero is zero, and momentum starts
        from nothing. A run that resumes from the middle finds the same zeros in the network it began with. Afterwards
        they are set to zero once more, for whatever assigned to them. Copies of `network` are not held.
        """
        parameters = dict(network.named_parameters())
        held = [parameters[weight.parameter] for weight in space.sparse]
        removed = [parameter.detach() == 0 for parameter in held]
        handles = [
            parameter.register_hook(functools.partial(_zeroed, gone))  # type: ignore[no-untyped-call]
            for parameter, gone in zip(held, removed, strict=True)
            if parameter.requires_grad
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            with torch.no_grad():
                for parameter, gone in zip(held, removed, strict=True):
                    parameter.masked_fill_(gone.to(parameter.device), 0.0)

    def levels(self, model: nn.Module, space: SearchSpace) -> Mapping[str, Tensor]:
        """The level of every entry of every sparse weight, by parameter name, each of its weight's shape and device."""
        return self._rank(model, space).levels

    def weights(self, model: nn.Module, space: SearchSpace) -> Mapping[str, Tensor]:
        """The sparse weights as they are before the cut, by parameter name."""
        parameters = dict((self._rank(model, space).start or model).named_parameters())
        return {weight.parameter: parameters[weight.parameter].detach() for weight in space.sparse}

    def _rank(self, model: nn.Module, space: SearchSpace) -> _Ranked:
        """Sorting a large network takes seconds, so it is done once for the weights that `model` has."""
        parameters = dict(model.named_parameters())
        # Torch counts changes in place: loading or training weights makes the order another.
        versions = tuple(parameter._version for parameter in parameters.values())
        known = self._ranked.get(model)
        if known is not None and (known.space, known.versions) == (space.fingerprint, versions):
            return known
        sizes = {name: parameter.numel() for name, parameter in parameters.items()}
        if sizes != dict(space.parameter_sizes):
            raise ValueError(
                "the model must be the one its space was made from, but their parameters differ: "
                f"{len(sizes)} with {sum(sizes.values())} elements here, {len(space.parameter_sizes)} with "
                f"{sum(space.parameter_sizes.values())} there"
            )
        start = None
        if self._start is not None:
            start = copy.deepcopy(model)
            load_weights(start, Path(self._start))
            parameters = dict(start.named_parameters())
        levels = {}
        for weight in space.sparse:
            parameter = parameters[weight.parameter]
            found = entry_levels(parameter, weight.block, space.groups[weight.group].size)
            levels[weight.parameter] = found.to(parameter.device)
        self._ranked[model] = _Ranked(space.fingerprint, versions, levels, start)
        return self._ranked[model]


def _zeroed(gone: Tensor, gradient: Tensor) -> Tensor:
    return gradient.masked_fill(gone.to(gradient.device), 0.0)


def magnitude(model: nn.Module, space: SearchSpace, surgery: Surgery) -> LayerImportance:
    """Mean |W| of the weights of a unit, never more than of the unit before; layers are those of the sparse weights.

    Raises ValueError for a space of channels.
    """
    if not isinstance(surgery, MagnitudeMasks) or not space.sparse:
        raise ValueError(
            "importance=magnitude is of single weights, but the space is one of channels; use importance=l1 or another"
        )
    levels, weights = surgery.levels(model, space), surgery.weights(model, space)
    values = []
    for weight in space.sparse:
        size = space.groups[weight.group].size
        level = levels[weight.parameter].flatten().cpu().numpy()
        entries = weights[weight.parameter].flatten().abs().double().cpu().numpy()
        means = np.bincount(level, weights=entries, minlength=size) / np.bincount(level, minlength=size)
        values.append(np.minimum.accumulate(means))  # equal weights' means differ in the last digit
    sizes = [len(each) for each in values]
    units = [space.offsets[weight.group] + np.arange(size) for weight, size in zip(space.sparse, sizes, strict=True)]
    return LayerImportance(
        layers=tuple(space.groups[weight.group].name for weight in space.sparse),
        layer_index=np.repeat(np.arange(len(sizes)), sizes),
        units=np.concatenate(units),
        values=np.concatenate(values),
        num_units=space.num_units,
        reduction="sum",
    )
