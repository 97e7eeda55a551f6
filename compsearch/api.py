"""The search as a function, for people who have a network and data in hand."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
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

    `recovered` is the network before fine-tuning, the better one where fine-tuning did harm: a note of the summary says
    so. It is None where its file is gone from a kept folder. `family` holds the networks at all budgets of a family, by
    the cost_ratio asked for; empty for a single budget.
    """

    module: Any
    policy: Policy
    trials: pd.DataFrame
    summary: Summary
    recovered: Any
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

    `model` is a torch.nn.Module from a batch of images to logits [B, num_classes]; it is not changed. `train`, `test`
    and optionally `search` are datasets, lists of (image, label), loaders or (images, labels), of float images
    [C, H, W] normalised as `model` needs them, labels from 0; the search split is carved out of `train` when it isn't
    given. `overrides` are the command line's, such as ``["searcher.num_steps=50", "finetune.epochs=0"]``. `folder`
    keeps the run, and resumes one that was interrupted; without it nothing is left behind. Raises ValueError for what
    the caller can mend.
    """
    is_list = isinstance(overrides, Sequence) and not isinstance(overrides, str)
    if not is_list or not all(isinstance(override, str) for override in overrides):
        raise ValueError(f'`overrides` must be a list of strings, as ["finetune.epochs=1"], but got {overrides!r}')
    options = [f"searcher={searcher}", f"budget={resource}", _limits(budget), "dataset=given"]
    config = compose_config([*options, "model=given", "run_name=compress", *overrides])
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(folder) if folder is not None else Path(scratch) / "run"
        with RunFolder(path, config, ignore=job.irrelevant(config)) as run_folder:
            given = {"train": train, "test": test, "search": search, "seed": config["seed"]}
            splits = make(config["dataset"]["build"], given, place="dataset.build")
            in_hand = {"model": model, "splits": splits}
            dense = make({"_target_": "backends.given_data.network_of"}, in_hand, place="model")
            parts = assemble(config, splits=splits, model=dense, once=run_folder.once)
            summary = job.summary_of(config, run_folder, parts)
            policy, module, recovered = job.result(run_folder, parts)
            family = job.family_result(run_folder, parts)
            trials = trials_frame(path / TRIALS_FILE)
    for network in (module, recovered, *family.values()):
        if network is not None:
            network.train(model.training)
    return Compressed(module=module, policy=policy, trials=trials, summary=summary, recovered=recovered, family=family)


def _limits(budget: object) -> str:
    """The override that asks for `budget`."""
    if isinstance(budget, Real):
        return f"budget.cost_ratio={float(budget)}"
    if isinstance(budget, Sequence) and all(isinstance(ratio, Real) for ratio in budget):
        return f"budget.cost_ratios={[float(ratio) for ratio in budget]}"
    raise ValueError(f"`budget` must be a number or a list of numbers, each a cost_ratio, but got {budget!r}")
