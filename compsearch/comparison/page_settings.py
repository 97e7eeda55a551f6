"""What differs between the compared runs besides their results: settings, machines, versions, how far they came."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from compsearch.comparison.comparison import Comparison, Run
from compsearch.comparison.page_data import link_to
from compsearch.comparison.page_table import Cell, PageTable, marked_outliers
from compsearch.comparison.settings import flatten, plain_key
from compsearch.report.captions import counted
from compsearch.report.table import NOT_MEASURED

#: Settings in which the runs of one series differ by intent; stated in their column's head, not line by line.
VARIED = ("seed", "run_name", "variant", "budget.cost_ratio", "budget.label", "budget.limit")
#: Of all settings, those that say nothing about a result.
_UNINTERESTING = ("run_name", "cache_dir")


def settings_table(comparison: Comparison, facet: str) -> PageTable | None:
    """A line per setting that differs between the runs of `facet`, a column per kind of run; None where none differs.

    Runs of one series that differ in seed and budget alone are of one kind. Marked is what most runs have otherwise.
    """
    kinds: dict[str, list[Run]] = {}
    for run in comparison.runs:
        if run.facet == facet:
            rest = {key: value for key, value in run.settings.items() if key not in VARIED}
            kinds.setdefault(json.dumps([run.series, rest], default=str, sort_keys=True), []).append(run)
    keys = [key for key in _ordered_keys([kind[0].settings for kind in kinds.values()]) if key not in VARIED]
    if not keys:
        return None
    weights = [len(kind) for kind in kinds.values()]
    rows = [
        (Cell("runs"), *(Cell(len(kind)) for kind in kinds.values())),
        (Cell("seeds"), *(Cell(_listed(run.seed for run in kind)) for kind in kinds.values())),
        (Cell("budgets"), *(Cell(_listed(_budget(run) for run in kind)) for kind in kinds.values())),
    ]
    for key in keys:
        cells = [
            Cell(_setting_text(kind[0].settings[key]) if key in kind[0].settings else None) for kind in kinds.values()
        ]
        rows.append((Cell(plain_key(key)), *marked_outliers(cells, weights)))
    return PageTable(
        "Settings that differ between runs",
        ("setting", *_distinct([kind[0].series for kind in kinds.values()])),
        tuple(rows),
        note=f"Marked: what most runs have otherwise. {NOT_MEASURED}: no setting of that run.",
        facet=facet,
    )


def constant_settings(comparison: Comparison, facet: str) -> dict[str, str]:
    """The settings that all runs of `facet` share, by their dotted keys."""
    flat = [flatten(run.config) for run in comparison.runs if run.facet == facet]
    if not flat:
        return {}
    first = {key: _setting_text(value) for key, value in flat[0].items() if key not in _UNINTERESTING}
    return {
        plain_key(key): text
        for key, text in first.items()
        if all(key in other and _setting_text(other[key]) == text for other in flat)
    }


def machine_table(comparison: Comparison) -> PageTable:
    """A line per machine, version or commit that any finished run names; marked is what most runs have otherwise."""
    facts: dict[str, dict[str, list[Run]]] = {}
    finished = [run for run in comparison.runs if run.summary is not None]
    for run in finished:
        assert run.summary is not None
        named = {"machine": run.summary.machine, "git commit": run.summary.git_commit[:12], **run.summary.versions}
        for runtime in dict.fromkeys(row.latency.runtime for row in run.summary.networks if row.latency):
            named["latency"] = runtime
        for fact, value in named.items():
            facts.setdefault(fact, {}).setdefault(value or "not recorded", []).append(run)
    rows = []
    for fact, values in facts.items():
        cells = marked_outliers([Cell(value) for value in values], [len(runs) for runs in values.values()])
        for cell, runs in zip(cells, values.values(), strict=True):
            rows.append((Cell(fact), cell, Cell(len(runs)), Cell(_some_names(runs, len(finished)))))
    return PageTable(
        "Machine and versions",
        ("what", "value", "runs", "which"),
        tuple(rows),
        note="As the finished runs recorded them. Marked: what most runs have otherwise.",
    )


def unfinished_table(comparison: Comparison, *, page: Path) -> PageTable | None:
    """The runs that have no summary yet, with the command that resumes them; None when all have one."""
    unfinished = [run for run in comparison.runs if run.summary is None]
    if not unfinished:
        return None
    done = comparison.trials["run"].value_counts()
    rows = tuple(
        (
            Cell(run.name, href=link_to(run.path, page=page)),
            Cell(run.series),
            Cell(run.seed),
            Cell(_budget(run)),
            Cell(int(done.get(run.name, 0))),
            Cell(run.command),
        )
        for run in unfinished
    )
    title = f"{counted(len(unfinished), 'run', 'runs')} without a result yet"
    note = "Interrupted, failed or still at it. Their trials are in the plots of trials; the command resumes them."
    return PageTable(title, ("run", "series", "seed", "budget", "trials", "command"), rows, note=note)


def _budget(run: Run) -> str:
    budget = run.config.get("budget")
    if not isinstance(budget, Mapping):
        return ""
    wanted = budget.get("cost_ratios") or [budget.get("cost_ratio")]
    return _listed(f"{ratio:g}" if isinstance(ratio, int | float) else "" for ratio in wanted)


def _listed(values: Iterator[Any]) -> str:
    distinct = set(values)
    return ", ".join(map(str, sorted(distinct, key=lambda value: (isinstance(value, str), value))))


def _distinct(names: Sequence[str]) -> list[str]:
    """`names`, those that come again numbered: ``amc``, ``amc (2)``."""
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return found


def _some_names(runs: Sequence[Run], num_all: int) -> str:
    if len(runs) == num_all:
        return "all"
    names = [run.name for run in runs]
    return ", ".join(names) if len(names) <= 3 else f"{', '.join(names[:2])} and {len(names) - 2} more"


def _ordered_keys(mappings: Sequence[Mapping[str, Any]]) -> list[str]:
    """All keys, those that most mappings have first, else in the order met."""
    number = {key: sum(key in mapping for mapping in mappings) for mapping in mappings for key in mapping}
    return sorted(number, key=lambda key: -number[key])


def _setting_text(value: Any) -> str:
    """As YAML writes it on one line, nearly: strings stand without quotes."""
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False, default=str)
