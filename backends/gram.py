"""What a layer sees of the calibration images, and second moments of it: all that least squares needs.

A layer computes ``Y = X Wᵀ`` where a row of X is what its kernel covers at one output position. With G = XᵀX of the
*dense* network's inputs every least-squares problem of every policy is a sub-block of G, as XᵀY = G Wᵀ; so features are
collected once, for 3×3 convolutions as well as for 1×1 and linear ones.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backends.data import Split

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


def features_at(layer: RefittedLayer, inputs: Tensor, positions: Tensor) -> Tensor:
    """What `layer` multiplies at output `positions` [B, P], [B * P, groups, features].

    Features are in the order of `weight_rows`. A linear layer has one group.
    """
    if isinstance(layer, nn.Linear):
        return outputs_at(layer, inputs, positions)[:, None]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = F.pad(inputs, layer._reversed_padding_repeated_twice, mode=mode)
    padded = padded.permute(0, 2, 3, 1).contiguous()  # [B, H, W, C]
    (kernel_h, kernel_w), (stride_h, stride_w), (step_h, step_w) = layer.kernel_size, layer.stride, layer.dilation
    batch, height, width, channels = padded.shape
    out_h = (height - step_h * (kernel_h - 1) - 1) // stride_h + 1
    out_w = (width - step_w * (kernel_w - 1) - 1) // stride_w + 1
    of_image, of_row, of_column, _ = padded.stride()
    windows = padded.as_strided(
        (batch, out_h, out_w, kernel_h, kernel_w, channels),
        (of_image, of_row * stride_h, of_column * stride_w, of_row * step_h, of_column * step_w, 1),
    )
    images = torch.arange(batch, device=inputs.device)[:, None]
    rows, columns = positions // out_w, positions % out_w
    picked = windows[images, rows, columns].reshape(-1, kernel_h * kernel_w, layer.groups, channels // layer.groups)
    return picked.transpose(1, 2).flatten(2)


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
        if name in sums:
            sums[name].addmm_(augmented.T, augmented)
        else:
            sums[name] = augmented.T @ augmented
        counts[name] += len(features)

    for name in layers:
        refitted_at(model, name).register_forward_hook(partial(hook, name))
    with torch.no_grad():
        for images, _ in calibration.batches(batch_size):
            model(images.to(device))
    moments = {}
    for name in layers:
        total = sums.pop(name).div_(counts[name])
        moments[name] = Moments(total[-1, :-1].clone(), total[:-1, :-1].contiguous())
    return moments
