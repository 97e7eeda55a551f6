"""Latency as a resource: measured layers, a fitted rest, and a check of how good that is on networks measured whole."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from backends.inventory import Inventory
from backends.latency import LatencyMeter
from backends.latency_predictor import LatencyPredictor, grid_entries, grid_widths, measured_grids
from backends.latency_table import LatencyTable, table_path
from backends.layer_shapes import layer_calls
from backends.macs import policy_counts
from backends.surgery import Surgery
from compsearch import atomic
from compsearch.candidates import Candidates
from compsearch.protocols import Once
from compsearch.report.agreement import MAX_MAPE, MIN_TAU, kendall_tau, mape, prediction_verdict
from compsearch.space import FloatArray, IntArray, Policy, SearchSpace
from compsearch.summary import Latency

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PredictorOptions:
    """How the predictor is made.

    A layer shape is measured at `max_points` numbers of inputs and of outputs at most, in `rounds` rounds of `samples`
    samples of `min_sample_us` each. `fit_policies` random networks are measured for the fit, `check_policies` others
    for the check; the dense and the smallest one are always among those of the fit.
    """

    max_points: int
    rounds: int
    samples: int
    min_sample_us: float
    fit_policies: int
    check_policies: int

    def __post_init__(self) -> None:
        for name, least in (("max_points", 2), ("rounds", 1), ("samples", 1), ("fit_policies", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"a latency predictor's `{name} >= {least}` must hold, but got {getattr(self, name)}")
        if self.check_policies < 2:
            raise ValueError(
                f"a latency predictor's `check_policies >= 2` must hold, but got {self.check_policies}; it is not to "
                "be trusted unchecked"
            )


@dataclass(frozen=True)
class PredictorCheck:
    """Milliseconds predicted and measured of networks that the fit has not seen; those with `fit_` it has.

    Measured are medians, with the 10th and 90th percentile.
    """

    fit_predicted_ms: tuple[float, ...]
    fit_measured_ms: tuple[float, ...]
    fit_p10_ms: tuple[float, ...]
    fit_p90_ms: tuple[float, ...]
    predicted_ms: tuple[float, ...]
    measured_ms: tuple[float, ...]
    p10_ms: tuple[float, ...]
    p90_ms: tuple[float, ...]

    @property
    def mape(self) -> float:
        """Mean absolute error of the prediction as a fraction of what was measured, on unseen networks."""
        return mape(self.predicted_ms, self.measured_ms)

    @property
    def tau(self) -> float:
        """Kendall's rank correlation of predicted and measured, on unseen networks."""
        return kendall_tau(self.predicted_ms, self.measured_ms)

    @property
    def is_good(self) -> bool:
        return not prediction_verdict(self.mape, self.tau)

    def __str__(self) -> str:
        return f"MAPE {self.mape:.1%}, Kendall tau {self.tau:.2f} on {len(self.measured_ms)} unseen networks"


class LatencyCost:
    """Predicted milliseconds of one batch; implements `compsearch.protocols.ExpectedCostModel`."""

    resource = "latency_ms"
    #: What a budget in it allows must be measured at the end.
    is_predicted = True

    def __init__(self, *, space: SearchSpace, predictor: LatencyPredictor, check: PredictorCheck, device: str) -> None:
        self.space = space
        self.predictor = predictor
        self.check = check
        self.device = device

    def cost(self, policy: Policy) -> float:
        """The cost of one policy. Raises ValueError when it belongs to another space."""
        return float(self.costs(policy_counts(self.space, policy))[0])

    def costs(self, choices: IntArray) -> FloatArray:
        """Milliseconds [num_policies] of kept units per group and, if given, operations per block behind them.

        The dense network's are measured: cost_ratios are to it, and where it is off the trend, all of them would be.
        """
        choices = np.asarray(choices)
        predicted = self.predictor.costs(choices)
        is_dense = (choices == self.space.dense_choices[: choices.shape[1]]).all(axis=1)
        costs: FloatArray = np.where(is_dense, self.check.fit_measured_ms[0], predicted)
        return costs

    def expected(self, candidates: Candidates, probabilities: Tensor) -> Tensor:
        """The mean milliseconds, a scalar, of networks drawn choice by choice, as `LatencyPredictor.expected` has it.

        Differentiable in `probabilities` [num_choices, most candidates]. The dense network, one of very many, is in it
        as predicted, not as measured.
        """
        return self.predictor.expected(candidates, probabilities)

    @property
    def note(self) -> str:
        """How far the prediction can be trusted, a sentence for every result that uses it."""
        if self.check.is_good:
            return f"latency of policies is predicted for {self.device}: {self.check}"
        return (
            f"THE LATENCY PREDICTION IS POOR: {self.check}, {MAX_MAPE:.0%} and {MIN_TAU} would be good; predicted "
            f"latencies mislead, measured ones (the table's) don't. It was made for {self.device}"
        )


class UnchangedLatencyCost:
    """The latency of networks that lose weights and keep their shapes: that of the dense one, zeros take as long."""

    resource = "latency_ms"
    note = (
        "latency does not change: these networks keep the dense one's shapes, and zeros take as long as other weights"
    )

    def __init__(self, *, space: SearchSpace, ms: float) -> None:
        self.space = space
        self.ms = ms

    def cost(self, policy: Policy) -> float:
        """Milliseconds of the dense network. Raises ValueError when the policy belongs to another space."""
        self.space.check(policy)
        return self.ms

    def costs(self, choices: IntArray) -> FloatArray:
        """The same for each of the policies [num_policies, num_groups]."""
        return np.full(len(choices), self.ms)


def latency_cost(
    *,
    model: nn.Module,
    space: SearchSpace,
    example_input: Tensor,
    latency: LatencyMeter,
    inventory: Inventory,
    surgery: Surgery,
    once: Once,
    seed: int,
    table_dir: str,
    options: PredictorOptions,
) -> LatencyCost | UnchangedLatencyCost:
    """The latency of the networks that `surgery` makes of `model`, for the device and runtime of `latency`.

    What is missing in the device's table (a file in `table_dir`) is measured and kept there, and so is the predictor of
    this network. A run takes it over `once`, so that it goes on with the same numbers however often it is resumed.
    """
    if space.sparse:
        dense = once(
            "latency_model", lambda: {"ms": latency.measure({"dense": model}, example_input)["dense"].median_ms}
        )
        return UnchangedLatencyCost(space=space, ms=dense["ms"])

    def build() -> dict[str, Any]:
        what = (space.fingerprint, tuple(example_input.shape[1:]), latency.fingerprint.key, seed, options)
        if space.blocks:
            what = (*what, space.blocks, space.layers)  # type: ignore[assignment]  # names alone don't tell strides
        path = Path(table_dir) / f"predictor-{hashlib.sha256(repr(what).encode()).hexdigest()[:16]}.json"
        if path.exists():
            kept: dict[str, Any] = json.loads(path.read_text())
            return kept
        built = _build(model, space, example_input, latency, inventory, surgery, seed, Path(table_dir), options)
        atomic.write_json(path, built)
        return built

    data = once("latency_model", build)
    found, here = data["device"], str(latency.fingerprint)
    if found != here:
        raise ValueError(
            f"a run must go on on the device that its latencies were measured on, {found}, but this is {here}; start a "
            "new one with another run_name"
        )
    predictor = LatencyPredictor.from_json(data["predictor"], calls=layer_calls(model, space, example_input))
    check = check_of(data)
    cost = LatencyCost(space=space, predictor=predictor, check=check, device=found)
    (log.info if check.is_good else log.warning)("%s", cost.note)
    return cost


def _build(
    model: nn.Module,
    space: SearchSpace,
    example_input: Tensor,
    latency: LatencyMeter,
    inventory: Inventory,
    surgery: Surgery,
    seed: int,
    table_dir: Path,
    options: PredictorOptions,
) -> dict[str, Any]:
    calls = layer_calls(model, space, example_input)
    widths = grid_widths(calls, space, max_points=options.max_points)
    table = LatencyTable(table_path(table_dir, latency.fingerprint), latency)
    entries = (entry for shape, axes in widths.items() for row in grid_entries(shape, *axes) for entry in row)
    table.measure(entries, samples=options.samples, min_sample_us=options.min_sample_us, rounds=options.rounds)
    predictor = LatencyPredictor(calls=calls, grids=measured_grids(table, widths), traffic=inventory.other_traffic)
    num_fit = options.fit_policies + 2
    drawn = random_choices(space, options.fit_policies + options.check_policies, seed)
    choices = np.stack([space.dense_choices, space.smallest_choices, *drawn])
    measured = measure_policies(model, space, choices, example_input, latency, surgery)
    # Ratios to the dense network, measured in turns, don't drift; one number makes milliseconds of them.
    relative = [(found.ratio or 0.0, found.ratio_p10 or 0.0, found.ratio_p90 or 0.0) for found in measured]
    taken, p10, p90 = np.array(relative).T * measured[0].median_ms
    fitted = fit(predictor, choices[:num_fit], taken[:num_fit])
    predicted = fitted.costs(choices)
    return {
        "device": str(latency.fingerprint),
        "fingerprint": latency.fingerprint.to_json(),
        "predictor": fitted.to_json(),
        "check": {
            f"{prefix}{name}_ms": times[part].tolist()
            for prefix, part in (("fit_", slice(num_fit)), ("", slice(num_fit, None)))
            for name, times in (("predicted", predicted), ("measured", taken), ("p10", p10), ("p90", p90))
        },
    }


def measure_policies(
    model: nn.Module,
    space: SearchSpace,
    choices: IntArray,
    example_input: Tensor,
    latency: LatencyMeter,
    surgery: Surgery,
) -> list[Latency]:
    """The latency of the network of each row of `choices` [num_policies, num_groups + num_blocks], in turns.

    Ratios are to the first. Which channels stay makes no difference to the time, nor do weights: nothing is recovered.
    """
    importance, num_groups = np.zeros(space.num_units), len(space.groups)
    networks = {
        str(index): surgery(model, space, space.select(row[:num_groups], importance, row[num_groups:]))
        for index, row in enumerate(choices.tolist())
    }
    return list(latency.measure(networks, example_input).values())


def random_choices(space: SearchSpace, num_policies: int, seed: int) -> list[IntArray]:
    """Policies of all sizes, as `SearchSpace.choices` has them.

    Each group keeps u^p of its units, u uniform, with one exponent p per policy. Each block's operation is drawn from
    shares of the operations that are themselves drawn per policy, uniformly: few skip blocks, or nearly all.
    """
    rng = np.random.default_rng(seed)
    most = max((len(block.operations) for block in space.blocks), default=0)
    found = []
    for _ in range(num_policies):
        ratios = rng.random(len(space.groups)) ** np.exp(rng.normal())
        chosen = [space.nearest_count(index, ratio) for index, ratio in enumerate(ratios)]
        if space.blocks:
            shares = rng.dirichlet(np.ones(most))
            for block in space.blocks:
                weights = shares[: len(block.operations)]
                chosen.append(int(rng.choice(len(weights), p=weights / weights.sum())))
        found.append(np.array(chosen, dtype=np.int64))
    return found


def fit(predictor: LatencyPredictor, choices: IntArray, measured_ms: FloatArray) -> LatencyPredictor:
    """`predictor` with the coefficients, none below 0, that have the least squared relative error on `measured_ms`."""
    features: FloatArray = predictor.features(torch.from_numpy(choices).double()).numpy() / measured_ms[:, None]
    scale = np.maximum(np.abs(features).max(axis=0), 1e-30)
    from scipy.optimize import nnls  # slow to load, and rarely needed

    solution, _ = nnls(features / scale, np.ones(len(features)))
    layers, per_element, constant = (float(value) for value in solution / scale)
    return LatencyPredictor(
        calls=predictor.calls,
        grids=predictor.grids,
        traffic=predictor.traffic,
        coefficients=(layers, per_element, constant),
    )


def check_of(data: Mapping[str, Any]) -> PredictorCheck:
    """The check in what `latency_cost` keeps."""
    return PredictorCheck(**{name: tuple(values) for name, values in data["check"].items()})
