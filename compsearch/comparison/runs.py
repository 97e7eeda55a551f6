"""From run folders to a comparison: `read_comparison`.

`folders` reads what is on the disk, `facets` and `series` say what is compared with what, `frames` makes the tables;
here they meet, and what a reader must know is put in words.
"""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compsearch.comparison.comparison import Comparison, Run
from compsearch.comparison.facets import facets
from compsearch.comparison.folders import UNREADABLE, PassedOver, RunFiles, find_runs, read_run
from compsearch.comparison.frames import ReadRun, kept_frame, networks_frame, trials_frame
from compsearch.comparison.options import budget_word, dataset_word, searcher_word
from compsearch.comparison.series import budget_of, series, settings_that_differ, variant_of
from compsearch.composition import takes
from compsearch.report.captions import counted
from compsearch.run_folder import CONFIG_FILE

_MOST_NAMES = 6
#: Sections of a configuration that came with time and that results don't depend on.
_UNIMPORTANT = frozenset({"variant", "variants", "swept", "trials", "device", "cache_dir", "run_name", "timed_trials"})


def read_comparison(paths: Sequence[Path]) -> Comparison:
    """The runs in `paths`, each a run folder or a folder of run folders, and the tables made of them.

    Complete and unfinished runs, of this version and earlier ones. A run that is there several times counts once: in
    the same folder, or begun with the same settings and seed. Nothing in a run folder raises: what cannot be read is
    left out and stands in the remarks.

    Raises ValueError for a path that is not there or holds no run, and where no run has begun.
    """
    read = [read_run(path) for path in find_runs(paths)]
    files = [found for found in read if isinstance(found, RunFiles)]
    passed_over = [found for found in read if isinstance(found, PassedOver)]
    if not files:
        reasons = [found.reason for found in passed_over if found.reason]
        raise ValueError(
            f"a comparison needs a run that has begun to search, but {', '.join(map(str, paths)) or 'no path'} holds "
            f"none; {reasons[0] if reasons else 'name a folder that one was written to, such as results'}"
        )
    remarks = [*_read_remarks(files, passed_over), *_version_remarks(files)]
    facet_of, said = facets(files)
    remarks.extend(said)
    series_of, said = series(files, facet_of)
    files, repeated = _distinct(files, facet_of, series_of)
    remarks.extend(repeated)
    # Again: what is left may need fewer words to be told apart.
    facet_of, _ = facets(files)
    series_of, said = series(files, facet_of)
    remarks.extend(said)
    settings = settings_that_differ(files, facet_of)
    runs = [
        ReadRun(_run(found, facet, label, differing, place), found)
        for found, facet, label, differing, place in zip(
            files, facet_of, series_of, settings, _places([found.path for found in files]), strict=True
        )
    ]
    remarks.extend(_measuring_remarks(runs))
    return Comparison(
        runs=tuple(found.run for found in runs),
        networks=networks_frame(runs),
        trials=trials_frame(runs),
        kept=kept_frame(runs),
        remarks=tuple(remarks),
    )


def command_of(files: RunFiles) -> str:
    """What to type to repeat the run: the overrides it was begun with, else the main choices of its config."""
    typed = "python -m compsearch "
    if files.overrides is not None:
        return (typed + shlex.join(files.overrides)).rstrip()
    config = files.config
    choices = {
        "searcher": searcher_word(config),
        "model": _at(config, "model", "name"),
        "dataset": dataset_word(config),
    }
    budget = config.get("budget")
    if isinstance(budget, Mapping):
        values = {key: budget[key] for key in ("limit", "cost_ratios", "cost_ratio") if budget.get(key) is not None}
        choices["budget"] = budget_word(str(budget.get("resource")), is_limited=bool(values))
        key = next(iter(values), "")  # a family's cost_ratio is not read
        if key:
            choices[f"budget.{key}"] = str(values[key]).replace(" ", "")
        if key == "limit":
            choices["budget.cost_ratio"] = "null"
    choices["seed"] = _seed(files)
    overrides = [f"{key}={value}" for key, value in choices.items() if value not in ("", None)]
    return f"{typed}{shlex.join(overrides)}  # and the rest of {files.path / CONFIG_FILE}"


def _places(paths: Sequence[Path]) -> list[str]:
    """For each of `paths`, what stands before its last part and differs between those that share it."""
    counts = Counter(path.name for path in paths)
    shared = [path.parent for path in paths if counts[path.name] > 1]
    above = Path(os.path.commonpath(shared)) if shared else Path()
    return [str(path.parent.relative_to(above)) if counts[path.name] > 1 else "" for path in paths]


def _run(files: RunFiles, facet: str, label: str, settings: Mapping[str, Any], place: str) -> Run:
    return Run(
        path=files.path,
        config=files.config,
        summary=files.summary,
        searcher=searcher_word(files.config),
        variant=variant_of(files),
        seed=_seed(files),
        facet=facet,
        series=label,
        settings=settings,
        command=command_of(files),
        place=place,
        policies=dict(files.policies),
        trains_network=_trains_network(files.config),
    )


def _trains_network(config: Mapping[str, Any]) -> bool:
    """Whether the searcher is given a supernet; False of one that cannot be imported here."""
    try:
        return takes(config["searcher"], "supernet", place="searcher")
    except UNREADABLE:
        return False


def _at(config: Mapping[str, Any], section: str, key: str) -> Any:
    found = config.get(section)
    return found.get(key) if isinstance(found, Mapping) else None


def _seed(files: RunFiles) -> int:
    seed = files.config.get("seed", 0)
    return seed if isinstance(seed, int) else 0


def _distinct(
    files: Sequence[RunFiles], facets: Sequence[str], labels: Sequence[str]
) -> tuple[list[RunFiles], list[str]]:
    """`files` without those whose settings and seed are another's: seeds are counted, and one counts once.

    Of several the finished one stays, of these the one with more trials, of these the first. Latencies measured on two
    devices are two results.
    """
    order = sorted(range(len(files)), key=lambda i: (files[i].summary is None, -len(files[i].trials), i))
    best: dict[tuple[Any, ...], int] = {}
    repeated: dict[int, int] = {}
    for index in order:
        found, any_device = files[index], "any"
        latency = found.summary.dense.latency if found.summary is not None else None
        device = any_device if found.summary is None else latency.runtime if latency else ""
        budgets = *budget_of(found), *(str(_at(found.config, "budget", key)) for key in ("cost_ratios", "limit"))
        what = (facets[index], labels[index], *map(str, budgets), _seed(found))
        if (*what, device) in best:
            repeated[index] = best[(*what, device)]
        else:
            best[(*what, device)] = index
            best.setdefault((*what, any_device), index)
    remarks = [
        f"{files[index].path} has the settings and seed of {files[first].path}, which counts in its place"
        for index, first in sorted(repeated.items())
    ]
    if len(remarks) > _MOST_NAMES:
        names = _names([files[index].path for index in sorted(repeated)])
        remarks = [
            f"{len(remarks)} runs have the settings and seed of another one, which counts in their place: {names}"
        ]
    return [found for index, found in enumerate(files) if index not in repeated], remarks


def _read_remarks(files: Sequence[RunFiles], passed_over: Sequence[PassedOver]) -> list[str]:
    remarks = []
    unfinished = [found.path for found in files if found.summary is None]
    if unfinished:
        one = len(unfinished) == 1
        said = "is unfinished: its trials count, it has" if one else "are unfinished: their trials count, they have"
        of = counted(len(files), "run", "runs")
        remarks.append(f"{len(unfinished)} of {of} {said} no final networks: {_names(unfinished)}")
    waiting = [found.path for found in passed_over if found.has_not_begun]
    if waiting:
        verb = "has" if len(waiting) == 1 else "have"
        remarks.append(f"{counted(len(waiting), 'run', 'runs')} {verb} not begun to search: {_names(waiting)}")
    remarks.extend(found.reason for found in passed_over if found.reason)
    remarks.extend(remark for found in files for remark in found.remarks)
    return remarks


def _version_remarks(files: Sequence[RunFiles]) -> list[str]:
    known = set().union(*(found.config for found in files)) - _UNIMPORTANT
    older = [found.path for found in files if known - set(found.config)]
    if not older:
        return []
    verb = "doesn't" if len(older) == 1 else "don't"
    return [
        f"{len(older)} of {counted(len(files), 'run', 'runs')} {verb} have every setting of the others (of another "
        f"version, say); what is not there is taken to be as in the others: {_names(older)}"
    ]


def _measuring_remarks(runs: Sequence[ReadRun]) -> list[str]:
    remarks = []
    for facet in dict.fromkeys(found.run.facet for found in runs):
        summaries = [found.files.summary for found in runs if found.run.facet == facet and found.files.summary]
        latencies = [row.latency for summary in summaries for row in summary.networks if row.latency]
        devices = list(dict.fromkeys(latency.runtime for latency in latencies))
        if len(devices) > 1:
            remarks.append(f"in {facet} latencies of {len(devices)} devices are drawn apart: {'; '.join(devices)}")
        machines = list(dict.fromkeys(summary.machine for summary in summaries if summary.machine))
        if len(machines) > 1:
            remarks.append(
                f"in {facet} searches ran on {len(machines)} machines, so their seconds don't compare: "
                f"{'; '.join(machines)}"
            )
    return remarks


def _names(paths: Sequence[Path]) -> str:
    names = ", ".join(path.name for path in paths[:_MOST_NAMES])
    return f"{names} and {len(paths) - _MOST_NAMES} more" if len(paths) > _MOST_NAMES else names
