"""What each searcher keeps where: the keep_ratio of every group, in the network's order, as a map per budget."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from compsearch.comparison.comparison import Comparison
from compsearch.comparison.look import Look, looks
from compsearch.comparison.plot_frame import add_title, budget_title, by_budget, label_length, seeds_text, wrapped
from compsearch.report.style import GREY, new_figure

#: As many names of groups stand below a map at most.
_MAX_NAMES = 30


def keep_ratio_figure(comparison: Comparison, facet: str) -> Figure:
    """A map per budget of `facet`: a row per series, its mean over seeds, a column per group from input to output.

    Beside each row is how far seeds differ: the standard deviation of a keep_ratio over them, mean over the groups.
    Raises ValueError when nothing is known of what networks kept.
    """
    kept = comparison.kept[comparison.kept["facet"] == facet]
    if kept.empty:
        raise ValueError(f"a map of keep_ratios must have a network's, but {facet!r} has none")
    groups = _network_order([list(of_run["group"]) for _, of_run in kept.groupby("run", sort=False)])
    looks_by_series = looks(comparison)
    budgets = by_budget(kept)
    heights = [of_budget["series"].nunique() for _, _, of_budget in budgets]
    numbers = set(kept.groupby(["resource", "budget", "series"], dropna=False)["seed"].nunique())
    label_width = 0.07 * max(label_length(wrapped(looks_by_series[each].label)) for each in set(kept["series"]))
    width = max(6.5, 2.2 + label_width + min(0.2 * len(groups), 10.0))
    figure = new_figure(width, 1.3 + sum(0.5 + 0.3 * height for height in heights))
    panels = figure.subplots(len(budgets), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    for axes, (resource, budget, of_budget) in zip(panels, budgets, strict=True):
        image = _draw(axes, of_budget, groups, looks_by_series, names_seeds=len(numbers) > 1)
        axes.set_title(budget_title(resource, budget), fontsize=10, fontweight="bold", loc="left")
    if max(numbers) > 1:
        named = "std over seeds (seeds)" if len(numbers) > 1 else "std over seeds"
        panels[0].set_title(named, fontsize=8, loc="right", color=GREY)
    _name_groups(panels[-1], groups)
    figure.colorbar(image, ax=list(panels), label="keep_ratio", pad=0.01, aspect=30)
    mean = "mean over " if max(numbers) > 1 else ""
    add_title(figure, f"{facet}: what is kept of each group, {mean}{seeds_text(numbers)}")
    return figure


def keep_ratio_sentence() -> str:
    """For captions: what the map shows."""
    return (
        "The share of its channels that each group keeps, from input (left) to output, mean over seeds; on the right "
        "its standard deviation over seeds, mean over groups: what a searcher keeps by chance, it does not keep twice."
    )


def _draw(
    axes: Axes, kept: pd.DataFrame, groups: list[str], looks_by_series: dict[str, Look], *, names_seeds: bool
) -> AxesImage:
    """One budget's map."""
    # Several runs of one seed count as one, as one run with several networks does.
    by_seed = kept.groupby(["series", "group", "seed"], sort=False)["keep_ratio"].mean()
    means = by_seed.groupby(["series", "group"], sort=False).mean().unstack()
    spread = by_seed.groupby(["series", "group"], sort=False).std().unstack()
    seeds = kept.groupby("series")["seed"].nunique()
    series = [each for each in looks_by_series if each in means.index]
    values = means.reindex(index=series, columns=groups).to_numpy(dtype=np.float64)
    image = axes.imshow(values, cmap="cividis", vmin=0.0, vmax=1.0, aspect="auto", interpolation="nearest")
    axes.set_facecolor("#EEEEEE")  # a group that a series does not have
    axes.set_yticks(range(len(series)), [wrapped(looks_by_series[each].label) for each in series], fontsize=8)
    axes.set_yticks(np.arange(0.5, len(series) - 1), minor=True)
    axes.grid(which="minor", axis="y", color="white", linewidth=2)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    for boundary in _boundaries(groups):
        axes.axvline(boundary, color="white", linewidth=2)
    for row, each in enumerate(series):
        std = float(spread.loc[each].mean())
        texts = ["" if np.isnan(std) else f"± {std:.2f}", f"({seeds[each]})" if names_seeds else ""]
        if any(texts):
            axes.annotate(
                " ".join(texts).strip(),
                xy=(1.0, row),
                xycoords=("axes fraction", "data"),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=7,
                color=GREY,
                annotation_clip=False,
            )
    return image


def _network_order(names_by_run: list[list[str]]) -> list[str]:
    """All groups of all runs, each once. What only some runs could prune comes after what it follows in theirs."""
    order: list[str] = []
    for names in sorted(names_by_run, key=lambda names: -len(set(names))):
        place = 0
        for name in names:
            if name not in order:
                order.insert(place, name)
            place = order.index(name) + 1
    return order


def _name_groups(axes: Axes, groups: list[str]) -> None:
    step = -(-len(groups) // _MAX_NAMES)
    shown = range(0, len(groups), step)
    names = _abbreviated(groups)
    axes.set_xticks(list(shown), [names[index] for index in shown], rotation=90, fontsize=7)
    every = "" if step == 1 else f", one in {step} named"
    axes.set_xlabel(f"group, from input to output{every}", color=GREY)


def _abbreviated(groups: list[str]) -> list[str]:
    """Without what all names begin and end with, in whole parts between dots."""
    if len(groups) < 2:
        return groups
    parts = [group.split(".") for group in groups]
    first, last = _num_common(parts), _num_common([each[::-1] for each in parts])
    return [".".join(each[first : len(each) - last]) or group for each, group in zip(parts, groups, strict=True)]


def _num_common(names: list[list[str]]) -> int:
    """How many first parts all of `names` have in common."""
    return len(list(itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*names, strict=False))))


def _boundaries(groups: list[str]) -> list[float]:
    """Between groups where the first part of the names changes: stages, when there are a few."""
    stages = [group.split(".")[0] for group in groups]
    changes = [index - 0.5 for index in range(1, len(stages)) if stages[index] != stages[index - 1]]
    return changes if len(changes) <= 8 else []
