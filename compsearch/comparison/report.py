"""The report of a comparison: every plot, table and page that run folders allow, in one folder.

``python -m compsearch.report results/a results/b output=results/mine``, or ``python -m compsearch report …``.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from compsearch import atomic
from compsearch.comparison.ablation_plot import save_ablation
from compsearch.comparison.ablation_table import PLACE, ablation_frame, ablation_tables
from compsearch.comparison.comparison import Comparison
from compsearch.comparison.equal_effort import at_equal_seconds, at_equal_trials
from compsearch.comparison.facets import part
from compsearch.comparison.hypervolume import hypervolumes, reference_sentence
from compsearch.comparison.page import Picture, write_page
from compsearch.comparison.page_table import PageTable
from compsearch.comparison.plots import save_plots
from compsearch.comparison.runs import read_comparison
from compsearch.comparison.statistics_tables import equal_effort_tables, hypervolume_tables
from compsearch.comparison.tables import search_cost_frame, search_cost_tables, summary_frame, summary_tables
from compsearch.comparison.text_table import TextTable, escape_markdown, to_markdown, write_csv, write_texts
from compsearch.comparison.verdicts import verdicts, verdicts_by_facet
from compsearch.run_folder import CONFIG_FILE, disk_errors

PAGE_FILE = "report.html"
#: Tables that the page shows at once; others are opened by a click.
_SHOWN = ("summary", "ablation", "search_cost")
TEXT_FILE = "report.md"
#: What a report has written, so that the next one in its folder leaves nothing of it that is no longer true.
_MANIFEST = ".report.json"
#: Pictures before the verdicts on them.
_NUM_FIRST = 2
_USAGE = "python -m compsearch.report <run folder or folder of runs> ... [output=<folder>]"
#: Of the bootstrap over seeds; any will do, the same one gives the same intervals.
_SEED = 0


@dataclass(frozen=True)
class Report:
    """What was written where: the folder, and in it the page, and the files of tables and plots."""

    folder: Path
    comparison: Comparison
    sentences: tuple[str, ...]
    files: tuple[Path, ...]

    def __str__(self) -> str:
        lines = [*self.sentences, *(f"note: {remark}" for remark in self.comparison.remarks), ""]
        return "\n".join([*lines, *(str(_shown(file)) for file in self.files)])


def run_command(arguments: Sequence[str]) -> str:
    """The command ``report``: compares the runs in the folders named; returns what to print.

    Raises ValueError, in one line, for a folder without runs and for anything but folders and ``output=``.
    """
    folders, output = [], None
    for argument in arguments:
        key, separator, value = argument.partition("=")
        if separator and key == "output" and value:
            output = Path(value)
        elif argument.startswith("-") or (separator and not Path(argument).exists()):
            raise ValueError(f"the command is `{_USAGE}`, but got {argument!r}")
        else:
            folders.append(Path(argument))
    if not folders:
        raise ValueError(f"a report needs a folder of runs, as in `{_USAGE}`, but got none")
    comparison = read_comparison(folders)
    return str(write_report(comparison, output or _beside(comparison) / _name(comparison)))


def compare(paths: Sequence[Path]) -> str:
    """Compares the runs in the folders `paths`, in a folder beside them; returns what to print."""
    comparison = read_comparison(paths)
    return str(write_report(comparison, _beside(comparison) / _name(comparison)))


def write_report(comparison: Comparison, folder: Path) -> Report:
    """Writes plots, tables and the page of `comparison` into `folder`, which need not exist; files there are replaced.

    Raises ValueError when `folder` is a run's, and when the disk refuses.
    """
    if (folder / CONFIG_FILE).exists():
        raise ValueError(f"a report needs a folder of its own, but {folder} is a run's; give another output=<folder>")
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        tables = {name: _made(name, comparison) for name in _TABLES}
        files = _write_tables(comparison, tables, folder)
        images = _write_plots(comparison, tables["ablation"].frame, folder)
        by_facet = verdicts_by_facet(comparison)
        page_tables = [
            PageTable.from_text(table, facet=facet, is_folded=name not in _SHOWN)
            for name, made in tables.items()
            for facet, texts in made.texts.items()
            for table in texts
        ]
        pictures = [Picture(facet, image.stem, sentence, image.read_bytes()) for facet, image, sentence in images]
        title = " · ".join(comparison.facets)
        page = folder / PAGE_FILE
        write_page(
            page,
            comparison,
            tables=page_tables,
            verdicts=by_facet,
            title=title,
            pictures=pictures,
        )
        _write_text(comparison, tables, by_facet, images, folder)
        written = (page, folder / TEXT_FILE, *files, *(image for _, image, _ in images))
        _remove_earlier(folder, [*written, *(image.with_suffix(".svg") for _, image, _ in images)])
    return Report(folder, comparison, tuple(verdicts(comparison)), written)


@dataclass(frozen=True)
class _Table:
    """A table as numbers and, by facet, as people read it."""

    frame: pd.DataFrame
    texts: Mapping[str, Sequence[TextTable]]


def _made(name: str, comparison: Comparison) -> _Table:
    to_frame, to_texts = _TABLES[name]
    frame = to_frame(comparison)
    parts = {facet: frame[frame["facet"] == facet] for facet in comparison.facets}
    return _Table(frame, {facet: to_texts(part, comparison) if len(part) else [] for facet, part in parts.items()})


_ToFrame = Callable[[Comparison], pd.DataFrame]
_ToTexts = Callable[[pd.DataFrame, Comparison], list[TextTable]]
#: By the files' name, what makes the numbers, and what makes tables for people of one facet's.
_TABLES: Mapping[str, tuple[_ToFrame, _ToTexts]] = {
    "summary": (summary_frame, lambda frame, _: summary_tables(frame)),
    "ablation": (ablation_frame, ablation_tables),
    "hypervolume": (
        lambda comparison: hypervolumes(comparison.networks, rng=np.random.default_rng(_SEED)),
        lambda frame, _: hypervolume_tables(frame),
    ),
    "equal_trials": (at_equal_trials, lambda frame, _: equal_effort_tables(frame)),
    "equal_seconds": (at_equal_seconds, lambda frame, _: equal_effort_tables(frame)),
    "search_cost": (search_cost_frame, lambda frame, _: search_cost_tables(frame)),
}


def _write_tables(comparison: Comparison, tables: dict[str, _Table], folder: Path) -> list[Path]:
    write_csv(folder / "networks.csv", comparison.networks)
    files = [folder / "networks.csv"]
    for name, table in tables.items():
        if len(table.frame):
            write_csv(folder / f"{name}.csv", table.frame)
            texts = [text for of_facet in table.texts.values() for text in of_facet]
            files += [folder / f"{name}.csv", *write_texts(folder / name, texts)]
    return files


def _write_plots(comparison: Comparison, ablation: pd.DataFrame, folder: Path) -> list[tuple[str, Path, str]]:
    """The plots of every facet, and of the `ablation`: (facet, PNG, sentence); the SVG lies beside each."""
    written = []
    for facet in comparison.facets:
        place = folder if len(comparison.facets) == 1 else folder / _slug(facet)
        place.mkdir(exist_ok=True)
        written += [(facet, image, plot.sentence) for plot, (image, _) in save_plots(comparison, facet, place)]
    for number, (place_keys, rows) in enumerate(ablation.groupby(list(PLACE), sort=False, dropna=False)):
        image, _ = save_ablation(folder / f"ablation{f'-{number + 1}' if number else ''}.png", rows)
        written.append((str(place_keys[0]), image, "Each variant beside the default, mean and spread over seeds."))
    return written


def _write_text(
    comparison: Comparison,
    tables: dict[str, _Table],
    by_facet: Mapping[str, Sequence[str]],
    images: Sequence[tuple[str, Path, str]],
    folder: Path,
) -> None:
    lines = [
        f"# {' · '.join(comparison.facets)}",
        "",
        *(f"- {escape_markdown(text)}" for text in comparison.remarks),
        "",
    ]
    for facet in comparison.facets:
        lines += [f"## {facet}", ""] if len(comparison.facets) > 1 else []
        shown = [
            [f"![{image.stem}]({image.relative_to(folder)})", "", escape_markdown(sentence), ""]
            for of_facet, image, sentence in images
            if of_facet == facet
        ]
        told = [f"- {escape_markdown(sentence)}" for sentence in by_facet.get(facet, ())]
        first, others = shown[:_NUM_FIRST], shown[_NUM_FIRST:]
        lines += [*itertools.chain(*first), *told, "", *itertools.chain(*others)]
        for made in tables.values():
            lines += [text for table in made.texts[facet] for text in (to_markdown(table), "")]
    lines += ["", escape_markdown(reference_sentence()), ""]
    atomic.write_text(folder / TEXT_FILE, "\n".join(lines))


def _remove_earlier(folder: Path, written: Sequence[Path]) -> None:
    """Removes what an earlier report left in `folder` and this one has not `written` again, and nothing else."""
    manifest = folder / _MANIFEST
    names = [str(path.relative_to(folder)) for path in written]
    with contextlib.suppress(OSError, ValueError, TypeError):
        for name in json.loads(manifest.read_text()):
            file = folder / name
            if name not in names and file.resolve().is_relative_to(folder.resolve()):
                file.unlink(missing_ok=True)
    atomic.write_text(manifest, json.dumps(names, indent=0))


def _beside(comparison: Comparison) -> Path:
    """The folder that all runs lie in, or the nearest one above them."""
    return Path(os.path.commonpath([run.path.absolute().parent for run in comparison.runs]))


def _name(comparison: Comparison) -> str:
    """``comparison-resnet20-digits``: what was compared, as a folder's name; ``ablation-…`` of nothing but variants."""
    parts = [
        "+".join(dict.fromkeys(str(part(run.config, key).get("name", "")) for run in comparison.runs))
        for key in ("model", "dataset")
    ]
    is_ablation = all(run.variant for run in comparison.runs)
    searchers = dict.fromkeys(run.searcher for run in comparison.runs if is_ablation and run.variant == "default")
    return _slug("-".join(["ablation" if searchers else "comparison", *searchers, *parts]))


def _slug(text: str) -> str:
    """`text` as a file's name."""
    return re.sub(r"[^\w.+-]+", "_", text).strip("_")[:100] or "comparison"


def _shown(path: Path) -> Path:
    """`path` from here, where it lies below."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
