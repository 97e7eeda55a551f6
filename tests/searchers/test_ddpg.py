import dataclasses
import math

import numpy as np
import pytest
import torch

from searchers.ddpg import DDPG, Actor, Critic, DDPGOptions, Replay, truncated_normal

OPTIONS = DDPGOptions(
    hidden_size=1,
    actor_lr=1e-4,
    critic_lr=1e-3,
    critic_action="second_layer",
    tau=0.01,
    discount=1.0,
    batch_size=1,
    replay_size=4,
    replay_unit="transitions",
    baseline="none",
    baseline_rate=0.5,
)


def hand_agent(**changes: object) -> DDPG:
    """One feature, one hidden unit: actor(s) = sigmoid(0·s) = 0.5, critic(s, a) = s + 2a for s, a > 0."""
    agent = DDPG(dataclasses.replace(OPTIONS, **changes), num_features=1, episode_length=1, seed=0)
    weights = {"fc1": 1.0, "fc2": 1.0, "fc3": 1.0, "fc1_action": 2.0}
    with torch.no_grad():
        for network in (agent.actor, agent.actor_target, agent.critic, agent.critic_target):
            for name, layer in network.named_children():
                layer.weight.fill_(weights[name])
                layer.bias.zero_()
        agent.actor.fc3.weight.zero_()
        agent.actor_target.fc3.weight.zero_()
    return agent


def value(parameter: torch.Tensor) -> float:
    return parameter.detach().item()


def store(agent: DDPG, *, is_last: bool = False) -> None:
    agent.replay.append(torch.tensor([1.0]), 0.25, 0.9, torch.tensor([1.0]), is_last=is_last)


def test_one_update_equals_the_one_on_paper() -> None:
    agent = hand_agent()
    store(agent)
    critic_loss, actor_loss = agent.update()
    # Q(s, a) = 1 + 2·0.25 = 1.5; target = 0.9 + Q'(s', 0.5) = 0.9 + 2 = 2.9; loss = 1.4².
    assert critic_loss == pytest.approx(1.96, abs=1e-6)
    # dL/dQ = 2·(1.5 - 2.9) = -2.8; times what each parameter feeds.
    gradients = {name: float(p.grad) for name, p in agent.critic.named_parameters() if p.grad is not None}
    expected = {
        "fc1.weight": -2.8,
        "fc1.bias": -2.8,
        "fc1_action.weight": -2.8 * 0.25,
        "fc1_action.bias": -2.8,
        "fc2.weight": -2.8,
        "fc2.bias": -2.8,
        "fc3.weight": -2.8 * 1.5,
        "fc3.bias": -2.8,
    }
    assert gradients == pytest.approx(expected, abs=1e-5)
    # Adam's first step is lr against the gradient's sign: every critic parameter rises by 0.001.
    assert value(agent.critic.fc1.weight) == pytest.approx(1.001, abs=1e-6)
    assert value(agent.critic.fc3.bias) == pytest.approx(0.001, abs=1e-6)
    # The actor's loss is read off the critic after its step: h = 1.001·1.002 + 0.001 + 2.001·0.5 + 0.001.
    hidden = 1.001 * 1.002 + 0.001 + 2.001 * 0.5 + 0.001
    assert actor_loss == pytest.approx(-(1.001 * hidden + 0.001), abs=1e-5)
    # d(loss)/d(fc3) = -dQ/da · sigmoid'(0) · 1 = -1.001·2.001·0.25; the layers below fc3 = 0 get nothing.
    assert value(agent.actor.fc3.weight.grad) == pytest.approx(-1.001 * 2.001 * 0.25, abs=1e-5)
    assert value(agent.actor.fc3.weight) == pytest.approx(1e-4, abs=1e-8)
    assert value(agent.actor.fc2.weight) == 1.0
    # Targets move by tau = 0.01 of the way.
    assert value(agent.critic_target.fc1.weight) == pytest.approx(1.00001, abs=1e-6)
    assert value(agent.actor_target.fc3.weight) == pytest.approx(1e-6, abs=1e-9)


def test_the_actor_step_leaves_the_critic_alone() -> None:
    agent = hand_agent(actor_lr=0.5)
    store(agent)
    agent.update()
    gradient = agent.critic.fc3.weight.grad
    assert float(gradient) == pytest.approx(-2.8 * 1.5, abs=1e-5)  # of the critic's loss only


def test_after_an_episodes_last_transition_nothing_is_expected() -> None:
    agent = hand_agent()
    store(agent, is_last=True)
    critic_loss, _ = agent.update()
    assert critic_loss == pytest.approx((1.5 - 0.9) ** 2, abs=1e-6)


def test_discount_weighs_the_next_value() -> None:
    agent = hand_agent(discount=0.5)
    store(agent)
    critic_loss, _ = agent.update()
    assert critic_loss == pytest.approx((1.5 - (0.9 + 0.5 * 2)) ** 2, abs=1e-6)


def test_batch_baseline_averages_batch_means_at_each_update() -> None:
    agent = hand_agent(baseline="batch")
    store(agent)
    critic_loss, _ = agent.update()
    assert agent.average_reward == pytest.approx(0.9)
    assert critic_loss == pytest.approx((1.5 - 2.0) ** 2, abs=1e-6)  # 0.9 - 0.9 + 2
    agent.replay.rewards.fill_(0.1)
    agent.update()
    assert agent.average_reward == pytest.approx(0.5)  # half-way, rate 0.5


def test_episode_baseline_averages_episode_rewards() -> None:
    agent = hand_agent(baseline="episode")
    for reward in (0.9, 0.1):
        agent.remember(torch.tensor([[1.0]]), [0.25], reward, num_updates=0)
    assert agent.average_reward == pytest.approx(0.5)
    agent.update()
    assert agent.average_reward == pytest.approx(0.5)


def test_critic_takes_the_action_where_the_option_says() -> None:
    # Hidden bias -3 at the first layer silences what enters there: only an action at the second still counts.
    for action_at, expected in (("second_layer", 1.0), ("first_layer", 0.0)):
        critic = Critic(1, 1, action_at, generator=torch.Generator())
        with torch.no_grad():
            for parameter in critic.parameters():
                parameter.fill_(1.0)
            for layer in critic.children():
                layer.bias.zero_()
            critic.fc1.bias.fill_(-3.0)
        assert value(critic(torch.ones(1, 1), torch.ones(1, 1))) == expected


def test_networks_start_as_pytorchs_defaults_do_but_from_their_own_generator() -> None:
    first, again, other = (Actor(4, 100, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(first.fc2.weight, again.fc2.weight)
    assert not torch.equal(first.fc2.weight, other.fc2.weight)
    assert value(first.fc2.weight.abs().max()) == pytest.approx(0.1, abs=1e-3)
    assert value(first.fc2.weight.std()) == pytest.approx(0.1 / math.sqrt(3), rel=0.05)


def test_episode_reward_is_copied_to_every_transition() -> None:
    agent = hand_agent()
    states = torch.tensor([[0.0], [1.0], [2.0]])
    agent.remember(states, [0.1, 0.2, 0.3], 0.7, num_updates=0)
    assert agent.replay.rewards[:3, 0].tolist() == pytest.approx([0.7] * 3)
    assert agent.replay.next_states[:3, 0].tolist() == [1.0, 2.0, 2.0]
    assert agent.replay.continues[:3, 0].tolist() == [1.0, 1.0, 0.0]


def test_one_update_per_transition() -> None:
    agent = hand_agent()
    agent.remember(torch.ones(3, 1), [0.1, 0.2, 0.3], 0.7, num_updates=1)
    assert agent.critic_optimizer.state[agent.critic.fc1.weight]["step"] == 3


def test_replay_draws_every_transition_the_first_included() -> None:
    replay = Replay(5, 1)
    for index in range(3):
        replay.append(torch.tensor([float(index)]), 0.0, 0.0, torch.zeros(1), is_last=False)
    rng = np.random.default_rng(0)
    drawn = [float(replay.sample(1, rng)[0]) for _ in range(100)]
    assert set(drawn) == {0.0, 1.0, 2.0}


def test_replay_overwrites_the_oldest_and_draws_without_repeats() -> None:
    replay = Replay(3, 1)
    for index in range(5):
        replay.append(torch.tensor([float(index)]), 0.0, 0.0, torch.zeros(1), is_last=False)
    states = replay.sample(64, np.random.default_rng(0))[0]
    assert sorted(states[:, 0].tolist()) == [2.0, 3.0, 4.0]


def test_replay_size_counts_transitions_or_episodes() -> None:
    sizes = [
        DDPG(dataclasses.replace(OPTIONS, replay_unit=unit), num_features=1, episode_length=7, seed=0).replay.capacity
        for unit in ("transitions", "episodes")
    ]
    assert sizes == [4, 28]


def test_a_state_of_another_network_is_refused() -> None:
    state = hand_agent().state_dict()
    other = DDPG(OPTIONS, num_features=2, episode_length=1, seed=0)
    with pytest.raises(ValueError, match=r"a replay of shape \(4, 2\) is expected"):
        other.load_state_dict(state)


@pytest.mark.parametrize(
    ("mean", "sigma", "low", "high"),
    [(0.5, 0.5, 0.1, 1.0), (0.9, 0.2, 0.1, 1.0), (0.05, 0.3, 0.2, 1.0), (0.0, 0.01, 0.2, 1.0)],
)
def test_truncated_normal_has_its_moments_and_distribution(mean: float, sigma: float, low: float, high: float) -> None:
    rng = np.random.default_rng(0)
    draws = np.array([truncated_normal(mean, sigma, low, high, rng) for _ in range(20_000)])
    assert ((draws >= low) & (draws <= high)).all()

    def density(x: float) -> float:
        return math.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)

    def tail(x: float) -> float:
        return 0.5 * math.erfc(x / math.sqrt(2))

    a, b = (low - mean) / sigma, (high - mean) / sigma
    mass = tail(a) - tail(b)
    shift = (density(a) - density(b)) / mass
    variance = sigma**2 * (1 + (a * density(a) - b * density(b)) / mass - shift**2)
    assert draws.mean() == pytest.approx(mean + sigma * shift, abs=4 * math.sqrt(variance / len(draws)))
    assert draws.var() == pytest.approx(variance, rel=0.05)
    # Kolmogorov-Smirnov at the 0.1% level: a clipped normal, with its mass on the bounds, fails it by far.
    ordered = np.sort(draws)
    exact = np.array([1 - (tail((x - mean) / sigma) - tail(b)) / mass for x in ordered])
    assert np.abs(exact - np.arange(1, len(draws) + 1) / len(draws)).max() < 1.95 / math.sqrt(len(draws))


def test_truncated_normal_far_in_the_tail_stays_at_the_near_bound() -> None:
    rng = np.random.default_rng(0)
    assert truncated_normal(-5.0, 0.1, 0.1, 1.0, rng) == pytest.approx(0.1)
    assert truncated_normal(5.0, 0.1, 0.1, 1.0, rng) == pytest.approx(1.0)
    assert truncated_normal(0.3, 0.0, 0.1, 1.0, rng) == 0.3
    assert truncated_normal(0.3, 1e-9, 0.1, 1.0, rng) == pytest.approx(0.3, abs=1e-7)
    assert truncated_normal(0.3, 1.0, 1.0, 1.0, rng) == 1.0


@pytest.mark.parametrize(
    ("option", "value"),
    [("critic_action", "third"), ("replay_unit", "bytes"), ("baseline", "mean"), ("batch_size", 0), ("tau", 0.0)],
)
def test_an_option_out_of_range_is_named(option: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"agent.{option}"):
        dataclasses.replace(OPTIONS, **{option: value})
