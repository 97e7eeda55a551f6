"""From a policy to the time of its network, without running it: layers from the table, the rest fitted.

    latency = scale * sum of the layers' times + per_element * elements moved by other operations + constant

A layer alone is not a layer in a network (its input may still be in the cache, its output may need no conversion),
which is what `scale` is for; additions, pooling and concatenation take time by what they move; and every operation has
its overhead, which no policy changes. The three are fitted on networks measured as a whole. Between measured widths a
layer's time is interpolated bilinearly, so that the prediction has a gradient in expected widths.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backends.latency_table import Entry, LatencyTable, spread_over
from backends.layer_shapes import LayerCall, LayerShape, Widths
from compsearch.space import FloatArray, IntArray, SearchSpace


@dataclass(frozen=True, eq=False)
class LayerGrid:
    """Times of one layer shape at measured widths: `times_us` [len(ins), len(outs)], both ascending.

    Of a grouped convolution `ins` is one number that stands for all: its inputs follow from its outputs.
    """

    shape: LayerShape
    ins: tuple[int, ...]
    outs: tuple[int, ...]
    times_us: FloatArray


def grid_entries(shape: LayerShape, ins: Sequence[int], outs: Sequence[int]) -> list[list[Entry]]:
    """The table entries of a grid, one list per number of inputs."""
    if shape.is_grouped:
        return [[Entry(shape, out // shape.group_out * shape.group_in, out) for out in outs]]
    return [[Entry(shape, width, out) for out in outs] for width in ins]


def grid_widths(
    calls: Sequence[LayerCall], space: SearchSpace, *, max_points: int
) -> dict[LayerShape, tuple[list[int], list[int]]]:
    """For each layer shape the inputs and outputs at which to measure it, at most `max_points` of each.

    They are all widths that the layers of that shape can have, where those are few enough.
    """
    found: dict[LayerShape, tuple[set[int], set[int]]] = {}
    for call in calls:
        ins, outs = found.setdefault(call.shape, (set(), set()))
        outs.update(_possible(call.outs, space))
        ins.update({1} if call.shape.is_grouped else _possible(call.ins, space))
    return {
        shape: (spread_over(sorted(ins), max_points), spread_over(sorted(outs), max_points))
        for shape, (ins, outs) in found.items()
    }


def _possible(widths: Widths, space: SearchSpace) -> list[int]:
    """The channels a layer can have; of one that several groups meet in, those at which all keep about as much."""
    [movers] = widths.per_unit.nonzero()
    if len(movers) == 0:
        return [widths.fixed]
    if len(movers) == 1:
        group = int(movers[0])
        return [widths.fixed + int(widths.per_unit[group]) * count for count in space.groups[group].counts]
    most = max(len(space.groups[group].counts) for group in movers)
    counts = np.array(
        [[group.counts[round(t * (len(group.counts) - 1))] for group in space.groups] for t in np.linspace(0, 1, most)]
    )
    return sorted({int(width) for width in widths(counts)})


class LatencyPredictor:
    """Milliseconds of one batch, for policies of one space given as units kept per group.

    `grids` have the times of every layer shape of `calls`; `traffic` are the elements that other operations move, as
    (base, slope [num_groups]); `coefficients` are (scale, ms per element, constant ms).
    """

    def __init__(
        self,
        *,
        calls: Sequence[LayerCall],
        grids: Sequence[LayerGrid],
        traffic: tuple[float, FloatArray],
        coefficients: tuple[float, float, float] = (1.0, 0.0, 0.0),
    ) -> None:
        self.calls = tuple(calls)
        self.grids = tuple(grids)
        self.traffic = traffic
        self.coefficients = coefficients
        index = {grid.shape: number for number, grid in enumerate(self.grids)}
        self._grid_of = torch.tensor([index[call.shape] for call in self.calls])
        self._ins = _Axis([grid.ins for grid in self.grids], [call.ins for call in self.calls], self._grid_of)
        self._outs = _Axis([grid.outs for grid in self.grids], [call.outs for call in self.calls], self._grid_of)
        shape = (len(self.grids), self._ins.length, self._outs.length)
        self._times = torch.zeros(shape, dtype=torch.float64)
        for number, grid in enumerate(self.grids):
            times = torch.from_numpy(grid.times_us / 1e3)
            # Beyond an axis' end its last row stands, where no width reaches but interpolation with weight 0 does.
            rows = torch.arange(shape[1]).clamp(max=len(grid.ins) - 1)
            columns = torch.arange(shape[2]).clamp(max=len(grid.outs) - 1)
            self._times[number] = times[rows][:, columns]
        self._slope = torch.from_numpy(np.asarray(traffic[1], dtype=np.float64))

    def milliseconds(self, counts: Tensor) -> Tensor:
        """Predictions [num_policies] for `counts` [num_policies, num_groups], which may be fractions.

        Differentiable: expected counts give the time at expected widths.
        """
        features = self.features(counts.double())
        return features @ torch.tensor(self.coefficients, dtype=torch.float64)

    def costs(self, counts: IntArray | FloatArray) -> FloatArray:
        """`milliseconds` of an array."""
        with torch.no_grad():
            predicted: FloatArray = self.milliseconds(torch.from_numpy(np.asarray(counts, dtype=np.float64))).numpy()
        return predicted

    def features(self, counts: Tensor) -> Tensor:
        """Milliseconds of all layers as in the table, elements moved by other operations, and 1; [num_policies, 3]."""
        row, row_part = self._ins.place(counts)  # [num_policies, num_calls]
        column, column_part = self._outs.place(counts)
        grid = self._grid_of.expand_as(row)

        def at(down: int, right: int) -> Tensor:
            return self._times[grid, row + down, column + right]

        upper = at(0, 0) * (1 - column_part) + at(0, 1) * column_part
        lower = at(1, 0) * (1 - column_part) + at(1, 1) * column_part
        layers = (upper * (1 - row_part) + lower * row_part).sum(1)
        traffic = counts @ self._slope + self.traffic[0]
        return torch.stack([layers, traffic, torch.ones_like(traffic)], dim=1)

    def to_json(self) -> dict[str, Any]:
        """Plain values, without the calls, which follow from the network."""
        return {
            "coefficients": list(self.coefficients),
            "traffic": [self.traffic[0], self.traffic[1].tolist()],
            "times_us": [grid.times_us.tolist() for grid in self.grids],
            "ins": [list(grid.ins) for grid in self.grids],
            "outs": [list(grid.outs) for grid in self.grids],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], *, calls: Sequence[LayerCall]) -> LatencyPredictor:
        """The inverse of `to_json` for the same network's calls."""
        shapes = list(dict.fromkeys(call.shape for call in calls))
        values = zip(shapes, data["ins"], data["outs"], data["times_us"], strict=True)
        grids = [LayerGrid(shape, tuple(ins), tuple(outs), np.array(times)) for shape, ins, outs, times in values]
        base, slope = data["traffic"]
        scale, per_element, constant = data["coefficients"]
        traffic = (float(base), np.array(slope))
        return cls(calls=calls, grids=grids, traffic=traffic, coefficients=(scale, per_element, constant))


class _Axis:
    """Where each call's width lies on the axis of its grid."""

    def __init__(self, axes: Sequence[Sequence[int]], widths: Sequence[Widths], grid_of: Tensor) -> None:
        self.length = max(2, *(len(axis) for axis in axes))
        # Padded by widths that no layer has.
        far = 1 + max(max(axis) for axis in axes)
        padded = [[*axis, *(far + extra for extra in range(self.length - len(axis)))] for axis in axes]
        self._points = torch.tensor(padded, dtype=torch.float64)[grid_of]  # [num_calls, length]
        self._fixed = torch.tensor([float(width.fixed) for width in widths], dtype=torch.float64)
        per_unit = np.stack([width.per_unit for width in widths]).astype(np.float64)
        self._per_unit = torch.from_numpy(per_unit).T.contiguous()  # [num_groups, num_calls]
        self._is_single = torch.tensor([len(axis) == 1 for axis in axes])[grid_of]

    def place(self, counts: Tensor) -> tuple[Tensor, Tensor]:
        """The point at or before each call's width, and how far it is to the next; both [num_policies, num_calls]."""
        width = counts @ self._per_unit + self._fixed
        points = self._points
        with torch.no_grad():
            index = torch.searchsorted(points, width.T.contiguous(), right=True).T - 1
            index = index.clamp(0, self.length - 2)
        calls = torch.arange(len(points)).expand_as(index)
        low, high = points[calls, index], points[calls, index + 1]
        part = ((width - low) / (high - low)).clamp(0, 1)
        return index, torch.where(self._is_single, torch.zeros_like(part), part)


def measured_grids(
    table: LatencyTable, widths: Mapping[LayerShape, tuple[Sequence[int], Sequence[int]]]
) -> list[LayerGrid]:
    """The grids of `grid_widths` out of the table. Raises ValueError where an entry is missing."""
    return [
        LayerGrid(
            shape,
            tuple(ins),
            tuple(outs),
            np.array([[table[entry].median_us for entry in row] for row in grid_entries(shape, ins, outs)]),
        )
        for shape, (ins, outs) in widths.items()
    ]
