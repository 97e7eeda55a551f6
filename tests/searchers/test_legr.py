import functools
import io
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from compsearch.budget import Budget, budget_from_ratio
from compsearch.collaborators import collaborate
from compsearch.protocols import FamilySearcher
from compsearch.space import FloatArray, Policy
from compsearch.testing import SearcherContract
from compsearch.toy import FailingEvaluator, ToyCost, ToyEvaluator, collaborators, toy_space
from compsearch.trial import Genome, Measurement, Trial, best_trial
from searchers.global_magnitude import GlobalMagnitude
from searchers.legr import LeGR
from searchers.ranking import Ranking
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
SMALL = functools.partial(LeGR, num_trials=20, fitness="loss", alpha_sigma=1.0, evolution=OPTIONS)


class TestLeGR(SearcherContract):
    make = staticmethod(SMALL)
    make_compared = staticmethod(
        functools.partial(SMALL, num_trials=200, evolution=replace(OPTIONS, population_size=32, sample_size=8))
    )


class TestLeGRWithChildrenInBatches(SearcherContract):
    make = staticmethod(functools.partial(SMALL, fitness="accuracy", evolution=replace(OPTIONS, child_batch=5)))
    not_compared = "the comparison is TestLeGR's; this one is about batches"


class TestLeGRWithAlphaOnly(SearcherContract):
    make = staticmethod(functools.partial(SMALL, evolve_only="alpha"))
    make_compared = staticmethod(functools.partial(TestLeGR.make_compared, evolve_only="alpha"))


class TestLeGRWithKappaOnly(SearcherContract):
    make = staticmethod(functools.partial(SMALL, evolve_only="kappa"))
    make_compared = staticmethod(functools.partial(TestLeGR.make_compared, evolve_only="kappa"))


def make(*, cost_ratio: float | None = 0.5, evolution: Mapping[str, Any] | None = None, **options: Any) -> LeGR:
    given = collaborators(cost_ratio=cost_ratio)
    given.update({key: options.pop(key) for key in list(options) if key in given})
    return SMALL(**given, **options, evolution=replace(OPTIONS, **(evolution or {})))


def run(searcher: LeGR, num_steps: int | None = None) -> list[Trial]:
    return [trial for _ in range(searcher.num_steps if num_steps is None else num_steps) for trial in searcher.step()]


def genome_of(trial: Trial) -> FloatArray:
    """[2, num_layers], in the order of the record."""
    return np.array([list(trial.genome["alpha"].values()), list(trial.genome["kappa"].values())])


def budgets(*cost_ratios: float) -> list[Budget]:
    space = toy_space()
    return [budget_from_ratio(cost_ratio=x, cost_model=ToyCost(space), space=space) for x in cost_ratios]


# --- The initial population ----------------------------------------------------------------------------------------


def test_initial_members_are_pairwise_distinct() -> None:
    trials = run(make(evolution={"population_size": 64}, num_trials=64))
    genomes = [genome_of(trial) for trial in trials]
    assert len(genomes) == 64
    for one, other in itertools.combinations(genomes, 2):
        assert not (one == other).all()
    for one, other in itertools.combinations(genomes[1:], 2):  # chance leaves no layer as it was
        assert not (one == other).any()


def test_the_identity_is_a_member_exactly_once_and_its_policy_is_global_magnitudes() -> None:
    trials = run(make())
    identities = [
        index
        for index, trial in enumerate(trials)
        if set(trial.genome["alpha"].values()) == {1.0} and set(trial.genome["kappa"].values()) == {0.0}
    ]
    assert identities == [0]
    [plain] = GlobalMagnitude(**collaborate(GlobalMagnitude, collaborators())).step()
    assert trials[0].policy == plain.policy
    assert trials[0].measurement == plain.measurement
    assert any(trial.policy != plain.policy for trial in trials)


def test_chance_in_the_initial_population_is_as_wide_as_it_should_be() -> None:
    searcher = make(alpha_sigma=0.7)
    rng = np.random.default_rng(0)
    drawn = np.stack([searcher.initial(index, rng) for index in range(1, 2001)])  # [members, 2, num_layers]
    assert (drawn[:, 0] > 0).all()
    # Of 2,000 normal draws mean and standard deviation are within 4 of their errors, 0.022 σ and 0.016 σ.
    assert np.abs(np.log(drawn[:, 0]).mean(axis=0)).max() < 4 * 0.7 / 2000**0.5
    assert np.log(drawn[:, 0]).std(axis=0) == pytest.approx(np.full(10, 0.7), rel=0.065)
    stds = searcher.importance.stds
    assert (np.abs(drawn[:, 1].mean(axis=0)) < 4 * stds / 2000**0.5).all()
    assert drawn[:, 1].std(axis=0) == pytest.approx(stds, rel=0.065)
    assert stds.max() > 5 * stds.min()  # so that one width for all layers would not pass


# --- Mutation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [1.0, 0.2])
def test_the_step_is_alphas_alone_and_kappas_is_that_of_the_layers_values(sigma: float) -> None:
    searcher = make()
    rng = np.random.default_rng(1)
    genome = searcher.initial(1, rng)
    changed = np.stack([searcher.mutate(genome, np.ones(10), sigma, rng) for _ in range(2000)])
    steps = np.log(changed[:, 0] / genome[0])
    assert np.abs(steps.mean(axis=0)).max() < 4 * sigma / 2000**0.5
    assert steps.std(axis=0) == pytest.approx(np.full(10, sigma), rel=0.065)
    assert (changed[:, 1] - genome[1]).std(axis=0) == pytest.approx(searcher.importance.stds, rel=0.065)


def test_a_step_of_zero_leaves_alpha_and_moves_kappa() -> None:
    searcher = make()
    rng = np.random.default_rng(1)
    genome = searcher.initial(1, rng)
    alpha, kappa = searcher.mutate(genome, np.ones(10), 0.0, rng)
    assert np.array_equal(alpha, genome[0])
    assert (kappa != genome[1]).all()


def test_layers_that_are_not_mutated_stay_equal_to_the_bit() -> None:
    searcher = make()
    rng = np.random.default_rng(1)
    genome = searcher.initial(1, rng)
    before = genome.copy()
    mutated = np.array([0, 1, 0, 0, 1, 0, 0, 0, 0, 1.0])
    changed = searcher.mutate(genome, mutated, 1.0, rng)
    assert np.array_equal(genome, before)
    assert np.array_equal((changed != genome).all(axis=0), mutated == 1)
    assert np.array_equal((changed == genome).all(axis=0), mutated == 0)


@pytest.mark.parametrize("sample_size", [8, 1])
def test_every_child_is_its_parent_but_for_the_mutated_layers_and_the_oldest_makes_room(sample_size: int) -> None:
    trials = run(make(num_trials=60, evolution={"sample_size": sample_size, "mutation_rate": 0.3}))
    parents = []
    for index in range(8, 60):
        living = trials[index - 8 : index]
        best = max(trial.objective for trial in living if trial.objective is not None)
        differing = [int((genome_of(trials[index]) != genome_of(trial)).any(axis=0).sum()) for trial in living]
        # 3 of the 10 layers, exactly, and of each both numbers.
        candidates = [trial for trial, count in zip(living, differing, strict=True) if count == 3]
        assert candidates
        both = [(genome_of(trials[index]) != genome_of(trial)).all(axis=0).sum() for trial in candidates]
        assert both == [3] * len(candidates)
        parents.append(any(trial.objective == best for trial in candidates))
    # The best of a sample of everyone is the best of all; a sample of one is anyone.
    assert all(parents) == (sample_size == 8)


def test_a_tenth_of_many_layers_is_mutated_and_one_of_few() -> None:
    trials = run(make(num_trials=30, evolution={"sample_size": 1, "mutation_rate": 0.1}))
    for index in range(8, 30):
        living = trials[index - 8 : index]
        assert 1 in [int((genome_of(trials[index]) != genome_of(trial)).any(axis=0).sum()) for trial in living]


# --- Half of the affine map ----------------------------------------------------------------------------------------

#: By what alone evolves: the row of the genome that does, the one that does not, and what that stays at.
HALVES = [("alpha", 0, 1, 0.0), ("kappa", 1, 0, 1.0)]


@pytest.mark.parametrize(("half", "moving", "still", "neutral"), HALVES)
def test_what_does_not_evolve_is_the_identitys_throughout(half: str, moving: int, still: int, neutral: float) -> None:
    genomes = np.stack([genome_of(trial) for trial in run(make(evolve_only=half, num_trials=60))])
    assert len(genomes) == 60
    assert (genomes[:, still] == neutral).all()
    assert not np.signbit(genomes[:, still]).any()  # no -0.0 in the record
    assert len(np.unique(genomes[:, moving], axis=0)) == 60


@pytest.mark.parametrize(("half", "moving", "still", "neutral"), HALVES)
def test_initial_members_of_a_half_are_distinct_with_the_identity_among_them(
    half: str, moving: int, still: int, neutral: float
) -> None:
    options: dict[str, Any] = {"evolution": {"population_size": 64}, "num_trials": 64}
    genomes = [genome_of(trial) for trial in run(make(evolve_only=half, **options))]
    whole = [genome_of(trial) for trial in run(make(**options))]
    identity = np.stack([np.ones(10), np.zeros(10)])
    assert [index for index, genome in enumerate(genomes) if (genome == identity).all()] == [0]
    for one, other in itertools.combinations(genomes, 2):
        assert (one[moving] != other[moving]).all()
    # And they are those of the whole map, for the seed.
    assert all((one[moving] == other[moving]).all() for one, other in zip(genomes, whole, strict=True))


@pytest.mark.parametrize(("half", "moving", "still", "neutral"), HALVES)
def test_mutation_touches_the_half_that_evolves_in_the_mutated_layers_alone(
    half: str, moving: int, still: int, neutral: float
) -> None:
    searcher = make(evolve_only=half)
    rng = np.random.default_rng(1)
    genome = searcher.initial(1, rng)
    mutated = np.array([0, 1, 0, 0, 1, 0, 0, 0, 0, 1.0])
    changed = searcher.mutate(genome, mutated, 1.0, rng)
    assert np.array_equal(changed[moving] != genome[moving], mutated == 1)
    assert (changed[still] == neutral).all()


@pytest.mark.parametrize(("half", "moving", "still", "neutral"), HALVES)
def test_a_half_is_read_back_for_its_family_and_for_reuse(half: str, moving: int, still: int, neutral: float) -> None:
    searcher = make(evolve_only=half, cost_ratio=0.3)
    trial = best_trial(run(searcher)[1:])
    assert trial is not None
    genome = through_json(trial.genome)
    assert set(genome) == {"alpha", "kappa"}
    [member] = searcher.family(replace(trial, genome=genome), budgets(0.6))
    assert make(evolve_only=half, cost_ratio=0.6, learned=genome).step()[0] == member
    assert make(evolve_only=half, cost_ratio=0.3, learned=genome).step()[0] == trial


def test_alphas_width_is_nothing_to_kappa() -> None:
    wide, narrow = (make(evolve_only="kappa", alpha_sigma=sigma) for sigma in (2.0, 0.0))
    assert run(wide) == run(narrow)


# --- The ranking ---------------------------------------------------------------------------------------------------


def test_a_policy_is_the_ranking_of_alpha_times_norm_plus_kappa() -> None:
    space, cost_model = toy_space(), ToyCost(toy_space())
    importance = collaborators()["importance"]
    entries = list(zip(importance.layer_index, importance.units, importance.values, strict=True))
    [budget] = budgets(0.5)
    for trial in run(make()):
        scores = np.zeros(space.num_units)
        for index, unit, value in entries:
            layer = importance.layers[index]
            scores[unit] += trial.genome["alpha"][layer] * value + trial.genome["kappa"][layer]
        assert trial.policy == Ranking(space, scores).policy(budget, cost_model=cost_model)


def test_inside_uncoupled_groups_the_plain_order_decides_in_coupled_ones_it_need_not() -> None:
    space = toy_space()
    plain = collaborators()["importance"].scores()
    differs = dict.fromkeys((group.name for group in space.groups), False)
    for trial in run(make(num_trials=60)):
        assert min(trial.genome["alpha"].values()) > 0
        by_plain = space.select(space.counts(trial.policy), plain)
        for group, (name, units), (_, most) in zip(space.groups, trial.policy.kept, by_plain.kept, strict=True):
            assert name == group.name
            differs[name] |= units != most
    assert differs == {group.name: group.is_coupled for group in space.groups}


# --- Fitness -------------------------------------------------------------------------------------------------------


class Opposed(ToyEvaluator):
    """The higher the accuracy, the higher the loss: whoever follows the one loses by the other."""

    def measure(self, policies: Sequence[Policy]) -> list[Measurement]:
        return [replace(measurement, loss=2 * measurement.accuracy) for measurement in super().measure(policies)]


@pytest.mark.parametrize(("fitness", "sign"), [("loss", -2.0), ("accuracy", 1.0)])
def test_fitness_is_what_the_objective_is_and_what_parents_are_chosen_by(fitness: str, sign: float) -> None:
    searcher = make(fitness=fitness, evaluator=Opposed(toy_space()), num_trials=100, evolution={"sample_size": 8})
    trials = run(searcher)
    for trial in trials:
        value = trial.measurement.accuracy if fitness == "accuracy" else -trial.measurement.loss
        assert trial.objective == value
        assert trial.objective == pytest.approx(sign * trial.measurement.accuracy)
    assert searcher.evolution.fitnesses == [trial.objective for trial in trials[-8:]]
    first, last = (np.mean([trial.measurement.accuracy for trial in part]) for part in (trials[:8], trials[-8:]))
    assert (last - first) * sign > 0


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
        assert member.cost_ratio == cost_model.cost(member.policy) / budget.dense
        assert member.genome == trial.genome
        assert member.objective == -member.measurement.loss
    assert family[-1].policy == trial.policy


def through_json(genome: Genome) -> Genome:
    read: Genome = json.loads(json.dumps(genome, sort_keys=True))
    return read


def test_a_trial_read_back_from_json_gives_the_same_family() -> None:
    searcher = make()
    trials = run(searcher)
    for trial in trials:
        # Keys in another order, no policy to peek at, and a searcher that has seen nothing.
        read = replace(trial, policy=toy_space().full_policy(), genome=through_json(trial.genome))
        [again] = make(seed=5).family(read, budgets(0.5))
        assert again == trial
    assert len({trial.policy for trial in trials}) > 10


# --- A learned ranking ---------------------------------------------------------------------------------------------


def test_a_learned_ranking_takes_one_step_to_the_policy_it_came_from_and_the_identitys() -> None:
    first, *others = run(make())
    trial = best_trial(others)
    assert trial is not None
    evaluator = ToyEvaluator(toy_space())
    searcher = make(learned=through_json(trial.genome), evaluator=evaluator, seed=9)
    assert searcher.num_steps == 1
    assert searcher.step() == [trial, first]
    assert evaluator.num_measured == 2


def test_the_identity_taken_over_is_scored_once() -> None:
    identity = run(make(), 1)[0]
    evaluator = ToyEvaluator(toy_space())
    assert make(learned=identity.genome, evaluator=evaluator).step() == [identity]
    assert evaluator.num_measured == 1


def test_a_learned_ranking_at_another_budget_is_the_familys_member() -> None:
    searcher = make(cost_ratio=0.3)
    trial = best_trial(run(searcher)[1:])
    assert trial is not None
    members = searcher.family(trial, budgets(0.7, 0.4))
    assert [make(cost_ratio=x, learned=trial.genome).step()[0] for x in (0.7, 0.4)] == members
    assert len({trial.policy, *(member.policy for member in members)}) == 3


def other_networks() -> dict[str, Genome]:
    record = run(make(), 1)[0].genome
    layers = list(record["alpha"])
    renamed = dict.fromkeys([f"other.{layer}" for layer in layers], 1.0)
    return {
        "names": {"alpha": renamed, "kappa": renamed},
        "fewer": {name: dict.fromkeys(layers[:-1], 1.0) for name in ("alpha", "kappa")},
        "more": {name: {**record[name], "another": 1.0} for name in ("alpha", "kappa")},
        "without kappa": {"alpha": record["alpha"]},
        "another kind": {"sensitivity": record["alpha"]},
    }


@pytest.mark.parametrize("kind", ["names", "fewer", "more", "without kappa", "another kind"])
def test_a_genome_of_another_network_is_refused(kind: str) -> None:
    genome = other_networks()[kind]
    message = "a learned ranking must have an alpha and a kappa for each layer of this network, but got"
    with pytest.raises(ValueError, match=message) as raised:
        make(learned=genome).step()
    assert "\n" not in str(raised.value)
    assert "for 10 layers" in str(raised.value)
    with pytest.raises(ValueError, match=message):
        make().family(replace(run(make(), 1)[0], genome=genome), budgets(0.5))


# --- Interruption and failure --------------------------------------------------------------------------------------


#: Steps of 3, 3 and 2 initial members, then of single children or of five at a time.
@pytest.mark.parametrize(
    ("num_before", "child_batch"), [(1, 1), (2, 1), (3, 1), (4, 1), (9, 1), (1, 5), (3, 5), (4, 5)]
)
def test_resumed_inside_the_initial_population_or_the_evolution_equals_uninterrupted(
    num_before: int, child_batch: int
) -> None:
    whole = run(make(evolution={"child_batch": child_batch}))
    first, second = make(evolution={"child_batch": child_batch}), make(evolution={"child_batch": child_batch}, seed=7)
    before = run(first, num_before)
    assert len(before) == [0, 3, 6, 8, *(8 + child_batch * i for i in range(1, 12))][num_before]
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert before + run(second, second.num_steps - num_before) == whole


def test_the_size_of_the_initial_batch_has_no_effect() -> None:
    runs = [run(make(evolution={"initial_batch": size})) for size in (1, 3, 8)]
    assert runs[0] == runs[1] == runs[2]


def test_failed_members_never_become_parents() -> None:
    evaluator = FailingEvaluator(ToyEvaluator(toy_space()), every=2)
    trials = run(make(num_trials=40, evaluator=evaluator, evolution={"sample_size": 1}))
    assert [trial.objective is None for trial in trials] == [True, False] * 20
    for index in range(8, 40):
        differing = [int((genome_of(trials[index]) != genome_of(trial)).any(axis=0).sum()) for trial in trials[:index]]
        parents = [trial for trial, count in zip(trials, differing, strict=False) if count == 3]
        assert any(trial.objective is not None for trial in parents)


def test_when_everything_failed_fresh_members_go_on() -> None:
    searcher = make(evaluator=FailingEvaluator(ToyEvaluator(toy_space()), every=1))
    trials = run(searcher)
    assert all(trial.objective is None for trial in trials)
    assert searcher.evolution.genomes == []
    for one, other in itertools.combinations([genome_of(trial) for trial in trials], 2):
        assert (one != other).all()


# --- Options -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cost_ratio": None}, "a budget must be given for searcher legr: without one its ranking removes nothing"),
        ({"alpha_sigma": -1.0}, "`alpha_sigma >= 0` must hold, but got alpha_sigma=-1.0 for searcher legr"),
        ({"evolve_only": "both"}, "`searcher.evolve_only` must be null, alpha or kappa, but got 'both'"),
        ({"evolve_only": "alpha", "alpha_sigma": 0.0}, "`alpha_sigma > 0` must hold where searcher.evolve_only=alpha"),
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
