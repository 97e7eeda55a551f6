"""Building a searcher on stand-ins, before there are weights, so that settings it refuses cost no training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from compsearch.composition import asks_for, check_complete, make, takes
from compsearch.importance import LayerImportance
from compsearch.protocols import Evaluator
from compsearch.space import Policy, SearchSpace
from compsearch.trial import Measurement

#: What a searcher may ask for and is built after the weights.
_WITH_WEIGHTS = ("importance", "learned", "supernet")


def rehearse(node: Mapping[str, Any], available: Mapping[str, Any]) -> None:
    """Raises ValueError for what is wrong with a searcher's settings, as far as it takes no weights to see.

    `available` are the collaborators there are before the weights. A searcher that asks for a supernet is not built, as
    that takes one; only what is inside its settings is.
    """
    if takes(node, "supernet", place="searcher"):
        collaborators = {*available, *_WITH_WEIGHTS}
        check_complete(node, collaborators, place="searcher")
        for name, value in node.items():
            if not asks_for(value, collaborators, place=f"searcher.{name}"):
                make(value, available, place=f"searcher.{name}")
        return
    stand_ins = {
        "evaluator": _PerfectScores(available["evaluator"], available["cost_models"]),
        "importance": _any_importance(available["space"]),
        "learned": None,
    }
    make(node, {**available, **stand_ins}, place="searcher")


class _PerfectScores:
    """Calls every policy right on every image, at no cost of time; is the evaluator in all else."""

    def __init__(self, evaluator: Evaluator, cost_models: Sequence[Any]) -> None:
        self._evaluator = evaluator
        self._cost_models = cost_models

    def __getattr__(self, name: str) -> Any:
        return getattr(self._evaluator, name)

    def measure(self, policies: Sequence[Policy]) -> list[Measurement]:
        costs = [{model.resource: model.cost(policy) for model in self._cost_models} for policy in policies]
        return [Measurement("search", 1, accuracy=1.0, top5=1.0, loss=0.0, costs=cost) for cost in costs]


def _any_importance(space: SearchSpace) -> LayerImportance:
    """Another importance for every unit of a group, in one layer of each."""
    sizes = [group.size for group in space.groups]
    return LayerImportance(
        tuple(group.name for group in space.groups),
        np.repeat(np.arange(len(sizes)), sizes),
        np.arange(space.num_units),
        np.concatenate([np.arange(1, size + 1) / size for size in sizes]) if sizes else np.zeros(0),
        num_units=space.num_units,
        reduction="sum",
    )
