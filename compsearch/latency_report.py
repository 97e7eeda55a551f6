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
from compsearch.composition import check, make, takes
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

    Without ``alignment=measured`` there is no staircase, without a latency cost model (``budget=macs``) no table and no
    predictor: what is left are the networks measured as a whole, which any runtime does in minutes.

    Raises ValueError for what a user can mend.
    """
    check(config)
    if not takes(config["space"], "divisor", place="space"):
        raise ValueError(
            "a latency report is of networks with fewer channels, but this space removes none; use space=channels and "
            "a network of one operation in each place"
        )
    with RunFolder(path, config, ignore=ignore) as folder:
        network = {**config, "model": {**config["model"], "weights": "random"}}
        available = network_parts(network)
        available |= {"once": folder.once, "runtime": make(config["runtime"], available, place="runtime")}
        available["latency"] = make(config["latency"], available, place="latency")
        available["surgery"] = make(config["surgery"], available, place="surgery")
        space, aligned = traced_space(config, available, folder.once)
        title = f"{config['model']['name']}, input {'×'.join(map(str, available['example_input'].shape[1:]))}"
        runtime, device = available["runtime"].name, str(available["latency"].fingerprint)
        divisor = aligned.get("divisor", config["space"].get("divisor"))
        unaligned = make({**config["space"], "divisor": 1}, available, place="space")
        spaces = {f"multiples of {divisor}": space, "any width": unaligned}
        uniform = folder.once("uniform", lambda: {"networks": _uniform(config, available, spaces)})["networks"]
        rows = [LatencyRow(row["name"], row["macs_ratio"], {runtime: Spread(**row["ratio"])}) for row in uniform]
        heading, devices = f"{title}: latency against FLOPs, uniform networks", {runtime: device}
        folder.write_text(TABLE_FILE, latency_markdown(rows, title=heading, devices=devices) + "\n")
        _draw_uniform(folder.path, uniform, title, device)
        lines = ["", latency_table(rows, title=heading, devices=devices), ""]
        lines.append(f"dense: {uniform[0]['median_ms']:.3f} ms")
        energies = available["latency"].energies({"dense": available["model"]}, available["example_input"])
        lines.extend(f"energy of a batch, {name}: {reading}" for name, reading in energies.items())
        if not energies:
            lines.append("energy: not measured, as this machine has no counter (RAPL, NVML); energy_mj is analytic")
        files = [LATENCY_PLOT, TABLE_FILE]
        alignment = folder.result("alignment")
        if alignment is not None:
            lines.append(f"channels come in steps of {alignment['divisor']}")
            if alignment["staircases"]:
                _draw_staircases(folder.path, alignment, title)
                files.append(STAIRCASE_PLOT)
        node = config["cost_models"].get("latency_ms")
        if node is not None:
            priced = {**available, "space": space}
            priced["inventory"] = make(config["inventory"], priced, place="inventory")
            lines.append(make(node, priced, place="cost_models.latency_ms").note)
            model = folder.result("latency_model")
            assert model is not None
            _draw_predictor(folder.path, model, title)
            files.append(PREDICTOR_PLOT)
    return "\n".join([*lines, "", *(str(path / name) for name in files)])


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


def _draw_staircases(path: Path, alignment: Mapping[str, Any], title: str) -> None:
    panels = []
    for axis in ("output", "input"):
        curves = {
            stair["layer"]: Staircase(stair["widths"], stair["median_us"], stair["p10_us"], stair["p90_us"])
            for stair in alignment["staircases"]
            if stair["axis"] == f"{axis}s"
        }
        panels.append(StaircasePanel(f"{axis} channels", curves, alignment["divisor"]))
    save_staircase(path / STAIRCASE_PLOT, panels, title=title, device=alignment["device"])


def _draw_predictor(path: Path, model: Mapping[str, Any], title: str) -> None:
    checked = [
        CheckedPolicy(predicted, Spread(median, p10, p90), is_fitted=part == "fit_")
        for part in ("fit_", "")
        for predicted, median, p10, p90 in zip(
            *(model["check"][f"{part}{name}_ms"] for name in ("predicted", "measured", "p10", "p90")), strict=True
        )
    ]
    save_predictor(path / PREDICTOR_PLOT, checked, title=title, device=model["device"])


def _draw_uniform(path: Path, networks: Sequence[Mapping[str, Any]], title: str, device: str) -> None:
    timed = {row["name"]: Timed(row["macs_ratio"], Spread(**row["ratio"])) for row in networks}
    save_latency(
        path / LATENCY_PLOT,
        [point for name, point in timed.items() if name != "dense"],
        title=f"{title}, uniform networks",
        device=device,
        networks={"dense": timed["dense"]},
    )
