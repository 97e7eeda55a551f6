"""Runtimes side by side, as text or markdown: what networks cost in MACs and in time, over the dense network."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from compsearch.report.style import RESOURCE_LABELS
from compsearch.report.table import NOT_MEASURED, align
from compsearch.report.timed import Spread

_WIDTH = 100
_NO_FASTER = "!"
_FELL_LESS = "*"


@dataclass(frozen=True)
class LatencyRow:
    """A network's MACs over the dense network's, and its latency over the dense network's by runtime.

    Each ratio was timed in turns with the dense network on that runtime; a runtime that is absent was not timed.
    """

    name: str
    cost_ratio: float
    latency: Mapping[str, Spread]


def latency_table(rows: Sequence[LatencyRow], *, title: str, devices: Mapping[str, str]) -> str:
    """One line per network, one column per runtime with the median ratio and [p10, p90], for a terminal.

    `devices` says what each runtime ran on, in full, below the table. Two marks say where latency did not fall as FLOPs
    did, beyond the spread. Raises ValueError when a runtime of the rows is not in `devices`.
    """
    remarks = [
        line for remark in _remarks(rows, devices) for line in textwrap.wrap(remark, _WIDTH, subsequent_indent="  ")
    ]
    lines = [line.rstrip() for line in align(_cells(rows, devices))]
    return "\n".join([title, "", *lines, "", *remarks])


def latency_markdown(rows: Sequence[LatencyRow], *, title: str, devices: Mapping[str, str]) -> str:
    """`latency_table` as markdown: the title in bold, a table, and the remarks as a list."""
    cells = [[text.strip().replace("|", r"\|").replace("*", r"\*") for text in line] for line in _cells(rows, devices)]
    rule = [":--", *["--:"] * (len(cells[0]) - 1)]
    table = [f"| {' | '.join(line)} |" for line in [cells[0], rule, *cells[1:]]]
    remarks = [f"- {remark}".replace("*", r"\*") for remark in _remarks(rows, devices)]
    return "\n".join([f"**{title}**", "", *table, "", *remarks])


def _cells(rows: Sequence[LatencyRow], devices: Mapping[str, str]) -> list[list[str]]:
    runtimes = list(devices)
    for row in rows:
        unknown = [runtime for runtime in row.latency if runtime not in devices]
        if unknown:
            raise ValueError(
                f"every runtime needs its device, but {unknown} of {row.name!r} is not in {runtimes}; add it to devices"
            )
    header = ["over the dense network", RESOURCE_LABELS["macs"], *(f"latency, {runtime}" for runtime in runtimes)]
    lines = [[row.name, _number(row.cost_ratio), *(_ratio(row, runtime) for runtime in runtimes)] for row in rows]
    return [header, *lines]


def _remarks(rows: Sequence[LatencyRow], devices: Mapping[str, str]) -> list[str]:
    marks = {_mark(row, runtime) for row in rows for runtime in row.latency}
    remarks = ["latency: median [p10, p90] of ratios timed in turns with the dense network"]
    if _FELL_LESS in marks:
        remarks.append(f"{_FELL_LESS} latency fell less than FLOPs did, beyond its spread")
    if _NO_FASTER in marks:
        remarks.append(f"{_NO_FASTER} no faster than the dense network, beyond its spread")
    return [*remarks, *(f"{runtime}: {device}" for runtime, device in devices.items())]


def _ratio(row: LatencyRow, runtime: str) -> str:
    ratio = row.latency.get(runtime)
    if ratio is None or not ratio.is_finite:
        return NOT_MEASURED
    # A place for the mark in every cell keeps the numbers in line.
    return f"{ratio:.3f} {_mark(row, runtime) or ' '}"


def _mark(row: LatencyRow, runtime: str) -> str:
    ratio = row.latency[runtime]
    if not ratio.is_finite or not row.cost_ratio < 1.0:
        return ""
    if ratio.p90 >= 1.0:
        return _NO_FASTER
    return _FELL_LESS if ratio.p10 > row.cost_ratio else ""


def _number(ratio: float) -> str:
    return f"{ratio:.3f}" if math.isfinite(ratio) else NOT_MEASURED
