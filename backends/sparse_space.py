"""Search spaces of single weights: how dense each layer stays, rather than which channels.

AMC's fine-grained mode (He et al., ECCV 2018, arXiv:1802.03494, section 3.1: the action is a layer's density, the
smallest weights go), and the same with blocks of weights, which runtimes can skip. A group is one layer, its units are
quantiles of magnitude, so that a group's keep_ratio *is* the layer's density and every searcher works as it is.
"""

from __future__ import annotations

import fnmatch
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from backends.groups import trace_layers
from backends.magnitude_levels import check_block, kept_entries, num_levels_of
from compsearch.space import Frozen, Group, SearchSpace, SparseWeight


def sparse_space(
    model: nn.Module,
    example_input: Tensor | tuple[Any, ...],
    *,
    block: Sequence[int],
    num_levels: int,
    min_keep_ratio: float,
    freeze: Sequence[str] = (),
    at_most: Mapping[str, int] | None = None,
) -> SearchSpace:
    """The densities of every convolution and linear layer of `model`, found by running a copy of it once.

    A unit is one of `num_levels` quantiles of a layer's blocks, fewer where it has fewer blocks. `block` is [rows,
    columns] of the weight seen as [outputs, all else]; [1, 1] for single weights. Where it doesn't divide a weight's
    shape, the blocks at the edge are smaller: as if the weight were padded, except that padding is never counted.
    Quantiles are taken among blocks of one size, so that a policy keeps exactly as many weights as its cost says.

    `min_keep_ratio` is the lowest density of a layer, `freeze` are fnmatch patterns of layers to leave dense. `at_most`
    are the most units a layer may keep, by its name: what an earlier stage of pruning has left. The space's fingerprint
    does not depend on it. Biases and norms always stay.

    Raises ValueError for options out of range, a pattern or name without a layer, and a model that does not run.
    """
    shape = check_block(block, "space.block")
    if num_levels < 2:
        raise ValueError(f"`space.num_levels >= 2` must hold, but got {num_levels=}")
    if not 0 < min_keep_ratio <= 1:
        raise ValueError(f"`0 < space.min_keep_ratio <= 1` must hold, but got {min_keep_ratio=}")
    traced = trace_layers(model, example_input)
    parameters = dict(model.named_parameters())
    layers = [layer for layer in traced.layers if layer.parameter in parameters]
    _refuse_unknown([*freeze, *(at_most or {})], [layer.name for layer in layers])
    groups: list[Group] = []
    sparse: list[SparseWeight] = []
    frozen: list[Frozen] = []
    choices = []
    for layer in layers:
        weight_shape = tuple(parameters[layer.parameter].shape)
        size = num_levels_of(weight_shape, shape, num_levels)
        counts = range(max(1, math.ceil(size * min_keep_ratio - 1e-9)), size + 1)
        if any(fnmatch.fnmatchcase(layer.name, pattern) for pattern in freeze):
            frozen.append(Frozen(layer.name, layer.num_weights, "frozen by the space's freeze option"))
        elif len(counts) == 1:
            frozen.append(Frozen(layer.name, layer.num_weights, f"no lower density is allowed ({min_keep_ratio=})"))
        else:
            choices.append((layer.name, weight_shape, size, counts[0]))
            sparse.append(SparseWeight(layer.parameter, len(groups), shape, kept_entries(weight_shape, shape, size)))
            offered = tuple(count for count in counts if count <= (at_most or {}).get(layer.name, size))
            groups.append(Group(layer.name, size, 1, offered or (counts[0],), (layer.name,), ()))
    described = [(name, tuple(parameter.shape)) for name, parameter in parameters.items()]
    return SearchSpace(
        groups=tuple(groups),
        layers=traced.layers,
        frozen=tuple(frozen),
        sites=(),
        fingerprint=hashlib.sha256(repr((described, shape, choices)).encode()).hexdigest()[:16],
        constant_macs=traced.constant_macs,
        parameter_sizes=traced.parameter_sizes,
        sparse=tuple(sparse),
    )


def _refuse_unknown(patterns: Sequence[str], names: Sequence[str]) -> None:
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise ValueError(
                "a pattern of the space's freeze or at_most option must match a layer, but got "
                f"{pattern!r}; names are like {', '.join(names[:5])}"
            )
