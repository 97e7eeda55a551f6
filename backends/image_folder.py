"""Which image files a folder holds, and of which class each is."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

#: Files of these kinds are images; anything else in a class folder is passed over.
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})


@dataclass(frozen=True)
class ImageTree:
    """The files of a training and a test split; labels are int64 indices into the sorted `class_names`."""

    class_names: tuple[str, ...]
    train_paths: list[Path]
    train_labels: Tensor
    test_paths: list[Path]
    test_labels: Tensor


def scan(root: Path, train_name: str, test_name: str) -> ImageTree:
    """The images of ``root/{train_name,test_name}/<class>/``, subfolders and links included, hidden files not.

    Raises ValueError, naming the folder, when one is missing or empty, or one has a class that the other has not.
    """
    train, test = _classes(root, train_name, test_name), _classes(root, test_name, train_name)
    class_names = tuple(train)
    lacking = [
        f"{root / name} has no {', '.join(sorted(missing))}"
        for name, missing in ((train_name, test.keys() - train.keys()), (test_name, train.keys() - test.keys()))
        if missing
    ]
    if lacking:
        raise ValueError(
            f"{train_name} and {test_name} must have the same classes, but {' and '.join(lacking)}; add their images, "
            "or remove these classes from both"
        )
    label = {name: index for index, name in enumerate(class_names)}
    (train_paths, train_labels), (test_paths, test_labels) = (
        (
            [path for paths in tree.values() for path in paths],
            torch.tensor([label[name] for name, paths in tree.items() for _ in paths]),
        )
        for tree in (train, test)
    )
    return ImageTree(class_names, train_paths, train_labels, test_paths, test_labels)


def _classes(root: Path, name: str, other: str) -> dict[str, list[Path]]:
    """Class name -> its images, both sorted."""
    folder = root / name
    if not folder.is_dir():
        raise ValueError(
            f"dataset.build.root must hold {name}/<class>/ and {other}/<class>/, but there is no folder {folder}; "
            "put the images there or set dataset.build.root"
        )
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not classes:
        raise ValueError(
            f"{folder} must hold one folder per class, but it has none; put the images in {folder}/<class>/"
        )
    tree: dict[str, list[Path]] = {}
    for path in classes:
        files = [
            Path(parent) / file
            for parent, _, files in os.walk(path, followlinks=True)
            for file in files
            if Path(file).suffix.lower() in IMAGE_SUFFIXES and not file.startswith(".")
        ]
        if not files:
            raise ValueError(
                f"a class folder must hold images ({', '.join(sorted(IMAGE_SUFFIXES))}), but {path} has none; "
                f"fill it, or remove {path.name} from {name} and {other}"
            )
        tree[path.name] = sorted(files)
    return tree
