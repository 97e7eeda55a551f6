"""Pruning and fine-tuning by turns: every stage is a run of its own that cuts what the one before ended with.

AMC's fine-grained networks were made so (He et al., ECCV 2018, arXiv:1802.03494, section 4.2: ResNet-50 in four
stages), as were those of Han et al. (2015, arXiv:1506.02626). A stage keeps no more of a layer than the stage before
left, so that what is gone stays gone; and it is compared with the dense network, not with the stage before.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from compsearch.assembly import network_parts
from compsearch.budget import budget_from_ratio
from compsearch.composition import check, make, takes
from compsearch.family import FAMILY_FILE, load_state
from compsearch.loading import MODEL_FILE, NETWORK_FILE, POLICY_FILE
from compsearch.report.family_plot import save_family
from compsearch.report.neighbours import finished_beside
from compsearch.run_folder import SUMMARY_FILE, RunFolder
from compsearch.space import Policy
from compsearch.summary import FamilyMember, SearchCost, Summary

_logger = logging.getLogger(__name__)

#: Does the run of a config in its folder, or goes on with it, or gives its result where it is finished.
Search = Callable[[Mapping[str, Any], RunFolder], Summary]


def run_stages(config: Mapping[str, Any], folder: RunFolder, search: Search, *, ignore: Sequence[str]) -> Summary:
    """Does, or goes on with, every stage of `config` in a folder of its own below `folder`; the last is the result.

    `folder` gets the last stage's policy and weights, a family of all stages' networks, and the summary, whose table is
    the last stage's. `ignore` are settings that a run may be resumed with others of. Raises ValueError, before anything
    is trained, when the stages don't fit together or the last one is out of reach.
    """
    _check(config)
    ratios = config["stages"]
    paths = [folder.path / f"stage{index}-{ratio:g}" for index, ratio in enumerate(ratios, start=1)]
    summaries: list[Summary] = []
    for index, (ratio, path) in enumerate(zip(ratios, paths, strict=True)):
        stage = stage_config(config, ratio, path, paths[index - 1] if index else None)
        # The whole folder may have been moved since; the stage before is still the one beside this.
        with RunFolder(path, stage, ignore=(*ignore, "surgery.start")) as own:
            summary = search(stage, own)
        summaries.append(summary)
        shown = ", ".join(
            f"{row.name} {row.accuracy_search:.2%}" for row in summary.networks if row.accuracy_search is not None
        )
        _logger.info("stage %d of %d, cost_ratio %g: %s on the search split", index + 1, len(ratios), ratio, shown)
    return _finish(config, folder, ratios, paths, summaries)


def stage_config(config: Mapping[str, Any], cost_ratio: float, path: Path, previous: Path | None) -> dict[str, Any]:
    """The config of an ordinary run in `path` that goes on from the run in `previous`, or from the dense network."""
    at_most, start = None, None
    if previous is not None:
        at_most = Policy.from_json(json.loads((previous / POLICY_FILE).read_text())).counts
        start = str(previous / MODEL_FILE)
    resource = config["budget"]["resource"]
    return {
        **config,
        "stages": None,
        "budget": {**config["budget"], "cost_ratio": cost_ratio, "label": f"{resource}{cost_ratio:g}"},
        "surgery": {**config["surgery"], "start": start},
        "space": {**config["space"], "at_most": at_most},
        "run_name": f"{config['run_name']}/{path.name}",
    }


def _check(config: Mapping[str, Any]) -> None:
    check(config)
    ratios, budget = config["stages"], config["budget"]
    starts = takes(config["surgery"], "start", place="surgery") and takes(config["space"], "at_most", place="space")
    if not starts:
        raise ValueError(
            f"stages need a space of weights, where a network keeps its shape, but got {ratios} in one of channels; "
            "use space=fine_grained or space=blocks, or stages=null"
        )
    if not ratios or any(not 0 < ratio < 1 for ratio in ratios) or any(a <= b for a, b in itertools.pairwise(ratios)):
        raise ValueError(f"`stages` must be falling cost_ratios between 0 and 1, at least one, but got {ratios}")
    if budget["limit"] is not None or budget["cost_ratios"] is not None or budget["cost_ratio"] != ratios[-1]:
        given = ", ".join(f"{key}={budget[key]}" for key in ("cost_ratio", "limit", "cost_ratios"))
        raise ValueError(
            f"the last stage must be the budget, but got stages={ratios} and budget {given}; "
            f"set budget.cost_ratio={ratios[-1]:g} and nothing else"
        )
    # What the smallest policy costs is the same in every stage, so the last one is looked at before the first is run.
    available = network_parts({**config, "model": {**config["model"], "weights": "random"}})
    available["surgery"] = make(config["surgery"], available, place="surgery")
    available["space"] = make(config["space"], available, place="space")
    place = f"cost_models.{budget['resource']}"
    if budget["resource"] in ("macs", "params"):
        cost_model = make(config["cost_models"][budget["resource"]], available, place=place)
        budget_from_ratio(cost_ratio=ratios[-1], cost_model=cost_model, space=available["space"])


def _finish(
    config: Mapping[str, Any],
    folder: RunFolder,
    ratios: Sequence[float],
    paths: Sequence[Path],
    summaries: Sequence[Summary],
) -> Summary:
    last, costs = summaries[-1], [summary.search_cost for summary in summaries]
    names = ", ".join(path.name for path in paths)
    notes = [f"pruned and fine-tuned in {len(paths)} stages, each from the weights of the one before: {names}"]
    if last.network("uniform") is not None and len(paths) > 1:
        notes.append("uniform is the last stage's: one density for what the stage before it had left")
    summary = dataclasses.replace(
        last,
        run_name=config["run_name"],
        search_cost=SearchCost(
            num_trials=sum(cost.num_trials for cost in costs),
            num_failed=sum(cost.num_failed for cost in costs),
            num_images=sum(cost.num_images for cost in costs),
            wall_s=sum(cost.wall_s for cost in costs),
            cpu_s=None if any(cost.cpu_s is None for cost in costs) else sum(cost.cpu_s or 0.0 for cost in costs),
        ),
        notes=(*last.notes, *notes),
        # Without each stage's uniform network: they continue this search, and make no curve of their own.
        family=tuple(
            FamilyMember(ratio, tuple(row for row in stage.networks if row.name in ("compressed", "fine-tuned")))
            for ratio, stage in zip(ratios, summaries, strict=True)
        ),
    )
    resource = config["budget"]["resource"]
    policies = [json.loads((path / POLICY_FILE).read_text()) for path in paths]
    members = [
        {
            "cost_ratio": ratio,
            "achieved_cost_ratio": stage.ratios(stage.networks[1])[resource],
            "weights": f"{path.name}/{MODEL_FILE}",
            "policy": policy,
        }
        for ratio, path, policy, stage in zip(ratios, paths, policies, summaries, strict=True)
    ]
    folder.write_json(POLICY_FILE, policies[-1])
    folder.write_json(NETWORK_FILE, json.loads((paths[-1] / NETWORK_FILE).read_text()))
    folder.write_torch(MODEL_FILE, load_state(paths[-1] / MODEL_FILE))
    folder.write_json(FAMILY_FILE, {"resource": resource, "genome": {}, "members": members})
    title = f"{summary.model} on {summary.dataset}, {summary.searcher}, in stages, seed {summary.seed}"
    others = finished_beside(folder.path, summary)
    save_family(folder.path / "family.png", summary, resource=resource, title=title, others=others)
    folder.finish("summary", summary.to_json())
    folder.write_json(SUMMARY_FILE, summary.to_json())
    return summary
