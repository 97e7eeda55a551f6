"""How what a network costs joins its loss (gradient) or its reward (REINFORCE).

With E the expected cost over the reference (the budget's limit, or the dense network's cost without a budget):

    additive            CE + weight · E                           (Cai et al. 2019, equation 7)
    multiplicative_log  CE · scale · (log cost / log reference)^exponent     (its released code; cost in its own unit)
    absolute            CE + weight · |E - 1|                     (holds a target instead of drifting past it)

Rewards are the accuracy's counterparts: accuracy - weight · E, accuracy · E^-exponent (MnasNet's, Tan et al. 2019,
arXiv:1807.11626, with the paper's exponent), and accuracy - weight · |E - 1|.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from compsearch.space import FloatArray

FORMS = ("absolute", "additive", "multiplicative_log")


@dataclass(frozen=True)
class CostLoss:
    """`form` is one of `FORMS`; `scale` and `exponent` are the multiplicative one's, `weight` the others'.

    `reward_weight` and `reward_exponent` are those of rewards.
    """

    form: str
    weight: float
    scale: float
    exponent: float
    reward_weight: float
    reward_exponent: float

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ValueError(f"`cost_loss.form` must be one of {', '.join(FORMS)}, but got {self.form!r}")
        numbers = (self.weight, self.scale, self.exponent, self.reward_weight, self.reward_exponent)
        if min(numbers) < 0:
            raise ValueError(f"the numbers of a cost_loss must not be negative, but got {self}")

    def __call__(self, loss: Tensor, cost: Tensor, reference: float) -> Tensor:
        """What is minimised, from the network's `loss` and its expected `cost`, a scalar in the unit of `reference`."""
        if self.form == "additive":
            return loss + self.weight * cost / reference
        if self.form == "absolute":
            return loss + self.weight * (cost / reference - 1).abs()
        return loss * self.scale * (cost.log() / math.log(reference)) ** self.exponent

    def rewards(self, accuracies: FloatArray, costs: FloatArray, reference: float) -> FloatArray:
        """What is maximised, [num_networks], from accuracies (fractions) and costs of networks."""
        ratios = costs / reference
        if self.form == "additive":
            rewards = accuracies - self.reward_weight * ratios
        elif self.form == "absolute":
            rewards = accuracies - self.reward_weight * np.abs(ratios - 1)
        else:
            rewards = accuracies * ratios**-self.reward_exponent
        return np.asarray(rewards, dtype=np.float64)
