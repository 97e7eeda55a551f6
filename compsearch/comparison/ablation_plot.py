"""An ablation as a picture: a dot per variant with its spread over seeds, the default as a band."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from compsearch.comparison.ablation_table import PLACE, QUANTITIES, TEST_AFTER, TEST_BEFORE
from compsearch.comparison.plot_frame import add_title, seeds_text
from compsearch.comparison.verdicts import budget_text
from compsearch.report.style import BLACK, BLUE, VERMILION, new_figure, save_both, tidy

#: A lighter grey than that of the lines, so that they stay readable on it in print.
_BAND = "#DDDDDD"


def ablation_figure(ablation: pd.DataFrame) -> Figure:
    """Test accuracy of every variant, before fine-tuning and, where there is any, after: mean ± standard deviation.

    `ablation` are the rows of `ablation_frame` of one `PLACE`. A dot is filled where the difference
    to the default, paired by seed, is beyond its spread, hollow where it isn't or one seed can't tell. The default's
    mean is a line, its spread the band around it. Raises ValueError for rows of several places, or without accuracies.
    """
    places = ablation[list(PLACE)].drop_duplicates()
    told = [quantity for quantity in (TEST_BEFORE, TEST_AFTER) if (ablation["quantity"] == quantity).any()]
    if len(places) != 1 or not told:
        raise ValueError(
            "an ablation's plot is of one facet, searcher and budget with test accuracies, but got "
            f"{len(places)} of them with {', '.join(told) or 'none'}"
        )
    variants = list(dict.fromkeys(ablation["variant"]))
    label_width = 0.085 * max(len(variant or "default") for variant in variants)
    figure = new_figure(1.2 + label_width + 3.6 * len(told), 1.7 + 0.32 * len(variants))
    panels = list(figure.subplots(1, len(told), squeeze=False, sharey=True)[0])
    for axes, quantity in zip(panels, told, strict=True):
        _draw(axes, ablation[ablation["quantity"] == quantity], variants)
        axes.set_xlabel(QUANTITIES[quantity])
    panels[0].set_yticks(range(len(variants)), [variant or "default" for variant in variants])
    panels[0].set_ylim(len(variants) - 0.5, -0.5)
    figure.legend(handles=_legend(ablation), loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    facet, searcher, beside, resource, budget = places.iloc[0]
    seeds = seeds_text([int(num) for num in ablation.loc[ablation["quantity"].isin(told), "num_seeds"]])
    place = ", ".join(filter(None, [facet, budget_text(resource, float(budget)), beside]))
    missing = "" if ablation["is_default"].any() else "no run of the default, so nothing is compared with it"
    add_title(figure, f"{searcher}: {place}; {seeds}, test split, read once", missing)
    return figure


def save_ablation(path: Path, ablation: pd.DataFrame) -> tuple[Path, Path]:
    """Writes `ablation_figure` as PNG at `path` and as SVG beside it; returns both."""
    return save_both(ablation_figure(ablation), path)


def _draw(axes: Axes, rows: pd.DataFrame, variants: list[str]) -> None:
    tidy(axes)
    for row in rows.to_dict("records"):
        if row["is_default"]:
            axes.axvline(row["mean"], color=BLACK, linewidth=1.0, linestyle="--", zorder=2)
            if not math.isnan(row["std"]):
                axes.axvspan(row["mean"] - row["std"], row["mean"] + row["std"], color=_BAND, linewidth=0, zorder=1)
        _draw_variant(axes, row, variants.index(row["variant"]))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.tick_params(axis="y", length=0)


def _draw_variant(axes: Axes, row: Mapping[str, Any], position: int) -> None:
    color = BLACK if row["is_default"] else VERMILION if row["is_beyond_spread"] is True else BLUE
    is_filled = row["is_default"] or row["is_beyond_spread"] is True
    axes.errorbar(
        [row["mean"]],
        [position],
        xerr=None if math.isnan(row["std"]) else [row["std"]],
        color=color,
        marker="s" if row["is_default"] else "o",
        markersize=6,
        markerfacecolor=color if is_filled else "white",
        elinewidth=1.2,
        capsize=3,
        zorder=3,
    )


def _legend(rows: pd.DataFrame) -> list[Line2D | Patch]:
    def mark(marker: str, color: str, face: str, label: str) -> Line2D:
        return Line2D(
            [], [], color=color, marker=marker, markersize=6, markerfacecolor=face, linewidth=1.2, label=label
        )

    if not rows["is_default"].any():
        return [mark("o", BLUE, "white", "mean ± std over seeds")]
    entries: list[Line2D | Patch] = [
        mark("s", BLACK, BLACK, "default, mean ± std over seeds"),
        Patch(color=_BAND, label="the default's spread"),
        mark("o", VERMILION, VERMILION, "differs from it by more than the paired spread"),
    ]
    known = ~rows["is_default"]
    if rows.loc[known, "is_beyond_spread"].ne(True).any():
        entries.append(mark("o", BLUE, "white", "does not, or one seed can't tell"))
    return entries
