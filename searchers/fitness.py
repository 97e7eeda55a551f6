"""What an evolution maximises."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from compsearch.scoring import top1
from compsearch.trial import Measurement


def negative_loss(measurement: Measurement) -> float:
    """Minus the mean cross-entropy."""
    return -measurement.loss


FITNESSES: Mapping[str, Callable[[Measurement], float]] = {"loss": negative_loss, "accuracy": top1}


def fitness_of(name: str) -> Callable[[Measurement], float]:
    """The fitness called `name`. Raises ValueError for another name."""
    if name not in FITNESSES:
        raise ValueError(f"`searcher.fitness` must be one of {', '.join(FITNESSES)}, but got {name!r}")
    return FITNESSES[name]
