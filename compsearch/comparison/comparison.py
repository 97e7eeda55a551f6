"""What the runs in several folders have to say together: the tables that everything else is drawn or counted from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from compsearch.space import Policy
from compsearch.summary import Summary

#: Of `Comparison.networks`: one row per finished network, before and after fine-tuning, dense and uniform among them.
NETWORK_COLUMNS = (
    "run",  # its folder's name, see `Run.name`
    "facet",  # network and dataset whose accuracies can share an axis, as people read it
    "series",  # what is compared: the searcher's name, with what sets it apart from others of that name
    "searcher",  # amc | legr | proxylessnas | evolution | global_magnitude | uniform | random | … | dense
    "variant",  # the configuration's name for a run that differs from the default; "" for the default
    "seed",
    "resource",  # what the budget limits, "" without one
    "budget",  # the cost_ratio asked for; NaN for dense and without a budget
    "stage",  # dense | before | after (fine-tuning)
    "accuracy_test",  # top-1, a fraction
    "accuracy_search",
    "top5_test",
    "macs",
    "params",
    "latency_ms",  # measured, NaN where it was not
    "macs_ratio",  # achieved, over the dense network's
    "params_ratio",
    "latency_ratio",
    "latency_p10",  # of the ratio
    "latency_p90",
    "device",  # what the latency is of: runtime, versions, processor, threads, batch
    "trials",  # what the search took; 0 for dense rows
    "images",
    "wall_s",
    "cpu_s",  # NaN in runs of earlier versions
    "is_learned_elsewhere",  # the search's cost is counted with another run, which learned what this one used
)
#: Of `Comparison.trials`: one row per scored trial of every run, partial ones too, in order within a run.
TRIAL_COLUMNS = (
    "run",
    "facet",
    "series",
    "searcher",
    "variant",
    "seed",
    "resource",
    "budget",  # the cost_ratio the search kept to (a family's lowest); NaN without one
    "index",
    "accuracy",  # on the search split, NaN where the trial failed
    "objective",
    "cost_ratio",  # of `resource`, over the dense network
    "macs",
    "params",
    "wall_s",  # of search when the trial was done, by the clock
    "cpu_s",  # the same, of the processor; NaN in runs of earlier versions
)
#: Of `Comparison.kept`: one row per group of every network found, in the network's order.
KEPT_COLUMNS = ("run", "facet", "series", "searcher", "variant", "seed", "resource", "budget", "group", "keep_ratio")


@dataclass(frozen=True)
class Run:
    """One run folder: the `config` it was begun with, its `summary` (None while unfinished) and what it is compared as.

    `facet` and `series` are as in `NETWORK_COLUMNS`. `settings` are those of its settings, dotted keys, that differ
    between runs of its facet, seed and budget included; `command` repeats it. `place` is the part of its folder's path
    that tells it from another run in a folder of the same name, "" where there is none. `policies` are those of its
    networks by the cost_ratio asked for, the run's own under None. `trains_network` says whether it searches by
    training a network of its own, so that its trials don't tell what it costs.
    """

    path: Path
    config: Mapping[str, Any]
    summary: Summary | None
    searcher: str
    variant: str
    seed: int
    facet: str
    series: str
    settings: Mapping[str, Any]
    command: str
    place: str = ""
    policies: Mapping[float | None, Policy] = field(default_factory=dict)
    trains_network: bool = False

    @property
    def name(self) -> str:
        """What the tables call it: no two runs of a comparison have the same."""
        return f"{self.place}/{self.path.name}" if self.place else self.path.name

    @property
    def num_members(self) -> int:
        """How many networks it is asked for: one, or a family's."""
        budget = self.config.get("budget")
        ratios = budget.get("cost_ratios") if isinstance(budget, Mapping) else None
        return len(ratios) if isinstance(ratios, list) and ratios else 1


@dataclass(frozen=True)
class Comparison:
    """`runs`, and tables with the columns above. `remarks` say what a reader must know, one sentence each."""

    runs: tuple[Run, ...]
    networks: pd.DataFrame
    trials: pd.DataFrame
    kept: pd.DataFrame
    remarks: tuple[str, ...] = ()

    @property
    def facets(self) -> tuple[str, ...]:
        """What is drawn on axes of its own, in the order met."""
        return tuple(dict.fromkeys(run.facet for run in self.runs))
