"""Least squares layer by layer in forward order, each on what the already compressed network gives it.

`LeastSquaresRecovery` refits layers to the dense network's inputs, which a compressed network no longer has: errors add
up along depth. Here the calibration images run through the network once, and each layer is refitted on its actual
inputs just before it runs (He et al. 2017, arXiv:1707.06168, section 3.2). Where a sum follows the layer, as at the end
of a residual branch, the target is the dense sum less the actual other summand, so that a branch also makes up for what
the identity lost; He et al. do so for ResNets by hand, here the traced code shows it.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from backends.data import Split
from backends.fast_inference import folded, norm_affine
from backends.fusion import Activation, LayerStep, Plan, make_plan, norm_at
from backends.gram import (
    Pixels,
    RefittedLayer,
    feature_size,
    features_at,
    features_of,
    is_refitted,
    num_positions,
    outputs_at,
    pixels_at,
    refitted_at,
    sample_positions,
    weight_from_rows,
    weight_rows,
)
from backends.least_squares import refuse_sparse, ridge_solver, shift_output, wide_ridge_solver
from backends.products import moments_with
from backends.skipping import is_gone, skipped_branches
from backends.stepwise_forward import StepwiseForward
from backends.workers import Workers, on_one_core
from compsearch.space import BoolArray, Policy, SearchSpace

log = logging.getLogger(__name__)

#: Features that a layer may have for its system to be solved on one core: a few milliseconds at most.
_SMALL = 1024
#: Batches are added up in this many parts, whatever the number of workers, so that sums don't depend on it.
_PARTS = 8


@dataclass(frozen=True)
class _Target:
    """What the dense network has at sampled positions of a layer, before its activation; one entry per batch.

    `positions` are [B, P]; `outputs` are [B * P, out_channels], after the norm and addition that follow in the plan.
    """

    positions: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


class SequentialLeastSquaresRecovery:
    """Refits every convolution and linear layer in forward order, on `calibration` images.

    The first policy also pays for a pass of the dense network, of which the outputs at `positions_per_image` sampled
    positions per layer are kept. Every policy costs a pass of its own network with a solve before each layer. `ridge`
    is relative to the mean second moment of the layer's features, and pulls towards the weights the layer has. Then the
    layer is refitted `rectifications` times through the activation that follows it. All images are in the network at
    once; fewer are used, which is logged, where their activations would exceed `max_gib`.

    Layers left as they were cut are in `left_out` with the reason, once the dense pass is done. Where torch.fx can't
    trace the network, each layer is refitted to its own dense outputs, without the sum that follows.
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
        rectifications: int,
        batch_size: int,
        max_gib: float,
        num_workers: int | None = None,
    ) -> None:
        if ridge < 0 or positions_per_image < 1 or rectifications < 0 or max_gib <= 0:
            raise ValueError(
                "`ridge >= 0`, `positions_per_image >= 1`, `rectifications >= 0` and `max_gib > 0` must hold for "
                f"sequential least squares, but got {ridge=}, {positions_per_image=}, {rectifications=}, {max_gib=}"
            )
        refuse_sparse(space)
        self._model = model
        self._space = space
        self._calibration = calibration
        self._device = device
        self._seed = seed
        self._positions_per_image = positions_per_image
        self._ridge = ridge
        self._rectifications = rectifications
        self._batch_size = batch_size
        self._max_bytes = max_gib * 2**30
        self._workers = Workers(1 if device.type == "cuda" else num_workers)
        self._output_units = {site.parameter: site.units for site in space.sites if site.dim == 0}
        self.left_out: dict[str, str] = {}
        self._pixels: dict[tuple[Any, ...], Pixels] = {}  # by layer and batch, whatever its channels

    def __call__(self, network: nn.Module, policy: Policy) -> None:
        """Changes the weights, and biases or running means, of every refitted layer."""
        keep = np.append(self._space.keep_mask(policy), True)
        skipped = skipped_branches(self._space, policy)
        targets = {name: target for name, target in self._targets.items() if not is_gone(name, skipped)}
        with torch.no_grad(), self._solving():
            if self._plan is None:
                self._recover_with_hooks(network, targets, keep)
                return
            # Its own: a plan holds the numbers in the code that it is made from, such as sizes that surgery sets.
            plan = make_plan(network)
            assert plan is not None  # what the dense network's code is, but for sizes and skipped blocks
            # A target is what one kind of step gives; where another is left of it, the layer stays as it was cut.
            kinds = {step.layer: _kind(step) for step in self._plan.steps if isinstance(step, LayerStep)}
            forward = StepwiseForward(network, plan, self._batches, self._workers)
            for step, unread in zip(plan.steps, plan.last_read, strict=True):
                if isinstance(step, LayerStep) and step.layer in targets and _kind(step) == kinds[step.layer]:
                    inputs = [values[step.input] for values in forward.values]
                    others = None if step.other is None else [values[step.other] for values in forward.values]
                    self._refit(network, step, inputs, others, keep)
                forward.advance(step, unread)

    def _solving(self) -> AbstractContextManager[None]:
        """Small systems are solved on one core: see `on_one_core`."""
        sizes = [feature_size(refitted_at(self._model, name)) for name in self._targets]
        is_small = self._plan is not None and max(sizes, default=0) <= _SMALL
        return on_one_core() if is_small else contextlib.nullcontext()

    @functools.cached_property
    def _plan(self) -> Plan | None:
        return make_plan(copy.deepcopy(self._model).eval())

    @functools.cached_property
    def _batches(self) -> list[Tensor]:
        """The calibration images that are used, on the device, channels last."""
        images = torch.cat([images for images, _ in self._calibration.batches(self._batch_size)])
        room = int(self._max_bytes / _bytes_per_image(self._model, images[:2].to(self._device)))
        if room < len(images):
            log.info("sequential least squares: %d of %d images fit in max_gib", max(room, 1), len(images))
        used = images[: max(room, 1)].to(self._device, memory_format=torch.channels_last)
        return list(torch.split(used, self._batch_size))

    @functools.cached_property
    def _targets(self) -> Mapping[str, _Target]:
        """By layer, from one pass of the dense network."""
        log.info("sequential least squares: reading the dense network's outputs")
        dense = copy.deepcopy(self._model).to(self._device).eval()
        self._check_layers(dense)
        generator = torch.Generator().manual_seed(self._seed)
        with torch.no_grad():
            return (
                self._plain_targets(dense, generator) if self._plan is None else self._fused_targets(dense, generator)
            )

    def _check_layers(self, dense: nn.Module) -> None:
        """Puts layers that can't be refitted into `left_out`."""
        layers = {name: module for name, module in dense.named_modules() if is_refitted(module)}
        weights = [id(layer.weight) for layer in layers.values()]
        for name, layer in layers.items():
            groups = getattr(layer, "groups", 1)
            if weights.count(id(layer.weight)) > 1:
                self.left_out[name] = "shares its weight"
            elif 4 * groups * _PARTS * (feature_size(layer) + 1) ** 2 > self._max_bytes:
                self.left_out[name] = f"its {feature_size(layer)} features take more than max_gib"
        steps = [] if self._plan is None else [step for step in self._plan.steps if isinstance(step, LayerStep)]
        for name, count in Counter(step.layer for step in steps).items():
            if count > 1:
                self.left_out[name] = "runs several times"
        norms = Counter(step.norm for step in steps)
        for step in steps:
            if step.norm is not None and norms[step.norm] > 1:
                self.left_out[step.layer] = "its norm runs several times"

    def _refitted(self, dense: nn.Module) -> dict[str, RefittedLayer]:
        return {
            name: module for name, module in dense.named_modules() if is_refitted(module) and name not in self.left_out
        }

    def _fused_targets(self, dense: nn.Module, generator: torch.Generator) -> dict[str, _Target]:
        assert self._plan is not None
        targets: dict[str, _Target] = {}
        layers = self._refitted(dense)
        forward = StepwiseForward(dense, self._plan, self._batches, self._workers)
        for step, unread in zip(self._plan.steps, self._plan.last_read, strict=True):
            if not isinstance(step, LayerStep) or step.layer not in layers:
                forward.advance(step, unread)
                continue
            others = [] if step.other is None else [values[step.other] for values in forward.values]
            forward.advance(dataclasses.replace(step, activation=None), unread)
            outputs = [values[step.output] for values in forward.values]
            if any(other.shape != output.shape for other, output in zip(others, outputs, strict=bool(others))):
                self.left_out[step.layer] = "what is added to it is broadcast"
            else:
                targets[step.layer] = self._sampled(layers[step.layer], outputs, generator)
            if step.activation is not None:
                for values in forward.values:
                    values[step.output] = step.activation(values[step.output])
        return targets

    def _plain_targets(self, dense: nn.Module, generator: torch.Generator) -> dict[str, _Target]:
        targets: dict[str, _Target] = {}

        def hook(name: str, layer: RefittedLayer, args: tuple[Tensor, ...], output: Tensor) -> None:
            if name in targets:
                self.left_out[name] = "runs several times"
            targets[name] = self._sampled(layer, [output], generator)

        for name, layer in self._refitted(dense).items():
            layer.register_forward_hook(functools.partial(hook, name))
        dense(torch.cat(self._batches))
        return {name: target for name, target in targets.items() if name not in self.left_out}

    def _recover_with_hooks(self, network: nn.Module, layers: Iterable[str], keep: BoolArray) -> None:
        def hook(name: str, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
            self._refit(network, LayerStep(name, 0, 0), list(args), None, keep)

        handles = [
            network.get_submodule(name).register_forward_pre_hook(functools.partial(hook, name)) for name in layers
        ]
        try:
            network(torch.cat(self._batches))
        finally:
            for handle in handles:
                handle.remove()

    def _sampled(self, layer: RefittedLayer, outputs: Sequence[Tensor], generator: torch.Generator) -> _Target:
        positions = [
            sample_positions(len(batch), num_positions(layer, batch.shape), self._positions_per_image, generator)
            for batch in outputs
        ]
        moved = tuple(sampled.to(self._device) for sampled in positions)
        return _Target(moved, tuple(outputs_at(layer, *pair) for pair in zip(outputs, moved, strict=True)))

    def _refit(
        self,
        network: nn.Module,
        step: LayerStep,
        inputs: Sequence[Tensor],
        others: Sequence[Tensor] | None,
        keep: BoolArray,
    ) -> None:
        """Changes the layer so that the step, on these inputs and other summands, comes nearest to its target."""
        layer, target = refitted_at(network, step.layer), self._targets[step.layer]
        norm = norm_at(network, step.norm)
        units = self._output_units.get(f"{step.layer}.weight")
        kept = None if units is None else torch.from_numpy(np.flatnonzero(keep[units])).to(self._device)

        def sample(index: int) -> _Sample:
            positions, wanted = target.positions[index], target.outputs[index]
            return _Sample(
                F.pad(self._features(step.layer, layer, index, inputs[index]).transpose(0, 1), (0, 1), value=1.0),
                wanted if kept is None else wanted[:, kept],
                None if others is None else outputs_at(layer, others[index], positions),
            )

        rectifications = self._rectifications if step.activation is not None else 0
        num_samples = sum(positions.numel() for positions in target.positions)
        is_wide = num_samples < feature_size(layer)
        # Read several times, or all is done with it at once, while it is in the processor's cache.
        read = functools.cache(sample) if is_wide or rectifications else sample
        batches = range(len(inputs))

        def mean_products(missing_of: _Missing) -> Tensor:
            def product(index: int) -> Tensor:
                one = read(index)
                return one.features.mT @ missing_of(one)

            return self._sum(product, batches) / num_samples

        as_cut = _Missing(layer, norm, None)
        has_intercept = norm is not None or layer.bias is not None
        if is_wide:
            # Fewer samples than features, as deep layers of small images have: solved among the samples.
            stacked = torch.cat([one.features for one in self._workers.map(read, batches)], dim=1)[..., :-1]
            mean = stacked.mean(1, keepdim=True)
            centred = stacked - mean if has_intercept else stacked
            solve = wide_ridge_solver(centred / math.sqrt(num_samples), self._ridge)
            products = mean_products(as_cut)
        else:

            def moments_and_products(index: int) -> Tensor:
                one = read(index)
                return moments_with(one.features, as_cut(one))

            sums = self._sum(moments_and_products, batches) / num_samples
            moments, products = sums[..., : sums.shape[1]], sums[..., sums.shape[1] :]
            mean, gram = moments[:, -1:, :-1], moments[:, :-1, :-1]
            solve = ridge_solver(gram - mean.mT @ mean if has_intercept else gram, self._ridge)
        for rectified in range(rectifications + 1):
            if rectified:
                products = mean_products(_Missing(layer, norm, step.activation))
            missing, cross = products[:, -1:], products[:, :-1]
            if has_intercept:
                change = solve(cross - mean.mT @ missing).to(cross.dtype)
                shift_output(layer, norm, (missing - mean @ change).flatten())
            else:
                change = solve(cross).to(cross.dtype)
            layer.weight += weight_from_rows(layer, change.mT).to(layer.weight.dtype)

    def _features(self, name: str, layer: RefittedLayer, index: int, inputs: Tensor) -> Tensor:
        """What `layer`, called `name`, reads of batch `index` at its target's positions."""
        positions = self._targets[name].positions[index]
        if isinstance(layer, nn.Linear):
            return features_at(layer, inputs, positions)
        # Another policy may have another operation in this place.
        key = (name, index, inputs.shape[2:], layer.kernel_size, layer.stride, layer.padding, layer.dilation)
        if key not in self._pixels:
            self._pixels[key] = pixels_at(layer, inputs.shape, positions)
        return features_of(layer, inputs, self._pixels[key])

    def _sum(self, term: Callable[[int], Tensor], batches: Sequence[int]) -> Tensor:
        """The sum of a `term` per batch."""

        def total(part: Sequence[int]) -> Tensor:
            return functools.reduce(torch.add, map(term, part))

        parts = [batches[start::_PARTS] for start in range(min(_PARTS, len(batches)))]
        return functools.reduce(torch.add, self._workers.map(total, parts))


def _kind(step: LayerStep) -> tuple[str | None, bool, Activation | None]:
    """What a step does to the output of its layer."""
    return step.norm, step.other is not None, step.activation


@dataclass(frozen=True)
class _Sample:
    """A layer's situation in one batch: `features` [groups, samples, features + 1], the last all ones, what the dense
    network has there (`wanted`), and what is added to the layer (`other`), [samples, out_channels].
    """

    features: Tensor
    wanted: Tensor
    other: Tensor | None


class _Missing:
    """What the layer's output lacks in a sample: [groups, samples, outputs of a group], in units of before the norm.

    With `activation`, outputs in its flat part lack nothing where the wanted ones are there too, and are otherwise
    wanted no farther than its edge (Zhang et al. 2016, arXiv:1505.06798, section 3.2, fit through the ReLU likewise).
    """

    def __init__(self, layer: RefittedLayer, norm: _BatchNorm | None, activation: Activation | None) -> None:
        weight, bias = folded(layer, norm)
        rows = weight_rows(layer, weight)  # [groups, outputs, features]
        constant = torch.zeros_like(rows[:, :, :1]) if bias is None else bias.reshape(len(rows), -1, 1)
        self._augmented = torch.cat([rows, constant], dim=2).mT
        scale = torch.ones_like(weight[:1].flatten()[:1]) if norm is None else norm_affine(norm)[0]
        # A norm that gives out a constant hides its layer: such channels lack nothing.
        self._inverse = torch.where(scale.abs() > 1e-8, 1 / scale, 0.0)
        self._activation = activation

    def __call__(self, sample: _Sample) -> Tensor:
        predicted = (sample.features @ self._augmented).transpose(0, 1).flatten(1)
        if sample.other is not None:
            predicted += sample.other
        wanted = sample.wanted
        if self._activation is not None:
            below, above = self._activation.flat_below, self._activation.flat_above
            wanted = torch.where(wanted <= below, predicted.clamp(max=below), wanted)
            if above < math.inf:
                wanted = torch.where(wanted >= above, predicted.clamp(min=above), wanted)
        missing = (wanted - predicted) * self._inverse
        return missing.reshape(len(missing), len(sample.features), -1).transpose(0, 1)


def _bytes_per_image(model: nn.Module, images: Tensor) -> float:
    """A generous guess of what one image's activations take at a time: thrice a layer's largest input and output."""
    largest = 0

    def hook(layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        nonlocal largest
        tensors = [tensor for tensor in (*args, output) if isinstance(tensor, Tensor)]
        largest = max(largest, sum(tensor.numel() * tensor.element_size() for tensor in tensors))

    probe = copy.deepcopy(model).to(images.device).eval()
    for module in probe.modules():
        if not list(module.children()):
            module.register_forward_hook(hook)
    with torch.no_grad():
        probe(images)
    return 3 * largest / len(images)
