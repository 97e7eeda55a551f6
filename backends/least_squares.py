"""Refitting layers to the dense network's outputs by least squares, from second moments collected once.

After channels are gone each layer that read them gets the weights that reproduce the dense outputs best from the
inputs it still has (He et al. 2017, arXiv:1707.06168, section 3.1; AMC does so before it scores, He et al. 2018,
arXiv:1802.03494). Differs from AMC's code: 3×3 convolutions too, a ridge that pulls towards the weights a layer had, an
intercept, and no pass over images per policy.
"""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from backends.data import Split
from backends.fusion import LayerStep, make_plan, norm_at
from backends.gram import (
    Moments,
    RefittedLayer,
    collect_moments,
    feature_indices,
    feature_size,
    is_refitted,
    refitted_at,
    weight_from_rows,
    weight_rows,
)
from backends.skipping import is_gone, skipped_branches
from compsearch.space import BoolArray, IntArray, Policy, SearchSpace

log = logging.getLogger(__name__)


def ridge_solver(gram: Tensor, ridge: float) -> Callable[[Tensor], Tensor]:
    """Solves for ``(gram + ridge * mean(diag(gram)) * I)⁻¹ cross``, in float64, for any number of cross [..., K, O].

    `gram` is a matrix or a batch of them [..., K, K]. Where one isn't positive definite in spite of the ridge (all
    zero, or not finite) the solution is zero.
    """
    gram = gram.to(torch.float64, copy=True)
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    diagonal.add_(ridge * diagonal.mean(-1, keepdim=True))
    factor, info = torch.linalg.cholesky_ex(gram)
    is_solved = (info == 0)[..., None, None]

    def solve(cross: Tensor) -> Tensor:
        solution = torch.cholesky_solve(cross.to(torch.float64), factor)
        return torch.where(is_solved, solution, torch.zeros_like(solution))

    return solve


def wide_ridge_solver(features: Tensor, ridge: float) -> Callable[[Tensor], Tensor]:
    """`ridge_solver` for ``gram = featuresᵀ features`` with fewer samples than features, `features` [..., M, K].

    By the matrix inversion lemma, ``(λI + BᵀB)⁻¹ = (I - Bᵀ(λI + BBᵀ)⁻¹B) / λ``: a problem of M unknowns instead of K.
    """
    features = features.to(torch.float64)
    ridge = max(ridge, 1e-9)  # λ divides, and without one the smaller problem has no unique answer either
    strength = ridge * features.square().sum((-2, -1), keepdim=True) / features.shape[-1]
    small = features @ features.mT + strength * torch.eye(
        features.shape[-2], dtype=torch.float64, device=features.device
    )
    factor, info = torch.linalg.cholesky_ex(small)
    is_solved = (info == 0)[..., None, None] & (strength > 0)

    def solve(cross: Tensor) -> Tensor:
        cross = cross.to(torch.float64)
        solution = (cross - features.mT @ torch.cholesky_solve(features @ cross, factor)) / strength
        return torch.where(is_solved, solution, torch.zeros_like(solution))

    return solve


def refuse_sparse(space: SearchSpace) -> None:
    """Raises ValueError for a space of weights: every layer still reads all its inputs, and a refit fills the zeros."""
    if space.sparse:
        raise ValueError(
            "least squares refits what reads removed channels, but the space is one of weights; use recover=bn, sgd or "
            "none, and the same for recover@finalist.recover"
        )


def shift_output(layer: RefittedLayer, norm: _BatchNorm | None, by: Tensor) -> None:
    """Adds `by` [out_channels] to what `layer` gives to what follows it: to its bias, or inside the norm after it."""
    held = layer.bias if norm is None else norm.running_mean
    assert held is not None
    held.add_(by.to(held.dtype), alpha=1 if norm is None else -1)


def followers(model: nn.Module) -> dict[str, str]:
    """The batch norm that alone reads a layer's output, by the layer's name, where the code shows it."""
    plan = make_plan(copy.deepcopy(model).eval())
    steps = [] if plan is None else [step for step in plan.steps if isinstance(step, LayerStep)]
    layers, norms = [step.layer for step in steps], [step.norm for step in steps]
    return {
        step.layer: step.norm
        for step in steps
        if step.norm is not None and layers.count(step.layer) == 1 and norms.count(step.norm) == 1
    }


@dataclass(frozen=True)
class _Consumer:
    """A layer that reads prunable channels: which unit each of its input and output entries is, -1 for none."""

    name: str
    norm: str | None
    inputs: IntArray
    outputs: IntArray


class LeastSquaresRecovery:
    """Refits every layer that lost inputs to the dense network's outputs on the dense network's remaining inputs.

    The moments of the `calibration` images are collected when the first policy is recovered; after that a policy costs
    one small solve per layer. `ridge` is relative to the mean second moment of the layer's features.

    Layers that stay as they were cut are listed in `left_out` with the reason: grouped convolutions, layers that share
    their weight, and the widest ones when all moments together would take more than `max_gram_gib`.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        space: SearchSpace,
        calibration: Split,
        device: torch.device,
        seed: int,
        positions_per_image: int,
        ridge: float,
        batch_size: int,
        max_gram_gib: float,
    ) -> None:
        if ridge < 0 or positions_per_image < 1 or max_gram_gib <= 0:
            raise ValueError(
                "`ridge >= 0`, `positions_per_image >= 1` and `max_gram_gib > 0` must hold for least squares, but got "
                f"{ridge=}, {positions_per_image=}, {max_gram_gib=}"
            )
        refuse_sparse(space)
        self._model = model
        self._space = space
        self._calibration = calibration
        self._device = device
        self._seed = seed
        self._positions_per_image = positions_per_image
        self._ridge = ridge
        self._batch_size = batch_size
        found, left_out = _consumers(model, space)
        self._consumers, too_wide = _within_memory(model, found, max_gram_gib)
        self.left_out: Mapping[str, str] = {**left_out, **too_wide}
        if self.left_out:
            listed = "; ".join(f"{name} ({why})" for name, why in list(self.left_out.items())[:5])
            more = f"; and {len(self.left_out) - 5} more" if len(self.left_out) > 5 else ""
            log.info("least squares leaves as cut: %s%s", listed, more)

    def __call__(self, network: nn.Module, policy: Policy) -> None:
        """Changes the weights, and biases or running means, of the layers that lost inputs."""
        keep = np.append(self._space.keep_mask(policy), True)
        skipped = skipped_branches(self._space, policy)
        with torch.no_grad():
            for consumer in self._consumers:
                if is_gone(consumer.name, skipped):
                    continue
                kept_inputs = keep[consumer.inputs]
                if not kept_inputs.all():
                    self._refit(consumer, network, kept_inputs, keep[consumer.outputs])

    @functools.cached_property
    def moments(self) -> Mapping[str, Moments]:
        """Of the dense network's inputs, by layer."""
        log.info("least squares: collecting moments of %d layers", len(self._consumers))
        return collect_moments(
            self._model,
            [consumer.name for consumer in self._consumers],
            self._calibration,
            positions_per_image=self._positions_per_image,
            batch_size=self._batch_size,
            seed=self._seed,
            device=self._device,
        )

    def _refit(self, consumer: _Consumer, network: nn.Module, kept_inputs: BoolArray, kept_outputs: BoolArray) -> None:
        moments = self.moments[consumer.name]
        dense, layer = refitted_at(self._model, consumer.name), refitted_at(network, consumer.name)
        norm = norm_at(network, consumer.norm)
        has_intercept = norm is not None or layer.bias is not None
        channels = [torch.from_numpy(np.flatnonzero(kept)).to(self._device) for kept in (kept_inputs, ~kept_inputs)]
        kept, lost = (feature_indices(dense, part) for part in channels)
        outputs = torch.from_numpy(np.flatnonzero(kept_outputs)).to(self._device)
        # [features lost, outputs]: what the kept inputs have to make up for
        lost_rows = weight_rows(dense, dense.weight.detach()).squeeze(0)[outputs][:, lost].T
        # The second moments' rows are symmetric to their columns: whole rows are quicker to pick.
        second = moments.second[kept]
        gram, cross = second[:, kept], second[:, lost]
        mean_kept, mean_lost = moments.mean[kept], moments.mean[lost]
        if has_intercept:
            gram = gram.addr(mean_kept, mean_kept, alpha=-1)
            cross = cross.addr(mean_kept, mean_lost, alpha=-1)
        change = ridge_solver(gram, self._ridge)(cross @ lost_rows).float()  # [features kept, outputs]
        layer.weight += weight_from_rows(layer, change.T[None]).to(layer.weight.dtype)
        if has_intercept:
            shift_output(layer, norm, mean_lost @ lost_rows - mean_kept @ change)


def _consumers(model: nn.Module, space: SearchSpace) -> tuple[list[_Consumer], dict[str, str]]:
    """The layers of `space` that read prunable channels, and those of them that can't be refitted, with the reason."""
    units = {(site.parameter, site.dim): site.units for site in space.sites}
    sharing = [id(module.weight) for module in model.modules() if isinstance(getattr(module, "weight", None), Tensor)]
    norms = followers(model)
    consumers: list[_Consumer] = []
    left_out: dict[str, str] = {}
    for parameter in dict.fromkeys(layer.parameter for layer in space.layers):
        inputs = units.get((parameter, 1))
        if inputs is None:
            continue
        name, _, attribute = parameter.rpartition(".")
        layer = model.get_submodule(name)
        if attribute != "weight" or not is_refitted(layer):
            left_out[name] = "not a 2-d convolution or linear layer"
        elif getattr(layer, "groups", 1) > 1:
            left_out[name] = "grouped convolution"
        elif sharing.count(id(layer.weight)) > 1:
            left_out[name] = "shares its weight"
        else:
            outputs = units.get((parameter, 0), np.full(len(layer.weight), -1))
            consumers.append(_Consumer(name, norms.get(name), inputs, outputs))
    return consumers, left_out


def _within_memory(
    model: nn.Module, consumers: list[_Consumer], max_gram_gib: float
) -> tuple[list[_Consumer], dict[str, str]]:
    """As many of the consumers as fit, narrow ones first, in their own order; the others with the reason."""
    sizes = {consumer.name: 4 * (feature_size(refitted_at(model, consumer.name)) + 1) ** 2 for consumer in consumers}
    left = max_gram_gib * 2**30
    too_wide: dict[str, str] = {}
    for name, size in sorted(sizes.items(), key=lambda item: item[1]):
        left -= size
        if left < 0:
            too_wide[name] = f"its moments take {size / 2**30:.2f} GiB of {max_gram_gib=:g}"
    return [consumer for consumer in consumers if consumer.name not in too_wide], too_wide
