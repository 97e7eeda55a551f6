"""How important each unit is to each layer: what criteria give, and what rankings are made of."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from compsearch.space import FloatArray, IntArray


def _sum(values: FloatArray, units: IntArray, num_units: int) -> FloatArray:
    total = np.zeros(num_units)
    np.add.at(total, units, values)
    return total


def _mean(values: FloatArray, units: IntArray, num_units: int) -> FloatArray:
    return _sum(values, units, num_units) / np.bincount(units, minlength=num_units)


def _max(values: FloatArray, units: IntArray, num_units: int) -> FloatArray:
    largest = np.full(num_units, -np.inf)
    np.maximum.at(largest, units, values)
    return largest


#: How the scores that a coupled unit has in several layers become one.
REDUCTIONS: Mapping[str, Callable[[FloatArray, IntArray, int], FloatArray]] = {"sum": _sum, "mean": _mean, "max": _max}


@dataclass(frozen=True, eq=False)
class LayerImportance:
    """Entry i says: in layer ``layers[layer_index[i]]`` unit ``units[i]`` has importance ``values[i]``, higher is kept.

    A unit has one entry per layer that the criterion looks at (coupled units have several) and at least one in all;
    `reduction` says how a unit's entries become its score. `layers` are in forward order.
    """

    layers: tuple[str, ...]
    layer_index: IntArray
    units: IntArray
    values: FloatArray
    num_units: int
    reduction: str

    def __post_init__(self) -> None:
        if self.reduction not in REDUCTIONS:
            raise ValueError(
                f"`importance.reduction` must be one of {', '.join(REDUCTIONS)}, but got {self.reduction!r}"
            )
        missing = np.setdiff1d(np.arange(self.num_units), self.units)
        if len(missing):
            raise ValueError(f"every unit must have an importance, but {len(missing)} have none")
        if not np.isfinite(self.values).all():
            raise ValueError("an importance must be finite, but the criterion gave NaN or infinity: see the weights")

    def scores(self, alpha: FloatArray | None = None, kappa: FloatArray | None = None) -> FloatArray:
        """One score per unit, [num_units]: the reduction of ``alpha[layer] * value + kappa[layer]`` over its entries.

        `alpha` and `kappa` are [num_layers]; left out, the identity (LeGR: I = α·‖θ‖ + κ).
        """
        values = self.values
        if alpha is not None:
            values = values * alpha[self.layer_index]
        if kappa is not None:
            values = values + kappa[self.layer_index]
        return REDUCTIONS[self.reduction](values, self.units, self.num_units)

    @functools.cached_property
    def stds(self) -> FloatArray:
        """The standard deviation of each layer's values, [num_layers]."""
        num = np.bincount(self.layer_index, minlength=len(self.layers))
        mean = np.bincount(self.layer_index, weights=self.values, minlength=len(self.layers)) / num
        squares = (self.values - mean[self.layer_index]) ** 2
        stds: FloatArray = np.sqrt(np.bincount(self.layer_index, weights=squares, minlength=len(self.layers)) / num)
        return stds
