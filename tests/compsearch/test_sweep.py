import json
from pathlib import Path

import pytest

from compsearch.summary import Latency, NetworkRow, SearchCost, Summary
from compsearch.sweep import ENVIRONMENT, Ledger, Outcome, Status, Watcher, outcome_text, result_text


def outcome(job: int, kind: str = "done", seconds: float = 60.0, text: str = "fine") -> Outcome:
    return Outcome(job, f"results/run{job}", kind, seconds, text)


def status(*outcomes: Outcome, total: int = 4) -> Status:
    return Status((("seed=0",),) * total, 1000.0, {each.job: each.run for each in outcomes}, outcomes)


def test_what_jobs_write_is_what_is_read(tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path, overrides=[["seed=0"], ["seed=1"]])
    ledger.start(0, tmp_path / "a")
    ledger.start(1, tmp_path / "b")
    ledger.end(outcome(1, "failed", 2.0, "no images"))
    read = Ledger(ledger.path).read()
    assert read.overrides == (("seed=0",), ("seed=1",))
    assert read.started == {0: str(tmp_path / "a"), 1: str(tmp_path / "b")}
    assert read.outcomes == (outcome(1, "failed", 2.0, "no images"),)


def test_a_line_that_is_being_written_is_left_for_later(tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path, overrides=[["seed=0"]])
    ledger.end(outcome(0))
    with ledger.path.open("a") as file:
        file.write('{"event": "end", "jo')
    assert len(ledger.read().outcomes) == 1


def test_two_sweeps_write_to_two_ledgers_that_no_report_takes_for_runs(tmp_path: Path) -> None:
    first = Ledger.create(tmp_path, overrides=[])
    assert first.path.parent.name.startswith(".")
    assert json.loads(first.path.read_text())["event"] == "sweep"


def test_a_process_finds_its_sweep_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    assert Ledger.of_environment() is None
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "ledger"))
    assert Ledger.of_environment() == Ledger(tmp_path / "ledger")


def test_progress_counts_what_is_done_found_and_failed() -> None:
    line = status(outcome(0), outcome(1, "found"), outcome(2, "failed")).line(now=1120.0)
    assert line == "sweep: 3 of 4 runs, 1 finished before, 1 failed, 02:00 so far, about 01:00 left"


def test_time_left_is_not_guessed_from_runs_that_took_none() -> None:
    assert "left" not in status(outcome(0, "found")).line(now=1001.0)
    assert "left" not in status(*(outcome(job) for job in range(4))).line(now=1001.0)


def test_the_end_names_every_failure_and_what_was_not_reached() -> None:
    text = status(outcome(0), outcome(2, "failed", text="no images")).report()
    assert text.splitlines()[0] == "4 runs: 1 done, 0 finished before, 1 failed, 2 not reached"
    assert "  failed: run2: no images" in text
    assert "the same command runs again what failed" in text
    assert "what a wrong setting broke fails again until that is mended" in text
    assert "the same command" not in status(outcome(0)).report()


def test_one_line_says_what_a_run_found() -> None:
    def row(name: str, macs: float, accuracy: float) -> NetworkRow:
        return NetworkRow(name, macs, 10, accuracy_test=accuracy, latency=Latency(1.0, 1.0, 1.0, "here"))

    networks = (row("dense", 200, 0.9), row("compressed", 100, 0.8), row("fine-tuned", 100, 0.85))
    cost = SearchCost(1, 0, 1, 1.0)
    summary = Summary("x", "AMC", "resnet20", "digits", 0, ("macs", 0.6), networks, cost)
    assert result_text(summary) == "0.500 of FLOPs (MACs), test 80.00% → 85.00%"
    assert outcome_text(outcome(3, text="found it")) == "run3: found it (01:00)"
    assert outcome_text(outcome(3, "found")) == "run3: fine (finished before)"
    assert outcome_text(outcome(3, "failed", text="no images")) == "FAILED run3: no images"


def test_a_watcher_shows_every_end_once(tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path, overrides=[["seed=0"], ["seed=1"]])
    shown: list[str] = []
    with Watcher(ledger, shown.append):
        ledger.end(outcome(0))
    ledger.end(outcome(1))
    assert len(shown) == 1
    assert "run0" in shown[0]
    assert "1 of 2 runs" in shown[0]
