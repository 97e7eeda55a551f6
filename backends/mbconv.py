"""ProxylessNAS's over-parameterised network of mobile inverted bottlenecks, for any image size.

Cai, Zhu and Han, ICLR 2019, arXiv:1812.00332, section 4.2; the bottleneck is MobileNetV2's (Sandler et al., CVPR 2018,
arXiv:1801.04381, section 3.3): a 1×1 convolution that expands, a depthwise one, a 1×1 one that projects, without an
activation at the end. The widths, cells and strides of the paper's network stand in conf/model/mbconv_imagenet.yaml.
Norms are PyTorch's own, with ε = 1e-5; the released code has 1e-3.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backends.mixed_operation import Cell, MixedOperation, Zero
from compsearch.space import ZERO

_NAME = re.compile(r"k([1-9]\d*)_e([1-9]\d*)")
_STAGE = ("channels", "cells", "stride")


def build(
    *,
    num_classes: int,
    stem_channels: int,
    stem_stride: int,
    first_channels: int,
    stages: Sequence[Mapping[str, int]],
    head_channels: int,
    candidates: Sequence[str],
    width_multiplier: float,
    alike_noise: float | None,
    max_cells: int | None = None,
) -> MBConvNetwork:
    """The network with all `candidates` in each cell of `stages`; its initial weights are torch's global generator's.

    Candidates are called k7_e6 for a 7×7 depthwise convolution behind a sixfold expansion, or zero for none, which is
    offered only where a cell has a shortcut. Each of `stages` has `channels`, `cells` and the `stride` of its first
    cell, and no more cells than `max_cells` where that is given. `width_multiplier` scales all widths, to multiples of
    8, but never narrows the head (MobileNetV2, section 4). With `alike_noise` the candidates of a cell start as nearly
    the same function, see `make_alike`; each has weights of its own where it is None.

    Raises ValueError for what makes no network.
    """
    kernels = [_parsed(name) for name in candidates if name != ZERO]
    if not kernels or len(set(candidates)) != len(candidates):
        raise ValueError(
            f"`candidates` must be distinct, and one at least other than {ZERO}, but got {list(candidates)}"
        )
    if not width_multiplier > 0:
        raise ValueError(f"`width_multiplier > 0` must hold, but got {width_multiplier=}")
    if not stages:
        raise ValueError("`stages` must be at least one, but got none")
    if max_cells is not None and max_cells < 1:
        raise ValueError(f"`max_cells >= 1` must hold, but got {max_cells=}")
    cells: list[nn.Sequential] = []
    ins = first = _scaled(first_channels, width_multiplier)
    for stage in stages:
        if set(stage) != set(_STAGE) or min(stage.values()) < 1:
            raise ValueError(f"a stage must have {', '.join(_STAGE)}, each at least 1, but got {dict(stage)}")
        num_cells = stage["cells"] if max_cells is None else min(max_cells, stage["cells"])
        outs, strides = _scaled(stage["channels"], width_multiplier), [stage["stride"]] + [1] * (num_cells - 1)
        row = []
        for stride in strides:
            row.append(_cell(ins, outs, stride, kernels, offers_zero=ZERO in candidates))
            ins = outs
        cells.append(nn.Sequential(*row))
    network = MBConvNetwork(
        stem_channels=_scaled(stem_channels, width_multiplier),
        stem_stride=stem_stride,
        first_channels=first,
        stages=nn.Sequential(*cells),
        last_channels=ins,
        head_channels=_scaled(head_channels, max(1.0, width_multiplier)),
        num_classes=num_classes,
    )
    if alike_noise is not None:
        if alike_noise < 0 or len({expansion > 1 for _, expansion in kernels}) > 1:
            raise ValueError(
                "candidates can start alike where all expand or none does, with noise of at least 0, but got "
                f"{alike_noise=} and {list(candidates)}; use model.build.alike_noise=null"
            )
        for module in network.modules():
            if isinstance(module, MixedOperation):
                make_alike([part for part in module.candidates if isinstance(part, MBConv)], alike_noise)
    return network


def make_alike(candidates: Sequence[MBConv], noise: float) -> None:
    """Gives all of `candidates` the function of the one with the smallest kernel, then expansion, but for noise.

    A larger kernel has the smaller one's weights in its middle and zeros around them; a wider expansion repeats the
    narrower one's channels, and its projection shares their weights among the copies (as Net2Net does; Chen et al.,
    ICLR 2016, arXiv:1511.05641, section 2.1). A narrower expansion behind a larger kernel has a part of the channels.
    Weights are multiplied by 1 + N(0, `noise`), so that copies learn different things. What follows a cell then reads
    much the same features along all paths; where every path has features of its own, a supernet learns next to nothing
    in its first epochs.
    """
    smallest = min(candidates, key=lambda each: each.size)
    with torch.no_grad():
        for candidate in candidates:
            if candidate is smallest:
                continue
            for part, weight in candidate.named_parameters():
                if weight.dim() == 4:
                    own = smallest.get_parameter(part)
                    weight.copy_(_spread(own, weight) * (1 + noise * torch.randn_like(weight)))


def _spread(weight: Tensor, like: Tensor) -> Tensor:
    """`weight` in the shape of `like`: outputs repeated, inputs repeated at a share each, the kernel in the middle."""
    outputs, inputs = (np.arange(wanted) % own for wanted, own in zip(like.shape[:2], weight.shape[:2], strict=True))
    shares = torch.from_numpy(1 / np.bincount(inputs)[inputs]).to(weight)
    margin = (like.shape[2] - weight.shape[2]) // 2
    spread = weight[torch.from_numpy(outputs)][:, torch.from_numpy(inputs)] * shares.view(1, -1, 1, 1)
    return F.pad(spread, (margin, margin, margin, margin))


class MBConvNetwork(nn.Module):
    """Stem, a bottleneck without expansion, `stages`, a 1×1 convolution, and a linear classifier of the mean."""

    def __init__(
        self,
        *,
        stem_channels: int,
        stem_stride: int,
        first_channels: int,
        stages: nn.Sequential,
        last_channels: int,
        head_channels: int,
        num_classes: int,
    ) -> None:
        super().__init__()
        self.stem = _conv_norm(3, stem_channels, 3, stride=stem_stride)
        self.first = MBConv(stem_channels, first_channels, kernel_size=3, expansion=1, stride=1)
        self.stages = stages
        self.head = _conv_norm(last_channels, head_channels, 1)
        self.classifier = nn.Linear(head_channels, num_classes)
        self.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, num_classes]."""
        features = self.head(self.stages(self.first(self.stem(x))))  # [B, head_channels, H / s, W / s]
        logits: Tensor = self.classifier(features.mean(dim=(2, 3)))
        return logits

    def reset_parameters(self) -> None:
        """Initial weights from torch's global generator, as the released code and MobileNetV2 draw them."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0.0, 0.01)
                nn.init.zeros_(module.bias)


class MBConv(nn.Sequential):
    """A mobile inverted bottleneck; without the expanding convolution where `expansion` is 1."""

    def __init__(self, ins: int, outs: int, *, kernel_size: int, expansion: int, stride: int) -> None:
        inner = ins * expansion
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if expansion > 1:
            layers["expand"] = _conv_norm(ins, inner, 1)
        layers["depthwise"] = _conv_norm(inner, inner, kernel_size, stride=stride, groups=inner)
        layers["project"] = _conv_norm(inner, outs, 1, activates=False)
        super().__init__(layers)
        #: Kernel size and expansion.
        self.size = (kernel_size, expansion)


def _conv_norm(
    ins: int, outs: int, kernel_size: int, *, stride: int = 1, groups: int = 1, activates: bool = True
) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv"] = nn.Conv2d(ins, outs, kernel_size, stride, kernel_size // 2, groups=groups, bias=False)
    layers["norm"] = nn.BatchNorm2d(outs)
    if activates:
        layers["activation"] = nn.ReLU6(inplace=True)
    return nn.Sequential(layers)


def _cell(ins: int, outs: int, stride: int, kernels: Sequence[tuple[int, int]], *, offers_zero: bool) -> Cell:
    has_shortcut = stride == 1 and ins == outs

    def macs(candidate: tuple[int, int]) -> int:
        """Per output position, but for what does not divide by the stride."""
        kernel_size, expansion = candidate
        expanding = ins * stride**2 if expansion > 1 else 0
        return ins * expansion * (expanding + kernel_size**2 + outs)

    candidates: dict[str, nn.Module] = {
        f"k{kernel_size}_e{expansion}": MBConv(ins, outs, kernel_size=kernel_size, expansion=expansion, stride=stride)
        for kernel_size, expansion in sorted(kernels, key=lambda candidate: (macs(candidate), candidate), reverse=True)
    }
    if has_shortcut and offers_zero:
        candidates[ZERO] = Zero()
    return Cell(MixedOperation(candidates), has_shortcut=has_shortcut)


def _parsed(name: str) -> tuple[int, int]:
    """Kernel size and expansion."""
    match = _NAME.fullmatch(name)
    if match is None or int(match[1]) % 2 == 0:
        raise ValueError(
            f"a candidate must be {ZERO}, or k<kernel>_e<expansion> with an odd kernel, as in k7_e6, but got {name!r}"
        )
    return int(match[1]), int(match[2])


def _scaled(channels: int, multiplier: float) -> int:
    """The multiple of 8 nearest to `multiplier` times as many, unless that is less than nine tenths of it."""
    if channels < 1:
        raise ValueError(f"`channels >= 1` must hold, but got {channels=}")
    if multiplier == 1:
        return channels
    wanted = channels * multiplier
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * wanted else rounded + 8
