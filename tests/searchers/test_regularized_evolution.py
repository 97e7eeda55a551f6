import copy
import io
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from compsearch.space import FloatArray
from compsearch.testing import same_state
from searchers.regularized_evolution import EvolutionOptions, RegularizedEvolution

OPTIONS = EvolutionOptions(
    population_size=6,
    sample_size=3,
    mutation_rate=0.3,
    first_sigma=1.0,
    last_sigma=0.2,
    initial_batch=4,
    child_batch=1,
)


class Log:
    """A toy problem: a genome starts as [index, …] and a mutation adds 0.001; remembers what it was asked for."""

    def __init__(self) -> None:
        self.initials: list[int] = []
        self.mutations: list[tuple[FloatArray, FloatArray, float]] = []

    def initial(self, index: int, rng: np.random.Generator) -> FloatArray:
        self.initials.append(index)
        return np.full(7, float(index))

    def mutate(self, genome: FloatArray, mutated: FloatArray, sigma: float, rng: np.random.Generator) -> FloatArray:
        self.mutations.append((genome.copy(), mutated.copy(), sigma))
        return genome + 0.001 * mutated


def evolution(log: Log | None = None, *, num_trials: int = 20, seed: int = 0, **options: Any) -> RegularizedEvolution:
    log = log or Log()
    return RegularizedEvolution(
        options=replace(OPTIONS, **options),
        num_trials=num_trials,
        num_genes=7,
        seed=seed,
        initial=log.initial,
        mutate=log.mutate,
    )


def run(evolution: RegularizedEvolution, fitness: Callable[[int], float | None]) -> list[list[FloatArray]]:
    """All steps; `fitness` is asked by trial."""
    batches = []
    for _ in range(evolution.num_steps):
        genomes = evolution.ask()
        evolution.tell(genomes, [fitness(evolution.num_told + i) for i in range(len(genomes))])
        batches.append(genomes)
    return batches


# --- Batches -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_trials", "options", "sizes"),
    [
        (9, {}, [4, 2, 1, 1, 1]),
        (9, {"initial_batch": 1}, [1] * 9),
        (9, {"initial_batch": 100}, [6, 1, 1, 1]),
        (13, {"child_batch": 3}, [4, 2, 3, 3, 1]),
        (6, {}, [4, 2]),
        (5, {}, [4, 1]),
        (1, {}, [1]),
    ],
)
def test_steps_are_batches_of_the_initial_population_then_of_children(
    num_trials: int, options: dict[str, int], sizes: list[int]
) -> None:
    log = Log()
    searcher = evolution(log, num_trials=num_trials, **options)
    assert [len(batch) for batch in run(searcher, float)] == sizes
    assert log.initials == list(range(min(6, num_trials)))
    assert len(log.mutations) == max(0, num_trials - 6)
    assert searcher.ask() == []


# --- Who lives and who has children --------------------------------------------------------------------------------


def test_the_oldest_is_replaced_not_the_worst() -> None:
    searcher = evolution(num_trials=9)
    fitnesses = [100.0, 90.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    run(searcher, lambda trial: fitnesses[trial])
    # The first three are gone, among them the two best of all; the third of the worst went with its age.
    assert searcher.fitnesses == [2.0, 3.0, 4.0, 5.0, 6.0, 7.0]


@pytest.mark.parametrize("child_batch", [1, 4, 10])
def test_the_population_is_never_larger_than_its_size(child_batch: int) -> None:
    searcher = evolution(num_trials=40, child_batch=child_batch)
    sizes = []
    for _ in range(searcher.num_steps):
        genomes = searcher.ask()
        searcher.tell(genomes, [0.0] * len(genomes))
        assert len(searcher.genomes) == len(searcher.fitnesses)
        sizes.append(len(searcher.genomes))
    assert sizes[:2] == [4, 6]
    assert set(sizes[1:]) == {6}


def test_a_sample_of_the_whole_population_has_the_best_of_all_as_parent() -> None:
    for best in range(6):
        log = Log()
        searcher = evolution(log, num_trials=7, sample_size=6, mutation_rate=1e-9, seed=best)
        run(searcher, lambda trial, best=best: 1.0 if trial == best else -float(trial))
        [(parent, mutated, _)] = log.mutations
        assert parent.tolist() == [best] * 7
        assert mutated.sum() == 1


def test_a_parent_is_the_best_of_a_sample_without_repeats() -> None:
    log = Log()
    run(evolution(log, num_trials=6 + 300, child_batch=300), float)
    parents = [int(parent[0]) for parent, _, _ in log.mutations]
    # Of three different members the worst two of six are never the best; with repeats they would be, 8 in 216 times.
    assert set(parents) == {2, 3, 4, 5}
    # The best is in half of the samples: 150 ± 4·8.7.
    assert abs(parents.count(5) - 150) < 35


def test_with_a_sample_of_one_anyone_is_a_parent() -> None:
    log = Log()
    run(evolution(log, num_trials=6 + 100, child_batch=100, sample_size=1), float)
    assert {int(parent[0]) for parent, _, _ in log.mutations} == set(range(6))


def test_the_dead_have_no_children() -> None:
    log = Log()
    # Nothing but the first member is any good, and it dies when the first child comes.
    run(evolution(log, num_trials=40, sample_size=6), lambda trial: 100.0 if trial == 0 else -float(trial))
    parents = [int(parent[0]) for parent, _, _ in log.mutations]
    assert parents[0] == 0
    assert parents[1:6] == [1, 2, 3, 4, 5]


# --- Mutation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "num"), [(0.1, 1), (0.01, 1), (0.3, 2), (0.4, 3), (0.5, 4), (0.99, 7), (1.0, 7)])
def test_exactly_the_rate_of_the_genes_is_mutated_and_at_least_one(rate: float, num: int) -> None:
    log = Log()
    run(evolution(log, num_trials=6 + 200, child_batch=50, mutation_rate=rate), float)
    masks = np.stack([mutated for _, mutated, _ in log.mutations])
    assert set(np.unique(masks)) <= {0.0, 1.0}
    assert (masks.sum(axis=1) == num).all()
    share = masks.mean(axis=0)  # num / 7 of 200 each, to 4 standard deviations
    assert np.abs(share - num / 7).max() < 4 * (num / 7 * (1 - num / 7) / 200) ** 0.5 + 1e-9


@pytest.mark.parametrize("child_batch", [1, 4])
def test_the_step_decays_linearly_over_all_trials(child_batch: int) -> None:
    log = Log()
    searcher = evolution(log, num_trials=20, child_batch=child_batch)
    run(searcher, float)
    assert [sigma for _, _, sigma in log.mutations] == pytest.approx([1.0 - 0.8 * i / 20 for i in range(6, 20)])
    assert searcher.sigma(0) == 1.0
    assert searcher.sigma(20) == pytest.approx(0.2)


def test_the_step_of_400_trials_is_the_released_codes() -> None:
    searcher = evolution(num_trials=400)
    released = [1 - i / (400 * 1.25) for i in range(400)]
    assert [searcher.sigma(i) for i in range(400)] == pytest.approx(released)


# --- Failure -------------------------------------------------------------------------------------------------------


def test_failed_members_never_live_and_never_become_parents() -> None:
    log = Log()
    searcher = evolution(log, num_trials=60, sample_size=1)
    run(searcher, lambda trial: None if trial in {0, 3} else float(trial))
    assert len(log.mutations) == 54
    assert {int(parent[0]) for parent, _, _ in log.mutations} <= {1, 2, 4, 5}
    assert len(searcher.genomes) == 6


def test_a_failed_child_replaces_nobody() -> None:
    searcher = evolution(num_trials=10)
    run(searcher, lambda trial: None if trial >= 6 else float(trial))
    assert searcher.fitnesses == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert searcher.num_told == 10


def test_when_everything_failed_fresh_members_come() -> None:
    log = Log()
    searcher = evolution(log, num_trials=12)
    run(searcher, lambda trial: None if trial < 9 else float(trial))
    # Members of their own numbers: the first one, which may be special, does not come again.
    assert log.initials == list(range(10))
    assert [int(parent[0]) for parent, _, _ in log.mutations] == [9, 9]


# --- State ---------------------------------------------------------------------------------------------------------


def drawn(index: int, rng: np.random.Generator) -> FloatArray:
    return rng.standard_normal(7)


def stepped(genome: FloatArray, mutated: FloatArray, sigma: float, rng: np.random.Generator) -> FloatArray:
    return genome + mutated * sigma * rng.standard_normal(7)


def by_chance(**options: Any) -> RegularizedEvolution:
    return RegularizedEvolution(
        options=replace(OPTIONS, **options), num_trials=20, num_genes=7, seed=0, initial=drawn, mutate=stepped
    )


def all_genomes(searcher: RegularizedEvolution, num_steps: int) -> list[list[float]]:
    genomes = []
    for _ in range(num_steps):
        asked = searcher.ask()
        searcher.tell(asked, [None if genome[0] > 1.5 else -float(genome @ genome) for genome in asked])
        genomes += [genome.tolist() for genome in asked]
    return genomes


def test_initial_members_are_drawn_one_after_the_other_from_one_generator() -> None:
    searcher = by_chance(population_size=20)
    genomes = all_genomes(searcher, searcher.num_steps)
    rng = np.random.default_rng(0)
    assert genomes == [rng.standard_normal(7).tolist() for _ in range(20)]


def test_a_state_does_not_change_with_the_evolution_it_was_taken_from() -> None:
    searcher = by_chance()
    all_genomes(searcher, 5)
    state = searcher.state_dict()
    taken = copy.deepcopy(state)
    all_genomes(searcher, 5)
    assert same_state(state, taken)
    assert not same_state(searcher.state_dict(), taken)


@pytest.mark.parametrize("child_batch", [1, 3])
def test_resumed_at_any_step_equals_uninterrupted(child_batch: int) -> None:
    num_steps = by_chance(initial_batch=2, child_batch=child_batch).num_steps
    whole = all_genomes(by_chance(initial_batch=2, child_batch=child_batch), num_steps)
    for num_before in range(num_steps + 1):
        first, second = (by_chance(initial_batch=2, child_batch=child_batch) for _ in range(2))
        before = all_genomes(first, num_before)
        file = io.BytesIO()
        torch.save(first.state_dict(), file)
        file.seek(0)
        second.load_state_dict(torch.load(file, weights_only=True))
        assert before + all_genomes(second, num_steps - num_before) == whole


def test_the_size_of_the_initial_batch_has_no_effect() -> None:
    whole = [all_genomes(by_chance(initial_batch=n), by_chance(initial_batch=n).num_steps) for n in (1, 4, 6)]
    assert whole[0] == whole[1] == whole[2]


def test_children_of_one_batch_do_not_know_of_each_other() -> None:
    one, three = by_chance(child_batch=1), by_chance(child_batch=3)
    assert all_genomes(one, one.num_steps) != all_genomes(three, three.num_steps)


# --- Options -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample_size": 0}, "`1 <= sample_size <= population_size` must hold for an evolution, but got sample_size=0"),
        ({"sample_size": 7}, "`1 <= sample_size <= population_size` must hold for an evolution, but got sample_size=7"),
        ({"population_size": 0, "sample_size": 0}, "`1 <= sample_size <= population_size` must hold"),
        ({"mutation_rate": 0.0}, "`0 < mutation_rate <= 1` must hold for an evolution, but got mutation_rate=0.0"),
        ({"mutation_rate": 1.1}, "`0 < mutation_rate <= 1` must hold for an evolution, but got mutation_rate=1.1"),
        ({"first_sigma": -1.0}, "`first_sigma >= 0` and `last_sigma >= 0` must hold for an evolution, but got first"),
        ({"last_sigma": -0.1}, "`first_sigma >= 0` and `last_sigma >= 0` must hold for an evolution, but got first"),
        ({"initial_batch": 0}, "`initial_batch >= 1` and `child_batch >= 1` must hold for an evolution, but got init"),
        ({"child_batch": 0}, "`initial_batch >= 1` and `child_batch >= 1` must hold for an evolution, but got init"),
    ],
)
def test_an_option_out_of_range_is_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        replace(OPTIONS, **options)
    assert "\n" not in str(raised.value)


def test_no_trials_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`num_trials >= 1` must hold for an evolution, but got num_trials=0"):
        evolution(num_trials=0)
