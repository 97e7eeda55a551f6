"""A run's network as a file for other runtimes, checked on images of the run's own dataset."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compsearch.composition import compose_config, make
from compsearch.loading import NETWORK_FILE, load, member_of
from compsearch.run_folder import disk_errors, read_config

#: Where each format is written: beside the weights, under this ending.
SUFFIXES = {"onnx": ".onnx", "program": ".pt2"}


@dataclass(frozen=True)
class ExportedFile:
    """A file, its size, and how closely it computes what PyTorch does, on which `images`.

    `difference` is the largest of any logit, `scale` the largest logit itself.
    """

    path: Path
    num_bytes: int
    difference: float
    scale: float
    images: str

    def __str__(self) -> str:
        return (
            f"{self.path}: {self.num_bytes:,} bytes; logits differ from PyTorch's by {self.difference:.1e} at most, "
            f"the largest is {self.scale:.3g} ({self.images})"
        )


def export(
    folder: str | Path,
    *,
    format: str = "onnx",
    cost_ratio: float | None = None,
    model: Any = None,
    images: Any = None,
    overrides: Sequence[str] = (),
) -> tuple[ExportedFile, ...]:
    """Writes the network of the finished run in `folder` beside its weights: model.onnx, model.pt2, or both.

    `format` is onnx, program (of `torch.export`) or all. `cost_ratio` picks a member of a family, family-0.5.onnx say.
    Each file is checked on `images` [N, C, H, W], ready for the network; where none are given, on the first of the
    run's search split, and on random ones where its dataset isn't to be had here. A run of `compsearch.compress` needs
    its `model`. `overrides` are the command line's, as in ``["onnx.opset=18"]``.

    Raises ValueError, in one line, when the folder holds no such network, or it can't be exported exactly.
    """
    ratio = "null" if cost_ratio is None else f"{cost_ratio:g}"
    config = compose_config([f"format={format}", f"cost_ratio={ratio}", *overrides], name="export")
    return _export(Path(folder), config, model, images)


def run_command(arguments: Sequence[str]) -> str:
    """What ``python -m compsearch export`` does with its `arguments`: a line per file. Raises ValueError."""
    is_option = bool(arguments) and (arguments[0].startswith("-") or "=" in arguments[0])
    if not arguments or (is_option and not Path(arguments[0]).is_dir()):
        got = f"got {arguments[0]!r}" if arguments else "got nothing"
        raise ValueError(
            f"export must be told the folder of a finished run first, but {got}; "
            "python -m compsearch export results/<run> [format=onnx|program|all] [cost_ratio=0.5]"
        )
    folder, *overrides = arguments
    files = _export(Path(folder), compose_config(overrides, name="export"), None, None)
    return "\n".join(str(file) for file in files)


def _export(path: Path, config: Mapping[str, Any], model: Any, images: Any) -> tuple[ExportedFile, ...]:
    formats = _formats(config["format"])
    network = load(path, cost_ratio=config["cost_ratio"], model=model)
    weights = path / member_of(path, config["cost_ratio"])[1]
    checked_on, described = (images, f"{len(images)} given images") if images is not None else _images(path, config)
    files = []
    for name in formats:
        target = weights.with_suffix(SUFFIXES[name])
        with disk_errors(target):
            done = make(config[name], {"network": network, "images": checked_on, "path": target}, place=name)
        files.append(ExportedFile(target, done.num_bytes, done.difference, done.scale, described))
    return tuple(files)


def _formats(format: str) -> tuple[str, ...]:
    if format == "all":
        return tuple(SUFFIXES)
    if format not in SUFFIXES:
        raise ValueError(f"`format` must be one of {', '.join(SUFFIXES)}, all, but got {format!r}")
    return (format,)


def _images(path: Path, settings: Mapping[str, Any]) -> tuple[Tensor, str]:
    """Images to compare on, and which they are: the run's own, or random ones where its dataset isn't here."""
    run, num_images = read_config(path), settings["num_images"]
    if num_images < 1:
        raise ValueError(f"`num_images >= 1` must hold, but got {num_images=}")
    name = run["dataset"]["name"]
    if name == "given":
        reason = "the run's own were passed to compsearch.compress"
    else:
        try:
            splits = make(run["dataset"]["build"], {"seed": run["seed"]}, place="dataset.build")
            images, _ = next(iter(splits.search.batches(num_images)))
            return images, f"{len(images)} images of the search split of {name}"
        except (ValueError, OSError) as error:  # its files are elsewhere
            reason = f"{name} can't be read here: {(str(error).splitlines() or ['?'])[0]}"
    shape = json.loads((path / NETWORK_FILE).read_text())["input_shape"]
    random = torch.randn(num_images, *shape, generator=torch.Generator().manual_seed(run["seed"]))
    return random, f"{num_images} random images, as {reason}"
