"""Tests that every searcher passes, and a search problem with a known answer to run them on.

A new searcher joins with a few lines in a test module:

    class TestLeGR(SearcherContract):
        make = staticmethod(lambda **kw: LeGR(**kw, num_steps=20, population=5))

`make` gets the collaborators that it names, or all of them when it takes ``**kw``. A searcher that does not name all of
them is given as ``make = staticmethod(functools.partial(Uniform))``: its signature says what it takes.
"""

from __future__ import annotations

import copy
import functools
import inspect
import io
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch

from compsearch.budget import Budget, budget_from_ratio, largest_within
from compsearch.candidates import Candidates, candidates_of
from compsearch.collaborators import collaborate
from compsearch.importance import LayerImportance
from compsearch.protocols import CostModel, Evaluator, Searcher
from compsearch.space import BoolArray, FloatArray, Group, IntArray, Layer, Policy, SearchSpace
from compsearch.trial import Measurement, Trial, best_trial


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


class SearcherContract:
    """Subclass as ``TestMySearcher``, set `make`, and pytest runs what must hold of any searcher.

    All of `num_steps` is run, a few dozen times: give `make` small options. A searcher that is itself a baseline sets
    `not_compared` to the reason why it need not beat random search.
    """

    make: ClassVar[Callable[..., Searcher]]
    #: A longer search for the comparison with random search, where `make` is too short to learn; else `make` itself.
    make_compared: ClassVar[Callable[..., Searcher] | None] = None
    #: Why this searcher is not held to beat random search; empty when it is.
    not_compared: ClassVar[str] = ""
    #: Runs, of different seeds, over which the comparison with random search is averaged.
    num_compared_seeds: ClassVar[int] = 3

    def searcher(self, **changes: Any) -> Searcher:
        """A new searcher on the toy problem; `changes` replace collaborators."""
        make = type(self).make
        return make(**_taken(make, collaborators() | changes))

    def test_runs_num_steps_and_returns_trials(self) -> None:
        searcher = self.searcher()
        assert searcher.num_steps >= 1, f"`num_steps >= 1` must hold, but got {searcher.num_steps}"
        trials = _run(searcher)
        assert trials, "a whole search must return at least one trial"
        for trial in trials:
            assert trial.objective is not None, f"a finite measurement must have an objective, but got {trial}"
            assert np.isfinite(trial.objective), f"an objective must be finite, but got {trial.objective}"

    def test_same_seed_gives_the_same_trials(self) -> None:
        assert _run(self.searcher()) == _run(self.searcher()), "two searchers of one seed must propose the same trials"

    def test_another_seed_gives_other_trials(self) -> None:
        self._needs_chance()
        assert _run(self.searcher(seed=0)) != _run(self.searcher(seed=1)), "another seed must give other trials"

    def test_resumed_search_equals_uninterrupted_search(self) -> None:
        whole = _run(self.searcher())
        num_steps = self.searcher().num_steps
        for num_before in sorted({0, num_steps // 2, num_steps - 1}):
            first, second = self.searcher(), self.searcher()
            before = _steps(first, num_before)
            second.load_state_dict(_through_a_file(first.state_dict()))
            resumed = before + _steps(second, num_steps - num_before)
            assert resumed == whole, f"resumed after step {num_before}, the trials differ from an uninterrupted run"

    def test_resuming_depends_on_the_state(self) -> None:
        """The negative control: without it the test above could pass with a state that holds nothing."""
        self._needs_chance()
        first = self.searcher()
        num_before = first.num_steps // 2
        earlier = _through_a_file(first.state_dict())
        _steps(first, num_before)
        later = _through_a_file(first.state_dict())
        continued = []
        for state in (earlier, later):
            searcher = self.searcher()
            searcher.load_state_dict(state)
            continued.append(_steps(searcher, searcher.num_steps - num_before))
        assert continued[0] != continued[1], "searches continued from two different steps must differ"

    def test_loading_replaces_everything_a_used_searcher_knew(self) -> None:
        fresh, used = self.searcher(), self.searcher()
        state = _through_a_file(fresh.state_dict())
        _run(used)
        used.load_state_dict(state)
        assert _run(used) == _run(fresh), "after loading, nothing of what was learnt before may remain"

    def test_every_policy_is_in_the_space_and_within_the_budget(self) -> None:
        for resource, cost_ratio in (("macs", 0.15), ("macs", 0.5), ("macs", 1.0), ("params", 0.4)):
            given = collaborators(resource=resource, cost_ratio=cost_ratio)
            space, cost_model, budget = given["space"], given["cost_model"], given["budget"]
            dense = cost_model.cost(space.full_policy())
            for trial in _run(self.searcher(**given)):
                space.check(trial.policy)
                for group, count in zip(space.groups, space.counts(trial.policy), strict=True):
                    assert count in group.counts, f"{count} of {group.name!r} is none of its counts {group.counts}"
                cost = cost_model.cost(trial.policy)
                assert budget.allows(cost), f"{cost} {resource} is over the budget of {budget.limit}"
                assert trial.cost_ratio == cost / dense, f"cost_ratio must be {cost / dense}, but got {trial}"

    def test_state_does_not_alias_the_searcher(self) -> None:
        searcher = self.searcher()
        _steps(searcher, searcher.num_steps // 2)
        state = searcher.state_dict()
        taken = copy.deepcopy(state)
        _steps(searcher, searcher.num_steps - searcher.num_steps // 2)
        assert same_state(state, taken), "a state must not change when the searcher it was taken from goes on"
        other = self.searcher()
        other.load_state_dict(state)
        _steps(other, other.num_steps - other.num_steps // 2)
        assert same_state(state, taken), "a state must not change when a searcher that loaded it goes on"

    def test_state_survives_a_file_read_with_weights_only(self) -> None:
        searcher = self.searcher()
        _run(searcher)
        state = searcher.state_dict()
        assert same_state(_through_a_file(state), state), "a state must read back from a file as it was"

    def test_global_generators_are_not_touched(self) -> None:
        before = _global_generators()
        searcher = self.searcher()
        _run(searcher)
        searcher.load_state_dict(searcher.state_dict())
        assert same_state(_global_generators(), before), "a searcher must draw from generators of its own"

    def test_collaborators_are_not_changed(self) -> None:
        given = collaborators()
        importance = given["importance"].values.copy()
        _run(self.searcher(**given))
        assert np.array_equal(given["importance"].values, importance), "a searcher must not write to `importance`"

    def test_a_failed_measurement_is_recorded_and_the_search_goes_on(self) -> None:
        for every in (1, 3):
            evaluator = FailingEvaluator(ToyEvaluator(toy_space()), every)
            searcher = self.searcher(evaluator=evaluator)
            trials = _run(searcher)
            failed = [trial for trial in trials if not trial.measurement.is_finite]
            assert failed, "a trial whose measurement is not finite must be returned"
            for trial in trials:
                is_failed = trial in failed
                assert (trial.objective is None) == is_failed, f"only a failed trial has no objective, but got {trial}"
                assert bool(trial.failure) == is_failed, f"a failed trial must say why, and only it, but got {trial}"
            assert _is_finite(searcher.state_dict()), "NaN must not enter the searcher's state"

    def test_beats_random_search(self) -> None:
        if self.not_compared:
            _skip(self.not_compared)
        make = type(self).make_compared or type(self).make
        runs = [_run(make(**_taken(make, collaborators(seed=seed)))) for seed in range(self.num_compared_seeds)]
        given = collaborators()
        problem = {key: given[key] for key in ("space", "evaluator", "cost_model", "budget")}
        num_trials = max(map(len, runs))
        by_chance = float(np.mean([random_best(**problem, num_trials=num_trials, seed=100 + s) for s in range(5)]))
        gains = []
        for trials in runs:
            best = best_trial(trials)
            assert best is not None, "a search on the toy problem must have a trial that did not fail"
            gains.append(best.measurement.accuracy - by_chance)
        mean = float(np.mean(gains))
        assert mean > 0, f"random search with as many trials must be beaten, but the mean gain is {mean:.4f}: {gains}"

    def _needs_chance(self) -> None:
        if "seed" not in _taken(type(self).make, collaborators()):
            _skip("this searcher takes no seed: it is deterministic")


def _taken(make: Callable[..., Searcher], given: Mapping[str, Any]) -> dict[str, Any]:
    """What `make` names of `given`, and a supernet where it names one."""
    if "supernet" in inspect.signature(make).parameters:
        given = {"supernet": ToySupernet(given["space"], seed=given["seed"])} | dict(given)
    return collaborate(make, given)


def same_state(a: Any, b: Any) -> bool:
    """Whether two nested states hold equal tensors and values, NaN equal to NaN."""
    if isinstance(a, torch.Tensor):
        return (
            isinstance(b, torch.Tensor) and a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)
        )
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and np.array_equal(a, b)
    if isinstance(a, Mapping):
        return isinstance(b, Mapping) and a.keys() == b.keys() and all(same_state(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same_state, a, b))
    return bool(a == b or (a != a and b != b))


def _is_finite(state: Any) -> bool:
    if isinstance(state, torch.Tensor):
        return bool(torch.isfinite(state).all())
    if isinstance(state, Mapping):
        return all(map(_is_finite, state.values()))
    if isinstance(state, list | tuple):
        return all(map(_is_finite, state))
    return not isinstance(state, float) or bool(np.isfinite(state))


def _steps(searcher: Searcher, num_steps: int) -> list[Trial]:
    return [trial for _ in range(num_steps) for trial in searcher.step()]


def _run(searcher: Searcher) -> list[Trial]:
    return _steps(searcher, searcher.num_steps)


def _through_a_file(state: Mapping[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def _global_generators() -> tuple[Any, ...]:
    legacy = np.random.get_state()  # noqa: NPY002  the global generator is what is looked at
    return torch.get_rng_state(), legacy, random.getstate()


def _skip(reason: str) -> None:
    import pytest  # only tests need it, and the package is used without

    pytest.skip(reason)
