"""What a node of a resolved configuration is called: the word that chose it on the command line."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped, unused-ignore]

from compsearch.composition import conf_dir


def searcher_word(config: Mapping[str, Any]) -> str:
    """The searcher's module, as it is typed: ``random`` for ``searchers.random_search.RandomSearch``."""
    parts = str(config["searcher"]["_target_"]).split(".")
    return parts[max(0, len(parts) - 2)].removesuffix("_search")


def option_word(group: str, node: Mapping[str, Any]) -> str:
    """The option of conf/`group` that `node`, which has a `_target_`, is nearest to; else the target's own name.

    An option is of the same target. The one that says the fewest settings otherwise is the nearest; settings that it
    takes from elsewhere in the configuration, and null ones that a `node` of an earlier version lacks, don't count.
    """
    found = [(_distance(option, node), name) for name, option in _options(group).items() if _is_of(option, node)]
    return min(found)[1] if found else str(node["_target_"]).rpartition(".")[2]


def budget_word(resource: str, *, is_limited: bool = True) -> str:
    """The option of conf/budget for `resource`; the resource itself where there is none."""
    if not is_limited:
        return "unlimited"
    named = (name for name, option in _options("budget").items() if option.get("resource") == resource)
    return next((name for name in named if name != "unlimited"), resource)


def _is_of(option: Mapping[str, Any], node: Mapping[str, Any]) -> bool:
    return "_target_" in option and option["_target_"] == node["_target_"]


def _distance(option: Mapping[str, Any], node: Mapping[str, Any]) -> int:
    return sum(
        node.get(key) != value
        for key, value in option.items()
        if key != "defaults" and not (isinstance(value, str) and "${" in value) and not isinstance(value, dict | list)
    )


@functools.cache
def _options(group: str) -> Mapping[str, Mapping[str, Any]]:
    """The content of each file of conf/`group` by the file's name; empty where there is no such group."""
    files = sorted((conf_dir() / Path(group)).glob("*.yaml"))
    return {file.stem: yaml.safe_load(file.read_text()) or {} for file in files}


def dataset_word(config: Mapping[str, Any]) -> str:
    """The option of conf/dataset that builds what `config`'s dataset is built by, "" where there is none."""
    try:
        target = config["dataset"]["build"]["_target_"]
        options = _options("dataset").items()
        return next((name for name, option in options if option["build"]["_target_"] == target), "")
    except (KeyError, TypeError):
        return ""
