"""Runs side by side at several budgets learn once, and say so; nothing else is taken over."""

import json
from pathlib import Path
from typing import Any

import pytest
from processes import Command
from quick import QUICK

from compsearch import job
from compsearch.composition import compose_config
from compsearch.recorder import read_trials
from compsearch.run_folder import CONFIG_FILE, SUMMARY_FILE, RunFolder
from compsearch.space import Policy
from compsearch.summary import Summary
from compsearch.trial import Trial

FAST = [
    *QUICK,
    "searcher=legr",
    "searcher.num_trials=4",
    "searcher.evolution.population_size=3",
    "searcher.evolution.sample_size=2",
    "model.weights=random",
    "finalist.num=1",
]


@pytest.fixture(autouse=True)
def _no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "draw_run", lambda *arguments: None)


def run(folder: Path, name: str, *options: str, reuse: bool = True) -> Summary:
    """The run `name` of a sweep into `folder`."""
    return job.run(compose_config([*FAST, *options, f"run_name={name}"]), folder / name, reuse=reuse)


def trials(folder: Path) -> list[Trial]:
    return read_trials(folder / "trials.jsonl")


def learned(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "learned.json").read_text())
    return found


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one finished run in it, at cost_ratio 0.4."""
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "draw_run", lambda *arguments: None)
        run(folder, "first", "budget.cost_ratio=0.4")
    return folder


def beside(results: Path, tmp_path: Path) -> Path:
    """A copy of `results` to add runs to."""
    folder = tmp_path / "results"
    (folder / "first").mkdir(parents=True)
    for file in (results / "first").iterdir():
        if file.name != ".lock":
            (folder / "first" / file.name).write_bytes(file.read_bytes())
    return folder


def test_a_sweep_learns_once_and_says_so(tmp_path: Path) -> None:
    sweep = Command(tmp_path, ["-m", "budget.cost_ratio=0.3,0.5", *FAST])
    out, err = sweep.communicate()
    assert sweep.returncode == 0, err
    first, second = sorted((tmp_path / "results").glob("legr-*"))
    assert "macs0.3" in first.name
    assert "macs0.5" in second.name
    assert len(trials(first)) == 4
    taken_over, identity = trials(second)
    assert 0.3 < taken_over.cost_ratio <= 0.5
    chosen = json.loads((first / "policy.json").read_text())
    assert next(trial.genome for trial in trials(first) if trial.policy.to_json() == chosen) == taken_over.genome
    assert identity.genome == trials(first)[0].genome
    assert f"nothing to learn: {first.name} did at cost_ratio 0.3" in out + err
    notes = json.loads((second / SUMMARY_FILE).read_text())["notes"]
    assert any(f"nothing was learned here: {first.name} did, at cost_ratio 0.3" in note for note in notes)


def test_a_run_takes_over_what_was_learned_beside_it(results: Path, tmp_path: Path) -> None:
    folder = beside(results, tmp_path)
    summary = run(folder, "second", "budget.cost_ratio=0.6")
    trial, identity = trials(folder / "second")
    assert trial.genome == learned(folder / "first")["genome"]
    assert identity.genome == trials(folder / "first")[0].genome != trial.genome
    assert summary.search_cost.num_trials == 2
    source = Policy.from_json(json.loads((folder / "first" / "policy.json").read_text()))
    kept = dict(trial.policy.kept)
    assert all(set(units) <= set(kept[name]) for name, units in source.kept)
    # The origin is handed on, not the run in between.
    run(folder, "third", "budget.cost_ratio=0.8")
    assert learned(folder / "third") == learned(folder / "first")
    assert learned(folder / "third")["run"] == "first"


def test_plain_importance_is_kept_where_it_does_better_than_what_was_learned(results: Path, tmp_path: Path) -> None:
    folder = beside(results, tmp_path)
    notes, kept = {}, {}
    for ratio in (0.6, 0.7, 0.8, 0.9):
        found = run(folder, f"at {ratio}", f"budget.cost_ratio={ratio}")
        best = max(trials(folder / f"at {ratio}"), key=lambda trial: trial.objective or 0.0)
        assert json.loads((folder / f"at {ratio}" / "policy.json").read_text()) == best.policy.to_json()
        kept[ratio] = best.genome == trials(folder / "first")[0].genome
        notes[ratio] = any("plain importance did better" in note for note in found.notes)
        assert learned(folder / f"at {ratio}") == learned(folder / "first")
    assert notes == kept
    assert len(set(kept.values())) == 2


def test_a_family_takes_over_what_was_learned_at_its_lowest_budget_or_below(results: Path, tmp_path: Path) -> None:
    folder = beside(results, tmp_path)
    summary = run(folder, "family", "budget.cost_ratios=[0.4,0.8]")
    assert summary.search_cost.num_trials == 2
    assert len(summary.family) == 2
    assert len(trials(folder / "family")) == 3


def test_what_is_learned_after_it_matters_for_nothing(results: Path, tmp_path: Path) -> None:
    folder = beside(results, tmp_path)
    options = ["finetune.lr=0.5", "finalist.repairs=2", "latency.warmup=2"]
    assert run(folder, "second", "budget.cost_ratio=0.5", *options).search_cost.num_trials == 2


@pytest.mark.parametrize(
    "options",
    [
        ["budget.cost_ratio=0.35"],
        ["budget.cost_ratios=[0.35,0.8]"],
        ["budget=params", "budget.cost_ratio=0.6"],
        ["budget.cost_ratio=0.6", "seed=1"],
        ["budget.cost_ratio=0.6", "model.build.depth=14"],
        ["budget.cost_ratio=0.6", "finalist.num=2"],  # which of the finalists is kept is learned too
        ["budget.cost_ratio=0.6", "recover@finalist.recover=none"],
        ["budget.cost_ratio=0.6", "importance=l1"],
        ["budget.cost_ratio=0.6", "importance.reduction=max"],
        ["budget.cost_ratio=0.6", "recover=none"],
        ["budget.cost_ratio=0.6", "searcher.fitness=accuracy"],
        ["budget.cost_ratio=0.6", "searcher.evolve_only=alpha"],
        ["budget.cost_ratio=null", "budget.limit=600000"],
    ],
    ids=" ".join,
)
def test_a_run_that_differs_in_more_than_a_larger_budget_learns_for_itself(
    results: Path, tmp_path: Path, options: list[str]
) -> None:
    folder = beside(results, tmp_path)
    summary = run(folder, "second", *options)
    assert summary.search_cost.num_trials == 4
    assert not any("nothing was learned" in note for note in summary.notes)


def test_a_run_from_before_an_option_is_a_source_for_those_that_leave_it_null(results: Path, tmp_path: Path) -> None:
    folder = beside(results, tmp_path)
    config = folder / "first" / CONFIG_FILE
    lines = config.read_text().splitlines(keepends=True)
    older = [line for line in lines if "evolve_only" not in line]
    assert len(older) == len(lines) - 1
    config.write_text("".join(older))
    assert run(folder, "second", "budget.cost_ratio=0.6").search_cost.num_trials == 2


def test_a_half_of_the_map_is_taken_over_as_it_was_learned(tmp_path: Path) -> None:
    run(tmp_path, "first", "budget.cost_ratio=0.4", "searcher.evolve_only=alpha")
    summary = run(tmp_path, "second", "budget.cost_ratio=0.6", "searcher.evolve_only=alpha")
    assert summary.search_cost.num_trials <= 2
    trial = trials(tmp_path / "second")[0]
    assert trial.genome == learned(tmp_path / "first")["genome"]
    assert set(trial.genome["kappa"].values()) == {0.0}


def test_a_single_run_learns_for_itself(results: Path, tmp_path: Path) -> None:
    folder = beside(results, tmp_path)
    assert run(folder, "second", "budget.cost_ratio=0.6", reuse=False).search_cost.num_trials == 4


def test_an_unfinished_or_unreadable_run_is_no_source(results: Path, tmp_path: Path) -> None:
    for index, (name, content) in enumerate(((SUMMARY_FILE, None), (CONFIG_FILE, "{"), ("learned.json", "{"))):
        folder = beside(results, tmp_path / str(index))
        file = folder / "first" / name
        if content is None:
            file.unlink()
        else:
            file.write_text(content)
        assert run(folder, "second", "budget.cost_ratio=0.6").search_cost.num_trials == 4, name


def test_of_several_sources_the_nearest_budget_counts(results: Path, tmp_path: Path) -> None:
    folder = beside(results, tmp_path)
    run(folder, "lower", "budget.cost_ratio=0.3")
    run(folder, "higher", "budget.cost_ratio=0.7", reuse=False)
    run(folder, "second", "budget.cost_ratio=0.6")
    assert learned(folder / "second")["run"] == "first"


def test_what_is_taken_over_is_decided_once(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    folder = beside(results, tmp_path)
    finish = RunFolder.finish

    def killing(run_folder: RunFolder, name: str, result: Any) -> None:
        finish(run_folder, name, result)
        if name == "finalist":
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "finish", killing)
        with pytest.raises(Killed):
            run(folder, "second", "budget.cost_ratio=0.6")
    (folder / "first" / SUMMARY_FILE).unlink()
    # Even when it goes on alone, with the source gone.
    assert run(folder, "second", "budget.cost_ratio=0.6", reuse=False).search_cost.num_trials == 2
    trial = trials(folder / "second")[0]
    assert trial.genome == learned(folder / "first")["genome"]
