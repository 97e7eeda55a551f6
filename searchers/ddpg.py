"""DDPG, whole: actor and critic, replay, truncated-normal exploration, and the update (Lillicrap et al., ICLR 2016,
arXiv:1509.02971), in the form that AMC uses it (He et al., ECCV 2018, arXiv:1802.03494).

AMC's agent differs from textbook DDPG: one action in (0, 1], a sigmoid actor, noise from a truncated normal, a moving
average of rewards subtracted from the target, discount 1. Numbered differences from AMC's released code: AMC.md.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Actor(nn.Module):
    """State to action, two hidden layers and a sigmoid."""

    def __init__(self, num_features: int, hidden_size: int, *, generator: torch.Generator) -> None:
        super().__init__()
        self.fc1 = _linear(num_features, hidden_size, generator)
        self.fc2 = _linear(hidden_size, hidden_size, generator)
        self.fc3 = _linear(hidden_size, 1, generator)

    def forward(self, states: Tensor) -> Tensor:
        """[B, num_features] -> [B, 1] in (0, 1)."""
        return torch.sigmoid(self.fc3(F.relu(self.fc2(F.relu(self.fc1(states))))))


class Critic(nn.Module):
    """State and action to value, two hidden layers; the action enters at the first or at the second."""

    def __init__(self, num_features: int, hidden_size: int, action_at: str, *, generator: torch.Generator) -> None:
        super().__init__()
        self.action_at = action_at
        self.fc1 = _linear(num_features, hidden_size, generator)
        self.fc1_action = _linear(1, hidden_size, generator)
        self.fc2 = _linear(hidden_size, hidden_size, generator)
        self.fc3 = _linear(hidden_size, 1, generator)

    def forward(self, states: Tensor, actions: Tensor) -> Tensor:
        """[B, num_features], [B, 1] -> [B, 1]."""
        if self.action_at == "first_layer":
            hidden = F.relu(self.fc2(F.relu(self.fc1(states) + self.fc1_action(actions))))
        else:
            # A linear layer on [hidden, action] is the sum of one on each.
            hidden = F.relu(self.fc2(F.relu(self.fc1(states))) + self.fc1_action(actions))
        return self.fc3(hidden)  # type: ignore[no-any-return]


def _linear(in_features: int, out_features: int, generator: torch.Generator) -> nn.Linear:
    # PyTorch's own default, U(±1/sqrt(in)), drawn from our generator instead of the global one.
    layer = nn.Linear(in_features, out_features, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(-1 / math.sqrt(in_features), 1 / math.sqrt(in_features), generator=generator)
    return layer


class Replay:
    """The last `capacity` transitions; the oldest are overwritten. Every one stored can be drawn."""

    def __init__(self, capacity: int, num_features: int) -> None:
        self.capacity = capacity
        self.num_stored = 0  # ever; the next goes to num_stored % capacity
        self.states = torch.zeros(capacity, num_features)
        self.next_states = torch.zeros(capacity, num_features)
        self.actions = torch.zeros(capacity, 1)
        self.rewards = torch.zeros(capacity, 1)
        self.continues = torch.zeros(capacity, 1)  # 0 at an episode's end, else 1

    def __len__(self) -> int:
        return min(self.num_stored, self.capacity)

    def append(self, state: Tensor, action: float, reward: float, next_state: Tensor, *, is_last: bool) -> None:
        index = self.num_stored % self.capacity
        self.states[index], self.next_states[index] = state, next_state
        self.actions[index], self.rewards[index], self.continues[index] = action, reward, float(not is_last)
        self.num_stored += 1

    def sample(self, size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """States, actions, rewards, next states and continues of up to `size` distinct transitions."""
        picked = torch.from_numpy(rng.choice(len(self), min(size, len(self)), replace=False))
        columns = (self.states, self.actions, self.rewards, self.next_states, self.continues)
        return tuple(column[picked] for column in columns)  # type: ignore[return-value]

    def state_dict(self) -> dict[str, Any]:
        return {key: value.clone() if isinstance(value, Tensor) else value for key, value in vars(self).items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["states"].shape != self.states.shape:
            raise ValueError(
                f"a replay of shape {tuple(self.states.shape)} is expected, but the state holds "
                f"{tuple(state['states'].shape)}; resume with the options and the network of the saved run"
            )
        for key, value in state.items():
            setattr(self, key, value.clone() if isinstance(value, Tensor) else value)


def truncated_normal(mean: float, sigma: float, low: float, high: float, rng: np.random.Generator) -> float:
    """One draw from N(mean, sigma²) conditioned on [low, high], by the inverse of its distribution function.

    Not a clipped normal: no mass piles up on the bounds. `sigma` 0 gives the point of [low, high] nearest to `mean`.
    """
    if sigma == 0:
        return min(max(mean, low), high)
    below, above = (low - mean) / sigma, (high - mean) / sigma
    sign = 1.0
    if below > 0:  # use the lower tail: near 1 the distribution function has no digits left
        below, above, sign = -above, -below, -1.0
    p_below, p_above = _normal_cdf(below), _normal_cdf(above)
    p = p_below + rng.random() * (p_above - p_below)
    # Past 38 sigma the tail underflows to 0; all of its mass is then at the bound nearest to the mean.
    z = NormalDist().inv_cdf(p) if 0 < p < 1 else above
    return min(max(mean + sign * sigma * z, low), high)


def _normal_cdf(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2))


@dataclass(frozen=True, kw_only=True)
class DDPGOptions:
    """The agent's hyperparameters; their numbers, with sources, stand in conf/searcher/amc.yaml.

    `critic_action` is the critic's layer that the action enters at. `replay_size` counts transitions, or whole episodes
    where `replay_unit` says so. `baseline` is the moving average, of rate `baseline_rate`, that is subtracted from
    rewards: of each sampled batch's mean, at each update (`batch`), of each episode's reward (`episode`), or `none`.
    """

    hidden_size: int
    actor_lr: float
    critic_lr: float
    critic_action: str
    tau: float
    discount: float
    batch_size: int
    replay_size: int
    replay_unit: str
    baseline: str
    baseline_rate: float

    def __post_init__(self) -> None:
        for name, choices in (
            ("critic_action", ("second_layer", "first_layer")),
            ("replay_unit", ("transitions", "episodes")),
            ("baseline", ("batch", "episode", "none")),
        ):
            if (value := getattr(self, name)) not in choices:
                raise ValueError(f"`agent.{name}` must be one of {', '.join(choices)}, but got {value!r}")
        for name in ("hidden_size", "batch_size", "replay_size"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"`agent.{name} >= 1` must hold, but got {value}")
        if not 0 <= self.discount <= 1:
            raise ValueError(f"`0 <= agent.discount <= 1` must hold, but got {self.discount}")
        for name in ("actor_lr", "critic_lr", "tau", "baseline_rate"):
            if not 0 < (value := getattr(self, name)) <= 1:
                raise ValueError(f"`0 < agent.{name} <= 1` must hold, but got {value}")


class DDPG:
    """The agent: acts, remembers episodes, learns from its replay. Owns its generators; computes on the CPU."""

    def __init__(self, options: DDPGOptions, *, num_features: int, episode_length: int, seed: int) -> None:
        self.options = options
        generator = torch.Generator().manual_seed(seed)
        self.rng = np.random.default_rng(seed)
        self.actor = Actor(num_features, options.hidden_size, generator=generator)
        self.critic = Critic(num_features, options.hidden_size, options.critic_action, generator=generator)
        self.actor_target = copy.deepcopy(self.actor)
        self.critic_target = copy.deepcopy(self.critic)
        self._leaders: list[Tensor] = [*self.actor.parameters(), *self.critic.parameters()]
        self._followers: list[Tensor] = [*self.actor_target.parameters(), *self.critic_target.parameters()]
        # One fused step for all parameters: the networks are small, and Python's share of an update would be the most.
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=options.actor_lr, fused=True)
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), lr=options.critic_lr, fused=True)
        per_unit = episode_length if options.replay_unit == "episodes" else 1
        self.replay = Replay(options.replay_size * per_unit, num_features)
        self.average_reward: float | None = None

    def act(self, state: Tensor) -> float:
        """The actor's action for one state [num_features], no noise."""
        with torch.no_grad():
            return float(self.actor(state))

    def remember(self, states: Tensor, actions: list[float], reward: float, *, num_updates: int) -> dict[str, float]:
        """Stores one episode and learns; returns the mean losses of the updates, empty when there were none.

        `states` is [episode_length, num_features]. Every transition gets the whole `reward`. `num_updates` updates are
        made after each transition is stored.
        """
        if self.options.baseline == "episode":
            self._move_average(reward)
        last = len(actions) - 1
        losses: list[tuple[float, float]] = []
        for index, action in enumerate(actions):
            # What follows the last state is never read; its own copy stands in, as in the released code.
            next_state = states[min(index + 1, last)]
            self.replay.append(states[index], action, reward, next_state, is_last=index == last)
            losses.extend(self.update() for _ in range(num_updates))
        if not losses:
            return {}
        critic_loss, actor_loss = torch.tensor(losses).mean(dim=0).tolist()
        return {"critic_loss": critic_loss, "actor_loss": actor_loss}

    def update(self) -> tuple[float, float]:
        """One step of the critic, one of the actor, and the targets after them; returns both losses."""
        states, actions, rewards, next_states, continues = self.replay.sample(self.options.batch_size, self.rng)
        if self.options.baseline == "batch":
            self._move_average(float(rewards.mean()))
        with torch.no_grad():
            next_values = self.critic_target(next_states, self.actor_target(next_states))
            advantages = rewards - (self.average_reward or 0.0)
            targets = advantages + self.options.discount * continues * next_values  # [B, 1]

        critic_loss = F.mse_loss(self.critic(states, actions), targets)
        _step(self.critic_optimizer, critic_loss)
        actor_loss = -self.critic(states, self.actor(states)).mean()
        _step(self.actor_optimizer, actor_loss)
        with torch.no_grad():
            torch._foreach_lerp_(self._followers, self._leaders, self.options.tau)
        return float(critic_loss.detach()), float(actor_loss.detach())

    def _move_average(self, reward: float) -> None:
        if self.average_reward is None:
            self.average_reward = reward
        else:
            self.average_reward += self.options.baseline_rate * (reward - self.average_reward)

    _MODULES = ("actor", "critic", "actor_target", "critic_target", "actor_optimizer", "critic_optimizer")

    def state_dict(self) -> dict[str, Any]:
        state = {name: copy.deepcopy(getattr(self, name).state_dict()) for name in self._MODULES}
        return state | {
            "replay": self.replay.state_dict(),
            "rng": self.rng.bit_generator.state,
            "average_reward": self.average_reward,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.replay.load_state_dict(state["replay"])
        for name in self._MODULES:
            # An optimizer keeps the tensors it is given, so they are copied: the caller's state must not change.
            getattr(self, name).load_state_dict(copy.deepcopy(state[name]))
        self.rng.bit_generator.state = state["rng"]
        self.average_reward = state["average_reward"]


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    # Only this optimizer's parameters: the actor's loss runs through the critic, which must not learn from it.
    parameters = optimizer.param_groups[0]["params"]
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        parameter.grad = gradient
    optimizer.step()
