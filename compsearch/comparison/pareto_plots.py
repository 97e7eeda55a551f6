"""What accuracy costs, all searchers on the same axes: FLOPs, parameters and measured latency, before and after tuning.

A point is a finished network at the cost it achieved, not the one it was asked for; its accuracy is of the test split.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from compsearch.comparison.accuracy_axis import is_wide, set_accuracy_axis
from compsearch.comparison.comparison import Comparison
from compsearch.comparison.look import SEARCHER_LOOKS, Look, looks
from compsearch.comparison.plot_frame import (
    add_legend,
    add_title,
    dense_accuracy,
    draw_dense,
    draw_seeds,
    elsewhere_note,
    legend_entry,
    seeds_text,
)
from compsearch.comparison.seeds import compressed_networks, networks_on_axis
from compsearch.report.captions import balanced
from compsearch.report.style import GREY, new_figure, tidy

#: Of `Comparison.networks`, as people read them.
STAGES: Mapping[str, str] = {"before": "before fine-tuning", "after": "after fine-tuning"}
_ACCURACY = "top-1 accuracy, test split"
_TIMED_NOTE = "pale bars across: 10th to 90th percentile of the measured latencies"
_NOTE = "large marks: mean over seeds, bars: ± one standard deviation, small marks: one seed each"


@dataclass(frozen=True)
class CostAxis:
    """A cost to draw accuracy against: the `column` of its ratio, its `label`; latency has the `device` it is of."""

    column: str
    label: str
    device: str = ""

    def of(self, networks: pd.DataFrame) -> pd.DataFrame:
        """Those of `networks` that have this cost and a test accuracy."""
        found = networks[networks[self.column].notna() & networks["accuracy_test"].notna()]
        return found[found["device"] == self.device] if self.device else found


MACS_AXIS = CostAxis("macs_ratio", "FLOPs (MACs) / dense")


def cost_axes(networks: pd.DataFrame) -> list[CostAxis]:
    """The axes that compressed networks among `networks` have values on, latency once per device."""
    compressed = networks[networks["stage"] != "dense"]
    axes = [MACS_AXIS, CostAxis("params_ratio", "parameters / dense")]
    devices = compressed.loc[compressed["latency_ratio"].notna(), "device"]
    axes += [CostAxis("latency_ratio", "measured latency / dense", device) for device in dict.fromkeys(devices)]
    return [axis for axis in axes if len(axis.of(compressed))]


def over_seeds(networks: pd.DataFrame, axis: CostAxis) -> pd.DataFrame:
    """One row per series, resource, budget and stage of `networks`: the means over seeds of cost and accuracy.

    Columns series, resource, budget, stage, cost, accuracy, std (of the accuracy, NaN of one seed), low, high (means
    of the 10th and 90th percentile of a latency's ratio, else NaN), num_seeds; by series and cost.
    """
    found = axis.of(networks_on_axis(networks, axis.column))
    groups = found.groupby(["series", "resource", "budget", "stage"], dropna=False, sort=False)
    spread = {"low": "latency_p10", "high": "latency_p90"} if axis.device else {}
    table = pd.DataFrame(
        {
            "cost": groups[axis.column].mean(),
            "accuracy": groups["accuracy_test"].mean(),
            "std": groups["accuracy_test"].std(),
            "low": np.nan,
            "high": np.nan,
            **{name: groups[column].mean() for name, column in spread.items()},
            "num_seeds": groups.size(),
        }
    )
    return table.reset_index().sort_values(["series", "resource", "cost"], kind="stable", ignore_index=True)


def pareto_figure(comparison: Comparison, facet: str) -> Figure:
    """All networks of `facet`: a column of panels per cost, a row before and one after fine-tuning where there are any.

    The y axis is one for all panels of a row. Raises ValueError when no network of `facet` has a test accuracy.
    """
    networks = _networks(comparison, facet)
    columns, stages = cost_axes(networks), _stages(networks)
    figure = new_figure(max(1.2 + 3.9 * len(columns), 6.5), 1.0 + 3.5 * len(stages))
    panels = figure.subplots(len(stages), len(columns), squeeze=False, sharex="col", sharey="row")
    is_stretched = is_wide(_drawn_accuracies(networks))
    looks_by_series = looks(comparison)
    for row, stage in zip(panels, stages, strict=True):
        of_stage = networks[networks["stage"].isin([stage, "dense"])]
        set_accuracy_axis(row[0], _drawn_accuracies(of_stage), label=_ACCURACY, is_stretched=is_stretched)
        row[0].set_title(STAGES[stage], fontsize=10, fontweight="bold", loc="left")
        for axes, axis in zip(row, columns, strict=True):
            _draw(axes, networks, axis, stage, looks_by_series)
    for column, axis in enumerate(columns):
        _set_cost_axis(panels[-1, column], networks, axis)
        if axis.device:
            panels[0, column].set_title(balanced(axis.device, 58), fontsize=7, color=GREY)
    has_spread = networks["latency_p10"].notna().any() and any(axis.device for axis in columns)
    _frame(figure, comparison, facet, networks, _TIMED_NOTE if has_spread else "")
    return figure


def pareto_macs_figure(comparison: Comparison, facet: str) -> Figure:
    """FLOPs alone, before and after fine-tuning side by side on one accuracy axis: readable at 900 pixels' width.

    Raises ValueError when no network of `facet` has a test accuracy.
    """
    networks = _networks(comparison, facet)
    stages = _stages(networks)
    figure = new_figure(9.0 if len(stages) > 1 else 6.5, 4.2)
    panels = figure.subplots(1, len(stages), squeeze=False, sharey=True)[0]
    accuracies = _drawn_accuracies(networks)
    set_accuracy_axis(panels[0], accuracies, label=_ACCURACY, is_stretched=is_wide(accuracies))
    looks_by_series = looks(comparison)
    for axes, stage in zip(panels, stages, strict=True):
        _draw(axes, networks, MACS_AXIS, stage, looks_by_series)
        _set_cost_axis(axes, networks, MACS_AXIS)
        axes.set_title(STAGES[stage], fontsize=10, fontweight="bold", loc="left")
    _frame(figure, comparison, facet, networks)
    return figure


def pareto_sentence() -> str:
    """For captions: what the plot shows."""
    return (
        "Each mark is a finished network at the cost it achieved, as a fraction of the dense network's, and its top-1 "
        "accuracy on the test split, which is read once, at the end of a run; large marks are means over seeds with "
        "one standard deviation up and down, bars across are the 10th to 90th percentile of measured latencies."
    )


def _networks(comparison: Comparison, facet: str) -> pd.DataFrame:
    networks = comparison.networks[comparison.networks["facet"] == facet]
    if compressed_networks(networks).empty:
        raise ValueError(f"a Pareto plot must have a network with a test accuracy, but {facet!r} has none")
    return networks


def _stages(networks: pd.DataFrame) -> list[str]:
    return [stage for stage in STAGES if stage in set(compressed_networks(networks)["stage"])]


def _drawn_accuracies(networks: pd.DataFrame) -> list[float]:
    """Of marks and of the ends of bars, which may reach beyond what an accuracy can be."""
    means = over_seeds(networks, MACS_AXIS)
    ends = [*(means["accuracy"] - means["std"]), *(means["accuracy"] + means["std"])]
    return [*networks["accuracy_test"], *np.clip(ends, 0.0, 1.0)]


def _set_cost_axis(axes: Axes, networks: pd.DataFrame, axis: CostAxis) -> None:
    """All that any stage has on it is inside, the dense network too."""
    means = over_seeds(networks, axis)
    costs = [*axis.of(networks)[axis.column], *means["low"].dropna(), *means["high"].dropna(), 1.0]
    margin = 0.05 * (max(costs) - min(costs))
    axes.set_xlim(min(costs) - margin, max(costs) + margin)
    axes.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
    axes.set_xlabel(axis.label)


def _draw(axes: Axes, networks: pd.DataFrame, axis: CostAxis, stage: str, looks_by_series: Mapping[str, Look]) -> None:
    tidy(axes)
    dense = dense_accuracy(networks)
    draw_dense(axes, dense)
    if np.isfinite(dense):
        look = SEARCHER_LOOKS["dense"]
        axes.plot([1.0], [dense], color=look.color, marker=look.marker, markersize=7, linestyle="", zorder=4)
    drawn = networks[networks["stage"] == stage]
    means, seeds = over_seeds(drawn, axis), axis.of(networks_on_axis(drawn, axis.column))
    for order, (series, look) in enumerate(reversed(list(looks_by_series.items()))):
        zorder = 3 + 0.01 * order  # the first of the legend on top
        single = seeds[seeds["series"] == series]
        draw_seeds(axes, single[axis.column], single["accuracy_test"], look)
        for _, line in means[means["series"] == series].groupby("resource", dropna=False, sort=False):
            _draw_line(axes, line, look, zorder)


def _draw_line(axes: Axes, means: pd.DataFrame, look: Look, zorder: float) -> None:
    """The means over seeds of one series, joined, with the spread of both coordinates where there is one."""
    axes.plot(
        means["cost"],
        means["accuracy"],
        color=look.color,
        linestyle=look.linestyle,
        linewidth=1.3,
        marker=look.marker,
        markersize=6.5 * look.size,
        markeredgecolor="white",
        markeredgewidth=0.5,
        zorder=zorder,
    )
    known = means[means["std"].notna()]
    axes.errorbar(
        known["cost"],
        known["accuracy"],
        known["std"],
        fmt="none",
        ecolor=look.color,
        elinewidth=1.0,
        capsize=2,
        zorder=zorder - 0.2,
    )
    timed = means[means["low"].notna() & means["high"].notna()]
    axes.hlines(timed["accuracy"], timed["low"], timed["high"], color=look.color, linewidth=0.8, alpha=0.4, zorder=2)


def _frame(figure: Figure, comparison: Comparison, facet: str, networks: pd.DataFrame, timed: str = "") -> None:
    numbers = over_seeds(networks, MACS_AXIS).groupby("series")["num_seeds"].agg(set).to_dict()
    everywhere = set().union(*numbers.values())
    entries = []
    for series, look in looks(comparison).items():
        if series in numbers:
            # Only where it differs: one number is in the title.
            count = f" ({seeds_text(numbers[series])})" if len(everywhere) > 1 else ""
            entries.append(legend_entry(look, f"{look.label}{count}"))
    if np.isfinite(dense := dense_accuracy(networks)):
        entries.append(legend_entry(SEARCHER_LOOKS["dense"], f"dense, {dense:.1%}"))
    add_legend(figure, entries)
    note = _NOTE if max(everywhere) > 1 else "one seed: no spread is known"
    elsewhere = elsewhere_note(compressed_networks(networks), looks(comparison))
    add_title(figure, f"{facet}: {seeds_text(everywhere)}; test split, read once", note, elsewhere, timed)
