"""From labels to groups.

A *unit* is a class of labels that stay or go together. Units with the same signature (how often they occur in each
dimension of each parameter) form a *group*: whichever of them are kept, the cost is the same; and each dimension of
each parameter is made of whole groups, so that none is ever emptied while every group keeps a unit.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
from torch import nn

from backends.labels import Labels
from backends.surgery import named_tensors
from backends.tracer import LayerRecord, Tracer
from compsearch.space import Block, Frozen, Group, IntArray, Layer, SearchSpace, Site

Counts = Callable[[int, int], tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class DraftGroup:
    """A group with the class representatives of its units, in the order of the first producer's channels."""

    group: Group
    roots: IntArray


class Draft:
    """The groups of one traced network, some of which may still turn out to be frozen.

    `allowed(size, width)` says which counts a group may keep.
    """

    def __init__(self, module: nn.Module, batch_size: int, labels: Labels, tracer: Tracer, allowed: Counts) -> None:
        self.labels = labels
        self.frozen: list[Frozen] = []
        self.blocks: tuple[Block, ...] = ()
        #: Sizes that modules hold in attributes: (attribute path, index) -> labels.
        self.sizes = dict(tracer.sizes)
        self._module = module
        self._tracer = tracer
        self._batch_size = batch_size
        self._roots = labels.roots(np.arange(labels.size))
        #: Tensors that units are counted in: parameters, and buffers that layers use as weights.
        self._weights = {
            name: tensor.numel()
            for name, tensor in named_tensors(module)
            if isinstance(tensor, nn.Parameter) or name in tracer.layers
        }
        self._names = _layer_names([record.weight for record in tracer.layers.values()])
        self.layers = tuple(self._layer(record) for record in tracer.layers.values())
        reasons: dict[int, str] = {}
        for ids, reason in labels.frozen:
            for root in np.unique(self._roots[ids]).tolist():
                reasons.setdefault(root, reason)
        self.groups = self._group(reasons, allowed)
        self._report(reasons)

    def freeze(self, groups: Collection[DraftGroup], reason: str) -> None:
        """Takes groups out of the choice, for a reason."""
        for group in groups:
            self.frozen.append(Frozen(group.group.name, group.group.size * group.group.width, reason))
        gone = set(map(id, groups))
        self.groups = [group for group in self.groups if id(group) not in gone]

    def owners(self, roots: IntArray) -> list[DraftGroup]:
        """The groups that any of these class representatives belong to."""
        wanted = set(roots.tolist())
        return [group for group in self.groups if not wanted.isdisjoint(group.roots.tolist())]

    def emitted_by(self, layers: Collection[str]) -> list[DraftGroup]:
        """The groups that any of these layers' outputs belong to, depthwise and grouped convolutions included."""
        records = self._tracer.layers.values()
        outs = [self._roots[record.outs.numpy()] for record in records if self._names[record.weight] in layers]
        return self.owners(np.concatenate([np.zeros(0, dtype=np.int64), *outs]))

    def space(self, groups: Collection[DraftGroup] | None = None) -> SearchSpace:
        """The search space of `groups`, by default of all."""
        chosen = self.groups if groups is None else list(groups)
        unit_of = np.full(self.labels.size, -1, dtype=np.int64)
        unit_of[np.concatenate([np.zeros(0, dtype=np.int64), *(group.roots for group in chosen)])] = np.arange(
            sum(group.group.size for group in chosen)
        )
        sites = []
        for name, tensor in named_tensors(self._module):
            for dim in range(tensor.dim()):
                units = unit_of[self._roots[self.labels.axis(name, dim)]]
                if (units >= 0).any():
                    sites.append(Site(name, dim, units))
        sizes = {name: parameter.numel() for name, parameter in self._module.named_parameters()}
        held = [
            Site(attribute, index, unit_of[self._roots[labels.numpy()]])
            for (attribute, index), labels in self.sizes.items()
        ]
        return SearchSpace(
            groups=tuple(group.group for group in chosen),
            layers=self.layers,
            frozen=tuple(self.frozen),
            sites=tuple(sites),
            fingerprint=self._fingerprint(chosen),
            constant_macs=self._tracer.constant_macs / self._batch_size,
            parameter_sizes=sizes,
            size_sites=tuple(site for site in held if (site.units >= 0).any()),
            blocks=self.blocks,
        )

    def live(self, groups: Collection[DraftGroup]) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Which labels are class representatives of units of `groups`, [labels.size]."""
        live = np.zeros(self.labels.size, dtype=np.bool_)
        for group in groups:
            live[group.roots] = True
        return live

    def _fingerprint(self, groups: Collection[DraftGroup]) -> str:
        shapes = [(name, tuple(tensor.shape)) for name, tensor in self._module.named_parameters()]
        choices = [(group.group.name, group.group.size, group.group.counts) for group in groups]
        blocks = [(block.name, [(each.name, each.modules) for each in block.operations]) for block in self.blocks]
        # A space without blocks has the fingerprint it had before there were any.
        identity = (shapes, choices, blocks) if blocks else (shapes, choices)
        return hashlib.sha256(repr(identity).encode()).hexdigest()[:16]

    def _layer(self, record: LayerRecord) -> Layer:
        num_weights = self._weights[record.weight]
        macs = record.macs / self._batch_size
        return Layer(
            name=self._names[record.weight],
            parameter=record.weight,
            kind=record.kind,
            in_channels=record.in_channels,
            out_channels=record.out_channels,
            height=record.height,
            width=record.width,
            stride=record.stride,
            kernel_size=record.kernel_size,
            positions=macs / num_weights,
            macs=macs,
            num_weights=num_weights,
        )

    def _group(self, reasons: dict[int, str], allowed: Counts) -> list[DraftGroup]:
        emits: dict[int, list[str]] = defaultdict(list)
        reads: dict[int, list[str]] = defaultdict(list)
        first: dict[int, tuple[int, int]] = {}
        for order, record in enumerate(self._tracer.layers.values()):
            name = self._names[record.weight]
            if record.kind in ("conv", "linear"):
                for place, root in enumerate(self._roots[record.outs.numpy()].tolist()):
                    if root not in reasons:
                        first.setdefault(root, (order, place))
                        if emits[root][-1:] != [name]:
                            emits[root].append(name)
            for root in np.unique(self._roots[record.ins.numpy()]).tolist():
                reads[root].append(name)
        units = defaultdict(list)
        for root, signature in self._signatures(first).items():
            units[signature].append(root)
        ties: dict[int, list[str]] = defaultdict(list)
        for label, cause in self.labels.ties:
            ties[int(self._roots[label])].append(cause)
        used: Counter[str] = Counter()
        groups = []
        records = list(self._tracer.layers.values())
        for roots in sorted(units.values(), key=lambda roots: min(first[root] for root in roots)):
            roots.sort(key=lambda root: first[root])
            lead = roots[0]
            outs = self._roots[records[first[lead][0]].outs.numpy()]
            width = int((outs == lead).sum())
            name = emits[lead][0]
            used[name] += 1
            group = Group(
                name=name if used[name] == 1 else f"{name}.{used[name] - 1}",
                size=len(roots),
                width=width,
                counts=allowed(len(roots), width),
                producers=tuple(emits[lead]),
                consumers=tuple(reads[lead]),
                tied_by=tuple(dict.fromkeys(itertools.chain.from_iterable(ties[root] for root in roots))),
            )
            groups.append(DraftGroup(group, np.array(roots, dtype=np.int64)))
        return groups

    def _signatures(self, candidates: Collection[int]) -> dict[int, tuple[tuple[int, int], ...]]:
        """For each candidate root, how often it occurs in each dimension of each parameter."""
        eligible = np.zeros(self.labels.size, dtype=np.bool_)
        eligible[list(candidates)] = True
        found = []
        for place, (name, dim) in enumerate(
            (name, dim)
            for name, tensor in named_tensors(self._module)
            if name in self._weights
            for dim in range(tensor.dim())
        ):
            roots = self._roots[self.labels.axis(name, dim)]
            roots, times = np.unique(roots[eligible[roots]], return_counts=True)
            found.append(np.stack([roots, np.full_like(roots, place), times]))
        rows = np.concatenate([np.zeros((3, 0), dtype=np.int64), *found], axis=1)
        signatures: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for root, place, times in rows.T.tolist():
            signatures[root].append((place, times))
        return {root: tuple(signature) for root, signature in signatures.items()}

    def _report(self, reasons: dict[int, str]) -> None:
        """Lists the frozen channels of each layer that was the first to have them."""
        seen: set[int] = set()
        for record in self._tracer.layers.values():
            counts: Counter[str] = Counter()
            roots = self._roots[record.outs.numpy()].tolist()
            for root in roots:
                if root in reasons and root not in seen:
                    counts[reasons[root]] += 1
            seen.update(roots)
            self.frozen.extend(Frozen(self._names[record.weight], count, reason) for reason, count in counts.items())
        for name, channels in self._tracer.computed.items():
            self.frozen.append(Frozen(name, channels, "the forward computes its weight"))


def _layer_names(weights: list[str]) -> dict[str, str]:
    """Layers are called after their module; after the parameter where a module has several or is the root."""
    return {weight: weight.removesuffix(".weight") for weight in weights}
