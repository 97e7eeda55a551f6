from __future__ import annotations

import logging
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from backends import energy_counters
from backends.energy_counters import NoCounterError, NvmlCounter, RaplCounter, measure_energy

CPU = torch.device("cpu")


def add_zone(root: Path, zone: str, name: str, energy_uj: int, most: int = 1_000_000) -> Path:
    folder = root / zone
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "max_energy_range_uj").write_text(f"{most}\n")
    (folder / "energy_uj").write_text(f"{energy_uj}\n")
    return folder / "energy_uj"


def test_packages_are_summed_and_their_parts_and_platforms_left_out(tmp_path: Path) -> None:
    first = add_zone(tmp_path, "intel-rapl:0", "package-0", 1000)
    second = add_zone(tmp_path, "intel-rapl:1", "package-1", 5000)
    others = [
        add_zone(tmp_path, "intel-rapl:0:0", "core", 1000),
        add_zone(tmp_path, "intel-rapl:0:1", "dram", 1000),
        add_zone(tmp_path, "intel-rapl:2", "psys", 1000),
        add_zone(tmp_path, "intel-rapl-mmio:0", "package-0", 1000),
    ]
    counter = RaplCounter(tmp_path)
    assert counter.name == "RAPL package-0, package-1"
    assert counter.read_mj() == 0
    first.write_text("3000")
    second.write_text("5500")
    for other in others:
        other.write_text("900000")
    assert counter.read_mj() == 2.5
    assert counter.read_mj() == 2.5


def test_a_counter_that_runs_round_goes_on_rising(tmp_path: Path) -> None:
    energy = add_zone(tmp_path, "intel-rapl:0", "package-0", 999_000, most=1_000_000)
    counter = RaplCounter(tmp_path)
    energy.write_text("4000")
    assert counter.read_mj() == 5.0
    energy.write_text("3000")  # nearly once more round
    assert counter.read_mj() == 1004.0


def test_no_packages_are_no_counter(tmp_path: Path) -> None:
    with pytest.raises(NoCounterError, match=f"shows no RAPL packages in {tmp_path}"):
        RaplCounter(tmp_path)
    add_zone(tmp_path, "intel-rapl:0", "psys", 1)
    with pytest.raises(NoCounterError, match="shows no RAPL packages"):
        RaplCounter(tmp_path)


def test_one_package_that_may_not_be_read_is_no_counter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_zone(tmp_path, "intel-rapl:0", "package-0", 1000)
    locked = add_zone(tmp_path, "intel-rapl:1", "package-1", 1000)
    read_text = Path.read_text

    def refuse(path: Path) -> str:
        if path == locked:  # root reads whatever the mode says, so permissions alone would not do
            raise PermissionError(13, "Permission denied")
        return read_text(path)

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(NoCounterError, match=r"energy_uj cannot be read \(Permission denied\); it takes root"):
        RaplCounter(tmp_path)


def test_a_counter_that_holds_no_number_is_none(tmp_path: Path) -> None:
    add_zone(tmp_path, "intel-rapl:0", "package-0", 1).write_text("unknown")
    with pytest.raises(NoCounterError, match="must hold a whole number, but holds 'unknown'"):
        RaplCounter(tmp_path)


class NVMLError(Exception):
    pass


def fake_nvml(energies: list[int], *, known: str = "GPU-1", failure: str = "") -> types.SimpleNamespace:
    """A library whose GPU gives `energies` (mJ) one after another."""

    def handle(uuid: str) -> str:
        if uuid != known:
            raise NVMLError("Not Found")
        return uuid

    def total(handle: str) -> int:
        assert handle == known
        if failure:
            raise NVMLError(failure)
        return energies.pop(0)

    return types.SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=handle,
        nvmlDeviceGetTotalEnergyConsumption=total,
        nvmlDeviceGetName=lambda handle: b"Some GPU",
    )


def test_nvml_counts_from_where_it_was_opened() -> None:
    counter = NvmlCounter("GPU-1", library=fake_nvml([70_000, 70_250, 71_000]))
    assert counter.name == "NVML total energy of Some GPU"
    assert (counter.read_mj(), counter.read_mj()) == (250.0, 1000.0)


@pytest.mark.parametrize(
    ("uuid", "failure", "reason"),
    [("GPU-2", "", "energy of GPU-2: Not Found"), ("GPU-1", "Not Supported", "energy of GPU-1: Not Supported")],
)
def test_nvml_that_does_not_know_is_no_counter(uuid: str, failure: str, reason: str) -> None:
    with pytest.raises(NoCounterError, match=reason):
        NvmlCounter(uuid, library=fake_nvml([0], failure=failure))


def test_without_its_package_nvml_is_no_counter_and_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(NoCounterError, match=r"pip install 'compsearch\[nvml\]'"):
        NvmlCounter("GPU-1")


class Clock:
    """A machine that draws `idle_w` asleep and uses a fixed energy and time per run."""

    def __init__(self, energy_file: Path, *, idle_w: float, most: int) -> None:
        self.now, self._file, self._idle_w, self._most = 100.0, energy_file, idle_w, most

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self._spend(seconds, self._idle_w * seconds)

    def job(self, seconds: float, joules: float) -> Callable[[], None]:
        return lambda: self._spend(seconds, joules)

    def _spend(self, seconds: float, joules: float) -> None:
        self.now += seconds
        self._file.write_text(str((int(self._file.read_text()) + round(joules * 1e6)) % self._most))


def test_energy_is_that_of_all_runs_with_idle_power_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # 20 J fit into the counter, the runs take 50: it has to be read between them.
    energy_file = add_zone(tmp_path, "intel-rapl:0", "package-0", 19_000_000, most=20_000_000)
    clock = Clock(energy_file, idle_w=3.0, most=20_000_000)
    monkeypatch.setattr(energy_counters, "time", clock)
    reading = measure_energy(clock.job(0.5, 5.0), device=CPU, min_s=5.0, idle_s=2.0, powercap=tmp_path)
    assert reading is not None
    assert (reading.num_runs, reading.seconds) == (10, 5.0)
    assert reading.energy_mj == pytest.approx(50_000)
    assert reading.per_run_mj == pytest.approx(5000)
    assert (reading.watts, reading.idle_w) == (pytest.approx(10), pytest.approx(3))
    assert str(reading) == (
        "5000 mJ per run over 10 runs, 10 W, measured by RAPL package-0 (whole processor packages without memory "
        "modules, idle power and other programs included; idle before: 3 W, not subtracted)"
    )


def test_idle_power_is_measured_only_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(add_zone(tmp_path, "intel-rapl:0", "package-0", 0), idle_w=3.0, most=1_000_000)
    monkeypatch.setattr(energy_counters, "time", clock)
    reading = measure_energy(clock.job(1.0, 0.1), device=CPU, min_s=0.5, powercap=tmp_path)
    assert reading is not None
    assert (reading.num_runs, reading.idle_w) == (1, None)
    assert "idle before" not in str(reading)


def test_a_machine_without_counters_gets_no_number_and_is_told_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def run() -> None:
        pytest.fail("there is nothing to measure")

    with caplog.at_level(logging.INFO):
        assert measure_energy(run, device=CPU, min_s=1.0, idle_s=60.0, powercap=tmp_path) is None
        assert measure_energy(run, device=torch.device("meta"), min_s=1.0) is None
    assert [record.getMessage() for record in caplog.records] == [
        f"energy is not measured: this machine shows no RAPL packages in {tmp_path}",
        "energy is not measured: no energy counter is known for device meta",
    ]


@pytest.mark.parametrize(("min_s", "idle_s"), [(0.0, 0.0), (float("nan"), 0.0), (1.0, -1.0)])
def test_times_that_make_no_sense_are_refused(min_s: float, idle_s: float) -> None:
    with pytest.raises(ValueError, match="`min_s > 0` and `idle_s >= 0` must hold"):
        measure_energy(lambda: None, device=CPU, min_s=min_s, idle_s=idle_s)
