from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from backends.cifar_resnet import CifarResNet
from backends.groups import trace
from backends.inventory import take_inventory
from backends.memory import PeakMemoryCost
from backends.recording import record
from backends.surgery import extract
from compsearch.budget import budget_from_ratio
from compsearch.space import Policy, SearchSpace


def random_policy(space: SearchSpace, seed: int) -> Policy:
    rng = np.random.default_rng(seed)
    return space.select([rng.choice(group.counts) for group in space.groups], rng.random(space.num_units))


def peak_memory(model: nn.Module, space: SearchSpace, x: Tensor) -> PeakMemoryCost:
    return PeakMemoryCost(space=space, inventory=take_inventory(model, space, x))


class Chain(nn.Module):
    """Two convolutions, a shortcut around the second, and a linear layer, on 4×4 images."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)
        self.conv3, self.linear = nn.Conv2d(8, 40, 1), nn.Linear(40, 2)
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x), self.inplace)
        return self.linear(self.conv3(self.conv2(x) + x).mean((2, 3)))


@pytest.mark.parametrize("inplace", [False, True])
def test_the_peak_of_a_chain_by_hand(inplace: bool) -> None:
    x = torch.zeros(2, 3, 4, 4)
    space = trace(Chain(inplace), x, divisor=1, min_keep_ratio=0.025)
    assert [group.name for group in space.groups] == ["conv1", "conv3"]
    cost_model = peak_memory(Chain(inplace), space, x)
    assert cost_model.resource == "peak_activation_bytes"
    # 16 positions of 4 bytes; the widest moments: conv2's result beside what it is added to and their sum, or conv3
    # with its input, or its result beside the means of its channels.
    counts = np.array([[8, 1], [8, 40], [1, 40], [8, 20]])
    assert cost_model.costs(counts).tolist() == [64 * 3 * 8, 64 * (8 + 40), 64 * 40 + 4 * 40, 64 * (8 + 20)]


def test_an_operation_in_place_needs_no_memory_of_its_own() -> None:
    class Activation(nn.Module):
        def __init__(self, inplace: bool) -> None:
            super().__init__()
            self.conv, self.linear, self.inplace = nn.Conv2d(3, 8, 1), nn.Linear(8, 2), inplace

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(F.relu(self.conv(x), self.inplace).mean((2, 3)))

    x = torch.zeros(1, 3, 4, 4)
    space = trace(Activation(True), x, divisor=1, min_keep_ratio=0.1)
    own, shared = (peak_memory(Activation(inplace), space, x) for inplace in (False, True))
    full = space.full_policy()
    assert own.cost(full) == 64 * (8 + 8)
    assert shared.cost(full) == 64 * (3 + 8)


@pytest.mark.parametrize("name", ["resnet20", "shufflenet_v2_x0_5"])
def test_the_peak_is_that_of_the_really_extracted_network(name: str) -> None:
    model = (CifarResNet(20) if name == "resnet20" else torchvision.models.get_model(name, weights=None)).eval()
    x = torch.zeros(2, 3, 32, 32)
    space = trace(model, x, divisor=4, min_keep_ratio=0.1)
    cost_model = peak_memory(model, space, x)
    policies = [space.full_policy(), *(random_policy(space, seed) for seed in range(4))]
    found = [4 * record(extract(model, space, policy), (x[:1],), {}).alive.max() for policy in policies]
    assert [cost_model.cost(policy) for policy in policies] == found
    counts = np.stack([space.counts(policy) for policy in policies])
    assert cost_model.costs(counts).tolist() == found


def test_fewer_channels_never_need_more_memory() -> None:
    x = torch.zeros(2, 3, 32, 32)
    space = trace(CifarResNet(20), x, divisor=4, min_keep_ratio=0.1)
    cost_model = peak_memory(CifarResNet(20), space, x)
    counts = np.repeat(space.sizes[None], len(space.groups) + 1, axis=0)
    np.fill_diagonal(counts, space.min_counts)
    costs = cost_model.costs(counts)
    assert (costs[:-1] <= costs[-1]).all()
    assert cost_model.costs(space.min_counts[None])[0] < costs[-1]


def test_a_budget_below_the_smallest_policy_is_refused_with_the_floor() -> None:
    x = torch.zeros(2, 3, 32, 32)
    space = trace(CifarResNet(8), x, divisor=4, min_keep_ratio=0.1)
    cost_model = peak_memory(CifarResNet(8), space, x)
    with pytest.raises(ValueError, match=r"0\.\d+ of the dense peak_activation_bytes, but got cost_ratio=0.01"):
        budget_from_ratio(cost_ratio=0.01, cost_model=cost_model, space=space)


def test_policies_of_other_spaces_are_refused() -> None:
    x = torch.zeros(2, 3, 32, 32)
    space, other = (trace(CifarResNet(depth), x, divisor=4, min_keep_ratio=0.1) for depth in (8, 14))
    with pytest.raises(ValueError, match="must belong to the space that prices it"):
        peak_memory(CifarResNet(8), space, x).cost(other.full_policy())
