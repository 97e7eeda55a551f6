"""The space of an over-parameterised network: blocks, layers of all candidates, and exact and expected costs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from backends.macs import MacsCost, ParamsCost
from backends.mbconv import MBConvNetwork, build
from backends.mixed_operation import Cell, MixedOperation, Zero
from backends.operation_space import operation_macs, operation_space
from compsearch.candidates import candidates_of
from compsearch.space import SearchSpace


def network() -> MBConvNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build(
            num_classes=5,
            stem_channels=8,
            stem_stride=2,
            first_channels=8,
            stages=[{"channels": 8, "cells": 1, "stride": 1}, {"channels": 16, "cells": 2, "stride": 2}],
            head_channels=24,
            candidates=["k3_e2", "k5_e2", "k3_e1", "zero"],
            width_multiplier=1.0,
            alike_noise=None,
        ).eval()


def traced(model: nn.Module, size: int = 16) -> SearchSpace:
    return operation_space(model, torch.zeros(2, 3, size, size))


def test_blocks_are_the_mixed_operations_in_the_order_of_the_forward() -> None:
    space = traced(network())
    assert [block.name for block in space.blocks] == [f"stages.{place}.operation" for place in ("0.0", "1.0", "1.1")]
    assert [len(block.operations) for block in space.blocks] == [4, 3, 4]
    first = space.blocks[0].operations
    assert first[0].modules == ("stages.0.0.operation.candidates.0",)
    assert (first[-1].name, first[-1].modules) == ("zero", ())
    assert space.groups == ()


def test_every_layer_of_every_candidate_is_there_as_it_runs() -> None:
    model = network()
    space = traced(model)
    wanted = {name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    assert {layer.name for layer in space.layers} == wanted
    depthwise = space.layer_by_name["stages.1.0.operation.candidates.0.depthwise.conv"]
    assert (depthwise.height, depthwise.stride, depthwise.kernel_size, depthwise.out_channels) == (8, 2, 5, 16)
    assert depthwise.macs == 16 * 25 * 4 * 4


def test_parameters_of_all_candidates_are_counted() -> None:
    model = network()
    assert traced(model).parameter_sizes == {name: tensor.numel() for name, tensor in model.named_parameters()}


def test_the_model_is_not_changed() -> None:
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modules = dict(model.named_modules())
    traced(model)
    assert dict(model.named_modules()) == modules
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_operations_cost_what_their_layers_do() -> None:
    space = traced(network())
    ins, positions = 8, 64
    # Expansion, depthwise and projection of k5_e2 and k3_e2; depthwise and projection of k3_e1.
    wanted = [16 * (ins + 25 + 8), 16 * (ins + 9 + 8), 8 * (9 + 8), 0]
    assert operation_macs(space, space.blocks[0]).tolist() == [positions * macs for macs in wanted]


def test_the_expected_cost_is_the_mean_over_all_networks() -> None:
    space = traced(network())
    candidates = candidates_of(space, [1.0])
    rng = np.random.default_rng(0)
    probabilities = np.where(candidates.is_one, rng.random(candidates.values.shape), 0.0)
    probabilities /= probabilities.sum(1, keepdims=True)
    paths = np.array(list(itertools.product(*(range(size) for size in candidates.sizes))))
    weights = probabilities[np.arange(len(candidates.sizes)), paths].prod(1)
    for model in (MacsCost(space), ParamsCost(space)):
        mean = weights @ model.costs(candidates.choices(paths))
        assert float(model.expected(candidates, torch.from_numpy(probabilities))) == pytest.approx(mean, rel=1e-12)


def test_spaces_of_other_candidates_have_other_fingerprints() -> None:
    one = traced(network()).fingerprint
    assert traced(network()).fingerprint == one
    model = network()
    model.stages[0][0].operation.names = ("a", "b", "c", "zero")  # type: ignore[index]
    assert traced(model).fingerprint != one


def test_a_network_without_mixed_operations_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must be of a network with mixed operations, .* use model=mbconv"):
        traced(nn.Conv2d(3, 4, 3))


def test_candidates_of_different_shapes_are_refused() -> None:
    mixed = MixedOperation({"same": nn.Conv2d(3, 4, 3, padding=1), "smaller": nn.Conv2d(3, 4, 3)})
    with pytest.raises(ValueError, match=r"candidates must give the same shape, but smaller gives \[2, 4, 14, 14\]"):
        traced(nn.Sequential(mixed))


def test_candidates_out_of_the_order_of_their_cost_are_refused() -> None:
    mixed = MixedOperation({"small": nn.Conv2d(3, 3, 1), "large": nn.Conv2d(3, 3, 3, padding=1)})
    with pytest.raises(ValueError, match="first operation must cost most and its last least"):
        traced(nn.Sequential(mixed))


def test_mixed_operations_inside_each_other_are_refused() -> None:
    inner = Cell(MixedOperation({"conv": nn.Conv2d(3, 3, 1), "zero": Zero()}), has_shortcut=True)
    with pytest.raises(ValueError, match="must not be inside each other"):
        traced(nn.Sequential(MixedOperation({"cell": inner, "zero": Zero()})))


def test_a_model_that_is_nothing_but_a_mixed_operation_is_refused() -> None:
    with pytest.raises(ValueError, match="must be a part of a network"):
        traced(MixedOperation({"conv": nn.Conv2d(3, 3, 1)}))


class Attention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        return ((flat @ flat.transpose(1, 2)) @ flat).view_as(x)


def test_candidates_with_attention_are_refused() -> None:
    mixed = MixedOperation({"conv": nn.Conv2d(3, 3, 1), "attention": Attention()})
    with pytest.raises(ValueError, match="no products of activations"):
        traced(nn.Sequential(mixed))
