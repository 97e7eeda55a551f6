"""A small comparison with its run folders, for the tests of the page that shows one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from compsearch.comparison.comparison import KEPT_COLUMNS, NETWORK_COLUMNS, TRIAL_COLUMNS, Comparison, Run
from compsearch.space import Policy
from compsearch.summary import Latency, NetworkRow, SearchCost, Summary

FACET = "resnet20 on digits"
SIZES = {"layer1.0.conv1": 16, "layer2.0.conv1": 32, "layer3.0.conv1": 64}
DENSE_MACS, DENSE_PARAMS = 40e6, 270_000
NUM_TRIALS = 6
#: Test accuracy before fine-tuning by searcher and budget; a seed adds a hundredth, fine-tuning five.
ACCURACIES = {("amc", 0.3): 0.70, ("amc", 0.5): 0.80, ("legr", 0.3): 0.74, ("legr", 0.5): 0.83}
COUNTS = {0.3: {"layer1.0.conv1": 4, "layer2.0.conv1": 16, "layer3.0.conv1": 8}, 0.5: dict.fromkeys(SIZES, 12)}


class _Maker:
    """Collects the rows of one comparison while its runs are written to disk."""

    def __init__(self, results: Path, facet: str) -> None:
        self.results, self.facet = results, facet
        self.runs: list[Run] = []
        self.networks: list[dict[str, Any]] = []
        self.trials: list[dict[str, Any]] = []
        self.kept: list[dict[str, Any]] = []

    def add(self, searcher: str, budget: float, seed: int, *, name: str = "", is_finished: bool = True) -> None:
        name = name or f"{searcher}-resnet20-digits-macs{budget:g}-seed{seed}"
        folder = self.results / name
        folder.mkdir(parents=True)
        config = {"searcher": {"kind": searcher}, "seed": seed, "budget": {"cost_ratio": budget}, "dataset": "digits"}
        (folder / "config.yaml").write_text("{}\n")
        shared = {
            "run": name,
            "facet": self.facet,
            "series": searcher,
            "searcher": searcher,
            "variant": "",
            "seed": seed,
            "resource": "macs",
            "budget": budget,
        }
        self._write_trials(folder, shared)
        summary = self._finish(folder, shared) if is_finished else None
        policies = {None: Policy.from_json(json.loads((folder / "policy.json").read_text()))} if is_finished else {}
        settings = {"searcher": searcher, "seed": seed, "budget.cost_ratio": budget, "finetune.epochs": 2 + (seed > 0)}
        command = f"python -m compsearch searcher={searcher} budget.cost_ratio={budget:g} seed={seed}"
        self.runs.append(
            Run(
                *(folder, config, summary, searcher, "", seed, self.facet, searcher, settings, command),
                policies=policies,
            )
        )

    def _write_trials(self, folder: Path, shared: dict[str, Any]) -> None:
        lines = []
        for index in range(NUM_TRIALS):
            # Improves on every second trial.
            accuracy = 0.5 + 0.02 * (index if index % 2 == 0 else 0) + 0.01 * shared["seed"]
            self.trials.append(
                {
                    **shared,
                    "index": index,
                    "accuracy": accuracy,
                    "objective": -accuracy,
                    "cost_ratio": 0.98 * shared["budget"],
                    "macs": 0.98 * shared["budget"] * DENSE_MACS,
                    "params": 0.9 * shared["budget"] * DENSE_PARAMS,
                    "wall_s": 2.0 * index + 1.0,
                    "cpu_s": 1.5 * index + 1.0,
                }
            )
            policy = {"space": "s", "kept": {}, "operations": {}}
            lines.append(json.dumps({"index": index, "counts": COUNTS[shared["budget"]], "policy": policy}))
        (folder / "trials.jsonl").write_text("\n".join(lines) + "\n")

    def _finish(self, folder: Path, shared: dict[str, Any]) -> Summary:
        budget, seed = shared["budget"], shared["seed"]
        counts = COUNTS[budget]
        kept = {name: f"0-{count - 1}" for name, count in counts.items()}
        (folder / "policy.json").write_text(json.dumps({"space": "s", "kept": kept, "operations": {}}))
        (folder / "summary.json").write_text("{}\n")
        rows = [
            NetworkRow("dense", DENSE_MACS, DENSE_PARAMS, 0.97, 0.96, latency=Latency(2.0, 1.9, 2.2, "torch, 1 core"))
        ]
        self.networks.append(self._network(shared, "dense", 0.96, 1.0))
        for stage, gain in (("before", 0.0), ("after", 0.05)):
            accuracy = ACCURACIES[shared["searcher"], budget] + 0.01 * seed + gain
            self.networks.append(self._network(shared, stage, accuracy, 0.97 * budget))
        self.kept += [{**shared, "group": name, "keep_ratio": counts[name] / SIZES[name]} for name in counts]
        return Summary(
            run_name=folder.name,
            searcher=shared["searcher"],
            model="resnet20",
            dataset="digits",
            seed=seed,
            budget=("macs", budget),
            networks=tuple(rows),
            search_cost=SearchCost(NUM_TRIALS, 0, 600, 12.0),
            git_commit="0123456789abcdef",
            versions={"python": "3.11.7", "torch": "2.15.0" if seed else "2.14.0"},
            notes=("the weights were given",),
            machine="a processor, 2 cores",
        )

    def _network(self, shared: dict[str, Any], stage: str, accuracy: float, ratio: float) -> dict[str, Any]:
        is_dense = stage == "dense"
        latency_ratio = 1.0 if is_dense else 0.5 * (1 + ratio)
        changed = {"series": "dense", "searcher": "dense", "resource": "", "budget": math.nan} if is_dense else {}
        return {
            **shared,
            **changed,
            "stage": stage,
            "accuracy_test": accuracy,
            "accuracy_search": accuracy + 0.01,
            "top5_test": 0.99,
            "macs": ratio * DENSE_MACS,
            "params": ratio * DENSE_PARAMS,
            "latency_ms": 2.0 * latency_ratio,
            "macs_ratio": ratio,
            "params_ratio": ratio,
            "latency_ratio": latency_ratio,
            "latency_p10": latency_ratio - 0.02,
            "latency_p90": latency_ratio + 0.03,
            "device": "torch, 1 core",
            "trials": 0 if is_dense else NUM_TRIALS,
            "images": 0 if is_dense else 600,
            "wall_s": 12.0,
            "cpu_s": 10.0,
            "is_learned_elsewhere": False,
        }

    def comparison(self, remarks: tuple[str, ...]) -> Comparison:
        return Comparison(
            runs=tuple(self.runs),
            networks=pd.DataFrame(self.networks, columns=list(NETWORK_COLUMNS)),
            trials=pd.DataFrame(self.trials, columns=list(TRIAL_COLUMNS)),
            kept=pd.DataFrame(self.kept, columns=list(KEPT_COLUMNS)),
            remarks=remarks,
        )


@pytest.fixture
def page_comparison(tmp_path: Path) -> Callable[..., Comparison]:
    """Makes a comparison of two searchers at two budgets, two seeds each, and an unfinished run; folders included."""

    def make(*, facet: str = FACET, extra_run: str = "", remarks: tuple[str, ...] = ()) -> Comparison:
        maker = _Maker(tmp_path / "results", facet)
        for searcher, budget in ACCURACIES:
            for seed in (0, 1):
                maker.add(searcher, budget, seed)
        maker.add("amc", 0.3, 2, name=extra_run, is_finished=bool(extra_run))
        return maker.comparison(remarks)

    return make
