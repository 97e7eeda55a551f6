"""A compressed network from the folder of its run, in a process that never searched."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch

from compsearch.composition import compose_config, make, make_network
from compsearch.family import FAMILY_FILE, load_state
from compsearch.run_folder import RunFolderError, read_config
from compsearch.space import Policy, SearchSpace

POLICY_FILE = "policy.json"
RECOVERED_FILE = "recovered.pt"
MODEL_FILE = "model.pt"
NETWORK_FILE = "network.json"


def load(folder: str | Path, *, cost_ratio: float | None = None, fine_tuned: bool = True, model: Any = None) -> Any:
    """The network that the run in `folder` ended with, its final weights loaded, on the CPU in eval mode.

    `cost_ratio` picks a member of a family, as it was asked for; the lowest otherwise. Without `fine_tuned` it has the
    weights from before fine-tuning, which are kept of a run's own network only. The dense network is built anew
    from the run's config, without data or downloads; for a run of `compsearch.compress` give it as `model`, which is
    not changed. Raises ValueError, in one line, when the folder holds no such network.
    """
    path = Path(folder)
    config = read_config(path)
    try:
        shapes = json.loads((path / NETWORK_FILE).read_text())
        aligned = shapes.pop("space", {})
        policy, weights = member_of(path, cost_ratio)
        weights = weights if fine_tuned else _before_finetuning(path, weights)
    except FileNotFoundError as error:
        raise RunFolderError(f"{path} must hold a finished run, but {error.filename} is missing") from None
    if model is None:
        if config["model"]["name"] == "given":
            raise ValueError(f"{path} is a run of compsearch.compress: give the network it compressed as `model`")
        collaborators = {**shapes, "seed": config["seed"], "weights": None}
        model = make_network(config["model"]["build"], collaborators)
    model = copy.deepcopy(model).cpu().eval()
    example = torch.zeros(2, *shapes["input_shape"])
    available = {"model": model, "example_input": example}
    space: SearchSpace = make({**config["space"], **aligned}, available, place="space")
    space.check(policy)
    surgery = make(config.get("surgery") or compose_config(["run_name="])["surgery"], {}, place="surgery")
    result = {"policy": policy, "state": load_state(path / weights)}
    collaborators = {"model": model, "space": space, "surgery": surgery, **result}
    return make(config["loader"], collaborators, place="loader")


def _before_finetuning(path: Path, weights: str) -> str:
    if weights != MODEL_FILE or not (path / RECOVERED_FILE).is_file():
        raise ValueError(
            f"`fine_tuned` must be true where the weights before fine-tuning were not kept, but {path} has only "
            f"{weights} of this network"
        )
    return RECOVERED_FILE


def member_of(path: Path, cost_ratio: float | None) -> tuple[Policy, str]:
    """The policy of a member, and the file of its weights. Raises ValueError for a member that is not there."""
    if cost_ratio is None:
        return Policy.from_json(json.loads((path / POLICY_FILE).read_text())), MODEL_FILE
    if (path / MODEL_FILE).is_file() and not (path / FAMILY_FILE).is_file():
        own = read_config(path)["budget"]["cost_ratio"]
        which = "" if own is None else f", at cost_ratio {own:g}"
        raise ValueError(
            f"`cost_ratio` must pick a member of a family, but {path} is a run of one network{which}; leave "
            "cost_ratio out"
        )
    members = json.loads((path / FAMILY_FILE).read_text())["members"]
    for member in members:
        if f"{member['cost_ratio']:g}" == f"{cost_ratio:g}":
            return Policy.from_json(member["policy"]), member["weights"]
    offered = ", ".join(f"{member['cost_ratio']:g}" for member in members)
    raise ValueError(f"`cost_ratio` must be one of {path}'s family, {offered}, but got {cost_ratio:g}")
