"""The search as a function, for people who have a network and data in hand."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from compsearch import job
from compsearch.assembly import assemble
from compsearch.composition import compose_config, make
from compsearch.recorder import TRIALS_FILE, trials_frame
from compsearch.run_folder import RunFolder
from compsearch.space import Policy
from compsearch.summary import Summary


@dataclass(frozen=True)
class Compressed:
    """The compressed network, what it keeps, every trial of the search (a table), and the summary.

    `family` holds the networks at all budgets of a family, by the cost_ratio asked for; empty for a single budget.
    """

    module: Any
    policy: Policy
    trials: pd.DataFrame
    summary: Summary
    family: Mapping[float, Any] = field(default_factory=dict)


def compress(
    model: Any,
    *,
    train: Any,
    test: Any,
    search: Any = None,
    searcher: str = "amc",
    budget: float | Sequence[float] = 0.5,
    resource: str = "macs",
    folder: str | Path | None = None,
    overrides: Sequence[str] = (),
) -> Compressed:
    """Searches which channels of `model` to keep within `budget` (cost_ratio of `resource`), and returns the result.

    Several budgets make a family: one search at the lowest, whose network is the result, and a network for each.

    `train`, `test` and optionally `search` are datasets, loaders or (images, labels) of ready float images; the search
    split is carved out of `train` when it isn't given. `overrides` are the command line's, such as
    ``["searcher.num_steps=50", "finetune.epochs=0"]``. `folder` keeps the run, and resumes one that was interrupted;
    without it nothing is left behind. `model` is not changed. Raises ValueError for what the caller can mend.
    """
    limits = f"budget.cost_ratio={budget}" if isinstance(budget, int | float) else f"budget.cost_ratios={list(budget)}"
    options = [f"searcher={searcher}", f"budget={resource}", limits, "dataset=given"]
    config = compose_config([*options, "model=given", "run_name=compress", *overrides])
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(folder) if folder is not None else Path(scratch) / "run"
        with RunFolder(path, config, ignore=job.irrelevant(config)) as run_folder:
            given = {"train": train, "test": test, "search": search, "seed": config["seed"]}
            splits = make(config["dataset"]["build"], given, place="dataset.build")
            parts = assemble(config, splits=splits, model=copy.deepcopy(model).eval(), once=run_folder.once)
            summary = job.summary_of(config, run_folder, parts)
            policy, module = job.result(run_folder, parts)
            family = job.family_result(run_folder, parts)
            trials = trials_frame(path / TRIALS_FILE)
    for network in (module, *family.values()):
        network.train(model.training)
    return Compressed(module=module, policy=policy, trials=trials, summary=summary, family=family)
