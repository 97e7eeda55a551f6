"""Regularized evolution (Real, Aggarwal, Huang, Le; AAAI 2019, arXiv:1802.01548): the oldest dies, not the worst.

Ask for genomes, tell their fitness. What a genome means is the caller's: LeGR's is one (α, κ) per layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from compsearch.space import FloatArray

Generator = np.random.Generator


@dataclass(frozen=True)
class EvolutionOptions:
    """The numbers of an evolution; conf/searcher/legr.yaml has their sources.

    `initial_batch` members of the initial population, then `child_batch` children, are asked for at a time. Children of
    one batch don't know of each other: with more than one the evolution is another one.
    """

    population_size: int
    sample_size: int
    mutation_rate: float
    first_sigma: float
    last_sigma: float
    initial_batch: int
    child_batch: int

    def __post_init__(self) -> None:
        if not 1 <= self.sample_size <= self.population_size:
            raise ValueError(
                "`1 <= sample_size <= population_size` must hold for an evolution, but got "
                f"sample_size={self.sample_size}, population_size={self.population_size}"
            )
        if not 0 < self.mutation_rate <= 1:
            raise ValueError(
                f"`0 < mutation_rate <= 1` must hold for an evolution, but got mutation_rate={self.mutation_rate}"
            )
        if self.first_sigma < 0 or self.last_sigma < 0:
            raise ValueError(
                "`first_sigma >= 0` and `last_sigma >= 0` must hold for an evolution, but got "
                f"first_sigma={self.first_sigma}, last_sigma={self.last_sigma}"
            )
        if self.initial_batch < 1 or self.child_batch < 1:
            raise ValueError(
                "`initial_batch >= 1` and `child_batch >= 1` must hold for an evolution, but got "
                f"initial_batch={self.initial_batch}, child_batch={self.child_batch}"
            )


class RegularizedEvolution:
    """`num_trials` genomes: `population_size` initial ones, then children of the best of a sample.

    ``initial(index, rng)`` makes member `index` of the initial population, ``mutate(genome, mutated, sigma, rng)`` a
    changed copy; genomes are float arrays [..., num_genes], `mutated` [num_genes] says which genes to change. Every
    child of a genome has ``mutation_rate * num_genes`` genes changed, at least one.
    """

    def __init__(
        self,
        *,
        options: EvolutionOptions,
        num_trials: int,
        num_genes: int,
        seed: int,
        initial: Callable[[int, Generator], FloatArray],
        mutate: Callable[[FloatArray, FloatArray, float, Generator], FloatArray],
    ) -> None:
        if num_trials < 1:
            raise ValueError(f"`num_trials >= 1` must hold for an evolution, but got {num_trials=}")
        self.options = options
        self.num_trials = num_trials
        self.num_genes = num_genes
        self._initial = initial
        self._mutate = mutate
        self._rng = np.random.default_rng(seed)
        self.num_told = 0
        #: The living, oldest first: genomes and fitness, higher is better. Failed ones never live.
        self.genomes: list[FloatArray] = []
        self.fitnesses: list[float] = []

    @property
    def num_steps(self) -> int:
        """How often `ask` is answered with something: batches of the initial population, then of children."""
        num_initial = min(self.options.population_size, self.num_trials)
        num_children = self.num_trials - num_initial
        return -(-num_initial // self.options.initial_batch) + -(-num_children // self.options.child_batch)

    def ask(self) -> list[FloatArray]:
        """The genomes to try next; `tell` their fitness before asking again."""
        num_initial = min(self.options.population_size, self.num_trials)
        if self.num_told < num_initial:
            last = min(self.num_told + self.options.initial_batch, num_initial)
            return [self._initial(index, self._rng) for index in range(self.num_told, last)]
        last = min(self.num_told + self.options.child_batch, self.num_trials)
        return [self._child(index) for index in range(self.num_told, last)]

    def tell(self, genomes: Sequence[FloatArray], fitnesses: Sequence[float | None]) -> None:
        """The fitness of each genome asked for, None for one that failed, which then has no children."""
        for genome, fitness in zip(genomes, fitnesses, strict=True):
            self.num_told += 1
            if fitness is not None:
                self.genomes.append(genome)
                self.fitnesses.append(fitness)
        del self.genomes[: -self.options.population_size]
        del self.fitnesses[: -self.options.population_size]

    def sigma(self, index: int) -> float:
        """The mutation's step for trial `index`: from `first_sigma` to `last_sigma`, linear over all trials."""
        progress = index / self.num_trials
        return self.options.first_sigma + progress * (self.options.last_sigma - self.options.first_sigma)

    def _child(self, index: int) -> FloatArray:
        if not self.genomes:  # everything failed so far
            return self._initial(index, self._rng)
        num_sampled = min(self.options.sample_size, len(self.genomes))
        sample = self._rng.choice(len(self.genomes), num_sampled, replace=False)
        parent = self.genomes[max(sample, key=lambda member: self.fitnesses[member])]
        num_mutated = max(1, round(self.options.mutation_rate * self.num_genes))
        mutated = np.zeros(self.num_genes)
        mutated[self._rng.choice(self.num_genes, num_mutated, replace=False)] = 1.0
        return self._mutate(parent, mutated, self.sigma(index), self._rng)

    def state_dict(self) -> dict[str, Any]:
        return {
            "rng": self._rng.bit_generator.state,
            "num_told": self.num_told,
            "genomes": [torch.tensor(genome) for genome in self.genomes],
            "fitnesses": list(self.fitnesses),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues after the `tell` at which `state` was taken."""
        self._rng.bit_generator.state = state["rng"]
        self.num_told = state["num_told"]
        self.genomes = [genome.numpy().copy() for genome in state["genomes"]]
        self.fitnesses = list(state["fitnesses"])
