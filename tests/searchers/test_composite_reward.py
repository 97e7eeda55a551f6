import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from compsearch.space import Policy, SearchSpace
from compsearch.testing import SearcherContract
from compsearch.toy import FailingEvaluator, ToyCost, ToyEvaluator, collaborators, toy_space
from compsearch.trial import Measurement
from searchers.amc import AMC
from searchers.composite_reward import CompositeOptions, CompositeReward
from searchers.ddpg import DDPGOptions

NONE = CompositeOptions(
    latency=0.0,
    latency_curve="linear",
    accuracy=0.0,
    accuracy_curve="linear",
    power=0.0,
    power_curve="linear",
    block_sparsity=0.0,
    block_sparsity_curve="linear",
)
#: 10 ms at 2 W.
DENSE = Measurement(
    "search", 100, 0.9, 0.99, 0.3, {"macs": 1e6, "latency_ms": 10.0, "energy_mj": 20.0, "block_sparsity": 0.0}
)
#: 6 ms at 1.5 W.
SMALL = {"macs": 5e5, "latency_ms": 6.0, "energy_mj": 9.0, "block_sparsity": 0.5}
AGENT = DDPGOptions(
    hidden_size=32,
    actor_lr=3e-4,
    critic_lr=1e-3,
    critic_action="second_layer",
    tau=0.01,
    discount=1.0,
    batch_size=64,
    replay_size=2000,
    replay_unit="transitions",
    baseline="episode",
    baseline_rate=0.05,
)


def reward(costs: dict[str, float] = SMALL, **terms: Any) -> float:
    """Of a network with an error of 0.15."""
    return CompositeReward(replace(NONE, **terms), dense=DENSE, accuracy="top1")(0.15, 5e5, costs)


# --- By hand: 40% of the time saved, 5 points of accuracy lost, a quarter of the power saved, half the blocks zero ----


@pytest.mark.parametrize(
    ("term", "change"), [("latency", 0.4), ("accuracy", 0.05), ("power", 0.25), ("block_sparsity", 0.5)]
)
def test_every_term_through_every_curve(term: str, change: float) -> None:
    for curve, value in {"linear": change, "log": math.log(1 + change), "quadratic": change * change}.items():
        for coefficient in (1.0, -1.0, 0.25):
            found = reward(**{term: coefficient, f"{term}_curve": curve})
            assert found == pytest.approx(coefficient * value, abs=1e-12)


def test_the_reward_is_the_sum_of_its_terms() -> None:
    found = reward(
        latency=0.1,
        latency_curve="log",
        accuracy=-1.0,
        accuracy_curve="quadratic",
        power=0.2,
        power_curve="linear",
        block_sparsity=0.3,
        block_sparsity_curve="quadratic",
    )
    assert found == pytest.approx(0.1 * math.log(1.4) - 0.05**2 + 0.2 * 0.25 + 0.3 * 0.25)


def test_a_change_for_the_worse_counts_against() -> None:
    slow = {**SMALL, "latency_ms": 14.0, "energy_mj": 14.0 * 3.0}
    for curve, value in {"linear": 0.4, "log": math.log(1.4), "quadratic": 0.16}.items():
        assert reward(costs=slow, latency=1.0, latency_curve=curve) == pytest.approx(-value)
    assert reward(costs=slow, power=1.0) == pytest.approx(-0.5)  # 3 W instead of 2


def test_accuracy_gained_is_rewarded_where_accuracy_lost_is_punished() -> None:
    lost = CompositeReward(replace(NONE, accuracy=-1.0), dense=DENSE, accuracy="top1")
    assert lost(0.15, 0.0, SMALL) == pytest.approx(-0.05)
    assert lost(0.05, 0.0, SMALL) == pytest.approx(0.05)
    assert lost(0.10, 0.0, SMALL) == pytest.approx(0.0)


def test_top5_is_compared_with_the_dense_top5() -> None:
    top5 = CompositeReward(replace(NONE, accuracy=-1.0), dense=DENSE, accuracy="top5")
    assert top5(0.03, 0.0, SMALL) == pytest.approx(-0.02)


def test_the_dense_network_has_no_change_to_reward() -> None:
    everything = replace(NONE, latency=1.0, accuracy=-1.0, power=1.0, block_sparsity=1.0)
    assert CompositeReward(everything, dense=DENSE, accuracy="top1")(0.1, 1e6, DENSE.costs) == pytest.approx(0.0)


# --- Refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("term", "missing", "override"),
    [
        ("latency", "latency_ms", "+cost_model@cost_models.latency_ms=latency_ms"),
        ("power", "latency_ms", "+cost_model@cost_models.latency_ms=latency_ms"),
        ("power", "energy_mj", "+cost_model@cost_models.energy_mj=energy_mj"),
        ("block_sparsity", "block_sparsity", "+cost_model@cost_models.block_sparsity=block_sparsity"),
    ],
)
def test_a_cost_that_is_not_recorded_is_refused_with_the_model_to_add(term: str, missing: str, override: str) -> None:
    costs = {resource: cost for resource, cost in DENSE.costs.items() if resource != missing}
    dense = replace(DENSE, costs=costs)
    with pytest.raises(ValueError, match=missing) as caught:
        CompositeReward(replace(NONE, **{term: 0.5}), dense=dense, accuracy="top1")
    assert override in str(caught.value)
    assert f"searcher.composite.{term}=0" in str(caught.value)
    assert "\n" not in str(caught.value)
    CompositeReward(replace(NONE, accuracy=-1.0), dense=replace(DENSE, costs={}), accuracy="top1")


def test_a_reward_without_terms_is_refused() -> None:
    with pytest.raises(ValueError, match="must have a term"):
        CompositeReward(NONE, dense=DENSE, accuracy="top1")


def test_a_dense_network_that_answers_nan_is_refused() -> None:
    broken = replace(DENSE, accuracy=math.nan)
    with pytest.raises(ValueError, match="dense network, whose accuracy is nan"):
        CompositeReward(replace(NONE, accuracy=-1.0), dense=broken, accuracy="top1")


@pytest.mark.parametrize("changes", [{"latency_curve": "cubic"}, {"power": math.inf}, {"accuracy": math.nan}])
def test_a_wrong_option_is_named(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"searcher.composite.{next(iter(changes))}"):
        replace(NONE, **changes)


# --- In AMC --------------------------------------------------------------------------------------------------------


class CostlyEvaluator:
    """The toy evaluator, with latency and energy that fall with macs, and a block sparsity."""

    def __init__(self, space: SearchSpace) -> None:
        self.evaluator = ToyEvaluator(space)
        self.cost = ToyCost(space)

    def costs(self, policy: Policy) -> dict[str, float]:
        ratio = self.cost.cost(policy) / self.cost.cost(self.cost.space.full_policy())
        latency = 2 + 8 * ratio
        return {"latency_ms": latency, "energy_mj": latency * (1 + ratio), "block_sparsity": 1 - ratio}

    def measure(self, policies: Sequence[Policy]) -> list[Measurement]:
        found = self.evaluator.measure(policies)
        return [replace(m, costs=self.costs(p)) for m, p in zip(found, policies, strict=True)]


WEIGHED = replace(NONE, latency=0.1, accuracy=-1.0, power=0.1, block_sparsity=0.05)


def composite_amc(**given: Any) -> AMC:
    options: dict[str, Any] = {
        "num_steps": 16,
        "warmup_episodes": 6,
        "learning_starts": 6,
        "noise_sigma": 0.5,
        "noise_decay": 0.95,
        "state": "paper",
        "one_hot": True,
        "accuracy": "top1",
        "replay_action": "limited",
        "agent": AGENT,
        "reward": "composite",
        "composite": WEIGHED,
    }
    return AMC(**(options | given))


class TestCompositeAMC(SearcherContract):
    """With an accuracy term alone, which needs no costs, the reward is 1 - Error but for a constant."""

    @staticmethod
    def make(
        space: Any, evaluator: Any, cost_model: Any, budget: Any, importance: Any, seed: int, **options: Any
    ) -> AMC:
        given = {"space": space, "evaluator": _DenseFirst(evaluator), "cost_model": cost_model, "budget": budget}
        given |= {"importance": importance, "seed": seed, "composite": replace(NONE, accuracy=-1.0)}
        given |= {"num_steps": 6, "warmup_episodes": 3, "learning_starts": 2}
        return composite_amc(**given)

    not_compared = "the comparison is TestAMC's; this one is about the reward"


class _DenseFirst:
    """Answers for the dense network itself: the contract's failing evaluators fail on whatever comes first."""

    def __init__(self, evaluator: Any) -> None:
        self.evaluator = evaluator
        self.is_first = True

    def measure(self, policies: Sequence[Policy]) -> list[Measurement]:
        if self.is_first:
            self.is_first = False
            return ToyEvaluator(toy_space()).measure(policies)
        found: list[Measurement] = self.evaluator.measure(policies)
        return found


@pytest.mark.parametrize("cost_ratio", [0.5, None])
def test_objectives_are_the_reward_with_and_without_a_budget(cost_ratio: float | None) -> None:
    given = collaborators(cost_ratio=cost_ratio)
    evaluator = CostlyEvaluator(given["space"])
    searcher = composite_amc(**given | {"evaluator": evaluator})
    [dense] = evaluator.measure([given["space"].full_policy()])
    assert searcher.weighs_cost
    for _ in range(8):
        [trial] = searcher.step()
        costs = evaluator.costs(trial.policy)
        watts, dense_watts = (each["energy_mj"] / each["latency_ms"] for each in (costs, dense.costs))
        assert trial.objective == pytest.approx(
            0.1 * (1 - costs["latency_ms"] / dense.costs["latency_ms"])
            - (dense.accuracy - trial.measurement.accuracy)
            + 0.1 * (1 - watts / dense_watts)
            + 0.05 * costs["block_sparsity"]
        )


def test_a_failed_trial_is_an_error_of_one_at_its_costs() -> None:
    given = collaborators()
    evaluator = CostlyEvaluator(given["space"])
    searcher = composite_amc(**given | {"evaluator": evaluator})
    searcher.evaluator = FailingEvaluator(evaluator, every=1)
    [trial] = searcher.step()
    assert trial.objective is None
    expected = searcher.reward(1.0, 0.0, evaluator.costs(trial.policy))
    assert searcher.agent.replay.rewards[0].item() == pytest.approx(expected)


def test_amc_refuses_a_composite_without_coefficients_or_costs() -> None:
    given = collaborators()
    with pytest.raises(ValueError, match=r"searcher\.composite is not set"):
        composite_amc(**given, composite=None)
    with pytest.raises(ValueError, match=r"searcher\.composite\.latency needs latency_ms"):
        composite_amc(**given)
