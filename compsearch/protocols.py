"""The seams: what a searcher is, what scores a policy, what prices one, and what finishes the winner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from compsearch.space import FloatArray, IntArray, Policy
from compsearch.trial import Measurement, Trial


class Searcher(Protocol):
    """Proposes policies in `num_steps` steps (AMC: an episode, LeGR: a child, ProxylessNAS: a stretch of training).

    `state_dict` holds tensors and plain values only, nothing shared with the searcher, so that it survives
    ``torch.load(weights_only=True)`` and a searcher that loads it continues as if never interrupted.
    """

    num_steps: int

    def step(self) -> Sequence[Trial]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Evaluator(Protocol):
    """Scores policies on the search split; the order of the answers is the order of the policies."""

    def measure(self, policies: Sequence[Policy]) -> list[Measurement]: ...


class CostModel(Protocol):
    """Prices policies without data. `resource` names what it counts (macs, params, latency_ms, …)."""

    resource: str

    def cost(self, policy: Policy) -> float: ...

    def costs(self, counts: IntArray) -> FloatArray:
        """The costs [num_policies] of policies given as kept units per group [num_policies, num_groups]."""
        ...
