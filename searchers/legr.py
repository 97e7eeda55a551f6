"""LeGR: Learned Global Ranking (Chin, Ding, Zhang, Marculescu; CVPR 2020, arXiv:1904.12368).

Every filter's norm goes through an affine map of its layer, I = α·‖θ‖ + κ, all filters are ranked by it together, and
the lowest go until a budget is met. Regularized evolution learns (α, κ) once, at the lowest budget of interest; the
same ranking then gives a network for every other budget, each nested in the next. What differs from the paper and the
released code (github.com/cmu-enyac/LeGR) is numbered in LEGR.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from compsearch.budget import Budget
from compsearch.importance import LayerImportance
from compsearch.protocols import CostModel, Evaluator
from compsearch.scoring import score
from compsearch.space import FloatArray, Policy, SearchSpace
from compsearch.trial import Genome, Trial
from searchers.fitness import fitness_of
from searchers.ranking import Ranking
from searchers.regularized_evolution import EvolutionOptions, Generator, RegularizedEvolution

#: What of a genome evolves, (α, κ), by the value of `evolve_only`; what doesn't is the identity's.
EVOLVING: Mapping[str | None, tuple[float, float]] = {None: (1.0, 1.0), "alpha": (1.0, 0.0), "kappa": (0.0, 1.0)}


class LeGR:
    """One step, a batch of trials: of the initial population first, then children of the best of a sample.

    A genome is [2, num_layers]: α > 0 above, κ below, for the layers of `importance`. Every trial carries its
    own, so that `family` can say what it keeps within another budget. With `learned`, the genome that an earlier search
    ended with, nothing is learnt: one step, its policy at `budget` and the identity's, as what was learned at another
    budget may do worse than no map at all. `evolve_only` is ``alpha``, where κ is 0 throughout, or ``kappa``, where α
    is 1; None for both.
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
        alpha_sigma: float,
        evolution: EvolutionOptions,
        learned: Genome | None = None,
        evolve_only: str | None = None,
    ) -> None:
        if budget is None:
            raise ValueError("a budget must be given for searcher legr: without one its ranking removes nothing")
        if alpha_sigma < 0:
            raise ValueError(f"`alpha_sigma >= 0` must hold, but got {alpha_sigma=} for searcher legr")
        if evolve_only not in EVOLVING:
            raise ValueError(f"`searcher.evolve_only` must be null, alpha or kappa, but got {evolve_only!r}")
        if evolve_only == "alpha" and alpha_sigma == 0:
            raise ValueError(
                "`alpha_sigma > 0` must hold where searcher.evolve_only=alpha, or all initial members are the same, "
                f"but got {alpha_sigma=}"
            )
        self.space = space
        self.evaluator = evaluator
        self.cost_model = cost_model
        self.budget = budget
        self.importance = importance
        self.alpha_sigma = alpha_sigma
        self.evolving = EVOLVING[evolve_only]
        self.fitness = fitness_of(fitness)
        self.learned = None if learned is None else self._from_record(learned)
        self.evolution = RegularizedEvolution(
            options=evolution,
            num_trials=num_trials,
            num_genes=len(importance.layers),
            seed=seed,
            initial=self.initial,
            mutate=self.mutate,
        )
        self.population_size = evolution.population_size
        self.num_steps = self.evolution.num_steps if learned is None else 1

    def step(self) -> list[Trial]:
        """Proposes, scores and returns the next batch."""
        if self.learned is not None:
            identity = self.identity()
            genomes = [self.learned, *([] if np.array_equal(self.learned, identity) else [identity])]
            return self._score(genomes, [self.budget] * len(genomes))
        genomes = self.evolution.ask()
        trials = self._score(genomes, [self.budget] * len(genomes))
        self.evolution.tell(genomes, [trial.objective for trial in trials])
        return trials

    def family(self, trial: Trial, budgets: Sequence[Budget]) -> list[Trial]:
        """What the ranking of `trial` keeps within each budget, scored; nested."""
        return self._score([self._from_record(trial.genome)] * len(budgets), budgets)

    def identity(self) -> FloatArray:
        """The genome that changes nothing, α = 1 and κ = 0: plain global ranking."""
        num_layers = len(self.importance.layers)
        return np.stack([np.ones(num_layers), np.zeros(num_layers)])

    def initial(self, index: int, rng: Generator) -> FloatArray:
        """Member `index` of the initial population: the identity first, then chance.

        α is exp N(0, alpha_sigma), κ N(0, σ_l) with σ_l the standard deviation of layer l's norms: the identity mutated
        in all layers.
        """
        identity = self.identity()
        return identity if index == 0 else self.mutate(identity, np.ones(identity.shape[1]), self.alpha_sigma, rng)

    def mutate(self, genome: FloatArray, mutated: FloatArray, sigma: float, rng: Generator) -> FloatArray:
        """α·exp N(0, `sigma`) and κ + N(0, σ_l) in the `mutated` layers, as far as they evolve.

        The same numbers are drawn whatever evolves, so that searches that differ in it alone begin alike.
        """
        alpha, kappa = genome
        num_layers = len(mutated)
        moves_alpha, moves_kappa = (evolves * mutated for evolves in self.evolving)
        factor = np.exp(moves_alpha * sigma * rng.standard_normal(num_layers))
        shift = moves_kappa * self.importance.stds * rng.standard_normal(num_layers)
        return np.stack([alpha * factor, kappa + shift])

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

    def _policy(self, genome: FloatArray, budget: Budget) -> Policy:
        scores = self.importance.scores(alpha=genome[0], kappa=genome[1])
        return Ranking(self.space, scores).policy(budget, cost_model=self.cost_model)

    def _to_record(self, genome: FloatArray) -> Genome:
        layers = self.importance.layers
        alpha, kappa = (dict(zip(layers, genes.tolist(), strict=True)) for genes in genome)
        return {"alpha": alpha, "kappa": kappa}

    def _from_record(self, record: Genome) -> FloatArray:
        layers = self.importance.layers
        if set(record) != {"alpha", "kappa"} or any(set(genes) != set(layers) for genes in record.values()):
            raise ValueError(
                "a learned ranking must have an alpha and a kappa for each layer of this network, but got "
                f"{ {name: len(genes) for name, genes in record.items()} } for {len(layers)} layers"
            )
        genome = np.array([[record[name][layer] for layer in layers] for name in ("alpha", "kappa")])
        if not (genome[0] > 0).all():
            raise ValueError(f"`alpha > 0` must hold for a learned ranking, but got {genome[0].min():g}")
        return genome
