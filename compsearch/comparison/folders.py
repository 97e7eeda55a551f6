"""Run folders as they lie on a disk: found, and read as far as they can be.

A comparison reads what other people's machines, earlier versions and killed processes left. So nothing in a folder
raises: what cannot be read is left out, and said.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped, unused-ignore]

from compsearch.family import FAMILY_FILE
from compsearch.latency_report import TABLE_FILE
from compsearch.loading import POLICY_FILE
from compsearch.recorder import TRIALS_FILE
from compsearch.reuse import LEARNED_FILE
from compsearch.run_folder import CONFIG_FILE, OVERRIDES_FILE, SUMMARY_FILE
from compsearch.space import Policy
from compsearch.summary import Summary

#: What a file that is damaged, foreign or of another version makes its reader raise.
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError)
#: Five times as fast as the other, where PyYAML was built with it.
_YamlLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class TrialRow:
    """The numbers of a line of trials.jsonl; NaN for what it doesn't say. `accuracy` is NaN where the trial failed."""

    index: int
    accuracy: float
    objective: float
    cost_ratio: float
    macs: float
    params: float
    wall_s: float
    cpu_s: float


@dataclass(frozen=True)
class RunFiles:
    """What the folder `path` holds.

    `summary` is None for an unfinished run, and where it cannot be read. `policies` are those of a finished run's
    networks by cost_ratio asked for, as far as the folder tells it: None for a policy whose budget is the run's.
    `sizes` is, for each fingerprint of a space, the highest unit that any trial or policy kept of each group, plus 1;
    `groups` the same from the summary, exact, and empty in runs of earlier versions. `learned_by` names the run that
    learned what this one used, "" for none. `remarks` say what could not be read, one sentence each.
    """

    path: Path
    config: Mapping[str, Any]
    summary: Summary | None = None
    trials: tuple[TrialRow, ...] = ()
    policies: tuple[tuple[float | None, Policy], ...] = ()
    sizes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    learned_by: str = ""
    overrides: tuple[str, ...] | None = None
    remarks: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def groups(self) -> Mapping[str, int]:
        return self.summary.groups if self.summary is not None else {}


@dataclass(frozen=True)
class PassedOver:
    """A folder with a config.yaml that is not compared: `reason` in a sentence, "" where there is nothing to say."""

    path: Path
    reason: str = ""
    has_not_begun: bool = False


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """The run folders among `paths` and directly below them, each once, those below one folder by name.

    A run folder is one with a config.yaml; what is inside it belongs to it. Other folders below `paths` are passed
    over. Raises ValueError for a path that is not there or leads to no run.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        if not path.is_dir():
            what = "is not a folder" if path.exists() else "does not exist"
            raise ValueError(f"a comparison is of run folders, but {path} {what}; name one that a run or a sweep wrote")
        inside = [path]
        if not (path / CONFIG_FILE).is_file():
            inside = [entry for entry in sorted(path.iterdir()) if (entry / CONFIG_FILE).is_file()]
        if not inside:
            raise ValueError(
                f"a run folder holds {CONFIG_FILE}, but neither {path} nor a folder in it does; name a run's folder or "
                "the one that holds several, such as results"
            )
        for run in inside:
            found.setdefault(run.resolve(), run)
    return list(found.values())


def read_run(path: Path) -> RunFiles | PassedOver:
    """What the run folder `path` holds; raises nothing for what is in it."""
    try:
        config = yaml.load((path / CONFIG_FILE).read_text(), Loader=_YamlLoader)
        target = config["searcher"]["_target_"]
        str.rsplit(target, ".", 1)
    except UNREADABLE as error:
        return PassedOver(path, f"{path} is left out, as its {CONFIG_FILE} can't be read: {_one_line(error)}")
    remarks: list[str] = []
    summary = _read_summary(path, remarks)
    files = _trial_files(path)
    if summary is None and not files:
        is_report = str(config.get("run_name", "")).startswith("latency-") or (path / TABLE_FILE).exists()
        return PassedOver(path, has_not_begun=not is_report)
    trials, sizes = _read_trials(files, remarks)
    if summary is not None and len(trials) < summary.search_cost.num_trials:
        remarks.append(
            f"{path / TRIALS_FILE} holds {len(trials)} of the run's {summary.search_cost.num_trials} trials; its "
            "networks are whole"
        )
    policies = _read_policies(path, remarks) if summary is not None else ()
    for _, policy in policies:
        _note_sizes(sizes, policy.space, {name: units[-1] + 1 for name, units in policy.kept if units})
    return RunFiles(
        path=path,
        config=config,
        summary=summary,
        trials=tuple(trials),
        policies=policies,
        sizes=sizes,
        learned_by=_read_learned(path, config),
        overrides=_read_overrides(path),
        remarks=tuple(remarks),
    )


def _read_summary(path: Path, remarks: list[str]) -> Summary | None:
    file = path / SUMMARY_FILE
    if not file.exists():
        return None
    try:
        summary = Summary.from_json(json.loads(file.read_bytes()))
        _check(summary)
    except UNREADABLE as error:
        remarks.append(f"{file} can't be read, so the run counts as unfinished: {_one_line(error)}")
        return None
    return summary


def _check(summary: Summary) -> None:
    """Raises ValueError or TypeError where a number or text is none: `from_json` takes any value."""
    texts = [
        summary.model,
        summary.dataset,
        summary.machine,
        *summary.notes,
        *summary.groups,
        *(summary.budget or ())[:1],
    ]
    for row in [*summary.networks, *(row for member in summary.family for row in member.networks)]:
        numbers: list[float | None] = [row.macs, row.params, row.accuracy_search, row.accuracy_test, row.top5_test]
        if row.latency is not None:
            latency = row.latency
            texts.append(latency.runtime)
            numbers += [latency.median_ms, latency.ratio, latency.ratio_p10, latency.ratio_p90]
        if not all(number is None or (math.isfinite(number) and number >= 0) for number in numbers):
            raise ValueError(f"numbers of network {row.name!r} must not be negative, but got {numbers}")
        if min(row.macs, row.params) <= 0 and row is summary.dense:
            raise ValueError(f"a dense network must cost something, but got {row.macs=}, {row.params=}")
    cost, budget = summary.search_cost, (summary.budget or ("", 1.0))[1]
    cpu_s = 0.0 if cost.cpu_s is None else cost.cpu_s
    ratios = [budget, *(member.cost_ratio for member in summary.family), *summary.groups.values()]
    if not all(map(math.isfinite, (cost.num_trials, cost.num_images, cost.wall_s, cpu_s, *ratios))):
        raise ValueError(f"what a search took must be finite, but got {cost}")
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(
            f"names and notes must be text, but got {[text for text in texts if not isinstance(text, str)]}"
        )


def _trial_files(path: Path) -> list[Path]:
    """The run's trials.jsonl, or those of its stages in order."""
    own = path / TRIALS_FILE
    if own.exists():
        return [own]

    def number(file: Path) -> tuple[int, str]:
        digits = file.parent.name.removeprefix("stage").partition("-")[0]
        return (int(digits) if digits.isdecimal() else 0, file.parent.name)

    return sorted(path.glob(f"stage*/{TRIALS_FILE}"), key=number)


def _read_trials(files: Sequence[Path], remarks: list[str]) -> tuple[list[TrialRow], dict[str, dict[str, int]]]:
    """The trials of all `files`, one after the other in number and time, and `RunFiles.sizes` of their policies."""
    trials: list[TrialRow] = []
    sizes: dict[str, dict[str, int]] = {}
    for file in files:
        before = trials[-1] if trials else None
        lost: list[int] = []
        try:
            lines = file.read_bytes().splitlines()
        except OSError as error:
            remarks.append(f"{file} can't be read, so its trials are lost: {_one_line(error)}")
            continue
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                trial, policy = _trial_row(row, len(trials), before), row["policy"]
                found = {name: _size(ranges) for name, ranges in policy["kept"].items()}
            except UNREADABLE:
                lost.append(number)
            else:
                trials.append(trial)
                _note_sizes(sizes, str(policy["space"]), found)
        if lost:
            where = f"line {lost[0]}" if len(lost) == 1 else f"{len(lost)} lines from line {lost[0]} on"
            cut = ", the last one" if lost == [len(lines)] else ""
            remarks.append(
                f"{where} of {file}{cut}, can't be read: what is whole counts, {len(lines) - len(lost)} trials"
            )
    return trials, sizes


def _trial_row(row: Mapping[str, Any], index: int, before: TrialRow | None) -> TrialRow:
    costs = row.get("costs", {})
    objective = _number(row["objective"])
    return TrialRow(
        index=index,
        # A trial that failed, if only by costing too much, offers nothing at its price.
        accuracy=math.nan if math.isnan(objective) else _number(row["accuracy"]),
        objective=objective,
        cost_ratio=_number(row["cost_ratio"]),
        macs=_number(costs.get("macs")),
        params=_number(costs.get("params")),
        wall_s=_number(row.get("wall_s")) + (before.wall_s if before else 0.0),
        cpu_s=_number(row.get("cpu_s")) + (before.cpu_s if before else 0.0),
    )


def _size(ranges: str) -> int:
    """One more than the last unit of ranges as `Policy.to_json` writes them; 0 for none. No policy is built."""
    last = ranges.rpartition(",")[2].rpartition("-")[2]
    return int(last) + 1 if last else 0


def _note_sizes(sizes: dict[str, dict[str, int]], space: str, found: Mapping[str, int]) -> None:
    known = sizes.setdefault(space, {})
    for name, size in found.items():
        if size > known.get(name, 0):
            known[name] = size


def _read_policies(path: Path, remarks: list[str]) -> tuple[tuple[float | None, Policy], ...]:
    try:
        if (path / FAMILY_FILE).exists():
            members = json.loads((path / FAMILY_FILE).read_bytes())["members"]
            return tuple((float(member["cost_ratio"]), Policy.from_json(member["policy"])) for member in members)
        return ((None, Policy.from_json(json.loads((path / POLICY_FILE).read_bytes()))),)
    except UNREADABLE as error:
        remarks.append(f"what {path} keeps of its groups is not shown, as its policy can't be read: {_one_line(error)}")
        return ()


def _read_learned(path: Path, config: Mapping[str, Any]) -> str:
    try:
        learned = json.loads((path / LEARNED_FILE).read_bytes())["run"]
    except UNREADABLE:
        return ""
    return "" if learned in (config.get("run_name"), path.name) else str(learned)


def _read_overrides(path: Path) -> tuple[str, ...] | None:
    try:
        overrides = yaml.load((path / OVERRIDES_FILE).read_text(), Loader=_YamlLoader)
    except UNREADABLE:
        return None
    return tuple(map(str, overrides)) if isinstance(overrides, list) else None


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if len(text) <= 100 else f"{type(error).__name__}: {text[:97]}…"
