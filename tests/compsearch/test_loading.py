"""A run's networks come back in a process that never searched."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

import compsearch
from compsearch.composition import compose_config
from compsearch.job import run
from compsearch.loading import member_of

ROOT = Path(__file__).resolve().parent.parent.parent
RUN = [
    "searcher=global_magnitude",
    "model=resnet20",
    "model.weights=random",
    "budget.cost_ratios=[0.4,0.6]",
    "recover=none",
    "recover@finalist.recover=none",
    "finetune.epochs=0",
    "run_name=loaded",
    "latency.time_budget_s=0.1",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("loading") / "run"
    run(compose_config(RUN), path)
    return path


def test_every_member_predicts_what_its_own_process_measured(folder: Path) -> None:
    code = (
        "import sys, torch, compsearch\n"
        "images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))\n"
        "ratio = None if sys.argv[2] == 'none' else float(sys.argv[2])\n"
        "network = compsearch.load(sys.argv[1], cost_ratio=ratio)\n"
        "torch.save(network(images).detach(), sys.argv[3])\n"
    )
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for ratio in (None, 0.6):
        out = folder.parent / "logits.pt"
        arguments = [str(folder), "none" if ratio is None else str(ratio), str(out)]
        subprocess.run([sys.executable, "-c", code, *arguments], check=True, cwd=ROOT)
        here = compsearch.load(folder, cost_ratio=ratio)
        assert not here.training
        assert torch.equal(torch.load(out, weights_only=True), here(images).detach())


def test_members_differ_in_size(folder: Path) -> None:
    small, large = (compsearch.load(folder, cost_ratio=ratio) for ratio in (0.4, 0.6))
    num_params = [sum(parameter.numel() for parameter in network.parameters()) for network in (small, large)]
    assert num_params[0] < num_params[1]


def test_the_weights_before_finetuning_are_those_of_the_runs_own_network(folder: Path, tmp_path: Path) -> None:
    images = torch.randn(4, 3, 32, 32)
    last, before = (compsearch.load(folder, fine_tuned=each) for each in (True, False))
    assert torch.equal(last(images), before(images))  # there was no fine-tuning
    copied = tmp_path / "run"
    shutil.copytree(folder, copied)
    state = torch.load(copied / "recovered.pt", weights_only=True)
    bias = next(value for name, value in state.items() if name.endswith("linear.bias"))
    bias += 1
    torch.save(state, copied / "recovered.pt")
    moved = compsearch.load(copied, fine_tuned=False)
    torch.testing.assert_close(moved(images), before(images) + 1)
    with pytest.raises(ValueError, match=r"but .* has only family-0.6.pt of this network"):
        compsearch.load(folder, cost_ratio=0.6, fine_tuned=False)
    (copied / "recovered.pt").unlink()
    with pytest.raises(ValueError, match=r"but .* has only model.pt of this network"):
        compsearch.load(copied, fine_tuned=False)


def test_a_member_that_is_not_there_is_refused_with_what_is(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"must be one of .* family, 0.6, 0.4, but got 0.5"):
        compsearch.load(folder, cost_ratio=0.5)


def test_a_member_of_a_run_of_one_network_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("budget: {cost_ratio: 0.5}")
    (tmp_path / "model.pt").touch()
    with pytest.raises(ValueError, match=r"is a run of one network, at cost_ratio 0.5; leave cost_ratio out"):
        member_of(tmp_path, 0.4)


def test_a_folder_without_a_finished_run_is_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ValueError, match="is no run"):
        compsearch.load(tmp_path)
    (tmp_path / "config.yaml").write_text((folder / "config.yaml").read_text())
    with pytest.raises(ValueError, match=r"must hold a finished run, but .*network.json is missing"):
        compsearch.load(tmp_path)


def test_a_run_of_compress_needs_its_network(tmp_path: Path) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2)
    ).eval()
    generator = torch.Generator().manual_seed(0)
    data = (torch.randn(64, 3, 8, 8, generator=generator), torch.arange(64) % 2)
    options = [
        "recover=none",
        "recover@finalist.recover=none",
        "finetune.epochs=0",
        "latency.time_budget_s=0.1",
    ]
    result = compsearch.compress(
        model, train=data, test=data, searcher="uniform", folder=tmp_path / "run", overrides=options
    )
    with pytest.raises(ValueError, match="give the network it compressed as `model`"):
        compsearch.load(tmp_path / "run")
    loaded = compsearch.load(tmp_path / "run", model=model)
    assert torch.equal(loaded(data[0]), result.module.eval()(data[0]))


def test_a_folder_from_before_surgeries_could_be_chosen_loads(folder: Path, tmp_path: Path) -> None:
    older = tmp_path / "older"
    shutil.copytree(folder, older)
    text = (older / "config.yaml").read_text()
    config = yaml.safe_load(text)
    del config["surgery"]
    (older / "config.yaml").write_text(yaml.safe_dump(config))
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(compsearch.load(older)(images), compsearch.load(folder)(images))
