"""Hypervolumes, and what equal effort finds, as tables for people."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from compsearch.comparison.estimate import Estimate, mean_and_spread
from compsearch.comparison.hypervolume import reference_sentence
from compsearch.comparison.seeds import COST_COLUMNS, budget_label
from compsearch.comparison.tables import CLOCK_LABELS
from compsearch.comparison.text_table import TextCell, TextTable
from compsearch.report.style import RESOURCE_LABELS
from compsearch.report.table import NOT_MEASURED

_COST_LABELS = {column: RESOURCE_LABELS[resource] for resource, column in COST_COLUMNS.items()}


def hypervolume_tables(frame: pd.DataFrame) -> list[TextTable]:
    """`hypervolumes` for people: a table per facet, resource and stage, two columns per cost axis and device.

    Its numbers are of the budgets that every series has; where there are none, of each series' own, which compare only
    among series of the same budgets. The largest of what compares is bold; series stand in the order of the first axis.
    """
    tables = []
    for (facet, resource, stage), rows in frame.groupby(["facet", "resource", "stage"], sort=False):
        has_common = rows["common_num_budgets"].gt(0).all()
        shown = rows.assign(**{name: rows[f"common_{name}" if has_common else name] for name in _SHOWN})
        devices = [device for device in dict.fromkeys(shown["device"]) if device]
        number = {device: f" {index}" if len(devices) > 1 else "" for index, device in enumerate(devices, start=1)}
        axes = list(shown[["cost", "device"]].drop_duplicates().itertuples(index=False, name=None))
        headings = ["series", "budgets", "seeds"]
        for cost, device in axes:
            headings += [f"over {_COST_LABELS[cost]}{number.get(device, '')}", "95% of the mean"]
        lines = []
        for series in _ranked(shown, axes[0]):
            own = shown[shown["series"] == series].iloc[0]
            cells = [TextCell(series), TextCell(own["budgets"]), TextCell(str(own["num_seeds"]))]
            lines.append((*cells, *(cell for axis in axes for cell in _hypervolume_cells(shown, series, axis))))
        of = f" of {RESOURCE_LABELS.get(resource, resource)}" if resource else ""
        caption = f"{facet}, {stage} fine-tuning: hypervolume, budgets{of}, mean ± standard deviation over seeds"
        notes = [reference_sentence(), _WHICH_BUDGETS[bool(has_common)], _INTERVAL, *_left_out(shown)]
        notes += [f"Latency{number[device]}: {device}." for device in devices]
        tables.append(TextTable(caption, tuple(headings), tuple(lines), notes=tuple(notes)))
    return tables


_SHOWN = ("budgets", "num_budgets", "num_seeds", "mean", "std", "low", "high", "note")
_WHICH_BUDGETS = {
    True: "Of the budgets that every series has.",
    False: "No budget is covered by every series: compare only those of the same budgets.",
}
_INTERVAL = "The interval is a percentile bootstrap over seeds, too narrow where they are few; one seed has none."


def _ranked(rows: pd.DataFrame, axis: tuple[str, str]) -> list[str]:
    """The series: those of more budgets first, then by the hypervolume on `axis`, then those that aren't on it."""
    first = rows[(rows["cost"] == axis[0]) & (rows["device"] == axis[1])]
    ranked = first.sort_values(["num_budgets", "budgets", "mean"], ascending=False, kind="stable")["series"]
    return list(dict.fromkeys([*ranked, *rows["series"]]))


def _hypervolume_cells(rows: pd.DataFrame, series: str, axis: tuple[str, str]) -> list[TextCell]:
    contest = rows[(rows["cost"] == axis[0]) & (rows["device"] == axis[1])]
    found = contest[contest["series"] == series].to_dict("records")
    if not found:
        return [TextCell(NOT_MEASURED), TextCell(NOT_MEASURED)]
    (row,) = found
    contest = contest[contest["budgets"] == row["budgets"]]
    estimate = _estimate(row, "mean", "std", "num_seeds")
    is_largest = len(contest) > 1 and estimate.num > 0 and row["mean"] >= contest["mean"].max()
    interval = NOT_MEASURED if math.isnan(row["low"]) else f"{row['low']:.4f}–{row['high']:.4f}"
    return [TextCell(mean_and_spread(estimate, decimals=4), is_bold=is_largest), TextCell(interval)]


def _left_out(rows: pd.DataFrame) -> list[str]:
    """Which seeds of which series lack a budget, each said once."""
    told = rows[rows["note"].str.startswith("left out")]
    return list(
        dict.fromkeys(f"Of {series} {note}." for series, note in zip(told["series"], told["note"], strict=True))
    )


def equal_effort_tables(frame: pd.DataFrame) -> list[TextTable]:
    """`at_equal_trials` or `at_equal_seconds` for people: a table per facet and resource, the best of a budget bold."""
    tables = []
    for (facet, resource, clock), rows in frame.groupby(["facet", "resource", "clock"], sort=False):
        unit = CLOCK_LABELS.get(clock, clock)
        headings = (
            "series",
            "budget",
            f"{unit} given",
            "its own total",
            "best search accuracy (%)",
            "seeds",
            "remarks",
        )
        lines = []
        alike = rows[rows["scored_otherwise"] == ""]
        for row in rows.sort_values("budget", ascending=False, kind="stable").to_dict("records"):
            same = alike[alike["budget"].map(budget_label) == budget_label(row["budget"])]
            estimate = _estimate(row, "mean", "std", "num_seeds")
            accuracy = mean_and_spread(estimate, scale=100.0)
            is_one = not row["scored_otherwise"] and len(same) > 1 and estimate.num > 0
            is_best = is_one and row["mean"] >= same["mean"].max()
            texts = [row["series"], budget_label(row["budget"]), _amount(row["effort"], clock)]
            texts.append(_amount(row["own_total"], clock))
            rest = (str(row["num_seeds"]), row["note"])
            lines.append((*map(TextCell, texts), TextCell(accuracy, is_bold=is_best), *map(TextCell, rest)))
        of = f", budgets of {RESOURCE_LABELS.get(resource, resource)}" if resource else ""
        caption = f"{facet}{of}: the best so far after equally many {unit}, mean ± standard deviation over seeds"
        notes = (
            "Of each budget, the shortest search says how much is given. Searches of one trial are not held to it.",
        )
        tables.append(TextTable(caption, headings, tuple(lines), notes=notes))
    return tables


def _estimate(row: Mapping[str, Any], mean: str, std: str, num: str) -> Estimate:
    return Estimate(float(row[mean]), float(row[std]), int(row[num]))


def _amount(amount: float, clock: str) -> str:
    if math.isnan(amount):
        return NOT_MEASURED
    return f"{amount:.0f}" if clock == "trials" else f"{amount:.1f}"
