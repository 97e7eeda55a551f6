"""Channel counts that a runtime likes, found by timing layers at every width: the staircase.

A kernel that works on blocks of 16 channels takes as long for 17 as for 32, and some take longer for 17. Channels up to
the next multiple of the block are then free, and a policy that stops short of it gives accuracy away for nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from backends.latency import LatencyMeter
from backends.latency_table import Entry, LatencyTable, table_path
from backends.layer_shapes import LayerCall, LayerShape, layer_calls
from compsearch.space import FloatArray, SearchSpace

log = logging.getLogger(__name__)

#: Divisors tried.
DIVISORS = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class AlignmentOptions:
    """How staircases are measured.

    The `num_layers` convolutions with the most work are timed at every width from their own down to `num_widths` fewer.
    Rounding up to a divisor's multiples must cost less than `most_growth` of what the added channels would if time grew
    evenly. `rounds`, `samples` and `min_sample_us` are as in `backends.latency_table`.
    """

    num_layers: int
    num_widths: int
    most_growth: float
    rounds: int
    samples: int
    min_sample_us: float


def preferred_divisor(
    *,
    model: nn.Module,
    space: SearchSpace,
    example_input: Tensor,
    latency: LatencyMeter,
    table_dir: str,
    options: AlignmentOptions,
) -> dict[str, Any]:
    """The largest divisor whose multiples come free on the runtime of `latency`, and the staircases it was read from.

    Returns plain values: ``divisor``, ``device`` and ``staircases``, each with its axis (``inputs`` or ``outputs``),
    layer, widths and microseconds (median, p10, p90). What was measured is kept in the device's table.
    """
    table = LatencyTable(table_path(Path(table_dir), latency.fingerprint), latency)
    stairs = []
    for call in _heaviest(layer_calls(model, space, example_input), space, options.num_layers):
        dense_in, dense_out = (int(widths(space.sizes[None])[0]) for widths in (call.ins, call.outs))
        for axis, dense in (("inputs", dense_in), ("outputs", dense_out)):
            widths = list(range(max(1, dense - options.num_widths + 1), dense + 1))
            entries = [
                Entry(call.shape, width, dense_out) if axis == "inputs" else Entry(call.shape, dense_in, width)
                for width in widths
            ]
            table.measure(entries, samples=options.samples, min_sample_us=options.min_sample_us, rounds=options.rounds)
            times = [table[entry] for entry in entries]
            stairs.append(
                {
                    "axis": axis,
                    "layer": _label(call.shape, dense_in, dense_out),
                    "widths": widths,
                    "median_us": [time.median_us for time in times],
                    "p10_us": [time.p10_us for time in times],
                    "p90_us": [time.p90_us for time in times],
                }
            )
    divisor = divisor_of(stairs, most_growth=options.most_growth)
    log.info("channels come in steps of %d on %s", divisor, latency.fingerprint)
    return {"divisor": divisor, "device": str(latency.fingerprint), "staircases": stairs}


def divisor_of(staircases: Sequence[Mapping[str, Any]], *, most_growth: float) -> int:
    """The largest divisor to whose multiples widths can be rounded up at less than `most_growth` of an even growth.

    Inputs and outputs each need their multiples, so it is the larger of what the two axes ask for; each axis is judged
    on the mean of its layers. 1 where time grows evenly.
    """
    best = 1
    for axis in ("inputs", "outputs"):
        curves = [curve for curve in staircases if curve["axis"] == axis]
        for divisor in DIVISORS[1:]:
            growths = [
                rounding_growth(np.array(curve["widths"]), np.array(curve["median_us"]), divisor)
                for curve in curves
                if curve["widths"][-1] >= 2 * divisor
            ]
            if growths and np.mean(growths) < most_growth:
                best = max(best, divisor)
    return best


def rounding_growth(widths: Any, times: FloatArray, divisor: int) -> float:
    """How much time rounding `widths` up to multiples of `divisor` adds, as a fraction of an even growth's.

    `widths` ascend by one, `times` are theirs. 1 where time is linear in the width, 0 where steps are of that size,
    below 0 where the multiples are even faster than the widths before them.
    """
    slope = float(np.polyfit(widths, times, 1)[0])
    rounded = -(-widths // divisor) * divisor
    inside = (rounded <= widths[-1]) & (rounded != widths)
    if not inside.any() or slope <= 0:
        return 1.0
    added = times[rounded[inside] - widths[0]] - times[inside]
    return float(added.sum() / (slope * (rounded[inside] - widths[inside])).sum())


def _heaviest(calls: Sequence[LayerCall], space: SearchSpace, num_layers: int) -> list[LayerCall]:
    """The layers with the most work whose inputs and outputs both change, one of each shape."""
    work = {layer.name: layer.macs for layer in space.layers}
    found: dict[LayerShape, LayerCall] = {}
    for call in sorted(calls, key=lambda call: -work[call.name]):
        if not (call.shape.is_grouped or call.ins.is_constant or call.outs.is_constant) and call.shape.kernel:
            found.setdefault(call.shape, call)
    # The widest of equally heavy ones show the largest steps.
    return list(found.values())[:num_layers]


def _label(shape: LayerShape, ins: int, outs: int) -> str:
    kernel = "×".join(map(str, shape.kernel))
    return f"{kernel} convolution, {ins} to {outs} channels, {shape.height}×{shape.width}"
