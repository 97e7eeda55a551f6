"""The final table, as text for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Callable

from tqdm import tqdm

from compsearch.report.style import RESOURCE_LABELS, RESOURCE_UNITS
from compsearch.summary import NetworkRow, StoredSize, Summary

NOT_MEASURED = "–"
_WIDTH = 100


def summary_table(summary: Summary) -> str:
    """One column per network, one line per quantity, fractions of the dense network in brackets.

    Below it what the search took, how latency was measured, and the notes.
    """
    rows: list[tuple[str, Callable[[NetworkRow], str]]] = [
        ("accuracy, search split", lambda row: _percent(row.accuracy_search)),
        ("accuracy, test split", lambda row: _percent(row.accuracy_test)),
        ("top-5, test split", lambda row: _percent(row.top5_test)),
        (RESOURCE_LABELS["macs"], lambda row: _count(row.macs) + _ratio(summary, row, "macs")),
        ("2×MACs", lambda row: _count(2 * row.macs)),
        ("parameters", lambda row: _count(row.params) + _ratio(summary, row, "params")),
        ("block sparsity", lambda row: _percent(row.block_sparsity)),
        *_size_lines(summary),
        *(_cost_line(summary, resource) for resource in _other_resources(summary)),
        ("latency, median", lambda row: _median(row) + _ratio(summary, row, "latency_ms")),
        ("latency, p10–p90", _spread),
    ]
    lines = [["", *(row.name for row in summary.networks)]]
    for label, cell in rows:
        cells = [cell(row) for row in summary.networks]
        if any(text != NOT_MEASURED for text in cells):
            lines.append([label, *cells])
    family = [*align(_family_lines(summary)), ""] if summary.family else []
    return "\n".join([_title(summary), "", *align(lines), "", *family, *_remarks(summary)])


def _other_resources(summary: Summary) -> list[str]:
    """Those that only some runs price. A predicted latency is none: the table's is measured."""
    return [resource for resource in summary.dense.costs if resource != "latency_ms"]


def _cost_line(summary: Summary, resource: str) -> tuple[str, Callable[[NetworkRow], str]]:
    def cell(row: NetworkRow) -> str:
        if resource not in row.costs:
            return NOT_MEASURED
        number, unit = _count(row.costs[resource]), RESOURCE_UNITS.get(resource, "")
        return f"{number}{unit if ' ' in number else f' {unit}'.rstrip()}" + _ratio(summary, row, resource)

    return RESOURCE_LABELS.get(resource, resource), cell


def _size_lines(summary: Summary) -> list[tuple[str, Callable[[NetworkRow], str]]]:
    """Bytes on disk by format; all in brackets are of the dense network stored dense."""
    whole = summary.dense.size
    if whole is None:
        return []

    def line(label: str, number: Callable[[StoredSize], int]) -> tuple[str, Callable[[NetworkRow], str]]:
        def cell(row: NetworkRow) -> str:
            if row.size is None:
                return NOT_MEASURED
            return f"{_count(number(row.size))}B ({number(row.size) / whole.dense:.3f})"

        return label, cell

    return [
        line("size on disk, dense", lambda size: size.dense),
        line("dense, zlib", lambda size: size.dense_zlib),
        line("CSR", lambda size: size.csr),
        line("CSR, zlib", lambda size: size.csr_zlib),
        line(f"BSR {whole.block}", lambda size: size.bsr),
        line(f"BSR {whole.block}, zlib", lambda size: size.bsr_zlib),
    ]


def _family_lines(summary: Summary) -> list[list[str]]:
    """One line per member of the family: the test split's accuracies, and costs as fractions of the dense network's."""
    kinds = [kind for kind in ("compressed", "fine-tuned", "uniform") if any(m.network(kind) for m in summary.family)]
    others = _other_resources(summary)
    resources = ("macs", "params", *others, "latency_ms")
    labels = ("FLOPs", "parameters", *(RESOURCE_LABELS.get(resource, resource) for resource in others), "latency")
    lines = [["family, by cost_ratio", *(f"{kind}, test" for kind in kinds), *labels]]
    for member in summary.family:
        own = member.network("compressed")
        accuracies = [_percent(row.accuracy_test) if (row := member.network(kind)) else NOT_MEASURED for kind in kinds]
        ratios = {} if own is None else summary.ratios(own)
        costs = [f"{ratios[name]:.3f}" if name in ratios else NOT_MEASURED for name in resources]
        lines.append([f"{member.cost_ratio:g}", *accuracies, *costs])
    return lines


def _title(summary: Summary) -> str:
    budget = "no budget"
    if summary.budget is not None:
        resource, cost_ratio = summary.budget
        budget = f"budget {cost_ratio:g} of {RESOURCE_LABELS.get(resource, resource)}"
    return f"{summary.model} on {summary.dataset}, {summary.searcher}, {budget}, seed {summary.seed}"


def _remarks(summary: Summary) -> list[str]:
    cost = summary.search_cost
    failed = f" ({cost.num_failed} failed)" if cost.num_failed else ""
    images = f"{cost.num_images:,} images scored"
    remarks = [f"search: {cost.num_trials} trials{failed}, {images}, {tqdm.format_interval(cost.wall_s)}"]
    if summary.recovery:
        remarks.append(f"recovery before fine-tuning: {summary.recovery}")
    runtimes = dict.fromkeys(row.latency.runtime for row in summary.networks if row.latency)
    remarks.extend(f"latency: {runtime}" for runtime in runtimes)
    remarks.extend(f"note: {note}" for note in summary.notes)
    return [line for remark in remarks for line in textwrap.wrap(remark, _WIDTH, subsequent_indent="  ")]


def align(lines: list[list[str]]) -> list[str]:
    """A row of cells per line, the first the heading, as text: a rule below it, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["─" * width for width in widths]
    aligned = []
    for cells in [lines[0], rule, *lines[1:]]:
        first = cells[0].ljust(widths[0])
        rest = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        aligned.append("   ".join([first, *rest]))
    return aligned


def _percent(fraction: float | None) -> str:
    return NOT_MEASURED if fraction is None else f"{fraction:.2%}"


def _count(number: float) -> str:
    for factor, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= factor:
            return f"{number / factor:.4g}{unit}"
    return f"{number:.4g}"


def _ratio(summary: Summary, row: NetworkRow, resource: str) -> str:
    ratio = summary.ratios(row).get(resource)
    return "" if ratio is None or row is summary.dense else f" ({ratio:.3f})"


def _median(row: NetworkRow) -> str:
    return NOT_MEASURED if row.latency is None else f"{row.latency.median_ms:.2f} ms"


def _spread(row: NetworkRow) -> str:
    return NOT_MEASURED if row.latency is None else f"{row.latency.p10_ms:.2f}–{row.latency.p90_ms:.2f} ms"
