"""The datasets by name; each function is what one file of conf/dataset builds.

All take `seed` for the search split alone: the test split never depends on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

from backends.augmentation import RandomResizedCrop, ShiftFlip
from backends.data import Normalisation, Split, Splits, TensorSplit, carve_search, stratified_indices
from backends.image_folder import ImageTree, scan
from backends.streaming import Decoder, LoaderSplit, read_into_memory

Normalise = str | Mapping[str, Sequence[float]]

#: Folders up to this many decoded bytes are held in memory unless the user decides.
MEMORY_LIMIT = 2 << 30

_DIGITS_TEST_SEED = 0
_DIGITS_TEST_IMAGES = 360


def digits(
    *,
    image_size: int,
    search_images: int,
    max_search_share: float,
    seed: int,
    normalise: Normalise,
    augmentation: ShiftFlip,
) -> Splits:
    """Scikit-learn's 1,797 handwritten digits (8×8, inside the wheel), resized to `image_size` as grey RGB images.

    They come without a test split; ours is the same 360 stratified images for every run.
    """
    data = load_digits()
    labels = torch.from_numpy(data.target).to(torch.int64)
    grey = torch.from_numpy(data.images).to(torch.float32)[:, None] * (255 / 16)  # [N, 1, 8, 8]
    images = _resized(grey, image_size).expand(-1, 3, -1, -1)
    everything = TensorSplit(
        name="digits",
        images=images,
        labels=labels,
        normalisation=Normalisation.of(normalise),
        augmentation=augmentation,
    )
    in_test = torch.zeros(len(labels), dtype=torch.bool)
    in_test[stratified_indices(labels, _DIGITS_TEST_IMAGES, _DIGITS_TEST_SEED)] = True
    train, search = carve_search(
        everything.select((~in_test).nonzero().squeeze(1), "train"),
        search_images=search_images,
        max_search_share=max_search_share,
        seed=seed,
    )
    test = everything.select(in_test.nonzero().squeeze(1), "test")
    return Splits(train, search, test, 10, image_size, tuple(map(str, data.target_names)))


def cifar10(
    *,
    root: str,
    download: bool,
    image_size: int,
    search_images: int,
    max_search_share: float,
    seed: int,
    normalise: Normalise,
    augmentation: ShiftFlip,
) -> Splits:
    """CIFAR-10 in torchvision's layout, ``root/cifar-10-batches-py``. Raises ValueError when it is not there."""
    sets = _read_cifar(torchvision.datasets.CIFAR10, root, download)
    return _cifar_splits(sets, image_size, search_images, max_search_share, seed, normalise, augmentation)


def cifar100(
    *,
    root: str,
    download: bool,
    image_size: int,
    search_images: int,
    max_search_share: float,
    seed: int,
    normalise: Normalise,
    augmentation: ShiftFlip,
) -> Splits:
    """CIFAR-100 in torchvision's layout, ``root/cifar-100-python``. Raises ValueError when it is not there."""
    sets = _read_cifar(torchvision.datasets.CIFAR100, root, download)
    return _cifar_splits(sets, image_size, search_images, max_search_share, seed, normalise, augmentation)


def imagenet(
    *,
    root: str,
    image_size: int,
    crop_ratio: float,
    search_images: int,
    max_search_share: float,
    seed: int,
    normalise: Normalise,
    augmentation: RandomResizedCrop | ShiftFlip,
    num_workers: int,
) -> Splits:
    """ImageNet in torchvision's layout, ``root/train/<wnid>/*`` and ``root/val/<wnid>/*``, streamed; val is the test.

    Raises ValueError as `imagefolder` does.
    """
    return _folder_splits(
        scan(Path(root), "train", "val"),
        Decoder(image_size, crop_ratio),
        Normalisation.of(normalise),
        augmentation,
        search_images=search_images,
        max_search_share=max_search_share,
        seed=seed,
        in_memory=False,
        num_workers=num_workers,
    )


def imagefolder(
    *,
    root: str,
    image_size: int,
    crop_ratio: float,
    search_images: int,
    max_search_share: float,
    seed: int,
    normalise: Normalise,
    augmentation: RandomResizedCrop | ShiftFlip,
    in_memory: bool | None,
    num_workers: int,
) -> Splits:
    """Any ``root/{train,test}/<class>/*`` tree of images; ``root/val`` is the test split when there is no test folder.

    `in_memory` None holds sets of up to 2 GiB decoded in memory and streams larger ones. `RandomResizedCrop` needs the
    files' own resolution, so it always streams. Raises ValueError, naming the folder or file, when a folder is missing
    or has no classes, a class is empty or in one split only, or an image doesn't decode.
    """
    folder = Path(root)
    has_test = (folder / "test").is_dir() or not (folder / "val").is_dir()
    tree = scan(folder, "train", "test" if has_test else "val")
    if in_memory and isinstance(augmentation, RandomResizedCrop):
        raise ValueError(
            "dataset.build.in_memory=true must go with ShiftFlip augmentation, but got RandomResizedCrop, which needs "
            "the files; set dataset.build.in_memory=false or change dataset.build.augmentation"
        )
    if in_memory is None:
        num_bytes = (len(tree.train_paths) + len(tree.test_paths)) * 3 * image_size**2
        in_memory = num_bytes <= MEMORY_LIMIT and isinstance(augmentation, ShiftFlip)
    return _folder_splits(
        tree,
        Decoder(image_size, crop_ratio),
        Normalisation.of(normalise),
        augmentation,
        search_images=search_images,
        max_search_share=max_search_share,
        seed=seed,
        in_memory=in_memory,
        num_workers=num_workers,
    )


def _resized(images: Tensor, size: int) -> Tensor:
    """[N, C, H, W] of any type in 0..255 -> uint8 [N, C, size, size], bilinear."""
    if size < 1:
        raise ValueError(f"`dataset.build.image_size >= 1` must hold, but got image_size={size}")
    if images.shape[-2:] != (size, size):
        images = F.interpolate(images.to(torch.float32), (size, size), mode="bilinear", antialias=True)
    return images.round().to(torch.uint8) if images.is_floating_point() else images


@dataclass(frozen=True)
class _Cifar:
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    class_names: tuple[str, ...]


def _read_cifar(dataset: type[torchvision.datasets.CIFAR10], root: str, download: bool) -> _Cifar:
    parts: list[tuple[Tensor, Tensor]] = []
    folder = Path(root) / dataset.base_folder
    for train in (True, False):
        try:
            loaded = dataset(root=root, train=train, download=download)
        except OSError as error:
            raise ValueError(
                f"{dataset.url} must be reachable and {root} writable, but got: {error}; get the archive elsewhere and "
                f"unpack it to {folder}"
            ) from error
        except (RuntimeError, EOFError) as error:
            raise ValueError(
                f"{dataset.__name__} must be in {folder}, but its files are missing or damaged there; "
                f"set dataset.build.download=true, or unpack {dataset.filename} into {root}"
            ) from error
        parts.append((torch.from_numpy(loaded.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(loaded.targets)))
    return _Cifar(*parts[0], *parts[1], tuple(loaded.classes))


def _cifar_splits(
    sets: _Cifar,
    image_size: int,
    search_images: int,
    max_search_share: float,
    seed: int,
    normalise: Normalise,
    augmentation: ShiftFlip,
) -> Splits:
    normalisation = Normalisation.of(normalise)
    whole, test = (
        TensorSplit(
            name=name,
            images=_resized(images, image_size),
            labels=labels,
            normalisation=normalisation,
            augmentation=augmentation,
        )
        for name, images, labels in (
            ("train", sets.train_images, sets.train_labels),
            ("test", sets.test_images, sets.test_labels),
        )
    )
    train, search = carve_search(whole, search_images=search_images, max_search_share=max_search_share, seed=seed)
    return Splits(train, search, test, len(sets.class_names), image_size, sets.class_names)


def _folder_splits(
    tree: ImageTree,
    decoder: Decoder,
    normalisation: Normalisation,
    augmentation: RandomResizedCrop | ShiftFlip,
    *,
    search_images: int,
    max_search_share: float,
    seed: int,
    in_memory: bool,
    num_workers: int,
) -> Splits:
    def split(name: str, paths: list[Path], labels: Tensor) -> Split:
        if in_memory and isinstance(augmentation, ShiftFlip):
            return read_into_memory(
                name=name,
                paths=paths,
                labels=labels,
                decoder=decoder,
                normalisation=normalisation,
                augmentation=augmentation,
            )
        return LoaderSplit(
            name=name,
            paths=paths,
            labels=labels,
            decoder=decoder,
            normalisation=normalisation,
            augmentation=augmentation,
            num_workers=num_workers,
        )

    whole, test = split("train", tree.train_paths, tree.train_labels), split("test", tree.test_paths, tree.test_labels)
    train, search = carve_search(whole, search_images=search_images, max_search_share=max_search_share, seed=seed)
    return Splits(train, search, test, len(tree.class_names), decoder.size, tree.class_names)
