"""The latency table of one device: what a layer takes at a number of inputs and outputs, measured once, kept in a file.

A file per device fingerprint, one row per layer shape and widths, columns with units, to be read by people. Networks
share it: a shape that one network had measured is there for the next.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from backends.device_fingerprint import DeviceFingerprint
from backends.latency import LatencyMeter
from backends.layer_shapes import LayerShape, layer_input
from backends.runtimes import Run
from compsearch import atomic


@dataclass(frozen=True)
class Entry:
    """A row's key: a layer shape with its widths."""

    shape: LayerShape
    ins: int
    outs: int


@dataclass(frozen=True)
class LayerTime:
    """Microseconds of one run: the median over samples, the 10th and 90th percentile, and how many runs there were."""

    median_us: float
    p10_us: float
    p90_us: float
    runs: int


_TIMES = tuple(field.name for field in dataclasses.fields(LayerTime))
_SHAPE = tuple(field.name for field in dataclasses.fields(LayerShape))
_COLUMNS = (*_SHAPE, "in_channels", "out_channels", *_TIMES)


class LatencyTable:
    """The table in the file `path`, for the device of `meter`.

    Raises ValueError when the file is of another device, or no table.
    """

    def __init__(self, path: Path, meter: LatencyMeter) -> None:
        self.path = path
        self.meter = meter
        self.times: dict[Entry, LayerTime] = _read(path, meter.fingerprint) if path.exists() else {}

    def __getitem__(self, entry: Entry) -> LayerTime:
        """The time of `entry`. Raises ValueError where it was not measured; nothing is guessed."""
        if entry not in self.times:
            raise ValueError(
                f"a latency table must have every layer asked for, but {self.path} has no {entry.shape.kind} of "
                f"{entry.ins} inputs and {entry.outs} outputs at {entry.shape.height}x{entry.shape.width}; measure it"
            )
        return self.times[entry]

    def measure(self, entries: Iterable[Entry], *, samples: int, min_sample_us: float, rounds: int) -> None:
        """Measures those of `entries` that are not there yet; what was measured is kept even when it is interrupted.

        Each takes part in `rounds` rounds, in an order drawn anew, so that a machine that is slow for a while doesn't
        make one layer look slow; its time is that of its fastest round. A round takes `samples` samples
        of as many runs as take `min_sample_us`.
        """
        missing = [entry for entry in dict.fromkeys(entries) if entry not in self.times]
        if not missing:
            return
        order = np.random.default_rng(0)
        label = f"latency of layers, {self.meter.runtime.name}"
        with self.meter.conditions(), tqdm(total=len(missing), desc=label, disable=None) as bar:
            # A few at a time: what is ready to run holds memory, and what is done should be kept soon.
            for start in range(0, len(missing), 64):
                part = missing[start : start + 64]
                runs = [self._ready(entry) for entry in part]
                best: list[LayerTime | None] = [None] * len(part)
                for _ in range(rounds):
                    for index in order.permutation(len(part)):
                        found = self._time(runs[index], samples=samples, min_sample_us=min_sample_us)
                        before = best[index]
                        if before is None or found.median_us < before.median_us:
                            best[index] = found
                for entry, found_or_none in zip(part, best, strict=True):
                    assert found_or_none is not None
                    self.times[entry] = found_or_none
                self._write()
                bar.update(len(part))

    def _ready(self, entry: Entry) -> Run:
        meter = self.meter
        images = layer_input(entry.shape, entry.ins, batch_size=meter.batch_size).to(meter.device)
        return meter.runtime.prepare_layer(entry.shape, entry.ins, entry.outs, images, threads=meter.threads)

    def _time(self, run: Run, *, samples: int, min_sample_us: float) -> LayerTime:
        time_us = self.meter.stopwatch.time_us
        run()
        runs = max(1, round(min_sample_us / max(time_us(run), 0.1)))
        p10, median, p90 = np.percentile([time_us(run, runs) for _ in range(samples)], [10, 50, 90])
        return LayerTime(float(median), float(p10), float(p90), runs * samples)

    def _write(self) -> None:
        text = io.StringIO()
        text.write(f"# {json.dumps(self.meter.fingerprint.to_json())}\n")
        text.write("# one layer with its norm and activation, alone; times in microseconds of one run of the batch\n")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(_COLUMNS)
        for entry, taken in self.times.items():
            shape = [_cell(value) for value in dataclasses.astuple(entry.shape)]
            times = [f"{taken.median_us:.3f}", f"{taken.p10_us:.3f}", f"{taken.p90_us:.3f}", taken.runs]
            writer.writerow([*shape, entry.ins, entry.outs, *times])
        self.path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_text(self.path, text.getvalue())


def table_path(folder: Path, fingerprint: DeviceFingerprint) -> Path:
    """Where the table of a device lies in `folder`."""
    runtime = fingerprint.runtime.replace(" ", "-")
    return folder / f"{runtime}-batch{fingerprint.batch_size}-threads{fingerprint.threads}-{fingerprint.key}.csv"


def _read(path: Path, expected: DeviceFingerprint) -> dict[Entry, LayerTime]:
    try:
        lines = path.read_text().splitlines()
        found = DeviceFingerprint.from_json(json.loads(lines[0].removeprefix("# ")))
        rows = list(csv.DictReader(lines[2:]))
        times = dict(_row(row) for row in rows)
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} must be a latency table, but can't be read as one ({error}); delete it") from None
    if found != expected:
        raise ValueError(
            f"{path} must be a table of this device and runtime, but differs in {found.differences(expected)} (table / "
            "here); measure one here"
        )
    return times


def _row(row: dict[str, Any]) -> tuple[Entry, LayerTime]:
    shape = {name: _PARSERS[str(field.type)](row[name]) for name, field in _FIELDS.items()}
    times = {name: float(row[name]) for name in _TIMES[:3]}
    return Entry(LayerShape(**shape), int(row["in_channels"]), int(row["out_channels"])), LayerTime(
        **times, runs=int(row["runs"])
    )


def _cell(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("x") if part)


_FIELDS = {field.name: field for field in dataclasses.fields(LayerShape)}
_PARSERS: dict[str, Callable[[str], Any]] = {
    "str": str,
    "int": int,
    "bool": lambda text: text == "True",
    "tuple[int, ...]": _numbers,
}


def spread_over(values: Sequence[int], most: int) -> list[int]:
    """At most `most` of the ascending `values`, evenly spread, the first and the last among them."""
    if len(values) <= most:
        return list(values)
    picked = np.unique(np.linspace(0, len(values) - 1, most).round().astype(int))
    return [values[index] for index in picked]
