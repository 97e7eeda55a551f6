"""The command line as a user meets it, nearly always in a process of its own."""

import json
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra.errors import HydraException
from processes import Command

from compsearch import cli
from compsearch.sweep import ENVIRONMENT, Ledger

FAST = [
    "model=resnet20",
    "model.build.depth=8",
    "model.weights=random",
    "dataset.build.image_size=16",
    "calibration.num_images=64",
    "finetune.epochs=1",
    "latency.repetitions=3",
    "space.divisor=4",
]


_started: list[Command] = []


@pytest.fixture(autouse=True)
def _none_left_running() -> Iterator[None]:
    yield
    while _started:
        process = _started.pop()
        process.kill()
        process.communicate()


def start(folder: Path, *arguments: str) -> Command:
    _started.append(Command(folder, arguments))
    return _started[-1]


def run(folder: Path, *arguments: str) -> tuple[int | None, str, str]:
    process = start(folder, *arguments)
    out, err = process.communicate()
    return process.returncode, out, err


def trials(folder: Path) -> list[dict[str, object]]:
    lines = (folder / "trials.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in {"wall_s", "cpu_s"}} for line in lines]


def test_a_run_leaves_everything_and_a_second_one_only_reports(tmp_path: Path) -> None:
    command = [*FAST, "searcher=random", "searcher.num_steps=3", "run_name=one"]
    code, out, err = run(tmp_path, *command)
    assert code == 0, err
    folder = tmp_path / "results" / "one"
    names = {path.name for path in folder.iterdir()}
    assert names >= {
        "config.yaml",
        "trials.jsonl",
        "checkpoint.pt",
        "policy.json",
        "model.pt",
        "summary.json",
        "pareto.png",
        "policy.png",
        "search.png",
    }
    assert str(Path("results", "one", "pareto.png")) in out
    assert "fine-tuned" in out
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["networks"][1]["cost_ratios"]["macs"] <= 0.5
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.name != ".lock"}
    code, again, err = run(tmp_path, *command)
    assert code == 0, err
    assert "finished" in again + err
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.name != ".lock"} == before


def test_a_killed_run_continues_and_equals_the_uninterrupted_one(tmp_path: Path) -> None:
    search = [*FAST, "searcher=amc", "searcher.num_steps=12", "searcher.warmup_episodes=4", "finetune.epochs=2"]
    code, _, err = run(tmp_path, *search, "run_name=whole")
    assert code == 0, err
    process = start(tmp_path, *search, "run_name=killed")
    log = tmp_path / "results" / "killed" / "trials.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (log.exists() and len(log.read_text().splitlines()) >= 5):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (log.parent / "summary.json").exists()
    code, _, err = run(tmp_path, *search, "run_name=killed")
    assert code == 0, err
    whole, killed = tmp_path / "results" / "whole", tmp_path / "results" / "killed"
    assert trials(whole) == trials(killed)
    assert (whole / "policy.json").read_text() == (killed / "policy.json").read_text()
    rows = [json.loads((folder / "summary.json").read_text())["networks"] for folder in (whole, killed)]
    for ours, theirs in zip(*rows, strict=True):
        assert ours["accuracy_test"] == theirs["accuracy_test"]


def test_interrupting_a_search_saves_it_and_says_how_to_resume(tmp_path: Path) -> None:
    process = start(tmp_path, *FAST, "searcher=random", "searcher.num_steps=100000", "run_name=stop")
    log = tmp_path / "results" / "stop" / "trials.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (log.exists() and log.read_text().count("\n") >= 2):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    last = err.strip().splitlines()[-1]
    assert "interrupted after step" in last
    assert "the same command" in last


def test_two_processes_on_one_folder_are_refused(tmp_path: Path) -> None:
    command = [*FAST, "searcher=random", "searcher.num_steps=100000", "run_name=busy"]
    first = start(tmp_path, *command)
    log = tmp_path / "results" / "busy" / "trials.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not log.exists():
        assert first.poll() is None, first.communicate()[1]
        time.sleep(0.02)
    code, _, err = run(tmp_path, *command)
    first.kill()
    first.communicate()
    assert code == 1
    assert err.strip().splitlines()[-1].startswith("compsearch: error: ")
    assert f"process {first.pid}" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["searcher=nothing"], ["searcher/nothing", "amc", "uniform"]),
        (["model=resnet51"], ["model/resnet51", "resnet50"]),
        (["budget.cost_ratio=1.5"], ["0 < budget.cost_ratio <= 1", "1.5"]),
        (["budget.cost_ratio=0.001"], ["smallest policy", "0.001"]),
        (["searcher.num_steps=0"], ["num_steps >= 1", "0"]),
        (["sead=1"], ["sead"]),
        (["model.weights=missing.pt"], ["missing.pt"]),
        (["dataset=imagefolder", "dataset.build.root=nowhere"], ["nowhere"]),
        (["device=cuda:77"], ["cuda:77"]),
        (["trials=0"], ["trials >= 1"]),
        (["searcher=legr", "searcher.evolve_only=foo"], ["searcher.evolve_only", "'foo'"]),
    ],
)
def test_bad_input_is_one_line_and_exit_code_1_and_leaves_no_folder(
    tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    code, out, err = run(tmp_path, *FAST, *arguments)
    assert code == 1
    assert "Traceback" not in out + err
    last = err.strip().splitlines()[-1]
    assert last.startswith("compsearch: error: ")
    assert all(word in last for word in words), last
    assert not list(tmp_path.glob("results/*"))


@pytest.mark.parametrize("arguments", [["insepct"], ["inspect", "help"], ["-m", "seed=0,1", "latncy"]])
def test_a_word_that_is_no_setting_is_refused_with_the_commands(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")
    monkeypatch.setattr(sys, "argv", ["compsearch", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 1
    [line] = capsys.readouterr().err.splitlines()
    assert f"key=value, but got {arguments[-1]!r}; " in line
    assert "inspect, latency, export, report" in line


@pytest.mark.parametrize(
    ("failure", "way_out"),
    [
        (HydraException("Could not find 'searcher/nope'"), "mend the command, as the same one ends here again"),
        (OSError("a worker was killed"), "the same command goes on"),
    ],
)
def test_a_sweep_that_ended_early_says_whether_the_same_command_helps(
    failure: Exception,
    way_out: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def broken(command: str) -> None:
        monkeypatch.setenv(ENVIRONMENT, str(Ledger.create(tmp_path, overrides=[["seed=0"]]).path))
        raise failure

    monkeypatch.setenv("HYDRA_FULL_ERROR", "")
    monkeypatch.setenv(ENVIRONMENT, "")
    monkeypatch.setattr(cli, "_run", broken)
    monkeypatch.setattr(sys, "argv", ["compsearch", "-m", "seed=0"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line == f"compsearch: error: the sweep ended early; {way_out}: {failure}"


def test_help_names_the_commands(tmp_path: Path) -> None:
    code, out, err = run(tmp_path, "inspect", "--help")
    assert code == 0, err
    assert all(f"\n  {command} " in out for command in ("inspect", "latency", "export", "report"))
    assert "searcher: amc, " in out


def test_a_folder_of_another_configuration_is_refused_naming_the_keys(tmp_path: Path) -> None:
    command = [*FAST, "searcher=uniform", "run_name=one"]
    assert run(tmp_path, *command)[0] == 0
    code, _, err = run(tmp_path, *command, "budget.cost_ratio=0.7")
    assert code == 1
    assert "budget.cost_ratio" in err.strip().splitlines()[-1]


def test_what_fails_in_an_empty_working_directory_leaves_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")
    monkeypatch.setattr(sys, "argv", ["compsearch", "inspect", "trials=0"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "trials >= 1" in capsys.readouterr().err
    assert tmp_path.is_dir()


def test_inspect_prints_the_groups_and_what_is_frozen(tmp_path: Path) -> None:
    code, out, err = run(tmp_path, "inspect", "model=resnet20")
    assert code == 0, err
    assert not (tmp_path / "results").exists()
    assert "layer1.0.conv1" in out
    assert "reaches the network's output" in out


def test_a_sweep_puts_one_folder_per_job_side_by_side(tmp_path: Path) -> None:
    code, _, err = run(tmp_path, "-m", *FAST, "searcher=uniform", "budget.cost_ratio=0.4,0.6", "finetune.epochs=0")
    assert code == 0, err
    folders = list((tmp_path / "results").glob("uniform-*"))
    assert len(folders) == 2
    assert all((folder / "summary.json").exists() for folder in folders)


QUICK_PREDICTOR = [
    "budget=latency",
    "alignment.divisor.options.num_layers=1",
    "alignment.divisor.options.num_widths=4",
    "alignment.divisor.options.rounds=1",
    "cost_models.latency_ms.options.max_points=3",
    "cost_models.latency_ms.options.rounds=1",
    "cost_models.latency_ms.options.samples=1",
    "cost_models.latency_ms.options.fit_policies=2",
    "cost_models.latency_ms.options.check_policies=3",
]


def test_a_latency_budget_is_predicted_in_the_search_and_measured_at_its_end(tmp_path: Path) -> None:
    command = [*FAST, *QUICK_PREDICTOR, "searcher=random", "searcher.num_steps=3", "finetune.epochs=0"]
    command += ["budget.cost_ratio=0.8", "run_name=one"]
    code, _, err = run(tmp_path, *command)
    assert code == 0, err
    folder = tmp_path / "results" / "one"
    summary = json.loads((folder / "summary.json").read_text())
    [note] = [note for note in summary["notes"] if note.startswith("the latency budget of 0.8000 is ")]
    compressed = summary["networks"][1]
    assert f"measured {compressed['cost_ratios']['latency_ms']:.4f}" in note
    assert ("MISSED" in note) == (compressed["cost_ratios"]["latency_ms"] > 0.8)
    assert any("unseen networks" in note for note in summary["notes"])
    assert all(trial["costs"]["latency_ms"] > 0 for trial in trials(folder))
    assert {"latency.png", "latency_pareto.png", "latency.csv"} <= {path.name for path in folder.iterdir()}
    [table] = (tmp_path / "cache" / "latency").glob("torch-*.csv")
    again = table.read_text()
    # Another run of the same network measures no layer again.
    code, _, err = run(tmp_path, *command[:-1], "run_name=two")
    assert code == 0, err
    assert table.read_text() == again


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["latency.batch_size=0"], "`latency.batch_size >= 1` must hold, but got batch_size=0"),
        (["runtime=cuda_graphs", "device=cpu"], "runtime=cuda_graphs needs a CUDA device, but the device is cpu"),
        (["budget.resource=watts"], "`budget.resource` must be one of macs, params, but got 'watts'"),
    ],
)
def test_what_cannot_be_timed_is_refused_in_one_line(tmp_path: Path, options: list[str], message: str) -> None:
    code, _, err = run(tmp_path, *FAST, "run_name=one", *options)
    assert code == 1
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_the_latency_command_measures_a_network_without_training_it(tmp_path: Path) -> None:
    options = [*FAST, *QUICK_PREDICTOR[1:]]
    code, out, err = run(tmp_path, "latency", *options)
    assert code == 0, err
    [folder] = (tmp_path / "results").iterdir()
    assert folder.name == "latency-resnet20-digits-torch-batch1-threads1"
    assert {"staircase.png", "predictor.png", "latency.png", "latency.md"} <= {path.name for path in folder.iterdir()}
    assert "uniform 50%, any width" in out
    assert "unseen networks" in out
    stages = (folder / "stages.json").read_text()
    assert run(tmp_path, "latency", *options)[0] == 0
    assert (folder / "stages.json").read_text() == stages
