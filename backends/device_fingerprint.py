"""What a latency was measured on: the machine, the runtime and how they were set."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class DeviceFingerprint:
    """Two latencies may stand beside each other only where these are equal.

    `device` is what the network ran on, ``cpu`` or a GPU's name, `versions` those of the runtime's packages.
    """

    runtime: str
    device: str
    processor: str
    cores: int
    threads: int
    batch_size: int
    dtype: str
    versions: Mapping[str, str]

    def __str__(self) -> str:
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        where = f"{self.processor}, {self.threads} of {self.cores} cores" if self.device == "cpu" else self.device
        return f"{self.runtime} ({versions}) on {where}, {self.dtype}, batch {self.batch_size}"

    @property
    def key(self) -> str:
        """Eight characters that stand for all of it, for file names."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:8]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "versions": dict(self.versions)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> DeviceFingerprint:
        """The inverse of `to_json`. Raises ValueError when `data` is not a fingerprint."""
        try:
            return cls(**data)
        except TypeError as error:
            raise ValueError(f"a device fingerprint must have the fields of `DeviceFingerprint`, but {error}") from None

    def differences(self, other: DeviceFingerprint) -> str:
        """What differs, as ``threads 1 / 2``; empty where nothing does."""
        mine, theirs = self.to_json(), other.to_json()
        return ", ".join(f"{name} {mine[name]} / {theirs[name]}" for name in mine if mine[name] != theirs[name])


def fingerprint(
    *, runtime: str, device: torch.device, threads: int, batch_size: int, versions: Mapping[str, str]
) -> DeviceFingerprint:
    """The fingerprint of this machine with these settings; what runs is float32."""
    return DeviceFingerprint(
        runtime=runtime,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        processor=_processor(),
        cores=os.cpu_count() or 1,
        threads=threads,
        batch_size=batch_size,
        dtype="float32",
        versions=dict(versions),
    )


def machine(device: torch.device) -> str:
    """The machine as people name it: the GPU where `device` is one, the processor and its cores."""
    processor = f"{_processor()}, {os.cpu_count() or 1} cores"
    return f"{torch.cuda.get_device_name(device)}, {processor}" if device.type == "cuda" else processor


def _processor() -> str:
    """The processor's name as the system gives it, with what tells models of one name apart."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    values: dict[str, str] = {}
    for line in lines:
        name, separator, value = line.partition(":")
        if separator:
            values.setdefault(name.strip(), value.strip())
    name = values.get("model name", platform.machine())
    # Virtual machines call whole product lines by one name; family and model number tell the generations apart.
    if "cpu family" in values:
        return f"{name} (family {values['cpu family']}, model {values.get('model', '?')})"
    return name
