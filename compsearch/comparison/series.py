"""What a run is compared as: its searcher, and what sets it apart from that searcher's other runs."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from compsearch.comparison.folders import RunFiles
from compsearch.comparison.options import searcher_word
from compsearch.comparison.settings import Flat, columns_that_differ, difference_labels, differing, flatten, plain_key
from compsearch.job import irrelevant
from compsearch.report.style import RESOURCE_LABELS

#: Settings that a series doesn't name, beside those that no result depends on: seed, budget and variant stand in
#: columns of their own, a facet holds one network on one dataset, the rest says how a run reports.
_UNNAMED = (
    *("seed", "budget", "variants", "model", "pretrain", "baseline", "cost_models", "supernet.precision"),
    *("dataset.name", "dataset.build.root", "dataset.build.in_memory", "dataset.batch_size", "dataset.pretrain_epochs"),
    *(
        "dataset.pretrain_lr",
        "dataset.finetune_epochs",
        "dataset.calibration_images",
        "alignment.table_dir",
        "sizes",
        "inventory",
    ),
    *("latency.repetitions", "latency.sessions", "latency.warmup", "latency.time_budget_s", "latency.energy_s"),
    *("network", "weights", "device_resolver", "loader", "workbench", "evaluator.batch_size"),
)
#: The same, where no latency is limited.
_OF_LATENCY = ("latency", "runtime", "alignment", "finalist.repairs", "finalist.latency_margin")
#: Settings that say where a run was made and is kept, not what it is.
_NOT_SETTINGS = ("run_name", "cache_dir", "variants", "budget.label", "alignment.table_dir", "timed_trials")
_MOST_NAMED = 4


def variant_of(run: RunFiles) -> str:
    """The configuration's name for the run, "" for a usual one and in runs of earlier versions."""
    return str(run.config.get("variant") or "")


def budget_of(run: RunFiles) -> tuple[str, float]:
    """The resource that is limited, "" for none, and the cost_ratio that the search keeps to: a family's lowest.

    NaN where there is no limit, or an unfinished run has an absolute one.
    """
    if run.summary is not None:
        return run.summary.budget or ("", math.nan)
    budget = run.config.get("budget")
    if not isinstance(budget, Mapping):
        return "", math.nan
    resource = str(budget.get("resource", ""))
    if budget.get("limit") is not None:
        return resource, math.nan
    ratios = budget.get("cost_ratios") or [budget.get("cost_ratio")]
    known = [float(ratio) for ratio in ratios if isinstance(ratio, int | float)]
    return (resource, min(known)) if known else ("", math.nan)


def is_family(run: RunFiles) -> bool:
    """Whether one search gave networks for several budgets."""
    budget = run.config.get("budget")
    return isinstance(budget, Mapping) and bool(budget.get("cost_ratios"))


def series(runs: Sequence[RunFiles], facets: Sequence[str]) -> tuple[list[str], list[str]]:
    """The series of each of `runs`, distinct settings under distinct labels within one facet, and remarks.

    A label is the searcher; then its variant; ``family`` where others of the searcher search for each budget by itself;
    the resource where its budget is of another one than most of the facet's; and the settings in which runs of the
    searcher and variant differ, but for the most common ones.
    """
    labels, remarks = [""] * len(runs), []
    for facet in dict.fromkeys(facets):
        members = [index for index, name in enumerate(facets) if name == facet]
        flats = {index: _named_settings(runs[index]) for index in members}
        usual = Counter(budget_of(runs[index])[0] for index in members).most_common(1)[0][0]
        if any(budget_of(runs[index])[0] != usual for index in members):
            budget = f"of {RESOURCE_LABELS.get(usual, usual)}" if usual else "none"
            remarks.append(f"in {facet} budgets are of several resources; where a series names none, it is {budget}")
        kinds: dict[tuple[str, str], list[int]] = {}
        for index in members:
            kinds.setdefault((searcher_word(runs[index].config), variant_of(runs[index])), []).append(index)
        for (searcher, variant), indices in kinds.items():
            texts = difference_labels([flats[index] for index in indices])
            families = [is_family(runs[index]) for index in indices]
            for index, text, family in zip(indices, texts, families, strict=True):
                resource = budget_of(runs[index])[0]
                parts = [
                    searcher,
                    variant,
                    "family" if family and not all(families) else "",
                    _resource_text(resource) if resource != usual else "",
                    text,
                ]
                labels[index] = ", ".join(filter(None, parts))
        remarks.extend(_unequal(facet, {labels[index]: flats[index] for index in members if _is_plain(labels[index])}))
    return labels, remarks


def settings_that_differ(runs: Sequence[RunFiles], facets: Sequence[str]) -> list[dict[str, Any]]:
    """For each of `runs` those of its settings, dotted keys, that differ between runs of its facet."""
    found: list[dict[str, Any]] = [{} for _ in runs]
    for facet in dict.fromkeys(facets):
        members = [index for index, name in enumerate(facets) if name == facet]
        flats = [_plain(flatten(runs[index].config, ignore=_NOT_SETTINGS)) for index in members]
        keys = differing(flats)
        for index, flat in zip(members, flats, strict=True):
            found[index] = {key: flat[key] for key in keys if key in flat}
    return found


def _plain(flat: Flat) -> dict[str, Any]:
    return {plain_key(key): value for key, value in flat.items()}


def _is_plain(label: str) -> bool:
    return "," not in label


def _resource_text(resource: str) -> str:
    return f"{RESOURCE_LABELS.get(resource, resource)} budget" if resource else "no budget"


def _named_settings(run: RunFiles) -> dict[str, Any]:
    """The settings that a series of the run may have to name."""
    config = run.config
    ignore = [*_irrelevant(config), *_UNNAMED]
    if budget_of(run)[0] != "latency_ms":
        ignore.extend(_OF_LATENCY)
    finetune = config.get("finetune")
    if isinstance(finetune, Mapping) and finetune.get("epochs") == 0:
        ignore.extend(f"finetune.{key}" for key in finetune if key != "epochs")
    if run.summary is not None and run.summary.search_cost.num_trials == 1:
        ignore.append("finalist.num")
    return flatten(config, ignore=ignore)


def _irrelevant(config: Mapping[str, Any]) -> tuple[str, ...]:
    try:
        return _irrelevant_of(str(config["searcher"]["_target_"]))
    except ValueError:  # a searcher of somebody's own that isn't here
        return _irrelevant_of("searchers.uniform.Uniform")


@functools.cache
def _irrelevant_of(target: str) -> tuple[str, ...]:
    return irrelevant({"searcher": {"_target_": target}})


def _unequal(facet: str, flats: Mapping[str, Flat]) -> list[str]:
    """A remark on what series that go by the bare name of their searcher differ in, beside the searcher."""
    shared = [
        {key: flat[key] for key in flat if plain_key(key).partition(".")[0] != "searcher"} for flat in flats.values()
    ]
    texts = []
    for key, column in columns_that_differ(shared).items():
        by_value: dict[str, list[str]] = {}
        for name, value in zip(flats, column, strict=True):
            by_value.setdefault(str(value), []).append(name)
        most = max(by_value, key=lambda value: len(by_value[value]))
        others = [f"{value} for {', '.join(names)}" for value, names in by_value.items() if value != most]
        texts.append(f"{plain_key(key)} is {most}, but {' and '.join(others)}")
    if not texts:
        return []
    more = f" and {len(texts) - _MOST_NAMED} more" if len(texts) > _MOST_NAMED else ""
    return [f"in {facet} searchers differ in shared settings too: {'; '.join(texts[:_MOST_NAMED])}{more}"]
