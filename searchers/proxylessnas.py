"""ProxylessNAS: binarized paths and a differentiable cost (Cai, Zhu, Han; ICLR 2019, arXiv:1812.00332).

Every choice (a group's width, a block's operation) has candidates with probabilities softmax(α), of which one at a time
is active. Weights are trained on the train split along paths drawn from the probabilities; in between, α is moved on
the search split, by the gates' gradients or by REINFORCE, with the expected cost in the objective. What differs from
the paper and the released code (github.com/mit-han-lab/proxylessnas) is numbered in PROXYLESSNAS.md.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from compsearch.budget import Budget
from compsearch.candidates import Candidates
from compsearch.importance import LayerImportance
from compsearch.paths import PathState
from compsearch.protocols import CostModel, Evaluator, ExpectedCostModel, Supernet
from compsearch.scoring import score
from compsearch.space import FloatArray, IntArray, Policy, SearchSpace
from compsearch.trial import Genome, Measurement, Trial, scored_trial
from searchers.architecture import Architecture, ArchitectureOptions, log_probability
from searchers.cost_loss import CostLoss
from searchers.derivation import scaled, within

ESTIMATORS = ("full", "two_path", "reinforce")

_logger = logging.getLogger(__name__)


class ProxylessNAS:
    """One step, an epoch of the supernet's training and the network derived after it; then samples, a few per step.

    The network derived has the mean widths, or the most probable operations, made to fit the budget. Its trial's genome
    holds the probabilities (`compsearch.paths.PathState`); `num_samples` networks drawn from the final ones, and made
    to fit, end the search, without a genome. An epoch whose loss is not finite is undone, its learning rate halved, and
    is recorded as a failed trial.
    """

    #: It can search spaces without groups, too.
    chooses_operations = True

    def __init__(
        self,
        *,
        space: SearchSpace,
        evaluator: Evaluator,
        cost_model: CostModel,
        budget: Budget | None,
        importance: LayerImportance,
        supernet: Supernet,
        seed: int,
        estimator: str,
        update_every: int,
        architecture: ArchitectureOptions,
        cost_loss: CostLoss,
        reinforce_samples: int,
        reinforce_decay: float,
        num_samples: int,
        samples_per_step: int,
        fill_budget: bool,
    ) -> None:
        if estimator not in ESTIMATORS:
            raise ValueError(f"`searcher.estimator` must be one of {', '.join(ESTIMATORS)}, but got {estimator!r}")
        rules = {
            "update_every >= 1": update_every >= 1,
            "reinforce_samples >= 2": reinforce_samples >= 2,
            "0 <= reinforce_decay < 1": 0 <= reinforce_decay < 1,
            "num_samples >= 0": num_samples >= 0,
            "samples_per_step >= 1": samples_per_step >= 1,
        }
        for rule, holds in rules.items():
            if not holds:
                raise ValueError(
                    f"`{rule}` must hold for searcher proxylessnas, but got {update_every=}, {reinforce_samples=}, "
                    f"{reinforce_decay=}, {num_samples=}, {samples_per_step=}"
                )
        if budget is None and cost_loss.form == "absolute":
            raise ValueError(
                "cost_loss.form=absolute holds a budget, but there is none; set one, or "
                "searcher.cost_loss.form=additive"
            )
        if not isinstance(cost_model, ExpectedCostModel):
            raise ValueError(
                f"searcher proxylessnas needs a cost that has an expectation, but {cost_model.resource} has none; "
                "use budget=macs, params, latency or energy"
            )
        self.space = space
        self.evaluator = evaluator
        self.cost_model: ExpectedCostModel = cost_model
        self.budget = budget
        self.importance = importance.scores()
        self.supernet = supernet
        self.candidates = supernet.candidates
        self.estimator = estimator
        self.update_every = update_every
        self.cost_loss = cost_loss
        self.reinforce_samples = reinforce_samples
        self.reinforce_decay = reinforce_decay
        self.num_samples = num_samples
        self.samples_per_step = samples_per_step
        self.fill_budget = fill_budget
        self.num_steps = supernet.epochs + math.ceil(num_samples / samples_per_step)
        self.dense_cost = float(cost_model.costs(space.dense_choices[None])[0])
        self.reference = self.dense_cost if budget is None else budget.limit
        lowest = float(cost_model.costs(space.smallest_choices[None])[0])
        if cost_loss.form == "multiplicative_log" and lowest <= 1:
            raise ValueError(
                f"cost_loss.form=multiplicative_log needs costs above 1, whose logarithm is positive, but the smallest "
                f"network's {cost_model.resource} is {lowest:.4g}; use form=absolute or additive"
            )
        if update_every > supernet.steps_per_epoch:
            raise ValueError(
                f"`searcher.update_every` must be at most the {supernet.steps_per_epoch} steps of an epoch, or nothing "
                f"is learned, but got {update_every=}; lower it, or supernet.batch_size"
            )
        self.rng = np.random.default_rng(seed)
        self.architecture = Architecture(is_one=self.candidates.is_one, options=architecture, rng=self.rng)
        if architecture.start == "budget" and budget is not None:
            self.architecture.tilt(
                _sizes(self.candidates), functools.partial(cost_model.expected, self.candidates), budget.limit
            )
        self.baseline: float | None = None
        self.epoch = 0
        #: The state after the last epoch, to go back to.
        self._good: dict[str, Any] = {}
        self.num_drawn = 0

    def step(self) -> list[Trial]:
        """Trains for an epoch and returns the derived network's trial; after the last one, those of samples."""
        return [self._epoch()] if self.epoch < self.supernet.epochs else self._samples()

    def _epoch(self) -> Trial:
        before = self._good or self.state_dict()
        losses: list[FloatArray] = []
        is_learning = self.epoch >= self.supernet.warmup_epochs
        left = self.supernet.steps_per_epoch
        is_finite = True
        while left > 0 and is_finite:
            num = min(self.update_every, left)
            losses.append(self.supernet.train(self.architecture.sample(num, self.rng)))
            is_finite = bool(np.isfinite(losses[-1]).all())
            left -= num
            if is_finite and is_learning and num == self.update_every:
                is_finite = self.learn()
        if is_finite:
            # The last step may have broken what no loss was seen of.
            self._good = self.state_dict()
            is_finite = _is_finite(self._good)
        if not is_finite:
            return self._undone(before)
        self.epoch += 1
        self._good["epoch"] = self.epoch
        state = self._state_now(float(np.concatenate(losses).mean()))
        return self._score([self._derived()], [state.to_genome()])[0]

    def _undone(self, before: Mapping[str, Any]) -> Trial:
        """The trial of an epoch that diverged, after going back to the state `before` it; it counts as an epoch."""
        self.load_state_dict(before)
        self.supernet.slow_down()
        self.epoch += 1
        self._good = self.state_dict()
        _logger.warning(
            "epoch %d of the supernet's training diverged (something is not finite): it is undone, and training goes "
            "on at half the learning rate",
            self.epoch,
        )
        policy = self._derived()
        nothing = Measurement("search", 0, math.nan, math.nan, math.nan)
        return scored_trial(
            policy, nothing, objective=math.nan, cost_ratio=self.cost_model.cost(policy) / self.dense_cost
        )

    def learn(self) -> bool:
        """One update of the architecture parameters; whether what it saw was finite."""
        if self.estimator == "reinforce":
            return self._reinforce()
        is_pair = self.estimator == "two_path"
        wanted = self.architecture.sample_pairs(self.rng) if is_pair else self.candidates.is_one
        shares = self.architecture.shares(wanted)
        path = _drawn(shares.detach().numpy(), self.rng)
        loss, gradient = self.supernet.gates(path, wanted & (wanted.sum(axis=1) > 1)[:, None])
        if not (math.isfinite(loss) and np.isfinite(gradient).all()):
            return False
        # Of value `loss`, with the gradient of equation 4.
        estimate = (torch.from_numpy(gradient) * shares).sum()
        estimate = estimate - estimate.detach() + loss
        probabilities = self.architecture.among(wanted) if is_pair else self.architecture.probabilities()
        cost = self.cost_model.expected(self.candidates, probabilities)
        objective = self.cost_loss(estimate, cost, self.reference)
        if is_pair:
            return self.architecture.learn_pairs(objective, wanted)
        return self.architecture.learn(objective)

    def _reinforce(self) -> bool:
        """Equation 9: the log-probabilities of sampled networks, weighed by their rewards over a moving average."""
        paths = self.architecture.sample(self.reinforce_samples, self.rng)
        accuracies = self.supernet.accuracies(paths)
        if not np.isfinite(accuracies).all():
            return False
        costs = self.cost_model.costs(self.candidates.choices(paths))
        rewards = self.cost_loss.rewards(accuracies, costs, self.reference)
        mean = float(rewards.mean())
        baseline = mean if self.baseline is None else self.baseline
        advantage = torch.from_numpy(rewards - baseline)
        if not self.architecture.learn(-(advantage * log_probability(self.architecture, paths)).mean()):
            return False
        self.baseline = self.reinforce_decay * baseline + (1 - self.reinforce_decay) * mean
        return True

    def _samples(self) -> list[Trial]:
        num = min(self.samples_per_step, self.num_samples - self.num_drawn)
        self.num_drawn += num
        paths = self.architecture.sample(num, self.rng)
        is_on = paths[:, :, None] == np.arange(self.candidates.values.shape[1])
        # Not filled: where they cost less than the budget, the plot is to show it.
        drawn = zip(is_on.astype(np.float64), paths, strict=True)
        return self._score([self._fitted(one, path, fill=False) for one, path in drawn])

    def _derived(self) -> Policy:
        log_probabilities = self.architecture.log_probabilities
        return self._fitted(np.exp(log_probabilities), log_probabilities.argmax(axis=1), fill=self.fill_budget)

    def _fitted(self, probabilities: FloatArray, path: IntArray, *, fill: bool) -> Policy:
        """Within the budget: the mean widths of `probabilities` scaled, or operations like those of `path`."""
        num_groups = len(self.space.groups)
        given: dict[str, Any] = {"cost_model": self.cost_model, "budget": self.budget}
        if num_groups:
            counts = (probabilities * self.candidates.values)[:num_groups].sum(axis=1)
            kept = probabilities[num_groups:, 0]
            choices = scaled(counts, kept, space=self.space, fill=fill, **given)
            return self.space.select(choices[:num_groups], self.importance, choices[num_groups:])
        logs = self.architecture.log_probabilities
        fitted = within(path, logs, candidates=self.candidates, fill=fill, **given)
        return self.candidates.policy(fitted, self.importance)

    def _state_now(self, train_loss: float) -> PathState:
        with torch.no_grad():
            probabilities = self.architecture.probabilities()
            cost = float(self.cost_model.expected(self.candidates, probabilities))
        named = zip(self.candidates.names, self.candidates.labels, probabilities.tolist(), strict=True)
        return PathState(
            epoch=self.epoch,
            expected_cost_ratio=cost / self.dense_cost,
            train_loss=train_loss,
            probabilities={name: dict(zip(labels, row, strict=False)) for name, labels, row in named},
        )

    def _score(self, policies: Sequence[Policy], genomes: Sequence[Genome] = ()) -> list[Trial]:
        return score(policies, space=self.space, evaluator=self.evaluator, cost_model=self.cost_model, genomes=genomes)

    def state_dict(self) -> dict[str, Any]:
        return {
            "architecture": self.architecture.state_dict(),
            "supernet": self.supernet.state_dict(),
            "rng": self.rng.bit_generator.state,
            "baseline": self.baseline,
            "epoch": self.epoch,
            "num_drawn": self.num_drawn,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues after the step at which `state` was taken."""
        self.architecture.load_state_dict(state["architecture"])
        self.supernet.load_state_dict(state["supernet"])
        self.rng.bit_generator.state = state["rng"]
        self.baseline = state["baseline"]
        self.epoch = state["epoch"]
        self.num_drawn = state["num_drawn"]
        self._good = {}


def _drawn(shares: FloatArray, rng: np.random.Generator) -> IntArray:
    """One candidate per choice, by `shares` [num_choices, most candidates]."""
    with np.errstate(divide="ignore"):
        path: IntArray = (np.log(shares) + rng.gumbel(size=shares.shape)).argmax(axis=1)
    return path


def _sizes(candidates: Candidates) -> FloatArray:
    """How far each candidate is from the smallest of its choice towards the dense network's, [num_choices, most]."""
    values, num_groups = candidates.values.astype(np.float64), len(candidates.space.groups)
    sizes = np.zeros_like(values)
    sizes[:num_groups] = values[:num_groups] / candidates.space.sizes[:, None]
    sizes[num_groups:] = 1 - values[num_groups:] / np.maximum(1, candidates.sizes[num_groups:, None] - 1)
    return np.where(candidates.is_one, sizes, 0.0)


def _is_finite(state: Any) -> bool:
    """Whether all tensors and numbers of a nested state are."""
    if isinstance(state, torch.Tensor):
        return not state.is_floating_point() or bool(torch.isfinite(state).all())
    if isinstance(state, Mapping):
        return all(map(_is_finite, state.values()))
    if isinstance(state, list | tuple):
        return all(map(_is_finite, state))
    return not isinstance(state, float) or math.isfinite(state)
