"""What a run of each searcher can be counted on to attain: the median over seeds, between the quartiles."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from compsearch.comparison.accuracy_axis import is_wide, set_accuracy_axis
from compsearch.comparison.attainment import PERCENTILES, Surface, surfaces
from compsearch.comparison.comparison import Comparison
from compsearch.comparison.look import SEARCHER_LOOKS, Look, looks
from compsearch.comparison.pareto_plots import MACS_AXIS, STAGES, CostAxis
from compsearch.comparison.plot_frame import (
    add_legend,
    add_title,
    dense_accuracy,
    draw_dense,
    legend_entry,
    seeds_text,
    wrapped,
)
from compsearch.report.style import GREY, RESOURCE_LABELS, new_figure, tidy
from compsearch.space import FloatArray

_BEST, _MEDIAN, _WORST = PERCENTILES


def attainment_figure(
    comparison: Comparison, facet: str, *, stage: str = "before", axis: CostAxis = MACS_AXIS
) -> Figure:
    """A panel per series of `facet`: what half of its seeds attain at what cost of `axis`, a band between quartiles.

    Behind it, thin, the medians of the others; uniform's is marked. Networks are those of `stage` (``before`` or
    ``after`` fine-tuning) on the test split. Raises ValueError when there are none.
    """
    networks = comparison.networks[comparison.networks["facet"] == facet]
    found = [
        surface
        for surface in surfaces(networks, costs=[axis.column])
        if surface.stage == stage and surface.device == axis.device and len(surface.corners)
    ]
    looks_by_series = looks(comparison)
    order = list(looks_by_series)
    pairs = {(each.series, each.resource) for each in found}
    contestants = sorted(pairs, key=lambda pair: (order.index(pair[0]), pair[1]))
    if not contestants:
        raise ValueError(f"an attainment plot must have networks {STAGES[stage]} to show, but {facet!r} has none")
    num_columns = min(4, len(contestants))
    num_rows = math.ceil(len(contestants) / num_columns)
    figure = new_figure(max(1.2 + 2.9 * num_columns, 6.5), 1.0 + 2.5 * num_rows)
    panels = figure.subplots(num_rows, num_columns, squeeze=False, sharex=True, sharey=True)
    dense = dense_accuracy(networks)
    accuracies = [dense, *(value for each in found for value in each.corners[:, 1])]
    set_accuracy_axis(panels[0, 0], accuracies, label="top-1 accuracy, test split", is_stretched=is_wide(accuracies))
    for axes in panels[1:, 0]:
        axes.set_ylabel(panels[0, 0].get_ylabel())
    for axes, (series, resource) in zip(panels.flat, contestants, strict=False):
        _draw_panel(axes, found, series, resource, looks_by_series, dense)
    costs = [1.0, *(value for each in found for value in each.corners[:, 0])]
    panels[0, 0].set_xlim(min(costs) - 0.05 * (max(costs) - min(costs)), max(costs))
    panels[0, 0].xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    for axes in panels.flat[len(contestants) :]:
        axes.set_axis_off()
    for axes in panels.flat[max(0, len(contestants) - num_columns) : len(contestants)]:
        axes.set_xlabel(axis.label)
        axes.tick_params(labelbottom=True)  # also where the panel below is left empty
    entries = [legend_entry(SEARCHER_LOOKS["dense"], f"dense, {dense:.1%}", has_marker=False)] if dense == dense else []
    if any(series == "uniform" for series, _ in contestants):
        entries.append(legend_entry(SEARCHER_LOOKS["uniform"], "uniform, median", has_marker=False))
    entries.append(legend_entry(Look("", "#BBBBBB", "o"), "medians of the others", has_marker=False))
    add_legend(figure, entries)
    numbers = {each.num_runs for each in found}
    title = f"{facet}, {STAGES[stage]}: {seeds_text(numbers)}; test split, read once"
    add_title(figure, title, attainment_sentence() if max(numbers) > 1 else "one seed: no quartiles, the run itself")
    return figure


def attainment_sentence() -> str:
    """For captions: what the lines are."""
    return (
        "Line: the accuracy that half of the seeds attain at no more than that cost; band: from what the best quarter "
        "of the seeds attains to what three quarters do."
    )


def _draw_panel(
    axes: Axes, found: Sequence[Surface], series: str, resource: str, looks_by_series: dict[str, Look], dense: float
) -> None:
    tidy(axes)
    draw_dense(axes, dense)
    for other in found:
        if other.percentile == _MEDIAN and (other.series, other.resource) != (series, resource):
            is_uniform = other.series == "uniform" and other.resource == resource
            look = SEARCHER_LOOKS["uniform"]
            axes.plot(
                *other.polyline().T,
                color=look.color if is_uniform else "#BBBBBB",
                linestyle=look.linestyle if is_uniform else "-",
                linewidth=1.0 if is_uniform else 0.8,
                zorder=2 if is_uniform else 1.5,
            )
    look = looks_by_series[series]
    own = {each.percentile: each for each in found if (each.series, each.resource) == (series, resource)}
    x, low, high = _band(own[_WORST].polyline(), own[_BEST].polyline())
    axes.fill_between(x, low, high, color=look.color, alpha=0.25, linewidth=0, zorder=2.5)
    median = own[_MEDIAN]
    axes.plot(*median.polyline().T, color=look.color, linewidth=1.8, zorder=3)
    axes.plot(
        *median.corners.T,
        color=look.color,
        marker=look.marker,
        markersize=6 * look.size,
        markeredgecolor="white",
        markeredgewidth=0.5,
        linestyle="",
        zorder=3.1,
    )
    is_ambiguous = any(other.series == series and other.resource != resource for other in found)
    budget = f", {RESOURCE_LABELS.get(resource, resource)} budget" if is_ambiguous else ""
    axes.set_title(wrapped(look.label + budget), fontsize=9, fontweight="bold", loc="left")
    seeds = seeds_text({median.num_runs})
    axes.text(0.98, 0.03, seeds, fontsize=8, color=GREY, zorder=1, ha="right", va="bottom", transform=axes.transAxes)


def _band(low: FloatArray, high: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Where both staircases [num_vertices, 2] are: costs with a vertex, twice each, and the height of either there."""
    start = max(low[0, 0], high[0, 0])
    costs = np.unique(np.concatenate([low[:, 0], high[:, 0]]))
    costs = costs[costs >= start]
    # Each cost twice: before its step and after it.
    x = np.repeat(costs, 2)[1:]
    heights = []
    for steps in (low, high):
        after = steps[np.searchsorted(steps[:, 0], costs, side="right") - 1, 1]
        heights.append(np.repeat(after, 2)[:-1])
    return x, heights[0], heights[1]
