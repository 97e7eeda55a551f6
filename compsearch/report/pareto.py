"""pareto.png: what accuracy costs. Every trial, the best of them at each cost, and the networks to compare with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import moocore
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from compsearch.report.style import BLACK, BLUE, GREY, MARKS, OTHER_MARK, new_figure, resource_label, save, tidy
from compsearch.space import BoolArray, FloatArray
from compsearch.trial import Trial

#: Trials within this share of the cost axis get a second, magnified panel.
_NARROW = 0.25


@dataclass(frozen=True)
class Point:
    """A network to mark: ``dense``, ``uniform``, ``compressed``, ``fine-tuned`` or any other name."""

    name: str
    cost_ratio: float
    accuracy: float


def pareto_figure(
    trials: Sequence[Trial],
    *,
    resource: str,
    points: Sequence[Point],
    title: str,
    split: str,
    recovery: str,
    point_recovery: str | None = None,
) -> Figure:
    """Accuracy on `split` against the cost_ratio of `resource`.

    `recovery` says how the trials were recovered before they were scored (``none``, ``batch norm``, …), and
    `point_recovery` how the points were, when otherwise; the point ``fine-tuned`` was trained beyond that. Failed
    trials are counted in the legend, not drawn. When ``uniform`` is at least as accurate as ``compressed`` the title
    says so. Trials that crowd together get a magnified panel.
    """
    scores = trial_points(trials)
    front = scores[on_front(scores)]
    is_narrow = len(scores) > 0 and _is_narrow(scores, points)
    figure = new_figure(10.5 if is_narrow else 7.2, 4.8)
    axes = list(figure.subplots(1, 2 if is_narrow else 1, squeeze=False)[0])
    num_failed = len(trials) - len(scores)
    for each in axes:
        _draw(each, scores, front, points, num_failed, _recovered(recovery))
        each.set_xlabel(resource_label(resource))
    axes[0].set_ylabel(f"accuracy on the {split} split")
    axes[0].set_xlim(left=0.0, right=1.03)
    if is_narrow:
        _magnify(axes[1], scores, points)
        axes[1].set_title("the trials, magnified", fontsize=9)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    marked = f"marked networks {_recovered(point_recovery)}" if point_recovery not in (None, recovery) else ""
    lines = [title, "; ".join(filter(None, [uniform_verdict(points), marked]))]
    figure.suptitle("\n".join(filter(None, lines)), fontsize=10)
    return figure


def save_pareto(
    path: Path,
    trials: Sequence[Trial],
    *,
    resource: str,
    points: Sequence[Point],
    title: str,
    split: str,
    recovery: str,
    point_recovery: str | None = None,
) -> None:
    """Writes `pareto_figure` as PNG."""
    figure = pareto_figure(
        trials,
        resource=resource,
        points=points,
        title=title,
        split=split,
        recovery=recovery,
        point_recovery=point_recovery,
    )
    save(figure, path)


def trial_points(trials: Sequence[Trial]) -> FloatArray:
    """(cost_ratio, accuracy) of every trial that did not fail, [num_points, 2]; one over the budget did."""
    done = [trial for trial in trials if trial.objective is not None]
    scores = np.array([(trial.cost_ratio, trial.measurement.accuracy) for trial in done], dtype=np.float64)
    scores = scores.reshape(-1, 2)
    return scores[np.isfinite(scores).all(axis=1)]


def on_front(scores: FloatArray) -> BoolArray:
    """Which of (cost_ratio, accuracy) [num_points, 2], all finite, no other point beats; [num_points].

    Of equal points the first counts.
    """
    assert np.isfinite(scores).all(), "a NaN would count as non-dominated"
    if not len(scores):
        return np.zeros(0, dtype=np.bool_)
    return np.asarray(moocore.is_nondominated(scores, maximise=[False, True]), dtype=np.bool_)


def uniform_verdict(points: Sequence[Point]) -> str:
    """A sentence when uniform pruning did at least as well as the search, nothing otherwise."""
    by_name = {point.name: point for point in points}
    uniform, compressed = by_name.get("uniform"), by_name.get("compressed")
    if uniform is None or compressed is None or uniform.accuracy < compressed.accuracy:
        return ""
    ahead = 100 * (uniform.accuracy - compressed.accuracy)
    return "uniform did as well as the search" if ahead == 0 else f"uniform did better, by {ahead:.2f} points"


def _recovered(recovery: str | None) -> str:
    return "not recovered" if recovery in {None, "", "none"} else f"recovered by {recovery}"


def _is_narrow(scores: FloatArray, points: Sequence[Point]) -> bool:
    everything = np.array([*scores[:, 0], *(point.cost_ratio for point in points)])
    return bool(np.ptp(scores[:, 0]) < _NARROW * max(np.ptp(everything), 1e-12))


def _draw(
    axes: Axes, scores: FloatArray, front: FloatArray, points: Sequence[Point], num_failed: int, recovered: str
) -> None:
    tidy(axes)
    failed = f" ({num_failed} failed, not shown)" if num_failed else ""
    axes.scatter(
        scores[:, 0],
        scores[:, 1],
        s=14,
        color=BLUE,
        alpha=0.35,
        linewidths=0,
        label=f"{len(scores)} trials{failed}, {recovered}",
    )
    steps = front[np.argsort(front[:, 0], kind="stable")]
    # A staircase: between two points of the front, what is affordable is the cheaper one.
    axes.plot(
        *steps.T,
        drawstyle="steps-post",
        color=BLACK,
        linewidth=1.0,
        marker=".",
        markersize=5,
        label="front of the trials",
    )
    for point in points:
        mark = MARKS.get(point.name, OTHER_MARK)
        axes.scatter(
            [point.cost_ratio],
            [point.accuracy],
            marker=mark.marker,
            s=mark.size,
            color=mark.color,
            edgecolors="white",
            linewidths=0.8,
            zorder=5 if point.name == "compressed" else 4,  # fine-tuned lies close by, at the same cost
            label=f"{point.name} {point.accuracy:.2%}",
        )
        axes.axhline(point.accuracy, color=GREY, linewidth=0.6, linestyle=":", zorder=1)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    axes.xaxis.set_major_locator(MaxNLocator(6))


def _magnify(axes: Axes, scores: FloatArray, points: Sequence[Point]) -> None:
    low, high = scores[:, 0].min(), scores[:, 0].max()
    margin = max(0.15 * (high - low), 0.002)
    axes.set_xlim(low - margin, high + margin)
    near = [point.accuracy for point in points if low - margin <= point.cost_ratio <= high + margin]
    bottom, top = min([*scores[:, 1], *near]), max([*scores[:, 1], *near])
    margin = max(0.06 * (top - bottom), 0.002)
    axes.set_ylim(bottom - margin, top + margin)
