"""Which units matter: how important each is to each layer that a criterion looks at; higher is kept first.

A criterion is a function of the dense network, its space and whatever else it names (calibration images, a seed). Most
look at filters: the part of a layer's weight that makes a unit. What coupled channels have in several layers becomes
one score by `reduction`: sum (LeGR's released code), mean or max.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from backends.data import Split
from compsearch.importance import LayerImportance
from compsearch.space import FloatArray, SearchSpace, Site


def l1_inputs(model: nn.Module, space: SearchSpace, reduction: str = "sum") -> LayerImportance:
    """Sum of |W| over (out, kh, kw) of the weights that read a unit: AMC's choice of channels."""
    return _entries(_sites(space, dim=1), _parameters(model), torch.abs, space, reduction)


def l1(model: nn.Module, space: SearchSpace, reduction: str = "sum") -> LayerImportance:
    """Sum of |W| of the filters that make a unit (Li et al. 2017, arXiv:1608.08710)."""
    return _entries(_sites(space, dim=0), _parameters(model), torch.abs, space, reduction)


def squared_l2(model: nn.Module, space: SearchSpace, reduction: str = "sum") -> LayerImportance:
    """Squared L2 norm of the filters that make a unit: LeGR's norm, as its released code takes it."""
    return _entries(_sites(space, dim=0), _parameters(model), torch.square, space, reduction)


def l2(model: nn.Module, space: SearchSpace, reduction: str = "sum") -> LayerImportance:
    """L2 norm of the filters that make a unit."""
    return _entries(_sites(space, dim=0), _parameters(model), torch.square, space, reduction, finish=np.sqrt)


def bn_scale(model: nn.Module, space: SearchSpace, reduction: str = "sum") -> LayerImportance:
    """|γ| of the batch norms a unit goes through (Liu et al. 2017, arXiv:1708.06519).

    The layers are the norms, in the order in which the network holds them. Raises ValueError for a network with a group
    that no batch norm scales.
    """
    norms = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    sites = [site for site in space.sites if site.dim == 0 and site.parameter in norms]
    parameters = _parameters(model)
    sites = [site for site in sites if site.parameter in parameters]
    found = np.zeros(space.num_units, dtype=np.bool_)
    for site in sites:
        found[site.units[site.units >= 0]] = True
    for index, group in enumerate(space.groups):
        if not found[space.offsets[index] : space.offsets[index + 1]].all():
            raise ValueError(
                f"importance=bn_scale needs a batch norm on every group, but group {group.name!r} has none; choose "
                "another importance, or freeze the group (space.freeze)"
            )
    return _entries(sites, parameters, torch.abs, space, reduction)


def taylor(
    model: nn.Module,
    space: SearchSpace,
    calibration: Split,
    device: torch.device,
    batch_size: int,
    reduction: str = "sum",
) -> LayerImportance:
    """(Σ g·w)² over a unit's filters, averaged over batches: the first-order change of the loss without them.

    Molchanov et al. 2019, arXiv:1906.10771, eq. 8, on the `calibration` images (training images, not augmented) in eval
    mode; the average over batches of the square, as there. `model` is not changed.
    """
    sites = _sites(space, dim=0)
    tensors = _parameters(model)
    weights = {site.parameter: tensors[site.parameter].detach().clone().requires_grad_() for site in sites}
    total = np.zeros(0)
    num_batches = 0
    importance: LayerImportance | None = None
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        for images, labels in calibration.batches(batch_size):
            logits = torch.func.functional_call(model, weights, (images.to(device),))
            gradients = torch.autograd.grad(F.cross_entropy(logits, labels.to(device)), list(weights.values()))
            products = {
                name: gradient * weight.detach()
                for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
            }
            importance = _entries(sites, products, lambda product: product, space, reduction)
            total = importance.values**2 + (total if num_batches else 0.0)
            num_batches += 1
    finally:
        for module, mode in modes.items():
            module.training = mode
    if importance is None:
        raise ValueError("importance=taylor needs calibration images, but got none; raise calibration.num_images")
    return _with_values(importance, total / num_batches)


def geometric_median(model: nn.Module, space: SearchSpace, reduction: str = "sum") -> LayerImportance:
    """Sum of the L2 distances from a filter to all others of its layer: FPGM (He et al. 2019, arXiv:1811.00250).

    Filters near the geometric median, which the others can stand in for, go first.
    """
    parameters = _parameters(model)
    distances = {}
    for site in _sites(space, dim=0):
        filters = parameters[site.parameter].detach().double().flatten(1)
        distances[site.parameter] = torch.cdist(filters, filters).sum(1)
    return _entries(_sites(space, dim=0), distances, lambda distance: distance, space, reduction)


def random(model: nn.Module, space: SearchSpace, seed: int, reduction: str = "sum") -> LayerImportance:
    """U(0, 1): what any criterion has to beat."""
    importance = squared_l2(model, space, reduction)
    return _with_values(importance, np.random.default_rng(seed).random(len(importance.values)))


def _parameters(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters())


def _sites(space: SearchSpace, *, dim: int) -> list[Site]:
    """Dimension `dim` of every layer's weight, in forward order: 0 what makes units, 1 what reads them.

    Fixed filters (buffers) say nothing about units.
    """
    if space.sparse:
        raise ValueError("this importance is of channels, but the space is one of weights; use importance=magnitude")
    found = {site.parameter: site for site in space.sites if site.dim == dim and bool((site.units >= 0).any())}
    weights = dict.fromkeys(layer.parameter for layer in space.layers if layer.parameter in space.parameter_sizes)
    return [found[weight] for weight in weights if weight in found]


def _entries(
    sites: Sequence[Site],
    tensors: Mapping[str, Tensor],
    measure: Callable[[Tensor], Tensor],
    space: SearchSpace,
    reduction: str,
    finish: Callable[[FloatArray], FloatArray] = lambda values: values,
) -> LayerImportance:
    """One entry per layer and unit: `measure` summed over all of the unit's weights in that layer, then `finish`."""
    layer_index, units, values = [], [], []
    for index, site in enumerate(sites):
        tensor = measure(tensors[site.parameter].detach().double())
        rows = tensor.movedim(site.dim, 0).reshape(len(site.units), -1).sum(1).cpu().numpy()
        is_unit = site.units >= 0
        present = np.unique(site.units[is_unit])
        total: FloatArray = np.zeros(space.num_units)
        np.add.at(total, site.units[is_unit], rows[is_unit])
        layer_index.append(np.full(len(present), index))
        units.append(present)
        values.append(finish(total[present]))
    empty = [np.zeros(0, dtype=np.int64)]
    return LayerImportance(
        layers=tuple(site.parameter.removesuffix(".weight") for site in sites),
        layer_index=np.concatenate(layer_index or empty),
        units=np.concatenate(units or empty),
        values=np.concatenate(values or [np.zeros(0)]),
        num_units=space.num_units,
        reduction=reduction,
    )


def _with_values(importance: LayerImportance, values: FloatArray) -> LayerImportance:
    return LayerImportance(
        layers=importance.layers,
        layer_index=importance.layer_index,
        units=importance.units,
        values=values,
        num_units=importance.num_units,
        reduction=importance.reduction,
    )
