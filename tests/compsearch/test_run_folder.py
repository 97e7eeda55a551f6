import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from compsearch import atomic
from compsearch.inputs import INPUTS_STAGE
from compsearch.run_folder import RunFolder, RunFolderError, is_in_use, read_config

CONFIG = {"seed": 0, "budget": {"cost_ratio": 0.5}, "device": "auto"}
HOLD = """
import sys
from pathlib import Path
from compsearch.run_folder import RunFolder
with RunFolder(Path(sys.argv[1]), {"seed": 0}):
    print("held", flush=True)
    sys.stdin.read()
"""
COME_AND_GO = """
import sys
from pathlib import Path
from compsearch.run_folder import RunFolder
for _ in range(60):
    try:
        with RunFolder(Path(sys.argv[1]), {"seed": 0}):
            raise ValueError("bad input")
    except ValueError as error:
        if str(error) != "bad input" and "is in use by" not in str(error):
            print(error)
"""


def test_a_stage_runs_once_across_processes_lifetimes(tmp_path: Path) -> None:
    calls = []
    for _ in range(2):
        with RunFolder(tmp_path / "run", CONFIG) as folder:
            result = folder.once("dense", lambda: calls.append(1) or {"accuracy": 0.5})
            assert result == {"accuracy": 0.5}
    assert len(calls) == 1


def test_a_stage_that_fails_is_not_finished(tmp_path: Path) -> None:
    def fail() -> dict[str, float]:
        raise KeyError("no")

    with RunFolder(tmp_path / "run", CONFIG) as folder:
        with pytest.raises(KeyError):
            folder.once("dense", fail)
        assert folder.result("dense") is None


def test_another_configuration_is_refused_naming_key_and_values(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run", CONFIG) as folder:
        folder.finish("dense", {"accuracy": 0.9})
    other = {**CONFIG, "budget": {"cost_ratio": 0.7}}
    with (
        pytest.raises(RunFolderError, match=r"budget.cost_ratio=0.5 \(now 0.7\)"),
        RunFolder(tmp_path / "run", other),
    ):
        pass


def test_settings_that_no_result_depends_on_may_differ(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run", CONFIG, ignore=("device",)) as folder:
        folder.finish("dense", {"accuracy": 0.9})
    with RunFolder(tmp_path / "run", {**CONFIG, "device": "cpu"}, ignore=("device",)) as folder:
        assert "auto" in (folder.path / "config.yaml").read_text()


def test_a_run_of_which_nothing_has_come_takes_another_configuration(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run", CONFIG) as folder:
        folder.write_text("overrides.yaml", "[seed=0]")
        folder.finish("learned", {})
        folder.finish(INPUTS_STAGE, {"network": "a fingerprint"})
    with RunFolder(tmp_path / "run", {**CONFIG, "seed": 1}) as folder:
        assert read_config(folder.path)["seed"] == 1
        assert folder.result("learned") is folder.result(INPUTS_STAGE) is None
        assert not (folder.path / "overrides.yaml").exists()


def broken_run(path: Path, error: Exception, *, file: str, stages: dict[str, dict[str, Any]]) -> None:
    """A run that writes `file`, finishes `stages` and raises `error`."""
    with RunFolder(path, CONFIG) as folder:
        folder.write_text(file, "text")
        for stage, result in stages.items():
            folder.finish(stage, result)
        raise error


@pytest.mark.parametrize("stages", [{"learned": {}}, {"learned": {}, INPUTS_STAGE: {"network": "a fingerprint"}}])
def test_bad_input_before_anything_has_come_of_a_run_leaves_no_folder(
    tmp_path: Path, stages: dict[str, dict[str, Any]]
) -> None:
    with RunFolder(tmp_path / "run", CONFIG):
        pass  # a run that was killed
    for _ in range(2):
        with pytest.raises(ValueError, match="no such weights"):
            broken_run(tmp_path / "run", ValueError("no such weights"), file="overrides.yaml", stages=stages)
        assert not (tmp_path / "run").exists()


def test_bad_input_leaves_an_empty_folder_that_was_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="bad input"):
        broken_run(tmp_path, ValueError("bad input"), file="overrides.yaml", stages={})
    assert not list(tmp_path.iterdir())


def test_a_config_that_is_no_runs_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("mine: true")
    (tmp_path / ".mine.tmp").touch()
    for _ in range(2):
        with pytest.raises(RunFolderError, match=r"holds a config.yaml that is no run's; give another run_name"):
            broken_run(tmp_path, ValueError("bad input"), file="overrides.yaml", stages={})
        assert (tmp_path / "config.yaml").read_text() == "mine: true"
        assert {path.name for path in tmp_path.iterdir()} == {"config.yaml", ".mine.tmp"}


def test_a_run_that_was_copied_without_its_lock_goes_on(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run", CONFIG) as folder:
        folder.finish("dense", {"accuracy": 0.9})
    (tmp_path / "run" / ".lock").unlink()
    with RunFolder(tmp_path / "run", CONFIG) as folder:
        assert folder.result("dense") == {"accuracy": 0.9}


@pytest.mark.parametrize(
    ("error", "file", "stages"),
    [
        (ValueError("bad input"), "overrides.yaml", {"dense": {"accuracy": 0.9}}),
        (ValueError("bad input"), "notes.txt", {}),
        (RuntimeError("a crash"), "overrides.yaml", {}),
    ],
)
def test_what_has_come_of_a_run_survives_an_error(
    tmp_path: Path, error: Exception, file: str, stages: dict[str, dict[str, float]]
) -> None:
    with pytest.raises(type(error)):
        broken_run(tmp_path / "run", error, file=file, stages=stages)
    assert read_config(tmp_path / "run") == CONFIG
    assert (tmp_path / "run" / file).exists()


def test_a_lock_whose_file_was_removed_meanwhile_is_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, times = fcntl.flock, 0

    def slow(descriptor: int, operation: int) -> None:
        nonlocal times
        times += 1
        if times == 1:  # its owner leaves the folder, and takes it away, after we opened the file
            shutil.rmtree(tmp_path / "run")
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", slow)
    with RunFolder(tmp_path / "run", CONFIG) as folder:
        assert times == 2
        assert is_in_use(folder.path)


@pytest.mark.parametrize("step", ["mkdir", "iterdir"])
def test_a_folder_that_goes_as_a_process_enters_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    does, times = getattr(Path, step), 0

    def late(path: Path, **options: Any) -> Any:
        nonlocal times
        found = does(path, **options)
        times += 1
        if times == 1:  # another process leaves the folder, and takes it away
            path.rmdir()
        return found

    monkeypatch.setattr(Path, step, late)
    with RunFolder(tmp_path / "run", CONFIG) as folder:
        assert times > 1
        assert is_in_use(folder.path)


def test_processes_that_enter_and_leave_one_folder_find_it_in_use_at_most(tmp_path: Path) -> None:
    command = [sys.executable, "-c", COME_AND_GO, str(tmp_path / "run")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(3)]
    assert [process.communicate()[0] for process in processes] == ["", "", ""]


def test_many_settings_that_differ_are_counted(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run", {f"k{i}": 0 for i in range(9)}) as folder:
        folder.finish("dense", {"accuracy": 0.9})
    with (
        pytest.raises(RunFolderError, match=r"k5=0 \(now 1\) and 3 more; give"),
        RunFolder(tmp_path / "run", {f"k{i}": 1 for i in range(9)}),
    ):
        pass


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(RunFolderError, match=r"thesis.tex"), RunFolder(tmp_path, CONFIG):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_second_process_is_refused_and_a_killed_one_holds_nothing(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(RunFolderError, match=f"process {holder.pid}"), RunFolder(tmp_path / "run", {"seed": 0}):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    with RunFolder(tmp_path / "run", {"seed": 0}):
        pass


@pytest.mark.parametrize("call", ["write", "replace"])
def test_a_full_disk_is_one_line_and_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    with RunFolder(tmp_path / "run", CONFIG) as folder:
        folder.write_json("policy.json", {"a": 1})

        def full(*arguments: object) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(atomic.os, call, full)
        with pytest.raises(RunFolderError, match="No space left on device") as caught:
            folder.write_json("policy.json", {"a": 2})
        monkeypatch.undo()
        assert "\n" not in str(caught.value)
        assert json.loads((folder.path / "policy.json").read_text()) == {"a": 1}
        assert not list(folder.path.glob(atomic.TEMPORARY_PATTERN))


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot be written"), RunFolder(tmp_path / "file" / "run", CONFIG):
        pass


def test_numbers_that_are_not_finite_become_null(tmp_path: Path) -> None:
    atomic.write_json(tmp_path / "x.json", {"a": [float("nan"), 1.0], "b": {"c": float("inf")}})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [None, 1.0], "b": {"c": None}}


def test_a_failed_append_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log"
    atomic.append_bytes(path, b"one\n")
    real = os.write

    def half(descriptor: int, data: bytes) -> int:
        real(descriptor, bytes(data)[:2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "write", half)
    with pytest.raises(OSError, match="No space"):
        atomic.append_bytes(path, b"two\n")
    monkeypatch.undo()
    assert path.read_bytes() == b"one\n"
