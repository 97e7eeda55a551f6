"""Which number format networks run and train in."""

from __future__ import annotations

import torch
from torch import nn

PRECISIONS = ("auto", "float32", "bfloat16")


def resolve_precision(precision: str, device: torch.device) -> str:
    """float32 or bfloat16, for one of `PRECISIONS`."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        native = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return "bfloat16" if native else "float32"


def training_precision(precision: str, network: nn.Module, device: torch.device) -> str:
    """float32 or bfloat16 for training `network`: auto is bfloat16 where the device has it natively and gains by it.

    Depthwise convolutions don't on the CPU: their backward pass is slower in bfloat16. Measured on one core of an AMD
    EPYC (family 26): MobileNetV2, MnasNet, EfficientNet-B0 and ShuffleNetV2 train 2.2 to 3 times slower, ResNet-18 and
    ResNeXt-50 1.3 times faster.
    """
    if precision == "auto" and device.type == "cpu" and any(map(_is_depthwise, network.modules())):
        return "float32"
    return resolve_precision(precision, device)


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.conv._ConvNd) and module.groups > 1 and module.groups == module.in_channels
