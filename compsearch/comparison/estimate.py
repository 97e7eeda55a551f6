"""A number known from several seeds: its mean, its spread, and whether two such numbers differ by more than that."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

#: Means of equal numbers differ in their last bit; a lead must be larger than this, a fraction, to be one.
NEGLIGIBLE = 1e-9


@dataclass(frozen=True)
class Estimate:
    """`mean` and sample standard deviation of `num` values; std is NaN for fewer than two, mean for none."""

    mean: float
    std: float
    num: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Estimate:
        """Of the finite ones among `values`."""
        finite = np.array([value for value in values if math.isfinite(value)], dtype=np.float64)
        if not len(finite):
            return cls(math.nan, math.nan, 0)
        return cls(float(finite.mean()), float(finite.std(ddof=1)) if len(finite) > 1 else math.nan, len(finite))


def joint_spread(one: Estimate, other: Estimate) -> float:
    """sqrt(s1² + s2²), the standard deviation of the difference of two single seeds; NaN where either is unknown."""
    return math.hypot(one.std, other.std)


def is_beyond(difference: float, spread: float) -> bool | None:
    """Whether |difference| > spread; None where either is unknown, as with one seed.

    A spread of nothing is unknown too: that a few seeds agree to the last image does not mean that all would.
    """
    if math.isnan(difference) or math.isnan(spread) or spread <= NEGLIGIBLE:
        return None
    return abs(difference) > spread + NEGLIGIBLE


def mean_and_spread(estimate: Estimate, *, scale: float = 1.0, decimals: int = 2) -> str:
    """``77.23 ± 0.41``; no spread where there is none, ``–`` without a value."""
    if not estimate.num:
        return "–"
    spread = "" if math.isnan(estimate.std) else f" ± {scale * estimate.std:.{decimals}f}"
    return f"{scale * estimate.mean:.{decimals}f}{spread}"
