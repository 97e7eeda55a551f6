"""What a search learned, taken over by a run that differs in nothing but its budget."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compsearch.run_folder import CONFIG_FILE, SUMMARY_FILE, RunFolderError, differing_keys, read_config

LEARNED_FILE = "learned.json"

_logger = logging.getLogger(__name__)

#: Settings that what is learned doesn't depend on, beside those that no result depends on.
UNLEARNED = (
    "budget.cost_ratio",
    "budget.cost_ratios",
    "budget.label",
    "finalist.repairs",
    "finalist.latency_margin",
    "finetune",
    "dataset.finetune_epochs",
    "workbench",
    "loader",
    "baseline",
)


#: The same, where no latency is among the costs.
_UNLEARNED_WITHOUT_LATENCY = ("latency", "runtime")


def learned_beside(path: Path, config: Mapping[str, Any], *, ignore: tuple[str, ...]) -> dict[str, Any]:
    """What a finished run in a folder beside `path` learned under `config` but for the budget; empty without one.

    It must have been learned at a cost_ratio of the same resource no higher than `config`'s; of several the nearest
    counts. The result is that run's learned.json: ``run``, ``cost_ratio`` and ``genome``.
    """
    wanted = lowest_ratio(config)
    if wanted is None or not path.parent.is_dir():
        return {}
    is_timed = "latency_ms" in config["cost_models"]
    ignore = (*ignore, *UNLEARNED, *(() if is_timed else _UNLEARNED_WITHOUT_LATENCY))
    found: list[dict[str, Any]] = []
    for other in sorted(path.parent.iterdir()):
        if other == path or not (other / CONFIG_FILE).is_file() or not (other / SUMMARY_FILE).is_file():
            continue
        with contextlib.suppress(RunFolderError, OSError, ValueError):
            if differing_keys(read_config(other), config, ignore=ignore):
                continue
            learned = json.loads((other / LEARNED_FILE).read_text())
            if learned["genome"]:
                found.append(learned)
    usable = [learned for learned in found if learned["cost_ratio"] <= wanted]
    if found and not usable:
        _logger.info(
            "learning anew: %s learned at cost_ratio %g, above this budget of %g; name the lowest budget first",
            found[0]["run"],
            found[0]["cost_ratio"],
            wanted,
        )
    return max(usable, key=lambda learned: float(learned["cost_ratio"]), default={})


def lowest_ratio(config: Mapping[str, Any]) -> float | None:
    """The cost_ratio that the search of `config` keeps to, None for another kind of budget."""
    budget = config["budget"]
    if budget["limit"] is not None:
        return None
    lowest = min(budget["cost_ratios"]) if budget["cost_ratios"] else budget["cost_ratio"]
    return None if lowest is None else float(lowest)
