"""AMC: AutoML for Model Compression (He, Lin, Liu, Wang, Li, Han; ECCV 2018, arXiv:1802.03494).

A DDPG agent walks the network layer by layer and says how much of each to keep; the action limit keeps every walk
within the budget; the reward, the pruned network's accuracy without fine-tuning, comes at the end of the walk. Whether
"how much" is of channels, of weights or of blocks of weights is the space's affair. What differs from the paper and
from the released code (github.com/mit-han-lab/amc) is numbered in AMC.md.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from compsearch.budget import Budget
from compsearch.importance import LayerImportance
from compsearch.protocols import CostModel, Evaluator
from compsearch.space import FloatArray, Group, IntArray, Layer, SearchSpace
from compsearch.trial import Trial, scored_trial
from searchers.composite_reward import CompositeOptions, CompositeReward
from searchers.ddpg import DDPG, DDPGOptions, truncated_normal

log = logging.getLogger(__name__)

# --- Rewards: of error in [0, 1], cost in the cost model's unit, and all costs; higher is better ----------------------

Reward = Callable[[float, float, Mapping[str, float]], float]


def accuracy_reward(error: float, cost: float, costs: Mapping[str, float]) -> float:
    """1 - Error, for a search within a budget. The paper's -Error plus a constant, so that it reads as an accuracy."""
    return 1 - error


def error_log_cost_reward(error: float, cost: float, costs: Mapping[str, float]) -> float:
    """-Error * ln(cost): the paper's -Error·log(FLOPs) on macs, its -Error·log(#Param) on params."""
    return -error * math.log(cost)


REWARDS: Mapping[str, Reward] = {"accuracy": accuracy_reward, "error_log_cost": error_log_cost_reward}

# --- States: the features of layer t that no action changes ----------------------------------------------------------


def paper_features(index: int, layer: Layer) -> tuple[float, ...]:
    """(t, n, c, h, w, stride, k, FLOPs[t]) of the paper's 11 features."""
    size = (layer.out_channels, layer.in_channels, layer.height, layer.width)
    return (index, *size, layer.stride, layer.kernel_size, layer.macs)


def released_features(index: int, layer: Layer) -> tuple[float, ...]:
    """(t, is linear, c, n, stride, k, weight size) of the released code's 10; a linear layer has stride 0 there."""
    is_linear = layer.kind == "linear"
    stride = 0 if is_linear else layer.stride
    return (index, is_linear, layer.in_channels, layer.out_channels, stride, layer.kernel_size, layer.num_weights)


STATES: Mapping[str, Callable[[int, Layer], tuple[float, ...]]] = {
    "paper": paper_features,
    "released": released_features,
}


def static_states(space: SearchSpace, features: Callable[[int, Layer], tuple[float, ...]]) -> FloatArray:
    """One row per group, each column scaled to [0, 1] over the groups; a constant column is 0."""
    table = np.array([features(t, decided_layer(space, group)) for t, group in enumerate(space.groups)], dtype=float)
    low, high = table.min(axis=0), table.max(axis=0)
    scaled: FloatArray = (table - low) / np.where(high > low, high - low, 1.0)
    return scaled


def rest_macs(space: SearchSpace) -> FloatArray:
    """The share of the dense macs that lies after each group's layer, in graph order, [num_groups]."""
    macs = np.array([layer.macs for layer in space.layers])
    after: FloatArray = (macs.sum() - np.cumsum(macs)) / macs.sum()
    position = {layer.name: index for index, layer in enumerate(space.layers)}
    return np.array([after[position[decided_layer(space, group).name]] for group in space.groups])


def decided_layer(space: SearchSpace, group: Group) -> Layer:
    """The layer that a decision on `group` is described by: AMC prunes a layer's *input* channels.

    That is the first layer that reads the group and is not depthwise (a depthwise layer only passes channels on);
    where there is none, the first that reads it, or else the last that emits it.
    """
    consumers = [space.layer_by_name[name] for name in group.consumers if name in space.layer_by_name]
    producers = [space.layer_by_name[name] for name in group.producers]
    full = [layer for layer in consumers if layer.kind != "depthwise"]
    return (full or consumers or producers[-1:])[0]


# --- Policies over the budget ----------------------------------------------------------------------------------------


def over_budget(trial: Trial, budget: Budget, excess: float) -> Trial:
    """`trial` as a failed one: nobody can afford it by `excess`, a fraction of the dense cost. Its accuracy stays."""
    if trial.objective is None:  # not finite, which says more
        return trial
    said = f"cost_ratio {trial.cost_ratio:.4g} > {budget.cost_ratio:.4g}, by {excess:.2g}"
    return replace(trial, objective=None, failure=f"over the budget: {said}")


# --- The search ------------------------------------------------------------------------------------------------------


class AMC:
    """One step is one episode: a walk over the groups in forward order, a score, one update per transition.

    `state` and `reward` name entries of `STATES` and `REWARDS`, or the reward is ``composite``, which `composite`
    describes and for which the dense network is measured. `one_hot` adds t to the state as an indicator; `accuracy` is
    top1 or top5. `replay_action` says which action the agent learns from: what the network got
    (`limited`) or what the actor asked for (`raw`). The first `warmup_episodes` act at random; then noise has standard
    deviation ``noise_sigma * noise_decay ** (episodes since)``. Updates are made from episode `learning_starts` on.

    With an `over_budget_penalty` there is no action limit: a walk may end over the budget. Its trial has then failed,
    and the agent learns from the reward less the penalty times the part of the dense cost by which it is over.
    """

    def __init__(
        self,
        *,
        space: SearchSpace,
        evaluator: Evaluator,
        cost_model: CostModel,
        budget: Budget | None,
        importance: LayerImportance,
        seed: int,
        num_steps: int,
        warmup_episodes: int,
        learning_starts: int,
        noise_sigma: float,
        noise_decay: float,
        state: str,
        one_hot: bool,
        reward: str,
        accuracy: str,
        replay_action: str,
        agent: DDPGOptions,
        composite: CompositeOptions | None = None,
        over_budget_penalty: float | None = None,
    ) -> None:
        for name, value, choices in (
            ("state", state, tuple(STATES)),
            ("reward", reward, (*REWARDS, "composite")),
            ("accuracy", accuracy, ("top1", "top5")),
            ("replay_action", replay_action, ("limited", "raw")),
        ):
            if value not in choices:
                raise ValueError(f"`searcher.{name}` must be one of {', '.join(choices)}, but got {value!r}")
        for name, number, least in (
            ("num_steps", num_steps, 1),
            ("warmup_episodes", warmup_episodes, 0),
            ("learning_starts", learning_starts, 0),
        ):
            if number < least:
                raise ValueError(f"`searcher.{name} >= {least}` must hold, but got {number}")
        if noise_sigma < 0 or not 0 < noise_decay <= 1:
            raise ValueError(
                f"`noise_sigma >= 0` and `0 < noise_decay <= 1` must hold, but got {noise_sigma=}, {noise_decay=}"
            )
        if not space.groups:
            raise ValueError("a search needs at least one group that may be pruned, but the space has none")
        if budget is None and reward == "accuracy":
            raise ValueError("reward 'accuracy' needs a budget, but there is none; set one, or reward=error_log_cost")
        if over_budget_penalty is not None and not 0 <= over_budget_penalty < math.inf:
            raise ValueError(
                "`searcher.over_budget_penalty` must be null, which limits actions, or a finite number of 0 or more, "
                f"but got {over_budget_penalty}"
            )
        if budget is None and over_budget_penalty is not None:
            raise ValueError(
                f"`searcher.over_budget_penalty={over_budget_penalty:g}` needs a budget to be over, but there is none; "
                "set one, or searcher.over_budget_penalty=null"
            )
        self.space = space
        self.evaluator = evaluator
        self.cost_model = cost_model
        self.budget = budget
        self.importance = importance.scores()
        self.num_steps = num_steps
        self.warmup_episodes = warmup_episodes
        self.learning_starts = learning_starts
        self.noise_sigma = noise_sigma
        self.noise_decay = noise_decay
        #: Whether the objective is of more than accuracy, so that accuracy alone can't choose between trials.
        self.weighs_cost = reward != "accuracy"
        self.accuracy = accuracy
        self.replay_action = replay_action
        self.over_budget_penalty = over_budget_penalty
        self.dense_cost, lowest = (float(cost) for cost in cost_model.costs(np.stack([space.sizes, space.min_counts])))
        if budget is not None and not budget.allows(lowest):
            raise ValueError(
                f"the budget must reach what the smallest policy costs, {lowest:.6g} {cost_model.resource}, but got "
                f"limit={budget.limit:.6g}; raise it, or lower space.min_keep_ratio"
            )
        if reward == "error_log_cost" and lowest <= 1:
            raise ValueError(f"reward 'error_log_cost' needs costs above 1, but got {lowest:.6g} {cost_model.resource}")
        self.reward = self._composite(composite) if reward == "composite" else REWARDS[reward]
        self.static_states = static_states(space, STATES[state])
        if one_hot:
            # Differs from the paper: the blocks of a stage are alike in every feature but t, and a network that is
            # smooth in t can't treat neighbours differently within a few hundred episodes.
            self.static_states = np.hstack([self.static_states, np.eye(len(space.groups))])
        self.rest = rest_macs(space)
        num_features = self.static_states.shape[1] + 3
        self.agent = DDPG(agent, num_features=num_features, episode_length=len(space.groups), seed=seed)
        self.episode = 0

    def step(self) -> list[Trial]:
        """One episode."""
        states, actions, counts = self.walk()
        policy = self.space.select(counts, self.importance)
        cost = self.cost_model.cost(policy)
        [measurement] = self.evaluator.measure([policy])
        right = measurement.accuracy if self.accuracy == "top1" else measurement.top5
        # A network that answers NaN has classified nothing: the agent learns that from an Error of 1.
        reward = self.reward(1 - right if measurement.is_finite else 1.0, cost, measurement.costs)
        trial = scored_trial(policy, measurement, objective=reward, cost_ratio=cost / self.dense_cost)
        if self.over_budget_penalty is not None and self.budget is not None and not self.budget.allows(cost):
            excess = (cost - self.budget.limit) / self.dense_cost
            reward -= self.over_budget_penalty * excess
            trial = over_budget(trial, self.budget, excess)
        learns = self.episode >= self.learning_starts
        losses = self.agent.remember(states, actions, reward, num_updates=int(learns))
        log.debug(
            "episode=%d reward=%.4f sigma=%.4f average_reward=%s %s",
            self.episode,
            reward,
            self.sigma,
            self.agent.average_reward,
            " ".join(f"{name}={value:.4g}" for name, value in losses.items()),
        )
        self.episode += 1
        return [trial]

    def _composite(self, options: CompositeOptions | None) -> Reward:
        if options is None:
            raise ValueError("reward 'composite' needs its coefficients, but searcher.composite is not set")
        [dense] = self.evaluator.measure([self.space.full_policy()])
        return CompositeReward(options, dense=dense, accuracy=self.accuracy)

    @property
    def sigma(self) -> float:
        """The noise of this episode; the warm-up does not use it."""
        return float(self.noise_sigma * self.noise_decay ** max(0, self.episode - self.warmup_episodes))

    def walk(self) -> tuple[torch.Tensor, list[float], IntArray]:
        """Decides on every group: states [num_groups, num_features], actions to remember, counts [num_groups]."""
        space, agent = self.space, self.agent
        states = torch.zeros(len(space.groups), self.static_states.shape[1] + 3)
        actions: list[float] = []
        counts = space.sizes.copy()
        last_ratio = 1.0
        for t, group in enumerate(space.groups):
            # Fractions already, so not scaled again: reduced, rest, a[t-1]. `counts` is dense from t on.
            reduced = 1 - float(self.cost_model.costs(counts[None])[0]) / self.dense_cost
            states[t] = torch.tensor([*self.static_states[t], reduced, self.rest[t], last_ratio])
            low = group.counts[0] / group.size
            if self.episode < self.warmup_episodes:
                action = float(agent.rng.uniform(low, 1.0))
            else:
                action = truncated_normal(agent.act(states[t]), self.sigma, low, 1.0, agent.rng)
            offered = self.affordable_counts(t, counts)
            counts[t] = offered[np.abs(offered - action * group.size).argmin()]  # the lower of two equally near
            last_ratio = float(counts[t] / group.size)
            actions.append(last_ratio if self.replay_action == "limited" else action)
        return states, actions, counts

    def affordable_counts(self, t: int, counts: IntArray) -> IntArray:
        """What group `t` may keep such that the budget can still be met; the last is AMC's action limit.

        `counts` [num_groups] is decided before `t`; the groups after it are taken at their fewest units. All allowed
        counts are priced exactly and at once, coupled layers and rounding included, so the walk as a whole meets the
        budget whatever the cost model, as long as the smallest policy does. Without a limit, all allowed counts.
        """
        allowed = np.array(self.space.groups[t].counts, dtype=np.int64)
        if self.budget is None or self.over_budget_penalty is not None:
            return allowed
        policies = np.repeat(self.space.min_counts[None], len(allowed), axis=0)  # [num_allowed, num_groups]
        policies[:, :t] = counts[:t]
        policies[:, t] = allowed
        fits = self.cost_model.costs(policies) <= self.budget.limit
        # The fewest units made the previous step's choice affordable, so they are; only a float's last digit, summed
        # in another order, could say otherwise.
        fits[0] = True
        return allowed[fits]

    def state_dict(self) -> dict[str, Any]:
        return {"episode": self.episode, "agent": self.agent.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues after the episode at which `state` was taken."""
        self.agent.load_state_dict(state["agent"])
        self.episode = state["episode"]
