import functools
import io
import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from compsearch.budget import Budget, budget_from_ratio
from compsearch.protocols import FamilySearcher
from compsearch.space import FloatArray
from compsearch.testing import SearcherContract
from compsearch.toy import FailingEvaluator, ToyCost, ToyEvaluator, collaborators, toy_space
from compsearch.trial import Trial, best_trial
from searchers.evolution import Evolution
from searchers.regularized_evolution import EvolutionOptions

OPTIONS = EvolutionOptions(
    population_size=8,
    sample_size=4,
    mutation_rate=0.3,
    first_sigma=1.0,
    last_sigma=0.2,
    initial_batch=3,
    child_batch=1,
)
SMALL = functools.partial(Evolution, num_trials=20, fitness="loss", evolution=OPTIONS)


class TestEvolution(SearcherContract):
    make = staticmethod(SMALL)
    make_compared = staticmethod(
        functools.partial(SMALL, num_trials=100, evolution=replace(OPTIONS, population_size=16, sample_size=8))
    )


class TestEvolutionWithChildrenInBatches(SearcherContract):
    make = staticmethod(functools.partial(SMALL, fitness="accuracy", evolution=replace(OPTIONS, child_batch=5)))
    not_compared = "the comparison is TestEvolution's; this one is about batches"


def make(*, cost_ratio: float | None = 0.5, evolution: Mapping[str, Any] | None = None, **options: Any) -> Evolution:
    given = collaborators(cost_ratio=cost_ratio)
    given.update({key: options.pop(key) for key in list(options) if key in given})
    return SMALL(**given, **options, evolution=replace(OPTIONS, **(evolution or {})))


def run(searcher: Evolution, num_steps: int | None = None) -> list[Trial]:
    return [trial for _ in range(searcher.num_steps if num_steps is None else num_steps) for trial in searcher.step()]


def genome_of(trial: Trial) -> FloatArray:
    return np.array(list(trial.genome["sensitivity"].values()))


def budgets(*cost_ratios: float) -> list[Budget]:
    space = toy_space()
    return [budget_from_ratio(cost_ratio=x, cost_model=ToyCost(space), space=space) for x in cost_ratios]


# --- Genomes -------------------------------------------------------------------------------------------------------


def test_initial_members_are_pairwise_distinct() -> None:
    genomes = [genome_of(trial) for trial in run(make(evolution={"population_size": 64}, num_trials=64))]
    assert len(genomes) == 64
    assert np.array_equal(genomes[0], np.ones(8))
    for one, other in itertools.combinations(genomes, 2):
        assert (one != other).all()


def test_initial_sensitivities_are_exponential() -> None:
    searcher, rng = make(), np.random.default_rng(0)
    drawn = np.stack([searcher.initial(index, rng) for index in range(1, 2001)])
    # exp(-s) is then uniform on (0, 1); mean and standard deviation to 4 of their errors.
    assert np.exp(-drawn).mean() == pytest.approx(0.5, abs=4 * 0.289 / 16000**0.5)
    assert np.exp(-drawn).std() == pytest.approx(12**-0.5, rel=0.03)


def test_mutated_sensitivities_move_by_the_step_and_the_others_stay_to_the_bit() -> None:
    searcher, rng = make(), np.random.default_rng(1)
    genome = searcher.initial(1, rng)
    before = genome.copy()
    mutated = np.array([0, 1, 0, 0, 1, 0, 1, 0.0])
    changed = np.stack([searcher.mutate(genome, mutated, 0.4, rng) for _ in range(2000)])
    assert np.array_equal(genome, before)
    assert (changed[:, mutated == 0] == genome[mutated == 0]).all()
    steps = np.log(changed / genome)[:, mutated == 1]
    assert steps.std(axis=0) == pytest.approx(np.full(3, 0.4), rel=0.065)
    assert np.abs(steps.mean(axis=0)).max() < 4 * 0.4 / 2000**0.5


def test_every_child_is_the_best_of_all_but_for_the_mutated_groups() -> None:
    trials = run(make(num_trials=60, evolution={"sample_size": 8}))
    for index in range(8, 60):
        living = trials[index - 8 : index]
        best = max(trial.objective for trial in living if trial.objective is not None)
        parents = [genome_of(trial) for trial in living if trial.objective == best]
        # round(0.3 · 8) = 2 groups, exactly
        assert 2 in [int((genome_of(trials[index]) != parent).sum()) for parent in parents]


# --- From sensitivities to a policy --------------------------------------------------------------------------------


@pytest.mark.parametrize("cost_ratio", [0.1, 0.37, 0.5, 0.9])
def test_keep_ratios_are_powers_by_the_smallest_exponent_within_budget(cost_ratio: float) -> None:
    space, cost_model = toy_space(), ToyCost(toy_space())
    [budget] = budgets(cost_ratio)
    for trial in run(make(cost_ratio=cost_ratio)):
        exponents = np.concatenate([[0.0], np.geomspace(1e-4, 1e3, 20001)])
        ratios = np.exp(-exponents[:, None] * genome_of(trial))
        wanted = np.rint(ratios * space.sizes).astype(np.int64)
        counts = np.stack([space.nearest_counts(row) for row in wanted])
        within = counts[cost_model.costs(counts) <= budget.limit]
        assert np.array_equal(space.counts(trial.policy), within[0])


def test_what_is_kept_of_a_group_is_its_most_important_units() -> None:
    space = toy_space()
    scores = collaborators()["importance"].scores()
    for trial in run(make()):
        assert trial.policy == space.select(space.counts(trial.policy), scores)


def test_a_more_sensitive_group_keeps_less() -> None:
    space = toy_space()
    searcher = make()
    [trial] = run(searcher, 1)[:1]
    sensitivity = {group.name: 0.05 for group in space.groups} | {"conv5": 5.0}
    [member] = searcher.family(replace(trial, genome={"sensitivity": sensitivity}), budgets(0.6))
    ratios = dict(zip(sensitivity, space.counts(member.policy) / space.sizes, strict=True))
    assert ratios["conv5"] == min(ratios.values()) < 0.3
    assert min(ratio for name, ratio in ratios.items() if name != "conv5") > 0.7


# --- Fitness -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fitness", ["loss", "accuracy"])
def test_fitness_is_the_objective(fitness: str) -> None:
    for trial in run(make(fitness=fitness)):
        value = -trial.measurement.loss if fitness == "loss" else trial.measurement.accuracy
        assert trial.objective == value


# --- The family ----------------------------------------------------------------------------------------------------


def test_the_family_at_descending_budgets_is_nested_and_within_each() -> None:
    space, cost_model = toy_space(), ToyCost(toy_space())
    searcher = make(cost_ratio=0.1)
    assert isinstance(searcher, FamilySearcher)
    trial = best_trial(run(searcher)[1:])
    assert trial is not None
    descending = budgets(0.9, 0.7, 0.5, 0.3, 0.1)
    family = searcher.family(trial, descending)
    masks = [space.keep_mask(member.policy) for member in family]
    assert all((larger | ~smaller).all() for larger, smaller in itertools.pairwise(masks))
    assert len({member.policy for member in family}) == 5
    for member, budget in zip(family, descending, strict=True):
        assert budget.allows(cost_model.cost(member.policy))
        assert member.genome == trial.genome
        assert member.objective == -member.measurement.loss
    assert family[-1].policy == trial.policy


def test_a_trial_read_back_from_json_gives_the_same_family() -> None:
    trials = run(make())
    for trial in trials:
        sensitivity = json.loads(json.dumps(trial.genome))["sensitivity"]
        genome = {"sensitivity": dict(reversed(sensitivity.items()))}  # in whatever order
        [again] = make(seed=5).family(replace(trial, policy=toy_space().full_policy(), genome=genome), budgets(0.5))
        assert again == trial
    assert len({trial.policy for trial in trials}) > 10


# --- Interruption and failure --------------------------------------------------------------------------------------


#: Steps of 3, 3 and 2 initial members, then of single children or of five at a time.
@pytest.mark.parametrize(("num_before", "child_batch"), [(1, 1), (2, 1), (3, 1), (9, 1), (1, 5), (4, 5)])
def test_resumed_inside_the_initial_population_or_the_evolution_equals_uninterrupted(
    num_before: int, child_batch: int
) -> None:
    whole = run(make(evolution={"child_batch": child_batch}))
    first, second = make(evolution={"child_batch": child_batch}), make(evolution={"child_batch": child_batch}, seed=7)
    before = run(first, num_before)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert before + run(second, second.num_steps - num_before) == whole


def test_when_everything_failed_fresh_members_go_on() -> None:
    trials = run(make(evaluator=FailingEvaluator(ToyEvaluator(toy_space()), every=1)))
    assert all(trial.objective is None for trial in trials)
    for one, other in itertools.combinations([genome_of(trial) for trial in trials], 2):
        assert (one != other).all()


# --- Options -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cost_ratio": None}, "a budget must be given for searcher evolution: without one it removes nothing"),
        ({"fitness": "top5"}, "`searcher.fitness` must be one of loss, accuracy, but got 'top5'"),
        ({"num_trials": 0}, "`num_trials >= 1` must hold for an evolution, but got num_trials=0"),
    ],
)
def test_a_wrong_option_is_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        make(**options)
    assert "\n" not in str(raised.value)


def test_a_budget_below_the_smallest_policy_is_refused() -> None:
    with pytest.raises(ValueError, match="the budget must reach what the smallest policy costs"):
        make(budget=Budget("macs", 10.0, 1e6)).step()
