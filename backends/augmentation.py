"""Standard training augmentation, drawn from a given generator and never from the global one.

`ShiftFlip` works on a whole batch in memory; `RandomResizedCrop` on one decoded image of a streamed set.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class ShiftFlip:
    """A random crop of the image padded by `padding` black pixels, and a mirror image half of the time.

    The CIFAR recipe (He et al., arXiv:1512.03385, section 4.2) has ``padding=4, flip=True``; digits must not flip.
    """

    padding: int
    flip: bool

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise ValueError(f"`padding >= 0` must hold, but got {self.padding=}; use 0 for no shifts")

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W], same dtype, every image shifted and mirrored on its own."""
        num_images, channels, height, width = images.shape
        padded = F.pad(images, [self.padding] * 4)
        shifts = torch.randint(2 * self.padding + 1, (2, num_images), generator=generator)
        rows = shifts[0, :, None] + torch.arange(height)  # [B, H]
        columns = shifts[1, :, None] + torch.arange(width)  # [B, W]
        if self.flip:
            mirrored = torch.rand(num_images, generator=generator) < 0.5
            columns = torch.where(mirrored[:, None], columns.flip(1), columns)
        image = torch.arange(num_images)[:, None, None, None]
        channel = torch.arange(channels)[None, :, None, None]
        return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


@dataclass(frozen=True)
class RandomResizedCrop:
    """A random box of at least `min_share` of the image's area, resized, and mirrored half of the time.

    The ImageNet recipe (Szegedy et al., arXiv:1409.4842) has ``min_share=0.08`` and an aspect ratio within 3/4..4/3.
    """

    min_share: float

    def __post_init__(self) -> None:
        if not 0 < self.min_share <= 1:
            raise ValueError(f"`0 < min_share <= 1` must hold, but got {self.min_share=}")

    def __call__(self, image: Image.Image, size: int, generator: torch.Generator) -> Image.Image:
        """`image` of any size -> RGB of `size` × `size`."""
        box = self._box(image.width, image.height, generator)
        image = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
        if torch.rand((), generator=generator) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return image

    def _box(self, width: int, height: int, generator: torch.Generator) -> tuple[int, int, int, int]:
        for _ in range(10):
            share, log_ratio, left, top = torch.rand(4, generator=generator).tolist()
            area = width * height * (self.min_share + (1 - self.min_share) * share)
            ratio = math.exp(math.log(3 / 4) + math.log(16 / 9) * log_ratio)
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                x, y = int(left * (width - w + 1)), int(top * (height - h + 1))
                return x, y, x + w, y + h
        # No box of that shape fits a very long image: take the largest square in the middle.
        side = min(width, height)
        x, y = (width - side) // 2, (height - side) // 2
        return x, y, x + side, y + side
