"""The plots of one run, from what it found."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compsearch.assembly import Parts
from compsearch.paths import PathState
from compsearch.protocols import CostModel
from compsearch.report.derived_plot import is_drawable, save_derived
from compsearch.report.expected_plot import save_expected
from compsearch.report.family_plot import save_family
from compsearch.report.genome_plot import save_genome
from compsearch.report.kept_plot import save_kept
from compsearch.report.latency_pareto import LatencyPoint, save_latency_pareto
from compsearch.report.latency_plot import save_latency
from compsearch.report.neighbours import finished_beside
from compsearch.report.pareto import Point, save_pareto
from compsearch.report.paths_plot import path_history, save_paths
from compsearch.report.policy_plot import save_policy
from compsearch.report.search_plot import save_search
from compsearch.report.timed import Spread, Timed
from compsearch.space import Policy
from compsearch.summary import NetworkRow, Summary
from compsearch.trial import Trial

PLOT_FILES = (
    "pareto.png",
    "latency_pareto.png",
    "latency.png",
    "policy.png",
    "search.png",
    "family.png",
    "kept.png",
    "genome.png",
    "paths.png",
    "expected.png",
    "derived.png",
)


@dataclass(frozen=True)
class Drawn:
    """What there is to draw: the trials of the search, the family's, the chosen one, the baseline's, the summary.

    `policy` is the final one, which may be smaller than that of `chosen`. `timed` are the trials that were timed, as
    `compsearch.timed_trials` gives them.
    """

    trials: Sequence[Trial]
    family: Sequence[Trial]
    chosen: Trial
    policy: Policy
    baseline: Trial | None
    summary: Summary
    timed: Sequence[Mapping[str, Any]] = ()


def draw_run(path: Path, config: Mapping[str, Any], parts: Parts, drawn: Drawn) -> None:
    """Writes every plot that fits the run into the folder `path`."""
    summary, baseline, policy = drawn.summary, drawn.baseline, drawn.policy
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
    _draw_latency(path, config, parts, drawn, title)
    if parts.space.groups:
        reference = baseline.policy if baseline else None
        save_policy(path / "policy.png", parts.space, policy, title=title, reference=reference)
    if is_drawable(parts.space):
        save_derived(path / "derived.png", parts.space, policy, title=title)
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
    history = path_history(drawn.trials)
    if history:
        save_paths(path / "paths.png", parts.space, history, title=title)
        save_expected(
            path / "expected.png",
            history,
            resource=resource,
            budget=parts.budget,
            title=title,
            latencies=_spreads(drawn.timed),
        )
    if drawn.chosen.genome and PathState.from_genome(drawn.chosen.genome) is None:
        save_genome(path / "genome.png", drawn.chosen.genome, title=title)
    if summary.family:
        others = finished_beside(path, summary)
        save_family(path / "family.png", summary, resource=resource, title=title, others=others)
        policies: dict[str, Policy] = {
            f"{budget.cost_ratio:g}": trial.policy for budget, trial in zip(parts.budgets, drawn.family, strict=False)
        }
        policies[f"{parts.budgets[-1].cost_ratio:g}"] = policy
        if parts.space.groups:
            save_kept(path / "kept.png", parts.space, policies, title=title)


def _draw_latency(path: Path, config: Mapping[str, Any], parts: Parts, drawn: Drawn, title: str) -> None:
    """Latency beside FLOPs: what was timed of the trials and of the table's networks, and what was predicted."""
    dense = drawn.summary.dense
    if dense.latency is None:
        return
    device = dense.latency.runtime
    spreads = _spreads(drawn.timed)
    macs = [_ratio(parts, trial, parts.cost_models["macs"]) for trial in drawn.trials]
    model = parts.cost_models.get("latency_ms")
    predicted = [] if model is None else [_ratio(parts, trial, model) for trial in drawn.trials]
    marked = {
        row.name: (row, Timed(row.macs / dense.macs, row.latency.relative))
        for row in drawn.summary.networks
        if row.latency is not None and row.latency.relative is not None and row.latency.runtime == device
    }
    save_latency(
        path / "latency.png",
        [Timed(macs[index], spread) for index, spread in spreads.items()],
        title=title,
        device=device,
        predicted=list(zip(macs, predicted, strict=False)),
        networks={name: timed for name, (_, timed) in marked.items()},
    )
    latencies: dict[int, Spread | float] = {**dict(enumerate(predicted)), **spreads}
    points = [
        LatencyPoint(drawn.trials[index].measurement.accuracy, macs[index], latency, device)
        for index, latency in sorted(latencies.items())
    ]
    save_latency_pareto(
        path / "latency_pareto.png",
        points,
        networks={
            name: LatencyPoint(row.accuracy_search, timed.cost_ratio, timed.latency, device)
            for name, (row, timed) in marked.items()
            if row.accuracy_search is not None
        },
        device=device,
        unit="ratio",
        title=title,
        split="search",
        recovery=recovery_name(config["recover"]),
    )


def _spreads(timed: Sequence[Mapping[str, Any]]) -> dict[int, Spread]:
    """Measured latencies over the dense one's, by index of the trial."""
    return {int(row["trial"]): Spread(row["ratio"], row["ratio_p10"], row["ratio_p90"]) for row in timed}


def _ratio(parts: Parts, trial: Trial, model: CostModel) -> float:
    """What the policy of `trial` costs over the dense one."""
    return model.cost(trial.policy) / model.cost(parts.space.full_policy())


def _objective_of(baseline: Trial, trial: Trial) -> float | None:
    """The objective that `baseline` has for the searcher of `trial`, None where that can't be told."""
    if trial.objective == trial.measurement.accuracy:
        return baseline.measurement.accuracy
    if trial.objective == -trial.measurement.loss:
        return -baseline.measurement.loss
    return None


def network_points(rows: Sequence[NetworkRow], split: str, resource: str) -> list[Point]:
    """Each network's accuracy on `split` at its cost_ratio of `resource`, where both are known; the first is dense."""
    points = []
    for row in rows:
        accuracy = row.accuracy_search if split == "search" else row.accuracy_test
        ratio = row.ratios(rows[0]).get(resource)
        if accuracy is not None and ratio is not None:
            points.append(Point(row.name, ratio, accuracy))
    return points


def recovery_name(node: Mapping[str, Any]) -> str:
    """What a recovery is called in plots and tables: its class in words; several in turn joined by plus signs."""
    if "recoveries" in node:
        return " + ".join(recovery_name(part) for part in node["recoveries"])
    words = str(node["_target_"]).rsplit(".", 1)[-1].removesuffix("Recovery")
    return "none" if words == "No" else re.sub(r"(?<=[a-z])(?=[A-Z])", " ", words).lower()
