"""What a search costs and what it brings: seconds of search against the test accuracy before fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from compsearch.comparison.accuracy_axis import is_wide, set_accuracy_axis
from compsearch.comparison.anytime_plot import CLOCKS
from compsearch.comparison.comparison import Comparison
from compsearch.comparison.look import Look, looks
from compsearch.comparison.plot_frame import (
    add_legend,
    add_title,
    budget_title,
    by_budget,
    draw_seeds,
    hollow_entry,
    legend_entry,
    seeds_text,
)
from compsearch.comparison.seeds import compressed_networks
from compsearch.report.captions import counted
from compsearch.report.style import new_figure, tidy


def cost_figure(comparison: Comparison, facet: str) -> Figure:
    """A panel per budget of `facet`: seconds of search, logarithmic, against test accuracy before fine-tuning.

    Seconds are the processor's where all runs counted them, else the clock's. What was learned at another budget costs
    what both runs took, and is drawn hollow. Raises ValueError when no run tells what its search took.
    """
    searches, num_without = _searches(comparison, facet)
    if searches.empty:
        raise ValueError(f"a plot of search costs must have a run with its seconds, but {facet!r} has none")
    budgets = by_budget(searches)
    figure = new_figure(max(1.2 + 3.6 * len(budgets), 6.5), 4.4)
    panels = figure.subplots(1, len(budgets), squeeze=False, sharex=True)[0]
    looks_by_series = looks(comparison)
    numbers = set()
    for axes, (resource, budget, searched) in zip(panels, budgets, strict=True):
        means = _over_seeds(searched)
        numbers |= set(means["num_seeds"])
        ends = [*(means["accuracy"] - means["std"]), *np.minimum(means["accuracy"] + means["std"], 1.0)]
        accuracies = [*searched["accuracy_test"], *ends]
        label = "top-1 accuracy, test split, before fine-tuning"
        set_accuracy_axis(axes, accuracies, label=label, is_stretched=is_wide(accuracies))
        _draw(axes, searched, means, looks_by_series)
        axes.set_title(budget_title(resource, budget), fontsize=9, fontweight="bold", loc="left")
        axes.set_xlabel(CLOCKS[searches["clock"].iloc[0]])
    for axes in panels[1:]:
        axes.set_ylabel(axes.get_ylabel().replace(label, "").strip())
    panels[0].set_xscale("log")
    panels[0].xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    panels[0].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panels[0].xaxis.set_minor_formatter(NullFormatter())
    margin = 1.25
    panels[0].set_xlim(searches["seconds"].min() / margin, searches["seconds"].max() * margin)
    drawn = set(searches["series"])
    entries = [legend_entry(look, look.label, has_line=False) for key, look in looks_by_series.items() if key in drawn]
    if searches["is_learned_elsewhere"].any():
        entries.append(hollow_entry("learned at another budget, both runs' seconds"))
    add_legend(figure, entries)
    spread = "large marks: mean over seeds, bars: ± one standard deviation, small marks: one seed each"
    missing = f"{counted(num_without, 'network', 'networks')} not shown: the run that learned what it used is not here"
    add_title(
        figure,
        f"{facet}: what a search costs and brings; {seeds_text(numbers)}; test split, read once",
        spread if max(numbers) > 1 else "one seed: no spread is known",
        missing if num_without else "",
    )
    return figure


def has_search_costs(comparison: Comparison, facet: str) -> bool:
    """Whether `cost_figure` has anything to show."""
    return not _searches(comparison, facet)[0].empty


def cost_sentence() -> str:
    """For captions: what counts."""
    return (
        "Seconds of search until the policy was chosen, without training the dense network, fine-tuning and measuring "
        "latencies; up and to the left is better."
    )


def _searches(comparison: Comparison, facet: str) -> tuple[pd.DataFrame, int]:
    """The networks of `facet` before fine-tuning that a run of their own found, with `seconds`, and `clock` they're of.

    Also how many are left out, as what they use was learned by a run that isn't there.
    """
    own = {(run.name, run.series) for run in comparison.runs}
    networks = comparison.networks[comparison.networks["facet"] == facet]
    # A baseline in the summary of another run has that run's cost.
    pairs = zip(networks["run"], networks["series"], strict=True)
    is_own = np.array([pair in own for pair in pairs], dtype=np.bool_)
    networks = compressed_networks(networks[is_own])
    networks = networks[networks["stage"] == "before"]
    clock = "cpu_s" if len(networks) and networks["cpu_s"].notna().all() else "wall_s"
    is_elsewhere = networks["is_learned_elsewhere"].eq(True)
    teachers = networks[~is_elsewhere]
    seconds = [
        row[clock] + (_learning_seconds(teachers, row, clock) if row["is_learned_elsewhere"] else 0.0)
        for _, row in networks.iterrows()
    ]
    searches = networks.assign(seconds=np.array(seconds, dtype=np.float64), clock=clock)
    searches["is_learned_elsewhere"] = is_elsewhere
    is_known = searches["seconds"] > 0
    return searches[is_known], int((is_elsewhere & ~is_known).sum())


def _learning_seconds(teachers: pd.DataFrame, row: pd.Series, clock: str) -> float:
    """Of the run that learned what `row` used: the same seed at the nearest budget no higher. NaN without one."""
    is_it = teachers["budget"] <= row["budget"]
    for key in ("series", "resource", "seed"):
        is_it &= teachers[key] == row[key]
    found = teachers[is_it].sort_values("budget")
    return float(found[clock].iloc[-1]) if len(found) else float("nan")


def _over_seeds(searched: pd.DataFrame) -> pd.DataFrame:
    groups = searched.groupby("series", sort=False)
    return pd.DataFrame(
        {
            "seconds": groups["seconds"].mean(),
            "accuracy": groups["accuracy_test"].mean(),
            "std": groups["accuracy_test"].std(),
            "is_hollow": groups["is_learned_elsewhere"].any(),
            "num_seeds": groups["seed"].nunique(),
        }
    )


def _draw(axes: Axes, searched: pd.DataFrame, means: pd.DataFrame, looks_by_series: Mapping[str, Look]) -> None:
    tidy(axes)
    for order, (series, look) in enumerate(reversed(list(looks_by_series.items()))):
        if series not in means.index:
            continue
        mean, single = means.loc[series], searched[searched["series"] == series]
        draw_seeds(axes, single["seconds"], single["accuracy_test"], look)
        if np.isfinite(mean["std"]):
            axes.errorbar(
                [mean["seconds"]],
                [mean["accuracy"]],
                [mean["std"]],
                fmt="none",
                ecolor=look.color,
                elinewidth=1.0,
                capsize=2,
            )
        axes.plot(
            [mean["seconds"]],
            [mean["accuracy"]],
            color=look.color,
            marker=look.marker,
            markersize=8.5 * look.size,
            markerfacecolor="white" if mean["is_hollow"] else look.color,
            markeredgecolor=look.color if mean["is_hollow"] else "white",
            markeredgewidth=1.2 if mean["is_hollow"] else 0.5,
            linestyle="",
            zorder=3 + 0.01 * order,
        )
