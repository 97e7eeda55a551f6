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
from compsearch.space import FloatArray, IntArray, SearchSpace

log = logging.getLogger(__name__)

#: An even growth is at least this part of a growth in proportion to the width.
_LEAST_SLOPE = 0.25


@dataclass(frozen=True)
class AlignmentOptions:
    """How staircases are measured.

    The `num_layers` convolutions with the most work are timed at every width from their own down to `num_widths` fewer.
    Rounding up to a divisor's multiples must add less than `most_growth` of what it would if time grew evenly.
    `rounds`, `samples` and `min_sample_us` are as in `backends.latency_table`.
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
    plan: list[tuple[str, str, list[int], list[Entry]]] = []
    for call in _heaviest(layer_calls(model, space, example_input), space, options.num_layers):
        dense_in, dense_out = (int(widths(space.sizes[None])[0]) for widths in (call.ins, call.outs))
        label = _label(call.shape, dense_in, dense_out)
        for axis, dense in (("inputs", dense_in), ("outputs", dense_out)):
            widths = list(range(max(1, dense - options.num_widths + 1), dense + 1))
            entries = [
                Entry(call.shape, width, dense_out) if axis == "inputs" else Entry(call.shape, dense_in, width)
                for width in widths
            ]
            plan.append((axis, label, widths, entries))
    table.measure(
        (entry for _, _, _, entries in plan for entry in entries),
        samples=options.samples,
        min_sample_us=options.min_sample_us,
        rounds=options.rounds,
    )
    stairs = [
        {
            "axis": axis,
            "layer": label,
            "widths": widths,
            "median_us": [table[entry].median_us for entry in entries],
            "p10_us": [table[entry].p10_us for entry in entries],
            "p90_us": [table[entry].p90_us for entry in entries],
        }
        for axis, label, widths, entries in plan
    ]
    divisor = divisor_of(stairs, most_growth=options.most_growth)
    log.info("channels come in steps of %d on %s", divisor, latency.fingerprint)
    return {"divisor": divisor, "device": str(latency.fingerprint), "staircases": stairs}


def divisor_of(staircases: Sequence[Mapping[str, Any]], *, most_growth: float) -> int:
    """The largest divisor to whose multiples widths can be rounded up at less than `most_growth` of an even growth.

    It doubles as long as that holds for the widths that were multiples of the one before: an odd number of inputs may
    be so slow that rounding to anything pays, which says nothing for more than the smallest divisor that does. Inputs
    and outputs each need their multiples, so the larger of what the two ask for is taken; each is judged on the mean of
    its layers. 1 where time grows evenly.
    """
    best = 1
    for axis in ("inputs", "outputs"):
        curves = [
            (np.array(curve["widths"]), np.array(curve["median_us"])) for curve in staircases if curve["axis"] == axis
        ]
        divisor = 1
        while True:
            growths = [rounding_growth(widths, times, divisor) for widths, times in curves]
            known = [growth for growth in growths if growth is not None]
            if not known or np.mean(np.clip(known, -1, 2)) >= most_growth:
                break
            divisor *= 2
        best = max(best, divisor)
    return best


def rounding_growth(widths: IntArray, times: FloatArray, divisor: int) -> float | None:
    """How much time it adds to round multiples of `divisor` up to twice it, as a fraction of an even growth's.

    `widths` ascend by one, `times` are theirs. 1 where time is linear in the width, 0 where steps are of twice the
    divisor, below 0 where the larger multiples are even faster. None where fewer than two widths tell.
    """
    rounded = widths + divisor
    tells = (widths % divisor == 0) & (widths % (2 * divisor) != 0) & (rounded <= widths[-1])
    if tells.sum() < 2:
        return None
    # Where a layer hardly takes longer for more channels, noise would decide over a growth that is next to nothing.
    slope = max(float(np.polyfit(widths, times, 1)[0]), _LEAST_SLOPE * float(times[-1]) / int(widths[-1]))
    added = times[rounded[tells] - widths[0]] - times[tells]
    return float(added.mean() / (slope * divisor))


def _heaviest(calls: Sequence[LayerCall], space: SearchSpace, num_layers: int) -> list[LayerCall]:
    """The layers with the most work whose inputs and outputs both change, one of each size."""
    work = {layer.name: layer.macs for layer in space.layers}
    found: dict[tuple[Any, ...], LayerCall] = {}
    for call in sorted(calls, key=lambda call: -work[call.name]):
        if not (call.shape.is_grouped or call.ins.is_constant or call.outs.is_constant) and call.shape.kernel:
            found.setdefault((call.shape.geometry, call.shape.height, call.shape.width), call)
    return list(found.values())[:num_layers]


def _label(shape: LayerShape, ins: int, outs: int) -> str:
    kernel = "×".join(map(str, shape.kernel))
    return f"{kernel} convolution, {ins} to {outs} channels, {shape.height}×{shape.width}"
