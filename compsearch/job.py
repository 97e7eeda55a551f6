"""One run from configuration to summary: prepare, search, finish, report.

Each stage is done once, however often the run is killed.
"""

from __future__ import annotations

import logging
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from compsearch import runner
from compsearch.budget import Budget, budget_from_limit, budget_from_ratio
from compsearch.composition import check, make, takes
from compsearch.protocols import CostModel, Evaluator, Searcher, Workbench
from compsearch.recorder import Recorder
from compsearch.report.pareto import Point, save_pareto, uniform_verdict
from compsearch.report.policy_plot import save_policy
from compsearch.report.search_plot import save_search
from compsearch.report.table import summary_table
from compsearch.run_folder import SUMMARY_FILE, RunFolder
from compsearch.space import Policy, SearchSpace
from compsearch.summary import Latency, NetworkRow, SearchCost, Summary
from compsearch.trial import Trial

_logger = logging.getLogger(__name__)

#: Settings that no result depends on: a run may be resumed with others.
IRRELEVANT = (
    "device",
    "cache_dir",
    "run_name",
    "dataset.build.num_workers",
    "evaluator.num_workers",
    "workbench.batch_size",
)
POLICY_FILE = "policy.json"
MODEL_FILE = "model.pt"
RECOVERED_FILE = "recovered.pt"
FINETUNE_CHECKPOINT = "finetune.pt"


@dataclass(frozen=True)
class Parts:
    """What a run is made of."""

    space: SearchSpace
    evaluator: Evaluator
    cost_models: Mapping[str, CostModel]
    cost_model: CostModel
    budget: Budget | None
    searcher: Searcher
    baseline: Searcher
    workbench: Workbench


def run(config: Mapping[str, Any], path: Path) -> Summary:
    """Does, or goes on with, or only reports, the run of `config` in the folder `path`.

    Raises ValueError for what a user can mend, `runner.Interrupted` on Ctrl-C during the search.
    """
    with RunFolder(path, config, ignore=IRRELEVANT) as folder:
        summary = _finished(folder)
        if summary is None:
            summary = summary_of(config, folder, assemble(config))
        else:
            _logger.info("%s is finished; delete it to run it again", path)
        print(f"\n{summary_table(summary)}\n\n{_files(folder.path)}")
    return summary


def inspect(config: Mapping[str, Any]) -> str:
    """The table of groups of the configured network, with what is frozen and why. Trains and loads nothing."""
    check(config)
    network = _network({**config, "model": {**config["model"], "weights": "random"}})
    space: SearchSpace = make(config["space"], network, place="space")
    return space.describe()


def assemble(config: Mapping[str, Any], *, splits: Any = None, model: Any = None) -> Parts:
    """Builds everything `config` names, each from the ones before; `splits` and `model` may be given ready-made.

    What depends on shapes alone comes first, so that a budget out of reach is refused before a network is trained.
    """
    check(config)
    available = _network(config, splits=splits, model=model)
    splits = available["splits"]
    space: SearchSpace = make(config["space"], available, place="space")
    if not space.groups:
        raise ValueError(f"a network must have channels to prune, but {config['model']['name']} has none: see inspect")
    available["space"] = space
    cost_models: dict[str, CostModel] = make(config["cost_models"], available, place="cost_models")
    cost_model, budget = _budget(config["budget"], cost_models, space)
    available |= {"cost_models": list(cost_models.values()), "cost_model": cost_model, "budget": budget}
    if model is None:
        _give_weights(config, available)
    train = {**available, "split": splits.train}
    available["calibration"] = make(config["calibration"], train, place="calibration")
    more = {**config["calibration"], "num_images": config["finalist"]["calibration_images"]}
    final_calibration = make(more, train, place="finalist.calibration_images")
    available["importance"] = make(config["importance"], available, place="importance")
    available["split"] = splits.search
    recovery = make(config["recover"], available, place="recover")
    thorough = {**available, "calibration": final_calibration}
    final_recovery = make(config["finalist"]["recover"], thorough, place="finalist.recover")
    available["evaluator"] = make(config["evaluator"], {**available, "recovery": recovery}, place="evaluator")
    finetune = make(config["finetune"], available, place="finetune")
    workbench = make(
        config["workbench"], {**available, "recovery": final_recovery, "recipe": finetune}, place="workbench"
    )
    return Parts(
        space=space,
        evaluator=available["evaluator"],
        cost_models=cost_models,
        cost_model=cost_model,
        budget=budget,
        searcher=make(config["searcher"], available, place="searcher"),
        baseline=make(config["baseline"], available, place="baseline"),
        workbench=workbench,
    )


def _network(config: Mapping[str, Any], *, splits: Any = None, model: Any = None) -> dict[str, Any]:
    """The first collaborators: seed, device, splits and the dense network, as yet without its weights."""
    device = make(config["device_resolver"], {"device": config["device"]}, place="device")
    available = {"seed": config["seed"], "device": device}
    if splits is None:
        splits = make(config["dataset"]["build"], available, place="dataset.build")
    available |= {"splits": splits, "num_classes": splits.num_classes, "image_size": splits.image_size}
    if model is None:
        node, choice = config["model"]["build"], config["model"]["weights"]

        def build(weights: str | None) -> Any:
            if weights is not None and not takes(node, "weights", place="model.build"):
                raise ValueError(
                    f"`model.weights` must be trained, random or the path of a state_dict for "
                    f"{config['model']['name']}, but got {choice!r}, which is no file"
                )
            return make(node, {**available, "weights": weights}, place="model.build")

        model = make(config["network"], {**available, "build": build, "weights": choice}, place="network")
    images, _ = next(iter(splits.train.batches(2)))
    return {**available, "model": model.to(device), "example_input": images.to(device)}


def _give_weights(config: Mapping[str, Any], available: Mapping[str, Any]) -> None:
    recipe = make(config["pretrain"], available, place="pretrain")
    description = {"description": {"build": config["model"]["build"]}, "name": config["model"]["name"]}
    choice = {"weights": config["model"]["weights"], "cache_dir": config["cache_dir"], "recipe": recipe}
    make(config["weights"], {**available, **description, **choice}, place="weights")


def _budget(
    node: Mapping[str, Any], cost_models: Mapping[str, CostModel], space: SearchSpace
) -> tuple[CostModel, Budget | None]:
    resource, cost_ratio, limit = node["resource"], node["cost_ratio"], node["limit"]
    if resource not in cost_models:
        raise ValueError(f"`budget.resource` must be one of {', '.join(cost_models)}, but got {resource!r}")
    if cost_ratio is not None and limit is not None:
        raise ValueError(
            f"only one of budget.cost_ratio and budget.limit may be set, but got {cost_ratio=} and {limit=}; "
            "add budget.cost_ratio=null"
        )
    cost_model = cost_models[resource]
    if limit is not None:
        return cost_model, budget_from_limit(limit=limit, cost_model=cost_model, space=space)
    if cost_ratio is not None:
        return cost_model, budget_from_ratio(cost_ratio=cost_ratio, cost_model=cost_model, space=space)
    return cost_model, None


def _finished(folder: RunFolder) -> Summary | None:
    found = folder.result("summary")
    return None if found is None else Summary.from_json(found)


def result(folder: RunFolder, parts: Parts) -> tuple[Policy, Any]:
    """The policy a finished run chose, and its network with the final weights."""
    chosen = folder.result("finalist")
    assert chosen is not None, "only a finished run has a result"
    policy = Policy.from_json(chosen["policy"])
    return policy, parts.workbench.load(policy, _read_state(folder.path / MODEL_FILE))


def summary_of(config: Mapping[str, Any], folder: RunFolder, parts: Parts) -> Summary:
    """Searches, recovers, fine-tunes and measures the best policy, draws the plots; goes on where `folder` stands."""
    finished = _finished(folder)
    if finished is not None:
        return finished
    recorder = Recorder(folder)
    trials = runner.search(parts.searcher, recorder, budget=parts.budget)
    [baseline] = parts.baseline.step() if parts.budget is not None else [None]
    chosen = folder.once("finalist", lambda: _choose(config, folder, parts, trials))
    policy = Policy.from_json(chosen["policy"])
    folder.once("finetune", lambda: _finetune(config, folder, parts, policy))
    rows = folder.once("report", lambda: _report(config, folder, parts, policy, baseline))
    summary = _summary(config, recorder, parts, trials, rows)
    _draw(config, folder.path, parts, trials, summary, policy, baseline)
    folder.finish("summary", summary.to_json())
    folder.write_json(SUMMARY_FILE, summary.to_json())
    return summary


def _choose(config: Mapping[str, Any], folder: RunFolder, parts: Parts, trials: Sequence[Trial]) -> dict[str, Any]:
    """Recovers the best trials as finalists, compares them on the search split and keeps the best."""
    done = [trial for trial in trials if trial.objective is not None]
    if not done:
        raise ValueError(
            f"a search must have a trial that did not fail, but all {len(trials)} did: {trials[-1].failure}"
        )
    ranked = sorted(done, key=lambda trial: trial.objective or 0.0, reverse=True)
    # Without a budget the objective weighs cost too, and accuracy alone can't choose between finalists.
    num = config["finalist"]["num"] if parts.budget is not None else 1
    policies = list(dict.fromkeys(trial.policy for trial in ranked))[:num]
    best, best_accuracy, best_network = policies[0], -1.0, None
    for policy in policies:
        network = parts.workbench.compress(policy)
        accuracy = parts.workbench.measure(network, "search").accuracy
        _logger.info("finalist: accuracy %.2f%% on the search split", 100 * accuracy)
        if accuracy > best_accuracy or best_network is None:
            best, best_accuracy, best_network = policy, accuracy, network
    folder.write_json(POLICY_FILE, best.to_json())
    folder.write_torch(RECOVERED_FILE, parts.workbench.state(best_network))
    return {"policy": best.to_json(), "accuracy_search": best_accuracy}


def _finetune(config: Mapping[str, Any], folder: RunFolder, parts: Parts, policy: Policy) -> dict[str, Any]:
    recovered = parts.workbench.load(policy, _read_state(folder.path / RECOVERED_FILE))
    checkpoint = folder.path / FINETUNE_CHECKPOINT
    network = parts.workbench.finetune(recovered, checkpoint) if config["finetune"]["epochs"] else recovered
    folder.write_torch(MODEL_FILE, parts.workbench.state(network))
    checkpoint.unlink(missing_ok=True)
    return {"epochs": config["finetune"]["epochs"]}


def _report(
    config: Mapping[str, Any], folder: RunFolder, parts: Parts, policy: Policy, baseline: Trial | None
) -> dict[str, Any]:
    """The rows of the table. The only place that reads the test split, once per network."""
    bench = parts.workbench
    full = parts.space.full_policy()
    recovered = bench.load(policy, _read_state(folder.path / RECOVERED_FILE))
    networks = {"dense": (full, bench.dense()), "compressed": (policy, recovered)}
    latencies = bench.latency_ms({name: network for name, (_, network) in networks.items()})
    if config["finetune"]["epochs"]:
        networks["fine-tuned"] = (policy, bench.load(policy, _read_state(folder.path / MODEL_FILE)))
        # The same shapes, hence the same time.
        latencies = {**latencies, "fine-tuned": latencies["compressed"]}
    if baseline is not None and baseline.policy != policy:
        networks["uniform"] = (baseline.policy, bench.compress(baseline.policy))
    rows = []
    for name, (of, network) in networks.items():
        search, test = bench.measure(network, "search"), bench.measure(network, "test")
        row = {"name": name, "accuracy_search": search.accuracy, "accuracy_test": test.accuracy}
        row |= {"top5_test": test.top5, "latency": latencies.get(name)}
        rows.append(row | {resource: model.cost(of) for resource, model in parts.cost_models.items()})
    return {"networks": rows}


def _summary(
    config: Mapping[str, Any], recorder: Recorder, parts: Parts, trials: Sequence[Trial], report: Mapping[str, Any]
) -> Summary:
    rows = tuple(
        NetworkRow(
            name=row["name"],
            macs=row["macs"],
            params=int(row["params"]),
            accuracy_search=row["accuracy_search"],
            accuracy_test=row["accuracy_test"],
            top5_test=row["top5_test"],
            latency=Latency(**row["latency"]) if row["latency"] else None,
        )
        for row in report["networks"]
    )
    notes = []
    if config["model"]["weights"] not in ("trained", "random"):
        notes.append(
            "the weights were given, so they may have been trained on the search split's images: its accuracies "
            "compare policies with each other, the test split's tell how good they are"
        )
    verdict = uniform_verdict(_points(rows, "test", parts))
    if verdict:
        notes.append(f"on the test split, before fine-tuning, {verdict}")
    return Summary(
        run_name=config["run_name"],
        searcher=config["searcher"]["_target_"].rsplit(".", 1)[-1],
        model=config["model"]["name"],
        dataset=config["dataset"]["name"],
        seed=config["seed"],
        budget=(parts.budget.resource, parts.budget.cost_ratio) if parts.budget else None,
        networks=rows,
        search_cost=SearchCost(
            num_trials=len(trials),
            num_failed=sum(trial.objective is None for trial in trials),
            num_images=sum(trial.measurement.num_images for trial in trials),
            wall_s=recorder.wall_s,
        ),
        recovery=_name(config["finalist"]["recover"]),
        git_commit=_git_commit(),
        versions={
            "python": platform.python_version(),
            **{package: metadata.version(package) for package in ("torch", "torchvision", "numpy")},
        },
        notes=tuple(notes),
    )


def _points(rows: Sequence[NetworkRow], split: str, parts: Parts) -> list[Point]:
    resource = parts.cost_model.resource
    points = []
    for row in rows:
        accuracy = row.accuracy_search if split == "search" else row.accuracy_test
        if accuracy is not None:
            points.append(Point(row.name, float(getattr(row, resource)) / float(getattr(rows[0], resource)), accuracy))
    return points


def _draw(
    config: Mapping[str, Any],
    path: Path,
    parts: Parts,
    trials: Sequence[Trial],
    summary: Summary,
    policy: Policy,
    baseline: Trial | None,
) -> None:
    title = (
        f"{summary.model} on {summary.dataset}, {summary.searcher}, {config['budget']['label']}, seed {summary.seed}"
    )
    resource = parts.cost_model.resource
    points = _points(summary.networks, "search", parts)
    save_pareto(
        path / "pareto.png",
        trials,
        resource=resource,
        points=points,
        title=title,
        split="search",
        recovery=_name(config["recover"]),
        point_recovery=f"{_name(config['finalist']['recover'])} on {config['finalist']['calibration_images']} images",
    )
    save_policy(path / "policy.png", parts.space, policy, title=title, reference=baseline.policy if baseline else None)
    references = {"uniform": baseline.objective} if baseline and baseline.objective is not None else {}
    save_search(
        path / "search.png",
        trials,
        resource=resource,
        budget=parts.budget,
        title=title,
        references=references if parts.budget else {},
    )


def _name(node: Mapping[str, Any]) -> str:
    """What a recovery is called in plots and tables: its class in words; several in turn joined by plus signs."""
    if "recoveries" in node:
        return " + ".join(_name(part) for part in node["recoveries"])
    words = str(node["_target_"]).rsplit(".", 1)[-1].removesuffix("Recovery")
    return "none" if words == "No" else re.sub(r"(?<=[a-z])(?=[A-Z])", " ", words).lower()


def _read_state(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def _git_commit() -> str:
    here = Path(__file__).resolve().parent
    try:
        answer = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False
        )
    except OSError:  # no git on this machine
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""


def _files(path: Path) -> str:
    names = ("pareto.png", "policy.png", "search.png", POLICY_FILE, MODEL_FILE)
    return "\n".join(f"{path / name}" for name in names if (path / name).exists())
