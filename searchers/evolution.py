"""Regularized evolution directly on keep_ratios (Real et al. 2019, arXiv:1802.01548): LeGR without the affine ranking.

The same population, sample, mutation rate and decaying step as LeGR's, so that the two show what ranking filters
globally buys over choosing how many of each group to keep.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from compsearch.budget import Budget, largest_within
from compsearch.importance import LayerImportance
from compsearch.protocols import CostModel, Evaluator
from compsearch.scoring import score
from compsearch.space import FloatArray, IntArray, Policy, SearchSpace
from compsearch.trial import Genome, Trial
from searchers.fitness import fitness_of
from searchers.regularized_evolution import EvolutionOptions, Generator, RegularizedEvolution


class Evolution:
    """One step, a batch of trials: of the initial population first, then children of the best of a sample.

    A genome is a sensitivity s > 0 for each group, [num_groups]; a group's keep_ratio is exp(-p·s), with one p ≥ 0 for
    all, the smallest that meets the budget after rounding. So every genome meets every budget, and what it keeps
    within a smaller one is nested in what it keeps within a larger one.
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
        num_trials: int,
        fitness: str,
        evolution: EvolutionOptions,
    ) -> None:
        if budget is None:
            raise ValueError("a budget must be given for searcher evolution: without one it removes nothing")
        self.space = space
        self.evaluator = evaluator
        self.cost_model = cost_model
        self.budget = budget
        self.importance = importance.scores()
        self.fitness = fitness_of(fitness)
        self.evolution = RegularizedEvolution(
            options=evolution,
            num_trials=num_trials,
            num_genes=len(space.groups),
            seed=seed,
            initial=self.initial,
            mutate=self.mutate,
        )
        self.population_size = evolution.population_size
        self.num_steps = self.evolution.num_steps

    def step(self) -> list[Trial]:
        """Proposes, scores and returns the next batch."""
        genomes = self.evolution.ask()
        trials = self._score(genomes, [self.budget] * len(genomes))
        self.evolution.tell(genomes, [trial.objective for trial in trials])
        return trials

    def family(self, trial: Trial, budgets: Sequence[Budget]) -> list[Trial]:
        """What the sensitivities of `trial` keep within each budget, scored; nested."""
        sensitivity = trial.genome["sensitivity"]
        genome = np.array([sensitivity[group.name] for group in self.space.groups])
        return self._score([genome] * len(budgets), budgets)

    def initial(self, index: int, rng: Generator) -> FloatArray:
        """Member `index` of the initial population: equal sensitivities first, then exponential ones.

        -ln of U(0, 1) is exponential, so the others are what random search draws.
        """
        num_groups = len(self.space.groups)
        return np.ones(num_groups) if index == 0 else rng.standard_exponential(num_groups)

    def mutate(self, genome: FloatArray, mutated: FloatArray, sigma: float, rng: Generator) -> FloatArray:
        """s·exp N(0, `sigma`) in the `mutated` groups."""
        changed: FloatArray = genome * np.exp(mutated * sigma * rng.standard_normal(len(mutated)))
        return changed

    def state_dict(self) -> dict[str, Any]:
        return self.evolution.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues after the step at which `state` was taken."""
        self.evolution.load_state_dict(state)

    def _score(self, genomes: Sequence[FloatArray], budgets: Sequence[Budget]) -> list[Trial]:
        return score(
            [self._policy(*pair) for pair in zip(genomes, budgets, strict=True)],
            space=self.space,
            evaluator=self.evaluator,
            cost_model=self.cost_model,
            objective=self.fitness,
            genomes=[self._to_record(genome) for genome in genomes],
        )

    def _policy(self, sensitivity: FloatArray, budget: Budget) -> Policy:
        def path(t: float) -> IntArray:  # from p = infinity, the smallest policy, to p = 0, the dense one
            ratios = np.exp(-sensitivity * (1 - t) / t) if t > 0 else np.zeros_like(sensitivity)
            return self.space.nearest_counts(np.rint(ratios * self.space.sizes).astype(np.int64))

        return self.space.select(largest_within(budget, path, cost_model=self.cost_model), self.importance)

    def _to_record(self, sensitivity: FloatArray) -> Genome:
        names = [group.name for group in self.space.groups]
        return {"sensitivity": dict(zip(names, sensitivity.tolist(), strict=True))}
