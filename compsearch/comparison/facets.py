"""Which runs can share an axis: those of one network, with the same weights, on one dataset.

Accuracies of two networks of the same name say nothing about searchers. Finished runs know their dense network's
costs and test accuracy; unfinished ones go by their configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from compsearch.comparison.folders import RunFiles
from compsearch.comparison.settings import flatten

#: Weights that a run makes itself, for each seed anew.
_OWN_WEIGHTS = ("trained", "random")
#: What of a configuration doesn't tell one dense network from another.
_NOT_THE_NETWORK = (
    "dataset.build.root",
    "dataset.build.num_workers",
    "dataset.build.in_memory",
    "dataset.calibration_images",
    "dataset.finetune_epochs",
)

#: MACs, parameters and test accuracy.
_Dense = tuple[float, float, float | None]


@dataclass
class _Facet:
    """Runs found to be of one network. `denses` is by seed where each seed trained its own, else of the seed None."""

    settings: dict[str, Any]
    is_given: bool
    members: list[int] = field(default_factory=list)
    denses: dict[int | None, _Dense] = field(default_factory=dict)


def facets(runs: Sequence[RunFiles]) -> tuple[list[str], list[str]]:
    """The facet of each of `runs`, ``resnet20 on digits``, and remarks.

    Where networks of one name differ, so do their facets: ``resnet20 on digits (dense 98.2%)``. Where each seed trained
    its own dense network they share a facet, as what they start from is then part of what a seed changes; so they do
    where each search trains its own weights.
    """
    by_name: dict[str, list[int]] = {}
    for index, run in enumerate(runs):
        by_name.setdefault(_names(run), []).append(index)
    labels, remarks = [""] * len(runs), []
    for name, indices in by_name.items():
        found = _split(runs, indices)
        details = _details(found)
        for facet, detail in zip(found, details, strict=True):
            label = f"{name} ({detail})" if detail else name
            for index in facet.members:
                labels[index] = label
            remarks.extend(_own_networks(label, facet))
        if len(found) > 1:
            of = "dense networks" if all(facet.denses for facet in found) else "weights"
            remarks.append(f"runs of {name} are drawn apart, as their {of} differ: {'; '.join(details)}")
    return labels, remarks


def learns_weights(config: Mapping[str, Any]) -> bool:
    """Whether the search itself trains the weights, so that even runs of one seed have other dense networks."""
    return part(config, "model").get("weights") == "random"


def _names(run: RunFiles) -> str:
    model, dataset = part(run.config, "model").get("name"), part(run.config, "dataset").get("name")
    if run.summary is not None:
        model, dataset = run.summary.model, run.summary.dataset
    return f"{model} on {dataset}"


def part(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The node of `config` called `key`; empty where there is none."""
    found = config.get(key)
    return found if isinstance(found, Mapping) else {}


def _split(runs: Sequence[RunFiles], indices: Sequence[int]) -> list[_Facet]:
    found: list[_Facet] = []
    # Finished ones first: they know what the others are of.
    for index in sorted(indices, key=lambda index: runs[index].summary is None):
        run = runs[index]
        settings = _network_settings(run.config)
        is_given = settings.get("model.weights") not in _OWN_WEIGHTS
        seed = None if is_given else run.config.get("seed", 0)
        dense = None
        if run.summary is not None:
            row = run.summary.dense
            dense = (row.macs, row.params, None if learns_weights(run.config) else row.accuracy_test)
        facet = next(
            (facet for facet in found if facet.is_given == is_given and _belongs(facet, settings, seed, dense)), None
        )
        if facet is None:
            facet = _Facet(settings, is_given)
            found.append(facet)
        facet.members.append(index)
        facet.settings.update(settings)
        if dense is not None:
            facet.denses[seed] = dense
    return sorted(found, key=lambda facet: min(facet.members))


def _network_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What determines the dense network: how it is built, and its weights or how it is trained."""
    model = {**part(config, "model")}
    weights = model.get("weights")
    parts: dict[str, Any] = {"model": model}
    if weights in _OWN_WEIGHTS:
        parts |= {"dataset": part(config, "dataset"), "pretrain": part(config, "pretrain")}
    elif isinstance(weights, str):  # the same file may lie elsewhere on another machine
        model["weights"] = PurePath(weights).name
    return flatten(parts, ignore=_NOT_THE_NETWORK)


def _belongs(facet: _Facet, settings: Mapping[str, Any], seed: int | None, dense: _Dense | None) -> bool:
    if dense is not None and facet.denses:
        if any(known[:2] != dense[:2] for known in facet.denses.values()) or facet.denses.get(seed, dense) != dense:
            return False
        if facet.is_given:  # equal costs and accuracy: the same weights, wherever they are from
            return True
    return all(facet.settings.get(key, value) == value for key, value in settings.items())


def _details(found: Sequence[_Facet]) -> list[str]:
    """For each facet of one name what tells it from the others; "" for a single one."""
    if len(found) == 1:
        return [""]
    parts: list[list[str]] = [[] for _ in found]
    for place, write in ((2, _accuracies), (0, _macs), (1, _params)):
        values = [{dense[place] for dense in facet.denses.values()} for facet in found if facet.denses]
        if any(value != values[0] for value in values):
            for facet, own in zip(found, parts, strict=True):
                if facet.denses:
                    own.append(write([dense[place] for dense in facet.denses.values()]))
    for facet, own in zip(found, parts, strict=True):
        if not facet.denses:
            own.append(f"unfinished, weights {facet.settings.get('model.weights')}")
    texts = [", ".join(own) for own in parts]
    return [
        text if texts.index(text) == index else f"{text}, no. {texts[:index].count(text) + 1}"
        for index, text in enumerate(texts)
    ]


def _accuracies(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"dense {_range(known, lambda value: f'{100 * value:.2f}'.rstrip('0').rstrip('.'))}%" if known else "dense ?"


def _macs(values: Sequence[float | None]) -> str:
    return f"{_range([value or 0.0 for value in values], lambda value: f'{value / 1e6:.4g}')}M MACs"


def _params(values: Sequence[float | None]) -> str:
    return f"{_range([value or 0.0 for value in values], lambda value: f'{value:,.0f}')} parameters"


def _range(values: Sequence[float], write: Callable[[float], str]) -> str:
    low, high = write(min(values)), write(max(values))
    return low if low == high else f"{low}–{high}"


def _own_networks(label: str, facet: _Facet) -> list[str]:
    if facet.settings.get("model.weights") == "random":
        return [f"in {label} each search trains weights of its own: there is no one dense network to compare with"]
    accuracies = [dense[2] for dense in facet.denses.values()]
    if len(set(accuracies)) < 2:
        return []
    return [
        f"in {label} each seed trained a dense network of its own ({_accuracies(accuracies).removeprefix('dense ')} on "
        "the test split): the spread over seeds holds theirs too"
    ]
