"""The contract fails for searchers that break it: each one below breaks one thing."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from compsearch.testing import SearcherContract, same_state
from compsearch.trial import Trial
from searchers.random_search import RandomSearch


class Sound(RandomSearch):
    def __init__(self, **kw: Any) -> None:
        super().__init__(**kw, num_steps=6)


class ForgetsItsGenerator(Sound):
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


class IgnoresItsSeed(Sound):
    def __init__(self, **kw: Any) -> None:
        super().__init__(**(kw | {"seed": 0}))


class DrawsGlobally(Sound):
    def step(self) -> list[Trial]:
        torch.rand(1)
        return super().step()


class IsNotReproducible(Sound):
    def __init__(self, **kw: Any) -> None:
        super().__init__(**kw)
        self.rng = np.random.default_rng()


class IgnoresItsBudget(Sound):
    def __init__(self, **kw: Any) -> None:
        super().__init__(**kw)
        self.budget = None


class FailsWhatIsOverItsBudget(IgnoresItsBudget):
    def __init__(self, **kw: Any) -> None:
        super().__init__(**kw)
        self.allowed = kw["budget"]

    def step(self) -> list[Trial]:
        return [
            trial
            if self.allowed.allows(self.cost_model.cost(trial.policy))
            else replace(trial, objective=None, failure="x")
            for trial in super().step()
        ]


class FailsEverything(Sound):
    def step(self) -> list[Trial]:
        return [replace(trial, objective=None, failure="x") for trial in super().step()]


class Aliases(Sound):
    def __init__(self, **kw: Any) -> None:
        super().__init__(**kw)
        self.history = torch.zeros(6)
        self.position = 0

    def step(self) -> list[Trial]:
        self.history[self.position % 6] = 1 + self.position
        self.position += 1
        return super().step()

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"history": self.history, "position": self.position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.history, self.position = state["history"].clone(), state["position"]


class AliasesWhatItLoads(Aliases):
    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"history": self.history.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.history = state["history"]


class SavesAnObject(Sound):
    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"space": self.space}


class HidesFailures(Sound):
    def step(self) -> list[Trial]:
        return [trial for trial in super().step() if trial.objective is not None]


class CallsFailuresGood(Sound):
    def step(self) -> list[Trial]:
        return [Trial(t.policy, t.measurement, t.objective or 0.0, t.cost_ratio) for t in super().step()]


class IsOutOfSteps(Sound):
    def step(self) -> list[Trial]:
        return []


class Repeats(Sound):
    def draw(self) -> np.ndarray:
        return self.space.min_counts


def contract(searcher: type[Sound], *, tries_over_budget: bool = False) -> SearcherContract:
    attributes = {"make": staticmethod(lambda **kw: searcher(**kw)), "tries_over_budget": tries_over_budget}
    return type("Contract", (SearcherContract,), attributes)()


CLAIMS = [name for name in dir(SearcherContract) if name.startswith("test_")]


@pytest.mark.parametrize("claim", [claim for claim in CLAIMS if claim != "test_beats_random_search"])
def test_a_sound_searcher_passes(claim: str) -> None:
    getattr(contract(Sound), claim)()


@pytest.mark.parametrize(
    ("searcher", "claim"),
    [
        (ForgetsItsGenerator, "test_resumed_search_equals_uninterrupted_search"),
        (ForgetsItsGenerator, "test_resuming_depends_on_the_state"),
        (ForgetsItsGenerator, "test_loading_replaces_everything_a_used_searcher_knew"),
        (IgnoresItsSeed, "test_another_seed_gives_other_trials"),
        (DrawsGlobally, "test_global_generators_are_not_touched"),
        (IsNotReproducible, "test_same_seed_gives_the_same_trials"),
        (IgnoresItsBudget, "test_every_policy_is_in_the_space_and_within_the_budget"),
        (Aliases, "test_state_does_not_alias_the_searcher"),
        (AliasesWhatItLoads, "test_state_does_not_alias_the_searcher"),
        (HidesFailures, "test_a_failed_measurement_is_recorded_and_the_search_goes_on"),
        (CallsFailuresGood, "test_a_failed_measurement_is_recorded_and_the_search_goes_on"),
        (IsOutOfSteps, "test_runs_num_steps_and_returns_trials"),
        (Repeats, "test_beats_random_search"),
    ],
)
def test_a_broken_searcher_fails(searcher: type[Sound], claim: str) -> None:
    with pytest.raises(AssertionError):
        getattr(contract(searcher), claim)()


@pytest.mark.parametrize("claim", [claim for claim in CLAIMS if claim != "test_beats_random_search"])
def test_a_searcher_that_fails_what_is_over_its_budget_passes_where_it_may_try(claim: str) -> None:
    getattr(contract(FailsWhatIsOverItsBudget, tries_over_budget=True), claim)()


WITHIN = "test_every_policy_is_in_the_space_and_within_the_budget"


@pytest.mark.parametrize(
    ("searcher", "tries_over_budget", "claim"),
    [
        (FailsWhatIsOverItsBudget, False, WITHIN),
        (IgnoresItsBudget, True, WITHIN),
        (FailsEverything, True, WITHIN),
        (FailsEverything, False, WITHIN),
        (FailsEverything, True, "test_runs_num_steps_and_returns_trials"),
        (FailsEverything, True, "test_a_failed_measurement_is_recorded_and_the_search_goes_on"),
    ],
)
def test_what_is_over_the_budget_must_fail_where_it_may_be_tried_and_nothing_else_may(
    searcher: type[Sound], tries_over_budget: bool, claim: str
) -> None:
    with pytest.raises(AssertionError):
        getattr(contract(searcher, tries_over_budget=tries_over_budget), claim)()


def test_a_state_with_an_object_in_it_does_not_read_back() -> None:
    with pytest.raises(Exception, match="weights_only"):
        contract(SavesAnObject).test_state_survives_a_file_read_with_weights_only()


def test_same_state_sees_every_difference() -> None:
    state = {"a": torch.zeros(2), "b": [1, {"c": "x"}], "d": float("nan"), "e": None}
    assert same_state(state, {"a": torch.zeros(2), "b": [1, {"c": "x"}], "d": float("nan"), "e": None})
    for key, value in [("a", torch.ones(2)), ("a", torch.zeros(3)), ("b", [1, {"c": "y"}]), ("d", 0.0), ("e", 1)]:
        assert not same_state(state, state | {key: value})
    assert not same_state(state, {"a": torch.zeros(2)})
