"""A network's weights: from a local file, or trained here once and kept."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from backends.checkpoint import load_plain, save_atomically
from backends.data import Split
from backends.precision import training_precision
from backends.training import Recipe, structure_digest, train

log = logging.getLogger(__name__)

#: How many keys of each kind an error lists.
_LISTED = 3


def load_weights(network: nn.Module, path: Path) -> None:
    """Loads a state_dict into `network`, in place, all of it or nothing.

    The file holds one, or a dictionary with one under 'state_dict' or 'model'; a 'module.' before every name, which
    data-parallel training leaves, is stripped. Raises ValueError, in one line, when the file is missing or unreadable,
    or listing the first missing, unexpected and misshapen keys.
    """
    given = _state_dict(load_plain(path), path)
    wanted = network.state_dict()
    misshapen = [
        f"{key} {tuple(given[key].shape)} for {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in given and given[key].shape != value.shape
    ]
    # BN's batch counter is younger than many public checkpoints, and unused with a fixed momentum.
    missing = [key for key in wanted if key not in given and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in given if key not in wanted]
    problems = [
        f"{len(keys)} {kind} ({', '.join(keys[:_LISTED])}{', …' if len(keys) > _LISTED else ''})"
        for kind, keys in (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen))
        if keys
    ]
    if problems:
        raise ValueError(
            f"weights must belong to this network, but {str(path)!r} has {', '.join(problems)}; "
            "check the model's name, depth and number of classes"
        )
    network.load_state_dict(given, strict=False)


def _state_dict(loaded: Any, path: Path) -> dict[str, Tensor]:
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
            break
    if not isinstance(loaded, dict) or not loaded or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise ValueError(
            f"a weights file must hold a state_dict, alone or under 'state_dict' or 'model', but {str(path)!r} does not"
        )
    if all(key.startswith("module.") for key in loaded):
        loaded = {key.removeprefix("module."): value for key, value in loaded.items()}
    return dict(loaded)


def trained_weights(
    network: nn.Module,
    split: Split,
    recipe: Recipe,
    *,
    name: str,
    description: Mapping[str, Any],
    device: torch.device,
    seed: int,
    cache_dir: Path,
) -> Path:
    """Trains `network` on `split`, in place, or loads what the same training gave before; returns the cached file.

    The file's name is `name` and the hash of what determines the weights: `description` (plain values: how the network
    was made, the seed of its initial weights included), its structure, the split, the recipe at the precision `device`
    gives, and `seed`. An interrupted training resumes after its last whole epoch. Two processes that train the same do
    so twice, with the same result. Raises ValueError as `train` and `save_atomically` do.
    """
    recipe = dataclasses.replace(recipe, precision=training_precision(recipe.precision, network, device))
    made_from = {
        "description": dict(description),
        "structure": structure_digest(network),
        "split": split.fingerprint,
        "recipe": dataclasses.asdict(recipe),
        "seed": seed,
    }
    text = json.dumps(made_from, sort_keys=True)
    stem = f"{re.sub('[^A-Za-z0-9._-]+', '_', name)}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    path = cache_dir / f"{stem}.pt"
    if path.exists():
        log.info("weights trained before: %s", path)
        load_weights(network, path)
        network.to(device)
        return path
    log.info("training %s for %d epochs on %d images; kept in %s", name, recipe.epochs, split.num_images, path)
    checkpoint = cache_dir / f"{stem}.partial.pt"
    train(network, split, recipe, device=device, seed=seed, checkpoint=checkpoint, progress=f"training {name}")
    save_atomically({"state_dict": network.state_dict(), "made_from": text}, path)
    checkpoint.unlink(missing_ok=True)
    return path
