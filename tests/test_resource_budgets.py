"""Every searcher keeps to budgets in resources that are not bilinear in counts: peak memory and energy."""

from __future__ import annotations

import zlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from backends.cifar_resnet import CifarResNet
from backends.groups import trace
from backends.importance import squared_l2
from backends.inventory import take_inventory
from compsearch.assembly import assemble
from compsearch.budget import budget_from_ratio
from compsearch.composition import compose_config, make
from compsearch.space import Policy
from compsearch.trial import Measurement

EVOLUTION = ("searcher.num_trials=10", "searcher.evolution.population_size=5", "searcher.evolution.sample_size=2")
SEARCHERS = {
    "amc": ("searcher.num_steps=6", "searcher.warmup_episodes=3", "searcher.learning_starts=2"),
    "legr": EVOLUTION,
    "evolution": EVOLUTION,
    "random": ("searcher.num_steps=6",),
    "uniform": (),
    "global_magnitude": (),
}


class Guess:
    """An evaluator that answers by chance, but the same for the same policy."""

    def measure(self, policies: list[Policy]) -> list[Measurement]:
        values = [np.random.default_rng(zlib.crc32(str(policy).encode())).random() for policy in policies]
        return [Measurement("search", 1, value, 1.0, 1 - value) for value in values]


@pytest.fixture(scope="module")
def network() -> SimpleNamespace:
    model, x = CifarResNet(14).eval(), torch.zeros(2, 3, 32, 32)
    space = trace(model, x, divisor=4, min_keep_ratio=0.1)
    return SimpleNamespace(space=space, inventory=take_inventory(model, space, x), importance=squared_l2(model, space))


@pytest.mark.parametrize("cost_ratio", [0.7, 0.3])
@pytest.mark.parametrize("resource", ["energy", "peak_memory"])
@pytest.mark.parametrize("name", SEARCHERS)
def test_every_trial_is_within_the_budget(
    network: SimpleNamespace, name: str, resource: str, cost_ratio: float
) -> None:
    config = compose_config([f"searcher={name}", f"budget={resource}", "run_name=run", *SEARCHERS[name]])
    cost_models = make(config["cost_models"], vars(network))
    cost_model = cost_models[config["budget"]["resource"]]
    budget = budget_from_ratio(cost_ratio=cost_ratio, cost_model=cost_model, space=network.space)
    available: dict[str, Any] = {
        **vars(network),
        **{"evaluator": Guess(), "cost_model": cost_model, "cost_models": list(cost_models.values())},
        **{"budget": budget, "seed": 0, "learned": None},
    }
    searcher = make(config["searcher"], available)
    trials = [trial for _ in range(searcher.num_steps) for trial in searcher.step()]
    assert trials
    for trial in trials:
        network.space.check(trial.policy)
        cost = cost_model.cost(trial.policy)
        assert cost <= budget.limit
        assert trial.cost_ratio == pytest.approx(cost / budget.dense)
    if name != "amc":  # whose agent may ask for less
        assert max(trial.cost_ratio for trial in trials) > 0.7 * cost_ratio


def test_an_inventory_is_taken_only_where_a_cost_model_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []

    def refuse(**given: Any) -> None:
        taken.append(sorted(given))
        raise ValueError("asked for")

    def stand_in(model: Any, space: Any, example_input: Any) -> None:
        refuse(model=model, space=space, example_input=example_input)

    monkeypatch.setattr("backends.inventory.take_inventory", stand_in)
    tiny = ["model=resnet20", "searcher=uniform", "cache_dir=unused", "run_name=run"]
    with pytest.raises(ValueError, match="asked for"):
        assemble(compose_config([*tiny, "budget=energy"]))
    assert taken == [["example_input", "model", "space"]]
    with pytest.raises(ValueError, match=r"cost_ratio=1e-05"):  # cost models are made, nothing is trained
        assemble(compose_config([*tiny, "budget=macs", "budget.cost_ratio=1e-5"]))
    assert len(taken) == 1
