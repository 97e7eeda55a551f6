"""The configuration's types: what Hydra checks before anything runs.

`Any` marks the nodes that name a class (`_target_`) and hold its hyperparameters; those are checked against the
class's own signature when it is built.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

MISSING: Any = "???"
#: The least that a number may be, where it takes long until what needs it is built.
LEAST = {"seed": 0, "trials": 1, "finalist.num": 1}


@dataclass
class BudgetConfig:
    """The resource that is limited; exactly one of `cost_ratio` (of the dense cost) and `limit` (absolute), or none.

    `cost_ratios` make a family: one search, at the lowest, for all of them.
    """

    resource: str = MISSING
    cost_ratio: float | None = None
    limit: float | None = None
    cost_ratios: list[float] | None = None
    label: str = MISSING


@dataclass
class ModelConfig:
    """A network and its weights: trained | random | a file | a torchvision weights name."""

    name: str = MISSING
    build: Any = MISSING
    weights: str = MISSING


@dataclass
class DatasetConfig:
    """Images, and how long networks train on them."""

    name: str = MISSING
    build: Any = MISSING
    calibration_images: int = MISSING
    batch_size: int = MISSING
    pretrain_epochs: int = MISSING
    pretrain_lr: float = MISSING
    finetune_epochs: int = MISSING


@dataclass
class FinalistConfig:
    """The best `num` trials are recovered with `recover` and compared on the search split; the best one is kept.

    Where its latency is limited, it is measured, and cut down up to `repairs` times until it takes the budget less
    `latency_margin` of it at most.
    """

    num: int = MISSING
    repairs: int = MISSING
    latency_margin: float = MISSING
    calibration_images: int = MISSING
    recover: Any = MISSING


@dataclass
class Config:
    """One run."""

    searcher: Any = MISSING
    supernet: Any = MISSING
    model: ModelConfig = field(default_factory=ModelConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    surgery: Any = MISSING
    space: Any = MISSING
    block: list[int] = MISSING
    stages: list[float] | None = None
    importance: Any = MISSING
    recover: Any = MISSING
    evaluator: Any = MISSING
    finalist: FinalistConfig = field(default_factory=FinalistConfig)
    pretrain: Any = MISSING
    finetune: Any = MISSING
    inventory: Any = MISSING
    cost_models: Any = MISSING
    runtime: Any = MISSING
    alignment: Any = MISSING
    latency: Any = MISSING
    timed_trials: int = MISSING
    sizes: Any = MISSING
    baseline: Any = MISSING
    network: Any = MISSING
    weights: Any = MISSING
    device_resolver: Any = MISSING
    calibration: Any = MISSING
    loader: Any = MISSING
    workbench: Any = MISSING
    seed: int = 0
    trials: int = MISSING
    device: str = "auto"
    cache_dir: str = MISSING
    run_name: str = MISSING
    variant: str = ""
    swept: str = ""
    variants: dict[str, list[str]] = field(default_factory=dict)


@dataclass
class ExportConfig:
    """What a finished run's network is written as. `onnx` and `program` name who writes each format."""

    format: str = MISSING
    cost_ratio: float | None = None
    num_images: int = MISSING
    onnx: Any = MISSING
    program: Any = MISSING


def setting_names(schema: type[Any]) -> list[str]:
    """What can be set at the top of a configuration of type `schema`."""
    names = [each.name for each in fields(schema)]
    return [*names, "experiment"] if schema is Config else names  # a choice of several settings, and none itself


def unknown_setting(key: str, names: Sequence[str]) -> str:
    """Says that the last part of the dotted `key` is none of `names`; names the nearest, or all where none is near."""
    parent, dot, name = key.rpartition(".")
    near = difflib.get_close_matches(name, names, n=1)
    way_out = f"did you mean {parent}{dot}{near[0]}?" if near else f"there are {', '.join(names) or 'none'}"
    return f"a setting must be known, but {key!r} is not; {way_out}"
