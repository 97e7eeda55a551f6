"""report.html: a comparison as one page that needs nothing but itself, to look at, sort, filter and click.

The page holds plotly's library, its own script and style, and the data as JSON. A content security policy forbids the
browser to load anything else. Its plots are drawn by page_assets/*.js from `page_data`, its tables are plain HTML.
"""

from __future__ import annotations

import base64
import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import plotly.offline

from compsearch import atomic
from compsearch.comparison.comparison import Comparison
from compsearch.comparison.page_data import MAX_TRIALS, facet_data, link_to
from compsearch.comparison.page_settings import constant_settings, machine_table, settings_table, unfinished_table
from compsearch.comparison.page_table import Cell, PageTable
from compsearch.comparison.pareto_plots import STAGES
from compsearch.comparison.plot_frame import seeds_text
from compsearch.report.captions import counted, not_shown

_SCRIPTS = ("details.js", "frame.js", "plots.js", "tables.js")


@dataclass(frozen=True)
class Picture:
    """A plot as a picture, for the section of `facet`: the bytes of a PNG, and the sentence below it."""

    facet: str
    title: str
    sentence: str
    png: bytes

    def to_html(self) -> str:
        """A `<figure>` that holds its own data."""
        source = f"data:image/png;base64,{base64.b64encode(self.png).decode()}"
        return (
            f'<figure class="picture"><img src="{source}" alt="{html.escape(self.title)}">'
            f"<figcaption>{html.escape(self.sentence)}</figcaption></figure>"
        )


def write_page(
    path: Path,
    comparison: Comparison,
    *,
    tables: Sequence[PageTable],
    verdicts: Mapping[str, Sequence[str]],
    title: str,
    pictures: Sequence[Picture] = (),
) -> None:
    """Writes `comparison` as a self-contained page to `path`, whole or not at all.

    `verdicts` are sentences for each facet, which stand below its first plot, and `tables` below its others; those that
    name no facet stand below all; `pictures` are folded away below the tables of theirs. Links to runs are relative to
    `path`. Raises ValueError when a table names a facet that is not there.
    """
    unknown = {table.facet for table in tables} - {"", *comparison.facets}
    if unknown:
        raise ValueError(f"a table's facet must be one of {list(comparison.facets)}, but got {sorted(unknown)}")
    facets = [facet_data(comparison, facet, page=path) for facet in comparison.facets]
    sections = [
        _facet_section(comparison, facet, verdicts.get(facet["name"], ()), tables, pictures, number)
        for number, facet in enumerate(facets)
    ]
    general = [table.to_html() for table in tables if not table.facet]
    if general:
        sections.append(_section("tables", "All together", "".join(general)))
    sections.append(_section("runs", "Runs and what they ran on", _runs_html(comparison, path)))
    filled = Template(_asset("page.html")).substitute(
        title=html.escape(title),
        style=_asset("page.css"),
        lead=_lead_html(comparison),
        contents=_contents_html(comparison, has_general=bool(general)),
        sections="\n".join(sections),
        data=script_json({"facets": facets}),
        library=plotly.offline.get_plotlyjs(),
        script="\n".join(map(_asset, _SCRIPTS)),
    )
    atomic.write_text(path, filled)


def script_json(data: Any) -> str:
    """`data` as JSON that stays inside its ``<script>``: no ``<``, ``>`` or ``&``; NaN and infinity become null."""
    text = json.dumps(atomic.finite_or_none(data), allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _asset(name: str) -> str:
    return files("compsearch.comparison").joinpath("page_assets", name).read_text(encoding="utf-8")


def _lead_html(comparison: Comparison) -> str:
    num_finished = sum(run.summary is not None for run in comparison.runs)
    rest = len(comparison.runs) - num_finished
    facts = [
        f"{counted(num_finished, 'finished run', 'finished runs')}"
        + (f" and {counted(rest, 'that has', 'that have')} no result yet" if rest else "")
        + f", {len(comparison.trials):,} trials.",
        "Accuracies of networks are top-1 on the test split, which only the final report of a run reads; those of "
        "trials are on the search split. Costs are the achieved ones, as fractions of the dense network's.",
    ]
    return f'<p class="facts">{html.escape(" ".join(facts))}</p>'


def _contents_html(comparison: Comparison, *, has_general: bool) -> str:
    entries = [(f"facet-{number}", facet) for number, facet in enumerate(comparison.facets)]
    entries += [("tables", "All together")] if has_general else []
    entries += [("runs", "Runs, machine, versions")]
    return "".join(f'<li><a href="#{identity}">{html.escape(text)}</a></li>' for identity, text in entries)


def _section(identity: str, heading: str, content: str) -> str:
    return f'<section id="{identity}"><h2>{html.escape(heading)}</h2>\n{content}</section>'


def _facet_section(
    comparison: Comparison,
    facet: dict[str, Any],
    verdicts: Sequence[str],
    tables: Sequence[PageTable],
    pictures: Sequence[Picture],
    number: int,
) -> str:
    name = facet["name"]
    parts = [f'<div class="facet" data-facet="{number}">']
    parts.append(
        f'<div class="legend" role="group" aria-label="series shown in the plots of {html.escape(name)}"></div>'
    )
    if facet["networks"]:
        parts.append(_plot_html("pareto", "Accuracy and cost", _networks_caption(facet)))
    if verdicts:
        parts.append(f'<ul class="verdict">{"".join(f"<li>{html.escape(verdict)}</li>" for verdict in verdicts)}</ul>')
    if facet["trials"]["run"]:
        parts.append('<div class="pair">')
        parts.append(_plot_html("trials", "Every trial of the searches", _trials_caption(facet)))
        parts.append(_plot_html("anytime", "Best so far", _anytime_caption()))
        parts.append("</div>")
    parts.append('<aside class="details" hidden aria-live="polite"></aside></div>')
    for table in tables:
        if table.facet == name:
            parts.append(_folded(table.title, table.to_html()) if table.is_folded else table.to_html())
    parts += [_folded(picture.title, picture.to_html()) for picture in pictures if picture.facet == name]
    parts.append(_folded("Every network as a table", _networks_table(comparison, facet).to_html()))
    settings = settings_table(comparison, name)
    if settings is not None:
        parts.append(settings.to_html())
    constant = constant_settings(comparison, name)
    if constant:
        rows = tuple((Cell(key), Cell(value)) for key, value in constant.items())
        table = PageTable("Settings that all runs share", ("setting", "value"), rows)
        parts.append(_folded(f"{counted(len(rows), 'setting', 'settings')} that all runs share", table.to_html()))
    return _section(f"facet-{number}", name, "\n".join(parts))


def _plot_html(kind: str, heading: str, caption: str) -> str:
    return (
        f'<figure class="plot" data-kind="{kind}"><figcaption><h3>{html.escape(heading)}</h3>'
        f"<p>{html.escape(caption)}</p></figcaption>"
        '<div class="controls"></div><div class="canvas"></div></figure>'
    )


def _networks_caption(facet: dict[str, Any]) -> str:
    seeds = [series["num_seeds"] for series in facet["series"] if series["num_seeds"] and not series["is_dense"]]
    counts = seeds_text(seeds) if seeds else "no seed"
    spread = (
        "small marks are one seed each, large ones joined by lines their means with ± one standard deviation"
        if max(seeds, default=0) > 1
        else "one seed only, so no spread is known"
    )
    return (
        f"Test split, {counts} per series; {spread}. Costs as achieved, not as asked for; dotted verticals are the "
        "budgets. Point at a network for its policy and command; click it to open its run and keep its details below."
    )


def _trials_caption(facet: dict[str, Any]) -> str:
    trials = facet["trials"]
    shown, num_all = len(trials["run"]), trials["num_all"]
    count = f"All {num_all:,} trials" if num_all > 1 else "One trial"
    if shown < num_all:
        count = (
            f"{shown:,} of {num_all:,} trials (of more than {MAX_TRIALS:,} every improvement of a run is shown, and "
            "evenly chosen others)"
        )
    failed = not_shown(sum(math.isnan(accuracy) for accuracy in trials["accuracy"]), "without an accuracy")
    return f"{count}{failed}, on the search split, before any fine-tuning."


def _anytime_caption() -> str:
    return (
        "One line per run, of its trials so far that keep to the budget, on the search split: the highest accuracy, or "
        "the hypervolume with the dense network's cost and accuracy 0 as reference point, which counts networks below "
        "the budget too. A search picks by its own objective, which need not be either."
    )


def _networks_table(comparison: Comparison, facet: dict[str, Any]) -> PageTable:
    labels = {series["name"]: series["label"] for series in facet["series"]}
    rows = tuple(
        (
            Cell(facet["runs"][row["run"]]["name"], href=facet["runs"][row["run"]]["href"]),
            Cell(labels[row["series"]]),
            Cell(row["seed"]),
            Cell(row["asked"], shown=row["budget"]),
            Cell(STAGES.get(row["stage"], row["stage"])),
            *(_percent(row[split]) for split in ("test", "search")),
            *(_three_decimals(row["ratios"][resource]) for resource in ("macs", "params", "latency_ms")),
            Cell(row["latency_ms"]),
            Cell(row["trials"]),
            _seconds(row["wall_s"]),
        )
        for row in facet["networks"]
    )
    columns = (
        *("run", "series", "seed", "budget asked", "stage", "accuracy, test", "accuracy, search"),
        *("FLOPs (MACs) / dense", "parameters / dense", "latency / dense", "latency, ms", "trials", "search, s"),
    )
    return PageTable(
        f"Networks of {facet['name']}",
        columns,
        rows,
        note="Costs are achieved ones. A baseline that several runs measured for the same seed and budget stands once.",
    )


def _runs_html(comparison: Comparison, path: Path) -> str:
    parts = []
    if comparison.remarks:
        items = "".join(f"<li>{html.escape(remark)}</li>" for remark in comparison.remarks)
        parts.append(f'<h3>Remarks</h3><ul class="remarks">{items}</ul>')
    unfinished = unfinished_table(comparison, page=path)
    if unfinished is not None:
        parts.append(unfinished.to_html())
    machine = machine_table(comparison)
    if machine.rows:
        parts.append(machine.to_html())
    parts.append(_notes_html(comparison))
    parts.append(_folded(f"Every run and its command ({len(comparison.runs)})", _commands(comparison, path).to_html()))
    return "\n".join(filter(None, parts))


def _notes_html(comparison: Comparison) -> str:
    """What the runs themselves remarked on, each remark once, with the number of runs that did."""
    often: dict[str, int] = {}
    for run in comparison.runs:
        for note in run.summary.notes if run.summary is not None else ():
            often[note] = often.get(note, 0) + 1
    items = "".join(
        f"<li>{html.escape(note)} <small>({counted(number, 'run', 'runs')})</small></li>"
        for note, number in often.items()
    )
    return f'<h3>Notes of the runs</h3><ul class="remarks">{items}</ul>' if items else ""


def _commands(comparison: Comparison, path: Path) -> PageTable:
    rows = tuple(
        (Cell(run.name, href=link_to(run.path, page=path)), Cell(run.series), Cell(run.seed), Cell(run.command))
        for run in comparison.runs
    )
    return PageTable("Runs", ("run", "series", "seed", "command"), rows)


def _folded(summary: str, content: str) -> str:
    return f"<details><summary>{html.escape(summary)}</summary>{content}</details>"


def _percent(fraction: float) -> Cell:
    return Cell(fraction, shown="" if math.isnan(fraction) else f"{fraction:.2%}")


def _three_decimals(ratio: float) -> Cell:
    return Cell(ratio, shown="" if math.isnan(ratio) else f"{ratio:.3f}")


def _seconds(seconds: float) -> Cell:
    return Cell(seconds, shown="" if math.isnan(seconds) else f"{seconds:,.0f}")
