"""SGD for networks of which one path trains at a time: what is not on it neither decays nor keeps its momentum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class PathSGD:
    """SGD with Nesterov momentum on the entries that a step may move; all others, and their momenta, stay as they are.

    Weight decay is on weights with more than one dimension only, as in `backends.training`.
    """

    def __init__(self, network: nn.Module, *, momentum: float, weight_decay: float) -> None:
        self._parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self._momenta = {name: torch.zeros_like(parameter) for name, parameter in self._parameters.items()}
        self._momentum = momentum
        self._weight_decay = weight_decay

    @torch.no_grad()
    def step(self, lr: float, movable: Mapping[str, Tensor | None]) -> None:
        """Moves parameters that have a gradient: those named in `movable`, where its mask (None: everywhere) is true.

        Gradients are forgotten, also those of parameters that don't move.
        """
        for name, parameter in self._parameters.items():
            gradient, parameter.grad = parameter.grad, None
            if gradient is None or name not in movable:
                continue
            if parameter.ndim > 1 and self._weight_decay:
                gradient = gradient.add(parameter, alpha=self._weight_decay)
            momenta, mask = self._momenta[name], movable[name]
            new = momenta.mul(self._momentum).add_(gradient)
            step = gradient.add(new, alpha=self._momentum)
            if mask is None:
                momenta.copy_(new)
                parameter.sub_(step, alpha=lr)
            else:
                momenta.copy_(torch.where(mask, new, momenta))
                parameter.sub_(step * mask, alpha=lr)

    def state_dict(self) -> dict[str, Any]:
        """The momenta, nothing shared."""
        return {name: momenta.cpu().clone() for name, momenta in self._momenta.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, momenta in self._momenta.items():
            momenta.copy_(state[name])
