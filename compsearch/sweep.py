"""A sweep: many runs of one command, what became of each, and how far it all is.

Every job of a sweep, in whichever process or on whichever machine, adds lines to one file in the results folder; so the
same few lines of code tell progress and outcome whatever launched the jobs.
"""

from __future__ import annotations

import dataclasses
import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

from compsearch import atomic
from compsearch.report.style import RESOURCE_LABELS
from compsearch.run_folder import CONFIG_FILE, disk_errors
from compsearch.summary import Summary

#: The environment variable that tells a job's process which sweep it belongs to.
ENVIRONMENT = "COMPSEARCH_SWEEP"
LEDGERS_FOLDER = ".sweeps"
_POLL_S = 0.5


@dataclass(frozen=True)
class Outcome:
    """What became of job number `job`: ``done`` in `seconds`, ``found`` finished already, or ``failed`` with a reason.

    `run` is its folder; `text` says in a few words what it found, or why it failed.
    """

    job: int
    run: str
    kind: str
    seconds: float
    text: str


@dataclass(frozen=True)
class Ledger:
    """The file that the jobs of one sweep write to: how many there are, and a line for each that started or ended.

    Lines are appended whole, so jobs on several machines can share it through a common file system.
    """

    path: Path

    @classmethod
    def create(cls, results: Path, *, overrides: Sequence[Sequence[str]]) -> Ledger:
        """A new ledger in the folder `results`, for jobs with these `overrides`, in the order they start."""
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.jsonl"
        path = (results / LEDGERS_FOLDER / name).absolute()
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        ledger = cls(path)
        ledger._append({"event": "sweep", "overrides": [list(each) for each in overrides], "time": time.time()})
        return ledger

    @classmethod
    def of_environment(cls) -> Ledger | None:
        """The ledger of the sweep that this process works for, None outside a sweep."""
        path = os.environ.get(ENVIRONMENT, "")
        return cls(Path(path)) if path else None

    def start(self, job: int, run: Path) -> None:
        """Says that job number `job` works in the folder `run`."""
        self._append({"event": "start", "job": job, "run": str(run)})

    def end(self, outcome: Outcome) -> None:
        """Says what became of a job."""
        self._append({"event": "end", **dataclasses.asdict(outcome)})

    def read(self) -> Status:
        """How the sweep stands."""
        # A line without its end is being written.
        lines = self.path.read_text().splitlines(keepends=True)
        rows = [json.loads(line) for line in lines if line.endswith("\n")]
        ends = [{key: value for key, value in row.items() if key != "event"} for row in rows if row["event"] == "end"]
        started = {row["job"]: row["run"] for row in rows if row["event"] == "start"}
        return Status(
            overrides=tuple(tuple(each) for each in rows[0]["overrides"]),
            begun=rows[0]["time"],
            started=started,
            outcomes=tuple(Outcome(**end) for end in ends),
        )

    def _append(self, row: Mapping[str, Any]) -> None:
        with disk_errors(self.path):
            atomic.append_bytes(self.path, f"{json.dumps(row)}\n".encode(), sync=False)


@dataclass(frozen=True)
class Status:
    """How a sweep stands: the `overrides` of its jobs, when it began, who started where, who ended how."""

    overrides: tuple[tuple[str, ...], ...]
    begun: float
    started: Mapping[int, str]
    outcomes: tuple[Outcome, ...]

    @property
    def total(self) -> int:
        return len(self.overrides)

    def of_kind(self, kind: str) -> list[Outcome]:
        """The outcomes of one kind, in the order they came."""
        return [outcome for outcome in self.outcomes if outcome.kind == kind]

    @property
    def runs(self) -> list[Path]:
        """The folders of the jobs that got anywhere, by job number."""
        return [Path(run) for _, run in sorted(self.started.items()) if (Path(run) / CONFIG_FILE).is_file()]

    @property
    def num_finished(self) -> int:
        """Jobs whose runs are finished, now or before."""
        return len(self.outcomes) - len(self.of_kind("failed"))

    def line(self, *, now: float) -> str:
        """How far the sweep is at the time `now` (`time.time`), in one line."""
        found, failed = self.of_kind("found"), self.of_kind("failed")
        parts = [f"{len(self.outcomes)} of {self.total} runs"]
        if found:
            parts.append(f"{len(found)} finished before")
        if failed:
            parts.append(f"{len(failed)} failed")
        elapsed, worked = now - self.begun, len(self.outcomes) - len(found)
        parts.append(f"{tqdm.format_interval(elapsed)} so far")
        left = self.total - len(self.outcomes)
        if worked and left:
            # Runs found finished took no time; parallel ones shared it, which `elapsed` counts once.
            parts.append(f"about {tqdm.format_interval(elapsed / worked * left)} left")
        return "sweep: " + ", ".join(parts)

    def report(self) -> str:
        """What became of it all, with a line for each failure."""
        done, found, failed = (len(self.of_kind(kind)) for kind in ("done", "found", "failed"))
        missing = self.total - len(self.outcomes)
        parts = [f"{done} done", f"{found} finished before", f"{failed} failed"]
        lines = [f"{self.total} runs: {', '.join([*parts, *([f'{missing} not reached'] if missing else [])])}"]
        lines += [f"  failed: {Path(outcome.run).name}: {outcome.text}" for outcome in self.of_kind("failed")]
        if failed:
            lines.append(
                "the same command runs again what failed, and nothing else; what a wrong setting broke fails again "
                "until that is mended"
            )
        return "\n".join(lines)


def result_text(summary: Summary) -> str:
    """What a run found, in a few words: achieved cost, accuracy before and after fine-tuning."""
    own = summary.network("compressed")
    if own is None:
        return "no network"
    resource = summary.budget[0] if summary.budget is not None else "macs"
    ratio = summary.ratios(own).get(resource)
    tuned = summary.network("fine-tuned")
    texts = [f"{ratio:.3f} of {RESOURCE_LABELS.get(resource, resource)}"] if ratio is not None else []
    if own.accuracy_test is not None:
        after = f" → {tuned.accuracy_test:.2%}" if tuned is not None and tuned.accuracy_test is not None else ""
        texts.append(f"test {own.accuracy_test:.2%}{after}")
    return ", ".join(texts)


def outcome_text(outcome: Outcome) -> str:
    """One line on a job's end."""
    name = Path(outcome.run).name
    if outcome.kind == "failed":
        return f"FAILED {name}: {outcome.text}"
    took = "finished before" if outcome.kind == "found" else tqdm.format_interval(outcome.seconds)
    return f"{name}: {outcome.text} ({took})"


class Watcher:
    """Shows the ends of jobs that other processes run, as they come, while the process that started them waits."""

    def __init__(self, ledger: Ledger, show: Callable[[str], None]) -> None:
        self._ledger = ledger
        self._show = show
        self._num_shown = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._show_new()

    def _watch(self) -> None:
        while not self._ended.wait(_POLL_S):
            self._show_new()

    def _show_new(self) -> None:
        status = self._ledger.read()
        for index in range(self._num_shown, len(status.outcomes)):
            upto = dataclasses.replace(status, outcomes=status.outcomes[: index + 1])
            self._show(f"{outcome_text(status.outcomes[index])}\n{upto.line(now=time.time())}")
        self._num_shown = len(status.outcomes)
