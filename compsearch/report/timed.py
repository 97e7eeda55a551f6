"""A time, or a ratio of times, with its spread: what the latency plots and tables are given."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """The median with the 10th and 90th percentile of the same repetitions, in the unit that its user names.

    All NaN, or some, where nothing was measured: plots leave it out and count it. Raises ValueError when the three are
    out of order.
    """

    median: float
    p10: float
    p90: float

    def __post_init__(self) -> None:
        if self.p10 > self.median or self.median > self.p90:  # not `not <=`, as NaN is allowed
            raise ValueError(
                f"`p10 <= median <= p90` must hold, but got {self}; all three must come from the same repetitions"
            )

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.median) and math.isfinite(self.p10) and math.isfinite(self.p90)

    @property
    def below(self) -> float:
        """From the median down to the 10th percentile."""
        return self.median - self.p10

    @property
    def above(self) -> float:
        """From the median up to the 90th percentile."""
        return self.p90 - self.median

    def __format__(self, spec: str) -> str:
        """``f"{spread:.2f}"`` is ``0.62 [0.60, 0.65]``."""
        return f"{self.median:{spec}} [{self.p10:{spec}}, {self.p90:{spec}}]" if spec else str(self)


@dataclass(frozen=True)
class Timed:
    """A network with its share of the dense network's MACs, and of its latency, timed in turns with it."""

    cost_ratio: float
    latency: Spread

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.cost_ratio) and self.latency.is_finite
