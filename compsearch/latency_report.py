"""``python -m compsearch latency``: what a network takes on this machine, before anything is searched.

The staircase of its heaviest layers and the channel counts the runtime likes; the table of its layers; the predictor,
checked on networks measured as a whole; and uniform networks of several sizes, aligned and not: did latency fall as
FLOPs did?
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compsearch.assembly import network_parts, traced_space
from compsearch.budget import budget_from_ratio
from compsearch.composition import check, make
from compsearch.report.latency_plot import save_latency
from compsearch.report.latency_table import LatencyRow, latency_markdown, latency_table
from compsearch.report.predictor_plot import CheckedPolicy, save_predictor
from compsearch.report.staircase_plot import Staircase, StaircasePanel, save_staircase
from compsearch.report.timed import Spread, Timed
from compsearch.run_folder import RunFolder
from compsearch.space import SearchSpace

#: Of the macs, of the uniform networks.
COST_RATIOS = (0.7, 0.5, 0.3)
PREDICTOR_PLOT = "predictor.png"
STAIRCASE_PLOT = "staircase.png"
LATENCY_PLOT = "latency.png"
TABLE_FILE = "latency.md"


def report_latency(config: Mapping[str, Any], path: Path, *, ignore: Sequence[str]) -> str:
    """Measures what `config` says into the folder `path`; returns the text for the terminal. Trains nothing.

    Raises ValueError for what a user can mend.
    """
    check(config)
    if "latency_ms" not in config["cost_models"] or config["alignment"]["divisor"] is None:
        raise ValueError(
            "`latency` needs budget=latency and alignment=measured, which it sets by itself: leave both out"
        )
    with RunFolder(path, config, ignore=ignore) as folder:
        network = {**config, "model": {**config["model"], "weights": "random"}}
        available = network_parts(network)
        available |= {"once": folder.once, "runtime": make(config["runtime"], available, place="runtime")}
        available["latency"] = make(config["latency"], available, place="latency")
        available["surgery"] = make(config["surgery"], available, place="surgery")
        space, aligned = traced_space(config, available, folder.once)
        priced = {**available, "space": space}
        priced["inventory"] = make(config["inventory"], priced, place="inventory")
        cost_model = make(config["cost_models"]["latency_ms"], priced, place="cost_models.latency_ms")
        unaligned = make({**config["space"], "divisor": 1}, available, place="space")
        spaces = {f"multiples of {aligned['divisor']}": space, "any width": unaligned}
        found = folder.once("uniform", lambda: {"networks": _uniform(config, available, spaces)})["networks"]
        alignment = folder.result("alignment")
        model = folder.result("latency_model")
        assert alignment is not None
        assert model is not None
        title = f"{config['model']['name']}, input {'×'.join(map(str, available['example_input'].shape[1:]))}"
        device = model["device"]
        _draw(folder.path, alignment, model, found, title, device)
        runtime = model["fingerprint"]["runtime"]
        rows = [LatencyRow(row["name"], row["macs_ratio"], {runtime: Spread(**row["ratio"])}) for row in found]
        heading, devices = f"{title}: latency against FLOPs, uniform networks", {runtime: device}
        folder.write_text(TABLE_FILE, latency_markdown(rows, title=heading, devices=devices) + "\n")
        lines = [
            "",
            latency_table(rows, title=heading, devices=devices),
            "",
            f"dense: {found[0]['median_ms']:.3f} ms",
            f"channels come in steps of {aligned['divisor']}",
            cost_model.note,
            "",
            *(str(path / name) for name in (STAIRCASE_PLOT, PREDICTOR_PLOT, LATENCY_PLOT, TABLE_FILE)),
        ]
    return "\n".join(lines)


def _uniform(
    config: Mapping[str, Any], available: Mapping[str, Any], spaces: Mapping[str, SearchSpace]
) -> list[dict[str, Any]]:
    """Uniform networks of every space at each of `COST_RATIOS` of the macs, measured in turns with the dense one."""
    networks: dict[str, Any] = {"dense": available["model"]}
    ratios = {"dense": 1.0}
    for label, space in spaces.items():
        inside = {**available, "space": space}
        macs = make(config["cost_models"]["macs"], inside, place="cost_models.macs")
        inside |= {"cost_model": macs, "evaluator": None}
        inside["importance"] = make(config["importance"], inside, place="importance")
        for cost_ratio in COST_RATIOS:
            budget = budget_from_ratio(cost_ratio=cost_ratio, cost_model=macs, space=space)
            policy = make(config["baseline"], {**inside, "budget": budget}, place="baseline").policy
            name = f"uniform {cost_ratio:.0%}, {label}"
            networks[name] = available["surgery"](available["model"], space, policy)
            ratios[name] = macs.cost(policy) / budget.dense
    latencies = available["latency"].measure(networks, available["example_input"])
    return [
        {
            "name": name,
            "macs_ratio": ratios[name],
            "ratio": {"median": found.ratio, "p10": found.ratio_p10, "p90": found.ratio_p90},
            "median_ms": found.median_ms,
        }
        for name, found in latencies.items()
    ]


def _draw(
    path: Path,
    alignment: Mapping[str, Any],
    model: Mapping[str, Any],
    networks: Sequence[Mapping[str, Any]],
    title: str,
    device: str,
) -> None:
    panels = []
    for axis in ("outputs", "inputs"):
        curves = {
            stair["layer"]: Staircase(stair["widths"], stair["median_us"], stair["p10_us"], stair["p90_us"])
            for stair in alignment["staircases"]
            if stair["axis"] == axis
        }
        if curves:
            panels.append(StaircasePanel(f"{axis.removesuffix('s')} channels", curves, alignment["divisor"]))
    if panels:
        save_staircase(path / STAIRCASE_PLOT, panels, title=title, device=device)
    checked = [
        CheckedPolicy(predicted, Spread(median, p10, p90), is_fitted=part == "fit_")
        for part in ("fit_", "")
        for predicted, median, p10, p90 in zip(
            *(model["check"][f"{part}{name}_ms"] for name in ("predicted", "measured", "p10", "p90")), strict=True
        )
    ]
    save_predictor(path / PREDICTOR_PLOT, checked, title=title, device=device)
    timed = {row["name"]: Timed(row["macs_ratio"], Spread(**row["ratio"])) for row in networks}
    save_latency(
        path / LATENCY_PLOT,
        [point for name, point in timed.items() if name != "dense"],
        title=f"{title}, uniform networks",
        device=device,
        networks={"dense": timed["dense"]},
    )
