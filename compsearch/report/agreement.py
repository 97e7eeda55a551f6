"""How well predicted times agree with measured ones: by how much they are off, and whether they rank alike.

Imported by whatever uses a predictor, so it draws nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compsearch.space import FloatArray

#: A predictor off by more than this, or that ranks worse than `MIN_TAU`, is said to be off wherever it is used.
MAX_MAPE = 0.05
MIN_TAU = 0.9


def mape(predicted: Sequence[float] | FloatArray, measured: Sequence[float] | FloatArray) -> float:
    """The mean absolute error as a fraction of what was `measured`, both [num]: 0.05 is 5%; NaN of nothing.

    Raises ValueError when the lengths differ, or a number is not finite, or a measured one not positive.
    """
    first, second = _pair(predicted, measured)
    if not (np.isfinite(first).all() and np.isfinite(second).all() and (second > 0).all()):
        raise ValueError(
            "predicted times must be finite and measured ones positive for a relative error, but got "
            f"{first.tolist()} and {second.tolist()}; leave out what was not measured"
        )
    return float(np.mean(np.abs(first - second) / second)) if len(first) else float("nan")


def kendall_tau(a: Sequence[float] | FloatArray, b: Sequence[float] | FloatArray) -> float:
    """Kendall's rank correlation of `a` and `b` [num], in [-1, 1], with ties (τ-b).

    NaN when there are fewer than two, when all of one are equal, or when a number is NaN. Raises ValueError when the
    lengths differ.
    """
    first, second = _pair(a, b)
    if len(first) < 2:
        return float("nan")
    from scipy.stats import kendalltau  # takes most of a second to load, and not every run has a rank to ask for

    return float(kendalltau(first, second).statistic)


def prediction_verdict(error: float, tau: float) -> str:
    """A sentence when the `mape` or the `kendall_tau` of a check is worse than it may be or undefined; else nothing."""
    problems = []
    if not error <= MAX_MAPE:
        problems.append("MAPE is undefined" if np.isnan(error) else f"MAPE {error:.2%} is above {MAX_MAPE:.0%}")
    if not tau >= MIN_TAU:
        problems.append("Kendall τ is undefined" if np.isnan(tau) else f"Kendall τ {tau:.3f} is below {MIN_TAU:g}")
    return f"prediction is off: {', '.join(problems)}" if problems else ""


def _pair(a: Sequence[float] | FloatArray, b: Sequence[float] | FloatArray) -> tuple[FloatArray, FloatArray]:
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(f"two lists of the same length must be compared, but got {first.shape} and {second.shape}")
    return first, second
