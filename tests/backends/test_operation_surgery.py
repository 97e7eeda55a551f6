"""Derived networks are ordinary ones: they compute the path, share nothing, train, export and load."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from backends.batch_norm import BatchNormRecovery
from backends.cifar_resnet import CifarResNet
from backends.data import Splits, TensorSplit
from backends.evaluate import NetworkEvaluator
from backends.export import export_program
from backends.groups import trace
from backends.macs import MacsCost
from backends.mbconv import build
from backends.mixed_operation import MixedOperation, set_operations
from backends.operation_space import operation_space
from backends.operation_surgery import OperationSurgery
from backends.surgery import ChannelSurgery, extract
from backends.training import Recipe, ScratchRecipe, forget, train
from backends.workbench import NetworkWorkbench, load_network
from compsearch.space import Policy

CPU = torch.device("cpu")
IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
SCRATCH = {
    "epochs": 1,
    "lr": 0.05,
    "momentum": 0.9,
    "weight_decay": 4e-5,
    "batch_size": 16,
    "warmup_epochs": 0.0,
    "label_smoothing": 0.1,
    "nesterov": True,
    "distill_weight": 0.0,
    "distill_temperature": 4.0,
    "precision": "float32",
}


def split_of(name: str, num_images: int, seed: int) -> TensorSplit:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(num_images, 3, 8, 8, generator=generator)
    labels = torch.randint(5, (num_images,), generator=generator)
    return TensorSplit(name=name, images=images, labels=labels, normalisation=None, augmentation=None)


@pytest.fixture
def given() -> SimpleNamespace:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build(
            num_classes=5,
            stem_channels=8,
            stem_stride=1,
            first_channels=8,
            stages=[{"channels": 8, "cells": 2, "stride": 1}, {"channels": 16, "cells": 2, "stride": 2}],
            head_channels=24,
            candidates=["k5_e3", "k3_e3", "k3_e1", "zero"],
            width_multiplier=1.0,
            alike_noise=None,
        )
    space = operation_space(model, torch.zeros(2, 3, 8, 8))
    for operations in ([0] * 4, [1] * 4, [2] * 4):  # running statistics that are not the initial ones
        set_operations(model, space, operations)
        with torch.no_grad():
            model.train()(torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(2)))
    set_operations(model, space, [0] * 4)
    surgery = OperationSurgery()
    return SimpleNamespace(model=model.eval(), space=space, surgery=surgery, policy=policy_of(space, [3, 1, 2, 3]))


def policy_of(space: Any, operations: list[int]) -> Policy:
    policy: Policy = space.select([], np.zeros(0), operations)
    return policy


@pytest.mark.parametrize("operations", [[0, 0, 0, 0], [3, 1, 2, 3], [2, 3, 1, 0], [3, 3, 2, 3]])
def test_a_derived_network_computes_its_path(given: SimpleNamespace, operations: list[int]) -> None:
    derived = given.surgery(given.model, given.space, policy_of(given.space, operations))
    set_operations(given.model, given.space, operations)
    assert torch.equal(derived(IMAGES), given.model(IMAGES))


def test_nothing_of_the_choice_is_left(given: SimpleNamespace) -> None:
    derived = given.surgery(given.model, given.space, given.policy)
    assert not any(isinstance(module, MixedOperation) for module in derived.modules())
    assert isinstance(derived.stages[0][0], nn.Identity)
    assert isinstance(derived.stages[1][1], nn.Identity)
    assert {name.split(".")[4] for name in derived.state_dict() if name.startswith("stages.0.1")} == {
        "expand",
        "depthwise",
        "project",
    }


def test_the_model_is_not_changed_and_shares_no_memory(given: SimpleNamespace) -> None:
    before = {name: tensor.clone() for name, tensor in given.model.state_dict().items()}
    modules = dict(given.model.named_modules())
    for operations in ([3, 1, 2, 3], [0, 0, 0, 0]):
        derived = given.surgery(given.model, given.space, policy_of(given.space, operations))
        own = {tensor.untyped_storage()._cdata for tensor in given.model.state_dict().values()}
        assert own.isdisjoint(tensor.untyped_storage()._cdata for tensor in derived.state_dict().values())
        assert set(derived.modules()).isdisjoint(given.model.modules())
    assert dict(given.model.named_modules()) == modules
    assert all(torch.equal(before[name], tensor) for name, tensor in given.model.state_dict().items())


def test_modes_formats_and_frozen_weights_are_kept(given: SimpleNamespace) -> None:
    given.model.to(memory_format=torch.channels_last).train()
    given.model.stem.conv.weight.requires_grad_(False)
    derived = given.surgery(given.model, given.space, given.policy)
    assert all(module.training for module in derived.modules())
    assert not derived.stem.conv.weight.requires_grad
    assert derived.stem.conv.weight.is_contiguous(memory_format=torch.channels_last)


def test_weights_load_into_the_structure(given: SimpleNamespace) -> None:
    derived = given.surgery(given.model, given.space, given.policy)
    with torch.no_grad():
        for parameter in derived.parameters():
            parameter.mul_(2.0)
    loaded = load_network(
        model=given.model,
        space=given.space,
        surgery=given.surgery,
        policy=given.policy,
        state=derived.state_dict(),
    )
    assert torch.equal(loaded(IMAGES), derived(IMAGES))


def test_a_derived_network_copies_trains_and_exports(given: SimpleNamespace, tmp_path: Any) -> None:
    derived = given.surgery(given.model, given.space, given.policy)
    twin = copy.deepcopy(derived)
    train(derived, split_of("train", 16, 0), Recipe(**SCRATCH), device=CPU, seed=0)  # type: ignore[arg-type]
    assert not torch.equal(twin(IMAGES), derived(IMAGES))
    done = export_program(derived, IMAGES, tmp_path / "model.pt2")
    assert done.difference <= 1e-4 * done.scale


def test_networks_of_all_kinds_of_operations_are_scored(given: SimpleNamespace) -> None:
    # In one evaluator: what was checked on one network must hold for networks of other modules.
    cost = MacsCost(given.space)
    evaluator = NetworkEvaluator(
        model=given.model,
        space=given.space,
        surgery=given.surgery,
        split=split_of("search", 40, 3),
        recovery=BatchNormRecovery(calibration=split_of("calibration", 32, 4), device=CPU, batch_size=16),
        cost_models=[cost],
        device=CPU,
        batch_size=16,
        precision="float32",
    )
    policies = [policy_of(given.space, operations) for operations in ([0] * 4, [3, 3, 2, 3], [2] * 4, [1, 0, 2, 3])]
    for policy, measurement in zip(policies, evaluator.measure(policies), strict=True):
        network = evaluator.recovered(policy)
        labels = split_of("search", 40, 3).labels
        ((images, _),) = split_of("search", 40, 3).batches(40)
        with torch.no_grad():
            accuracy = float((network(images).argmax(1) == labels).double().mean())
        assert measurement.accuracy == pytest.approx(accuracy, abs=0.026)  # one image by rounding
        assert measurement.costs["macs"] == cost.cost(policy)


def test_the_typical_network_is_about_as_dear_as_asked_and_of_other_modules(given: SimpleNamespace) -> None:
    typical = given.surgery.typical(given.model, given.space, 0.7)
    assert typical == given.surgery.typical(given.model, given.space, 0.7)
    networks = [given.surgery(given.model, given.space, policy) for policy in (typical, given.space.full_policy())]
    assert len({tuple(name for name, _ in network.named_modules()) for network in networks}) == 2
    cost = MacsCost(given.space)
    assert cost.cost(typical) < cost.cost(given.space.full_policy())


def test_spaces_of_channels_and_of_operations_are_told_apart(given: SimpleNamespace) -> None:
    model = CifarResNet(8)
    channels = trace(model, torch.zeros(1, 3, 32, 32), divisor=4, min_keep_ratio=0.1)
    with pytest.raises(ValueError, match="surgery=operations chooses operations, but the space is one of channels"):
        given.surgery.check(channels)
    with pytest.raises(ValueError, match="surgery=operations chooses operations"):
        given.surgery(model, channels, channels.full_policy())
    with pytest.raises(ValueError, match="surgery=channels removes channels, but the space is one of 4 operations"):
        ChannelSurgery().check(given.space)
    with pytest.raises(ValueError, match="surgery=channels removes channels, but the space is one of 4 operations"):
        extract(given.model, given.space, given.policy)
    given.surgery.check(given.space)


def test_policies_of_other_spaces_are_refused(given: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match="must belong to this network"):
        given.surgery(given.model, given.space, Policy("other", (), given.policy.operations))


# --- Training from scratch -----------------------------------------------------------------------------------------


def bench(given: SimpleNamespace, recipe: Recipe, seed: int = 0) -> NetworkWorkbench:
    splits = Splits(split_of("train", 32, 5), split_of("search", 16, 6), split_of("test", 16, 7), 5, 8, tuple("abcde"))
    return NetworkWorkbench(
        model=given.model,
        space=given.space,
        surgery=given.surgery,
        splits=splits,
        recovery=BatchNormRecovery(calibration=split_of("calibration", 32, 4), device=CPU, batch_size=16),
        recipe=recipe,
        device=CPU,
        seed=seed,
        example_input=torch.zeros(2, 3, 8, 8),
        batch_size=16,
        latency=None,  # type: ignore[arg-type]
    )


def test_from_scratch_nothing_of_the_search_is_left(given: SimpleNamespace, tmp_path: Any) -> None:
    network = given.surgery(given.model, given.space, given.policy)
    other = copy.deepcopy(network)
    with torch.no_grad():
        for tensor in [*other.parameters(), *other.buffers()]:
            tensor.copy_(torch.ones_like(tensor))
    tuned = {}
    for kind in (ScratchRecipe, Recipe):
        for name, start in (("network", network), ("other", other)):
            recipe = kind(**SCRATCH)  # type: ignore[arg-type]
            tuned[kind, name] = bench(given, recipe).finetune(start, tmp_path / f"{kind.__name__}-{name}.pt")(IMAGES)
    assert torch.equal(tuned[ScratchRecipe, "network"], tuned[ScratchRecipe, "other"])
    assert not torch.equal(tuned[Recipe, "network"], tuned[Recipe, "other"])


def test_new_weights_follow_from_the_seed_and_are_the_networks_own_kind(given: SimpleNamespace) -> None:
    before = torch.get_rng_state()
    networks = [given.surgery(given.model, given.space, given.policy) for _ in range(3)]
    for network, seed in zip(networks, (0, 0, 1), strict=True):
        forget(network, seed)
    assert torch.equal(torch.get_rng_state(), before)
    first, again, other = (network.state_dict() for network in networks)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.conv.weight"], other["head.conv.weight"])
    assert float(first["classifier.weight"].std()) < 0.02  # the network's own, not nn.Linear's
    assert not first["stem.norm.running_mean"].any()


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))


def test_weights_that_nothing_would_draw_anew_are_refused() -> None:
    with pytest.raises(ValueError, match=r"nothing around '1\.scale' has a reset_parameters"):
        forget(nn.Sequential(nn.Conv2d(3, 3, 1), Scale()), 0)


def test_a_recipe_from_scratch_has_no_teacher() -> None:
    with pytest.raises(ValueError, match="a recipe from scratch has no teacher"):
        ScratchRecipe(**(SCRATCH | {"distill_weight": 0.5}))  # type: ignore[arg-type]
