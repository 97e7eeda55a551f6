"""How long one batch takes, measured: several networks in turns, so that a machine that drifts slows all alike."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from backends.device_fingerprint import DeviceFingerprint, fingerprint
from backends.energy_counters import EnergyReading, NoCounterError, measure_energy, open_counter
from backends.kept_memory import kept_memory
from backends.runtimes import Run, Runtime, torch_threads
from compsearch.space import FloatArray
from compsearch.summary import Latency

log = logging.getLogger(__name__)

#: A run counts as undisturbed when the thread lost no more of it than this share and so many seconds,
_LOST = 0.01
_LOST_S = 1e-5
#: and is timed at most so often until it does; then the shortest stands.
_ATTEMPTS = 4


class LatencyMeter:
    """Measures networks with one runtime, batch size and number of threads.

    In each round every network runs once, in an order drawn anew. Rounds end after `repetitions`, or once
    `time_budget_s` is spent, but not before the third; the `warmup` rounds before are not counted. They are shared
    between `sessions` (one, where a runtime compiles networks), each with networks made ready anew: where their tensors
    lie in memory makes a difference of a percent or two, which is in the spread that way. `threads` is what one pass
    may use on the CPU. Energy, where there is a counter, is read over `energy_s` seconds per network. `device` is that
    of the whole job; the runtime says where it runs.
    """

    def __init__(
        self,
        *,
        runtime: Runtime,
        device: torch.device,
        batch_size: int,
        threads: int,
        repetitions: int,
        warmup: int,
        time_budget_s: float,
        energy_s: float = 2.0,
        sessions: int = 1,
    ) -> None:
        for name, number, least in (
            ("batch_size", batch_size, 1),
            ("threads", threads, 1),
            ("repetitions", repetitions, 1),
            ("warmup", warmup, 0),
            ("sessions", sessions, 1),
        ):
            if number < least:
                raise ValueError(f"`latency.{name} >= {least}` must hold, but got {name}={number}")
        self.runtime = runtime
        self.device = runtime.device(device)
        self.batch_size = batch_size
        self.threads = threads
        self.repetitions = repetitions
        self.warmup = warmup
        self.time_budget_s = time_budget_s
        self.energy_s = energy_s
        self.sessions = 1 if runtime.compiles else sessions
        self.stopwatch = Stopwatch(alone=threads == 1 and self.device.type == "cpu")

    @property
    def fingerprint(self) -> DeviceFingerprint:
        """The machine and the settings; goes with every number."""
        return fingerprint(
            runtime=self.runtime.name,
            device=self.device,
            threads=self.threads,
            batch_size=self.batch_size,
            versions=self.runtime.versions(),
        )

    def images(self, example_input: Tensor) -> Tensor:
        """A batch like `example_input` [B, C, H, W] on the device, its images repeated where they are too few."""
        index = torch.arange(self.batch_size) % len(example_input)
        return example_input.detach()[index.to(example_input.device)].to(self.device)

    def measure(self, networks: Mapping[str, nn.Module], example_input: Tensor) -> dict[str, Latency]:
        """The latency of every network on a batch like `example_input`; ratios are to the first.

        Networks run in eval mode; they are not changed. The threads torch may use come back to what they were.
        """
        images = self.images(example_input)
        with self.conditions(), _eval_mode(networks):
            times = [self._session(networks.values(), images) for _ in range(self.sessions)]
        return dict(zip(networks, summaries(np.concatenate(times), str(self.fingerprint)), strict=True))

    def energies(self, networks: Mapping[str, nn.Module], example_input: Tensor) -> dict[str, EnergyReading]:
        """The energy of a batch through each network, where the device has a counter; else nothing."""
        try:
            open_counter(self.device)  # before networks are made ready, which may take long
        except NoCounterError as error:
            log.info("energy is not measured: %s", error)
            return {}
        found: dict[str, EnergyReading] = {}
        images = self.images(example_input)
        with self.conditions(), _eval_mode(networks):
            for name, network in networks.items():
                run = self.runtime.prepare(network, images, threads=self.threads)
                reading = measure_energy(run, device=self.device, min_s=self.energy_s)
                if reading is None:
                    break
                found[name] = reading
        return found

    @contextmanager
    def conditions(self) -> Iterator[None]:
        """What everything is timed under: the threads, no gradients, memory kept. Before and after it's as it was."""
        with torch_threads(self.threads), torch.inference_mode(), kept_memory():
            yield

    def _session(self, networks: Iterable[nn.Module], images: Tensor) -> FloatArray:
        """Milliseconds [num_rounds, num_networks] of networks made ready anew, in a session's share of the rounds."""
        runs = [self.runtime.prepare(network, images, threads=self.threads) for network in networks]
        repetitions = -(-self.repetitions // self.sessions)
        order = np.random.default_rng(0)
        times: list[FloatArray] = []
        start = time.perf_counter()
        for done in range(-self.warmup, repetitions):
            if done == 0:
                start = time.perf_counter()
            if done >= 3 and time.perf_counter() - start > self.time_budget_s / self.sessions:
                break
            took = np.empty(len(runs))
            # Drawn anew: what ran before leaves the caches behind that the next one finds.
            for index in order.permutation(len(runs)):
                took[index] = self.stopwatch.time_us(runs[index]) / 1e3
            if done >= 0:
                times.append(took)
        return np.array(times)


def summaries(times: FloatArray, runtime: str) -> list[Latency]:
    """The latency of every network from milliseconds [num_rounds, num_networks], ratios being to the first network."""
    return [_summary(times[:, index], times[:, index] / times[:, 0], runtime) for index in range(times.shape[1])]


def _summary(values: FloatArray, ratios: FloatArray, runtime: str) -> Latency:
    p10, median, p90 = np.percentile(values, [10, 50, 90])
    ratio_p10, ratio, ratio_p90 = np.percentile(ratios, [10, 50, 90])
    return Latency(
        median_ms=float(median),
        p10_ms=float(p10),
        p90_ms=float(p90),
        runtime=runtime,
        repetitions=len(values),
        ratio=float(ratio),
        ratio_p10=float(ratio_p10),
        ratio_p90=float(ratio_p90),
    )


@dataclass(frozen=True)
class Stopwatch:
    """Times runs; `alone` says that a run is done by the calling thread alone.

    Then what the thread did not get of the processor went to other programs, and a run that lost time to them is timed
    again, a few times: a machine that does other work too would else be measured, not the network.
    """

    alone: bool

    def time_us(self, run: Run, runs: int = 1) -> float:
        """Microseconds of one run, out of `runs` in a row."""
        best = math.inf
        for _ in range(_ATTEMPTS if self.alone else 1):
            start, start_cpu = time.perf_counter(), time.thread_time()
            for _ in range(runs):
                run()
            taken, worked = time.perf_counter() - start, time.thread_time() - start_cpu
            best = min(best, taken)
            if taken - worked <= _LOST_S + _LOST * taken:
                return taken * 1e6 / runs
        return best * 1e6 / runs


@contextmanager
def _eval_mode(networks: Mapping[str, nn.Module]) -> Iterator[None]:
    modes = {module: module.training for network in networks.values() for module in network.modules()}
    for network in networks.values():
        network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
