"""Measured energy, where a machine counts it: RAPL for processors, NVML for NVIDIA GPUs.

Both count everything that the chip does: idle power and other programs are in, and nothing is subtracted. What the
machine draws when idle can be measured just before, and is reported beside the energy. Where there is no counter there
is no number; none is ever estimated from a power rating. (The analytic model is `backends.energy`.)
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import torch

from backends.extras import import_extra

log = logging.getLogger(__name__)

#: Where Linux shows RAPL's counters, those of AMD's processors too.
POWERCAP = Path("/sys/class/powercap")
#: Counters run round (RAPL's in minutes), so they are read at least this often.
_READ_EVERY_S = 1.0


class NoCounterError(Exception):
    """There is no energy counter to read; the message says why, in one line."""


class EnergyCounter(Protocol):
    """A counter that only ever rises. `name` is of the counter, `covers` says what is in its numbers."""

    name: str
    covers: str

    def read_mj(self) -> float:
        """Millijoules since the counter was opened."""
        ...


@dataclass(frozen=True)
class EnergyReading:
    """Energy of `num_runs` runs in a row, in all `seconds` and `energy_mj`; `idle_w` is what was drawn before them.

    `counter` and `covers` say what was read. `idle_w` is None where it was not measured; it is not subtracted.
    """

    energy_mj: float
    seconds: float
    num_runs: int
    counter: str
    covers: str
    idle_w: float | None

    @property
    def per_run_mj(self) -> float:
        return self.energy_mj / self.num_runs

    @property
    def watts(self) -> float:
        return self.energy_mj / 1e3 / self.seconds

    def __str__(self) -> str:
        idle = "" if self.idle_w is None else f"; idle before: {self.idle_w:.3g} W, not subtracted"
        return (
            f"{self.per_run_mj:.4g} mJ per run over {self.num_runs} runs, {self.watts:.3g} W, measured by "
            f"{self.counter} ({self.covers}{idle})"
        )


def measure_energy(
    run: Callable[[], object],
    *,
    device: torch.device,
    min_s: float,
    idle_s: float = 0.0,
    powercap: Path = POWERCAP,
) -> EnergyReading | None:
    """The energy of `run`, which works on `device`, repeated for at least `min_s` seconds; None without a counter.

    With `idle_s`, the machine is left alone that long first, for the idle power. Counters are updated some ten times a
    second, so `min_s` below a second measures little. Logs why where there is no counter. Raises ValueError.
    """
    if not (min_s > 0 and idle_s >= 0):
        raise ValueError(f"`min_s > 0` and `idle_s >= 0` must hold to measure energy, but got {min_s=}, {idle_s=}")
    try:
        counter = open_counter(device, powercap=powercap)
    except NoCounterError as error:
        log.info("energy is not measured: %s", error)
        return None
    _wait(device)
    idle_w = _idle_watts(counter, idle_s) if idle_s else None
    before, start = counter.read_mj(), time.perf_counter()
    read_at, num_runs = start, 0
    while True:
        run()
        _wait(device)
        num_runs += 1
        now = time.perf_counter()
        if now - start >= min_s:
            break
        if now - read_at >= _READ_EVERY_S:
            counter.read_mj()
            read_at = now
    energy, seconds = counter.read_mj() - before, time.perf_counter() - start
    return EnergyReading(energy, seconds, num_runs, counter.name, counter.covers, idle_w)


def open_counter(device: torch.device, *, powercap: Path = POWERCAP) -> EnergyCounter:
    """The counter of the chip that `device` is on. Raises NoCounterError."""
    if device.type == "cpu":
        return RaplCounter(powercap)
    if device.type == "cuda":
        # NVML numbers all GPUs of the machine, CUDA those it is shown: only the UUID means the same to both.
        return NvmlCounter(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    raise NoCounterError(f"no energy counter is known for device {device.type}")


class RaplCounter:
    """RAPL's packages, summed. Raises NoCounterError where there are none, or one of them may not be read."""

    covers = "whole processor packages without memory modules, idle power and other programs included"

    def __init__(self, root: Path = POWERCAP) -> None:
        self._zones: list[Path] = []
        names = []
        for zone in sorted(root.glob("intel-rapl:*")):
            # Beside packages there are their parts, and platforms, which contain them.
            name = _text(zone / "name")
            if name.startswith("package"):
                self._zones.append(zone)
                names.append(name)
        if not self._zones:
            raise NoCounterError(f"this machine shows no RAPL packages in {root}")
        self.name = f"RAPL {', '.join(names)}"
        self._ranges = [_number(zone / "max_energy_range_uj") for zone in self._zones]
        self._last = [_number(zone / "energy_uj") for zone in self._zones]
        self._total_uj = 0

    def read_mj(self) -> float:
        """Millijoules since the counter was opened."""
        now = [_number(zone / "energy_uj") for zone in self._zones]
        for before, after, most in zip(self._last, now, self._ranges, strict=True):
            self._total_uj += after - before if after >= before else after + most - before
        self._last = now
        return self._total_uj / 1e3


class NvmlCounter:
    """The total energy of the GPU of that UUID. Raises NoCounterError where NVML or the GPU doesn't give it."""

    covers = "the whole GPU with its memory, idle power and other programs included"

    def __init__(self, uuid: str, *, library: ModuleType | Any = None) -> None:
        if library is None:
            try:
                library = import_extra("pynvml", extra="nvml")
            except ValueError as error:
                raise NoCounterError(str(error)) from error
        self._library = library
        try:
            library.nvmlInit()
            self._handle = library.nvmlDeviceGetHandleByUUID(uuid)
            self._first = library.nvmlDeviceGetTotalEnergyConsumption(self._handle)
            name = library.nvmlDeviceGetName(self._handle)
        except library.NVMLError as error:
            raise NoCounterError(f"NVML does not count the energy of {uuid}: {error}") from error
        self.name = f"NVML total energy of {name.decode() if isinstance(name, bytes) else name}"

    def read_mj(self) -> float:
        """Millijoules since the counter was opened."""
        return float(self._library.nvmlDeviceGetTotalEnergyConsumption(self._handle) - self._first)


def _wait(device: torch.device) -> None:
    """Until the device has done what it was given: CUDA runs behind the caller."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _idle_watts(counter: EnergyCounter, seconds: float) -> float:
    before, start = counter.read_mj(), time.perf_counter()
    time.sleep(seconds)
    return (counter.read_mj() - before) / 1e3 / (time.perf_counter() - start)


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError as error:
        # Since 2020 Linux lets only root read energy, as it can give secrets away.
        raise NoCounterError(f"{path} cannot be read ({error.strerror}); it takes root on most machines") from error


def _number(path: Path) -> int:
    text = _text(path)
    if not text.isdecimal():
        raise NoCounterError(f"{path} must hold a whole number, but holds {text!r:.40}")
    return int(text)
