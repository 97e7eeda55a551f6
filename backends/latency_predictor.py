"""From a policy to the time of its network, without running it: layers from the table, the rest fitted.

    latency = scale * sum of the layers' times + per_element * elements moved by other operations + constant

A layer alone is not a layer in a network (its input may still be in the cache, its output may need no conversion),
which is what `scale` is for; additions, pooling and concatenation take time by what they move; and the forward has its
overhead, which no policy changes: that of a layer is in its time alone. (On networks with skipped blocks, a constant in
proportion to the operations that run fits worse.) The three are fitted on networks measured as a whole. Between
measured widths a layer's time is interpolated bilinearly, so that the prediction has a gradient in expected widths;
where every choice has a few candidates, the mean over networks drawn from them is had at once, gradient and all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backends.amounts import Amounts, split_choices
from backends.latency_table import Entry, LatencyTable, spread_over
from backends.layer_shapes import LayerCall, LayerShape, Widths
from compsearch.candidates import Candidates
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
    """Milliseconds of one batch, for policies of one space given as their choices.

    `grids` have the times of every layer shape of `calls`; `traffic` are the elements that other operations move, one
    number; `coefficients` are (scale, ms per element, constant ms).
    """

    def __init__(
        self,
        *,
        calls: Sequence[LayerCall],
        grids: Sequence[LayerGrid],
        traffic: Amounts,
        coefficients: tuple[float, float, float] = (1.0, 0.0, 0.0),
    ) -> None:
        self.calls = tuple(calls)
        self.grids = tuple(grids)
        self.traffic = traffic
        self.coefficients = coefficients
        self._num_groups, self._num_blocks = len(traffic.dense.slope), traffic.num_blocks
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
        #: The block and operation that a call is there for, [num_calls]; block -1 for none.
        self._block = torch.tensor([call.block for call in self.calls])
        self._operation = torch.tensor([call.operation for call in self.calls])
        self._drawn: tuple[Candidates, _DrawnLayers] | None = None

    def milliseconds(self, choices: Tensor) -> Tensor:
        """Predictions [num_policies] for `choices`: kept units per group, which may be fractions, then operations.

        `choices` is [num_policies, num_groups] or [num_policies, num_groups + num_blocks]; operations left out are the
        dense network's. Differentiable in the units: expected ones give the time at expected widths.
        """
        features = self.features(choices.double())
        return features @ torch.tensor(self.coefficients, dtype=torch.float64)

    def costs(self, choices: IntArray | FloatArray) -> FloatArray:
        """`milliseconds` of an array."""
        with torch.no_grad():
            predicted: FloatArray = self.milliseconds(torch.from_numpy(np.asarray(choices, dtype=np.float64))).numpy()
        return predicted

    def features(self, choices: Tensor) -> Tensor:
        """Milliseconds of all layers as in the table, elements moved by other operations, and 1; [num_policies, 3].

        Raises ValueError for choices of another shape than `milliseconds` takes.
        """
        counts, operations = split_choices(choices, self._num_groups, self._num_blocks)
        row, row_part = self._ins.place(self._ins.widths(counts))  # [num_policies, num_calls]
        column, column_part = self._outs.place(self._outs.widths(counts))
        grid = self._grid_of.expand_as(row)

        def at(down: int, right: int) -> Tensor:
            return self._times[grid, row + down, column + right]

        upper = at(0, 0) * (1 - column_part) + at(0, 1) * column_part
        lower = at(1, 0) * (1 - column_part) + at(1, 1) * column_part
        layers = upper * (1 - row_part) + lower * row_part
        if self._num_blocks:
            chosen = operations[:, self._block] if operations is not None else torch.zeros_like(layers)
            layers = layers * ((chosen == self._operation) | (self._block < 0))
        total = layers.sum(1)
        return torch.stack([total, self.traffic.at(choices)[:, 0], torch.ones_like(total)], dim=1)

    def expected(self, candidates: Candidates, probabilities: Tensor) -> Tensor:
        """The mean prediction, a scalar, over networks drawn choice by choice; differentiable in `probabilities`.

        `probabilities` is [num_choices, most candidates]. It is the mean of times, not the time at mean widths; exact
        but for layers whose inputs, or outputs, several groups meet in (concatenation): such a width is taken at its
        mean, and as independent of the layer's other one.
        """
        if self._drawn is None or self._drawn[0] is not candidates:
            axes = (self._ins, self._outs)
            times = self._times[self._grid_of]
            self._drawn = (candidates, _DrawnLayers(candidates, axes, times, self._block, self._operation))
        probabilities = probabilities.double() * torch.from_numpy(candidates.is_one)
        layers, traffic = self._drawn[1].expected(probabilities), self.traffic.expected(candidates, probabilities)[0]
        scale, per_element, constant = self.coefficients
        return layers * scale + traffic * per_element + constant

    def to_json(self) -> dict[str, Any]:
        """Plain values, without the calls, which follow from the network."""
        return {
            "coefficients": list(self.coefficients),
            "traffic": self.traffic.to_json(),
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
        scale, per_element, constant = data["coefficients"]
        coefficients = (scale, per_element, constant)
        return cls(calls=calls, grids=grids, traffic=Amounts.from_json(data["traffic"]), coefficients=coefficients)


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

    def widths(self, counts: Tensor) -> Tensor:
        """Channels [num_policies, num_calls] of `counts` [num_policies, num_groups]."""
        return counts @ self._per_unit + self._fixed

    def place(self, widths: Tensor) -> tuple[Tensor, Tensor]:
        """The point at or before each width, and how far it is to the next; all [num, num_calls]."""
        points = self._points
        with torch.no_grad():
            index = torch.searchsorted(points, widths.T.contiguous(), right=True).T - 1
            index = index.clamp(0, self.length - 2)
        calls = torch.arange(len(points)).expand_as(index)
        low, high = points[calls, index], points[calls, index + 1]
        part = ((widths - low) / (high - low)).clamp(0, 1)
        return index, torch.where(self._is_single, torch.zeros_like(part), part)

    def weights(self, widths: Tensor) -> Tensor:
        """What each point counts for at `widths` [num, num_calls], [num, num_calls, length]: hat functions."""
        index, part = self.place(widths)
        points = torch.arange(self.length)
        at, after = points == index[..., None], points == index[..., None] + 1
        return at * (1 - part[..., None]) + after * part[..., None]

    def choices(self) -> tuple[Tensor, Tensor]:
        """The one group that each call's width follows, -1 where none, and where there are several; [num_calls]."""
        moves = self._per_unit != 0
        several = moves.sum(0) > 1
        first = moves.double().argmax(0) if len(moves) else torch.zeros(len(self._fixed), dtype=torch.int64)
        return torch.where(moves.any(0), first, -1), several

    def candidate_widths(self, group: Tensor, values: Tensor) -> Tensor:
        """Widths [most candidates, num_calls] where `group` [num_calls], -1 for none, has each of its `values`.

        `values` is [num_choices, most candidates].
        """
        if not len(self._per_unit):
            return self._fixed.expand(values.shape[1], -1)
        per_unit = self._per_unit.gather(0, group.clamp(min=0)[None])[0]
        return (values[group] * per_unit[:, None]).T + self._fixed


class _DrawnLayers:
    """The mean time of all layers over networks drawn from candidates: what doesn't depend on the probabilities.

    `axes` are of inputs and outputs, `times` [num_calls, ins, outs] milliseconds, `block` and `operation` [num_calls]
    what each call is there for.
    """

    def __init__(
        self, candidates: Candidates, axes: tuple[_Axis, _Axis], times: Tensor, block: Tensor, operation: Tensor
    ) -> None:
        self._axes = axes
        self._times = times
        self._values = torch.from_numpy(candidates.values).double().clamp(min=0)
        self._num_groups = len(candidates.space.groups)
        followed = [axis.choices() for axis in axes]
        self._groups = [group for group, _ in followed]
        self._several = [several for _, several in followed]
        #: What each point of an axis counts for with each candidate, [num_calls, most candidates, length].
        self._weights = [
            axis.weights(axis.candidate_widths(group, self._values)).transpose(0, 1)
            for axis, group in zip(axes, self._groups, strict=True)
        ]
        is_single = ~(self._several[0] | self._several[1])
        self._is_same = (self._groups[0] == self._groups[1]) & (self._groups[0] >= 0) & is_single
        both = torch.einsum("cka,cab,ckb->ck", self._weights[0], times, self._weights[1])
        self._both = both[self._is_same]
        self._place = torch.where(block >= 0, self._num_groups + block, -1), operation

    def expected(self, probabilities: Tensor) -> Tensor:
        """The mean milliseconds of all layers, a scalar; `probabilities` are [num_choices, most candidates]."""
        # What follows no choice has its first candidate for certain: the last row.
        certain = torch.zeros_like(probabilities[:1]).index_fill(1, torch.tensor([0]), 1.0)
        probabilities = torch.cat([probabilities, certain])
        mean = (probabilities[:-1] * self._values)[: self._num_groups].sum(1)
        ins, outs = (
            torch.where(
                several[:, None], axis.weights(axis.widths(mean[None]))[0], _mean(probabilities[group], weights)
            )
            if several.any()
            else _mean(probabilities[group], weights)
            for axis, group, several, weights in zip(
                self._axes, self._groups, self._several, self._weights, strict=True
            )
        )
        times = torch.einsum("ca,cab,cb->c", ins, self._times, outs)
        same = (probabilities[self._groups[0][self._is_same]] * self._both).sum(1)
        times = times.masked_scatter(self._is_same, same)
        return times @ probabilities[self._place]


def _mean(probabilities: Tensor, weights: Tensor) -> Tensor:
    """[num_calls, most candidates] and [num_calls, most candidates, length] to [num_calls, length]."""
    return torch.einsum("ck,ckl->cl", probabilities, weights)


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
