"""One ranking, a family of networks: nested, within budget and exactly priced, whatever the affine map and network."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from backends.groups import trace
from backends.importance import squared_l2
from backends.macs import MacsCost, ParamsCost
from backends.surgery import extract
from backends.zoo import cifar_resnet, torchvision_model
from compsearch.budget import budget_from_ratio
from compsearch.importance import LayerImportance
from compsearch.space import FloatArray, Policy
from searchers.ranking import Ranking

COST_RATIOS = (0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
SEEDS = range(3)


def build(name: str) -> nn.Module:
    if name == "resnet56":
        return cifar_resnet(depth=56, num_classes=10)
    return torchvision_model(name=name, num_classes=10)


@pytest.fixture(scope="module", params=["resnet56", "mobilenet_v2", "densenet121"])
def network(request: pytest.FixtureRequest) -> SimpleNamespace:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build(request.param).eval()
    space = trace(model, torch.zeros(2, 3, 32, 32), divisor=8, min_keep_ratio=0.1)
    return SimpleNamespace(model=model, space=space, importance=squared_l2(model, space), macs=MacsCost(space))


def scores(importance: LayerImportance, seed: int) -> FloatArray:
    """LeGR's scores for one random member of an initial population."""
    rng = np.random.default_rng(seed)
    num_layers = len(importance.layers)
    kappa = importance.stds * rng.standard_normal(num_layers)
    return importance.scores(alpha=np.exp(rng.standard_normal(num_layers)), kappa=kappa)


def family(network: SimpleNamespace, seed: int) -> list[Policy]:
    """The policies at all cost ratios, largest first."""
    ranking = Ranking(network.space, scores(network.importance, seed))
    return [
        ranking.policy(
            budget_from_ratio(cost_ratio=ratio, cost_model=network.macs, space=network.space), cost_model=network.macs
        )
        for ratio in COST_RATIOS
    ]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_smaller_budget_keeps_a_strict_subset_of_what_a_larger_one_keeps(network: SimpleNamespace, seed: int) -> None:
    masks = [network.space.keep_mask(policy) for policy in family(network, seed)]
    for larger, smaller in itertools.pairwise(masks):
        assert not (smaller & ~larger).any()
        assert smaller.sum() < larger.sum()


@pytest.mark.parametrize("seed", SEEDS)
def test_every_member_is_within_its_budget_and_uses_it(network: SimpleNamespace, seed: int) -> None:
    dense = network.macs.cost(network.space.full_policy())
    for ratio, policy in zip(COST_RATIOS, family(network, seed), strict=True):
        network.space.check(policy)
        assert (network.space.counts(policy) >= network.space.min_counts).all()
        # One rounding step of the widest group of the network is the most that can be left over.
        assert ratio - 0.05 < network.macs.cost(policy) / dense <= ratio


def test_rankings_differ_with_the_affine_map(network: SimpleNamespace) -> None:
    first, second = (family(network, seed) for seed in (0, 1))
    assert all(one != other for one, other in zip(first, second, strict=True))


def test_the_ledger_prices_every_member_exactly(network: SimpleNamespace) -> None:
    params = ParamsCost(network.space)
    for policy in family(network, 0):
        small = extract(network.model, network.space, policy)
        assert params.cost(policy) == sum(parameter.numel() for parameter in small.parameters())
        assert network.macs.cost(policy) == counted_macs(small)


def test_an_extracted_member_runs(network: SimpleNamespace) -> None:
    small = extract(network.model, network.space, family(network, 0)[3])
    with torch.no_grad():
        logits = small(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert logits.shape == (2, 10)
    assert logits.isfinite().all()


def counted_macs(model: nn.Module) -> float:
    """MACs of one image as PyTorch counts them."""
    model = model.to("meta")
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, 32, 32, device="meta"))
    return counter.get_total_flops() / 2
