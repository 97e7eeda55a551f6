"""Spaces of weights: what a policy keeps is what it costs, exactly, and every searcher works in them."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from backends.block_sparsity import BlockSparsity
from backends.cifar_resnet import CifarResNet
from backends.macs import MacsCost, ParamsCost
from backends.sparse_space import sparse_space
from backends.sparsity import MagnitudeMasks, magnitude
from backends.surgery import ChannelSurgery
from compsearch.budget import budget_from_ratio
from compsearch.describe import describe
from compsearch.space import FloatArray, Policy, SearchSpace
from compsearch.toy import ToyEvaluator
from searchers.amc import AMC
from searchers.ddpg import DDPGOptions
from searchers.evolution import Evolution
from searchers.global_magnitude import GlobalMagnitude
from searchers.legr import LeGR
from searchers.random_search import RandomSearch
from searchers.regularized_evolution import EvolutionOptions
from searchers.uniform import Uniform

BLOCKS = [[1, 1], [4, 1], [1, 4], [16, 1], [3, 5]]
OPTIONS: dict[str, Any] = {"block": [1, 1], "num_levels": 64, "min_keep_ratio": 0.03}


class Depthwise(nn.Module):
    """A tied weight, a depthwise and a transposed convolution, a bias, a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.up = nn.ConvTranspose2d(12, 6, 2, 2)
        self.twice = nn.Conv2d(6, 6, 1)
        self.linear = nn.Linear(6, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.up(self.norm(self.depthwise(self.stem(x))))
        return self.linear(self.twice(self.twice(x)).mean((2, 3)))


def built(model: nn.Module, **changes: Any) -> SearchSpace:
    return sparse_space(model, torch.zeros(2, 3, 8, 8), **(OPTIONS | changes))


def resnet() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return CifarResNet(depth=8, num_classes=10).eval()


def random_policy(space: SearchSpace, seed: int) -> Policy:
    rng = np.random.default_rng(seed)
    descending = -np.arange(space.num_units, dtype=np.float64)
    return space.select([rng.choice(group.counts) for group in space.groups], descending)


def nonzeros(network: nn.Module) -> int:
    return sum(int((parameter != 0).sum()) for parameter in network.parameters())


def filled(model: nn.Module) -> nn.Module:
    """No parameter is zero, so that zeros are those of the cut."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) + 0.01)
    return model


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("make", [resnet, Depthwise])
def test_params_are_the_parameters_that_are_not_zero(make: Any, block: list[int]) -> None:
    model = filled(make())
    space = built(model, block=block)
    cost = ParamsCost(space)
    for policy in (space.full_policy(), *(random_policy(space, seed) for seed in range(4))):
        assert cost.cost(policy) == nonzeros(MagnitudeMasks()(model, space, policy))


@pytest.mark.parametrize("block", BLOCKS)
def test_macs_are_positions_times_the_weights_that_are_not_zero(block: list[int]) -> None:
    model = filled(Depthwise())
    space = built(model, block=block)
    policy = random_policy(space, 0)
    masked = MagnitudeMasks()(model, space, policy)
    # 8×8 pixels everywhere but after the transposed convolution, whose weights are used once per input pixel; `twice`
    # runs twice on 16×16; the linear layer once.
    uses = {"stem": 64, "depthwise": 64, "up": 64, "twice": 2 * 256, "linear": 1}
    expected = sum(times * int((getattr(masked, name).weight != 0).sum()) for name, times in uses.items())
    assert MacsCost(space).cost(policy) == expected
    dense = sum(times * getattr(model, name).weight.numel() for name, times in uses.items())
    assert MacsCost(space).cost(space.full_policy()) == dense


def test_groups_are_the_layers_in_forward_order_and_keep_ratio_is_density() -> None:
    space = built(resnet())
    assert [group.name for group in space.groups] == [layer.name for layer in space.layers]
    assert space.groups[0].name == "conv1"
    policy = space.select([group.size // 4 for group in space.groups], -np.arange(float(space.num_units)))
    masked = MagnitudeMasks()(resnet(), space, policy)
    for group in space.groups:
        weight = masked.get_submodule(group.name).weight
        assert float((weight != 0).float().mean()) == pytest.approx(0.25, abs=1 / 64)


def test_no_layer_goes_below_the_lowest_density() -> None:
    space = built(resnet(), min_keep_ratio=0.1)
    assert {group.counts[0] for group in space.groups if group.size == 64} == {7}


def test_a_small_layer_has_as_many_levels_as_blocks() -> None:
    sizes = {group.name: group.size for group in built(Depthwise(), block=[4, 1]).groups}
    assert sizes["twice"] == 6  # one whole row of blocks, six columns, and one row over the edge
    assert sizes["stem"] == 64


def test_frozen_layers_stay_dense_and_say_why() -> None:
    model = resnet()
    space = built(model, freeze=["conv1", "linear"])
    assert {frozen.name for frozen in space.frozen} == {"conv1", "linear"}
    lowest = space.select(space.min_counts, -np.arange(float(space.num_units)))
    masked = MagnitudeMasks()(model, space, lowest)
    assert bool((masked.conv1.weight == model.conv1.weight).all())
    assert "frozen by the space's freeze option" in describe(space)


def test_an_earlier_stage_limits_the_counts_and_leaves_the_space_the_same() -> None:
    model = resnet()
    free = built(model)
    policy = random_policy(free, 3)
    limited = built(model, at_most=policy.counts)
    assert limited.fingerprint == free.fingerprint
    assert [group.counts[-1] for group in limited.groups] == list(policy.counts.values())
    assert limited.sizes.tolist() == free.sizes.tolist()  # cost_ratios stay those of the dense network
    assert built(model, num_levels=32).fingerprint != free.fingerprint
    assert built(model, block=[4, 1]).fingerprint != free.fingerprint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_levels": 1}, "`space.num_levels >= 2` must hold"),
        ({"min_keep_ratio": 0.0}, "`0 < space.min_keep_ratio <= 1` must hold"),
        ({"block": [0, 1]}, r"`space.block` must be two sizes of at least 1"),
        ({"freeze": ["layer9*"]}, r"must match a layer, but got 'layer9\*'"),
        ({"at_most": {"layer9": 3}}, "must match a layer, but got 'layer9'"),
    ],
)
def test_a_wrong_option_is_refused_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        built(resnet(), **changes)
    assert "\n" not in str(caught.value)


def test_the_table_for_people_speaks_of_weights() -> None:
    space = built(resnet(), block=[4, 1])
    text = describe(space, [ParamsCost(space)])
    assert "channels" not in text
    assert "4×1" in text
    assert "2..64 by 1 of 64" in text


# --- Block sparsity ------------------------------------------------------------------------------------------------


def zero_blocks(model: nn.Module, space: SearchSpace, block: tuple[int, int]) -> float:
    """Counted one by one."""
    zero = total = 0
    for layer in space.layers:
        matrix = model.get_parameter(layer.parameter).detach().flatten(1)
        for row in range(0, matrix.shape[0], block[0]):
            for column in range(0, matrix.shape[1], block[1]):
                total += 1
                zero += not bool(matrix[row : row + block[0], column : column + block[1]].any())
    return zero / total


@pytest.mark.parametrize("of_space", [[1, 1], [4, 1], [3, 5]])
@pytest.mark.parametrize("counted", [(1, 1), (4, 1), (2, 2), (3, 5)])
def test_block_sparsity_is_the_fraction_of_blocks_that_are_zero(of_space: list[int], counted: tuple[int, int]) -> None:
    model = filled(Depthwise())
    space = built(model, block=of_space, freeze=["depthwise"])
    surgery = MagnitudeMasks()
    cost = BlockSparsity(model=model, space=space, surgery=surgery, block=list(counted))
    for policy in (space.full_policy(), random_policy(space, 0), random_policy(space, 1)):
        expected = zero_blocks(surgery(model, space, policy), space, counted)
        assert cost.cost(policy) == pytest.approx(expected, abs=1e-12)
    assert cost.cost(space.full_policy()) == 0


def test_block_sparsity_of_channels_is_the_share_of_weights_that_went(tiny: SimpleNamespace) -> None:
    cost = BlockSparsity(model=tiny.model, space=tiny.space, surgery=ChannelSurgery(), block=[4, 1])
    small = ChannelSurgery()(tiny.model, tiny.space, tiny.half)
    kept, total = (
        sum(network.get_parameter(layer.parameter).numel() for layer in tiny.space.layers)
        for network in (small, tiny.model)
    )
    assert cost.cost(tiny.half) == pytest.approx(1 - kept / total)
    assert cost.cost(tiny.space.full_policy()) == 0


def test_block_sparsity_is_refused_as_a_budget() -> None:
    model = resnet()
    space = built(model)
    cost = BlockSparsity(model=model, space=space, surgery=MagnitudeMasks(), block=[4, 1])
    with pytest.raises(ValueError, match="a budget must be of what the dense network costs"):
        budget_from_ratio(cost_ratio=0.5, cost_model=cost, space=space)


# --- Searchers -----------------------------------------------------------------------------------------------------

EVOLUTION = EvolutionOptions(
    population_size=6,
    sample_size=3,
    mutation_rate=0.2,
    first_sigma=1.0,
    last_sigma=0.2,
    initial_batch=3,
    child_batch=1,
)
AGENT = DDPGOptions(
    hidden_size=16,
    actor_lr=1e-4,
    critic_lr=1e-3,
    critic_action="second_layer",
    tau=0.01,
    discount=1.0,
    batch_size=16,
    replay_size=200,
    replay_unit="transitions",
    baseline="episode",
    baseline_rate=0.05,
)
SEARCHERS: dict[str, Any] = {
    "amc": functools.partial(
        AMC,
        num_steps=6,
        warmup_episodes=2,
        learning_starts=1,
        noise_sigma=0.5,
        noise_decay=0.9,
        state="paper",
        one_hot=True,
        reward="accuracy",
        accuracy="top1",
        replay_action="limited",
        agent=AGENT,
        seed=0,
    ),
    "random": functools.partial(RandomSearch, num_steps=6, seed=0),
    "uniform": Uniform,
    "global_magnitude": GlobalMagnitude,
    "legr": functools.partial(LeGR, num_trials=9, fitness="loss", alpha_sigma=1.0, evolution=EVOLUTION, seed=0),
    "evolution": functools.partial(Evolution, num_trials=9, fitness="loss", evolution=EVOLUTION, seed=0),
}


@pytest.mark.parametrize("limited", [False, True])
@pytest.mark.parametrize("block", [[1, 1], [4, 1]])
@pytest.mark.parametrize("name", SEARCHERS)
def test_every_searcher_stays_within_the_budget_and_keeps_the_largest(
    name: str, block: list[int], limited: bool
) -> None:
    model = filled(resnet())
    space = built(model, block=block)
    if limited:
        space = built(model, block=block, at_most={group.name: group.size // 3 for group in space.groups})
    cost_model, surgery = ParamsCost(space), MagnitudeMasks()
    budget = budget_from_ratio(cost_ratio=0.2, cost_model=cost_model, space=space)
    searcher = SEARCHERS[name](
        space=space,
        evaluator=ToyEvaluator(space),
        cost_model=cost_model,
        budget=budget,
        importance=magnitude(model, space, surgery),
    )
    trials = [trial for _ in range(searcher.num_steps) for trial in searcher.step()]
    assert trials
    for trial in trials:
        space.check(trial.policy)
        for group, count in zip(space.groups, space.counts(trial.policy), strict=True):
            assert count in group.counts
        assert nonzeros(surgery(model, space, trial.policy)) <= 0.2 * budget.dense


def test_importance_never_rises_within_a_layer() -> None:
    model = filled(resnet())
    with torch.no_grad():
        model.conv1.weight.fill_(0.1)  # means of equal weights differ in the last digit
    space = built(model)
    scores: FloatArray = magnitude(model, space, MagnitudeMasks()).scores()
    for offset, group in zip(space.offsets, space.groups, strict=False):
        own = scores[offset : offset + group.size]
        assert (np.diff(own) <= 0).all()
        assert own[0] > 0


def test_importance_of_single_weights_needs_a_space_of_weights(tiny: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match="importance=magnitude is of single weights"):
        magnitude(tiny.model, tiny.space, ChannelSurgery())
