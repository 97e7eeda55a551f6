"""Which way of running is chosen, and that what it predicts is what the plain network predicts."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backends.evaluate import NetworkEvaluator
from backends.execution import PLAIN, Execution, choose_execution
from backends.groups import trace
from backends.macs import MacsCost
from backends.recovery import NoRecovery
from backends.surgery import ChannelSurgery, extract
from backends.training import measure
from backends.workers import Workers

CPU = torch.device("cpu")
WORKERS = Workers(2)


def batches(split: Any) -> list[Tensor]:
    return [images.contiguous(memory_format=torch.channels_last) for images, _ in split.batches(8)]


def chosen(network: nn.Module, dense: nn.Module, split: Any, dtype: torch.dtype = torch.bfloat16) -> Execution:
    return choose_execution(network, dense, batches(split), WORKERS, dtype)


def test_a_traceable_network_runs_by_its_plan_in_the_dtype_asked_for(tiny: SimpleNamespace) -> None:
    network = extract(tiny.model, tiny.space, tiny.half)
    execution = chosen(network, tiny.model, tiny.search)
    assert execution.dtype == torch.bfloat16
    assert execution.plan_of(network) is not None
    assert chosen(network, tiny.model, tiny.search, torch.float32).dtype == torch.float32


def test_near_ties_get_float32_logits_and_others_do_not(tiny: SimpleNamespace) -> None:
    network = extract(tiny.model, tiny.space, tiny.half)
    plan_of = chosen(network, tiny.model, tiny.search).plan_of
    expected, _ = PLAIN.logits(network, batches(tiny.search), WORKERS)
    rough, none = Execution(plan_of, torch.bfloat16).logits(network, batches(tiny.search), WORKERS)
    best, second = rough.topk(2, dim=1).values.unbind(1)
    gap = (best - second) / rough.square().mean().sqrt()
    doubt = float(gap.sort().values[9:11].mean())
    checked, share = Execution(plan_of, torch.bfloat16, doubt).logits(network, batches(tiny.search), WORKERS)
    near = gap <= doubt
    assert int(near.sum()) == 10
    assert none == 0
    assert share == pytest.approx(float(near.float().mean()))
    assert torch.allclose(checked[near], expected[near], atol=1e-4)
    assert torch.equal(checked[~near], rough[~near])


class Cancelling(nn.Module):
    """Exact in float32, meaningless in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3)
        self.linear = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear((F.relu(self.conv(x)) + 300).mean((2, 3)) - 300)


class Aliasing(nn.Module):
    """Changes a tensor in place that it reads under another name, which a plan doesn't follow."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.linear = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        first = same = self.stem(x)
        first += self.conv(first)
        return self.linear(same.mean((2, 3)))


class Branching(nn.Module):
    """Depends on values, so it has no plan."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.linear = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.stem(x))
        if bool(x.isnan().any()):
            y = torch.zeros_like(y)
        return self.linear(F.relu(self.conv(y)).mean((2, 3)))


def seeded(kind: type[nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind().eval()


def test_bfloat16_that_changes_predictions_is_not_used(tiny: SimpleNamespace) -> None:
    network = seeded(Cancelling)
    assert chosen(network, network, tiny.search).dtype == torch.float32


def test_a_plan_that_is_wrong_for_the_network_is_not_used(tiny: SimpleNamespace) -> None:
    network = seeded(Aliasing)
    execution = chosen(network, network, tiny.search, torch.float32)
    assert execution.plan_of(network) is None
    expected = torch.cat([network(images) for images in batches(tiny.search)])
    logits, _ = execution.logits(network, batches(tiny.search), WORKERS)
    assert torch.allclose(logits, expected, atol=1e-4)


@pytest.mark.parametrize("kind", [Branching, Aliasing, Cancelling])
def test_any_network_is_scored_as_it_would_be_plainly(kind: type[nn.Module], tiny: SimpleNamespace) -> None:
    model = seeded(kind)
    space = trace(model, torch.zeros(2, 3, 8, 8), divisor=1, min_keep_ratio=0.1)
    policy = space.select([group.counts[len(group.counts) // 2] for group in space.groups], np.ones(space.num_units))
    evaluator = NetworkEvaluator(
        model=model,
        space=space,
        surgery=ChannelSurgery(),
        split=tiny.search,
        recovery=NoRecovery(),
        cost_models=[MacsCost(space)],
        device=CPU,
        batch_size=16,
        precision="auto",
    )
    [found] = evaluator.measure([policy])
    plain = measure(extract(model, space, policy), tiny.search, device=CPU, batch_size=40)
    assert found.accuracy == plain.accuracy
    assert found.loss == pytest.approx(plain.loss, rel=0.02)


def test_a_network_of_nan_is_run_plainly(tiny: SimpleNamespace) -> None:
    network = extract(tiny.model, tiny.space, tiny.half)
    with torch.no_grad():
        network.linear.weight.fill_(float("nan"))  # type: ignore[union-attr, operator]
    assert chosen(network, tiny.model, tiny.search) is PLAIN
