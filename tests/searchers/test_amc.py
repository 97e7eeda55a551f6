import functools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from quick import QUICK

from compsearch import job
from compsearch.budget import Budget
from compsearch.composition import compose_config
from compsearch.recorder import read_trials
from compsearch.space import FloatArray, IntArray, Policy
from compsearch.testing import SearcherContract
from compsearch.toy import FailingEvaluator, ToyCost, ToyEvaluator, collaborators, toy_space
from compsearch.trial import Measurement, Trial, best_trial
from searchers.amc import AMC, decided_layer, paper_features, released_features, rest_macs, static_states
from searchers.ddpg import DDPGOptions

AGENT = DDPGOptions(
    hidden_size=64,
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
SMALL = functools.partial(
    AMC,
    num_steps=16,
    warmup_episodes=6,
    learning_starts=6,
    noise_sigma=0.5,
    noise_decay=0.95,
    state="paper",
    one_hot=True,
    reward="accuracy",
    accuracy="top1",
    replay_action="limited",
    agent=AGENT,
)
RELEASED_AGENT = replace(
    AGENT, critic_action="first_layer", replay_size=10, replay_unit="episodes", baseline="batch", baseline_rate=0.5
)


class TestAMC(SearcherContract):
    make = staticmethod(SMALL)
    make_compared = staticmethod(
        functools.partial(SMALL, num_steps=150, warmup_episodes=30, learning_starts=30, noise_decay=0.97)
    )


class TestReleasedAMC(SearcherContract):
    make = staticmethod(
        functools.partial(SMALL, state="released", one_hot=False, replay_action="raw", agent=RELEASED_AGENT)
    )
    not_compared = "the comparison is TestAMC's; this one is about the options of the released code"


class TestAMCWithoutActionLimit(SearcherContract):
    tries_over_budget = True
    make = staticmethod(functools.partial(SMALL, over_budget_penalty=1.0))
    not_compared = (
        "an ablation: without the limit it finds less here than random search, whose policies are at the budget"
    )


def make(*, cost_ratio: float | None = 0.5, resource: str = "macs", **options: Any) -> AMC:
    given = collaborators(cost_ratio=cost_ratio, resource=resource)
    given.update({key: options.pop(key) for key in list(options) if key in given})
    return SMALL(**given, **options)


# --- State ---------------------------------------------------------------------------------------------------------


def test_a_decision_is_described_by_the_layer_that_reads_the_group() -> None:
    space = toy_space()
    names = [decided_layer(space, group).name for group in space.groups]
    # conv2's channels pass through a depthwise layer first: conv3 is what mixes, and so loses, its input channels.
    assert names == ["conv1", "conv2", "conv3", "conv4", "conv5", "conv6", "hidden", "linear"]


def test_a_group_that_only_a_depthwise_layer_reads_is_described_by_it() -> None:
    space = toy_space()
    only_depthwise = replace(space.groups[2], consumers=("depthwise",))
    assert decided_layer(space, only_depthwise).name == "depthwise"
    assert decided_layer(space, replace(space.groups[2], consumers=())).name == "depthwise"


def test_paper_state_is_its_features_scaled_per_column() -> None:
    space = toy_space()
    raw = np.array([paper_features(t, decided_layer(space, group)) for t, group in enumerate(space.groups)])
    # t, n, c, h, w, stride, k, FLOPs of conv1: 16 -> 16 channels, 3×3, on 32×32 pixels.
    assert raw[0].tolist() == [0, 16, 16, 32, 32, 1, 3, 32 * 32 * 16 * 16 * 9]
    scaled = static_states(space, paper_features)
    varied = np.ptp(raw, axis=0) > 0
    assert scaled[:, varied].min(axis=0).tolist() == [0.0] * varied.sum()
    assert scaled[:, varied].max(axis=0).tolist() == [1.0] * varied.sum()
    assert not scaled[:, ~varied].any()
    assert scaled[:, 0] == pytest.approx(np.arange(8) / 7)


def test_released_state_has_type_and_weight_size_and_no_feature_map() -> None:
    space = toy_space()
    assert released_features(0, space.layer_by_name["conv1"]) == (0, False, 16, 16, 1, 3, 16 * 16 * 9)
    assert released_features(7, space.layer_by_name["linear"]) == (7, True, 64, 10, 0, 1, 640)
    assert make(state="released", one_hot=False).walk()[0].shape == (8, 10)
    assert make(state="paper", one_hot=False).walk()[0].shape == (8, 11)


def test_one_hot_tells_every_group_apart() -> None:
    states = make(one_hot=True).walk()[0]
    assert states.shape == (8, 11 + 8)
    assert torch.equal(states[:, 8:16], torch.eye(8))


def test_rest_is_the_share_of_macs_after_the_layer_in_graph_order() -> None:
    space = toy_space()
    macs = {layer.name: layer.macs for layer in space.layers}
    total = sum(macs.values())
    rest = rest_macs(space)
    after_conv7 = macs["hidden"] + macs["linear"]
    assert rest[5] == pytest.approx((macs["conv7"] + after_conv7) / total)
    assert rest[7] == 0.0
    # The depthwise layer comes before conv3 and so is not among what follows it.
    assert rest[2] == pytest.approx(1 - sum(macs[n] for n in ("conv0", "conv1", "conv2", "depthwise", "conv3")) / total)


def test_dynamic_features_are_fractions_as_they_are() -> None:
    searcher = make()
    states, _, counts = searcher.walk()
    reduced, rest, last = states[:, -3].numpy(), states[:, -2].numpy(), states[:, -1].numpy()
    assert reduced[0] == 0.0
    assert last[0] == 1.0
    assert last[1:] == pytest.approx((counts / searcher.space.sizes)[:-1])
    assert rest == pytest.approx(rest_macs(searcher.space))
    for t in range(8):
        so_far = np.concatenate([counts[:t], searcher.space.sizes[t:]])
        cost = searcher.cost_model.costs(so_far[None])[0]
        assert reduced[t] == pytest.approx(1 - cost / searcher.dense_cost, abs=1e-6)
    assert (np.diff(reduced) >= 0).all()


# --- Action limit --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resource", ["macs", "params"])
@pytest.mark.parametrize("cost_ratio", [0.1, 0.3, 0.5, 0.9])
def test_action_limit_is_the_largest_count_that_can_still_meet_the_budget(resource: str, cost_ratio: float) -> None:
    searcher = make(cost_ratio=cost_ratio, resource=resource)
    space, budget = searcher.space, searcher.budget
    assert budget is not None
    counts = searcher.walk()[2]
    for t, group in enumerate(space.groups):
        fitting = []
        for count in group.counts:
            tried = np.concatenate([counts[:t], [count], space.min_counts[t + 1 :]])
            policy = space.select(tried, searcher.importance)
            if budget.allows(searcher.cost_model.cost(policy)):
                fitting.append(count)
        assert searcher.affordable_counts(t, counts).tolist() == fitting
        assert counts[t] in fitting


def test_a_greedy_walk_meets_the_budget_and_uses_it_up() -> None:
    searcher = make(cost_ratio=0.5)
    counts = searcher.space.sizes.copy()
    for t in range(len(counts)):
        counts[t] = searcher.affordable_counts(t, counts)[-1]
    assert searcher.budget is not None
    [cost] = searcher.cost_model.costs(counts[None])
    assert searcher.budget.allows(cost)
    for t, group in enumerate(searcher.space.groups):
        larger = [count for count in group.counts if count > counts[t]][:1]
        for count in larger:  # no group can keep more with those after it at their fewest
            more = np.concatenate([counts[:t], [count], searcher.space.min_counts[t + 1 :]])
            assert not searcher.budget.allows(searcher.cost_model.costs(more[None])[0])


class BumpyCost(ToyCost):
    """A cost that falls where a count becomes a multiple of 8, as measured latency does."""

    def costs(self, counts: IntArray) -> FloatArray:
        return super().costs(counts) * (1 + 0.3 * (counts % 8 != 0).mean(axis=1))


def test_a_cost_that_is_not_monotone_still_meets_the_budget() -> None:
    cost_model = BumpyCost(toy_space())
    dense = float(cost_model.costs(toy_space().sizes[None])[0])
    searcher = make(cost_model=cost_model, budget=Budget("macs", 0.4 * dense, dense))
    for _ in range(20):
        [trial] = searcher.step()
        assert cost_model.cost(trial.policy) <= 0.4 * dense


def test_without_a_budget_every_count_is_offered() -> None:
    searcher = make(cost_ratio=None, reward="error_log_cost")
    for t, group in enumerate(searcher.space.groups):
        assert searcher.affordable_counts(t, searcher.space.sizes).tolist() == list(group.counts)


# --- Without the action limit --------------------------------------------------------------------------------------


def run(searcher: AMC) -> list[Trial]:
    return [trial for _ in range(searcher.num_steps) for trial in searcher.step()]


def test_with_a_penalty_every_count_is_offered_and_actions_are_what_the_network_gets() -> None:
    searcher = make(cost_ratio=0.1, over_budget_penalty=1.0)
    for t, group in enumerate(searcher.space.groups):
        assert searcher.affordable_counts(t, searcher.space.sizes).tolist() == list(group.counts)
    # The same seed draws the same actions, which a budget of everything doesn't limit either.
    free = make(cost_ratio=1.0)
    assert [trial.policy for trial in run(searcher)[:6]] == [trial.policy for trial in run(free)[:6]]


def test_a_policy_over_the_budget_has_failed_and_says_by_how_much_but_keeps_its_accuracy() -> None:
    searcher = make(cost_ratio=0.3, over_budget_penalty=1.0)
    budget, evaluator = searcher.budget, ToyEvaluator(toy_space())
    assert budget is not None
    trials = run(searcher)
    is_over = [not budget.allows(searcher.cost_model.cost(trial.policy)) for trial in trials]
    assert set(is_over) == {True, False}
    for trial, over in zip(trials, is_over, strict=True):
        assert [trial.measurement] == evaluator.measure([trial.policy])
        assert trial.objective == (None if over else trial.measurement.accuracy)
        said = f"over the budget: cost_ratio {trial.cost_ratio:.4g} > 0.3, by {trial.cost_ratio - 0.3:.2g}"
        assert trial.failure == (said if over else "")


def test_the_agent_learns_from_the_accuracy_less_the_penalty_times_the_excess() -> None:
    searcher = make(cost_ratio=0.3, over_budget_penalty=2.5)
    trials = run(searcher)
    expected = [trial.measurement.accuracy - 2.5 * max(0.0, trial.cost_ratio - 0.3) for trial in trials]
    remembered = searcher.agent.replay.rewards[: 8 * len(trials), 0].reshape(-1, 8).numpy()
    assert remembered == pytest.approx(np.repeat(np.array(expected)[:, None], 8, axis=1))
    assert any(trial.objective is None for trial in trials)


def test_the_penalty_comes_on_top_of_any_reward() -> None:
    searcher = make(cost_ratio=0.05, over_budget_penalty=3.0, reward="error_log_cost", evaluator=FixedEvaluator())
    [trial] = searcher.step()
    assert trial.objective is None
    log_cost = math.log(searcher.cost_model.cost(trial.policy))
    expected = -0.4 * log_cost - 3.0 * (trial.cost_ratio - 0.05)
    assert float(searcher.agent.replay.rewards[0]) == pytest.approx(expected)


def test_the_best_trial_is_within_the_budget_though_others_are_more_accurate() -> None:
    trials = run(make(cost_ratio=0.3, over_budget_penalty=0.0))
    best = best_trial(trials)
    assert best is not None
    assert best.cost_ratio <= 0.3
    assert max(trial.measurement.accuracy for trial in trials) > best.measurement.accuracy


def test_the_penalty_teaches_the_agent_to_keep_within_the_budget() -> None:
    options: dict[str, Any] = {"num_steps": 80, "warmup_episodes": 20, "learning_starts": 5, "noise_decay": 0.94}
    shares = []
    for penalty in (0.0, 1.0):
        trials = run(make(cost_ratio=0.3, over_budget_penalty=penalty, **options))[-20:]
        shares.append(np.mean([trial.cost_ratio <= 0.3 for trial in trials]))
    assert shares[0] < 0.2
    assert shares[1] > 0.8


def test_what_is_not_finite_says_so_even_over_the_budget_and_its_penalty_is_learnt() -> None:
    evaluator = FailingEvaluator(ToyEvaluator(toy_space()), every=1)
    searcher = make(cost_ratio=0.05, over_budget_penalty=1.0, evaluator=evaluator)
    [trial] = searcher.step()
    assert trial.cost_ratio > 0.05
    assert trial.failure.startswith("not finite on the search split")
    assert float(searcher.agent.replay.rewards[0]) == pytest.approx(0.05 - trial.cost_ratio)


@pytest.mark.parametrize("penalty", [-1.0, math.nan, math.inf])
def test_a_penalty_that_is_no_penalty_is_refused(penalty: float) -> None:
    with pytest.raises(ValueError, match=r"`searcher\.over_budget_penalty` must be null, .* but got") as raised:
        make(over_budget_penalty=penalty)
    assert "\n" not in str(raised.value)


def test_a_penalty_without_a_budget_is_refused() -> None:
    with pytest.raises(ValueError, match=r"over_budget_penalty=2` needs a budget to be over"):
        make(cost_ratio=None, reward="error_log_cost", over_budget_penalty=2.0)


#: A whole run in seconds: an untrained network on tiny digits.
FAST = [
    *QUICK,
    "searcher=amc",
    "searcher.over_budget_penalty=1",
    "trials=8",
    "model.weights=random",
    "timed_trials=0",
    "run_name=run",
]


def test_a_whole_run_without_the_limit_ends_within_the_budget(tmp_path: Path) -> None:
    summary = job.run(compose_config([*FAST, "budget.cost_ratio=0.4"]), tmp_path / "run")
    trials = read_trials(tmp_path / "run" / "trials.jsonl")
    over = [trial for trial in trials if trial.objective is None]
    assert 0 < len(over) < len(trials) == 8
    assert all(trial.cost_ratio > 0.4 and trial.measurement.is_finite for trial in over)
    assert summary.search_cost.num_failed == len(over)
    [found] = [row for row in summary.networks if row.name == "compressed"]
    assert summary.ratios(found)["macs"] <= 0.4


def test_a_run_of_which_all_trials_are_over_the_budget_says_so_in_one_line(tmp_path: Path) -> None:
    options = ["budget.cost_ratio=0.12", "searcher.num_steps=3", "searcher.warmup_episodes=3"]
    with pytest.raises(ValueError, match="all 3 did; the last one is over the budget: cost_ratio") as raised:
        job.run(compose_config([*FAST, *options]), tmp_path / "run")
    assert "\n" not in str(raised.value)


# --- Exploration and replay ----------------------------------------------------------------------------------------


def test_nothing_is_learnt_before_learning_starts_then_every_transition_updates() -> None:
    searcher = make(warmup_episodes=3, learning_starts=3)
    before = searcher.agent.actor.fc1.weight.clone()
    for _ in range(3):
        searcher.step()
    assert torch.equal(searcher.agent.actor.fc1.weight, before)
    assert not searcher.agent.critic_optimizer.state
    searcher.step()
    assert searcher.agent.critic_optimizer.state[searcher.agent.critic.fc1.weight]["step"] == 8
    assert not torch.equal(searcher.agent.actor.fc1.weight, before)


def test_noise_decays_once_per_episode_after_the_warmup() -> None:
    searcher = make(warmup_episodes=2, noise_sigma=0.5, noise_decay=0.9)
    sigmas = []
    for _ in range(5):
        sigmas.append(searcher.sigma)
        searcher.step()
    assert sigmas == pytest.approx([0.5, 0.5, 0.5, 0.45, 0.405])


def test_without_noise_the_actor_decides() -> None:
    searcher = make(warmup_episodes=0, noise_sigma=0.0, cost_ratio=1.0)
    states, _, counts = searcher.walk()
    for t, group in enumerate(searcher.space.groups):
        assert counts[t] == searcher.space.nearest_count(
            t, max(searcher.agent.act(states[t]), group.counts[0] / group.size)
        )


def test_replay_holds_the_limited_or_the_raw_action() -> None:
    tight: dict[str, Any] = {"cost_ratio": 0.1, "warmup_episodes": 0, "noise_sigma": 0.0}
    limited = make(**tight, replay_action="limited")
    raw = make(**tight, replay_action="raw")
    [trial], [same] = limited.step(), raw.step()
    assert trial == same  # the network gets the limited action either way
    ratios = limited.space.counts(trial.policy) / limited.space.sizes
    assert limited.agent.replay.actions[:8, 0].numpy() == pytest.approx(ratios)
    asked = raw.agent.replay.actions[:8, 0].numpy()
    assert (asked > ratios + 0.1).any()
    assert asked == pytest.approx(np.full(8, 0.5), abs=0.2)  # an untrained sigmoid


# --- Reward --------------------------------------------------------------------------------------------------------


class FixedEvaluator:
    def measure(self, policies: Sequence[Policy]) -> list[Measurement]:
        return [Measurement("search", 10, accuracy=0.6, top5=0.8, loss=1.0) for _ in policies]


@pytest.mark.parametrize(("accuracy", "error"), [("top1", 0.4), ("top5", 0.2)])
@pytest.mark.parametrize("resource", ["macs", "params"])
def test_rewards_are_the_papers(accuracy: str, error: float, resource: str) -> None:
    [trial] = make(evaluator=FixedEvaluator(), accuracy=accuracy, resource=resource).step()
    assert trial.objective == pytest.approx(1 - error)
    free = make(
        evaluator=FixedEvaluator(), accuracy=accuracy, resource=resource, cost_ratio=None, reward="error_log_cost"
    )
    [trial] = free.step()
    assert trial.objective == pytest.approx(-error * math.log(free.cost_model.cost(trial.policy)))


def test_a_failed_trial_is_an_error_of_one_to_the_agent() -> None:
    searcher = make(evaluator=FailingEvaluator(ToyEvaluator(toy_space()), every=1))
    [trial] = searcher.step()
    assert trial.objective is None
    assert trial.failure.startswith("not finite on the search split: accuracy=nan")
    assert searcher.agent.replay.rewards[:8].tolist() == [[0.0]] * 8


def test_accuracy_reward_needs_a_budget() -> None:
    with pytest.raises(ValueError, match="reward 'accuracy' needs a budget"):
        make(cost_ratio=None)


@pytest.mark.parametrize(
    "options",
    [
        {"num_steps": 0},
        {"warmup_episodes": -1},
        {"noise_decay": 1.5},
        {"state": "nni"},
        {"reward": "speed"},
        {"accuracy": "top3"},
        {"replay_action": "none"},
    ],
)
def test_an_option_out_of_range_is_named(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        make(**options)


def test_a_budget_below_the_smallest_policy_is_refused() -> None:
    with pytest.raises(ValueError, match="the budget must reach what the smallest policy costs"):
        make(budget=Budget("macs", 10.0, 1e6))


def test_a_space_without_groups_is_refused() -> None:
    space = replace(toy_space(), groups=())
    with pytest.raises(ValueError, match="at least one group"):
        make(space=space)
