"""An axis of accuracies on which differences near the dense network and collapses far below it can both be read."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from compsearch.space import FloatArray

#: From this factor between the largest and the smallest error on, an axis is better logarithmic in the error.
_WIDE = 2.5
#: Added to every error, so that a perfect network has a place too.
_FLOOR = 0.004
_MARGIN = 0.05
#: Distances of ticks, rounder first, in percent; and the share of the axis that two of them are apart at least.
_TICK_STEPS = (10.0, 5.0, 2.0, 1.0, 0.5)
_TICK_DISTANCE = 0.075
#: A tick is a multiple of at least this share of its error: 83.5% says no more than 84% among ticks so far apart.
_TICK_ROUNDNESS = 0.1
_FEW_TICKS = 4


def is_wide(accuracies: Iterable[float]) -> bool:
    """Whether the errors of `accuracies` (fractions, NaN left out) differ by a factor of more than 2.5."""
    low, high = _stretched(np.array(_limits(accuracies)))
    return bool(high - low > np.log(_WIDE))


def set_accuracy_axis(axes: Axes, accuracies: Iterable[float], *, label: str, is_stretched: bool) -> None:
    """Makes the y axis of `axes`, called `label`, one of `accuracies` (fractions, NaN left out), all of them inside.

    A stretched axis gives equal lengths to equal factors of the error, and its label says so: 92% and 93% are as far
    apart as 50% and 56%. Raises ValueError when there is no accuracy.
    """
    low, high = _limits(accuracies)
    if not is_stretched:
        margin = max(_MARGIN * (high - low), 0.002)
        axes.set_ylim(low - margin, high + margin)
        axes.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(FuncFormatter(percent))
        axes.set_ylabel(label)
        return
    bottom, top = _stretched(np.array([low, high]))
    margin = max(_MARGIN * (top - bottom), 0.02)
    bottom, top = bottom - margin, top + margin
    axes.set_yscale("function", functions=(_stretched, _unstretched))
    axes.set_ylim(*_unstretched(np.array([bottom, top])))
    axes.yaxis.set_major_locator(FixedLocator(_ticks(float(bottom), float(top))))
    axes.yaxis.set_major_formatter(FuncFormatter(percent))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel(f"{label}\n(error on a log scale)")


def percent(fraction: float, _position: int | None = None) -> str:
    """``92%``, ``92.5%``: as a tick says it."""
    return f"{100 * fraction:.5g}%"


def _limits(accuracies: Iterable[float]) -> tuple[float, float]:
    finite = [float(value) for value in accuracies if np.isfinite(value)]
    if not finite:
        raise ValueError("an accuracy axis must have an accuracy to show, but got none")
    return min(finite), max(finite)


def _stretched(accuracy: FloatArray) -> FloatArray:
    return np.asarray(-np.log(np.maximum(1.0 + _FLOOR - accuracy, 1e-9)))


def _unstretched(place: FloatArray) -> FloatArray:
    return np.asarray(1.0 + _FLOOR - np.exp(-place))


def _ticks(bottom: float, top: float) -> list[float]:
    """Round accuracies within (`bottom`, `top`), both stretched, no two too close to each other."""
    low, high = _unstretched(np.array([bottom, top]))
    chosen: list[float] = []
    for roundness in (_TICK_ROUNDNESS, 0.0):  # rather odd ticks than hardly any
        for step in _TICK_STEPS if len(chosen) < _FEW_TICKS else ():
            for multiple in range(int(np.ceil(100 * low / step)), int(np.floor(100 * min(high, 1.0) / step)) + 1):
                accuracy = round(multiple * step / 100, 6)
                places = _stretched(np.array([accuracy, *chosen]))
                is_apart = np.all(np.abs(places[1:] - places[0]) >= _TICK_DISTANCE * (top - bottom))
                if is_apart and step / 100 >= roundness * (1.0 - accuracy):
                    chosen.append(accuracy)
    return sorted(chosen)
