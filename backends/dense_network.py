"""The network a run starts from: built, and given the weights the user chose."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from backends.data import Splits
from backends.seeding import isolated_rng
from backends.training import Recipe
from backends.weights import load_weights, trained_weights
from backends.zoo import check_network

log = logging.getLogger(__name__)


def dense_network(
    *,
    build: Callable[[str | None], nn.Module],
    description: Mapping[str, Any],
    name: str,
    weights: str,
    splits: Splits,
    recipe: Recipe,
    device: torch.device,
    seed: int,
    cache_dir: str,
) -> nn.Module:
    """A network in eval mode on `device`.

    `weights` is trained (on the train split by `recipe`, kept in `cache_dir` by the hash of `description` and all else
    that determines them), random, the path of a state_dict, or a name that the builder itself knows (torchvision's
    enums): `build` gets that name, None otherwise. Raises ValueError when a weights file or name is not usable, or the
    network doesn't fit the dataset.
    """
    is_path = weights.endswith((".pt", ".pth", ".bin", ".tar", ".ckpt")) or "/" in weights or Path(weights).is_file()
    own = weights in ("trained", "random") or is_path
    with isolated_rng(seed):
        network = build(None if own else weights)
    check_network(network, splits)
    if is_path:
        load_weights(network, Path(weights).expanduser())
        log.info("weights: %s", weights)
    elif weights == "trained":
        trained_weights(
            network,
            splits.train,
            recipe,
            name=f"{name}-{splits.train.num_images}",
            description={**description, "seed": seed},
            device=device,
            seed=seed,
            cache_dir=Path(cache_dir).expanduser(),
        )
    return network.to(device).eval()
