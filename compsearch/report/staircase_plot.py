"""staircase.png: the time of one layer against its channels, one by one. Where it steps is where channels are free."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MultipleLocator, NullLocator

from compsearch.report.captions import caption, not_shown
from compsearch.report.style import BLACK, BLUE, GREEN, ORANGE, VERMILION, new_figure, save, tidy
from compsearch.space import BoolArray, FloatArray

#: Layers whose times differ by more than this factor share a logarithmic axis.
_WIDE = 8.0
#: Lines closer together than this many would be a grey wall.
_MAX_MULTIPLES = 70
_STYLES = ((BLUE, "-"), (VERMILION, "--"), (GREEN, "-."), (BLACK, ":"), (ORANGE, "-"))


@dataclass(frozen=True)
class Staircase:
    """Times of one layer, in microseconds, at each number of channels in `widths`; all four [num_widths].

    `widths` ascend. Times may be NaN where nothing was measured. Raises ValueError when the lengths differ, `widths`
    don't ascend, or the percentiles are out of order.
    """

    widths: Sequence[int]
    median_us: Sequence[float]
    p10_us: Sequence[float]
    p90_us: Sequence[float]

    def __post_init__(self) -> None:
        lengths = [len(self.widths), len(self.median_us), len(self.p10_us), len(self.p90_us)]
        if len(set(lengths)) > 1:
            raise ValueError(f"a staircase needs a median, p10 and p90 for every width, but got lengths {lengths}")
        if any(first >= second for first, second in zip(self.widths, self.widths[1:], strict=False)):
            raise ValueError(f"the widths of a staircase must ascend, but got {list(self.widths)}")
        low, middle, high = np.array(self.p10_us), np.array(self.median_us), np.array(self.p90_us)
        wrong = (low > middle) | (middle > high)
        if wrong.any():
            where = int(np.asarray(self.widths)[wrong][0])
            raise ValueError(f"`p10 <= median <= p90` must hold for every width, but does not for {where} channels")

    @property
    def is_finite(self) -> BoolArray:
        """Which widths were measured, [num_widths]."""
        times = np.array([self.median_us, self.p10_us, self.p90_us], dtype=np.float64)
        return np.asarray(np.isfinite(times).all(axis=0), dtype=np.bool_)


@dataclass(frozen=True)
class StaircasePanel:
    """What is varied (``"input channels"``), a curve per layer by its label, and the preferred `divisor` found.

    A divisor of 1 means that none is preferred. Raises ValueError when it is less.
    """

    axis: str
    curves: Mapping[str, Staircase]
    divisor: int

    def __post_init__(self) -> None:
        if self.divisor < 1:
            raise ValueError(f"`divisor >= 1` must hold, but got {self.divisor} for {self.axis!r}")


def staircase_figure(panels: Sequence[StaircasePanel], *, title: str, device: str) -> Figure:
    """Time of a layer against its channels: a panel per axis that was varied, medians with the p10–p90 band.

    Dotted lines and dots stand at multiples of the preferred divisor; the legend says how much one channel more than
    such a multiple costs. `device` says runtime and device. Raises ValueError without panels.
    """
    if not panels:
        raise ValueError("a staircase needs at least one axis of channels that was varied, but got none")
    figure = new_figure(8.4, 1.2 + 3.6 * len(panels))
    for axes, panel in zip(figure.subplots(len(panels), 1, squeeze=False)[:, 0], panels, strict=True):
        _draw(axes, panel)
    figure.suptitle(caption(title, device, width=110), fontsize=10)
    return figure


def save_staircase(path: Path, panels: Sequence[StaircasePanel], *, title: str, device: str) -> None:
    """Writes `staircase_figure` as PNG."""
    save(staircase_figure(panels, title=title, device=device), path)


def step_height(curve: Staircase, divisor: int) -> float:
    """What one channel more than a multiple of `divisor` costs: the median of t(m + 1) / t(m) - 1 over multiples m.

    0.2 is 20% more time. NaN where no multiple and the width after it were both measured.
    """
    times = {
        width: time for width, time, known in zip(curve.widths, curve.median_us, curve.is_finite, strict=True) if known
    }
    steps = [times[width + 1] / times[width] - 1.0 for width in times if width % divisor == 0 and width + 1 in times]
    return float(np.median(steps)) if steps else math.nan


def _draw(axes: Axes, panel: StaircasePanel) -> None:
    tidy(axes)
    axes.grid(visible=False, axis="x")
    styles = _STYLES * math.ceil(len(panel.curves) / len(_STYLES))
    for (label, curve), (color, style) in zip(panel.curves.items(), styles, strict=False):
        _draw_curve(axes, label, curve, panel.divisor, color, style)
    highest = max((width for curve in panel.curves.values() for width in curve.widths), default=panel.divisor)
    _mark_multiples(axes, panel.divisor, highest)
    times = _times(panel)
    if len(times) and times.min() > 0 and times.max() > _WIDE * times.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(bottom=0.0)
    axes.set_xlim(0.0, 1.02 * highest)
    axes.set_ylabel("time of the layer (µs)")
    axes.set_xlabel(panel.axis)
    if panel.curves:
        _make_room(axes, 0.04 + 0.07 * len(panel.curves))
        axes.legend(fontsize=8, loc="upper left", framealpha=0.85, edgecolor="none")


def _draw_curve(axes: Axes, label: str, curve: Staircase, divisor: int, color: str, style: str) -> None:
    known = curve.is_finite
    widths = np.array(curve.widths)[known]
    low, middle, high = (np.array(times)[known] for times in (curve.p10_us, curve.median_us, curve.p90_us))
    dropped = not_shown(int((~known).sum()), "without a time")
    step = step_height(curve, divisor) if divisor > 1 else math.nan
    past = "" if math.isnan(step) else f", one channel past a multiple of {divisor}: {step:+.0%}"
    axes.plot(widths, middle, color=color, linestyle=style, linewidth=1.2, zorder=3, label=f"{label}{past}{dropped}")
    axes.fill_between(widths, low, high, color=color, alpha=0.2, linewidth=0.0, zorder=2)
    if divisor > 1:
        at = widths % divisor == 0
        axes.scatter(widths[at], middle[at], s=16, color=color, edgecolors="white", linewidths=0.5, zorder=4)


def _mark_multiples(axes: Axes, divisor: int, highest: int) -> None:
    num_multiples = highest // divisor
    if divisor > 1 and num_multiples <= _MAX_MULTIPLES:
        for multiple in range(divisor, highest + 1, divisor):
            axes.axvline(multiple, color="#B0B0B0", linewidth=0.6, linestyle=":", zorder=1)
    if divisor > 1:
        every = 1
        while num_multiples > 12 * every:
            every *= 2
        axes.xaxis.set_major_locator(MultipleLocator(divisor * every))
    found = f"dots and lines: multiples of {divisor}, the preferred divisor" if divisor > 1 else "no preferred divisor"
    axes.set_title(found, fontsize=9)


def _make_room(axes: Axes, fraction: float) -> None:
    """Leaves the upper `fraction` of the axes to the legend."""
    low, high = axes.get_ylim()
    if axes.get_yscale() == "log":
        axes.set_ylim(low, low * (high / low) ** (1.0 / (1.0 - fraction)))
    else:
        axes.set_ylim(low, low + (high - low) / (1.0 - fraction))


def _times(panel: StaircasePanel) -> FloatArray:
    times = [np.array(curve.median_us, dtype=np.float64)[curve.is_finite] for curve in panel.curves.values()]
    return np.concatenate(times) if times else np.zeros(0)
