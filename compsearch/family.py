"""One search, a network for every budget: each member is extracted, recovered, fine-tuned and measured, once."""

from __future__ import annotations

import functools
import logging
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from compsearch.assembly import Parts
from compsearch.budget import Budget
from compsearch.measuring import measured, network_row
from compsearch.protocols import FamilySearcher
from compsearch.recorder import Recorder
from compsearch.run_folder import RunFolder, RunFolderError
from compsearch.space import Policy
from compsearch.summary import FamilyMember
from compsearch.trial import Trial

_logger = logging.getLogger(__name__)

FAMILY_FILE = "family.json"


@dataclass(frozen=True)
class Member:
    """The network at one budget: its policy, the file of its weights, and its measured rows."""

    budget: Budget
    policy: Policy
    file: str
    rows: tuple[Mapping[str, Any], ...]

    @property
    def name(self) -> str:
        """The cost_ratio asked for, as it is written in files and tables."""
        return member_name(self.budget)


def member_name(budget: Budget) -> str:
    """The budget's cost_ratio, as it is written in files and tables."""
    return f"{budget.cost_ratio:g}"


def family_trials(parts: Parts, recorder: Recorder, trials: Sequence[Trial], chosen: Trial) -> list[Trial]:
    """What `chosen` is at the larger budgets, scored as candidates are; recorded as one more step of the run.

    `trials` are all of the run's; those of an earlier process are taken from them.
    """
    budgets = parts.budgets[:-1]
    if not budgets:
        return []
    assert isinstance(parts.searcher, FamilySearcher), "assembling a family refuses searchers without one"
    if recorder.num_steps > parts.searcher.num_steps:
        return list(trials[-len(budgets) :])
    found = parts.searcher.family(chosen, budgets)
    for trial, budget in zip(found, budgets, strict=True):
        within = trial.cost_ratio <= budget.cost_ratio * (1 + 1e-9)
        assert within, f"a member must be within {budget}, but got {trial.cost_ratio}"
    recorder.record(found, parts.searcher)
    return found


def family_members(
    config: Mapping[str, Any], folder: RunFolder, parts: Parts, trials: Sequence[Trial], baseline: Trial | None
) -> list[Member]:
    """The members at all budgets but the lowest, whose network is the run's own; `trials` are `family_trials`'."""
    budgets = parts.budgets[:-1]
    uniform: Sequence[Trial | None] = [None] * len(budgets)
    if budgets and baseline is not None and isinstance(parts.baseline, FamilySearcher):
        uniform = parts.baseline.family(baseline, budgets)
    members = []
    for budget, trial, plain in zip(budgets, trials, uniform, strict=True):
        name = member_name(budget)
        file = f"family-{name}.pt"
        finish = functools.partial(_member, config, folder, parts, name, file, trial, plain)
        found = folder.once(f"family {name}", finish)
        members.append(Member(budget, trial.policy, file, tuple(found["networks"])))
    return members


def _member(
    config: Mapping[str, Any],
    folder: RunFolder,
    parts: Parts,
    name: str,
    file: str,
    trial: Trial,
    baseline: Trial | None,
) -> dict[str, Any]:
    bench = parts.workbench
    network = bench.compress(trial.policy)
    rows = [measured(parts, "compressed", trial.policy, network)]
    if config["finetune"]["epochs"]:
        checkpoint = folder.path / f"finetune-{name}.pt"
        network = bench.finetune(network, checkpoint)
        rows.append(measured(parts, "fine-tuned", trial.policy, network))
        checkpoint.unlink(missing_ok=True)
    folder.write_torch(file, bench.state(network))
    if baseline is not None and baseline.policy != trial.policy:
        rows.append(measured(parts, "uniform", baseline.policy, bench.compress(baseline.policy)))
    accuracies = ", ".join(f"{row['name']} {row['accuracy_search']:.2%}" for row in rows)
    _logger.info("family, cost_ratio %s: %s on the search split", name, accuracies)
    return {"networks": rows}


def load_state(path: Path) -> dict[str, Any]:
    """Weights that a run wrote, on the CPU. Raises RunFolderError for a file that is not whole."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise RunFolderError(
            f"{path} must hold a run's weights, but can't be read ({type(error).__name__}); bring it back, or delete "
            "its folder to run it again"
        ) from error
    return state


def family_rows(
    parts: Parts, members: Sequence[Member], own: Sequence[Mapping[str, Any]], latencies: Mapping[str, Any]
) -> tuple[FamilyMember, ...]:
    """The family as the summary holds it; `own` are the rows of the run's own network, at the lowest budget.

    `latencies` are by row for the run's own network, and by member name for the others.
    """
    if not members:
        return ()
    found = [
        # Of the uniform networks only the one at the lowest budget is timed.
        _family_member(member.budget, member.rows, dict.fromkeys(("compressed", "fine-tuned"), latencies[member.name]))
        for member in members
    ]
    rows = [row for row in own if row["name"] != "dense"]
    return (*found, _family_member(parts.budgets[-1], rows, latencies))


def _family_member(budget: Budget, rows: Sequence[Mapping[str, Any]], latencies: Mapping[str, Any]) -> FamilyMember:
    return FamilyMember(budget.cost_ratio, tuple(network_row(row, latencies.get(row["name"])) for row in rows))


def family_json(
    parts: Parts, members: Sequence[Member], policy: Policy, file: str, genome: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of family.json: for every budget, largest first, the policy and the file with its weights."""
    entries = [(member.budget, member.policy, member.file) for member in members]
    entries.append((parts.budgets[-1], policy, file))
    dense = parts.cost_model.cost(parts.space.full_policy())
    return {
        "resource": parts.cost_model.resource,
        "genome": genome,
        "members": [
            {
                "cost_ratio": budget.cost_ratio,
                "achieved_cost_ratio": parts.cost_model.cost(kept) / dense,
                "weights": weights,
                "policy": kept.to_json(),
            }
            for budget, kept, weights in entries
        ],
    }
