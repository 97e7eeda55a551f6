"""How long one batch takes, measured: several networks in turns, so that a machine that drifts slows all alike."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Latency:
    """Of one forward pass, in milliseconds: the median, the 10th and 90th percentile, and how many were timed."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    repetitions: int


def measure_latency(
    networks: Mapping[str, nn.Module],
    example_input: Tensor,
    *,
    repetitions: int,
    warmup: int,
    time_budget_s: float,
    threads: int,
) -> dict[str, Latency]:
    """Times every network on `example_input` [B, C, H, W], on the device both are on, in eval mode.

    In each round every network runs once. Rounds end after `repetitions`, or once `time_budget_s` is spent, but not
    before the third; the `warmup` rounds before are not counted. `threads` is what one pass may use on the CPU; the
    setting before, and every network's mode, come back afterwards. Raises ValueError.
    """
    if repetitions < 1 or warmup < 0 or threads < 1:
        raise ValueError(
            "`repetitions >= 1`, `warmup >= 0` and `threads >= 1` must hold for a latency, but got "
            f"{repetitions=}, {warmup=}, {threads=}"
        )
    times: dict[str, list[float]] = {name: [] for name in networks}
    with _eval_mode(networks), _threads(threads), torch.inference_mode():
        for _ in range(warmup):
            for network in networks.values():
                _time_ms(network, example_input)
        start = time.perf_counter()
        for done in range(repetitions):
            if done >= 3 and time.perf_counter() - start > time_budget_s:
                break
            for name, network in networks.items():
                times[name].append(_time_ms(network, example_input))
    return {name: _summary(values) for name, values in times.items()}


def _time_ms(network: nn.Module, example_input: Tensor) -> float:
    # CUDA runs behind the caller: without waiting on both sides only the launch would be timed.
    if example_input.is_cuda:
        torch.cuda.synchronize(example_input.device)
    start = time.perf_counter()
    network(example_input)
    if example_input.is_cuda:
        torch.cuda.synchronize(example_input.device)
    return (time.perf_counter() - start) * 1e3


def _summary(values: list[float]) -> Latency:
    p10, median, p90 = np.percentile(values, [10, 50, 90])
    return Latency(float(median), float(p10), float(p90), len(values))


@contextmanager
def _threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
