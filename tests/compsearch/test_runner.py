"""The run loop and its record: what is interrupted anywhere goes on as if nothing had happened."""

import dataclasses
import functools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from compsearch import atomic
from compsearch.collaborators import collaborate
from compsearch.recorder import Recorder, read_trials, trials_frame
from compsearch.run_folder import RunFolder, RunFolderError
from compsearch.runner import Interrupted, search
from compsearch.toy import FailingEvaluator, collaborators
from compsearch.trial import Trial
from searchers.random_search import RandomSearch

STEPS = 6


class Cut(BaseException):
    """Stands for a kill: nothing may catch it."""


def searcher(num_steps: int = STEPS, **changes: Any) -> RandomSearch:
    return make(RandomSearch, num_steps, **changes)


def make(kind: type[RandomSearch], num_steps: int, **changes: Any) -> RandomSearch:
    factory = functools.partial(kind, num_steps=num_steps)
    return factory(**collaborate(factory, collaborators() | changes))


def run(path: Path, **changes: Any) -> list[Trial]:
    given = collaborators() | changes
    with RunFolder(path, {"seed": 0}) as folder:
        return search(searcher(**changes), Recorder(folder), budget=given["budget"], progress=False)


def lines(path: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (path / "trials.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in {"wall_s", "cpu_s"}} for row in rows]


@pytest.mark.parametrize("call", ["append_bytes", "write_torch"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("at", [1, 3])
def test_a_run_cut_anywhere_equals_the_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, when: str, at: int
) -> None:
    whole = run(tmp_path / "whole")
    real, count = getattr(atomic, call), 0

    def cut(*arguments: Any, **options: Any) -> None:
        nonlocal count
        count += 1
        if count == at and when == "before":
            raise Cut
        real(*arguments, **options)
        if count == at:
            raise Cut

    monkeypatch.setattr(atomic, call, cut)
    with pytest.raises(Cut):
        run(tmp_path / "cut")
    monkeypatch.undo()
    assert run(tmp_path / "cut") == whole
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    assert len(whole) == STEPS


def test_losing_the_searchers_state_would_show(tmp_path: Path) -> None:
    """The negative control: a searcher that starts again repeats itself."""
    whole = run(tmp_path / "whole")
    fresh = searcher()
    assert [trial for _ in range(2) for trial in fresh.step()] == whole[:2]
    assert whole[:2] != whole[2:4]


def test_a_half_written_last_line_is_dropped(tmp_path: Path) -> None:
    whole = run(tmp_path / "run")
    with (tmp_path / "run" / "trials.jsonl").open("a") as file:
        file.write('{"step": 6, "ind')
    assert run(tmp_path / "run") == whole
    assert len(lines(tmp_path / "run")) == STEPS


def test_lost_trials_are_refused(tmp_path: Path) -> None:
    run(tmp_path / "run")
    path = tmp_path / "run" / "trials.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-2]))
    with pytest.raises(RunFolderError, match="must hold the 6 trials"):
        run(tmp_path / "run")


def test_an_unreadable_checkpoint_is_one_line(tmp_path: Path) -> None:
    run(tmp_path / "run")
    (tmp_path / "run" / "checkpoint.pt").write_bytes(b"rubbish")
    with pytest.raises(RunFolderError, match=r"checkpoint.pt cannot be read") as caught:
        run(tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_ctrl_c_says_where_it_stopped_and_loses_nothing(tmp_path: Path) -> None:
    class Pressed(RandomSearch):
        def step(self) -> list[Trial]:
            if self.rng.bit_generator.state == stop_at:
                raise KeyboardInterrupt
            return super().step()

    reference = searcher()
    for _ in range(2):
        reference.step()
    stop_at = reference.rng.bit_generator.state
    given = collaborators()
    with RunFolder(tmp_path / "run", {"seed": 0}) as folder:
        pressed = make(Pressed, STEPS)
        with pytest.raises(Interrupted, match="after step 2 of 6"):
            search(pressed, Recorder(folder), budget=given["budget"], progress=False)
    assert run(tmp_path / "run") == run(tmp_path / "whole")


def test_a_trial_that_fails_is_recorded_and_the_search_goes_on(tmp_path: Path) -> None:
    given = collaborators()
    evaluator = FailingEvaluator(given["evaluator"], every=2)
    found = run(tmp_path / "run", evaluator=evaluator)
    assert len(found) == STEPS
    assert [trial.objective is None for trial in found] == [True, False] * 3
    assert lines(tmp_path / "run")[0]["accuracy"] is None
    assert lines(tmp_path / "run")[0]["failure"]
    read = read_trials(tmp_path / "run" / "trials.jsonl")
    assert math.isnan(read[0].measurement.accuracy)
    assert read[1] == found[1]


def test_no_steps_are_refused(tmp_path: Path) -> None:
    given = collaborators()
    nothing = searcher()
    nothing.num_steps = 0
    with (
        RunFolder(tmp_path / "run", {}) as folder,
        pytest.raises(ValueError, match=r"num_steps >= 1"),
    ):
        search(nothing, Recorder(folder), budget=given["budget"], progress=False)


def test_a_trial_over_the_budget_is_a_bug(tmp_path: Path) -> None:
    class Over(RandomSearch):
        def step(self) -> Sequence[Trial]:  # type: ignore[override]
            [trial] = super().step()
            return [dataclasses.replace(trial, cost_ratio=0.9)]

    given = collaborators()
    over = make(Over, 1)
    with RunFolder(tmp_path / "run", {}) as folder, pytest.raises(AssertionError, match="within"):
        search(over, Recorder(folder), budget=given["budget"], progress=False)


def test_a_failed_trial_may_be_over_the_budget_and_is_read_back(tmp_path: Path) -> None:
    class Over(RandomSearch):
        def step(self) -> Sequence[Trial]:  # type: ignore[override]
            [trial] = super().step()
            return [dataclasses.replace(trial, cost_ratio=0.9, objective=None, failure="over the budget")]

    with RunFolder(tmp_path / "run", {}) as folder:
        found = search(make(Over, 2), Recorder(folder), budget=collaborators()["budget"], progress=False)
    assert read_trials(tmp_path / "run" / "trials.jsonl") == found


def test_the_table_has_a_row_per_trial(tmp_path: Path) -> None:
    found = run(tmp_path / "run")
    frame = trials_frame(tmp_path / "run" / "trials.jsonl")
    assert list(frame["accuracy"]) == [trial.measurement.accuracy for trial in found]
    assert list(frame["policy"]) == [trial.policy for trial in found]
    assert (frame["cost_ratio"] <= 0.5).all()
