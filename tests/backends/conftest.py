"""A small network with residual and plain parts, its space, and images to calibrate and score on."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from backends.data import TensorSplit
from backends.groups import trace
from backends.importance import l1_inputs


class TinyResidual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(8)
        self.conv1 = nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(12)
        self.conv2 = nn.Conv2d(12, 16, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(16)
        self.down = nn.Conv2d(8, 16, 1, stride=2)
        self.linear = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem_norm(self.stem(x)))
        branch = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return self.linear(F.relu(branch + self.down(x)).mean((2, 3)))


def split_of(name: str, num_images: int, seed: int) -> TensorSplit:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(num_images, 3, 8, 8, generator=generator)
    labels = torch.randint(5, (num_images,), generator=generator)
    return TensorSplit(name=name, images=images, labels=labels, normalisation=None, augmentation=None)


@pytest.fixture
def tiny() -> SimpleNamespace:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = TinyResidual()
        with torch.no_grad():
            for _ in range(5):  # running statistics that are not the initial ones
                model(torch.randn(32, 3, 8, 8))
    model.eval()
    space = trace(model, torch.zeros(2, 3, 8, 8), divisor=1, min_keep_ratio=0.1)
    importance = l1_inputs(model, space).scores()
    half = space.select([max(1, group.size // 2) for group in space.groups], importance)
    return SimpleNamespace(
        model=model,
        space=space,
        importance=importance,
        half=half,
        calibration=split_of("calibration", 48, 1),
        search=split_of("search", 40, 2),
    )
