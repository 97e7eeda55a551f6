"""What was tried and what came of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from compsearch.space import Policy

#: Numbers by name, per layer or group: ``{"alpha": {"layer1.0.conv1.weight": 1.2, …}, …}``.
Genome = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Measurement:
    """How one network does on one split: fractions for accuracy, mean cross-entropy for loss.

    `costs` holds what the network costs per resource, in the resource's own unit (macs, params, latency_ms, …).
    """

    split: str
    num_images: int
    accuracy: float
    top5: float
    loss: float
    costs: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_finite(self) -> bool:
        """False when the network produced NaN or infinity on any image."""
        return math.isfinite(self.accuracy) and math.isfinite(self.loss)


@dataclass(frozen=True)
class Trial:
    """A policy with its measurement and objective, higher is better.

    `cost_ratio` is the achieved cost of the budget's resource over the dense one. A trial that failed has no objective
    (None) and says why in `failure`: its measurement is not finite, or it is over the budget, from a searcher that may
    try such policies. `genome` is what the searcher derived the policy from, numbers by name, such as LeGR's alpha of
    every layer; empty where there is no more to say than the policy.
    """

    policy: Policy
    measurement: Measurement
    objective: float | None
    cost_ratio: float
    failure: str = ""
    genome: Genome = field(default_factory=dict)


def scored_trial(
    policy: Policy,
    measurement: Measurement,
    *,
    objective: float,
    cost_ratio: float,
    genome: Genome | None = None,
) -> Trial:
    """The trial of `policy`: with `objective` where the measurement is finite, otherwise failed, saying why."""
    if measurement.is_finite:
        return Trial(policy, measurement, objective, cost_ratio, genome=genome or {})
    failure = f"not finite on the {measurement.split} split: {measurement.accuracy=:.4g}, {measurement.loss=:.4g}"
    return Trial(policy, measurement, None, cost_ratio, failure.replace("measurement.", ""), genome=genome or {})


def best_trial(trials: Iterable[Trial]) -> Trial | None:
    """The trial with the highest objective, the earliest among equals; None when every trial failed."""
    best: Trial | None = None
    for trial in trials:
        if trial.objective is None:
            continue
        if best is None or best.objective is None or trial.objective > best.objective:
            best = trial
    return best
