"""expected.png: a search over paths as it went: what it expected to pay, how decided it was, what it learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, PercentFormatter

from compsearch.budget import Budget
from compsearch.report.paths_plot import PathStep, warmup_end
from compsearch.report.style import BLACK, BLUE, GREEN, VERMILION, new_figure, resource_label, save, tidy
from compsearch.report.timed import Spread
from compsearch.space import FloatArray

_WARMUP = "#E9E9E9"


def expected_figure(
    history: Sequence[PathStep],
    *,
    resource: str,
    budget: Budget | None,
    title: str,
    latencies: Mapping[int, Spread] | None = None,
) -> Figure:
    """Over epochs: cost_ratio of `resource`, expected and of the networks derived; entropy; training loss; accuracy.

    The `budget` is a line. `latencies` are those measured over the dense one's, by index of the trial; those of trials
    outside `history` have no epoch and are not drawn. Raises ValueError when `history` is empty.
    """
    if not history:
        raise ValueError("at least one trial must say what its search believed, but none does; draw nothing")
    figure = new_figure(7.6, 8.8)
    panels = cost, entropy, loss, accuracy = figure.subplots(4, 1, sharex=True, height_ratios=[3, 1.5, 1.5, 1.7])
    epochs = np.array([step.state.epoch for step in history], dtype=np.float64)
    begin = warmup_end(history)
    for axes in panels:
        tidy(axes)
        if begin is not None:
            axes.axvspan(epochs[0] - 0.5, begin, color=_WARMUP, linewidth=0, zorder=0, label="before paths learn")
    _draw_cost(cost, epochs, history, budget)
    _draw_latencies(cost, history, latencies or {})
    cost.set_ylabel(resource_label(resource).replace(": ", ":\n"))
    cost.set_ylim(0.0, max(1.0, cost.get_ylim()[1]))
    # Below all panels: points may be anywhere in the first.
    figure.legend(*cost.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    entropy.plot(epochs, [step.state.entropy for step in history], color=BLACK, linewidth=1.4, marker=".")
    entropy.set(ylim=(0.0, 1.05), ylabel="entropy\n1 undecided\n0 settled")
    loss.plot(epochs, [step.state.train_loss for step in history], color=BLACK, linewidth=1.4, marker=".")
    loss.set_ylabel("training loss,\nsampled paths")
    accuracies = [step.trial.measurement.accuracy for step in history]
    accuracy.plot(epochs, accuracies, color=BLACK, linewidth=1.0, marker="D", markersize=4, markerfacecolor="white")
    accuracy.set_ylabel("accuracy on the\nsearch split,\nderived networks")
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    accuracy.set_xlabel("epoch of supernet training")
    accuracy.xaxis.set_major_locator(MaxNLocator(integer=True) if len(epochs) > 1 else FixedLocator([epochs[0]]))
    accuracy.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
    cost.set_title(f"{title}: the search over paths", fontsize=10)
    figure.align_ylabels()
    return figure


def save_expected(
    path: Path,
    history: Sequence[PathStep],
    *,
    resource: str,
    budget: Budget | None,
    title: str,
    latencies: Mapping[int, Spread] | None = None,
) -> None:
    """Writes `expected_figure` as PNG."""
    save(expected_figure(history, resource=resource, budget=budget, title=title, latencies=latencies), path)


def _draw_cost(axes: Axes, epochs: FloatArray, history: Sequence[PathStep], budget: Budget | None) -> None:
    expected = [step.state.expected_cost_ratio for step in history]
    axes.plot(epochs, expected, color=BLUE, linewidth=1.6, marker=".", label="expected: mean of networks drawn")
    axes.scatter(
        epochs,
        [step.trial.cost_ratio for step in history],
        marker="D",
        s=20,
        color="white",
        edgecolors=BLACK,
        linewidths=0.9,
        zorder=3,
        label="derived network",
    )
    if budget is not None:
        label = f"budget {budget.cost_ratio:.4g}"
        axes.axhline(budget.cost_ratio, color=VERMILION, linewidth=1.2, linestyle="--", label=label)


def _draw_latencies(axes: Axes, history: Sequence[PathStep], latencies: Mapping[int, Spread]) -> None:
    timed = [
        (step.state.epoch, latencies[step.index])
        for step in history
        if step.index in latencies and latencies[step.index].is_finite
    ]
    if timed:
        axes.errorbar(
            [epoch for epoch, _ in timed],
            [spread.median for _, spread in timed],
            yerr=np.array([(spread.below, spread.above) for _, spread in timed]).T,
            fmt="^",
            color=GREEN,
            markersize=6,
            elinewidth=1.0,
            capsize=2,
            zorder=4,
            label="derived, measured latency / dense, p10–p90",
        )
