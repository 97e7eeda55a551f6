"""Who is ahead at each budget: test accuracies over seeds, a row per searcher, on an axis of the budget's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from compsearch.comparison.accuracy_axis import percent
from compsearch.comparison.comparison import Comparison
from compsearch.comparison.look import SEARCHER_LOOKS, Look, looks
from compsearch.comparison.pareto_plots import STAGES
from compsearch.comparison.plot_frame import (
    add_legend,
    add_title,
    budget_title,
    by_budget,
    dense_accuracy,
    draw_seeds,
    elsewhere_note,
    label_length,
    seeds_text,
    wrapped,
)
from compsearch.comparison.seeds import compressed_networks
from compsearch.report.style import BLACK, GREY, new_figure, tidy

#: Rows of one series, before and after fine-tuning, are apart by this share of the distance between series.
_APART = 0.32
#: How uniform's level is drawn, by stage.
_UNIFORM_LINES: Mapping[str, Literal["--", "-"]] = {"before": "--", "after": "-"}


def budget_figure(comparison: Comparison, facet: str) -> Figure:
    """A panel per budget of `facet`, a row per series: single seeds, their mean, one standard deviation either way.

    Before fine-tuning hollow, after it filled. The levels of uniform are drawn all through, so that what
    doesn't beat it shows. Raises ValueError when no network of `facet` has a test accuracy.
    """
    networks = comparison.networks[comparison.networks["facet"] == facet]
    found = compressed_networks(networks)
    if found.empty:
        raise ValueError(f"a plot of budgets must have a network with a test accuracy, but {facet!r} has none")
    looks_by_series = {key: look for key, look in looks(comparison).items() if key in set(found["series"])}
    budgets = by_budget(found)
    stages = [stage for stage in STAGES if (found["stage"] == stage).any()]
    labels = [wrapped(look.label) for look in looks_by_series.values()]
    label_width = 0.075 * max(map(label_length, labels))
    height = 1.2 + (0.27 + 0.13 * len(stages)) * len(looks_by_series)
    figure = new_figure(max(0.8 + label_width + 3.0 * len(budgets), 6.5), height)
    panels = figure.subplots(1, len(budgets), squeeze=False, sharey=True)[0]
    dense, is_dense_near = dense_accuracy(networks), False
    for axes, (resource, budget, of_budget) in zip(panels, budgets, strict=True):
        _draw(axes, of_budget, stages, looks_by_series)
        if axes.get_xlim()[0] <= dense <= axes.get_xlim()[1]:
            is_dense_near = True
            look = SEARCHER_LOOKS["dense"]
            axes.axvline(dense, color=look.color, linewidth=0.8, linestyle=look.linestyle, zorder=1)
        axes.set_title(budget_title(resource, budget), fontsize=9, fontweight="bold", loc="left")
        axes.set_xlabel("top-1 accuracy, test split")
    panels[0].set_yticks(range(len(labels)), labels)
    panels[0].set_ylim(len(looks_by_series) - 0.5, -0.5)
    numbers = set(found.groupby(["series", "resource", "budget", "stage"], dropna=False).size())
    stages_of_uniform = set(found.loc[found["series"] == "uniform", "stage"])
    uniform = [stage for stage in stages if stage in stages_of_uniform]
    add_legend(figure, _entries(stages, uniform=uniform, has_dense=is_dense_near))
    whole = f", dense {dense:.1%}" if np.isfinite(dense) else ""
    note = "large marks: mean over seeds, bars: ± one standard deviation, small marks: one seed each"
    add_title(
        figure,
        f"{facet}{whole}: {seeds_text(numbers)}; test split, read once; axes differ",
        note if max(numbers) > 1 else "one seed: no spread is known",
        elsewhere_note(found, looks_by_series),
    )
    return figure


def budget_sentence(comparison: Comparison, facet: str) -> str:
    """For captions: how to read it."""
    found = compressed_networks(comparison.networks[comparison.networks["facet"] == facet])
    kinds = {"before": "hollow ", "after": "filled "} if found["stage"].nunique() > 1 else {}
    lines = {"before": "dashed", "after": "solid"}
    worse = [
        f"a {kinds.get(stage, '')}mark left of the {lines[stage]} line does worse than uniform pruning {STAGES[stage]}"
        for stage in STAGES
        if ((found["series"] == "uniform") & (found["stage"] == stage)).any()
    ]
    text = "Each panel has its own axis. A difference between two searchers smaller than their bars may be chance."
    return f"{text} {', '.join(worse).capitalize()}." if worse else text


def _draw(axes: Axes, found: pd.DataFrame, stages: list[str], looks_by_series: Mapping[str, Look]) -> None:
    tidy(axes)
    axes.grid(visible=False, axis="y")
    look = SEARCHER_LOOKS["uniform"]
    for stage, linestyle in _UNIFORM_LINES.items():
        of_uniform = found.loc[(found["series"] == "uniform") & (found["stage"] == stage), "accuracy_test"]
        if len(of_uniform):
            axes.axvline(of_uniform.mean(), color=look.color, linewidth=0.9, linestyle=linestyle, zorder=1)
    for row, (series, look) in enumerate(looks_by_series.items()):
        if row % 2:
            axes.axhspan(row - 0.5, row + 0.5, color="#F5F5F5", linewidth=0, zorder=0)
        for index, stage in enumerate(stages):
            values = found.loc[(found["series"] == series) & (found["stage"] == stage), "accuracy_test"]
            if len(values):
                place = row + _APART * (index - (len(stages) - 1) / 2)
                _draw_row(axes, values, place, look, is_hollow=stage == "before" and len(stages) > 1)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(percent))


def _draw_row(axes: Axes, values: pd.Series, place: float, look: Look, *, is_hollow: bool) -> None:
    face = "white" if is_hollow else look.color
    if len(values) > 1:
        draw_seeds(axes, values, np.full(len(values), place), look)
        axes.errorbar(
            [values.mean()], [place], xerr=[values.std()], fmt="none", ecolor=look.color, elinewidth=1.2, capsize=2.5
        )
    axes.plot(
        [values.mean()],
        [place],
        color=look.color,
        marker=look.marker,
        markersize=7.5 * look.size,
        markerfacecolor=face,
        markeredgecolor=look.color if is_hollow else "white",
        markeredgewidth=1.2 if is_hollow else 0.5,
        linestyle="",
        zorder=3,
    )


def _entries(stages: list[str], *, uniform: list[str], has_dense: bool) -> list[Line2D]:
    entries = []
    for stage in stages:
        is_hollow = stage == "before" and len(stages) > 1
        face = "white" if is_hollow else GREY
        mark = Line2D([], [], marker="o", markerfacecolor=face, markeredgecolor=GREY, linestyle="", label=STAGES[stage])
        entries.append(mark)
    for stage in uniform:
        look = SEARCHER_LOOKS["uniform"]
        label = f"uniform {STAGES[stage]}"
        entries.append(Line2D([], [], color=look.color, linestyle=_UNIFORM_LINES[stage], linewidth=1.0, label=label))
    if has_dense:
        look = SEARCHER_LOOKS["dense"]
        entries.append(Line2D([], [], color=BLACK, linestyle=look.linestyle, linewidth=0.8, label="dense"))
    return entries
