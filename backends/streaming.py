"""Images decoded from files: once, into memory, for a small set; batch by batch in worker processes for a large one."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from backends.augmentation import RandomResizedCrop, ShiftFlip
from backends.data import Normalisation, TensorSplit, check_batch_size, shuffled_batches


@dataclass(frozen=True)
class Decoder:
    """Files to uint8 images [3, size, size].

    The shorter side is resized (bilinear, antialiased) to ``size / crop_ratio`` and the middle `size` × `size` kept;
    an image that already has its final size is left alone.
    """

    size: int
    crop_ratio: float

    def __post_init__(self) -> None:
        if self.size < 1 or not 0 < self.crop_ratio <= 1:
            raise ValueError(
                "`dataset.build.image_size >= 1` and `0 < dataset.build.crop_ratio <= 1` must hold, but got "
                f"image_size={self.size} and crop_ratio={self.crop_ratio}"
            )

    def __call__(self, path: Path) -> Tensor:
        """Raises ValueError, in one line with the file's name, when it is no readable image."""
        image = _open(path)
        shorter = round(self.size / self.crop_ratio)
        width, height = image.size
        if min(width, height) != shorter:
            scale = shorter / min(width, height)
            resized = (max(shorter, round(width * scale)), max(shorter, round(height * scale)))
            image = image.resize(resized, Image.Resampling.BILINEAR)
        if image.size != (self.size, self.size):
            left, top = (image.width - self.size) // 2, (image.height - self.size) // 2
            image = image.crop((left, top, left + self.size, top + self.size))
        return _to_tensor(image)

    def augmented(self, path: Path, crop: RandomResizedCrop, seed: int) -> Tensor:
        """A random crop instead, drawn from `seed` alone. Raises ValueError as `__call__` does."""
        return _to_tensor(crop(_open(path), self.size, torch.Generator().manual_seed(seed)))


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # SyntaxError: a broken PNG
        reason = str(error).replace(repr(str(path)), "").splitlines()[0].rstrip(" :")
        raise ValueError(f"an image must decode, but {path} does not ({reason}); replace or remove the file") from error


def _to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def read_into_memory(
    *,
    name: str,
    paths: Sequence[Path],
    labels: Tensor,
    decoder: Decoder,
    normalisation: Normalisation,
    augmentation: ShiftFlip,
) -> TensorSplit:
    """Decodes every file once, with a progress bar. Raises ValueError as `Decoder` does."""
    images = torch.empty(len(paths), 3, decoder.size, decoder.size, dtype=torch.uint8)
    for index, path in enumerate(tqdm(paths, desc=f"decoding {name}", unit="image", leave=False, disable=None)):
        images[index] = decoder(path)
    return TensorSplit(name=name, images=images, labels=labels, normalisation=normalisation, augmentation=augmentation)


class LoaderSplit:
    """Images read from files as they are needed, by `num_workers` processes (0: in this one).

    Evaluation batches equal those of the same files read into memory. Training batches depend on the generator given
    and not on the number of workers: every image of an epoch is augmented from a seed of its own.
    """

    def __init__(
        self,
        *,
        name: str,
        paths: Sequence[Path],
        labels: Tensor,
        decoder: Decoder,
        normalisation: Normalisation,
        augmentation: ShiftFlip | RandomResizedCrop | None,
        num_workers: int,
    ) -> None:
        if num_workers < 0:
            raise ValueError(f"`dataset.build.num_workers >= 0` must hold, but got {num_workers=}")
        self.name = name
        self.paths = tuple(paths)
        self.labels = labels.to(torch.int64)
        self.decoder = decoder
        self.normalisation = normalisation
        self.augmentation = augmentation
        # torch warns about more workers than processors, and they would not help.
        self.num_workers = min(num_workers, os.cpu_count() or 1)

    @property
    def num_images(self) -> int:
        return len(self.paths)

    @functools.cached_property
    def fingerprint(self) -> str:
        """From names, sizes and labels: reading every byte of a large set would take as long as an epoch."""
        digest = hashlib.sha256(repr((self.name, self.decoder, self.normalisation, self.augmentation)).encode())
        for path, label in zip(self.paths, self.labels.tolist(), strict=True):
            digest.update(f"{path.parent.name}/{path.name} {path.stat().st_size} {label}\n".encode())
        return digest.hexdigest()

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        check_batch_size(batch_size)
        starts = range(0, self.num_images, batch_size)
        plan: _Plan = [
            [(index, None) for index in range(start, min(start + batch_size, self.num_images))] for start in starts
        ]
        for images, indices in self._load(plan, None):
            yield self.normalisation(images), self.labels[indices]

    def training_batches(self, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        order = shuffled_batches(self.num_images, batch_size, generator)
        seeds = torch.randint(2**62, (self.num_images,), generator=generator)
        plan = [list(zip(batch.tolist(), seeds[batch].tolist(), strict=True)) for batch in order]
        crop = self.augmentation if isinstance(self.augmentation, RandomResizedCrop) else None
        for images, indices in self._load(plan, crop):
            if isinstance(self.augmentation, ShiftFlip):
                images = self.augmentation(images, generator)
            yield self.normalisation(images), self.labels[indices]

    def select(self, indices: Tensor, name: str) -> LoaderSplit:
        return LoaderSplit(
            name=name,
            paths=[self.paths[index] for index in indices.tolist()],
            labels=self.labels[indices],
            decoder=self.decoder,
            normalisation=self.normalisation,
            augmentation=self.augmentation,
            num_workers=self.num_workers,
        )

    def _load(self, plan: _Plan, crop: RandomResizedCrop | None) -> Iterator[tuple[Tensor, Tensor]]:
        loader: DataLoader[Any] = DataLoader(
            _Files(self.paths, self.decoder, crop),
            batch_sampler=plan,
            num_workers=self.num_workers,
            collate_fn=_collate,
            # Workers draw nothing from it; without one the loader would take a number from the global generator.
            generator=torch.Generator().manual_seed(0),
        )
        for batch in loader:
            if isinstance(batch, ValueError):
                raise batch
            yield batch


_Plan = list[list[tuple[int, Any]]]


class _Files(Dataset[Any]):
    def __init__(self, paths: tuple[Path, ...], decoder: Decoder, crop: RandomResizedCrop | None) -> None:
        self.paths = paths
        self.decoder = decoder
        self.crop = crop

    def __getitem__(self, item: tuple[int, int | None]) -> tuple[Tensor, int] | ValueError:
        index, seed = item
        try:
            if self.crop is None or seed is None:
                return self.decoder(self.paths[index]), index
            return self.decoder.augmented(self.paths[index], self.crop, seed), index
        except ValueError as error:
            # Returned, for a worker's exception reaches the user with the worker's traceback as its message.
            return ValueError(*error.args)


def _collate(items: list[tuple[Tensor, int] | ValueError]) -> tuple[Tensor, Tensor] | ValueError:
    good: list[tuple[Tensor, int]] = []
    for item in items:
        if isinstance(item, ValueError):
            return item
        good.append(item)
    return torch.stack([image for image, _ in good]), torch.tensor([index for _, index in good])
