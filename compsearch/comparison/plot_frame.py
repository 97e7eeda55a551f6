"""What stands around every plot of a comparison: the title with the number of seeds, the legend, the dense network."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike

from compsearch.comparison.look import SEARCHER_LOOKS, Look
from compsearch.report.captions import balanced, counted
from compsearch.report.style import GREY, RESOURCE_LABELS

#: Inches that an entry of a legend takes beside its label, and a letter of that.
_HANDLE_WIDTH, _LETTER_WIDTH = 0.75, 0.072
#: Inches of a line of title or legend, and letters of a line of a series' label at most.
_LINE_HEIGHT = 0.17
_LABEL_LENGTH = 34


def add_title(figure: Figure, *lines: str) -> None:
    """Each of `lines` that is not empty on lines of its own, as wide as `figure`, which grows by them."""
    width = int(13 * figure.get_figwidth())
    title = "\n".join(balanced(line, width) for line in lines if line)
    figure.suptitle(title, fontsize=10)
    figure.set_figheight(figure.get_figheight() + _LINE_HEIGHT * (1 + title.count("\n")))


def add_legend(figure: Figure, entries: Sequence[Line2D]) -> None:
    """One legend for all panels, below them, on as few rows of about equal length as fit; `figure` grows by it."""
    if not entries:
        return
    for entry in entries:
        entry.set_label(wrapped(str(entry.get_label())))
    width = _HANDLE_WIDTH + _LETTER_WIDTH * max(label_length(str(entry.get_label())) for entry in entries)
    num_rows = math.ceil(len(entries) / max(1, int(figure.get_figwidth() / width)))
    num_columns = math.ceil(len(entries) / num_rows)
    # matplotlib fills columns first; people read rows.
    by_row = [entries[start::num_columns] for start in range(num_columns)]
    figure.legend(
        handles=[entry for column in by_row for entry in column],
        loc="outside lower center",
        ncols=num_columns,
        fontsize=9,
        frameon=False,
        handlelength=3.2,
    )
    num_lines = max(1 + str(entry.get_label()).count("\n") for entry in entries)
    figure.set_figheight(figure.get_figheight() + _LINE_HEIGHT * num_lines * num_rows)


def wrapped(label: str) -> str:
    """The label of a series on as many lines as it needs, one or more of its settings on each."""
    lines = [""]
    for part in label.split(", "):
        longer = f"{lines[-1]}, {part}" if lines[-1] else part
        if lines[-1] and len(longer) > _LABEL_LENGTH:
            lines[-1] += ","
            lines.append(part)
        else:
            lines[-1] = longer
    return "\n".join(lines)


def label_length(label: str) -> int:
    """Letters of its longest line."""
    return max(map(len, label.split("\n")))


def legend_entry(look: Look, label: str, *, has_marker: bool = True, has_line: bool = True) -> Line2D:
    """What stands for a series in a legend: its line and its mark, as far as it is drawn with them."""
    return Line2D(
        [],
        [],
        color=look.color,
        linestyle=look.linestyle if has_line else "",
        linewidth=1.4,
        marker=look.marker if has_marker else "",
        markersize=6.5 * look.size,
        markeredgecolor="white",
        markeredgewidth=0.5,
        label=label,
    )


def hollow_entry(label: str) -> Line2D:
    """What stands for hollow marks, whatever the series."""
    return Line2D([], [], marker="o", markerfacecolor="white", markeredgecolor=GREY, linestyle="", label=label)


def seeds_text(numbers: Collection[int]) -> str:
    """``3 seeds`` when all `numbers` are 3, else from the fewest to the most: ``1–3 seeds``."""
    fewest, most = min(numbers), max(numbers)
    return counted(most, "seed", "seeds") if fewest == most else f"{fewest}–{most} seeds"


def elsewhere_note(networks: pd.DataFrame, looks_by_series: Mapping[str, Look]) -> str:
    """Which series didn't search at which budgets, as ``LeGR at 0.5, 0.7: learned at another budget``; "" for none."""
    found = networks[networks["is_learned_elsewhere"].eq(True)]
    parts = [
        f"{looks_by_series[str(series)].label} at {', '.join(f'{budget:g}' for budget in sorted(set(rows['budget'])))}"
        for series, rows in found.groupby("series", sort=False)
    ]
    return f"{'; '.join(parts)}: learned at another budget" if parts else ""


def draw_seeds(axes: Axes, x: ArrayLike, y: ArrayLike, look: Look) -> None:
    """Small pale marks, one per seed, below the series' large ones."""
    axes.scatter(x, y, marker=look.marker, s=14 * look.size**2, color=look.color, alpha=0.4, linewidths=0, zorder=2.5)


def by_budget(table: pd.DataFrame) -> list[tuple[str, float, pd.DataFrame]]:
    """The parts of `table` with their resource and budget, FLOPs first, budgets rising, none (NaN) last."""
    resources = list(RESOURCE_LABELS)
    parts = [(str(key[0]), float(key[1]), part) for key, part in table.groupby(["resource", "budget"], dropna=False)]

    def order(part: tuple[str, float, pd.DataFrame]) -> tuple[int, str, float]:
        resource, budget, _ = part
        place = resources.index(resource) if resource in resources else len(resources)
        return place, resource, math.inf if math.isnan(budget) else budget

    return sorted(parts, key=order)


def budget_title(resource: str, budget: float) -> str:
    """Over the panel of a budget, a cost_ratio of `resource` or NaN."""
    if math.isnan(budget):
        return "no budget"
    return f"at most {budget:.4g} of dense {RESOURCE_LABELS.get(resource, resource)}"


def dense_accuracy(networks: pd.DataFrame) -> float:
    """The mean test accuracy of the dense rows among `networks`, NaN without one."""
    return float(networks.loc[networks["stage"] == "dense", "accuracy_test"].mean())


def draw_dense(axes: Axes, accuracy: float) -> None:
    """A thin line all across at the dense network's `accuracy`; nothing when it is NaN."""
    if np.isfinite(accuracy):
        look = SEARCHER_LOOKS["dense"]
        axes.axhline(accuracy, color=look.color, linewidth=0.8, linestyle=look.linestyle, zorder=1)
