"""The search loop: restore, step, check, record, show."""

from __future__ import annotations

import logging
import math

from compsearch.budget import Budget
from compsearch.garbage import only_new_objects
from compsearch.progress import Progress
from compsearch.protocols import Searcher
from compsearch.recorder import Recorder
from compsearch.trial import Trial

_logger = logging.getLogger(__name__)


class Interrupted(Exception):
    """The user pressed Ctrl-C; everything up to the last finished step is saved. The message says how to go on."""


def search(searcher: Searcher, recorder: Recorder, *, budget: Budget | None, progress: bool = True) -> list[Trial]:
    """Takes the steps of `searcher` that the run of `recorder` has not taken yet; returns the whole run's trials.

    A run that was interrupted, however, ends up with the trials of one that was not. `budget` is None for searchers
    that have no limit; else every trial that did not fail must be within it, which searchers guarantee.

    Raises ValueError for a searcher without steps, RunFolderError (a ValueError) when the folder cannot be read or
    written, Interrupted on Ctrl-C.
    """
    num_steps = searcher.num_steps
    if num_steps < 1:
        raise ValueError(f"`num_steps >= 1` must hold, but got {num_steps=}")
    trials = recorder.restore(searcher)
    first = recorder.num_steps
    if 0 < first < num_steps:
        _logger.info("resuming %s after step %d of %d", recorder.folder.path, first, num_steps)
    try:
        with only_new_objects(), Progress(num_steps=num_steps, first=first, trials=trials, enabled=progress) as bar:
            for _ in range(first, num_steps):
                found = searcher.step()
                for trial in found:
                    _check(trial, budget)
                recorder.record(found, searcher)
                trials.extend(found)
                bar.update(found)
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted after step {recorder.num_steps} of {num_steps}; {recorder.folder.path} holds everything up "
            "to there, and the same command goes on from it"
        ) from None
    return trials


def _check(trial: Trial, budget: Budget | None) -> None:
    assert trial.objective is None or math.isfinite(trial.objective), f"a failed trial has no objective, got {trial}"
    if budget is None or trial.objective is None:
        return  # without an objective a trial proposes nothing: being over the budget may be why it failed
    cost = trial.measurement.costs.get(budget.resource)
    # Without the cost itself, the ratio decides; it went through a division, hence the tolerance.
    within = trial.cost_ratio <= budget.cost_ratio * (1 + 1e-9) if cost is None else budget.allows(cost)
    assert within, (
        f"a searcher must stay within {budget}, but proposed {trial.policy} at {trial.cost_ratio:.6f} of dense"
    )
