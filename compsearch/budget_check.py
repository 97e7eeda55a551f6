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


@dataclass(frozen=True)
class Checked:
    """A policy with its network, and the measured cost_ratio last found: None where no check was needed."""

    policy: Policy
    network: Any
    measured: float | None
    num_repairs: int


def within_budget(config: Mapping[str, Any], parts: Parts, trial: Trial, network: Any) -> Checked:
    """The policy of `trial` with its `network`, or the nearest smaller ones that measure within the budget.

    Costs that are exact need no check. A predicted one (latency) is measured beside the dense network; where it is over
    the budget less ``finalist.latency_margin``, the budget is tightened by as much and the policy cut down to it,
    ``finalist.repairs`` times at most. Says so when it still misses.
    """
    budget = parts.budget
    if budget is None or not is_predicted(parts):
        return Checked(trial.policy, network, None, 0)
    finalist, policy = config["finalist"], trial.policy
    wanted = budget.cost_ratio * (1 - finalist["latency_margin"])
    measured = measured_ratio(config, parts, network)
    num_repairs = 0
    while measured > wanted and num_repairs < finalist["repairs"]:
        tighter = min(parts.cost_model.cost(policy), budget.limit) * wanted / measured * 0.995**num_repairs
        smaller = _smaller(parts, trial, policy, Budget(budget.resource, tighter, budget.dense))
        if smaller is None or smaller == policy:
            break
        num_repairs += 1
        policy, network = smaller, parts.workbench.compress(smaller)
        before, measured = measured, measured_ratio(config, parts, network)
        _logger.info(
            "over the budget of %.4f when measured: %.4f; policy repaired: %.4f", budget.cost_ratio, before, measured
        )
    if measured > budget.cost_ratio:
        _logger.warning("the budget is missed: measured %.4f, not %.4f", measured, budget.cost_ratio)
    return Checked(policy, network, measured, num_repairs)


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


def _smaller(parts: Parts, trial: Trial, policy: Policy, budget: Budget) -> Policy | None:
    """What is left of `policy` within the tighter `budget`; None when nothing is that small."""
    space, cost_model = parts.space, parts.cost_model
    if not budget.allows(float(cost_model.costs(space.min_counts[None])[0])):
        return None
    if isinstance(parts.searcher, FamilySearcher) and trial.genome:
        # The same ranking, cut further: still a member of the family.
        return parts.searcher.family(trial, [budget])[0].policy
    counts = space.counts(policy)

    def path(t: float) -> IntArray:
        wanted = space.min_counts + t * (counts - space.min_counts)
        rounded = [
            space.nearest_count(index, float(kept) / group.size, at_most=int(counts[index]))
            for index, (kept, group) in enumerate(zip(wanted, space.groups, strict=True))
        ]
        return np.array(rounded, dtype=np.int64)

    scores = np.where(space.keep_mask(policy), parts.importance.scores(), -np.inf)
    return space.select(largest_within(budget, path, cost_model=cost_model), scores)
