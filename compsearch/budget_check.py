"""A budget in a resource that the search can only predict: measured on the network itself, and the policy repaired."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from compsearch.assembly import Parts
from compsearch.budget import Budget, largest_within
from compsearch.protocols import FamilySearcher
from compsearch.space import IntArray, Policy
from compsearch.summary import Latency
from compsearch.trial import Trial

_logger = logging.getLogger(__name__)

#: A repaired policy that measures this much below what it may is tried again with more.
_TOO_MUCH = 0.02


@dataclass(frozen=True)
class Checked:
    """A policy with its network, and the measured cost_ratio last found: None where no check was needed."""

    policy: Policy
    network: Any
    measured: float | None
    num_repairs: int


def within_budget(config: Mapping[str, Any], parts: Parts, trial: Trial, network: Any) -> Checked:
    """The policy of `trial` with its `network`, or the largest found below it that measures within the budget.

    Costs that are exact need no check. A predicted one (latency) is measured beside the dense network. Where it is over
    the budget less ``finalist.latency_margin``, the policy is cut down to what should be within by as much as it was
    over; where that was too much, half of the way back is tried, ``finalist.repairs`` policies in all. Says so when
    none is within.
    """
    budget = parts.budget
    if budget is None or not is_predicted(parts):
        return Checked(trial.policy, network, None, 0)
    wanted = budget.cost_ratio * (1 - config["finalist"]["latency_margin"])
    policy, cost = trial.policy, parts.cost_model.cost(trial.policy)
    measured = measured_ratio(config, parts, network)
    tried = {policy}
    over = cost
    within: tuple[Policy, float, float] | None = None if measured > wanted else (policy, cost, measured)
    while len(tried) <= config["finalist"]["repairs"]:
        if measured > wanted:
            over = cost
            target = cost * wanted / measured if within is None else (cost + within[1]) / 2
        elif measured < wanted * (1 - _TOO_MUCH) and policy != trial.policy:
            target = (cost + over) / 2
        else:
            break
        smaller = _smaller(parts, trial, Budget(budget.resource, min(target, budget.limit), budget.dense))
        if smaller is None or smaller in tried:
            break
        tried.add(smaller)
        policy, cost = smaller, parts.cost_model.cost(smaller)
        before, measured = measured, measured_ratio(config, parts, parts.workbench.plain(policy))
        _logger.info("budget %.4f: measured %.4f, so the policy was changed: %.4f", budget.cost_ratio, before, measured)
        if measured <= wanted and (within is None or cost > within[1]):
            within = (policy, cost, measured)
    if within is not None:
        policy, _, measured = within
    elif measured > budget.cost_ratio:
        _logger.warning("the budget is missed: measured %.4f, not %.4f", measured, budget.cost_ratio)
    if policy != trial.policy:
        network = parts.workbench.compress(policy)
    return Checked(policy, network, measured, len(tried) - 1)


def is_predicted(parts: Parts) -> bool:
    """Whether the budget's resource is predicted, so that only measuring says what a network costs."""
    return bool(getattr(parts.cost_model, "is_predicted", False))


def measured_ratio(config: Mapping[str, Any], parts: Parts, network: Any) -> float:
    """The measured cost of `network` as a fraction of the dense network's, comparable with the budget's cost_ratio."""
    bench = parts.workbench
    return latency_ratio(config, parts, bench.latencies({"dense": bench.dense(), "candidate": network})["candidate"])


def latency_ratio(config: Mapping[str, Any], parts: Parts, latency: Latency) -> float:
    """A latency as the budget counts it: its milliseconds for an absolute limit, its ratio to dense otherwise."""
    assert latency.ratio is not None
    if config["budget"]["limit"] is not None:
        assert parts.budget is not None
        return latency.median_ms / parts.budget.dense
    return latency.ratio


def _smaller(parts: Parts, trial: Trial, budget: Budget) -> Policy | None:
    """What is left of the policy of `trial` within the tighter `budget`; None when nothing is that small."""
    space, cost_model, policy = parts.space, parts.cost_model, trial.policy
    if not budget.allows(float(cost_model.costs(space.smallest_choices[None])[0])):
        return None
    if isinstance(parts.searcher, FamilySearcher) and trial.genome:
        # The same ranking, cut further: still a member of the family.
        return parts.searcher.family(trial, [budget])[0].policy
    counts, richness = space.counts(policy), space.richness(space.operations(policy))
    # Blocks go only where there are no widths, or these are at their smallest.
    blocks_until = 0.5 if space.groups else 1.0

    def path(t: float) -> IntArray:
        operations = space.staggered_operations(min(1.0, t / blocks_until) * richness)
        part = max(0.0, t - blocks_until) / (1 - blocks_until) if space.groups else 1.0
        kept = space.staggered_counts(space.min_counts + part * (counts - space.min_counts))
        return np.concatenate([kept, operations])

    scores = np.where(space.keep_mask(policy), parts.importance.scores(), -np.inf)
    choices, num_groups = largest_within(budget, path, cost_model=cost_model), len(space.groups)
    return space.select(choices[:num_groups], scores, choices[num_groups:])
