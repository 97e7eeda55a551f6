"""Gates on the widths of any network: a candidate keeps the most important channels of its group.

A channel that is gone is one that nobody reads: the weights of all layers that read it are multiplied by 0 there, those
of all others by 1. The candidates of a group differ by that mask alone, so one backward pass through the one network in
memory gives the gradients of all gates: the mask's own, summed over the channels that a candidate keeps. A block that
may be skipped has its last module's output multiplied by 1 or 0.

What mixes channels without weights (a LayerNorm over pruned channels) still sees those that are gone; in an extracted
network it does not.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from backends.looking import statistics_kept, without_gradients
from backends.macs import is_part_of
from compsearch.candidates import candidates_of
from compsearch.importance import LayerImportance
from compsearch.space import ZERO, BoolArray, FloatArray, IntArray, SearchSpace, Site


class WidthGates:
    """Implements `backends.gating.Gating` on a copy of `model`, which starts from its weights.

    `keep_ratios` are the candidate widths, 1 among them; `importance` says which channels a narrower one keeps.
    Raises ValueError for spaces of weights, and where a group's channels are read by no weight.
    """

    def __init__(
        self, *, model: nn.Module, space: SearchSpace, importance: LayerImportance, keep_ratios: Sequence[float]
    ) -> None:
        if space.sparse or not space.groups:
            raise ValueError(
                "supernet=width is for spaces of channels, but this one has none; use space=width with a network that "
                "has channels to prune, or supernet=operations with space=mbconv"
            )
        self.network = copy.deepcopy(model)
        self.candidates = candidates_of(space, keep_ratios)
        self._space = space
        self._group_of = torch.from_numpy(np.repeat(np.arange(len(space.groups)), space.sizes))
        self._rank = torch.from_numpy(_ranks(space, importance.scores()))
        weights = {layer.parameter for layer in space.layers}
        # Of a grouped convolution, dimension 1 is within a group; its channels are read by whoever reads its outputs.
        self._readers = {site.parameter: site for site in space.sites if site.parameter in weights and site.dim == 1}
        read = {unit for site in self._readers.values() for unit in np.unique(site.units).tolist()}
        for group, offset in zip(space.groups, space.offsets.tolist(), strict=False):
            if offset not in read:
                raise ValueError(
                    f"a width is gated where weights read its channels, but no weight reads those of {group.name!r}; "
                    f"freeze it: space.freeze=['{group.name}']"
                )
        for name, parameter in self.network.named_parameters():
            if name in self._readers and parameter.shape[1] != len(self._readers[name].units):
                raise ValueError(f"the model must be the one its space was traced from, but {name!r} has another shape")
        self._sites: dict[str, list[Site]] = {}
        for site in space.sites:
            self._sites.setdefault(site.parameter, []).append(site)
        self._units_on: dict[tuple[str, int, torch.device], Tensor] = {}
        #: What multiplies the output of each block's last module.
        self._block_gates: list[Tensor] = [torch.ones(()) for _ in space.blocks]
        modules = dict(self.network.named_modules())
        for index, block in enumerate(space.blocks):
            if [operation.name for operation in block.operations][1:] != [ZERO]:
                raise ValueError(f"supernet=width knows blocks that are kept or skipped, but {block.name!r} is neither")
            modules[block.operations[0].modules[-1]].register_forward_hook(self._gate(index))

    def logits(self, images: Tensor, path: IntArray) -> Tensor:
        """See `Gating`."""
        return self._run(images, path, self._kept(path).to(images))

    def logits_with_gates(
        self, images: Tensor, path: IntArray, wanted: BoolArray
    ) -> tuple[Tensor, Callable[[], FloatArray]]:
        """See `Gating`. All gates' gradients come with one pass, whichever are wanted."""
        mask = self._kept(path).to(images).requires_grad_()
        gates = [torch.tensor(float(index == 0), device=images.device) for index in self._operations(path)]
        gates = [gate.requires_grad_() for gate in gates]
        with without_gradients(self.network), statistics_kept(self.network):
            logits = self._run(images, path, mask, gates)

        def gradients() -> FloatArray:
            found = np.zeros(wanted.shape)
            assert mask.grad is not None, "the loss must have been propagated backwards"
            per_unit = mask.grad.double().cpu().numpy()
            for index, group in enumerate(self._space.groups):
                start = int(self._space.offsets[index])
                by_rank = np.zeros(group.size)
                by_rank[self._rank[start : start + group.size].numpy()] = per_unit[start : start + group.size]
                counts = self.candidates.values[index]
                found[index, counts > 0] = np.cumsum(by_rank)[counts[counts > 0] - 1]
            for index, gate in enumerate(gates):  # the skipped block gives nothing, so its gate moves nothing
                found[len(self._space.groups) + index, 0] = 0.0 if gate.grad is None else float(gate.grad)
            return np.where(wanted, found, 0.0)

        return logits, gradients

    def movable(self, path: IntArray) -> Mapping[str, Tensor | None]:
        """See `Gating`: entries that only kept channels have, of layers in blocks that are not skipped."""
        device = next(self.network.parameters()).device
        kept = torch.cat([self._kept(path), torch.ones(1, dtype=torch.bool)]).to(device)
        skipped = [
            module
            for block, index in zip(self._space.blocks, self._operations(path).tolist(), strict=True)
            if index
            for module in block.operations[0].modules
        ]
        found: dict[str, Tensor | None] = {}
        for name, parameter in self.network.named_parameters():
            if skipped and is_part_of(name, skipped):
                continue
            mask: Tensor | None = None
            for site in self._sites.get(name, []):
                shape = [1] * parameter.dim()
                shape[site.dim] = -1
                own = kept[self._units(site, device)].view(shape)
                mask = own if mask is None else mask & own
            found[name] = mask
        return found

    def _run(self, images: Tensor, path: IntArray, mask: Tensor, gates: Sequence[Tensor] | None = None) -> Tensor:
        padded = torch.cat([mask, mask.new_ones(1)])  # units of -1 are always there
        parameters = dict(self.network.named_parameters())
        changed = {}
        for name, site in self._readers.items():
            weight = parameters[name]
            changed[name] = weight * padded[self._units(site, mask.device)].view(1, -1, *[1] * (weight.dim() - 2))
        if gates is None:
            gates = [torch.tensor(float(index == 0), device=images.device) for index in self._operations(path)]
        self._block_gates = list(gates)
        logits: Tensor = functional_call(self.network, changed, (images,))
        return logits

    def _units(self, site: Site, device: torch.device) -> Tensor:
        """The units of a site's entries, brought to the device once."""
        key = (site.parameter, site.dim, device)
        if key not in self._units_on:
            self._units_on[key] = torch.from_numpy(site.units).to(device)
        return self._units_on[key]

    def _gate(self, index: int) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            return output * self._block_gates[index].to(output.dtype)

        return hook

    def _kept(self, path: IntArray) -> Tensor:
        """Which units stay, [num_units]."""
        counts = torch.from_numpy(self.candidates.choices(path)[: len(self._space.groups)])
        return self._rank < counts[self._group_of]

    def _operations(self, path: IntArray) -> IntArray:
        return self.candidates.choices(path)[len(self._space.groups) :]


def _ranks(space: SearchSpace, scores: FloatArray) -> IntArray:
    """Each unit's place among those of its group by falling importance, as `SearchSpace.select` takes them."""
    ranks = np.zeros(space.num_units, dtype=np.int64)
    for offset, group in zip(space.offsets.tolist(), space.groups, strict=False):
        order = np.argsort(-scores[offset : offset + group.size], kind="stable")
        ranks[offset + order] = np.arange(group.size)
    return ranks
