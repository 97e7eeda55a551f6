"""A search problem with a known answer, in closed form: what searchers are tested on. No network, no data."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from compsearch.budget import Budget, budget_from_ratio, largest_within
from compsearch.candidates import Candidates, candidates_of
from compsearch.importance import LayerImportance
from compsearch.protocols import CostModel, Evaluator
from compsearch.space import BoolArray, FloatArray, Group, IntArray, Layer, Policy, SearchSpace
from compsearch.trial import Measurement


def toy_space() -> SearchSpace:
    """Eight groups of a made-up network of seven convolutions, a depthwise one and a linear layer.

    Two groups are coupled, one by the depthwise convolution and one by an addition. There is no module behind it.
    """
    # name, kind, the group read (-1: the image), the group emitted (-1: the classes), in, out, pixels, kernel
    rows = [
        ("conv0", "conv", -1, 0, 3, 16, 32, 3),
        ("conv1", "conv", 0, 1, 16, 16, 32, 3),
        ("conv2", "conv", 1, 2, 16, 32, 16, 3),
        ("depthwise", "depthwise", 2, 2, 32, 32, 16, 3),
        ("conv3", "conv", 2, 3, 32, 32, 16, 1),
        ("conv4", "conv", 3, 4, 32, 48, 16, 3),
        ("conv5", "conv", 4, 5, 48, 64, 8, 3),
        ("conv6", "conv", 5, 4, 64, 48, 8, 3),
        ("conv7", "conv", 4, 6, 48, 64, 8, 3),
        ("hidden", "linear", 6, 7, 64, 64, 1, 1),
        ("linear", "linear", 7, -1, 64, 10, 1, 1),
    ]
    counts = {16: tuple(range(2, 17, 2)), 32: tuple(range(4, 33, 4)), 48: tuple(range(6, 49, 6))}
    counts[64] = tuple(range(8, 65, 8))
    layers = []
    for name, kind, source, target, channels_in, channels_out, pixels, kernel in rows:
        num_weights = channels_out * kernel**2 * (1 if source == target else channels_in)
        shape = (channels_in, channels_out, pixels, pixels, 1, kernel)
        layers.append(Layer(name, f"{name}.weight", kind, *shape, pixels**2, pixels**2 * num_weights, num_weights))
    groups = []
    for index in range(8):
        producers = tuple(row[0] for row in rows if row[3] == index)
        consumers = tuple(row[0] for row in rows if row[2] == index)
        size = next(row[5] for row in rows if row[3] == index)
        groups.append(Group(producers[0], size, 1, counts[size], producers, consumers))
    return SearchSpace(tuple(groups), tuple(layers), frozen=(), sites=(), fingerprint="toy")


def toy_importance(space: SearchSpace) -> LayerImportance:
    """Every producer of a group gives each of its units an importance by chance, of another size in every layer."""
    rng = np.random.default_rng(1)
    layers = [layer.name for layer in space.layers if any(layer.name in group.producers for group in space.groups)]
    layer_index, units, values = [], [], []
    for index, layer in enumerate(layers):
        for group, offset in zip(space.groups, space.offsets, strict=False):
            if layer in group.producers:
                units.append(offset + np.arange(group.size))
                layer_index.append(np.full(group.size, index))
                values.append((index + 1) * rng.random(group.size))
    entries = (np.concatenate(layer_index), np.concatenate(units), np.concatenate(values))
    return LayerImportance(tuple(layers), *entries, num_units=space.num_units, reduction="sum")


class ToyCost:
    """Bilinear costs, kept inputs × kept outputs of each layer, read off a space's layers and groups.

    `resource` is ``macs`` or ``params``; every entry of a parameter is counted once, biases and norms not at all.
    """

    def __init__(self, space: SearchSpace, resource: str = "macs") -> None:
        self.resource = resource
        self.space = space
        self._layers: list[tuple[float, int | None, int | None]] = []
        for layer in space.layers:
            source = next((index for index, group in enumerate(space.groups) if layer.name in group.consumers), None)
            target = next((index for index, group in enumerate(space.groups) if layer.name in group.producers), None)
            dense = layer.macs if resource == "macs" else layer.num_weights
            self._layers.append((dense, source if source != target else None, target))

    def cost(self, policy: Policy) -> float:
        return float(self.costs(self.space.counts(policy)[None])[0])

    def costs(self, counts: IntArray) -> FloatArray:
        """[num_policies, num_groups] -> [num_policies]."""
        ratios = counts / self.space.sizes
        total = np.zeros(len(counts))
        for dense, source, target in self._layers:
            kept_in = 1.0 if source is None else ratios[:, source]
            kept_out = 1.0 if target is None else ratios[:, target]
            total += dense * kept_in * kept_out
        return np.round(total)  # whole operations: ratios of whole numbers multiply back to within rounding

    def expected(self, candidates: Candidates, probabilities: torch.Tensor) -> torch.Tensor:
        """The mean cost of networks drawn choice by choice; no layer here reads and writes the same group."""
        values = torch.from_numpy(candidates.values).to(probabilities)
        ratios = (probabilities * values).sum(1) / torch.from_numpy(self.space.sizes)
        total = torch.zeros(()).to(probabilities)
        for dense, source, target in self._layers:
            kept_in = 1.0 if source is None else ratios[source]
            kept_out = 1.0 if target is None else ratios[target]
            total = total + dense * kept_in * kept_out
        return total


class ToyEvaluator:
    """Accuracy in closed form: 0.95 - Σ_g s_g·(1 - keep_ratio_g)², concave, with a sensitivity s_g per group.

    The sensitivities span a factor of 50, so that one keep_ratio for all groups is far from the best policy.
    `num_measured` counts the policies asked for.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        spread = np.geomspace(1.0, 50.0, len(space.groups))
        shuffled = np.random.default_rng(0).permutation(spread)
        self.sensitivities = 0.9 * shuffled / shuffled.sum()
        self.num_measured = 0

    def measure(self, policies: Sequence[Policy]) -> list[Measurement]:
        self.num_measured += len(policies)
        ratios = np.stack([self.space.counts(policy) for policy in policies]) / self.space.sizes
        # Summed row by row: a matrix product rounds differently with the number of policies asked for at once.
        accuracies = 0.95 - ((1 - ratios) ** 2 * self.sensitivities).sum(axis=1)
        return [Measurement("search", 1000, float(a), (1 + float(a)) / 2, 1 - float(a)) for a in accuracies]


class ToySupernet:
    """A supernet in closed form: loss Σ_g s_g·(1 - keep_ratio_g)² with `ToyEvaluator`'s sensitivities, and noise.

    Its weights are one number that trains towards zero and is added to every loss. `diverges_at` is the epoch in which
    losses are NaN, unless the learning rate was lowered before.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        seed: int = 0,
        warmup_epochs: int = 2,
        epochs: int = 8,
        steps_per_epoch: int = 20,
        diverges_at: int | None = None,
    ) -> None:
        self.candidates = candidates_of(space, [1.0, 0.75, 0.5, 0.25])
        self.warmup_epochs = warmup_epochs
        self.epochs = epochs
        self.steps_per_epoch = steps_per_epoch
        self.diverges_at = diverges_at
        self.lr = 0.1
        self.weight = 1.0
        self.num_steps = 0
        self._sensitivities = ToyEvaluator(space).sensitivities
        self._rng = np.random.default_rng(seed)

    def train(self, paths: IntArray) -> FloatArray:
        losses = []
        for path in paths:
            losses.append(float(self._losses(path[None])[0]) + self.weight)
            self.weight *= 1 - self.lr
            self.num_steps += 1
        is_diverging = (self.num_steps - 1) // self.steps_per_epoch == self.diverges_at and self.lr == 0.1
        return np.array(losses) * (np.nan if is_diverging else 1.0)

    def gates(self, path: IntArray, wanted: BoolArray) -> tuple[float, FloatArray]:
        ratios = self.ratios
        lost = 1 - ratios[np.arange(len(ratios)), path[: len(ratios)]]
        gradient = np.zeros(wanted.shape)
        gradient[: len(ratios)] = -2 * (self._sensitivities * lost)[:, None] * ratios
        noisy = gradient + 0.01 * self._rng.standard_normal(gradient.shape)
        return float(self._losses(path[None])[0]), np.where(wanted, noisy, 0.0)

    def accuracies(self, paths: IntArray) -> FloatArray:
        return 0.95 - self._losses(paths) + 0.002 * self._rng.standard_normal(len(paths))

    def slow_down(self) -> None:
        self.lr /= 2

    @property
    def ratios(self) -> FloatArray:
        """The keep_ratio of every candidate, [num_groups, most candidates]."""
        sizes = self.candidates.space.sizes
        ratios: FloatArray = self.candidates.values[: len(sizes)] / sizes[:, None]
        return ratios

    def state_dict(self) -> dict[str, Any]:
        return {
            "weight": self.weight,
            "lr": self.lr,
            "num_steps": self.num_steps,
            "rng": copy.deepcopy(self._rng.bit_generator.state),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.weight, self.lr, self.num_steps = state["weight"], state["lr"], state["num_steps"]
        self._rng.bit_generator.state = state["rng"]

    def _losses(self, paths: IntArray) -> FloatArray:
        ratios = self.ratios
        kept = ratios[np.arange(len(ratios)), paths[:, : len(ratios)]]
        losses: FloatArray = np.array([float((self._sensitivities * (1 - row) ** 2).sum()) for row in kept])
        return losses


class FailingEvaluator:
    """An evaluator whose every `every`-th answer is NaN, the first one included."""

    def __init__(self, evaluator: Evaluator, every: int) -> None:
        self.evaluator = evaluator
        self.every = every
        self.num_asked = 0

    def measure(self, policies: Sequence[Policy]) -> list[Measurement]:
        answers = []
        for measurement in self.evaluator.measure(policies):
            if self.num_asked % self.every == 0:
                measurement = replace(measurement, accuracy=float("nan"), top5=float("nan"), loss=float("nan"))
            answers.append(measurement)
            self.num_asked += 1
        return answers


def collaborators(*, seed: int = 0, cost_ratio: float | None = 0.5, resource: str = "macs") -> dict[str, Any]:
    """What a searcher may name in its `__init__`, on the toy problem; `cost_ratio` None leaves the budget out."""
    space = toy_space()
    cost_model = ToyCost(space, resource)
    budget = None
    if cost_ratio is not None:
        budget = budget_from_ratio(cost_ratio=cost_ratio, cost_model=cost_model, space=space)
    return {
        "space": space,
        "evaluator": ToyEvaluator(space),
        "cost_model": cost_model,
        "budget": budget,
        "importance": toy_importance(space),
        "seed": seed,
    }


def random_best(
    *,
    space: SearchSpace,
    evaluator: Evaluator,
    cost_model: CostModel,
    budget: Budget | None,
    num_trials: int,
    seed: int,
) -> float:
    """The best accuracy among `num_trials` policies drawn at the budget: the yardstick of `SearcherContract`."""
    rng = np.random.default_rng(seed)
    policies = []
    for _ in range(num_trials):
        u = rng.random(len(space.groups))
        path = functools.partial(_counts_between, space, u)
        counts = largest_within(budget, path, cost_model=cost_model)
        policies.append(space.select(counts, np.zeros(space.num_units)))
    return max(measurement.accuracy for measurement in evaluator.measure(policies))


def _counts_between(space: SearchSpace, u: FloatArray, t: float) -> IntArray:
    ratios = u ** ((1 - t) / t) if t > 0 else np.zeros_like(u)
    return np.array([space.nearest_count(index, ratio) for index, ratio in enumerate(ratios)], dtype=np.int64)
