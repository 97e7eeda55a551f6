"""Latencies of trials, measured: a sample of them beside the dense network, so that FLOPs can be compared with time."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from compsearch.assembly import Parts
from compsearch.space import Policy
from compsearch.trial import Trial


def time_trials(parts: Parts, trials: Sequence[Trial], *, most: int) -> dict[str, Any]:
    """The latency of `most` of `trials` at most, measured in turns: by index of the trial, with its cost_ratio in macs.

    Half are the best by objective, half spread evenly over the macs. Which weights a network has makes no difference to
    its time, so they are neither recovered nor trained.
    """
    picked = _pick(trials, most)
    if not picked:
        return {"trials": []}
    bench, macs = parts.workbench, parts.cost_models["macs"]
    networks = {str(index): bench.plain(trials[index].policy) for index in picked}
    latencies = bench.latencies({"dense": bench.dense(), **networks})
    dense = macs.cost(parts.space.full_policy())
    return {
        "trials": [
            {
                "trial": index,
                "macs_ratio": macs.cost(trials[index].policy) / dense,
                **dataclasses.asdict(latencies[str(index)]),
            }
            for index in picked
        ]
    }


def _pick(trials: Sequence[Trial], most: int) -> list[int]:
    seen: set[Policy] = set()
    distinct: list[int] = []
    for index, trial in enumerate(trials):
        if trial.objective is not None and trial.policy not in seen:
            seen.add(trial.policy)
            distinct.append(index)
    if len(distinct) <= most:
        return distinct
    by_objective = sorted(distinct, key=lambda index: -(trials[index].objective or 0.0))
    by_cost = sorted(distinct, key=lambda index: trials[index].cost_ratio)
    spread = [by_cost[place] for place in np.linspace(0, len(by_cost) - 1, most - most // 2).round().astype(int)]
    picked = dict.fromkeys([*by_objective[: most // 2], *spread])
    return sorted(picked)
