from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from backends.cifar_resnet import CifarResNet
from backends.groups import trace
from backends.macs import Ledger, MacsCost, ParamsCost
from backends.surgery import extract
from compsearch.space import Policy, SearchSpace

FAMILIES = [
    *("alexnet", "convnext_tiny", "googlenet", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_y_400mf"),
    *("resnet18", "resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_1", "vgg11"),
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("densenet121", "efficientnet_b0", "maxvit_t", "swin_t", "vit_b_16")
    ),
]
OPTIONS = {"googlenet": {"init_weights": False}, "vit_b_16": {"image_size": 32}}
SIZES = {"alexnet": 63, "maxvit_t": 224}


def random_policy(space: SearchSpace, seed: int) -> Policy:
    rng = np.random.default_rng(seed)
    return space.select([rng.choice(group.counts) for group in space.groups], rng.random(space.num_units))


def counted(model: nn.Module, x: Tensor) -> tuple[float, int]:
    """MACs of one image as PyTorch counts them (shapes suffice), and parameters."""
    model = model.to("meta")
    # With grad enabled: under no_grad, fused attention is not counted.
    with FlopCounterMode(display=False) as counter:
        model(torch.empty_like(x[:1], device="meta"))
    return counter.get_total_flops() / 2, sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", FAMILIES)
def test_the_ledger_is_exact_for_random_policies(name: str) -> None:
    # Values are not needed, so none is initialised, except that RegNets compute their widths in tensors.
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        model = torchvision.models.get_model(name, weights=None, **OPTIONS.get(name, {})).eval()
    x = torch.zeros(2, 3, SIZES.get(name, 32), SIZES.get(name, 32))
    space = trace(model, x, divisor=8, min_keep_ratio=0.1)
    ledger = Ledger(space)
    macs, params = MacsCost(space, ledger), ParamsCost(space, ledger)
    for policy in (space.full_policy(), *(random_policy(space, seed) for seed in range(3))):
        assert (macs.cost(policy), params.cost(policy)) == counted(extract(model, space, policy), x)


class Mixture(nn.Module):
    """What changes cost in other ways: constants, attention, transposed and grouped layers, a layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.twice = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.up, self.grouped = nn.ConvTranspose2d(16, 24, 2, 2), nn.ConvTranspose2d(24, 24, 3, 2, groups=4)
        self.register_buffer("blur", torch.ones(24, 1, 3, 3))
        self.conv1d, self.conv3d = nn.Conv1d(24, 16, 3), nn.Conv3d(16, 16, (1, 3, 1))
        self.norm, self.attention = nn.LayerNorm(16), nn.MultiheadAttention(16, 2, batch_first=True)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, torch.ones(3, 3, 1, 1, device=x.device))
        x = self.twice(F.relu(self.twice(self.stem(x))))
        x = self.grouped(self.up(x))
        x = F.conv2d(x, self.blur, groups=x.shape[1])
        x = self.conv3d(self.conv1d(x.mean(2))[:, :, None, :, None])[:, :, 0, :, 0]
        x = self.norm(x.transpose(1, 2))
        return self.fc((x + self.attention(x, x, x)[0]).mean(1))


@pytest.mark.parametrize("num_images", [1, 3])
def test_the_ledger_is_exact_whatever_layers_there_are(num_images: int) -> None:
    model = Mixture().eval()
    x = torch.zeros(num_images, 3, 8, 8)
    space = trace(model, x, divisor=1, min_keep_ratio=0.1)
    assert {"stem", "up", "conv1d"} <= {group.name for group in space.groups}
    assert space.constant_macs > 0
    for seed in range(4):
        policy = random_policy(space, seed)
        assert (MacsCost(space).cost(policy), ParamsCost(space).cost(policy)) == counted(
            extract(model, space, policy), x
        )


class OfConstants(nn.Module):
    """What layers compute from constants, the same for all images: once, or for each image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.query = nn.Conv2d(3, 16, 3), nn.Linear(5, 16)
        self.token = nn.Parameter(torch.rand(1, 1, 5))
        self.places = nn.Sequential(nn.Linear(2, 24), nn.ReLU(), nn.Linear(24, 16))

    def forward(self, x: Tensor) -> Tensor:
        bias = self.places(torch.ones(1, 36, 2, device=x.device)).transpose(1, 2)
        query = self.query(self.token.expand(len(x), -1, -1))
        return query @ torch.bmm(self.conv(x).flatten(2), bias.mT.expand(len(x), -1, -1))


@pytest.mark.parametrize("num_images", [1, 3])
def test_layers_of_constants_cost_as_much_whatever_the_number_of_images(num_images: int) -> None:
    model = OfConstants().eval()
    x = torch.zeros(num_images, 3, 8, 8)
    space = trace(model, x, divisor=1, min_keep_ratio=0.1)
    assert [group.name for group in space.groups] == ["places.0"]
    for policy in (space.full_policy(), random_policy(space, 0)):
        assert MacsCost(space).cost(policy) == counted(extract(model, space, policy), x)[0]


def test_macs_of_a_convolution_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1), nn.Flatten(), nn.Linear(4 * 25, 2))
    space = trace(model, torch.zeros(1, 3, 5, 5), divisor=1, min_keep_ratio=0.1)
    policy = space.select([6, 3], np.arange(space.num_units, dtype=np.float64))
    assert MacsCost(space).cost(policy) == 25 * (3 * 6 * 9 + 6 * 3) + 3 * 25 * 2
    assert ParamsCost(space).cost(policy) == (3 * 9 + 1) * 6 + (6 + 1) * 3 + (75 + 1) * 2


def test_resnet56_has_the_published_number_of_macs() -> None:
    space = trace(CifarResNet(56), torch.zeros(1, 3, 32, 32), divisor=8, min_keep_ratio=0.1)
    assert MacsCost(space).cost(space.full_policy()) == pytest.approx(125.5e6, rel=1e-3)
    assert ParamsCost(space).cost(space.full_policy()) == 853_018


def test_many_policies_cost_what_each_costs_alone() -> None:
    space = trace(CifarResNet(20), torch.zeros(1, 3, 32, 32), divisor=4, min_keep_ratio=0.1)
    policies = [random_policy(space, seed) for seed in range(20)]
    counts = np.stack([space.counts(policy) for policy in policies])
    for cost_model in (MacsCost(space), ParamsCost(space)):
        together = cost_model.costs(counts)
        assert together.shape == (20,)
        assert together.tolist() == [cost_model.cost(policy) for policy in policies]


def test_fewer_channels_never_cost_more() -> None:
    space = trace(CifarResNet(20), torch.zeros(1, 3, 32, 32), divisor=4, min_keep_ratio=0.1)
    counts = np.repeat(space.sizes[None], len(space.groups) + 1, axis=0)
    np.fill_diagonal(counts, space.min_counts)
    macs, params = MacsCost(space).costs(counts), ParamsCost(space).costs(counts)
    assert (macs[:-1] < macs[-1]).all()
    assert (params[:-1] < params[-1]).all()


def test_a_network_without_groups_costs_what_it_costs() -> None:
    space = trace(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), torch.zeros(1, 3, 2, 2), divisor=1, min_keep_ratio=0.1)
    assert MacsCost(space).cost(space.full_policy()) == 24
    assert ParamsCost(space).costs(np.zeros((3, 0), dtype=np.int64)).tolist() == [26, 26, 26]


def test_policies_of_other_spaces_and_misshapen_counts_are_refused() -> None:
    space = trace(CifarResNet(8), torch.zeros(1, 3, 32, 32), divisor=4, min_keep_ratio=0.1)
    other = trace(CifarResNet(14), torch.zeros(1, 3, 32, 32), divisor=4, min_keep_ratio=0.1)
    with pytest.raises(ValueError, match="must belong to the space that prices it"):
        MacsCost(space).cost(other.full_policy())
    with pytest.raises(ValueError, match=r"counts must be \[num_policies, 6\]"):
        ParamsCost(space).costs(space.sizes)


class Queries(nn.Module):
    """Layers on learned rows that are repeated for each image, last, and on rows that are not."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.table = nn.Parameter(torch.randn(5, 8)), nn.Parameter(torch.randn(2, 8))
        self.conv, self.on_rows, self.on_table = nn.Conv2d(3, 8, 3), nn.Linear(8, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.on_rows(self.rows.unsqueeze(1).repeat(1, len(x), 1)).mean(0)
        return self.head(self.conv(x).mean((2, 3)) + rows + self.on_table(self.table).mean(0))


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_a_layer_on_constants_costs_what_it_costs_one_image_alone(batch_size: int) -> None:
    model = Queries().eval()
    space = trace(model, torch.zeros(batch_size, 3, 8, 8), divisor=2, min_keep_ratio=0.1)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 8, 8))
    assert MacsCost(space).cost(space.full_policy()) == counter.get_total_flops() / 2
