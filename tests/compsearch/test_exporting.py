"""A finished run's network leaves for other runtimes: from its folder alone, checked, without torch at the end."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import compsearch
from compsearch import cli, exporting
from compsearch.composition import check, compose_config

ROOT = Path(__file__).resolve().parents[2]
RUN = [
    "searcher=global_magnitude",
    "model=resnet20",
    "model.build.depth=8",
    "model.weights=random",
    "dataset.build.image_size=16",
    "budget.cost_ratios=[0.4,0.6]",
    "recover=none",
    "recover@finalist.recover=none",
    "finetune.epochs=0",
    "run_name=exported",
]

LOAD_AND_EXPORT = """
import sys
import numpy, torch, compsearch
folder, given = sys.argv[1:]
images = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(7))
logits = compsearch.load(folder)(images).detach()
compsearch.export(folder)
numpy.savez(given, images=images.numpy(), logits=logits.numpy())
assert "compsearch.runner" not in sys.modules, "this process must not be able to search"
"""

RUN_WITHOUT_TORCH = """
import sys
import numpy, onnxruntime
model, given = sys.argv[1:]
given = numpy.load(given)
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
[logits] = session.run(["logits"], {"images": given["images"]})
assert "torch" not in sys.modules
assert given["logits"].shape == (5, 10) and given["logits"].std() > 0.1
print(numpy.abs(logits - given["logits"]).max() / numpy.abs(given["logits"]).max())
"""


def python(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COMPSEARCH_CACHE": str(cwd / "cache")}
    environment.pop("HYDRA_FULL_ERROR", None)
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run that was searched by a process that has ended."""
    path = tmp_path_factory.mktemp("exporting")
    done = python(path, "-m", "compsearch", *RUN)
    assert done.returncode == 0, done.stderr
    return path / "results" / "exported"


def test_a_compressed_network_goes_from_process_to_process_and_ends_without_torch(folder: Path) -> None:
    given = str(folder.parent / "given.npz")
    done = python(folder.parent, "-c", LOAD_AND_EXPORT, str(folder), given)
    assert done.returncode == 0, done.stderr
    assert done.stdout + done.stderr == ""
    done = python(folder.parent, "-c", RUN_WITHOUT_TORCH, str(folder / "model.onnx"), given)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) <= 1e-4


def test_the_command_exports_a_member_in_every_format_and_says_what_it_compared(folder: Path) -> None:
    done = python(folder.parent, "-m", "compsearch", "export", str(folder), "format=all", "cost_ratio=0.6")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    for line, name in zip(lines, ("family-0.6.onnx", "family-0.6.pt2"), strict=True):
        path = folder / name
        assert line.startswith(f"{path}: {path.stat().st_size:,} bytes; logits differ from PyTorch's by ")
        assert line.endswith("(64 images of the search split of digits)")


def test_files_of_members_hold_different_networks(folder: Path) -> None:
    [small], [large] = (compsearch.export(folder, cost_ratio=ratio) for ratio in (0.4, 0.6))
    assert (small.path.name, large.path.name) == ("model.onnx", "family-0.6.onnx")
    assert small.num_bytes < large.num_bytes


def test_a_program_computes_what_the_loaded_network_does(folder: Path) -> None:
    images = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    [done] = compsearch.export(folder, format="program", images=images)
    program = torch.export.load(done.path).module()
    assert done.images == "5 given images"
    torch.testing.assert_close(program(images), compsearch.load(folder)(images), rtol=0, atol=1e-4 * done.scale)


def test_without_its_dataset_a_network_is_checked_on_random_images_and_says_so(folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    moved.mkdir()
    for file in folder.iterdir():
        (moved / file.name).write_bytes(file.read_bytes())
    config = (moved / "config.yaml").read_text()
    assert "backends.datasets.digits" in config
    (moved / "config.yaml").write_text(
        config.replace("backends.datasets.digits", "backends.datasets.cifar10\n    root: nowhere\n    download: false")
    )
    [done] = compsearch.export(moved, overrides=["num_images=3"])
    assert done.images.startswith("3 random images, as digits can't be read here: ")
    assert "nowhere" in done.images


def test_a_run_of_compress_is_exported_with_its_network(tmp_path: Path) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2)
    ).eval()
    data = (torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 2)
    options = ["recover=none", "recover@finalist.recover=none", "finetune.epochs=0"]
    compsearch.compress(model, train=data, test=data, searcher="uniform", folder=tmp_path / "run", overrides=options)
    with pytest.raises(ValueError, match="give the network it compressed as `model`"):
        compsearch.export(tmp_path / "run")
    [on_random] = compsearch.export(tmp_path / "run", model=model)
    assert on_random.images == "64 random images, as the run's own were passed to compsearch.compress"
    [on_own] = compsearch.export(tmp_path / "run", model=model, images=data[0])
    assert on_own.images == "64 given images"
    assert on_own.path == tmp_path / "run" / "model.onnx"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "must be told the folder of a finished run first, but got nothing"),
        (["format=onnx"], "must be told the folder of a finished run first, but got 'format=onnx'"),
        (["--help"], "python -m compsearch export results/<run>"),
        (["nowhere"], "nowhere is no run"),
        (["FOLDER", "format=tflite"], "`format` must be one of onnx, program, all, but got 'tflite'"),
        (["FOLDER", "cost_ratio=0.5"], "must be one of FOLDER's family, 0.6, 0.4, but got 0.5"),
        (["FOLDER", "cost_ratio=half"], "cost_ratio"),
        (["FOLDER", "num_images=0"], "`num_images >= 1` must hold, but got num_images=0"),
        (["FOLDER", "onnx.opset=3"], "must hold for this onnx, but got opset=3"),
        (["FOLDER", "onnx.opzet=3"], "opzet"),
        (["FOLDER", "sead=1"], "sead"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_1(
    arguments: list[str],
    words: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    monkeypatch.setattr(sys, "argv", ["compsearch", "export", *(a.replace("FOLDER", str(folder)) for a in arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 1
    out, err = capsys.readouterr()
    assert out == ""
    [line] = err.splitlines()
    assert line.startswith("compsearch: error: ")
    assert words.replace("FOLDER", str(folder)) in line


def test_a_folder_that_refuses_files_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", refuse)
    before = {path.name for path in folder.iterdir()}
    with pytest.raises(ValueError, match=r"model.pt2 cannot be written: No space left on device"):
        compsearch.export(folder, format="program")
    assert {path.name for path in folder.iterdir()} == before


def test_every_format_of_the_configuration_can_be_built() -> None:
    config = compose_config([], name="export")
    for name in exporting.SUFFIXES:
        check(config[name], place=name)
