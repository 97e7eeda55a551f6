from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backends.cifar_resnet import CifarResNet
from backends.energy import EnergyCost
from backends.groups import trace
from backends.inventory import take_inventory
from backends.macs import MacsCost, ParamsCost
from compsearch.candidates import candidates_of

CONSTANTS = {"multiply_pj": 4.0, "add_pj": 1.0, "weight_read_pj": 600.0, "activation_access_pj": 50.0}


class Chain(nn.Module):
    """Two convolutions on 4×4 images with a ReLU between them, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 1, bias=False), nn.Conv2d(8, 4, 1)
        self.linear = nn.Linear(4 * 16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(torch.flatten(self.conv2(F.relu(self.conv1(x))), 1))


def energy(model: nn.Module, x: Tensor, *, divisor: int = 1, **changes: float) -> EnergyCost:
    space = trace(model, x, divisor=divisor, min_keep_ratio=0.1)
    inventory = take_inventory(model, space, x)
    return EnergyCost(space=space, inventory=inventory, source="a book", **{**CONSTANTS, **changes})


def test_the_energy_of_a_chain_by_hand() -> None:
    cost_model = energy(Chain(), torch.zeros(2, 3, 4, 4))
    parts = cost_model.parts(np.array([[6, 3]]))
    macs = 16 * (3 * 6 + 6 * 3) + 3 * 16 * 2
    params = 3 * 6 + (6 * 3 + 3) + (3 * 16 * 2 + 2)
    read = 16 * (3 + 6 + 6 + 3)
    written = 16 * (6 + 6 + 3) + 2
    assert parts["arithmetic"].tolist() == pytest.approx([macs * 5 * 1e-9])
    assert parts["weights"].tolist() == pytest.approx([params * 600 * 1e-9])
    assert parts["activations"].tolist() == pytest.approx([(read + written) * 50 * 1e-9])
    assert cost_model.costs(np.array([[6, 3]])) == pytest.approx(sum(parts.values()))
    assert cost_model.resource == "energy_mj"


def test_it_is_called_analytic_with_its_source() -> None:
    cost_model = energy(Chain(), torch.zeros(2, 3, 4, 4))
    assert cost_model.kind == "analytic, a book"
    assert "energy_mj is analytic, a book" in cost_model.note
    assert "not measured" in cost_model.note


def test_many_policies_cost_what_each_costs_alone_and_fewer_channels_cost_less() -> None:
    x = torch.zeros(2, 3, 32, 32)
    cost_model = energy(CifarResNet(20), x, divisor=4)
    space = trace(CifarResNet(20), x, divisor=4, min_keep_ratio=0.1)
    counts = np.repeat(space.sizes[None], len(space.groups) + 1, axis=0)
    np.fill_diagonal(counts, space.min_counts)
    together = cost_model.costs(counts)
    zeros = np.zeros(space.num_units)
    assert together.tolist() == pytest.approx([cost_model.cost(space.select(row, zeros)) for row in counts], rel=1e-12)
    assert (together[:-1] < together[-1]).all()


def test_macs_and_parameters_are_the_ledgers() -> None:
    x = torch.zeros(2, 3, 32, 32)
    space = trace(CifarResNet(20), x, divisor=4, min_keep_ratio=0.1)
    counts = np.stack([space.sizes, space.min_counts])
    none = dict.fromkeys(CONSTANTS, 0.0)
    arithmetic = energy(CifarResNet(20), x, divisor=4, **{**none, "multiply_pj": 1e9})
    weights = energy(CifarResNet(20), x, divisor=4, **{**none, "weight_read_pj": 1e9})
    assert arithmetic.costs(counts) == pytest.approx(MacsCost(space).costs(counts))
    assert weights.costs(counts) == pytest.approx(ParamsCost(space).costs(counts))


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_constants_that_make_no_sense_are_refused_by_name(value: float) -> None:
    with pytest.raises(ValueError, match=r"0 <= cost_models.energy_mj.add_pj < inf` must hold"):
        energy(Chain(), torch.zeros(2, 3, 4, 4), add_pj=value)


def test_a_model_in_which_nothing_costs_anything_is_refused() -> None:
    with pytest.raises(ValueError, match="must have a constant above 0"):
        energy(Chain(), torch.zeros(2, 3, 4, 4), **dict.fromkeys(CONSTANTS, 0.0))


def test_policies_of_other_spaces_are_refused() -> None:
    x = torch.zeros(2, 3, 32, 32)
    other = trace(CifarResNet(14), x, divisor=4, min_keep_ratio=0.1)
    with pytest.raises(ValueError, match="must belong to the space that prices it"):
        energy(CifarResNet(8), x, divisor=4).cost(other.full_policy())


def test_the_expected_energy_is_the_mean_over_all_networks() -> None:
    model, x = CifarResNet(8).eval(), torch.zeros(2, 3, 32, 32)
    space = trace(model, x, divisor=8, min_keep_ratio=0.25, skip_blocks=True)
    cost_model = EnergyCost(space=space, inventory=take_inventory(model, space, x), source="a book", **CONSTANTS)
    candidates = candidates_of(space, [1.0, 0.25])
    weights = np.random.default_rng(0).random(candidates.values.shape) * candidates.is_one
    probabilities = weights / weights.sum(axis=1, keepdims=True)
    paths = np.array(list(itertools.product(*(range(size) for size in candidates.sizes))))
    of_paths = probabilities[np.arange(len(probabilities)), paths].prod(axis=1)
    costs = cost_model.costs(candidates.choices(paths))
    found = cost_model.expected(candidates, torch.from_numpy(probabilities))
    assert float(found) == pytest.approx(of_paths @ costs)
    skipped, kept = (cost_model.costs(np.array([[*space.sizes, operation]]))[0] for operation in (1, 0))
    assert skipped < kept
