"""What `benchmarks.scoring` scores: ResNet-56 with its inner channels cut uniformly to half its MACs, and images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Subset
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.io import write_png

from backends.cifar_resnet import CifarResNet
from backends.data import NORMALISATIONS, TensorSplit
from backends.groups import trace
from backends.importance import l1_inputs
from compsearch.space import Policy, SearchSpace

BATCH = 64
POSITIONS = 16  # of a calibration image, for least squares


@dataclass(frozen=True)
class Setting:
    """What is scored: `search` images as files and in memory, `calibration` ones likewise."""

    model: nn.Module
    space: SearchSpace
    policy: Policy
    search_files: Subset[Any]
    calibration_files: Subset[Any]
    search: TensorSplit
    calibration: TensorSplit


def random_images(folder: Path, num_images: int) -> Path:
    generator = torch.Generator().manual_seed(0)
    for index in range(num_images):
        target = folder / "train" / str(index % 10)
        target.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=generator)
        write_png(pixels, str(target / f"{index}.png"))
    return folder


def read_setting(folder: Path, weights: Path | None, num: int, num_calibration: int) -> Setting:
    mean, std = NORMALISATIONS["imagenet"]
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])
    files = ImageFolder(folder / "train", transform)
    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(0)).tolist()
    if len(order) < num + num_calibration:
        raise SystemExit(f"{folder / 'train'} must hold {num + num_calibration} images, but has {len(order)}")
    search_files = Subset(files, order[:num])
    calibration_files = Subset(files, order[num : num + num_calibration])
    model = CifarResNet(56)
    if weights is not None:
        model.load_state_dict(torch.load(weights, weights_only=True))
    model.eval()
    search, calibration = _in_memory(search_files), _in_memory(calibration_files)
    space = trace(model, search.images[:2], divisor=8, min_keep_ratio=0.1, coupled=False)
    counts = [space.nearest_count(group, 0.5) for group in range(len(space.groups))]
    policy = space.select(counts, l1_inputs(model, space).scores())
    return Setting(model, space, policy, search_files, calibration_files, search, calibration)


def _in_memory(files: Subset[Any]) -> TensorSplit:
    images, labels = zip(*(files[index] for index in range(len(files))), strict=True)
    return TensorSplit(
        name="search", images=torch.stack(images), labels=torch.tensor(labels), normalisation=None, augmentation=None
    )


def batched(network: Callable[[Tensor], Tensor], images: Tensor, size: int) -> Tensor:
    return torch.cat([network(batch) for batch in torch.split(images, size)])
