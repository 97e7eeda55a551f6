"""What a caller has in hand: splits of datasets, loaders or plain tensors, and a network that must fit them."""

from __future__ import annotations

import copy
import functools
import hashlib
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from backends.data import Splits, carve_search, check_batch_size, shuffled_batches
from backends.seeding import isolated_rng

Given = Dataset[Any] | DataLoader[Any] | Sequence[Any]

#: Images that a fingerprint is made from: each may be a file to decode, twice.
_FINGERPRINTED = 16


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

    @functools.cached_property
    def fingerprint(self) -> str:
        """From the order, the labels and a few images: reading a large set whole would take as long as an epoch.

        Without the images where they differ when read again, augmented from a generator of the dataset's own.
        """
        digest = hashlib.sha256(f"{self.name} {type(self.dataset).__qualname__}".encode())
        digest.update(self.indices.numpy().data)
        digest.update(self.labels.numpy().data)
        images, again = self._some_images(), self._some_images()
        if images == again:
            digest.update(images)
        return digest.hexdigest()

    def _some_images(self) -> bytes:
        """A digest of evenly chosen images, as they are with the global generators freshly seeded."""
        digest = hashlib.sha256()
        num = min(_FINGERPRINTED, self.num_images)
        with isolated_rng(0), _others_seeded():
            for index in self.indices[[i * self.num_images // num for i in range(num)]].tolist():
                image = torch.as_tensor(self.dataset[index][0])
                digest.update(f"{image.dtype} {tuple(image.shape)}".encode())
                digest.update(image.detach().to("cpu", torch.float32).contiguous().numpy().data)
        return digest.digest()

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
    """Splits of `train` and `test`: datasets, lists of (image, label), loaders (their dataset is read), or a pair
    (images, labels) of tensors or arrays.

    `search` is carved out of `train` unless given; give one without augmentation where `train` augments. Images come
    ready, float [C, H, W]; labels count from 0. Raises ValueError for anything else.
    """
    whole, held_out = _split("train", train), _split("test", test)
    if search is None:
        left, carved = carve_search(whole, search_images=search_images, max_search_share=max_search_share, seed=seed)
    else:
        left, carved = whole, _split("search", search)
    num_classes = int(max(split.labels.max() for split in (whole, held_out, carved))) + 1
    images, _ = next(iter(whole.batches(1)))
    return Splits(left, carved, held_out, num_classes, int(images.shape[-1]), tuple(map(str, range(num_classes))))


def network_of(*, model: nn.Module, splits: Splits) -> nn.Module:
    """A copy of `model` in eval mode.

    Raises ValueError, in one line, unless it turns the images of every split into logits, one for each label at least.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"`model` must be a torch.nn.Module, a network built, but got a {type(model).__name__}")
    network = copy.deepcopy(model).eval()
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    for split in (splits.train, splits.search, splits.test):
        ((images, _),) = split.select(torch.arange(min(2, split.num_images)), split.name).batches(2)
        try:
            with isolated_rng(0, device), torch.no_grad():
                logits = network(images.to(device))
        except Exception as error:  # running a user's network can raise anything
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(
                f"`model` must take images as `{split.name}` gives them, but fails on {tuple(images.shape)} ({reason})"
            ) from error
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
            shape = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
            raise ValueError(
                f"`model` must return logits [B, num_classes], but returned {shape} for {len(images)} images; wrap it "
                "in a module that does"
            )
        highest = int(split.labels.max())
        if highest >= logits.shape[1]:
            raise ValueError(
                f"labels must be less than the number of the network's outputs, {logits.shape[1]}, but `{split.name}` "
                f"has {highest}; number the classes from 0, or give the network more outputs"
            )
    return network


def _split(name: str, given: Given) -> GivenSplit:
    num_workers = 0
    if isinstance(given, DataLoader):
        num_workers = given.num_workers
        given = given.dataset
    elif isinstance(given, tuple | list) and given and isinstance(given[0], Tensor | np.ndarray):
        given = _paired(name, given)
    is_map_style = hasattr(given, "__len__") and hasattr(given, "__getitem__")
    if not is_map_style or isinstance(given, IterableDataset):
        raise ValueError(
            f"`{name}` must be a dataset with a length, a loader of one, or (images, labels), but got "
            f"{type(given).__name__}"
        )
    _check_first_item(name, given)
    labels = _labels(name, given)
    return GivenSplit(
        name=name,
        dataset=cast(Dataset[Any], given),
        indices=torch.arange(len(labels)),
        labels=labels,
        num_workers=num_workers,
    )


@contextmanager
def _others_seeded() -> Iterator[None]:
    """The global generators of Python and NumPy, which datasets augment from too, seeded; as they were after."""
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002


def _paired(name: str, given: Sequence[Any]) -> Dataset[Any]:
    if len(given) != 2:
        raise ValueError(f"`{name}` must be (images, labels), but got {len(given)} tensors")
    images, labels = torch.as_tensor(given[0]), given[1]
    return TensorDataset(images, _checked_labels(name, labels, len(images)))


def _check_first_item(name: str, dataset: Any) -> None:
    """Raises ValueError unless `dataset` begins with an image as networks take them, and a label."""
    if len(dataset) == 0:
        raise ValueError(f"`{name}` must have an image, but is empty")
    try:
        item = dataset[0]
    except KeyError:  # a mapping, or a table
        item = dataset
    if not isinstance(item, tuple | list) or len(item) != 2:
        found = f"{type(item).__name__} of {len(item)}" if isinstance(item, tuple | list) else type(item).__name__
        raise ValueError(f"`{name}` must give (image, label) by index, but gives a {found}; wrap it in a dataset")
    image = torch.as_tensor(item[0]) if isinstance(item[0], Tensor | np.ndarray) else None
    if image is None or not image.is_floating_point() or image.ndim != 3:
        found = type(item[0]).__name__ if image is None else f"{image.dtype} of shape {tuple(image.shape)}"
        raise ValueError(
            f"images must be float tensors [C, H, W], normalised for the network, but `{name}` gives {found}; convert "
            "them first, or in the dataset's transform"
        )


def _labels(name: str, dataset: Any) -> Tensor:
    """Every label [N], without decoding images where the dataset keeps its labels in the open."""
    if isinstance(dataset, Subset):
        return _labels(name, dataset.dataset)[torch.as_tensor(list(dataset.indices))]
    if isinstance(dataset, TensorDataset):
        labels: Any = dataset.tensors[1]
    elif hasattr(dataset, "targets"):
        transform = getattr(dataset, "target_transform", None)
        labels = dataset.targets if transform is None else [transform(int(target)) for target in dataset.targets]
    else:
        labels = [dataset[index][1] for index in range(len(dataset))]
    return _checked_labels(name, labels, len(dataset))


def _checked_labels(name: str, labels: Any, num_images: int) -> Tensor:
    try:
        labels = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:  # a list of words, or of several numbers each
        raise ValueError(
            f"`{name}` must have one integer label per image, but has {type(labels).__name__} ({error})"
        ) from error
    if labels.ndim != 1 or labels.is_floating_point() or len(labels) != num_images or num_images == 0:
        raise ValueError(
            f"`{name}` must have one integer label per image, but has labels of {labels.dtype} and shape "
            f"{tuple(labels.shape)} for {num_images} images"
        )
    if labels.min() < 0:
        raise ValueError(f"labels must count from 0, but `{name}` has {int(labels.min())}; leave such images out")
    return cast(Tensor, labels.to("cpu", torch.int64))
