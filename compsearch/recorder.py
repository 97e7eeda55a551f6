"""What a search leaves on the disk as it goes, and how it goes on from there.

trials.jsonl gets one line per trial, checkpoint.pt the searcher's state after every step. A step counts once its
checkpoint is renamed into place; lines beyond the checkpoint belong to a step that was cut short, are dropped on
resuming, and come again, equal, when the searcher repeats the step.

Both are flushed to the disk at most once per second (`SYNC_EVERY_S`): a kill never needs the flush, only a power cut
does, and steps shorter than a second are cheap to repeat. Measured on ext4 with 2 MB of state: 5 ms per step without
the flush, 16 ms with it.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from compsearch import atomic
from compsearch.protocols import Searcher
from compsearch.run_folder import RunFolder, RunFolderError, disk_errors
from compsearch.space import Policy
from compsearch.trial import Measurement, Trial

TRIALS_FILE = "trials.jsonl"
CHECKPOINT_FILE = "checkpoint.pt"
SYNC_EVERY_S = 1.0

_logger = logging.getLogger(__name__)


class Recorder:
    """Writes the trials and the searcher's state of one run into its `folder`, and reads them back."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        #: Finished steps, and seconds of search so far (earlier processes' included): on the clock, of the processor.
        self.num_steps = 0
        self.wall_s = 0.0
        self.cpu_s = 0.0
        self._num_trials = 0
        self._clock = time.monotonic()
        self._cpu_clock = _processor_s()
        self._synced = -math.inf

    def restore(self, searcher: Searcher) -> list[Trial]:
        """Puts `searcher` and the files back to the last finished step; returns the trials up to it.

        A new run has none. Logs one line when trials are dropped. Raises RunFolderError when checkpoint.pt cannot be
        read, or trials.jsonl has lost trials that it knows of.
        """
        self._clock, self._cpu_clock = time.monotonic(), _processor_s()
        checkpoint = self._read_checkpoint()
        if checkpoint is not None:
            searcher.load_state_dict(checkpoint["searcher"])
            self.num_steps = checkpoint["step"]
            self._num_trials = checkpoint["num_trials"]
            self.wall_s, self.cpu_s = checkpoint["wall_s"], checkpoint["cpu_s"]
        return self._drop_unfinished()

    def record(self, trials: Sequence[Trial], searcher: Searcher) -> None:
        """Saves the `trials` of the step that `searcher` has just taken.

        Raises RunFolderError when the disk refuses; the folder then holds the run up to the step before.
        """
        now, cpu_now = time.monotonic(), _processor_s()
        wall_s, cpu_s = self.wall_s + now - self._clock, self.cpu_s + cpu_now - self._cpu_clock
        sync = now - self._synced >= SYNC_EVERY_S
        lines = [
            json.dumps(_to_row(trial, step=self.num_steps, index=index, wall_s=wall_s, cpu_s=cpu_s), allow_nan=False)
            for index, trial in enumerate(trials, start=self._num_trials)
        ]
        state = {
            "step": self.num_steps + 1,
            "num_trials": self._num_trials + len(trials),
            "wall_s": wall_s,
            "cpu_s": cpu_s,
            "searcher": searcher.state_dict(),
        }
        with disk_errors(self.folder.path):
            # The trials first: a checkpoint never knows of trials that are not there.
            atomic.append_bytes(self._trials_path, "".join(f"{line}\n" for line in lines).encode(), sync=sync)
            atomic.write_torch(self._checkpoint_path, state, sync=sync)
        self.num_steps += 1
        self._num_trials += len(trials)
        self.wall_s, self._clock = wall_s, now
        self.cpu_s, self._cpu_clock = cpu_s, cpu_now
        if sync:
            self._synced = now

    @property
    def _trials_path(self) -> Path:
        return self.folder.path / TRIALS_FILE

    @property
    def _checkpoint_path(self) -> Path:
        return self.folder.path / CHECKPOINT_FILE

    def _read_checkpoint(self) -> dict[str, Any] | None:
        try:
            # To the CPU: a run may be resumed on another device, and generators' states live there.
            checkpoint = torch.load(self._checkpoint_path, map_location="cpu", weights_only=True)
            # Runs of earlier versions did not count the processor's seconds.
            checkpoint.setdefault("cpu_s", math.nan)
            return {key: checkpoint[key] for key in ("step", "num_trials", "wall_s", "cpu_s", "searcher")}
        except FileNotFoundError:
            return None
        except Exception as error:  # rubbish leads torch's reader to raise anything, an IndexError for one
            raise RunFolderError(
                f"{self._checkpoint_path} cannot be read ({type(error).__name__}); delete {self.folder.path} to start "
                "over, or give another run_name"
            ) from error

    def _drop_unfinished(self) -> list[Trial]:
        """Cuts trials.jsonl behind the last trial of the last finished step."""
        try:
            content = self._trials_path.read_bytes()
        except FileNotFoundError:
            content = b""
        lines = content.splitlines(keepends=True)
        kept, dropped = lines[: self._num_trials], lines[self._num_trials :]
        if len(kept) < self._num_trials or (kept and not kept[-1].endswith(b"\n")):
            found = sum(line.endswith(b"\n") for line in kept)
            raise RunFolderError(
                f"{self._trials_path} must hold the {self._num_trials} trials that {CHECKPOINT_FILE} was written "
                f"after, but holds {found}; delete {self.folder.path} to start over"
            )
        if dropped:
            with disk_errors(self._trials_path):
                os.truncate(self._trials_path, sum(map(len, kept)))
            _logger.warning(
                "dropped %d trials of a step that was cut short from %s; the step is repeated",
                len(dropped),
                self._trials_path,
            )
        return [trial for _, trial in _parse(kept, self._trials_path)]


def _processor_s() -> float:
    """Seconds that this process and its finished children have kept processors busy, all threads together."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def read_trials(path: Path) -> list[Trial]:
    """The trials of a trials.jsonl, a half-written last line excepted; numbers that were not finite come back as NaN.

    Raises RunFolderError naming the line that is not a trial, FileNotFoundError without a file.
    """
    return [trial for _, trial in _read(path)]


def trials_frame(path: Path) -> pd.DataFrame:
    """The trials of a trials.jsonl as a table, one row each.

    Columns: step, index, objective, accuracy, top5, loss, split, num_images, cost_ratio, one per resource (macs, …),
    failure, wall_s, cpu_s (absent in runs of earlier versions), counts (dict of group to kept units), policy (`Policy`)
    and genome. Raises as `read_trials`.
    """
    rows = []
    for row, trial in _read(path):
        plain = {key: value for key, value in row.items() if key not in {"costs", "counts", "policy"}}
        rows.append({**plain, **row["costs"], "counts": row["counts"], "policy": trial.policy})
    frame = pd.DataFrame(rows)
    for column in ("objective", "accuracy", "top5", "loss"):
        if column in frame:
            frame[column] = frame[column].astype("float64")  # None, when a trial failed, becomes NaN
    return frame


def _to_row(trial: Trial, *, step: int, index: int, wall_s: float, cpu_s: float) -> dict[str, Any]:
    measurement = trial.measurement
    row = {
        "step": step,
        "index": index,
        "objective": trial.objective,
        "accuracy": measurement.accuracy,
        "top5": measurement.top5,
        "loss": measurement.loss,
        "split": measurement.split,
        "num_images": measurement.num_images,
        "cost_ratio": trial.cost_ratio,
        "costs": dict(measurement.costs),
        "failure": trial.failure,
        "wall_s": round(wall_s, 3),
        "cpu_s": round(cpu_s, 3),
        "counts": trial.policy.counts,
        "policy": trial.policy.to_json(),
        "genome": {name: dict(genes) for name, genes in trial.genome.items()},
    }
    return {key: atomic.finite_or_none(value) for key, value in row.items()}


def _to_trial(row: Mapping[str, Any]) -> Trial:
    def number(value: float | None) -> float:
        return math.nan if value is None else value

    return Trial(
        policy=Policy.from_json(row["policy"]),
        measurement=Measurement(
            split=row["split"],
            num_images=row["num_images"],
            accuracy=number(row["accuracy"]),
            top5=number(row["top5"]),
            loss=number(row["loss"]),
            costs={resource: number(cost) for resource, cost in row["costs"].items()},
        ),
        objective=row["objective"],
        cost_ratio=number(row["cost_ratio"]),
        failure=row["failure"],
        genome=row.get("genome", {}),
    )


def _read(path: Path) -> Iterator[tuple[dict[str, Any], Trial]]:
    lines = path.read_bytes().splitlines(keepends=True)
    return _parse([line for line in lines if line.endswith(b"\n")], path)


def _parse(lines: Sequence[bytes], path: Path) -> Iterator[tuple[dict[str, Any], Trial]]:
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            yield row, _to_trial(row)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunFolderError(
                f"a line of {path} must be one trial, but line {number} is not: {error!r:.80}"
            ) from error
