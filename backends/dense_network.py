"""The network a run starts from: built, then given the weights the user chose.

Two steps, so that everything that depends on shapes alone (the search space, the budget) can be checked before hours
are spent on training.
"""

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

_SUFFIXES = (".pt", ".pth", ".bin", ".tar", ".ckpt")


def build_network(
    *, build: Callable[[str | None], nn.Module], weights: str, splits: Splits, device: torch.device, seed: int
) -> nn.Module:
    """A new network in eval mode on `device`; its initial weights follow from `seed`.

    `build` gets `weights` when it is a name that only the builder can know (torchvision's enums), None otherwise.
    Raises ValueError when the network doesn't fit the dataset.
    """
    with isolated_rng(seed):
        network = build(None if weights in ("trained", "random") or _is_path(weights) else weights)
    check_network(network, splits)
    return network.to(device).eval()


def give_weights(
    *,
    model: nn.Module,
    description: Mapping[str, Any],
    name: str,
    weights: str,
    splits: Splits,
    recipe: Recipe,
    device: torch.device,
    seed: int,
    cache_dir: str,
) -> None:
    """Loads or trains the weights of a network just built, in place.

    `weights` is trained (on the train split by `recipe`, kept in `cache_dir` by the hash of `description` and all else
    that determines them) or the path of a state_dict; nothing is done for anything else. Raises ValueError when a file
    is not usable.
    """
    if _is_path(weights):
        load_weights(model, Path(weights).expanduser())
        log.info("weights: %s", weights)
    elif weights == "trained":
        trained_weights(
            model,
            splits.train,
            recipe,
            name=f"{name}-{splits.train.num_images}",
            description={**description, "seed": seed},
            device=device,
            seed=seed,
            cache_dir=Path(cache_dir).expanduser(),
        )
    model.eval()


def _is_path(weights: str) -> bool:
    return weights.endswith(_SUFFIXES) or "/" in weights or Path(weights).is_file()
