"""What a reader must know of a run's numbers, one sentence each: where they come from, what measuring says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compsearch.assembly import Parts
from compsearch.budget_check import is_predicted, latency_ratio
from compsearch.family import Member
from compsearch.loading import RECOVERED_FILE
from compsearch.report.pareto import uniform_verdict
from compsearch.report.run_plots import network_points
from compsearch.space import Policy
from compsearch.summary import Latency, NetworkRow
from compsearch.trial import Trial


def run_notes(
    config: Mapping[str, Any],
    parts: Parts,
    rows: Sequence[NetworkRow],
    report: Mapping[str, Any],
    members: Sequence[Member],
    chosen: Trial,
    *,
    learned: Mapping[str, Any],
) -> tuple[str, ...]:
    """Of a run with the table `rows`, its `report`, its family's `members` and the trial it chose.

    `learned` is what it took over.
    """
    notes = []
    if config["model"]["weights"] not in ("trained", "random"):
        notes.append(
            "the weights were given, so they may have been trained on the search split's images: its accuracies "
            "compare policies with each other, the test split's tell how good they are"
        )
    if learned:
        notes.append(
            f"nothing was learned here: {learned['run']} did, at cost_ratio {learned['cost_ratio']:g}, and its search "
            "is not counted above"
        )
        if chosen.genome != learned["genome"]:
            notes.append(
                "within this budget plain importance did better on the search split than what was learned there, and "
                "is kept"
            )
    notes.extend(_finetuning_notes(rows))
    notes.extend(parts.workbench.notes)
    notes.extend(filter(None, (getattr(model, "note", "") for model in parts.cost_models.values())))
    notes.extend(f"energy of a batch, {name}: {reading}" for name, reading in report["energies"].items())
    notes.extend(_budget_notes(config, parts, rows, report, members))
    if parts.space.sparse:
        notes.append(
            "the weights that are gone are zeros in tensors of the dense shape: FLOPs and parameters count what is "
            "left, and only a runtime that skips zeros saves time"
        )
    verdict = uniform_verdict(network_points(rows, "test", parts.cost_model.resource))
    if verdict:
        notes.append(f"on the test split, before fine-tuning, {verdict}")
    return tuple(notes)


def _finetuning_notes(rows: Sequence[NetworkRow]) -> list[str]:
    """What to do where fine-tuning did harm, judged without the test split."""
    accuracies = {row.name: row.accuracy_search for row in rows}
    before, after = accuracies.get("compressed"), accuracies.get("fine-tuned")
    if before is None or after is None or after >= before:
        return []
    return [
        f"fine-tuning lowered the search split's accuracy from {before:.2%} to {after:.2%}: try a smaller finetune.lr "
        f"or finetune.epochs=0; {RECOVERED_FILE} has the weights before it, which load(…, fine_tuned=False) gives"
    ]


def _budget_notes(
    config: Mapping[str, Any],
    parts: Parts,
    rows: Sequence[NetworkRow],
    report: Mapping[str, Any],
    members: Sequence[Member],
) -> list[str]:
    """What measuring says of budgets that the search could only predict: this run's, its family's, uniform's."""
    if parts.budget is None or not is_predicted(parts):
        return []
    # What is limited in milliseconds is reported so; else as a fraction of the dense network's.
    is_absolute = config["budget"]["limit"] is not None
    unit, text = (parts.budget.dense, "{:.3f} ms") if is_absolute else (1.0, "{:.4f}")

    def shown(ratio: float) -> str:
        return text.format(ratio * unit)

    wanted = parts.budget.cost_ratio
    [own] = [row.latency for row in rows if row.name == "compressed"]
    assert own is not None
    measured = latency_ratio(config, parts, own)
    predicted = parts.cost_model.cost(Policy.from_json(report["policy"])) / parts.budget.dense
    verdict = "met" if measured <= wanted else f"MISSED by {shown(measured - wanted)}"
    num = report["num_repairs"]
    repairs = f", after {num} repair{'s' if num > 1 else ''}" if num else ""
    ratios = f"measured {shown(measured)}, predicted {shown(predicted)}"
    notes = [f"the latency budget of {shown(wanted)} is {verdict}: {ratios}{repairs}"]
    for member in members:
        ratio = latency_ratio(config, parts, Latency(**report["latencies"][member.name]))
        if ratio > member.budget.cost_ratio:
            asked = member.budget.cost_ratio
            missed, found = shown(ratio - asked), shown(ratio)
            notes.append(f"the family's network at {asked:g} MISSES it by {missed}: measured {found}")
    for row in rows:
        if row.name == "uniform" and row.latency is not None and latency_ratio(config, parts, row.latency) > wanted:
            ratio = latency_ratio(config, parts, row.latency)
            notes.append(f"uniform is within the budget as predicted, but not as measured: {shown(ratio)}")
    return notes
