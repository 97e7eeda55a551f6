"""How a supernet's network is run along one path, and how its gates are looked at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from torch import Tensor, nn

from compsearch.candidates import Candidates
from compsearch.space import BoolArray, FloatArray, IntArray


class Gating(Protocol):
    """A network with every candidate of every choice in it; a path is one candidate's index per choice.

    `network` holds the weights that are trained; its mode (train or eval) and device are the caller's affair.
    """

    network: nn.Module
    candidates: Candidates

    def logits(self, images: Tensor, path: IntArray) -> Tensor:
        """Logits [B, num_classes] of `images` [B, C, H, W] along `path`; gradients reach the path's weights."""
        ...

    def logits_with_gates(
        self, images: Tensor, path: IntArray, wanted: BoolArray
    ) -> tuple[Tensor, Callable[[], FloatArray]]:
        """Logits along `path`, and what to call after the loss's backward pass for the gates' gradients.

        Gate j of a choice multiplies what candidate j gives; those of `path` are 1, all others 0. `wanted` and the
        gradients are [num_choices, most candidates]; what is not wanted is 0. Weights get no gradients.
        """
        ...

    def movable(self, path: IntArray) -> Mapping[str, Tensor | None]:
        """The parameters that a step on `path` may move, by name: a mask of their entries that broadcasts, or None for
        all. Those left out stay as they are.
        """
        ...
