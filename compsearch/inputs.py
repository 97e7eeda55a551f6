"""What a run was begun with beside its settings: the dense network's weights and the images, as fingerprints.

A settings file says where weights and images lie, not what is in them. A run that goes on with others would mix two
networks in one table.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from compsearch.protocols import Once
from compsearch.run_folder import RunFolder, RunFolderError

INPUTS_STAGE = "inputs"
_WEIGHTS_FILE = "weights_file"
#: As people call what differs.
_WORDS: Mapping[str, str] = {
    _WEIGHTS_FILE: "another content of model.weights",
    "network": "other weights of the network",
    "train": "other training images",
    "calibration": "other training images",
    "search": "other images of the search split",
    "test": "other images of the test split",
}


def check_inputs(config: Mapping[str, Any], once: Once, *, model: Any, splits: Any, calibration: Any) -> None:
    """Keeps the fingerprints of a new run's inputs; raises RunFolderError where a resumed one has others now.

    Training images are told by their labels, and by the `calibration` images among them: hashing all of a large set
    takes as long as reading it.
    """
    labels = hashlib.sha256(splits.train.labels.contiguous().numpy().data).hexdigest()
    now = {
        **_weights_file(config),
        "network": _network(model),
        "train": labels,
        "calibration": calibration.fingerprint,
        "search": splits.search.fingerprint,
        "test": splits.test.fingerprint,
    }
    _refuse_others(once(INPUTS_STAGE, lambda: now), now, "this one")


def check_weights_file(config: Mapping[str, Any], folder: RunFolder) -> None:
    """The same of the weights file alone, which takes no network and no images: also of a finished run."""
    begun = folder.result(INPUTS_STAGE)
    if begun is not None:
        _refuse_others(begun, _weights_file(config), str(folder.path))


def _refuse_others(begun: Mapping[str, Any], now: Mapping[str, str], place: str) -> None:
    others = [_WORDS[key] for key in now if begun.get(key, now[key]) != now[key]]
    if others:
        raise RunFolderError(
            f"a run is resumed with the weights and images it was begun with, but {place} was begun with "
            f"{' and '.join(dict.fromkeys(others))}; give another run_name, or delete its folder to start over"
        )


def _weights_file(config: Mapping[str, Any]) -> dict[str, str]:
    path = Path(str(config["model"]["weights"]))
    if not path.is_file():
        return {}
    with path.open("rb") as file:
        return {_WEIGHTS_FILE: hashlib.file_digest(file, "sha256").hexdigest()}


def _network(model: Any) -> str:
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        if isinstance(value, torch.Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
