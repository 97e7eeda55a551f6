"""The seams: what a searcher is, what scores a policy, what prices one, and what finishes the winner."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from compsearch.space import FloatArray, IntArray, Policy
from compsearch.trial import Measurement, Trial

if TYPE_CHECKING:  # budgets are made with cost models
    from compsearch.budget import Budget
    from compsearch.summary import Latency


#: Computes something under a name, or gives what was computed under it before.
Once = Callable[[str, Callable[[], dict[str, Any]]], dict[str, Any]]


class Searcher(Protocol):
    """Proposes policies in `num_steps` steps (AMC: an episode, LeGR: a child, ProxylessNAS: a stretch of training).

    `state_dict` holds tensors and plain values only, nothing shared with the searcher, so that it survives
    ``torch.load(weights_only=True)`` and a searcher that loads it continues as if never interrupted.
    """

    num_steps: int

    def step(self) -> Sequence[Trial]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


@runtime_checkable
class FamilySearcher(Searcher, Protocol):
    """A searcher whose trials each stand for a network at every budget: one search, a whole family."""

    def family(self, trial: Trial, budgets: Sequence[Budget]) -> list[Trial]:
        """What `trial` was derived from at other budgets, scored; it needs no state but the trial's genome."""
        ...


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


class Workbench(Protocol):
    """Turns a policy into a network and does with networks what a run needs after the search.

    A network is the backend's own object; the run only hands it around. Networks are never changed by being measured.
    """

    def dense(self) -> Any:
        """The network everything is compared to."""
        ...

    def compress(self, policy: Policy) -> Any:
        """The network of `policy`, recovered as a finalist is."""
        ...

    def finetune(self, network: Any, checkpoint: Path) -> Any:
        """A fine-tuned copy; goes on from `checkpoint` when an earlier call was killed."""
        ...

    def measure(self, network: Any, split: str) -> Measurement:
        """Accuracy on 'search' or 'test', without costs."""
        ...

    def latencies(self, networks: Mapping[str, Any]) -> Mapping[str, Latency]:
        """Time of a batch through each network, by name, in turns; ratios are to the first."""
        ...

    def energies(self, networks: Mapping[str, Any]) -> Mapping[str, str]:
        """Measured energy of a batch through each network, in words; empty where the machine has no counter."""
        ...

    def plain(self, policy: Policy) -> Any:
        """The network of `policy` neither recovered nor trained: enough for what it costs."""
        ...

    def state(self, network: Any) -> dict[str, Any]:
        """What `load` needs beside the policy: tensors and plain values."""
        ...

    def load(self, policy: Policy, state: Mapping[str, Any]) -> Any:
        """The network of `policy` with the weights of `state`."""
        ...
