"""Splits of the data a caller has in hand: torch datasets, loaders, or plain tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from backends.data import Splits, carve_search, check_batch_size, shuffled_batches

Given = Dataset[Any] | DataLoader[Any] | Sequence[Tensor]


class GivenSplit:
    """The images of a map-style dataset at `indices`, as the dataset gives them: (float image [C, H, W], label)."""

    def __init__(self, *, name: str, dataset: Dataset[Any], indices: Tensor, labels: Tensor, num_workers: int) -> None:
        self.name = name
        self.dataset = dataset
        self.indices = indices
        self.labels = labels
        self.num_workers = num_workers

    @property
    def num_images(self) -> int:
        return len(self.indices)

    @property
    def fingerprint(self) -> str:
        """Of the order and the labels; the images themselves may be augmented anew each time."""
        digest = hashlib.sha256(f"{self.name} {type(self.dataset).__qualname__}".encode())
        digest.update(self.indices.numpy().data)
        digest.update(self.labels.numpy().data)
        return digest.hexdigest()

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        check_batch_size(batch_size)
        yield from self._load([self.indices[i : i + batch_size] for i in range(0, self.num_images, batch_size)])

    def training_batches(self, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        yield from self._load([self.indices[i] for i in shuffled_batches(self.num_images, batch_size, generator)])

    def select(self, indices: Tensor, name: str) -> GivenSplit:
        return GivenSplit(
            name=name,
            dataset=self.dataset,
            indices=self.indices[indices],
            labels=self.labels[indices],
            num_workers=self.num_workers,
        )

    def _load(self, batches: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        order = [batch.tolist() for batch in batches]
        # Without a generator of its own a loader draws its workers' seeds from torch's global one.
        own = torch.Generator().manual_seed(0)
        loader = DataLoader(self.dataset, batch_sampler=order, num_workers=self.num_workers, generator=own)
        for images, labels in loader:
            yield images.to(torch.float32), torch.as_tensor(labels, dtype=torch.int64)


def splits_of(
    *, train: Given, test: Given, search: Given | None, search_images: int, max_search_share: float, seed: int
) -> Splits:
    """Splits of `train` and `test`: datasets, loaders (their dataset is read), or a pair (images, labels) of tensors.

    `search` is carved out of `train` unless given; give one without augmentation where `train` augments. Images come
    ready, float [C, H, W]. Raises ValueError for anything else.
    """
    whole, held_out = _split("train", train), _split("test", test)
    if search is None:
        left, carved = carve_search(whole, search_images=search_images, max_search_share=max_search_share, seed=seed)
    else:
        left, carved = whole, _split("search", search)
    num_classes = int(max(split.labels.max() for split in (whole, held_out, carved))) + 1
    images, _ = next(iter(whole.batches(1)))
    if images.ndim != 4:
        raise ValueError(f"images must be [C, H, W] tensors, but `train` gives one of shape {tuple(images.shape[1:])}")
    return Splits(left, carved, held_out, num_classes, int(images.shape[-1]), tuple(map(str, range(num_classes))))


def _split(name: str, given: Given) -> GivenSplit:
    num_workers = 0
    if isinstance(given, DataLoader):
        num_workers = given.num_workers
        given = given.dataset
    elif isinstance(given, tuple | list):
        given = TensorDataset(*given)
    if not hasattr(given, "__len__") or not hasattr(given, "__getitem__"):
        raise ValueError(
            f"`{name}` must be a dataset with a length, a loader of one, or (images, labels), but got "
            f"{type(given).__name__}"
        )
    labels = _labels(name, given)
    return GivenSplit(
        name=name,
        dataset=cast(Dataset[Any], given),
        indices=torch.arange(len(labels)),
        labels=labels,
        num_workers=num_workers,
    )


def _labels(name: str, dataset: Any) -> Tensor:
    """Every label [N], without decoding images where the dataset keeps its labels in the open."""
    if isinstance(dataset, TensorDataset):
        labels: Any = dataset.tensors[1]
    elif isinstance(dataset, Subset):
        return _labels(name, dataset.dataset)[torch.as_tensor(list(dataset.indices))]
    elif hasattr(dataset, "targets"):
        labels = dataset.targets
    else:
        labels = [int(dataset[index][1]) for index in range(len(dataset))]
    labels = torch.as_tensor(labels)
    if labels.ndim != 1 or labels.is_floating_point() or len(labels) != len(dataset) or len(labels) == 0:
        raise ValueError(
            f"`{name}` must have one integer label per image, but has labels of {labels.dtype} and shape "
            f"{tuple(labels.shape)} for {len(dataset)} images"
        )
    return cast(Tensor, labels.to(torch.int64))
