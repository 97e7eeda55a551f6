"""Pruning in stages: runs of their own, nested, resumable, and the last one is the result."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import compsearch
from compsearch import job
from compsearch.composition import compose_config
from compsearch.recorder import read_trials
from compsearch.run_folder import read_config

RUN = [
    "space=fine_grained",
    "searcher=random",
    "searcher.num_steps=2",
    "model=resnet20",
    "model.build.depth=8",
    "model.weights=random",
    "dataset.build.image_size=16",
    "calibration.num_images=64",
    "recover=none",
    "recover@finalist.recover=none",
    "finalist.num=1",
    "finetune.epochs=1",
    "latency.time_budget_s=0.05",
    "latency.repetitions=3",
    "budget=params",
    "budget.cost_ratio=0.2",
    "stages=[0.5,0.3,0.2]",
    "run_name=staged",
]
NAMES = ["stage1-0.5", "stage2-0.3", "stage3-0.2"]


def config(*changes: str) -> dict[str, Any]:
    return compose_config([*RUN, *changes])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stages") / "staged"
    job.run(config(), path)
    return path


def weights(path: Path, name: str = "model.pt") -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(path / name, weights_only=True)
    return {key: value for key, value in state.items() if value.dim() > 1}


def num_parameters(path: Path) -> int:
    state = torch.load(path / "model.pt", weights_only=True)
    kept = sum(int((value != 0).sum()) for value in weights(path).values())
    others = [
        value for key, value in state.items() if value.dim() == 1 and not key.endswith(("running_mean", "running_var"))
    ]
    return kept + sum(value.numel() for value in others)


def test_every_stage_is_a_run_within_its_own_budget_of_the_dense_network(folder: Path) -> None:
    for name, ratio in zip(NAMES, (0.5, 0.3, 0.2), strict=True):
        summary = json.loads((folder / name / "summary.json").read_text())
        dense, _, tuned = summary["networks"][:3]
        assert summary["budget"] == {"resource": "params", "cost_ratio": pytest.approx(ratio)}
        assert tuned["name"] == "fine-tuned"
        assert tuned["params"] <= ratio * dense["params"]
        assert num_parameters(folder / name) == tuned["params"]
        for trial in read_trials(folder / name / "trials.jsonl"):
            assert trial.cost_ratio <= ratio
        assert (folder / name / "pareto.png").exists()


def test_what_is_gone_stays_gone(folder: Path) -> None:
    for before, after in itertools.pairwise(NAMES):
        first, second = weights(folder / before), weights(folder / after)
        num_gone = 0
        for name, value in first.items():
            assert not second[name][value == 0].any()
            num_gone += int((second[name] == 0).sum()) - int((value == 0).sum())
        assert num_gone > 0


def test_a_stage_begins_with_the_weights_that_the_one_before_ended_with(folder: Path) -> None:
    for before, after in itertools.pairwise(NAMES):
        tuned, cut = weights(folder / before), weights(folder / after, "recovered.pt")
        for name, value in cut.items():
            kept = value != 0
            assert torch.equal(value[kept], tuned[name][kept])
        assert read_config(folder / after)["surgery"]["start"] == str(folder / before / "model.pt")
    assert read_config(folder / NAMES[0])["surgery"]["start"] is None


def test_the_last_stage_is_the_result(folder: Path) -> None:
    whole = json.loads((folder / "summary.json").read_text())
    last = json.loads((folder / NAMES[-1] / "summary.json").read_text())
    assert whole["networks"] == last["networks"]
    assert whole["run_name"] == "staged"
    assert [member["cost_ratio"] for member in whole["family"]] == [0.5, 0.3, 0.2]
    assert whole["search_cost"]["num_trials"] == 3 * 2
    assert any("in 3 stages" in note for note in whole["notes"])
    assert (folder / "family.png").exists()


def test_the_networks_load_from_the_whole_folder_and_from_a_stage(folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved)
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for name, ratio in zip(NAMES, (0.5, 0.3, 0.2), strict=True):
        member, alone = compsearch.load(moved, cost_ratio=ratio), compsearch.load(moved / name)
        assert torch.equal(member(images), alone(images))
        assert torch.equal(member.conv1.weight, weights(folder / name)["conv1.weight"])
    assert torch.equal(compsearch.load(moved)(images), compsearch.load(moved, cost_ratio=0.2)(images))
    assert not torch.equal(compsearch.load(moved)(images), compsearch.load(moved, cost_ratio=0.5)(images))


def test_a_killed_run_goes_on_in_the_stage_it_was_in_and_ends_the_same(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finetune, calls = job._finetune, []

    def finetune_once(*arguments: Any) -> dict[str, Any]:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return finetune(*arguments)

    path = tmp_path / "staged"
    monkeypatch.setattr(job, "_finetune", finetune_once)
    with pytest.raises(KeyboardInterrupt):
        job.run(config(), path)
    assert not (path / "summary.json").exists()
    assert (path / NAMES[0] / "summary.json").exists()
    assert not (path / NAMES[1] / "summary.json").exists()
    finished = (path / NAMES[0] / "summary.json").stat().st_mtime_ns
    job.run(config(), path)
    assert len(calls) == 4  # the second again, and the third; not the first
    assert (path / NAMES[0] / "summary.json").stat().st_mtime_ns == finished
    for name in NAMES:
        assert (path / name / "policy.json").read_text() == (folder / name / "policy.json").read_text()
        assert read_trials(path / name / "trials.jsonl") == read_trials(folder / name / "trials.jsonl")
        for key, value in weights(folder / name).items():
            assert torch.equal(weights(path / name)[key], value)


def test_a_finished_run_only_reports(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != ".lock" and path.is_file()}
    summary = job.run(config(), folder)
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != ".lock" and path.is_file()}
    assert before == after
    printed = job.shown(summary, folder)
    assert "CSR, zlib" in printed
    assert "BSR 4×1" in printed
    assert "block sparsity" in printed
    assert "only a runtime that skips zeros saves time" in " ".join(printed.split())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["space=channels"], "stages need a space of weights"),
        (["stages=[]"], "`stages` must be falling cost_ratios"),
        (["stages=[0.3,0.3,0.2]"], "`stages` must be falling cost_ratios"),
        (["stages=[0.1,0.2]"], "`stages` must be falling cost_ratios"),
        (["stages=[1.0,0.2]"], "`stages` must be falling cost_ratios"),
        (["budget.cost_ratio=0.3"], "the last stage must be the budget"),
        (["budget.limit=30000"], "the last stage must be the budget"),
        (["stages=[0.5,0.01]", "budget.cost_ratio=0.01"], "the budget must reach what the smallest policy costs"),
    ],
)
def test_stages_that_do_not_fit_are_refused_before_anything_runs(
    tmp_path: Path, changes: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        job.run(config(*changes), tmp_path / "staged")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "staged").glob("stage*-*"))


def test_stages_of_a_network_in_hand_are_refused() -> None:
    data = (torch.randn(64, 3, 8, 8), torch.arange(64) % 2)
    with pytest.raises(ValueError, match="only the command line does"):
        compsearch.compress(
            torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()),
            train=data,
            test=data,
            budget=0.2,
            resource="params",
            overrides=["space=fine_grained", "stages=[0.5,0.2]"],
        )
