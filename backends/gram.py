"""What a layer sees of the calibration images, and second moments of it: all that least squares needs.

A layer computes ``Y = X Wᵀ`` where a row of X is what its kernel covers at one output position. With G = XᵀX of the
*dense* network's inputs every least-squares problem of every policy is a sub-block of G, as XᵀY = G Wᵀ; so features are
collected once, for 3×3 convolutions as well as for 1×1 and linear ones.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backends.data import Split
from backends.products import moments_with

#: Layers whose features can be collected.
RefittedLayer = nn.Conv2d | nn.Linear


def is_refitted(layer: nn.Module) -> TypeGuard[RefittedLayer]:
    """Whether a layer's features can be collected; a subclass may compute something else."""
    return type(layer) in (nn.Conv2d, nn.Linear)


def refitted_at(network: nn.Module, path: str) -> RefittedLayer:
    """The layer at `path`, which must be one whose features can be collected."""
    layer = network.get_submodule(path)
    assert is_refitted(layer), path
    return layer


def feature_size(layer: RefittedLayer) -> int:
    """Columns of a group's features: kernel positions × input channels per group."""
    return layer.weight[0].numel()


def sample_positions(num_images: int, num_positions: int, num_samples: int, generator: torch.Generator) -> Tensor:
    """Output positions to look at, int64 [num_images, at most `num_samples`], distinct within an image.

    One at random from each of `num_samples` equal stretches of the positions; all of them where there are no more.
    """
    if num_positions <= num_samples:
        return torch.arange(num_positions).expand(num_images, -1)
    edges = torch.arange(num_samples + 1) * num_positions // num_samples
    within = torch.rand(num_images, num_samples, generator=generator, dtype=torch.float64)
    return edges[:-1] + (within * edges.diff()).long()


def num_positions(layer: RefittedLayer, output_shape: Sequence[int]) -> int:
    """Output positions per image of a layer whose output has that shape."""
    sides = output_shape[2:] if isinstance(layer, nn.Conv2d) else output_shape[1:-1]
    return int(torch.Size(sides).numel())


def outputs_at(layer: RefittedLayer, outputs: Tensor, positions: Tensor) -> Tensor:
    """Outputs of `layer` at `positions` [B, P], [B * P, out_channels]."""
    if isinstance(layer, nn.Conv2d):
        outputs = outputs.permute(0, 2, 3, 1)
    flat = outputs.reshape(len(outputs), -1, outputs.shape[-1])
    return flat.gather(1, positions[..., None].expand(-1, -1, flat.shape[2])).flatten(0, 1)


@dataclass(frozen=True)
class Pixels:
    """Which pixels of a batch a convolution multiplies at some of its output positions, whatever its channels.

    `index` [samples * kernel_h * kernel_w] counts them over all images, row by row; where `inside` [as many, 1] is
    false, the kernel covers padding and any pixel stands for it.
    """

    index: Tensor
    inside: Tensor


def pixels_at(layer: nn.Conv2d, shape: torch.Size, positions: Tensor) -> Pixels:
    """What `layer` reads of inputs of that shape [B, C, H, W] at output `positions` [B, P]."""
    left, right, top, bottom = layer._reversed_padding_repeated_twice
    batch, height, width = shape[0], shape[2], shape[3]
    if layer.padding_mode != "zeros":  # then `features_of` reads the padded images
        height, width = height + top + bottom, width + left + right
        left = right = top = 0
    (kernel_h, kernel_w), (stride_h, stride_w), (step_h, step_w) = layer.kernel_size, layer.stride, layer.dilation
    out_w = (width + left + right - step_w * (kernel_w - 1) - 1) // stride_w + 1
    count = partial(torch.arange, device=positions.device)
    rows = (positions // out_w * stride_h - top)[:, :, None, None] + step_h * count(kernel_h)[:, None]
    columns = (positions % out_w * stride_w - left)[:, :, None, None] + step_w * count(kernel_w)
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)  # [B, P, kernel_h, kernel_w]
    index = (count(batch)[:, None, None, None] * height + rows) * width + columns
    return Pixels(torch.where(inside, index, 0).flatten().int(), inside.reshape(-1, 1))


def features_at(layer: RefittedLayer, inputs: Tensor, positions: Tensor) -> Tensor:
    """What `layer` multiplies at output `positions` [B, P], [B * P, groups, features].

    Features are in the order of `weight_rows`. A linear layer has one group.
    """
    if isinstance(layer, nn.Linear):
        return outputs_at(layer, inputs, positions)[:, None]
    return features_of(layer, inputs, pixels_at(layer, inputs.shape, positions))


def features_of(layer: nn.Conv2d, inputs: Tensor, pixels: Pixels) -> Tensor:
    """`features_at` for pixels that are known: they are picked out of the images, which needn't be padded for a few."""
    if layer.padding_mode != "zeros":
        inputs = F.pad(inputs, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
    channels = inputs.shape[1]
    picked = inputs.permute(0, 2, 3, 1).reshape(-1, channels).index_select(0, pixels.index)
    picked *= pixels.inside
    by_group = picked.reshape(-1, math.prod(layer.kernel_size), layer.groups, channels // layer.groups)
    return by_group.transpose(1, 2).flatten(2)


def weight_rows(layer: RefittedLayer, weight: Tensor) -> Tensor:
    """A weight of `layer` as rows over features, [groups, out_channels per group, features]; a view where it can be."""
    if isinstance(layer, nn.Linear):
        return weight[None]
    return weight.permute(0, 2, 3, 1).reshape(layer.groups, len(weight) // layer.groups, -1)


def weight_from_rows(layer: RefittedLayer, rows: Tensor) -> Tensor:
    """The inverse of `weight_rows`."""
    if isinstance(layer, nn.Linear):
        return rows[0]
    return rows.reshape(-1, *layer.kernel_size, layer.in_channels // layer.groups).permute(0, 3, 1, 2).contiguous()


def feature_indices(layer: RefittedLayer, channels: Tensor) -> Tensor:
    """Which features of an ungrouped layer belong to the input `channels`, in the order of `weight_rows`."""
    if isinstance(layer, nn.Linear):
        return channels
    per_tap = layer.in_channels
    taps = feature_size(layer) // per_tap
    return (torch.arange(taps, device=channels.device)[:, None] * per_tap + channels).flatten()


@dataclass(frozen=True)
class Moments:
    """Of one layer's features: E[x] as `mean` [features], E[x xᵀ] as `second` [features, features], float32."""

    mean: Tensor
    second: Tensor


def collect_moments(
    model: nn.Module,
    layers: Sequence[str],
    calibration: Split,
    *,
    positions_per_image: int,
    batch_size: int,
    seed: int,
    device: torch.device,
) -> dict[str, Moments]:
    """The moments of the inputs of each of `layers`, over all calibration images at sampled positions, in eval mode.

    A layer that is called several times sees the inputs of all its calls. `model` is not changed (a copy runs).
    """
    model = copy.deepcopy(model).to(device).eval()
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = dict.fromkeys(layers, 0)
    generator = torch.Generator().manual_seed(seed)

    def hook(name: str, layer: RefittedLayer, args: tuple[Tensor, ...], output: Tensor) -> None:
        [inputs] = args
        available = num_positions(layer, output.shape)
        positions = sample_positions(len(inputs), available, positions_per_image, generator).to(device)
        features = features_at(layer, inputs, positions)[:, 0]
        # A column of ones makes the mean part of the same product.
        augmented = F.pad(features, (0, 1), value=1.0)
        moments = moments_with(augmented[None])[0]
        if name in sums:
            sums[name] += moments
        else:
            sums[name] = moments
        counts[name] += len(features)

    for name in layers:
        refitted_at(model, name).register_forward_hook(partial(hook, name))
    with torch.no_grad():
        for images, _ in calibration.batches(batch_size):
            model(images.to(device))
    found = {}
    for name in layers:
        total = sums.pop(name).div_(counts[name])
        found[name] = Moments(total[-1, :-1].clone(), total[:-1, :-1].contiguous())
    return found
