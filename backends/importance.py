"""Which units matter: one score per unit of the search space, higher is kept first.

A criterion is a function of the dense network and its space. It sums over everything a unit owns in the layers it
looks at, so coupled channels share one score.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from compsearch.space import FloatArray, SearchSpace


def l1_inputs(model: nn.Module, space: SearchSpace) -> FloatArray:
    """Sum of |W| over (out, kh, kw) of the weights that read a unit, [num_units]: AMC's choice of channels."""
    return _summed(model, space, dim=1, measure=torch.abs)


def l1_outputs(model: nn.Module, space: SearchSpace) -> FloatArray:
    """Sum of |W| of the filters that make a unit, [num_units] (Li et al. 2017, arXiv:1608.08710)."""
    return _summed(model, space, dim=0, measure=torch.abs)


def l2_outputs(model: nn.Module, space: SearchSpace) -> FloatArray:
    """Squared L2 norm of the filters that make a unit, [num_units]: LeGR's norm, as its released code takes it."""
    return _summed(model, space, dim=0, measure=torch.square)


def _summed(model: nn.Module, space: SearchSpace, *, dim: int, measure: Callable[[Tensor], Tensor]) -> FloatArray:
    """Sums `measure` of each layer weight over all dimensions but `dim`, then over each unit's entries."""
    weights = {layer.parameter for layer in space.layers}
    tensors = dict(model.named_parameters())
    scores = np.zeros(space.num_units)
    for site in space.sites:
        if site.dim != dim or site.parameter not in weights:
            continue
        weight = measure(tensors[site.parameter].detach().double())
        values = weight.sum([axis for axis in range(weight.dim()) if axis != dim]).cpu().numpy()
        is_unit = site.units >= 0
        np.add.at(scores, site.units[is_unit], values[is_unit])
    return scores
