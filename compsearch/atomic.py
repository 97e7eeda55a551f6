"""Files that are there whole or not at all.

A file is written to a temporary name in its own folder, flushed to the disk and renamed over the old one, so that a
killed process, a full disk or a power cut leaves the old content or the new, never a part. The flush (`sync`) guards
against the power cut only; whoever writes many times a second may leave it out.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

#: Temporary files match this pattern; whoever owns the folder may delete leftovers of a killed process.
TEMPORARY_PATTERN = ".*.tmp"


def write_bytes(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Replaces the file at `path`. OSError leaves the old file and no temporary one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        try:
            _write_all(descriptor, data)
            if sync:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)  # noqa: PTH105 (one module for every call that touches the disk)
    except BaseException:  # a KeyboardInterrupt must not leave the temporary file either
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Replaces the file at `path` with `text` in UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Replaces the file at `path` with indented JSON; numbers that are not finite become null."""
    write_text(path, json.dumps(finite_or_none(data), indent=2, allow_nan=False) + "\n")


def write_torch(path: Path, state: Mapping[str, Any], *, sync: bool = True) -> None:
    """Replaces the file at `path` with what ``torch.load(path, weights_only=True)`` reads as `state`."""
    buffer = io.BytesIO()  # torch's own writer turns a full disk into an internal error, so the disk is left to us
    torch.save(dict(state), buffer)
    write_bytes(path, buffer.getvalue(), sync=sync)


def append_bytes(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Appends to the file at `path`, creating it. OSError leaves the file as it was."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        try:
            _write_all(descriptor, data)
            if sync:
                os.fsync(descriptor)
        except BaseException:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)


def finite_or_none(value: Any) -> Any:
    """`value` with every NaN and infinity in it, at any depth, replaced by None: JSON has no word for them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite_or_none(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_none(entry) for entry in value]
    return value


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
