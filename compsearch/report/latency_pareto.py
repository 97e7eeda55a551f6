"""latency_pareto.png: what accuracy costs in FLOPs, and beside it what it costs in time. They need not agree."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from compsearch.report.captions import balanced, caption, counted, not_shown, three_figures
from compsearch.report.pareto import Point, on_front, uniform_verdict
from compsearch.report.style import (
    BLACK,
    BLUE,
    GREY,
    MARKS,
    OTHER_MARK,
    new_figure,
    resource_label,
    save,
    tidy,
)
from compsearch.report.timed import Spread
from compsearch.space import FloatArray

#: ``ratio``: latencies over that of the dense network on the same device; ``ms``: milliseconds.
Unit = Literal["ratio", "ms"]
#: Trials within this share of the FLOPs axis get a second, magnified row.
_NARROW = 0.25
#: Hollow and black, so that they are nobody's on this device.
_OTHER_DEVICES = ("^", "v", "p", "h", "8")
_KINDS = ("macs", "latency")


@dataclass(frozen=True)
class LatencyPoint:
    """A network's accuracy, its MACs over the dense network's, and its latency on a `device`.

    `latency` is a `Spread` where it was timed and a plain number where it was predicted, in the figure's unit.
    `device` says what runs it where, as in ``"onnxruntime on AMD EPYC, 1 thread, batch 1"``: texts that differ in
    anything are different devices.
    """

    accuracy: float
    cost_ratio: float
    latency: Spread | float
    device: str

    @property
    def median(self) -> float:
        return self.latency.median if isinstance(self.latency, Spread) else self.latency

    @property
    def is_finite(self) -> bool:
        timed = self.latency.is_finite if isinstance(self.latency, Spread) else math.isfinite(self.latency)
        return timed and math.isfinite(self.accuracy) and math.isfinite(self.cost_ratio)


def latency_pareto_figure(
    trials: Sequence[LatencyPoint],
    *,
    networks: Mapping[str, LatencyPoint],
    device: str,
    unit: Unit,
    title: str,
    split: str,
    recovery: str,
) -> Figure:
    """Accuracy on `split` against the MACs on the left and against the latency on the right, with one accuracy axis.

    `networks` are marked by their names (``dense``, ``uniform``, ``compressed``, ``fine-tuned``). The title names
    `device`; what has its latency from another one gets another marker and a line in the legend that names it, and
    takes no part in the front of the latencies. `recovery` says how accuracies were recovered before they were read.
    Points without accuracy or latency are counted in the legend, not drawn. When uniform did as well, or was faster,
    the title says so. Trials that crowd together get a magnified row. Raises ValueError when ratios of several devices
    meet on one axis: what is half of one machine's time is not half of another's.
    """
    everything = [*trials, *networks.values()]
    others = list(dict.fromkeys(point.device for point in everything if point.device != device))
    if unit == "ratio" and others:
        raise ValueError(
            f"ratios of latencies must be of one device, {device!r}, but some are of {', '.join(map(repr, others))}; "
            "draw milliseconds (unit='ms'), or one figure per device"
        )
    shown = [trial for trial in trials if trial.is_finite]
    marked = {name: network for name, network in networks.items() if network.is_finite}
    dropped = not_shown(len(trials) - len(shown), "without accuracy or latency")
    content = _Content(shown, marked, device, others, unit, dropped)
    is_narrow = _is_narrow(shown, marked)
    figure = new_figure(11.0, 8.4 if is_narrow else 5.2)
    rows = figure.subplots(2 if is_narrow else 1, 2, squeeze=False, sharey="row")
    for row in rows:
        for axes, kind in zip(row, _KINDS, strict=True):
            _draw(axes, kind, content)
        row[0].set_xlabel(resource_label("macs"))
        row[1].set_xlabel(resource_label("latency_ms") if unit == "ratio" else "latency (ms)")
        row[0].set_ylabel(f"accuracy on the {split} split")
    for axes in rows[0]:
        axes.set_xlim(left=0.0)
        if not shown and not marked:
            axes.set(xlim=(0.0, 1.03), ylim=(0.0, 1.0))
    if is_narrow:
        _magnify(rows[1], shown, marked)
    handles, labels = rows[0][1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    recovered = "not recovered" if recovery in {"", "none"} else f"recovered by {recovery}"
    verdict = latency_pareto_verdict(marked)
    figure.suptitle(caption(f"{title}; {recovered}", f"latency: {device}", verdict, width=150), fontsize=10)
    return figure


def save_latency_pareto(
    path: Path,
    trials: Sequence[LatencyPoint],
    *,
    networks: Mapping[str, LatencyPoint],
    device: str,
    unit: Unit,
    title: str,
    split: str,
    recovery: str,
) -> None:
    """Writes `latency_pareto_figure` as PNG."""
    figure = latency_pareto_figure(
        trials, networks=networks, device=device, unit=unit, title=title, split=split, recovery=recovery
    )
    save(figure, path)


def latency_pareto_verdict(networks: Mapping[str, LatencyPoint]) -> str:
    """What uniform pruning did at least as well as the search, accuracy or timed latency; nothing otherwise.

    Latencies are compared only on one device, and only where both were timed and their spreads are apart.
    """
    points = [Point(name, network.cost_ratio, network.accuracy) for name, network in networks.items()]
    sentences = [uniform_verdict(points)]
    uniform, compressed = networks.get("uniform"), networks.get("compressed")
    if uniform and compressed and uniform.device == compressed.device:
        own, other = compressed.latency, uniform.latency
        if isinstance(own, Spread) and isinstance(other, Spread) and other.p90 < own.p10:
            sentences.append(
                f"uniform is faster, latency {three_figures(other.median)} against {three_figures(own.median)}"
            )
    return "; ".join(filter(None, sentences))


@dataclass(frozen=True)
class _Content:
    """What both panels show; `others` are the devices beside `device`, `dropped` says what is not shown."""

    trials: Sequence[LatencyPoint]
    networks: Mapping[str, LatencyPoint]
    device: str
    others: Sequence[str]
    unit: Unit
    dropped: str


def _draw(axes: Axes, kind: str, content: _Content) -> None:
    tidy(axes)
    own = [trial for trial in content.trials if trial.device == content.device]
    predicted = [trial for trial in own if not isinstance(trial.latency, Spread)]
    timed = [trial for trial in own if isinstance(trial.latency, Spread)]
    _dots(axes, kind, predicted, f"{counted(len(predicted), 'trial', 'trials')}, latency predicted", alpha=0.3, size=14)
    _dots(axes, kind, timed, f"{counted(len(timed), 'trial', 'trials')}, latency timed, p10–p90", alpha=0.9, size=20)
    _draw_front(axes, kind, content, own)
    for name, marker in zip(content.others, _OTHER_DEVICES * len(content.others), strict=False):
        theirs = [trial for trial in content.trials if trial.device == name]
        rings = [network for network in content.networks.values() if network.device == name]
        label = balanced(f"latency on another device: {name}", 72)
        costs, accuracies = _scores(kind, theirs).T
        axes.scatter(costs, accuracies, s=34, marker=marker, c="none", edgecolors=BLACK, zorder=3, label=label)
        # Around a marked network, whose own mark says which one it is.
        costs, accuracies = _scores(kind, rings).T
        axes.scatter(costs, accuracies, s=420, marker=marker, c="none", edgecolors=BLACK, zorder=3)
        _bars(axes, kind, theirs, BLACK)
    for name, network in content.networks.items():
        _draw_network(axes, kind, name, network, content)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    axes.xaxis.set_major_locator(MaxNLocator(6))


def _dots(axes: Axes, kind: str, trials: Sequence[LatencyPoint], label: str, *, alpha: float, size: float) -> None:
    if not trials:
        return
    costs, accuracies = _scores(kind, trials).T
    axes.scatter(costs, accuracies, s=size, color=BLUE, alpha=alpha, linewidths=0, label=label, zorder=2)
    _bars(axes, kind, trials, BLUE)


def _bars(axes: Axes, kind: str, points: Sequence[LatencyPoint], color: str, *, width: float = 0.8) -> None:
    spreads = [(point.accuracy, point.latency) for point in points if isinstance(point.latency, Spread)]
    if kind != "latency" or not spreads:
        return
    axes.errorbar(
        [spread.median for _, spread in spreads],
        [accuracy for accuracy, _ in spreads],
        xerr=np.array([(spread.below, spread.above) for _, spread in spreads]).T,
        fmt="none",
        ecolor=color,
        elinewidth=width,
        alpha=0.7,
        zorder=2,
    )


def _draw_front(axes: Axes, kind: str, content: _Content, own: Sequence[LatencyPoint]) -> None:
    scores = _scores(kind, own if kind == "latency" else content.trials)
    front = scores[on_front(scores)]
    steps = front[np.argsort(front[:, 0], kind="stable")]
    where = f"; of latency: of {len(own)} on the device in the title" if content.others else ""
    label = f"front of {counted(len(content.trials), 'trial', 'trials')}{where}{content.dropped}"
    # A staircase: between two points of the front, what is affordable is the cheaper one.
    axes.plot(*steps.T, drawstyle="steps-post", color=BLACK, linewidth=1.0, marker=".", markersize=5, label=label)


def _draw_network(axes: Axes, kind: str, name: str, network: LatencyPoint, content: _Content) -> None:
    mark = MARKS.get(name, OTHER_MARK)
    _bars(axes, kind, [network], BLACK, width=1.4)
    unit = " ms" if content.unit == "ms" else ""
    spread = network.latency
    how = f" [{three_figures(spread.p10)}, {three_figures(spread.p90)}]" if isinstance(spread, Spread) else " predicted"
    where = "" if network.device == content.device else ", on another device"
    costs = f"FLOPs {network.cost_ratio:.3f}, latency {three_figures(network.median)}{how}{unit}{where}"
    [[cost, accuracy]] = _scores(kind, [network])
    axes.scatter(
        [cost],
        [accuracy],
        marker=mark.marker,
        s=mark.size,
        color=mark.color,
        edgecolors="white",
        linewidths=0.8,
        zorder=6 if name == "compressed" else 5,  # fine-tuned lies close by, at the same cost
        label=f"{name} {network.accuracy:.2%}: {costs}",
    )
    axes.axhline(network.accuracy, color=GREY, linewidth=0.6, linestyle=":", zorder=1)


def _scores(kind: str, points: Sequence[LatencyPoint]) -> FloatArray:
    """(cost, accuracy) [num_points, 2] on an axis of that kind."""
    costs = [point.cost_ratio if kind == "macs" else point.median for point in points]
    pairs = [(cost, point.accuracy) for cost, point in zip(costs, points, strict=True)]
    return np.array(pairs, dtype=np.float64).reshape(-1, 2)


def _is_narrow(trials: Sequence[LatencyPoint], networks: Mapping[str, LatencyPoint]) -> bool:
    if not trials:
        return False
    costs = [trial.cost_ratio for trial in trials]
    everything = [*costs, *(network.cost_ratio for network in networks.values())]
    return bool(np.ptp(costs) < _NARROW * max(float(np.ptp(everything)), 1e-12))


def _magnify(row: Sequence[Axes], trials: Sequence[LatencyPoint], networks: Mapping[str, LatencyPoint]) -> None:
    costs = [trial.cost_ratio for trial in trials]
    margin = 0.15 * (max(costs) - min(costs)) + 0.002
    near = [each for each in networks.values() if min(costs) - margin <= each.cost_ratio <= max(costs) + margin]
    for axes, kind in zip(row, _KINDS, strict=True):
        scores = _scores(kind, [*trials, *near])
        low, high = scores.min(axis=0), scores.max(axis=0)
        edge = np.maximum(0.08 * (high - low), 0.002 * high)
        axes.set_xlim(low[0] - edge[0], high[0] + edge[0])
        axes.set_ylim(low[1] - edge[1], high[1] + edge[1])
        axes.set_title("the trials, magnified", fontsize=9)
