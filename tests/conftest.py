"""Run folders written by hand, as a search leaves them."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from compsearch.summary import FamilyMember, Latency, NetworkRow, SearchCost, Summary

DEVICE = "torch (torch 2) on a CPU, batch 1"
GROUPS = {"conv1": 16, "layer1.0.conv1": 8}
_TARGETS = {"random": "searchers.random_search.RandomSearch", "legr": "searchers.legr.LeGR", "amc": "searchers.amc.AMC"}
_CONFIG: dict[str, Any] = {
    "searcher": {"_target_": "searchers.amc.AMC", "num_steps": 3, "state": "paper"},
    "model": {"name": "tiny", "build": {"_target_": "backends.zoo.cifar_resnet", "depth": 20}, "weights": "tiny.pt"},
    "dataset": {"name": "digits", "build": {"_target_": "backends.datasets.digits", "search_images": 280}},
    "budget": {"resource": "macs", "cost_ratio": 0.5, "limit": None, "cost_ratios": None, "label": "macs0.5"},
    "space": {"_target_": "backends.groups.trace", "divisor": 8, "min_choices": 8, "min_keep_ratio": 0.1, "freeze": []}
    | {"coupled": True, "skip_blocks": None},
    "recover": {"_target_": "backends.batch_norm.BatchNormRecovery", "batch_size": 128},
    "finalist": {"num": 5, "recover": {"_target_": "backends.batch_norm.BatchNormRecovery", "batch_size": 128}},
    "pretrain": {"_target_": "backends.training.Recipe", "epochs": 30},
    "finetune": {"_target_": "backends.training.Recipe", "epochs": 2, "lr": 0.01},
    "runtime": {"_target_": "backends.runtimes.TorchRuntime", "channels_last": False},
    "seed": 0,
    "trials": 3,
    "device": "auto",
    "run_name": "",
    "variant": "",
}
#: In settings: the configuration of an earlier version, which doesn't have this one.
ABSENT = object()


def network(
    name: str, ratio: float = 1.0, accuracy: float = 0.95, *, device: str = DEVICE, timed: float | None = None
) -> NetworkRow:
    """One of `ratio` of the dense one's 1e6 MACs, 1000 parameters and 2 ms; `timed` in turns with it.

    `accuracy` is the search split's, the test split's is a hundredth lower.
    """
    shares = (None, None, None) if timed is None else (timed, timed - 0.1, timed + 0.1)
    latency = Latency(2.0 * ratio, 1.5 * ratio, 2.5 * ratio, device, 10, *shares) if device else None
    return NetworkRow(name, 1e6 * ratio, round(1000 * ratio), accuracy, accuracy - 0.01, 0.99, latency)


def policy(*counts: int, operations: Mapping[str, str] | None = None, space: str = "abc") -> dict[str, Any]:
    kept = {group: f"0-{count - 1}" for group, count in zip(GROUPS, counts, strict=True)}
    return {"space": space, "kept": kept, "operations": dict(operations or {})}


def trial(index: int, accuracy: float | None = 0.8, cost_ratio: float = 0.5) -> dict[str, Any]:
    return {
        "step": index,
        "index": index,
        "objective": accuracy,
        "accuracy": accuracy,
        "cost_ratio": cost_ratio,
        "costs": {"macs": 1e6 * cost_ratio, "params": 500.0},
        "failure": "",
        "wall_s": 10.0 * (index + 1),
        "cpu_s": 9.0 * (index + 1),
        "policy": policy(16, 8),
    }


def _config(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    config = copy.deepcopy(_CONFIG) | {"run_name": name}
    for key, value in settings.items():
        *parents, last = key.split(".")
        node = config
        for parent in parents:
            node = node[parent]
        node[last] = value
        if value is ABSENT:
            del node[last]
    return config


class _Writer:
    """Writes run folders below `root`: of AMC at half of the MACs, three trials, finished, where nothing else is said.

    `settings` are by dotted keys. `trials` are the lines of trials.jsonl; `policies` by the cost_ratio asked for, or
    one under None.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def __call__(
        self,
        name: str,
        searcher: str = "amc",
        *,
        dense: NetworkRow | None = None,
        settings: Mapping[str, Any] | None = None,
        rows: Sequence[NetworkRow] = (network("compressed", 0.5, 0.9), network("fine-tuned", 0.5, 0.91)),
        family: Sequence[FamilyMember] = (),
        trials: Sequence[Mapping[str, Any]] | None = None,
        policies: Mapping[float | None, Mapping[str, Any]] | None = None,
        finished: bool = True,
        groups: Mapping[str, int] | None = None,
    ) -> Path:
        path = self.root / name
        path.mkdir(parents=True)
        target = _TARGETS.get(searcher, f"searchers.{searcher}.{searcher.title()}")
        config = _config(name, {"searcher._target_": target, **(settings or {})})
        (path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        written = [trial(index) for index in range(3)] if trials is None else trials
        (path / "trials.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written))
        if not finished:
            return path
        found = policies or {None: policy(8, 4)}
        budget = config["budget"]
        summary = Summary(
            run_name=name,
            searcher=target.rsplit(".", 1)[-1],
            model=config["model"]["name"],
            dataset=config["dataset"]["name"],
            seed=config["seed"],
            budget=(budget["resource"], min(budget.get("cost_ratios") or [budget["cost_ratio"]])),
            networks=(dense or network("dense"), *rows),
            search_cost=SearchCost(len(written) - (len(found) - 1), 0, 840, 30.0, 25.0),
            family=tuple(family),
            variant=config.get("variant", ""),
            groups=GROUPS if groups is None else groups,
        )
        (path / "summary.json").write_text(json.dumps(summary.to_json()))
        (path / "policy.json").write_text(json.dumps(found[min(found, key=lambda ratio: ratio or 0.0)]))
        if None not in found:
            members = [{"cost_ratio": ratio, "policy": kept} for ratio, kept in found.items()]
            (path / "family.json").write_text(json.dumps({"members": members}))
        return path


@pytest.fixture
def run_folders(tmp_path: Path) -> SimpleNamespace:
    """`write` makes a run folder below `root`; the others make what it is given."""
    root = tmp_path / "results"
    return SimpleNamespace(
        root=root, write=_Writer(root), network=network, trial=trial, policy=policy, absent=ABSENT, device=DEVICE
    )
