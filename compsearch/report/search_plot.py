"""search.png: how the search went. The objective and the achieved cost_ratio of every trial, in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from compsearch.budget import Budget
from compsearch.report.style import (
    BLACK,
    BLUE,
    GREEN,
    MARKS,
    OTHER_MARK,
    VERMILION,
    new_figure,
    resource_label,
    save,
    tidy,
)
from compsearch.space import FloatArray
from compsearch.trial import Trial


def search_figure(
    trials: Sequence[Trial],
    *,
    resource: str,
    budget: Budget | None,
    title: str,
    references: Mapping[str, float] | None = None,
    population_size: int | None = None,
) -> Figure:
    """Objective over trials with the best so far, and cost_ratio of `resource` below, with the `budget` as a line.

    `references` are objectives to compare with, by name (``uniform``). Failed trials are crosses at the bottom. An
    evolution that keeps its last `population_size` trials gets the mean of the living as well.
    """
    figure = new_figure(7.2, 5.4)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    objective = np.array([np.nan if trial.objective is None else trial.objective for trial in trials], dtype=np.float64)
    order = np.arange(1, len(trials) + 1)
    for axes in (above, below):
        tidy(axes)
    above.scatter(order, objective, s=12, color=BLUE, alpha=0.5, linewidths=0, label="trial")
    above.plot(order, best_so_far(objective), color=BLACK, linewidth=1.4, drawstyle="steps-post", label="best so far")
    if population_size is not None:
        mean = population_mean(objective, population_size)
        above.plot(order, mean, color=GREEN, linewidth=1.4, label=f"mean of the population (last {population_size})")
    for name, value in (references or {}).items():
        mark = MARKS.get(name, OTHER_MARK)
        above.axhline(value, color=mark.color, linewidth=1.4, linestyle="--", label=f"{name} {value:.4g}")
    failed = order[np.isnan(objective)]
    if len(failed):
        bottom = np.full(len(failed), 0.02)
        above.scatter(
            failed,
            bottom,
            marker="x",
            s=22,
            color=VERMILION,
            transform=above.get_xaxis_transform(),
            label="failed trial",
        )
    above.set_ylabel("objective (higher is better)")
    above.legend(fontsize=8, loc="lower right", framealpha=0.85, edgecolor="none")
    below.scatter(order, [trial.cost_ratio for trial in trials], s=12, color=BLUE, alpha=0.5, linewidths=0)
    if budget is not None:
        below.axhline(budget.cost_ratio, color=VERMILION, linewidth=1.2, label=f"budget {budget.cost_ratio:.4g}")
        below.legend(fontsize=8, loc="lower right", framealpha=0.85, edgecolor="none")
    below.set_ylabel(resource_label(resource).replace(": ", ":\n"))
    below.set_xlabel("trial")
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    above.set_title(title, fontsize=10)
    figure.align_ylabels()
    return figure


def save_search(
    path: Path,
    trials: Sequence[Trial],
    *,
    resource: str,
    budget: Budget | None,
    title: str,
    references: Mapping[str, float] | None = None,
    population_size: int | None = None,
) -> None:
    """Writes `search_figure` as PNG."""
    figure = search_figure(
        trials, resource=resource, budget=budget, title=title, references=references, population_size=population_size
    )
    save(figure, path)


def population_mean(objective: FloatArray, size: int) -> FloatArray:
    """The mean of the last `size` of each leading part of `objective` [num_trials] that did not fail; else NaN."""
    means = np.full(len(objective), np.nan)
    for index in range(len(objective)):
        leading = objective[: index + 1]
        living = leading[~np.isnan(leading)][-size:]
        if len(living):
            means[index] = living.mean()
    return means


def best_so_far(objective: FloatArray) -> FloatArray:
    """The highest of each leading part of `objective` [num_trials]; NaN, a failed trial, until one succeeds."""
    return np.fmax.accumulate(objective) if len(objective) else objective
