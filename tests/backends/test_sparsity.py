"""Masked networks: exact zeros that no training brings back, in ordinary tensors with ordinary names."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from backends import training
from backends.batch_norm import BatchNormRecovery
from backends.data import Splits
from backends.evaluate import NetworkEvaluator
from backends.least_squares import LeastSquaresRecovery
from backends.macs import ParamsCost
from backends.recovery import NoRecovery
from backends.sequential_least_squares import SequentialLeastSquaresRecovery
from backends.sgd_recovery import SgdRecovery
from backends.sparse_space import sparse_space
from backends.sparsity import MagnitudeMasks
from backends.surgery import ChannelSurgery
from backends.training import Recipe, measure, train
from backends.workbench import NetworkWorkbench, load_network
from compsearch.space import Policy, SearchSpace

CPU = torch.device("cpu")
RECIPE = Recipe(
    epochs=3,
    lr=0.05,
    momentum=0.9,
    weight_decay=0.1,
    batch_size=16,
    warmup_epochs=0.5,
    label_smoothing=0.0,
    nesterov=True,
    distill_weight=0.0,
    distill_temperature=4.0,
    precision="float32",
)


@pytest.fixture
def sparse(tiny: SimpleNamespace) -> SimpleNamespace:
    space = sparse_space(tiny.model, torch.zeros(2, 3, 8, 8), block=[1, 1], num_levels=16, min_keep_ratio=0.1)
    surgery = MagnitudeMasks()
    policy = surgery.typical(tiny.model, space, 0.25)
    return SimpleNamespace(**vars(tiny) | {"space": space, "surgery": surgery, "policy": policy})


def zeros(network: nn.Module, space: SearchSpace) -> dict[str, Tensor]:
    return {weight.parameter: network.get_parameter(weight.parameter) == 0 for weight in space.sparse}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def splits_of(tiny: SimpleNamespace) -> Splits:
    return Splits(tiny.calibration, tiny.search, tiny.search, 5, 8, tuple("abcde"))


def workbench(sparse: SimpleNamespace, **changes: Any) -> NetworkWorkbench:
    given: dict[str, Any] = {
        "model": sparse.model,
        "space": sparse.space,
        "surgery": sparse.surgery,
        "splits": splits_of(sparse),
        "recovery": BatchNormRecovery(calibration=sparse.calibration, device=CPU, batch_size=16),
        "recipe": RECIPE,
        "device": CPU,
        "seed": 0,
        "example_input": torch.zeros(2, 3, 8, 8),
        "batch_size": 16,
        "latency": None,
    }
    return NetworkWorkbench(**(given | changes))


# --- The cut -------------------------------------------------------------------------------------------------------


def test_the_largest_weights_stay_as_they_are_and_the_others_are_zero(sparse: SimpleNamespace) -> None:
    masked = sparse.surgery(sparse.model, sparse.space, sparse.policy)
    for weight in sparse.space.sparse:
        dense, cut = (network.get_parameter(weight.parameter).detach() for network in (sparse.model, masked))
        kept = cut != 0
        assert int(kept.sum()) == weight.kept[sparse.space.counts(sparse.policy)[weight.group]]
        assert torch.equal(cut[kept], dense[kept])
        assert dense[kept].abs().min() >= dense[~kept].abs().max()
    others = set(dict(masked.named_parameters())) - {weight.parameter for weight in sparse.space.sparse}
    assert others  # norms and biases
    for name in others:
        assert torch.equal(masked.get_parameter(name), sparse.model.get_parameter(name))


def test_the_dense_network_is_not_changed_and_shares_no_memory(sparse: SimpleNamespace) -> None:
    before = {key: value.clone() for key, value in sparse.model.state_dict().items()}
    masked = sparse.surgery(sparse.model, sparse.space, sparse.policy)
    with torch.no_grad():
        for tensor in [*masked.parameters(), *masked.buffers()]:
            tensor.zero_()
    assert all(torch.equal(before[key], value) for key, value in sparse.model.state_dict().items())


def test_the_full_policy_is_the_dense_network(sparse: SimpleNamespace) -> None:
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    masked = sparse.surgery(sparse.model, sparse.space, sparse.space.full_policy())
    assert torch.equal(masked(images), sparse.model(images))


def test_names_and_shapes_are_the_dense_networks(sparse: SimpleNamespace) -> None:
    masked = sparse.surgery(sparse.model, sparse.space, sparse.policy)
    shapes = {key: value.shape for key, value in sparse.model.state_dict().items()}
    assert {key: value.shape for key, value in masked.state_dict().items()} == shapes
    assert all(type(value) is Tensor and value.layout is torch.strided for value in masked.state_dict().values())


def test_new_weights_of_the_same_network_are_ranked_anew(sparse: SimpleNamespace) -> None:
    surgery = sparse.surgery
    before = zeros(surgery(sparse.model, sparse.space, sparse.policy), sparse.space)
    assert same(before, zeros(surgery(sparse.model, sparse.space, sparse.policy), sparse.space))
    with torch.no_grad():
        for parameter in sparse.model.parameters():
            parameter.copy_(parameter.flip(0))
    after = zeros(surgery(sparse.model, sparse.space, sparse.policy), sparse.space)
    assert not same(before, after)
    assert same(after, zeros(MagnitudeMasks()(sparse.model, sparse.space, sparse.policy), sparse.space))


def test_a_start_is_cut_in_place_of_the_dense_network(sparse: SimpleNamespace, tmp_path: Path) -> None:
    file = tmp_path / "start.pt"
    state = {key: 2 * value for key, value in sparse.model.state_dict().items()}
    torch.save(state, file)
    images = torch.zeros(1, 3, 8, 8)
    dense_logits = sparse.model(images)
    masked = MagnitudeMasks(start=str(file))(sparse.model, sparse.space, sparse.policy)
    plain = sparse.surgery(sparse.model, sparse.space, sparse.policy)
    for name, parameter in masked.named_parameters():
        assert torch.equal(parameter, 2 * plain.get_parameter(name))
    assert torch.equal(sparse.model(images), dense_logits)


@pytest.mark.parametrize("content", [None, {"linear.weight": torch.zeros(1)}])
def test_a_start_that_is_missing_or_of_another_network_is_refused(
    sparse: SimpleNamespace, tmp_path: Path, content: Any
) -> None:
    file = tmp_path / "start.pt"
    if content is not None:
        torch.save(content, file)
    with pytest.raises(ValueError, match=r"start\.pt") as caught:
        MagnitudeMasks(start=str(file))(sparse.model, sparse.space, sparse.policy)
    assert "\n" not in str(caught.value)


def test_a_policy_that_keeps_other_than_the_largest_is_refused(sparse: SimpleNamespace) -> None:
    ascending = np.arange(float(sparse.space.num_units))
    policy = sparse.space.select(sparse.space.counts(sparse.policy), ascending)
    with pytest.raises(ValueError, match="must keep the largest weights") as caught:
        sparse.surgery(sparse.model, sparse.space, policy)
    assert "\n" not in str(caught.value)


def test_another_model_is_refused(sparse: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match="must be the one its space was made from"):
        sparse.surgery(nn.Linear(3, 2), sparse.space, sparse.policy)


def test_a_surgery_of_the_other_kind_is_refused(sparse: SimpleNamespace, tiny: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match="surgery=channels removes channels, but the space is one of weights"):
        ChannelSurgery().check(sparse.space)
    with pytest.raises(ValueError, match="surgery=magnitude zeroes single weights, but the space is one of channels"):
        MagnitudeMasks().check(tiny.space)
    ChannelSurgery().check(tiny.space)
    MagnitudeMasks().check(sparse.space)


# --- Zeros stay zero -----------------------------------------------------------------------------------------------


def test_fine_tuning_keeps_every_zero_and_moves_every_other_weight(sparse: SimpleNamespace, tmp_path: Path) -> None:
    bench = workbench(sparse)
    network = bench.compress(sparse.policy)
    tuned = bench.finetune(network, tmp_path / "checkpoint.pt")
    gone = zeros(bench.plain(sparse.policy), sparse.space)
    assert same(gone, zeros(tuned, sparse.space))
    for name, removed in gone.items():
        moved = tuned.get_parameter(name) != network.get_parameter(name)
        assert torch.equal(moved, ~removed)
    num_removed = sum(int((tuned.get_parameter(name) == 0).sum()) for name in gone)
    total = sum(parameter.numel() for parameter in tuned.parameters())
    assert total - num_removed == ParamsCost(sparse.space).cost(sparse.policy)
    assert set(tuned.state_dict()) == set(sparse.model.state_dict())
    assert all(not parameter._backward_hooks for parameter in tuned.parameters())


def test_without_holding_the_zeros_would_come_back(sparse: SimpleNamespace) -> None:
    """The negative control of the test above."""
    network = workbench(sparse).compress(sparse.policy)
    train(network, splits_of(sparse).train, RECIPE, device=CPU, seed=0)
    assert not same(zeros(workbench(sparse).plain(sparse.policy), sparse.space), zeros(network, sparse.space))


def test_no_momentum_gathers_behind_a_zero(sparse: SimpleNamespace, tmp_path: Path) -> None:
    bench, checkpoint = workbench(sparse), tmp_path / "checkpoint.pt"
    bench.finetune(bench.compress(sparse.policy), checkpoint)
    state = torch.load(checkpoint, weights_only=True)
    gone = zeros(bench.plain(sparse.policy), sparse.space)
    buffers = [entry["momentum_buffer"] for entry in state["optimizer"]["state"].values()]
    names = [name for name, parameter in sparse.model.named_parameters() if parameter.ndim > 1]
    assert set(names) == set(gone)
    for name, momentum in zip(names, buffers, strict=False):  # weights are the optimiser's first group
        assert not momentum[gone[name]].any()
        assert momentum[~gone[name]].any()


def test_a_resumed_fine_tuning_equals_an_uninterrupted_one(
    sparse: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "_CHECKPOINT_INTERVAL_S", 0.0)
    bench, checkpoint = workbench(sparse), tmp_path / "checkpoint.pt"
    network = bench.compress(sparse.policy)
    whole = bench.finetune(network, tmp_path / "whole.pt")

    save, calls = training._State.save, []

    def save_and_stop(state: Any, path: Path, epoch: int) -> None:
        save(state, path, epoch)
        calls.append(epoch)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(training._State, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        bench.finetune(network, checkpoint)
    monkeypatch.setattr(training._State, "save", save)
    assert torch.load(checkpoint, weights_only=True)["epoch"] == 2
    resumed = bench.finetune(copy.deepcopy(network), checkpoint)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor)
    assert same(zeros(resumed, sparse.space), zeros(bench.plain(sparse.policy), sparse.space))


def test_recovery_by_sgd_keeps_every_zero(sparse: SimpleNamespace) -> None:
    recovery = SgdRecovery(
        splits=splits_of(sparse),
        device=CPU,
        seed=0,
        num_steps=5,
        lr=0.05,
        momentum=0.9,
        weight_decay=0.1,
        batch_size=16,
    )
    network = workbench(sparse, recovery=recovery).compress(sparse.policy)
    plain = workbench(sparse).plain(sparse.policy)
    assert same(zeros(network, sparse.space), zeros(plain, sparse.space))
    assert not torch.equal(network.conv2.weight, plain.conv2.weight)


def test_what_assigns_to_a_held_weight_leaves_its_zeros(sparse: SimpleNamespace) -> None:
    network = sparse.surgery(sparse.model, sparse.space, sparse.policy)
    gone = zeros(network, sparse.space)

    @sparse.surgery.held(network, sparse.space)
    def assign_and_fail() -> None:
        with torch.no_grad():
            network.conv2.weight.fill_(3.0)
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        assign_and_fail()
    assert same(zeros(network, sparse.space), gone)
    assert (network.conv2.weight[~gone["conv2.weight"]] == 3.0).all()


def test_frozen_parameters_are_held_too(sparse: SimpleNamespace) -> None:
    network = sparse.surgery(sparse.model, sparse.space, sparse.policy).requires_grad_(False)
    gone = zeros(network, sparse.space)
    with sparse.surgery.held(network, sparse.space):
        network.conv1.weight.add_(1.0)
    assert same(zeros(network, sparse.space), gone)


@pytest.mark.parametrize("kind", [LeastSquaresRecovery, SequentialLeastSquaresRecovery])
def test_least_squares_is_refused_in_one_line(sparse: SimpleNamespace, kind: Any) -> None:
    options: dict[str, Any] = {"positions_per_image": 4, "ridge": 1e-3, "batch_size": 16}
    limit = {"max_gram_gib": 1.0} if kind is LeastSquaresRecovery else {"max_gib": 1.0, "rectifications": 0}
    given = {"model": sparse.model, "space": sparse.space, "calibration": sparse.calibration, "device": CPU}
    if kind is SequentialLeastSquaresRecovery:
        options["num_workers"] = 1
    with pytest.raises(ValueError, match="least squares refits what reads removed channels") as caught:
        kind(**given, seed=0, **options, **limit)
    assert "\n" not in str(caught.value)


# --- Scored, saved, loaded -----------------------------------------------------------------------------------------


def test_scores_are_of_the_masked_network(sparse: SimpleNamespace) -> None:
    evaluator = NetworkEvaluator(
        model=sparse.model,
        space=sparse.space,
        surgery=sparse.surgery,
        split=sparse.search,
        recovery=NoRecovery(),
        cost_models=[ParamsCost(sparse.space)],
        device=CPU,
        batch_size=16,
        precision="float32",
        num_workers=1,
    )
    for keep_ratio in (0.2, 0.5, 1.0):
        policy: Policy = sparse.surgery.typical(sparse.model, sparse.space, keep_ratio)
        [found] = evaluator.measure([policy])
        masked = sparse.surgery(sparse.model, sparse.space, policy)
        plain = measure(masked, sparse.search, device=CPU, batch_size=40)
        assert found.accuracy == plain.accuracy
        assert found.loss == pytest.approx(plain.loss, rel=1e-4)


def test_a_saved_network_loads_without_the_weights_it_was_cut_from(sparse: SimpleNamespace) -> None:
    masked = workbench(sparse).compress(sparse.policy)
    state = workbench(sparse).state(masked)
    fresh = copy.deepcopy(sparse.model)
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.fill_(1.0)
    gone = MagnitudeMasks(start="moved/away.pt")
    loaded = load_network(model=fresh, space=sparse.space, surgery=gone, policy=sparse.policy, state=state)
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded.eval()(images), masked.eval()(images))
    assert bool((fresh.conv1.weight == 1).all())
