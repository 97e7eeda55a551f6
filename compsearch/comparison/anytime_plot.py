"""How soon each search is how good: best search accuracy or hypervolume so far, against trials and against seconds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from compsearch.comparison.accuracy_axis import is_wide, set_accuracy_axis
from compsearch.comparison.anytime import BEST_ACCURACY, HYPERVOLUME, anytime_curves, anytime_references
from compsearch.comparison.comparison import Comparison
from compsearch.comparison.look import SEARCHER_LOOKS, Look, looks
from compsearch.comparison.plot_frame import (
    add_legend,
    add_title,
    budget_title,
    by_budget,
    hollow_entry,
    legend_entry,
    seeds_text,
)
from compsearch.report.style import new_figure, tidy

#: What seconds are of, by the clock of `anytime`'s tables.
CLOCKS: Mapping[str, str] = {
    "trials": "trials",
    "cpu_s": "processor seconds of search",
    "wall_s": "seconds of search by the clock",
}
#: The first trials of a search are hardly chosen; from this share of the longest curve on all of it is on the axis.
_START = 0.1
_MOST_NAMED = 4
#: More bands than these hide each other.
_MOST_BANDS = 8


def anytime_figure(comparison: Comparison, facet: str, *, quantity: str = BEST_ACCURACY) -> Figure:
    """A row per budget of `facet`; against trials on the left, against seconds on the right, logarithmic.

    A curve is the mean over seeds, its band from the lowest to the highest; searches of one trial are level lines.
    Against trials those are left out whose number of trials doesn't tell what they cost. `quantity` is one of
    `anytime.QUANTITIES`. Raises ValueError when no trial has an accuracy.
    """
    curves = _of(anytime_curves(comparison, quantities=[quantity]), facet)
    levels = _of(anytime_references(comparison, quantities=[quantity]), facet)
    keys = ["resource", "budget"]
    if curves.empty and levels.empty:
        raise ValueError(f"an anytime plot must have a trial with an accuracy, but {facet!r} has none")
    rows = [(resource, budget) for resource, budget, _ in by_budget(pd.concat([curves[keys], levels[keys]]))]
    clocks = list(dict.fromkeys(["trials", *curves["clock"]]))
    figure = new_figure(5.2 * len(clocks), 1.0 + 2.7 * len(rows))
    panels = figure.subplots(len(rows), len(clocks), squeeze=False, sharex="col", sharey="row")
    looks_by_series = looks(comparison)
    has_bands = curves["series"].nunique() <= _MOST_BANDS
    for row, (resource, budget) in zip(panels, rows, strict=True):
        here, level = (_at(table, resource, budget) for table in (curves, levels))
        values = [*_worth_seeing(here), *level["low"], *level["high"]]
        if quantity == HYPERVOLUME:
            _set_hypervolume_axis(row[0], values)
        else:
            set_accuracy_axis(row[0], values, label="best top-1 accuracy so far", is_stretched=is_wide(values))
        for axes, clock in zip(row, clocks, strict=True):
            shown = here[(here["clock"] == clock) & (here["is_by_trials"].eq(True) | (clock != "trials"))]
            _draw(axes, shown, level, looks_by_series, has_bands=has_bands)
        row[0].set_title(budget_title(resource, budget), fontsize=10, fontweight="bold", loc="left")
    for axes, clock in zip(panels[-1], clocks, strict=True):
        _set_clock_axis(axes, curves[curves["clock"] == clock], clock)
    untold = sorted(set(curves.loc[curves["is_by_trials"].eq(False), "searcher"]))
    names = ", ".join(SEARCHER_LOOKS[searcher].label for searcher in untold)
    untold_note = f"{names}: against seconds only, as trials are not what it pays with." if untold else ""
    unlike = curves.loc[curves["scored_otherwise"] != "", "series"]
    unlike_note = f"Scored after another recovery, so not comparable: {_listed(unlike, looks_by_series)}."
    numbers = {*curves["num_seeds"], *levels["num_seeds"]}
    drawn = {*curves["series"], *levels["series"]}
    entries = [legend_entry(look, look.label) for key, look in looks_by_series.items() if key in drawn]
    if levels["is_learned_elsewhere"].eq(True).any():
        entries.append(hollow_entry("learned at another budget"))
    add_legend(figure, entries)
    sentence = anytime_sentence() if max(numbers) > 1 else "One seed: no spread is known; level lines: one trial."
    if max(numbers) > 1 and not has_bands:
        sentence = "Line: mean over seeds, too many for their spread to be drawn; level lines: searches of one trial."
    add_title(
        figure,
        f"{facet}, search split: {seeds_text(numbers)}",
        sentence,
        untold_note,
        unlike_note if len(unlike) else "",
    )
    figure.align_ylabels()
    return figure


def anytime_sentence() -> str:
    """For captions: what the lines are."""
    return "Line: mean over seeds, band: from the lowest to the highest seed; level lines: searches of one trial."


def hypervolume_sentence() -> str:
    """For captions of the hypervolume: what counts towards it."""
    return (
        f"{anytime_sentence()} Hypervolume: of the trials so far that keep to the budget; reference point: the dense "
        "network's cost, accuracy 0. It counts cheaper networks too, which a search that stays close to its budget "
        "never tries: it tells how widely a search looks as much as how well."
    )


def _listed(series: Iterable[str], looks_by_series: Mapping[str, Look]) -> str:
    names = [looks_by_series[key].label for key in dict.fromkeys(series)]
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return f"{'; '.join(names[:_MOST_NAMED])}{more}"


def _of(table: pd.DataFrame, facet: str) -> pd.DataFrame:
    return table[table["facet"] == facet]


def _at(table: pd.DataFrame, resource: str, budget: float) -> pd.DataFrame:
    is_there = table["budget"].isna() if np.isnan(budget) else table["budget"] == budget
    return table[(table["resource"] == resource) & is_there]


def _worth_seeing(curves: pd.DataFrame) -> list[float]:
    """The ends of bands, without those of the first tenth of each search unless there is nothing else."""
    found: list[float] = []
    for _, curve in curves.groupby(["series", "clock"], sort=False):
        start = _START * curve["x"].max()
        # The step that begins before the start is still held there.
        late = pd.concat([curve[curve["x"] <= start].tail(1), curve[curve["x"] > start]])
        found += [*late["low"], *late["high"]]
    return found


def _set_hypervolume_axis(axes: Axes, values: list[float]) -> None:
    low, high = min(values), max(values)
    margin = max(0.05 * (high - low), 0.001)
    axes.set_ylim(low - margin, high + margin)
    axes.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
    axes.set_ylabel("hypervolume so far")


def _set_clock_axis(axes: Axes, curves: pd.DataFrame, clock: str) -> None:
    axes.set_xlabel(CLOCKS[clock])
    if clock != "trials" and len(curves) and curves["x"].min() > 0:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))


def _draw(
    axes: Axes, curves: pd.DataFrame, levels: pd.DataFrame, looks_by_series: Mapping[str, Look], *, has_bands: bool
) -> None:
    tidy(axes)
    for order, (series, look) in enumerate(reversed(list(looks_by_series.items()))):
        zorder = 3 + 0.01 * order
        for level in levels[levels["series"] == series].itertuples(index=False):
            axes.axhline(level.mean, color=look.color, linestyle=look.linestyle, linewidth=1.2, zorder=zorder - 1)
            axes.plot(
                [1.0],
                [level.mean],
                transform=axes.get_yaxis_transform(),
                color=look.color,
                marker=look.marker,
                markersize=6 * look.size,
                markerfacecolor="white" if level.is_learned_elsewhere else look.color,
                clip_on=False,
                zorder=zorder,
            )
        curve = curves[curves["series"] == series]
        if curve.empty:
            continue
        if has_bands:
            x, low, high = (curve[name] for name in ("x", "low", "high"))
            axes.fill_between(x, low, high, step="post", color=look.color, alpha=0.15, linewidth=0, zorder=2)
        axes.plot(
            curve["x"],
            curve["mean"],
            drawstyle="steps-post",
            color=look.color,
            linestyle=look.linestyle,
            linewidth=1.5,
            marker=look.marker,
            markevery=[len(curve) - 1],
            markersize=6 * look.size,
            markeredgecolor="white",
            markeredgewidth=0.5,
            zorder=zorder,
        )
