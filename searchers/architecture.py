"""The architecture parameters α of a search over paths: probabilities, draws from them, and one step of learning.

Probabilities are ``p = softmax(α)`` of each choice (Cai et al., ICLR 2019, arXiv:1812.00332, section 3.2). Gates are
binary: one candidate per choice is active. The gradient is that of equation 4,
``∂L/∂α_i = Σ_j ∂L/∂g_j · p_j · (δ_ij - p_i)``, taken as the derivative of ``Σ_j ∂L/∂g_j · p_j``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compsearch.space import BoolArray, FloatArray, IntArray

Generator = np.random.Generator

#: The largest difference in α between the cheapest and the dearest candidate that a tilt makes: 1 in 3,000.
_STEEPEST = 8.0


@dataclass(frozen=True)
class ArchitectureOptions:
    """α starts as N(0, `init_std`), and is moved by Adam with `lr`, `beta1` and `beta2`.

    With `start` budget it is tilted at first, so that networks drawn cost the budget on average; with equal it is not.
    """

    lr: float
    beta1: float
    beta2: float
    init_std: float
    start: str

    def __post_init__(self) -> None:
        if self.lr <= 0 or not 0 <= self.beta1 < 1 or not 0 <= self.beta2 < 1 or self.init_std < 0:
            raise ValueError(
                "`lr > 0`, `0 <= beta1 < 1`, `0 <= beta2 < 1` and `init_std >= 0` must hold for the architecture "
                f"parameters, but got {self}"
            )
        if self.start not in ("budget", "equal"):
            raise ValueError(f"`architecture.start` must be budget or equal, but got {self.start!r}")


class Architecture:
    """α [num_choices, most candidates], of which only the entries at `is_one` are candidates."""

    def __init__(self, *, is_one: BoolArray, options: ArchitectureOptions, rng: Generator) -> None:
        self.is_one = torch.from_numpy(is_one)
        initial = options.init_std * rng.standard_normal(is_one.shape)
        self.alpha = torch.from_numpy(np.where(is_one, initial, 0.0)).requires_grad_()
        betas = (float(options.beta1), float(options.beta2))
        self.optimizer = torch.optim.Adam([self.alpha], lr=options.lr, betas=betas)

    def tilt(self, sizes: FloatArray, expected_cost: Callable[[Tensor], Tensor], target: float) -> None:
        """Adds a multiple of `sizes` [num_choices, most candidates] to α with which `expected_cost` is `target`.

        `expected_cost` takes probabilities. Where no multiple is enough, the nearest is added.
        """
        steps, start = torch.from_numpy(sizes), self.alpha.detach().clone()
        low, high = -_STEEPEST, _STEEPEST
        with torch.no_grad():
            for _ in range(40):
                middle = (low + high) / 2
                self.alpha.copy_(start + middle * steps)
                if float(expected_cost(self.probabilities())) <= target:
                    low = middle
                else:
                    high = middle
            self.alpha.copy_(start + low * steps)

    def probabilities(self) -> Tensor:
        """[num_choices, most candidates], differentiable; 0 where there is no candidate."""
        return torch.softmax(self.alpha.masked_fill(~self.is_one, -torch.inf), dim=1)

    @property
    def log_probabilities(self) -> FloatArray:
        """[num_choices, most candidates]; minus infinity where there is no candidate."""
        with torch.no_grad():
            found: FloatArray = torch.log_softmax(self.alpha.masked_fill(~self.is_one, -torch.inf), dim=1).numpy()
        return found

    def sample(self, num_paths: int, rng: Generator) -> IntArray:
        """Paths [num_paths, num_choices] drawn choice by choice."""
        scores = self.log_probabilities + rng.gumbel(size=(num_paths, *self.is_one.shape))
        paths: IntArray = scores.argmax(axis=2)
        return paths

    def sample_pairs(self, rng: Generator) -> BoolArray:
        """Two candidates of each choice, drawn by probability without replacement; those of one keep it alone."""
        scores = self.log_probabilities + rng.gumbel(size=self.is_one.shape)
        highest = np.sort(scores, axis=1)[:, ::-1]
        least = highest[:, min(1, scores.shape[1] - 1), None]
        pairs: BoolArray = (scores >= least) & self.is_one.numpy()
        return pairs

    def among(self, pairs: BoolArray) -> Tensor:
        """Probabilities with all but the candidates in `pairs` held, these sharing what they have: differentiable."""
        mask = torch.from_numpy(pairs)
        held = self.probabilities().detach()
        own = torch.softmax(self.alpha.masked_fill(~mask, -torch.inf), dim=1)
        share = (held * mask).sum(1, keepdim=True)
        return torch.where(mask, share * own, held)

    def shares(self, pairs: BoolArray) -> Tensor:
        """The softmax over the candidates in `pairs` alone, differentiable; 0 elsewhere."""
        return torch.softmax(self.alpha.masked_fill(~torch.from_numpy(pairs), -torch.inf), dim=1)

    def learn(self, loss: Tensor) -> bool:
        """One step of Adam down the gradient of `loss`; False, and none, where it or the gradient is not finite."""
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        assert self.alpha.grad is not None
        if not (bool(torch.isfinite(loss.detach())) and bool(torch.isfinite(self.alpha.grad).all())):
            return False
        self.optimizer.step()
        return True

    def learn_pairs(self, loss: Tensor, pairs: BoolArray) -> bool:
        """As `learn`, for the candidates in `pairs` alone: the probabilities of all others stay what they were.

        After the step both of a pair are moved by the same amount, so that together they are as probable as before.
        """
        mask = torch.from_numpy(pairs)
        before = self.alpha.detach().clone()
        if not self.learn(loss):
            return False
        with torch.no_grad():
            # Adam's step is zero where the gradient is, but for what its first moment remembers.
            self.alpha.copy_(torch.where(mask, self.alpha, before))
            old, new = (torch.logsumexp(a.masked_fill(~mask, -torch.inf), dim=1) for a in (before, self.alpha))
            self.alpha.add_(torch.where(mask, (old - new)[:, None], 0.0))
        return True

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values, nothing shared."""
        return {"alpha": self.alpha.detach().clone(), "adam": _copied(self.optimizer.state_dict())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        with torch.no_grad():
            self.alpha.copy_(state["alpha"])
        self.optimizer.load_state_dict(_copied(state["adam"]))


def log_probability(architecture: Architecture, paths: IntArray) -> Tensor:
    """The log-probability of each of `paths` [num_paths, num_choices], differentiable; [num_paths]."""
    logs = torch.log_softmax(architecture.alpha.masked_fill(~architecture.is_one, -torch.inf), dim=1)
    rows = torch.arange(len(logs)).expand(paths.shape)
    return logs[rows, torch.from_numpy(paths)].sum(1)


def _copied(state: Any) -> Any:
    """A nested state with tensors of its own."""
    if isinstance(state, Tensor):
        return state.clone()
    if isinstance(state, Mapping):
        return {key: _copied(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return [_copied(value) for value in state]
    return state
