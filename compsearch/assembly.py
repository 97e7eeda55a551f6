"""From a configuration to the objects of a run, each built from the ones before."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from compsearch.budget import Budget, budget_from_limit, budget_from_ratio
from compsearch.composition import check, make, make_network, offers, takes
from compsearch.importance import LayerImportance
from compsearch.inputs import check_inputs
from compsearch.protocols import CostModel, Evaluator, Once, Searcher, Workbench
from compsearch.rehearsal import rehearse
from compsearch.space import SearchSpace
from compsearch.summary import StoredSize
from compsearch.trial import Genome


@dataclass(frozen=True)
class Parts:
    """What a run is made of.

    `budgets` are those of the family, largest first; the last one is `budget`, which the search keeps to. Without a
    budget there are none. `shapes` is what building the network takes from the dataset: num_classes, image_size and the
    input_shape of one image. `sizes` says what a network takes on disk.
    """

    space: SearchSpace
    evaluator: Evaluator
    cost_models: Mapping[str, CostModel]
    cost_model: CostModel
    importance: LayerImportance
    budget: Budget | None
    budgets: tuple[Budget, ...]
    searcher: Searcher
    baseline: Searcher
    workbench: Workbench
    sizes: Callable[[Any], StoredSize]
    shapes: Mapping[str, Any]


_logger = logging.getLogger(__name__)


def compute(name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """An `Once` that keeps nothing."""
    return make()


def assemble(
    config: Mapping[str, Any],
    *,
    splits: Any = None,
    model: Any = None,
    learned: Genome | None = None,
    once: Once = compute,
) -> Parts:
    """Builds everything `config` names, each from the ones before; `splits` and `model` may be given ready-made.

    `learned` is the genome that an earlier search ended with, for searchers that can go on from one. `once` keeps what
    is measured on the way, so that a resumed run goes on with the same numbers.

    What doesn't need the weights comes first, so that a budget out of reach is refused before a network is trained.
    """
    check(config)
    available = network_parts(config, splits=splits, model=model)
    splits = available["splits"]
    if config["stages"] is not None:
        raise ValueError(f"stages are one run each, which only the command line does, but got {config['stages']}")
    available["surgery"] = make(config["surgery"], available, place="surgery")
    available |= {"once": once, "runtime": make(config["runtime"], available, place="runtime")}
    available["latency"] = make(config["latency"], available, place="latency")
    space, aligned = traced_space(config, available, once)
    available["surgery"].check(space)
    if not space.groups and not offers(config["searcher"], "chooses_operations", place="searcher"):
        name = config["searcher"]["_target_"].rsplit(".", 1)[-1]
        raise ValueError(
            f"{name} chooses channels, but this space has operations only; use searcher=proxylessnas, random or uniform"
        )
    available["space"] = space
    if any(takes(node, "inventory", place=f"cost_models.{name}") for name, node in config["cost_models"].items()):
        # Taking one runs as many networks as there are groups, so only where a cost model asks for it.
        available["inventory"] = make(config["inventory"], available, place="inventory")
    cost_models: dict[str, CostModel] = make(config["cost_models"], available, place="cost_models")
    cost_model, budgets = _budgets(config, cost_models, space)
    budget = budgets[-1] if budgets else None
    available |= {"cost_models": list(cost_models.values()), "cost_model": cost_model, "budget": budget}
    train = {**available, "split": splits.train}
    available["calibration"] = make(config["calibration"], train, place="calibration")
    more = {**config["calibration"], "num_images": config["finalist"]["calibration_images"]}
    final_calibration = make(more, train, place="finalist.calibration_images")
    available["split"] = splits.search
    recovery = make(config["recover"], available, place="recover")
    thorough = {**available, "calibration": final_calibration}
    final_recovery = make(config["finalist"]["recover"], thorough, place="finalist.recover")
    available["evaluator"] = make(config["evaluator"], {**available, "recovery": recovery}, place="evaluator")
    finetune = make(config["finetune"], available, place="finetune")
    sizes = make(config["sizes"], available, place="sizes")
    rehearse(config["searcher"], available)
    if model is None:
        _give_weights(config, available)
    check_inputs(config, once, model=available["model"], splits=splits, calibration=final_calibration)
    available["importance"] = make(config["importance"], available, place="importance")
    available["learned"] = learned
    if takes(config["searcher"], "supernet", place="searcher"):
        available["supernet"] = make(config["supernet"], available, place="supernet")
    workbench = make(
        config["workbench"], {**available, "recovery": final_recovery, "recipe": finetune}, place="workbench"
    )
    return Parts(
        space=space,
        evaluator=available["evaluator"],
        cost_models=cost_models,
        cost_model=cost_model,
        importance=available["importance"],
        budget=budget,
        budgets=budgets,
        searcher=make(config["searcher"], available, place="searcher"),
        baseline=make(config["baseline"], available, place="baseline"),
        workbench=workbench,
        sizes=sizes,
        shapes={
            "num_classes": available["num_classes"],
            "image_size": available["image_size"],
            "input_shape": list(available["example_input"].shape[1:]),
            "space": aligned,
        },
    )


def traced_space(
    config: Mapping[str, Any], available: Mapping[str, Any], once: Once
) -> tuple[SearchSpace, dict[str, Any]]:
    """The space of the configured network, and the settings in which it differs from the configured one.

    Where channel counts are to be what the runtime prefers, that is measured first. Raises ValueError for a network
    without anything to prune.
    """
    own = searcher_settings(config)

    def traced(settings: Mapping[str, Any]) -> SearchSpace:
        space: SearchSpace = make({**config["space"], **settings}, available, place="space")
        if not space.groups and not space.blocks:
            raise ValueError(
                f"a network must have channels to prune, but {config['model']['name']} has none: see inspect"
            )
        return space

    alignment = config["alignment"]
    if alignment["divisor"] is None:
        return traced(own), own
    if not takes(config["space"], "divisor", place="space"):
        raise ValueError("alignment=measured must have channels to align, but this space removes none; alignment=none")

    def measure() -> dict[str, Any]:
        found: dict[str, Any] = make(
            alignment["divisor"], {**available, "space": traced({**own, "divisor": 1})}, place="alignment.divisor"
        )
        return found

    preferred, configured = once("alignment", measure)["divisor"], config["space"]["divisor"]
    # The runtime's steps, but none finer than those configured.
    aligned = {**own, "divisor": math.lcm(preferred, configured), "min_choices": alignment["min_choices"]}
    _logger.info(
        "channel counts are multiples of %d: the runtime prefers %d, space.divisor is %d; alignment=none for it alone",
        aligned["divisor"],
        preferred,
        configured,
    )
    return traced(aligned), aligned


def searcher_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the space leaves to the searcher: whether blocks may be skipped, a choice only for those that make it."""
    if config["space"].get("skip_blocks", False) is not None:
        return {}
    return {"skip_blocks": takes(config["searcher"], "supernet", place="searcher")}


def network_parts(config: Mapping[str, Any], *, splits: Any = None, model: Any = None) -> dict[str, Any]:
    """The first collaborators: seed, device, splits and the dense network, as yet without its weights."""
    device = make(config["device_resolver"], {"device": config["device"]}, place="device")
    available = {"seed": config["seed"], "device": device}
    if splits is None:
        splits = make(config["dataset"]["build"], available, place="dataset.build")
    available |= {"splits": splits, "num_classes": splits.num_classes, "image_size": splits.image_size}
    if model is None:
        node, choice = config["model"]["build"], config["model"]["weights"]

        def build(weights: str | None) -> Any:
            if weights is not None and not takes(node, "weights", place="model.build"):
                raise ValueError(
                    f"`model.weights` must be trained, random or the path of a state_dict for "
                    f"{config['model']['name']}, but got {choice!r}, which is no file"
                )
            return make_network(node, {**available, "weights": weights})

        model = make(config["network"], {**available, "build": build, "weights": choice}, place="network")
    images, _ = next(iter(splits.train.batches(2)))
    return {**available, "model": model.to(device), "example_input": images.to(device)}


def _give_weights(config: Mapping[str, Any], available: Mapping[str, Any]) -> None:
    recipe = make(config["pretrain"], available, place="pretrain")
    description = {"description": {"build": config["model"]["build"]}, "name": config["model"]["name"]}
    choice = {"weights": config["model"]["weights"], "cache_dir": config["cache_dir"], "recipe": recipe}
    make(config["weights"], {**available, **description, **choice}, place="weights")


def _budgets(
    config: Mapping[str, Any], cost_models: Mapping[str, CostModel], space: SearchSpace
) -> tuple[CostModel, tuple[Budget, ...]]:
    """The cost model of the budget's resource, and the budgets, largest first; none where there is no limit."""
    node = config["budget"]
    resource, cost_ratio, limit, cost_ratios = (node[key] for key in ("resource", "cost_ratio", "limit", "cost_ratios"))
    if resource not in cost_models:
        raise ValueError(f"`budget.resource` must be one of {', '.join(cost_models)}, but got {resource!r}")
    cost_model = cost_models[resource]
    if limit is not None and (cost_ratio is not None or cost_ratios is not None):
        raise ValueError(
            f"only one of budget.cost_ratio(s) and budget.limit may be set, but got {cost_ratio=}, {cost_ratios=} and "
            f"{limit=}; add budget.cost_ratio=null budget.cost_ratios=null, or budget.limit=null"
        )
    if limit is not None:
        return cost_model, (budget_from_limit(limit=limit, cost_model=cost_model, space=space),)
    ratios = [cost_ratio] if cost_ratio is not None else []
    if cost_ratios is not None:
        ratios = sorted(cost_ratios, reverse=True)
        # Distinct as written, too: files and stages are named by them.
        if not ratios or len({f"{ratio:g}" for ratio in ratios}) != len(ratios):
            raise ValueError(f"`budget.cost_ratios` must be distinct and at least one, but got {cost_ratios}")
        if not offers(config["searcher"], "family", place="searcher"):
            name = config["searcher"]["_target_"].rsplit(".", 1)[-1]
            raise ValueError(
                f"budget.cost_ratios needs a searcher that gives a family, but {name} gives one network per search; "
                f"sweep instead: -m budget.cost_ratio={','.join(f'{ratio:g}' for ratio in ratios)}"
            )
    return cost_model, tuple(
        budget_from_ratio(cost_ratio=ratio, cost_model=cost_model, space=space) for ratio in ratios
    )
