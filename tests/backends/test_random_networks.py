"""Networks nobody designed: whatever layers and operations follow each other, surgery and ledger stay exact."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from backends.groups import trace
from backends.macs import MacsCost, ParamsCost
from backends.surgery import extract, mask


class Apply(nn.Module):
    """A function of a module's output."""

    def __init__(self, module: nn.Module, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.module, self.function = module, function

    def forward(self, *maps: Tensor) -> Tensor:
        return self.function(self.module(maps[-1]), *maps)


class ChannelsLast(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


def one_map(c: int, rng: np.random.Generator) -> list[tuple[nn.Module, int]]:
    """Modules that take a map of `c` channels, with the channels they return."""
    width = int(rng.integers(1, 13))
    divisors = [groups for groups in (2, 3, 4) if c % groups == 0]
    same = nn.Identity()
    gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(c, 4, 1), nn.ReLU(), nn.Conv2d(4, c, 1), nn.Sigmoid())
    offered: list[tuple[nn.Module, int]] = [
        (nn.Conv2d(c, width, 3, padding=1), width),
        (nn.Sequential(nn.Conv2d(c, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()), width),
        (nn.Sequential(nn.ConvTranspose2d(c, width, 3, padding=1), nn.Tanh()), width),
        (Apply(nn.Sequential(ChannelsLast(), nn.Linear(c, width)), lambda y, x: y.permute(0, 3, 1, 2)), width),
        (nn.Conv2d(c, 2 * c, 3, padding=1, groups=c), 2 * c),
        (nn.Conv2d(c, c, 3, padding=1, groups=c), c),
        (nn.PReLU(c), c),
        (nn.InstanceNorm2d(c, affine=bool(rng.integers(2))), c),
        (Apply(gate, lambda y, x: y * x), c),
        (Apply(nn.Conv2d(c, 1, 1), lambda y, x: y * x), c),
        (Apply(same, lambda y, x: x.flip(1)), c),
        (Apply(same, lambda y, x: x.repeat(1, 2, 1, 1)), 2 * c),
        (Apply(same, lambda y, x: F.pad(x, (0, 0, 0, 0, 1, 1))), c + 2),
        (Apply(same, lambda y, x: torch.stack([x, x.flip(1)]).mean(0)), c),
        *((nn.Conv2d(c, 2 * groups, 3, padding=1, groups=groups), 2 * groups) for groups in divisors),
        *((nn.GroupNorm(groups, c), c) for groups in divisors if groups < c),
        *((nn.ChannelShuffle(groups), c) for groups in divisors),
    ]
    if 2 in divisors:
        offered += [
            (Apply(same, lambda y, x: F.glu(x, 1)), c // 2),
            (Apply(same, lambda y, x: x[:, : x.shape[1] // 2] - x[:, x.shape[1] // 2 :]), c // 2),
            (Apply(same, lambda y, x: x.unflatten(1, (-1, 2)).flip(2).flatten(1, 2)), c),
        ]
    if 3 in divisors:
        offered.append((Apply(same, lambda y, x: torch.cat(x.split(x.shape[1] // 3, 1)[::-1], 1)), c))
    if 4 in divisors:
        offered.append((Apply(same, lambda y, x: F.avg_pool2d(F.pixel_shuffle(x, 2), 2)), c // 4))
    return offered


def two_maps(c: int, d: int) -> list[tuple[nn.Module, int]]:
    """Modules that join a map of `c` channels and one of `d`; a convolution makes them fit where they must."""
    fit = nn.Identity() if d in (c, 1) else nn.Conv2d(d, c, 1)
    return [
        (Apply(fit, lambda y, x, _: x + y), c),
        (Apply(fit, lambda y, x, _: x * torch.tanh(y)), c),
        (Apply(nn.Identity(), lambda y, x, _: torch.cat([x, y], 1)), c + d),
    ]


class RandomNetwork(nn.Module):
    """Random steps, each from a recent map and maybe an earlier one; the classifier reads all of them."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        rng = np.random.default_rng(seed)
        self.steps, self.inputs, channels = nn.ModuleList(), [], [3]
        for _ in range(rng.integers(4, 14)):
            inputs = [int(rng.integers(max(0, len(channels) - 3), len(channels)))]
            offered = one_map(channels[inputs[0]], rng)
            if rng.random() < 0.3:
                inputs.append(int(rng.integers(len(channels))))
                offered = two_maps(channels[inputs[0]], channels[inputs[1]])
            step, width = offered[rng.integers(len(offered))]
            self.steps.append(step)
            self.inputs.append(inputs)
            channels.append(width)
        self.pooled, self.flat = nn.Linear(sum(channels), 7), nn.Linear(4 * channels[-1], 7)

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for step, inputs in zip(self.steps, self.inputs, strict=True):
            maps.append(step(*(maps[i] for i in inputs)))
        pooled = torch.cat([feature_map.mean((2, 3)) for feature_map in maps], 1)
        return self.pooled(pooled) + self.flat(F.adaptive_avg_pool2d(maps[-1], 2).flatten(1))


def build(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = RandomNetwork(seed).double().eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return model


def check(seed: int) -> int:
    """Raises AssertionError unless policies of a random network are exact; returns how many groups it has."""
    model = build(seed)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    space = trace(model, x, divisor=1, min_keep_ratio=0.1)
    macs, params = MacsCost(space), ParamsCost(space)
    rng = np.random.default_rng(seed)
    drawn = [[int(rng.choice(group.counts)) for group in space.groups] for _ in range(3)]
    for counts in (space.min_counts, *drawn):
        policy = space.select(counts, rng.random(space.num_units))
        extracted = extract(model, space, policy)
        with torch.no_grad():
            torch.testing.assert_close(extracted(x), mask(model, space, policy)(x), rtol=1e-9, atol=1e-9)
        with FlopCounterMode(display=False) as counter:
            extracted(x)
        assert macs.cost(policy) == counter.get_total_flops() / 2 / len(x)
        assert params.cost(policy) == sum(parameter.numel() for parameter in extracted.parameters())
    return len(space.groups)


def test_random_networks_extract_exactly_at_exact_cost() -> None:
    assert sum(check(seed) for seed in range(15)) > 15


@pytest.mark.slow
def test_many_random_networks_extract_exactly_at_exact_cost() -> None:
    assert sum(check(seed) for seed in range(15, 300)) > 300
