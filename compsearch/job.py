"""One run from configuration to summary: prepare, search, finish, report.

Each stage is done once, however often the run is killed.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import yaml  # type: ignore[import-untyped, unused-ignore]

from compsearch import runner
from compsearch.assembly import Parts, assemble, network_parts, searcher_settings
from compsearch.budget_check import within_budget
from compsearch.composition import check, make, takes
from compsearch.family import (
    FAMILY_FILE,
    Member,
    family_json,
    family_members,
    family_rows,
    family_trials,
    load_state,
)
from compsearch.inputs import check_weights_file
from compsearch.loading import MODEL_FILE, NETWORK_FILE, POLICY_FILE, RECOVERED_FILE
from compsearch.measuring import measured, network_row
from compsearch.notes import run_notes
from compsearch.recorder import Recorder
from compsearch.report.run_plots import PLOT_FILES, Drawn, draw_run, recovery_name
from compsearch.report.table import summary_table
from compsearch.reuse import LEARNED_FILE, learned_beside, lowest_ratio
from compsearch.run_folder import OVERRIDES_FILE, SUMMARY_FILE, RunFolder, RunFolderError
from compsearch.space import Policy, SearchSpace
from compsearch.stages import run_stages
from compsearch.summary import SearchCost, Summary
from compsearch.timed_trials import time_trials
from compsearch.trial import Trial

_logger = logging.getLogger(__name__)

#: Settings that no result of any searcher depends on: a run may be resumed with others.
IRRELEVANT = (
    "device",
    "cache_dir",
    "run_name",
    "variant",
    "variants",
    "swept",
    "trials",  # what follows from it stands with the searcher
    "dataset.build.num_workers",
    "evaluator.num_workers",
    "workbench.batch_size",
    "timed_trials",
)
TIMED_FILE = "latency.csv"
FINETUNE_CHECKPOINT = "finetune.pt"


def irrelevant(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The settings, dotted keys, that no result of `config` depends on: `IRRELEVANT`, and what its searcher ignores."""
    has_supernet = takes(config["searcher"], "supernet", place="searcher")
    return IRRELEVANT if has_supernet else (*IRRELEVANT, "supernet")


def run(
    config: Mapping[str, Any], path: Path, *, reuse: bool = False, overrides: Sequence[str] | None = None
) -> Summary:
    """Does, or goes on with, or only reports, the run of `config` in the folder `path`.

    `overrides` are what was typed to get `config`; they are kept for people who want to repeat the run.

    With `reuse`, a searcher that can start from what was learned takes it from a run beside this one, where there is
    one that differs in nothing but its budget, which must be no larger.

    Raises ValueError for what a user can mend, `runner.Interrupted` on Ctrl-C during the search.
    """
    with RunFolder(path, config, ignore=irrelevant(config)) as folder:
        if overrides is not None and not (path / OVERRIDES_FILE).exists():
            folder.write_text(OVERRIDES_FILE, yaml.safe_dump(list(overrides), width=1000))
        check_weights_file(config, folder)
        summary = _finished(folder)
        if summary is None:
            if config["stages"] is None:
                summary = _searched(config, folder, reuse=reuse)
            else:
                summary = run_stages(config, folder, _searched, ignore=irrelevant(config))
        else:
            _logger.info("%s is finished; delete it to run it again", path)
    return summary


def shown(summary: Summary, path: Path) -> str:
    """What a person gets to see of a finished run: its table, and what to look at in its folder."""
    names = (*PLOT_FILES, POLICY_FILE, MODEL_FILE, FAMILY_FILE)
    files = "\n".join(f"{path / name}" for name in names if (path / name).exists())
    return f"\n{summary_table(summary)}\n\n{files}"


def _searched(config: Mapping[str, Any], folder: RunFolder, *, reuse: bool = False) -> Summary:
    """The run of `config` in `folder`, which may be a stage of another one's."""
    summary = _finished(folder)
    if summary is None:
        learned = _learned(config, folder, reuse)
        summary = summary_of(config, folder, assemble(config, learned=learned.get("genome"), once=folder.once))
    return summary


def inspect(config: Mapping[str, Any]) -> str:
    """The table of groups of the configured network, with what is frozen and why. Trains and loads nothing."""
    check(config)
    network = network_parts({**config, "model": {**config["model"], "weights": "random"}})
    space: SearchSpace = make({**config["space"], **searcher_settings(config)}, network, place="space")
    return space.describe()


def _finished(folder: RunFolder) -> Summary | None:
    """The summary of a finished run, whose files are all there; those that can be written again are."""
    found = folder.result("summary")
    if found is None:
        return None
    chosen = folder.result("finalist")
    for name, content in ((SUMMARY_FILE, found), (POLICY_FILE, chosen and chosen["policy"])):
        if content and not _is_json(folder.path / name):
            _logger.info("%s is missing or damaged, and written again", folder.path / name)
            folder.write_json(name, content)
    if chosen is not None and not (folder.path / MODEL_FILE).is_file():
        raise RunFolderError(
            f"a finished run must have its files, but {folder.path / MODEL_FILE} is missing; bring it back, or delete "
            "the folder to run it again"
        )
    return Summary.from_json(found)


def _is_json(path: Path) -> bool:
    try:
        return isinstance(json.loads(path.read_bytes()), dict)
    except (OSError, ValueError):
        return False


def _learned(config: Mapping[str, Any], folder: RunFolder, reuse: bool) -> dict[str, Any]:
    """What this run takes over from one beside it: run, cost_ratio, genome; empty for nothing. Decided once."""
    if not takes(config["searcher"], "learned", place="searcher"):
        return {}

    def look() -> dict[str, Any]:
        return learned_beside(folder.path, config, ignore=irrelevant(config)) if reuse else {}

    learned = folder.once("learned", look)
    if learned:
        _logger.info("nothing to learn: %s did at cost_ratio %g", learned["run"], learned["cost_ratio"])
    return learned


def result(folder: RunFolder, parts: Parts) -> tuple[Policy, Any, Any]:
    """The policy a finished run chose, its network with the final weights, and with those before fine-tuning.

    The last is None where somebody has taken their file away.
    """
    chosen = folder.result("finalist")
    assert chosen is not None, "only a finished run has a result"
    policy = Policy.from_json(chosen["policy"])
    final, before = (folder.path / name for name in (MODEL_FILE, RECOVERED_FILE))
    recovered = parts.workbench.load(policy, load_state(before)) if before.is_file() else None
    return policy, parts.workbench.load(policy, load_state(final)), recovered


def family_result(folder: RunFolder, parts: Parts) -> dict[float, Any]:
    """The networks of a finished run's family, by the cost_ratio asked for; empty where it has none."""
    path = folder.path / FAMILY_FILE
    members = json.loads(path.read_text())["members"] if path.exists() else []
    return {
        member["cost_ratio"]: parts.workbench.load(
            Policy.from_json(member["policy"]), load_state(folder.path / member["weights"])
        )
        for member in members
    }


def summary_of(config: Mapping[str, Any], folder: RunFolder, parts: Parts) -> Summary:
    """Searches, recovers, fine-tunes and measures the best policy, draws the plots; goes on where `folder` stands."""
    finished = _finished(folder)
    if finished is not None:
        return finished
    recorder = Recorder(folder)
    everything = runner.search(parts.searcher, recorder, budget=parts.budget)
    # A run that was killed after the search has the family's trials too.
    has_family = recorder.num_steps > parts.searcher.num_steps
    trials = everything[: len(everything) - (len(parts.budgets) - 1 if has_family else 0)]
    [baseline] = parts.baseline.step() if parts.budget is not None else [None]
    found = folder.once("finalist", lambda: _choose(config, folder, parts, trials))
    policy, derived_from = Policy.from_json(found["policy"]), Policy.from_json(found["derived_from"])
    chosen = next(trial for trial in trials if trial.policy == derived_from)
    _keep_learned(config, folder, chosen)
    folder.once("finetune", lambda: _finetune(config, folder, parts, policy))
    family = family_trials(parts, recorder, everything, chosen)
    members = family_members(config, folder, parts, family, baseline)
    report = folder.once("report", lambda: _report(config, folder, parts, policy, baseline, members))
    timed = folder.once("timed_trials", lambda: time_trials(parts, trials, most=config["timed_trials"]))["trials"]
    summary = _summary(config, folder, recorder, parts, trials, {**report, **found}, members, chosen)
    if members:
        folder.write_json(FAMILY_FILE, family_json(parts, members, policy, MODEL_FILE, chosen.genome))
    folder.write_text(TIMED_FILE, pd.DataFrame(timed).to_csv(index=False))
    draw_run(folder.path, config, parts, Drawn(trials, family, chosen, policy, baseline, summary, timed))
    folder.finish("summary", summary.to_json())
    folder.write_json(SUMMARY_FILE, summary.to_json())
    return summary


def _keep_learned(config: Mapping[str, Any], folder: RunFolder, chosen: Trial) -> None:
    """Writes what runs at other budgets can take over, where the searcher learned such a thing."""
    if takes(config["searcher"], "learned", place="searcher"):
        learned = folder.result("learned") or {"run": config["run_name"], "cost_ratio": lowest_ratio(config)}
        folder.write_json(LEARNED_FILE, {"genome": chosen.genome, **learned})


def _choose(config: Mapping[str, Any], folder: RunFolder, parts: Parts, trials: Sequence[Trial]) -> dict[str, Any]:
    """Recovers the best trials as finalists, compares them on the search split and keeps the best."""
    done = [trial for trial in trials if trial.objective is not None]
    if not done:
        raise ValueError(
            f"a search must have a trial that did not fail, but all {len(trials)} did; "
            f"the last one is {trials[-1].failure}"
        )
    ranked = sorted(done, key=lambda trial: trial.objective or 0.0, reverse=True)
    # Where the objective weighs cost too, as it must without a budget, accuracy alone can't choose between finalists.
    is_accuracy = parts.budget is not None and not getattr(parts.searcher, "weighs_cost", False)
    num = config["finalist"]["num"] if is_accuracy else 1
    policies = list(dict.fromkeys(trial.policy for trial in ranked))[:num]
    best, best_accuracy, best_network = policies[0], -1.0, None
    for policy in policies:
        network = parts.workbench.compress(policy)
        accuracy = parts.workbench.measure(network, "search").accuracy
        _logger.info("finalist: accuracy %.2f%% on the search split", 100 * accuracy)
        if accuracy > best_accuracy or best_network is None:
            best, best_accuracy, best_network = policy, accuracy, network
    chosen = next(trial for trial in ranked if trial.policy == best)
    checked = within_budget(config, parts, chosen, best_network)
    folder.write_json(POLICY_FILE, checked.policy.to_json())
    folder.write_json(NETWORK_FILE, parts.shapes)
    folder.write_torch(RECOVERED_FILE, parts.workbench.state(checked.network))
    return {
        "policy": checked.policy.to_json(),
        "derived_from": best.to_json(),
        "num_repairs": checked.num_repairs,
        "accuracy_search": best_accuracy,
    }


def _finetune(config: Mapping[str, Any], folder: RunFolder, parts: Parts, policy: Policy) -> dict[str, Any]:
    recovered = parts.workbench.load(policy, load_state(folder.path / RECOVERED_FILE))
    checkpoint = folder.path / FINETUNE_CHECKPOINT
    network = parts.workbench.finetune(recovered, checkpoint) if config["finetune"]["epochs"] else recovered
    folder.write_torch(MODEL_FILE, parts.workbench.state(network))
    checkpoint.unlink(missing_ok=True)
    return {"epochs": config["finetune"]["epochs"]}


def _report(
    config: Mapping[str, Any],
    folder: RunFolder,
    parts: Parts,
    policy: Policy,
    baseline: Trial | None,
    members: Sequence[Member],
) -> dict[str, Any]:
    """The rows of the table, and latencies by row and by member: all measured in turns, so that drift cancels."""
    bench = parts.workbench
    recovered = bench.load(policy, load_state(folder.path / RECOVERED_FILE))
    networks = {"dense": (parts.space.full_policy(), bench.dense()), "compressed": (policy, recovered)}
    if baseline is not None and baseline.policy != policy:
        networks["uniform"] = (baseline.policy, bench.compress(baseline.policy))
    timed = {name: network for name, (_, network) in networks.items()}
    timed |= {member.name: bench.load(member.policy, load_state(folder.path / member.file)) for member in members}
    latencies = {name: dataclasses.asdict(latency) for name, latency in bench.latencies(timed).items()}
    if config["finetune"]["epochs"]:
        networks["fine-tuned"] = (policy, bench.load(policy, load_state(folder.path / MODEL_FILE)))
        # The same shapes, hence the same time.
        latencies["fine-tuned"] = latencies["compressed"]
    if "uniform" in networks:  # last in the table
        networks["uniform"] = networks.pop("uniform")
    rows = [measured(parts, name, of, network) for name, (of, network) in networks.items()]
    energies = bench.energies({name: network for name, network in timed.items() if name in networks})
    return {"networks": rows, "latencies": latencies, "energies": dict(energies)}


def _summary(
    config: Mapping[str, Any],
    folder: RunFolder,
    recorder: Recorder,
    parts: Parts,
    trials: Sequence[Trial],
    report: Mapping[str, Any],
    members: Sequence[Member],
    chosen: Trial,
) -> Summary:
    latencies = report["latencies"]
    rows = tuple(network_row(row, latencies.get(row["name"])) for row in report["networks"])
    notes = run_notes(config, parts, rows, report, members, chosen, learned=folder.result("learned") or {})
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
            cpu_s=recorder.cpu_s if math.isfinite(recorder.cpu_s) else None,
        ),
        recovery=recovery_name(config["finalist"]["recover"]),
        git_commit=_git_commit(),
        versions={
            "python": platform.python_version(),
            **{package: metadata.version(package) for package in ("torch", "torchvision", "numpy")},
        },
        notes=notes,
        variant=config["variant"],
        machine=parts.workbench.machine,
        groups={group.name: group.size for group in parts.space.groups},
        family=family_rows(parts, members, report["networks"], latencies),
    )


def _git_commit() -> str:
    here = Path(__file__).resolve().parent
    try:
        answer = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False
        )
    except OSError:  # no git on this machine
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""
