"""Energy of one image by an analytic model: so much per operation, so much per number moved.

The numbers are M. Horowitz, "Computing's energy problem (and what we can do about it)", ISSCC 2014: a 45 nm
process at 0.9 V. They stand in conf/cost_model/energy_mj.yaml. What is assumed:

1. Everything is float32. A multiply-accumulate of a layer is one multiplication and one addition; the arithmetic of
   other operations is not counted, as moving their operands costs far more.
2. Every parameter is read from DRAM once per image. Nothing is kept on the chip between images.
3. Every operation that is not a view reads its activations from, and writes its results to, one memory on the chip: no
   operation hands a result to the next in a register. The input image is already there.
4. Reuse inside a layer costs nothing beyond (1): a convolution reads its input once, however many weights meet it.
5. Leakage, control, clocks and instructions are not counted; nor are running statistics of batch norms, which
   deployment folds into weights.
6. Where single weights are removed, they are neither multiplied nor read, as on hardware that skips zeros.

So the figure compares policies of one network; it is no forecast for a device. Measured energy is another number, and
comes from `backends.energy_counters` where a machine has counters.
"""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from backends.inventory import Inventory
from backends.macs import Ledger, MacsCost, ParamsCost, policy_counts
from compsearch.candidates import Candidates
from compsearch.space import FloatArray, IntArray, Policy, SearchSpace

_MILLIJOULES_PER_PICOJOULE = 1e-9


class EnergyCost:
    """Millijoules per image by the analytic model above; `source` says where the constants (picojoules) are from.

    `weight_read_pj` is one float32 weight from DRAM, `activation_access_pj` one float32 activation read from or written
    to the memory that holds activations. Raises ValueError unless all constants are finite and not negative.
    """

    resource = "energy_mj"

    def __init__(
        self,
        *,
        space: SearchSpace,
        inventory: Inventory,
        multiply_pj: float,
        add_pj: float,
        weight_read_pj: float,
        activation_access_pj: float,
        source: str,
    ) -> None:
        constants = {
            "multiply_pj": multiply_pj,
            "add_pj": add_pj,
            "weight_read_pj": weight_read_pj,
            "activation_access_pj": activation_access_pj,
        }
        for name, value in constants.items():
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"`0 <= cost_models.energy_mj.{name} < inf` must hold, but got {value}")
        if not any(constants.values()):
            raise ValueError("an energy model must have a constant above 0, but all of cost_models.energy_mj are 0")
        #: What kind of number this is, wherever one is shown.
        self.kind = f"analytic, {source}"
        self._space = space
        self._inventory = inventory
        ledger = Ledger(space)
        self._macs, self._params = MacsCost(space, ledger), ParamsCost(space, ledger)
        self._mac_pj = multiply_pj + add_pj
        self._weight_pj = weight_read_pj
        self._activation_pj = activation_access_pj

    @property
    def note(self) -> str:
        """What a reader of the numbers must know, one sentence."""
        return f"energy_mj is {self.kind}: it compares policies, and was not measured on any machine"

    def cost(self, policy: Policy) -> float:
        """The cost of one policy. Raises ValueError when it belongs to another space."""
        return float(self.costs(policy_counts(self._space, policy))[0])

    def costs(self, choices: IntArray) -> FloatArray:
        """Millijoules [num_policies] of kept units per group and, if given, operations per block behind them."""
        total: FloatArray = sum(self.parts(choices).values(), np.zeros(len(choices)))
        return total

    def expected(self, candidates: Candidates, probabilities: Tensor) -> Tensor:
        """The mean millijoules, a scalar, over networks drawn choice by choice; exact.

        Differentiable in `probabilities` [num_choices, most candidates].
        """
        picojoules = (
            self._macs.expected(candidates, probabilities) * self._mac_pj
            + self._params.expected(candidates, probabilities) * self._weight_pj
            + self._inventory.activation_traffic.expected(candidates, probabilities)[0] * self._activation_pj
        )
        return picojoules * _MILLIJOULES_PER_PICOJOULE

    def parts(self, choices: IntArray) -> dict[str, FloatArray]:
        """What the costs [num_policies] are made of, in millijoules: arithmetic, weights and activations."""
        return {
            "arithmetic": self._macs.costs(choices) * self._mac_pj * _MILLIJOULES_PER_PICOJOULE,
            "weights": self._params.costs(choices) * self._weight_pj * _MILLIJOULES_PER_PICOJOULE,
            "activations": self._inventory.activation_traffic(choices)[:, 0]
            * self._activation_pj
            * _MILLIJOULES_PER_PICOJOULE,
        }
