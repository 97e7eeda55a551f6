"""Whole runs of searcher=proxylessnas in both of its spaces: what they leave, and that a kill changes nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import compsearch
from backends.cifar_resnet import CifarResNet
from backends.mbconv import build
from backends.mixed_operation import MixedOperation
from backends.seeding import isolated_rng
from compsearch.assembly import assemble
from compsearch.composition import compose_config
from compsearch.job import inspect
from compsearch.latency_report import report_latency
from searchers.proxylessnas import ProxylessNAS

SEARCH = [
    "run_name=run",
    "supernet.epochs=4",
    "supernet.warmup_epochs=1",
    "supernet.batch_size=16",
    "supernet.gate_batch_size=16",
    "searcher.num_samples=3",
    "searcher.samples_per_step=2",
    "finalist.num=2",
    "latency.repetitions=2",
    "latency.sessions=1",
    "latency.time_budget_s=0.2",
    "timed_trials=0",
]
PLOTS = {"paths.png", "expected.png", "search.png", "pareto.png"}


def resnet() -> nn.Module:
    with isolated_rng(0):
        return CifarResNet(8, num_classes=3).eval()


def mbconv() -> nn.Module:
    stages = [{"channels": 8, "cells": 2, "stride": 1}, {"channels": 16, "cells": 2, "stride": 2}]
    with isolated_rng(0):
        return build(
            num_classes=3,
            stem_channels=8,
            stem_stride=1,
            first_channels=8,
            stages=stages,
            head_channels=24,
            candidates=["k3_e3", "k5_e3", "zero"],
            width_multiplier=1.0,
            alike_noise=0.1,
        ).eval()


#: By space: the network, and what else its runs are given.
SPACES: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "width": (resnet, ["space.divisor=1", "finetune.epochs=0", "recover=bn", "recover@finalist.recover=bn"]),
    "mbconv": (mbconv, ["finetune.epochs=2", "finetune.warmup_epochs=1"]),
}


def images(num_images: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_images) % 3
    shift = labels[:, None, None, None].float() - 1
    return torch.randn(num_images, 3, 12, 12, generator=generator) + shift, labels


def compress(space: str, folder: Path, *overrides: str) -> compsearch.Compressed:
    network, options = SPACES[space]
    return compsearch.compress(
        network(),
        train=images(120, 0),
        test=images(30, 1),
        searcher="proxylessnas",
        budget=0.6,
        folder=folder,
        overrides=[f"space={space}", *SEARCH, *options, *overrides],
    )


def rows(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in {"wall_s", "cpu_s"}} for row in found]


@pytest.fixture(scope="module", params=SPACES)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Any]:
    folder = tmp_path_factory.mktemp(request.param) / "run"
    return request.param, folder, compress(request.param, folder)


def test_every_trial_is_within_the_budget_and_every_plot_is_there(whole: tuple[str, Path, Any]) -> None:
    space, folder, result = whole
    assert len(result.trials) == 4 + 3
    assert (result.trials["cost_ratio"] <= 0.6).all()
    missing = {name for name in PLOTS if not (folder / name).is_file()}
    assert not missing
    assert (folder / "derived.png").is_file() == (space == "mbconv")
    assert (folder / "policy.png").is_file() == (space == "width")


def test_the_result_is_an_ordinary_network_that_a_new_process_could_load(whole: tuple[str, Path, Any]) -> None:
    space, folder, result = whole
    network = SPACES[space][0]()
    x = images(4, 3)[0]
    loaded = compsearch.load(folder, model=network)
    assert not any(isinstance(module, MixedOperation) for module in loaded.modules())
    assert torch.equal(loaded(x), result.module.eval()(x))
    dense = result.summary.dense
    assert sum(p.numel() for p in loaded.parameters()) == result.summary.networks[1].params < dense.params


def test_the_table_says_what_was_trained_from_scratch(whole: tuple[str, Path, Any]) -> None:
    space, _, result = whole
    assert any("trained from scratch" in note for note in result.summary.notes) == (space == "mbconv")


@pytest.mark.parametrize(
    "num_steps", [pytest.param(1, marks=pytest.mark.slow), 3, pytest.param(5, marks=pytest.mark.slow)]
)
def test_a_search_that_was_killed_goes_on_as_if_it_had_not_been(
    whole: tuple[str, Path, Any], num_steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space, folder, _ = whole

    class Killed(BaseException):
        pass

    step, done = ProxylessNAS.step, []

    def killing(searcher: ProxylessNAS) -> Any:
        if len(done) == num_steps:
            raise Killed
        done.append(None)
        return step(searcher)

    with monkeypatch.context() as patch:
        patch.setattr(ProxylessNAS, "step", killing)
        with pytest.raises(Killed):
            compress(space, tmp_path / "run")
    assert len(rows(tmp_path / "run")) < len(rows(folder))
    compress(space, tmp_path / "run")
    assert rows(tmp_path / "run") == rows(folder)
    policies = [(path / "policy.json").read_text() for path in (folder, tmp_path / "run")]
    assert policies[0] == policies[1]


@pytest.mark.parametrize(
    ("space", "estimator"),
    [
        ("width", "two_path"),
        ("mbconv", "reinforce"),
        pytest.param("width", "reinforce", marks=pytest.mark.slow),
        pytest.param("mbconv", "two_path", marks=pytest.mark.slow),
    ],
)
def test_the_other_estimators_run_too(space: str, estimator: str, tmp_path: Path) -> None:
    options = [f"searcher.estimator={estimator}", "searcher.reinforce_samples=3", "finetune.epochs=0"]
    assert (compress(space, tmp_path / "run", *options).trials["cost_ratio"] <= 0.6).all()


@pytest.mark.parametrize("searcher", ["amc", "legr"])
def test_searchers_of_channels_are_refused_in_a_space_of_operations(searcher: str) -> None:
    config = compose_config([f"searcher={searcher}", "space=mbconv", "run_name=run", "model.build.max_cells=1"])
    with pytest.raises(ValueError, match="chooses channels, but this space has operations only") as caught:
        assemble(config)
    assert "\n" not in str(caught.value)


def test_channels_of_an_over_parameterised_network_are_refused_with_the_space_to_use() -> None:
    config = compose_config(["searcher=uniform", "model=mbconv", "run_name=run", "model.build.max_cells=1"])
    with pytest.raises(ValueError, match=r"several operations in one place.*space=mbconv"):
        assemble(config)


def test_blocks_are_skipped_only_by_searchers_that_can() -> None:
    for searcher, num_blocks in (("proxylessnas", 7), ("amc", 0)):
        config = compose_config([f"searcher={searcher}", "model.weights=random", "run_name=run", "recover=none"])
        parts = assemble(config)
        assert len(parts.space.blocks) == num_blocks
        assert parts.shapes["space"] == {"skip_blocks": num_blocks > 0}


def test_a_table_of_operations_counts_the_dense_network_alone() -> None:
    config = compose_config(["space=mbconv", "model.build.max_cells=1", "run_name=run", "searcher=uniform"])
    text = inspect(config)
    parts = assemble({**config, "recover": config["finalist"]["recover"]})
    dense = [parts.cost_models[name].cost(parts.space.full_policy()) for name in ("macs", "params")]
    assert f"{dense[0]:,.0f} FLOPs (MACs), {dense[1]:,.0f} parameters" in text
    assert "k7_e6 or k5_e6 or k3_e6" in text


def test_a_latency_report_of_operations_is_refused_in_one_line(tmp_path: Path) -> None:
    config = compose_config(["space=mbconv", "run_name=run"])
    with pytest.raises(ValueError, match="removes none; use space=channels"):
        report_latency(config, tmp_path / "latency", ignore=())
