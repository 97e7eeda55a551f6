"""Tensors and plain values on disk, written whole or not at all."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from compsearch.atomic import write_torch


def save_atomically(value: Mapping[str, Any], path: Path) -> None:
    """Writes `value` (tensors and plain values) to `path` under a temporary name, then renames it.

    Whoever reads `path` sees the old file or the new one. Raises ValueError, leaving nothing behind, when the folder
    can't be written or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_torch(path, value)
    except OSError as error:
        raise ValueError(
            f"a checkpoint's folder must be writable and have room, but {path} got: {error.strerror}; "
            "free some space or choose another folder"
        ) from error


def load_plain(path: Path) -> Any:
    """What `save_atomically` or ``torch.save`` wrote, on the CPU and with weights_only.

    Raises ValueError, in one line, when the file is missing, truncated, or holds more than tensors and plain values.
    """
    if not path.is_file():
        raise ValueError(f"a weights file must exist, but got {str(path)!r}; check the path")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch comments on odd files before it refuses them; the error says it all
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"a weights file must hold tensors and plain values only, but {str(path)!r} does not; "
            "save model.state_dict(), not the model"
        ) from error
    except Exception as error:  # bytes that are no weights lead torch's unpickler to IndexError, TypeError, anything
        reason = (str(error).splitlines() or ["it ends early"])[0]
        raise ValueError(
            f"a weights file must be readable by torch.load, but {str(path)!r} is not ({reason}); write it again"
        ) from error
