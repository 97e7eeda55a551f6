"""Giving a freshly extracted network some of its accuracy back, without fine-tuning it.

A recovery is chosen for candidates (cheap: hundreds are scored) and for finalists (thorough: a handful are). All are
deterministic: the same policy always gives the same network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import nn

from compsearch.space import Policy


class Recovery(Protocol):
    """Changes `network`, which was extracted by `policy` and is in eval mode, in place."""

    def __call__(self, network: nn.Module, policy: Policy) -> None: ...


class NoRecovery:
    """Leaves the network as it was cut."""

    def __call__(self, network: nn.Module, policy: Policy) -> None:
        pass


class InTurn:
    """Several recoveries, each going on from the one before: least squares, then batch-norm statistics, say."""

    def __init__(self, *, recoveries: Sequence[Recovery]) -> None:
        self.recoveries = tuple(recoveries)

    def __call__(self, network: nn.Module, policy: Policy) -> None:
        for recovery in self.recoveries:
            recovery(network, policy)
