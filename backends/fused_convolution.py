"""A convolution with the addition and the activation that follow it, as one kernel of oneDNN's on the CPU.

It is the operator that torch's own inductor emits for frozen weights. Two things make it as fast as it can be here.

The operator reorders weights at every call that don't lie as the kernel for this shape of images wants them, and does
so slowly from one blocked layout to another: twice as long as the convolution itself for 48 channels on 64 images of
8x8 pixels, ten times for 40 on 16 of 7x7. So weights are packed for the shape of images that comes, not beforehand.

Few channels leave most of a vector register empty: a vector of AVX-512 holds 16, and one with 8 takes as long. With
channels last, two neighbouring pixels of an image with 8 channels are one of an image half as wide with 16, and a
kernel one column wider that moves by two columns computes both: 1.4 times as fast for a kernel three columns wide.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from backends.fusion import Activation

#: Numbers in a vector register that a sum is kept in, and how wide the image has to be for pairs of columns to pay:
#: on 32 columns they take 0.7 of the time, on 16 as long, on 8 longer.
_LANES, _LEAST_WIDTH = 16, 32


def has_fused_kernels(weight: Tensor) -> bool:
    """Whether oneDNN's fused convolution works on tensors like `weight`."""
    mkldnn = torch.ops.mkldnn
    return (
        weight.device.type == "cpu"
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and all(hasattr(mkldnn, name) for name in ("_convolution_pointwise", "_reorder_convolution_weight"))
        and (
            weight.dtype == torch.float32
            or (weight.dtype == torch.bfloat16 and bool(mkldnn._is_mkldnn_bf16_supported()))
        )
    )


class FusedConvolution:
    """``activation(layer(x) + other)`` with `weight` and `bias` in place of the layer's own; zeros pad the images.

    Called with images [B, C, H, W], channels last, in the dtype of `weight`, and what is to be added, if anything, of
    the result's shape or one that broadcasts to it. Safe to call from several threads.
    """

    def __init__(self, layer: nn.Conv2d, weight: Tensor, bias: Tensor | None, activation: Activation | None) -> None:
        self._layer = layer
        self._activation = activation
        self._kernel = _Kernel(layer, weight, bias, activation)
        self._pairs: _Kernel | None = None
        if _has_few_channels(layer):
            bias = None if bias is None else bias.repeat(2)
            self._pairs = _Kernel(layer, _weight_of_pairs(weight), bias, activation, columns=2)

    def __call__(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        if other is None and self._pairs is None:
            return self._kernel(x)
        shape = _output_shape(self._layer, x)
        if other is not None and other.shape != shape:  # the kernel can't broadcast
            result = self._kernel(x, activated=False) + other
            return result if self._activation is None else self._activation(result)
        if self._pairs is None or shape[3] % 2 or shape[3] < _LEAST_WIDTH:
            return self._kernel(x, other)
        return _unpaired(self._pairs(x, None if other is None else _paired(other)))


class _Kernel:
    """The operator with its weight, packed once the shape of images is known."""

    def __init__(
        self, layer: nn.Conv2d, weight: Tensor, bias: Tensor | None, activation: Activation | None, columns: int = 1
    ) -> None:
        self._weight = weight.contiguous(memory_format=torch.channels_last)
        self._bias = bias
        self._activation = activation
        stride = [layer.stride[0], layer.stride[1] * columns]
        self._moves = (list(layer.padding), stride, list(layer.dilation), layer.groups)
        self._called = False
        self._packed: Tensor | None = None

    def __call__(self, x: Tensor, other: Tensor | None = None, *, activated: bool = True) -> Tensor:
        """`other` has the result's shape."""
        activation = self._activation if activated else None
        if other is None:
            name, scalars = ("none", []) if activation is None else (activation.name, list(activation.scalars))
            unary = torch.ops.mkldnn._convolution_pointwise.default
            result: Tensor = unary(x, self._weight_for(x), self._bias, *self._moves, name, scalars, "")
            return result
        # After an addition the kernel knows ReLU only.
        fused = "relu" if activation is not None and activation.name == "relu" else None
        binary = torch.ops.mkldnn._convolution_pointwise.binary
        result = binary(x, other, self._weight_for(x), self._bias, *self._moves, "add", None, fused, [], "")
        return result if fused is not None or activation is None else activation(result)

    def _weight_for(self, x: Tensor) -> Tensor:
        """As it is for the first batch, which makes the kernel: packing afterwards takes half as long."""
        if self._packed is not None:
            return self._packed
        if not self._called:
            self._called = True
            return self._weight
        self._packed = torch.ops.mkldnn._reorder_convolution_weight(self._weight, *self._moves, list(x.shape))
        return self._packed


def _output_shape(layer: nn.Conv2d, x: Tensor) -> tuple[int, ...]:
    height, width = (
        (x.shape[2 + side] + 2 * int(layer.padding[side]) - layer.dilation[side] * (layer.kernel_size[side] - 1) - 1)
        // layer.stride[side]
        + 1
        for side in (0, 1)
    )
    return (x.shape[0], layer.out_channels, height, width)


def _has_few_channels(layer: nn.Conv2d) -> bool:
    """Whether two columns at a time fill a vector better than they add products with zeros."""
    return (
        2 * layer.out_channels <= _LANES
        and layer.kernel_size[1] >= 3
        and layer.stride[1] == layer.dilation[1] == layer.groups == 1
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
    )


def _weight_of_pairs(weight: Tensor) -> Tensor:
    """[O, I, h, w] to [2 O, I, h, w + 1]: the outputs of a column, then those of the column to its right."""
    return torch.cat([nn.functional.pad(weight, (0, 1)), nn.functional.pad(weight, (1, 0))])


def _paired(x: Tensor) -> Tensor:
    """[B, C, H, W] to [B, 2 C, H, W / 2], a view if channels are last."""
    batch, channels, height, width = x.shape
    return x.permute(0, 2, 3, 1).reshape(batch, height, width // 2, 2 * channels).permute(0, 3, 1, 2)


def _unpaired(x: Tensor) -> Tensor:
    """[B, 2 C, H, W / 2] to [B, C, H, W], a view if channels are last."""
    batch, channels, height, width = x.shape
    return x.permute(0, 2, 3, 1).reshape(batch, height, 2 * width, channels // 2).permute(0, 3, 1, 2)
