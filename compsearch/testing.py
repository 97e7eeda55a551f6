"""Tests that every searcher passes, on the search problem of `compsearch.toy`.

A new searcher joins with a few lines in a test module:

    class TestLeGR(SearcherContract):
        make = staticmethod(lambda **kw: LeGR(**kw, num_steps=20, population=5))

`make` gets the collaborators that it names, or all of them when it takes ``**kw``. A searcher that does not name all of
them is given as ``make = staticmethod(functools.partial(Uniform))``: its signature says what it takes.
"""

from __future__ import annotations

import copy
import inspect
import io
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from compsearch.collaborators import collaborate
from compsearch.protocols import Searcher
from compsearch.toy import FailingEvaluator, ToyEvaluator, ToySupernet, collaborators, random_best, toy_space
from compsearch.trial import Trial, best_trial


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
    #: Whether it may try policies over the budget, whose trials must then have failed. Searchers as a rule keep within.
    tries_over_budget: ClassVar[bool] = False

    def searcher(self, **changes: Any) -> Searcher:
        """A new searcher on the toy problem; `changes` replace collaborators."""
        make = type(self).make
        return make(**_taken(make, collaborators() | changes))

    def test_runs_num_steps_and_returns_trials(self) -> None:
        given = collaborators()
        searcher = self.searcher(**given)
        assert searcher.num_steps >= 1, f"`num_steps >= 1` must hold, but got {searcher.num_steps}"
        trials = _run(searcher)
        self._check_failures(trials, given)
        done = [trial.objective for trial in trials if trial.objective is not None]
        assert done, "a whole search must return at least one trial that did not fail"
        assert np.isfinite(done).all(), f"an objective must be finite, but got {done}"

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
            trials = _run(self.searcher(**given))
            self._check_failures(trials, given)
            for trial in trials:
                space.check(trial.policy)
                for group, count in zip(space.groups, space.counts(trial.policy), strict=True):
                    assert count in group.counts, f"{count} of {group.name!r} is none of its counts {group.counts}"
                cost = cost_model.cost(trial.policy)
                is_within = budget.allows(cost) or self.tries_over_budget
                assert is_within, f"{cost} {resource} is over the budget of {budget.limit}"
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
            given = collaborators() | {"evaluator": FailingEvaluator(ToyEvaluator(toy_space()), every)}
            searcher = self.searcher(**given)
            trials = _run(searcher)
            is_returned = any(not trial.measurement.is_finite for trial in trials)
            assert is_returned, "a trial whose measurement is not finite must be returned"
            self._check_failures(trials, given)
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

    def _check_failures(self, trials: Sequence[Trial], given: Mapping[str, Any]) -> None:
        """Failed are the trials whose measurement is not finite, and over the budget where that is tried; no others."""
        for trial in trials:
            is_over = self.tries_over_budget and not given["budget"].allows(given["cost_model"].cost(trial.policy))
            is_failed = is_over or not trial.measurement.is_finite
            assert (trial.objective is None) == is_failed, f"only a failed trial has no objective, but got {trial}"
            assert bool(trial.failure) == is_failed, f"a failed trial must say why, and only it, but got {trial}"

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
