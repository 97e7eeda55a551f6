"""From policies to trials: measured, priced, with an objective."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from compsearch.protocols import CostModel, Evaluator
from compsearch.space import Policy, SearchSpace
from compsearch.trial import Genome, Measurement, Trial, scored_trial


def top1(measurement: Measurement) -> float:
    """Top-1 accuracy, a fraction."""
    return measurement.accuracy


def score(
    policies: Sequence[Policy],
    *,
    space: SearchSpace,
    evaluator: Evaluator,
    cost_model: CostModel,
    objective: Callable[[Measurement], float] = top1,
    genomes: Sequence[Genome] = (),
) -> list[Trial]:
    """One trial per policy of `space`, in that order; the evaluator gets them all at once.

    `genomes` are what the policies were derived from, one each. A measurement that is not finite makes a failed trial.
    """
    dense_cost = cost_model.cost(space.full_policy())
    return [
        scored_trial(
            policy,
            measurement,
            objective=objective(measurement),
            cost_ratio=cost_model.cost(policy) / dense_cost,
            genome=genome,
        )
        for policy, measurement, genome in zip(
            policies, evaluator.measure(policies), genomes or [{}] * len(policies), strict=True
        )
    ]
