"""A run goes on with the weights and images it was begun with, or not at all."""

import json
from pathlib import Path
from typing import Any

import pytest
import sklearn.datasets
import torch
from quick import QUICK

import compsearch
from backends.cifar_resnet import CifarResNet
from compsearch import job
from compsearch.composition import compose_config
from compsearch.run_folder import RunFolderError
from compsearch.summary import Summary

FAST = [
    *QUICK,
    "searcher=random",
    "searcher.num_steps=3",
]


@pytest.fixture(autouse=True)
def _no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "draw_run", lambda *arguments: None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Holds a finished run, and the weights file it was begun with."""
    save_weights(tmp_path, seed=0)
    run(tmp_path)
    return tmp_path


def save_weights(folder: Path, *, seed: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.save(CifarResNet(8, 10).state_dict(), folder / "weights.pt")


def run(folder: Path, *options: str) -> Summary:
    settings = [*FAST, f"model.weights={folder / 'weights.pt'}", "run_name=run", *options]
    return job.run(compose_config(settings), folder / "run")


def forget(folder: Path, *stages: str) -> None:
    """Makes the finished run one that was killed before `stages`."""
    path = folder / "run" / "stages.json"
    found = json.loads(path.read_text())
    path.write_text(json.dumps({name: found[name] for name in found if name not in stages}))


def test_another_content_of_the_weights_file_is_refused_also_by_a_finished_run(folder: Path) -> None:
    assert run(folder).search_cost.num_trials == 3
    save_weights(folder, seed=1)
    for stages in ((), ("report", "summary")):
        forget(folder, *stages)
        with pytest.raises(RunFolderError, match=r"begun with another content of model\.weights; give another"):
            run(folder)
    save_weights(folder, seed=0)
    assert run(folder).search_cost.num_trials == 3


def test_a_run_that_goes_on_is_refused_other_images(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forget(folder, "report", "summary")
    load = sklearn.datasets.load_digits

    def inverted() -> Any:
        digits = load()
        digits.images = 16.0 - digits.images
        return digits

    monkeypatch.setattr("backends.datasets.load_digits", inverted)
    with pytest.raises(RunFolderError, match="other training images and other images of the search split and other"):
        run(folder)


def test_a_run_of_an_earlier_version_goes_on_without_a_word(folder: Path) -> None:
    forget(folder, "inputs", "report", "summary")
    assert run(folder).search_cost.num_trials == 3


@pytest.mark.parametrize("name", ["summary.json", "policy.json"])
def test_files_of_a_finished_run_are_written_again_from_what_it_knows(folder: Path, name: str) -> None:
    path = folder / "run" / name
    whole = path.read_bytes()
    for damage in (path.unlink, lambda: path.write_bytes(whole[:40])):
        damage()
        run(folder)
        assert path.read_bytes() == whole


def test_a_finished_run_without_its_weights_says_so(folder: Path) -> None:
    (folder / "run" / "model.pt").unlink()
    with pytest.raises(RunFolderError, match=r"model.pt is missing; bring it back, or delete the folder"):
        run(folder)


def test_damaged_weights_of_a_run_are_one_line(folder: Path) -> None:
    path = folder / "run" / "model.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(RunFolderError, match=r"model.pt must hold a run's weights, but can't be read") as caught:
        compsearch.load(folder / "run")
    assert "\n" not in str(caught.value)
