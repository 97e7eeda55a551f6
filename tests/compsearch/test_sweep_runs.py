"""Sweeps as a user meets them, in processes of their own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from processes import ROOT, Command

FAST = [
    "model.build.depth=8",
    "model.weights=random",
    "dataset.build.image_size=16",
    "calibration.num_images=64",
    "finetune.epochs=0",
    "latency.repetitions=3",
    "space.divisor=4",
    "timed_trials=0",
]


def start(folder: Path, *arguments: str) -> Command:
    commands = [text for text in arguments if text == "inspect"]
    rest = [text for text in arguments if text != "inspect"]
    return Command(folder, [*commands, *FAST, *rest])


def run(folder: Path, *arguments: str) -> tuple[int | None, str, str]:
    process = start(folder, *arguments)
    out, err = process.communicate()
    return process.returncode, out, err


def run_anew(folder: Path, *arguments: str) -> tuple[int, str, str]:
    """The same in an interpreter of its own, as launchers of processes need it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COMPSEARCH_CACHE": str(folder / "cache")}
    command = [sys.executable, "-m", "compsearch", *FAST, *arguments]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    return done.returncode, done.stdout, done.stderr


def test_a_broken_run_is_reported_the_rest_go_on_and_the_same_command_runs_only_it_again(tmp_path: Path) -> None:
    sweep = ["-m", "searcher=uniform", "budget.cost_ratio=0.001,0.5", "recover=bn,none"]
    code, out, err = run(tmp_path, *sweep)
    assert code == 1, err
    assert "4 runs: 2 done, 0 finished before, 2 failed" in out
    assert "failed: uniform-resnet20-digits-macs0.001-recover=bn-seed0: the budget must reach" in out
    assert {path.name for path in (tmp_path / "results").glob("*macs0.5*")} == {
        "uniform-resnet20-digits-macs0.5-recover=bn-seed0",
        "uniform-resnet20-digits-macs0.5-recover=none-seed0",
    }
    assert list((tmp_path / "results").glob("comparison*/report.html")), out
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "results").glob("*/model.pt")}
    code, out, err = run(tmp_path, *sweep)
    assert code == 1, err
    assert "4 runs: 0 done, 2 finished before, 2 failed" in out
    assert written == {path: path.stat().st_mtime_ns for path in written}


def test_a_killed_sweep_goes_on_where_it_was(tmp_path: Path) -> None:
    sweep = ["-m", "searcher=uniform,random", "trials=100"]
    process = start(tmp_path, *sweep)
    trials = tmp_path / "results" / "random-resnet20-digits-macs0.5-seed0" / "trials.jsonl"
    deadline = time.monotonic() + 240
    while not (trials.exists() and trials.read_text().count("\n") >= 3) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.kill()
    process.communicate()
    done = [json.loads(line)["policy"] for line in trials.read_text().splitlines()[:3]]
    code, out, err = run(tmp_path, *sweep)
    assert code == 0, err
    assert "2 runs: 1 done, 1 finished before, 0 failed" in out
    assert "resuming" in out
    assert [json.loads(line)["policy"] for line in trials.read_text().splitlines()[:3]] == done


def test_ctrl_c_ends_the_whole_sweep(tmp_path: Path) -> None:
    process = start(tmp_path, "-m", "searcher=random", "trials=5000", "seed=0,1")
    trials = tmp_path / "results" / "random-resnet20-digits-macs0.5-seed0" / "trials.jsonl"
    deadline = time.monotonic() + 240
    while not trials.exists() and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "interrupted" in err
    assert not (tmp_path / "results" / "random-resnet20-digits-macs0.5-seed1").exists()


@pytest.mark.parametrize("launcher", [["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]], ids=["joblib"])
def test_parallel_runs_share_one_ranking_as_runs_in_turn_do(tmp_path: Path, launcher: list[str]) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="needs the extra `joblib`")
    sweep = ["-m", "searcher=legr", "trials=4", "budget.cost_ratio=0.4,0.5"]
    code, out, err = run_anew(tmp_path, *sweep, *launcher)
    assert code == 0, err
    assert "2 runs: 2 done" in out
    learned = json.loads((tmp_path / "results/legr-resnet20-digits-macs0.5-seed0/learned.json").read_text())
    assert learned["run"] == "legr-resnet20-digits-macs0.4-seed0"


@pytest.mark.slow
def test_a_sweep_runs_through_submitit(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs the extra `submitit`")
    code, out, err = run_anew(tmp_path, "-m", "searcher=uniform", "seed=0,1", "hydra/launcher=submitit_local")
    assert code == 0, err
    assert "2 runs: 2 done" in out


def test_an_ablation_runs_its_variants_and_tabulates_them(tmp_path: Path) -> None:
    arguments = ["experiment=ablation_amc", "variant=default,replay_raw", "seed=0", "trials=3"]
    code, out, err = run(tmp_path, *arguments)
    assert code == 0, err
    assert "2 runs: 2 done" in out
    folder = tmp_path / "results" / "amc-resnet20-digits-macs0.5-replay_raw-seed0"
    assert "replay_action: raw" in (folder / "config.yaml").read_text()
    [table] = (tmp_path / "results").glob("*/ablation*.md")
    assert "replay_raw" in table.read_text()


def test_a_variant_that_is_not_there_or_undoes_what_is_swept_costs_the_others_nothing(tmp_path: Path) -> None:
    sweep = ["variant=default,nonsense,recover_bn", "recover=bn,none", "seed=0", "trials=2"]
    code, out, _ = run(tmp_path, "experiment=ablation_amc", *sweep)
    assert code == 1
    assert "6 runs: 2 done, 0 finished before, 4 failed" in out
    assert "failed: amc-resnet20-digits-macs0.5-nonsense-recover=bn-seed0: `variant` must be one of default," in out
    assert "must leave what is swept as it is, but variant=recover_bn undoes recover" in out
    assert list((tmp_path / "results").glob("*/report.html")), out


def test_a_variant_counts_in_a_run_alone_and_takes_no_setting_it_does_not_know(tmp_path: Path) -> None:
    settings = ["variant=tau_10", "recover.ridge=0.01", "searcher.fitness=accuracy", "trials=2", "hydra.mode=RUN"]
    code, out, err = run(tmp_path, "experiment=ablation_legr", *settings)
    assert code == 0, err
    assert "recover.ridge=0.01 is not among the settings of this variant and left out" in out
    [folder] = (tmp_path / "results").glob("legr-*-tau_10-seed0")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["recover"]["num_steps"] == 10
    assert config["searcher"]["fitness"] == "accuracy"


def test_inspecting_an_ablation_is_looking_once_at_its_network(tmp_path: Path) -> None:
    code, out, err = run(tmp_path, "inspect", "experiment=ablation_amc")
    assert code == 0, err
    assert out.count("reaches the network's output") == 1


def test_what_a_sweep_chose_by_a_pattern_and_in_quotes_can_be_repeated(tmp_path: Path) -> None:
    sweep = ["-m", "searcher=uniform", "recover=glob(b*)", "device='cpu','auto'"]
    code, _, err = run(tmp_path, *sweep)
    assert code == 0, err
    folders = sorted((tmp_path / "results").glob("uniform-*"))
    assert len(folders) == 2
    typed = yaml.safe_load((folders[0] / "overrides.yaml").read_text())
    code, out, err = run(tmp_path, *typed)
    assert code == 0, err
    assert f"{folders[0].name} is finished" in out
