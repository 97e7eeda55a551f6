"""Labelled images in named splits, and small sets of them held in memory.

A `Split` gives batches of normalised float32 images; where they come from (memory here, files in `backends.streaming`)
is its own affair. `Splits` is what a dataset is: train, search and test, where search is carved out of the training
set and test is the dataset's own.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from backends.augmentation import ShiftFlip

log = logging.getLogger(__name__)

#: Channel means and standard deviations of the training images as fractions of full brightness.
NORMALISATIONS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "digits": ((0.3055,) * 3, (0.3235,) * 3),
}


@dataclass(frozen=True)
class Normalisation:
    """``(image / 255 - mean) / std`` per channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, choice: str | Mapping[str, Sequence[float]]) -> Normalisation:
        """From a name of `NORMALISATIONS`, or from a mapping with lists `mean` and `std`. Raises ValueError."""
        if isinstance(choice, str):
            if choice not in NORMALISATIONS:
                raise ValueError(
                    f"dataset.build.normalise must be one of {', '.join(NORMALISATIONS)}, or lists under mean and std, "
                    f"but got {choice!r}"
                )
            return cls(*NORMALISATIONS[choice])
        mean, std = (tuple(float(value) for value in choice.get(key, ())) for key in ("mean", "std"))
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(
                f"dataset.build.normalise must have three channels' mean and positive std, but got {mean=} and {std=}"
            )
        return cls(mean, std)

    def __call__(self, images: Tensor) -> Tensor:
        """Uint8 [B, C, H, W] -> float32 [B, C, H, W]."""
        scale = torch.tensor([1 / (255 * std) for std in self.std])
        shift = torch.tensor([-mean / std for mean, std in zip(self.mean, self.std, strict=True)])
        return images.to(torch.float32).mul_(scale[:, None, None]).add_(shift[:, None, None])


class Split(Protocol):
    """Labelled images under a name: train, search, test or calibration.

    `batches` gives normalised float32 images [B, C, H, W] and int64 labels [B] in a fixed order, unaugmented.
    `training_batches` gives one epoch, shuffled and augmented from `generator` alone; a last batch of one image, whose
    batch statistics don't exist, is dropped. `fingerprint` tells apart splits that would give different batches.
    """

    @property
    def name(self) -> str: ...

    @property
    def num_images(self) -> int: ...

    @property
    def labels(self) -> Tensor: ...

    @property
    def fingerprint(self) -> str: ...

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]: ...

    def training_batches(self, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]: ...

    def select(self, indices: Tensor, name: str) -> Self:
        """The images at `indices` (int64), in that order, under another name."""
        ...


@dataclass(frozen=True)
class Splits:
    """A dataset. Searching, training and fine-tuning see `train` and `search` only; the final report reads `test`."""

    train: Split
    search: Split
    test: Split
    num_classes: int
    image_size: int
    class_names: tuple[str, ...]


class TensorSplit:
    """Images in memory: uint8 [N, C, H, W] with a normalisation, or float32 ones that are ready as they are.

    `augmentation` is applied to training batches only.
    """

    def __init__(
        self,
        *,
        name: str,
        images: Tensor,
        labels: Tensor,
        normalisation: Normalisation | None,
        augmentation: ShiftFlip | None,
    ) -> None:
        if len(images) != len(labels) or len(images) == 0:
            raise ValueError(
                f"split {name!r} must have as many images as labels and at least one, but got {len(images)} images "
                f"and {len(labels)} labels"
            )
        if (normalisation is None) != images.is_floating_point():
            raise ValueError(
                f"images of split {name!r} must be uint8 with a normalisation or float without one, but got "
                f"{images.dtype} and {normalisation=}"
            )
        self.name = name
        self.images = images
        self.labels = labels.to(torch.int64)
        self.normalisation = normalisation
        self.augmentation = augmentation

    @property
    def num_images(self) -> int:
        return len(self.images)

    @functools.cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr((self.name, self.normalisation, self.augmentation, self.images.shape)).encode())
        digest.update(self.images.contiguous().numpy().data)
        digest.update(self.labels.contiguous().numpy().data)
        return digest.hexdigest()

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        check_batch_size(batch_size)
        for start in range(0, self.num_images, batch_size):
            yield self._ready(self.images[start : start + batch_size]), self.labels[start : start + batch_size]

    def training_batches(self, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        for indices in shuffled_batches(self.num_images, batch_size, generator):
            images = self.images[indices]
            if self.augmentation is not None:
                images = self.augmentation(images, generator)
            yield self._ready(images), self.labels[indices]

    def select(self, indices: Tensor, name: str) -> TensorSplit:
        return TensorSplit(
            name=name,
            images=self.images[indices],
            labels=self.labels[indices],
            normalisation=self.normalisation,
            augmentation=self.augmentation,
        )

    def _ready(self, images: Tensor) -> Tensor:
        return self.normalisation(images) if self.normalisation is not None else images.to(torch.float32)


def check_batch_size(batch_size: int) -> None:
    """Raises ValueError unless at least 1."""
    if batch_size < 1:
        raise ValueError(f"`batch_size >= 1` must hold, but got {batch_size=}")


def shuffled_batches(num_images: int, batch_size: int, generator: torch.Generator) -> list[Tensor]:
    """One epoch's indices in random order, [batch_size] each but the last, which is dropped when it has one image."""
    check_batch_size(batch_size)
    order = torch.randperm(num_images, generator=generator)
    batches = [order[start : start + batch_size] for start in range(0, num_images, batch_size)]
    if len(batches) > 1 and len(batches[-1]) == 1 and batch_size > 1:
        batches.pop()
    return batches


def stratified_indices(labels: Tensor, num_images: int, seed: int) -> Tensor:
    """`num_images` indices of `labels` [N] with each class's share kept to within one image, in random order.

    What rounding leaves over goes to the classes with the largest remainders.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    counts = torch.bincount(labels)
    exact = counts.to(torch.float64) * num_images / len(labels)
    quota = exact.floor().to(torch.int64)
    leftover = num_images - int(quota.sum())
    quota[torch.argsort(exact - quota, descending=True, stable=True)[:leftover]] += 1
    # An image's rank among those of its class, in the shuffled order, decides whether it is within the quota.
    shuffled = labels[order]
    by_class = torch.argsort(shuffled, stable=True)
    starts = torch.cumsum(counts, 0) - counts
    rank = torch.empty_like(order)
    rank[by_class] = torch.arange(len(labels)) - starts[shuffled[by_class]]
    return order[rank < quota[shuffled]]


def subset(split: Split, num_images: int, seed: int, name: str) -> Split:
    """A stratified sample of `split` in random order; all of it when it has no more than `num_images`."""
    if num_images < 1:
        raise ValueError(f"`num_images >= 1` must hold for split {name!r}, but got {num_images=}")
    return split.select(stratified_indices(split.labels, min(num_images, split.num_images), seed), name)


def carve_search(train: Split, *, search_images: int, max_search_share: float, seed: int) -> tuple[Split, Split]:
    """What is left of the training set, as train, and the `search_images` taken out of it, as search.

    Stratified, and depends on `seed` only. Small sets give at most `max_search_share` of their images, which is logged.
    Raises ValueError when `search_images < 1`, the share is outside (0, 1), or nothing would be taken.
    """
    if search_images < 1 or not 0 < max_search_share < 1:
        raise ValueError(
            "`dataset.build.search_images >= 1` and `0 < dataset.build.max_search_share < 1` must hold, but got "
            f"{search_images=} and {max_search_share=}"
        )
    num_images = min(search_images, int(train.num_images * max_search_share))
    if num_images < 1:
        raise ValueError(
            f"the search split must get an image, but {max_search_share=} of {train.num_images} training images is "
            "none; raise dataset.build.max_search_share"
        )
    if num_images < search_images:
        log.info(
            "search split: %d images, not %d (max_search_share=%g of %d training images)",
            num_images,
            search_images,
            max_search_share,
            train.num_images,
        )
    taken = stratified_indices(train.labels, num_images, seed)
    is_left = torch.ones(train.num_images, dtype=torch.bool)
    is_left[taken] = False
    return train.select(is_left.nonzero().squeeze(1), "train"), train.select(taken, "search")
