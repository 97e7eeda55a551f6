"""The plots of one run, from what it found."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compsearch.assembly import Parts
from compsearch.report.family_plot import save_family
from compsearch.report.genome_plot import save_genome
from compsearch.report.kept_plot import save_kept
from compsearch.report.neighbours import finished_beside
from compsearch.report.pareto import Point, save_pareto
from compsearch.report.policy_plot import save_policy
from compsearch.report.search_plot import save_search
from compsearch.space import Policy
from compsearch.summary import NetworkRow, Summary
from compsearch.trial import Trial

PLOT_FILES = ("pareto.png", "policy.png", "search.png", "family.png", "kept.png", "genome.png")


@dataclass(frozen=True)
class Drawn:
    """What there is to draw: the trials of the search, the family's, the chosen one, the baseline's, the summary."""

    trials: Sequence[Trial]
    family: Sequence[Trial]
    chosen: Trial
    baseline: Trial | None
    summary: Summary


def draw_run(path: Path, config: Mapping[str, Any], parts: Parts, drawn: Drawn) -> None:
    """Writes every plot that fits the run into the folder `path`."""
    summary, baseline, policy = drawn.summary, drawn.baseline, drawn.chosen.policy
    label = config["budget"]["label"]
    title = f"{summary.model} on {summary.dataset}, {summary.searcher}, {label}, seed {summary.seed}"
    resource = parts.cost_model.resource
    save_pareto(
        path / "pareto.png",
        [*drawn.trials, *drawn.family],
        resource=resource,
        points=network_points(summary.networks, "search", resource),
        title=title,
        split="search",
        recovery=recovery_name(config["recover"]),
        point_recovery=(
            f"{recovery_name(config['finalist']['recover'])} on {config['finalist']['calibration_images']} images"
        ),
    )
    save_policy(path / "policy.png", parts.space, policy, title=title, reference=baseline.policy if baseline else None)
    objective = _objective_of(baseline, drawn.chosen) if baseline and parts.budget else None
    save_search(
        path / "search.png",
        drawn.trials,
        resource=resource,
        budget=parts.budget,
        title=title,
        references={} if objective is None else {"uniform": objective},
        population_size=getattr(parts.searcher, "population_size", None),
    )
    if drawn.chosen.genome:
        save_genome(path / "genome.png", drawn.chosen.genome, title=title)
    if summary.family:
        others = finished_beside(path, summary)
        save_family(path / "family.png", summary, resource=resource, title=title, others=others)
        policies: dict[str, Policy] = {
            f"{budget.cost_ratio:g}": trial.policy for budget, trial in zip(parts.budgets, drawn.family, strict=False)
        }
        policies[f"{parts.budgets[-1].cost_ratio:g}"] = policy
        save_kept(path / "kept.png", parts.space, policies, title=title)


def _objective_of(baseline: Trial, trial: Trial) -> float | None:
    """The objective that `baseline` has for the searcher of `trial`, None where that can't be told."""
    if trial.objective == trial.measurement.accuracy:
        return baseline.measurement.accuracy
    if trial.objective == -trial.measurement.loss:
        return -baseline.measurement.loss
    return None


def network_points(rows: Sequence[NetworkRow], split: str, resource: str) -> list[Point]:
    """Each network's accuracy on `split` at its cost_ratio of `resource`; the first row is the dense network."""
    points = []
    for row in rows:
        accuracy = row.accuracy_search if split == "search" else row.accuracy_test
        if accuracy is not None:
            points.append(Point(row.name, float(getattr(row, resource)) / float(getattr(rows[0], resource)), accuracy))
    return points


def recovery_name(node: Mapping[str, Any]) -> str:
    """What a recovery is called in plots and tables: its class in words; several in turn joined by plus signs."""
    if "recoveries" in node:
        return " + ".join(recovery_name(part) for part in node["recoveries"])
    words = str(node["_target_"]).rsplit(".", 1)[-1].removesuffix("Recovery")
    return "none" if words == "No" else re.sub(r"(?<=[a-z])(?=[A-Z])", " ", words).lower()
