"""A seeded stretch of torch's global generators that leaves them as they were.

Initialisation, dropout and stochastic depth draw from torch's global generators and take no other. Whatever needs them
runs inside `isolated_rng`; everything else owns a ``torch.Generator``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def isolated_rng(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seeds the global generators of the CPU and of `device`, and restores both on leaving."""
    on_cuda = device is not None and device.type == "cuda"
    index = (device.index or 0) if on_cuda and device is not None else 0
    with torch.random.fork_rng(devices=[index] if on_cuda else []):
        # Not torch.manual_seed, which would seed every CUDA device and leave the others seeded.
        torch.default_generator.manual_seed(seed)
        if on_cuda:
            torch.cuda.default_generators[index].manual_seed(seed)
        yield


def get_rng_state(device: torch.device) -> list[torch.Tensor]:
    """The states of the global generators that work on `device` draws from."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def set_rng_state(states: list[torch.Tensor], device: torch.device) -> None:
    """The inverse of `get_rng_state`; call it inside `isolated_rng` only."""
    torch.set_rng_state(states[0])
    if device.type == "cuda" and len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)
