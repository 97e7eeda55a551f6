"""A reward of several costs at once: R = α·f(|Δt|) + β·g(|Δa|) + γ·h(|ΔP|) + δ·F(BSF).

Latency t, accuracy a, power P and block-sparsity factor BSF, each against the dense network, each through a linear, a
logarithmic or a quadratic curve, with a signed coefficient. Δt and ΔP are what was saved as a fraction of the dense
network's, Δa is the accuracy lost, a fraction of all images.

Taken as it is written, |Δ| would reward a network for being *slower* than the dense one by as much as for being faster,
and punish it for being better. So a curve keeps the sign of its change: f(-x) = -f(x). Where time and power were saved
and accuracy lost, which is what compression does, the formula is as above.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from compsearch.trial import Measurement

#: Of a change's size, 0 or more; all are 0 at 0 and rise.
CURVES: Mapping[str, Callable[[float], float]] = {
    "linear": lambda size: size,
    "log": math.log1p,
    "quadratic": lambda size: size**2,
}

#: The costs that a term reads, and what measures them on the command line.
_SOURCES: Mapping[str, Mapping[str, str]] = {
    "latency": {"latency_ms": "+cost_model@cost_models.latency_ms=latency_ms"},
    "power": {
        "energy_mj": "+cost_model@cost_models.energy_mj=energy_mj",
        "latency_ms": "+cost_model@cost_models.latency_ms=latency_ms",
    },
    "block_sparsity": {"block_sparsity": "+cost_model@cost_models.block_sparsity=block_sparsity"},
}


@dataclass(frozen=True)
class CompositeOptions:
    """Coefficients α, β, γ, δ, signed, and the curves f, g, h, F, names of `CURVES`. A coefficient of 0 is no term."""

    latency: float
    latency_curve: str
    accuracy: float
    accuracy_curve: str
    power: float
    power_curve: str
    block_sparsity: float
    block_sparsity_curve: str

    def __post_init__(self) -> None:
        for name in ("latency", "accuracy", "power", "block_sparsity"):
            curve, coefficient = getattr(self, f"{name}_curve"), getattr(self, name)
            if curve not in CURVES:
                raise ValueError(
                    f"`searcher.composite.{name}_curve` must be one of {', '.join(CURVES)}, but got {curve!r}"
                )
            if not math.isfinite(coefficient):
                raise ValueError(f"`searcher.composite.{name}` must be a finite number, but got {coefficient}")


class CompositeReward:
    """The reward of a network from its accuracy and costs; `dense` is the dense network's measurement.

    Costs are ``latency_ms``, ``energy_mj`` (power in watts is ``energy_mj / latency_ms``) and ``block_sparsity``, as
    far as terms need them. `accuracy` is which accuracy counts, top1 or top5. Raises ValueError, naming the cost model
    to add, when `dense` lacks one, and when no term is left.
    """

    def __init__(self, options: CompositeOptions, *, dense: Measurement, accuracy: str) -> None:
        coefficients = [options.latency, options.accuracy, options.power, options.block_sparsity]
        if not any(coefficients):
            raise ValueError("reward 'composite' must have a term, but all coefficients of searcher.composite are 0")
        for term, sources in _SOURCES.items():
            for resource, override in sources.items():
                if getattr(options, term) and resource not in dense.costs:
                    raise ValueError(
                        f"searcher.composite.{term} needs {resource} in every trial's costs, which are "
                        f"{', '.join(dense.costs) or 'none'}; add {override}, or set searcher.composite.{term}=0"
                    )
        if not dense.is_finite:
            raise ValueError(f"reward 'composite' compares with the dense network, whose accuracy is {dense.accuracy}")
        self._options = options
        self._dense = dense.costs
        self._dense_error = 1 - (dense.accuracy if accuracy == "top1" else dense.top5)

    def __call__(self, error: float, cost: float, costs: Mapping[str, float]) -> float:
        """R of a network with this `error` in [0, 1] and `costs` by resource; the budget's `cost` is not read."""
        options = self._options
        reward = options.accuracy * _signed(options.accuracy_curve, error - self._dense_error)
        if options.latency:
            saved = 1 - costs["latency_ms"] / self._dense["latency_ms"]
            reward += options.latency * _signed(options.latency_curve, saved)
        if options.power:
            saved = 1 - _watts(costs) / _watts(self._dense)
            reward += options.power * _signed(options.power_curve, saved)
        if options.block_sparsity:
            reward += options.block_sparsity * _signed(options.block_sparsity_curve, costs["block_sparsity"])
        return reward


def _signed(curve: str, change: float) -> float:
    return math.copysign(CURVES[curve](abs(change)), change)


def _watts(costs: Mapping[str, float]) -> float:
    return costs["energy_mj"] / costs["latency_ms"]
