"""How far a search is, for the person who waits: a bar on a terminal, a log line now and then elsewhere."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from compsearch.trial import Trial, best_trial

LOG_EVERY_S = 30.0

_logger = logging.getLogger(__name__)


class Progress:
    """Shows the best trial so far and the time left, from step `first` of `num_steps` on.

    `enabled=False` shows nothing. Without a terminal on standard error, a log line comes every tenth of the steps or
    every 30 s, whichever is sooner.
    """

    def __init__(self, *, num_steps: int, first: int, trials: Sequence[Trial], enabled: bool) -> None:
        self._num_steps = num_steps
        self._first = first
        self._done = first
        self._best = best_trial(trials)
        self._num_failed = sum(trial.objective is None for trial in trials)
        self._enabled = enabled
        self._bar: tqdm[Any] | None = None
        self._stack = contextlib.ExitStack()
        self._begun = self._logged = time.monotonic()

    def __enter__(self) -> Self:
        self._begun = self._logged = time.monotonic()
        if self._enabled and sys.stderr.isatty():
            self._stack.enter_context(logging_redirect_tqdm())  # log lines go above the bar, not through it
            self._bar = self._stack.enter_context(
                tqdm(
                    total=self._num_steps,
                    initial=self._first,
                    unit="step",
                    file=sys.stderr,
                    dynamic_ncols=True,
                    bar_format="{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
                )
            )
            self._bar.set_postfix_str(self._status())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def update(self, trials: Sequence[Trial]) -> None:
        """One more step is done, and these are its trials."""
        self._done += 1
        self._best = best_trial([*([self._best] if self._best else []), *trials])
        self._num_failed += sum(trial.objective is None for trial in trials)
        if self._bar is not None:
            self._bar.set_postfix_str(self._status(), refresh=False)
            self._bar.update()
        elif self._enabled:
            self._log()

    def _log(self) -> None:
        now = time.monotonic()
        is_tenth = self._done * 10 // self._num_steps > (self._done - 1) * 10 // self._num_steps
        if not is_tenth and now - self._logged < LOG_EVERY_S:
            return
        self._logged = now
        left_s = (now - self._begun) / (self._done - self._first) * (self._num_steps - self._done)
        left = f", {tqdm.format_interval(left_s)} left" if self._done < self._num_steps else ""
        _logger.info("step %d of %d: %s%s", self._done, self._num_steps, self._status(), left)

    def _status(self) -> str:
        failed = f", {self._num_failed} failed" if self._num_failed else ""
        if self._best is None or self._best.objective is None:
            return f"no result yet{failed}"
        accuracy = f"accuracy {self._best.measurement.accuracy:.2%}"
        return f"best {self._best.objective:.4g} ({accuracy}, cost_ratio {self._best.cost_ratio:.4f}){failed}"
