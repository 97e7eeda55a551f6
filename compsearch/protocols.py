"""The seams: what a searcher is, what scores a policy, what prices one, and what finishes the winner."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from compsearch.space import BoolArray, FloatArray, IntArray, Policy
from compsearch.trial import Measurement, Trial

if TYPE_CHECKING:  # budgets are made with cost models
    from torch import Tensor

    from compsearch.budget import Budget
    from compsearch.candidates import Candidates
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
        """The costs [num_policies] of policies given as kept units per group [num_policies, num_groups].

        Behind the groups there may be the index of each block's operation [num_policies, num_groups + num_blocks], as
        `SearchSpace.choices` has them; left out, every block has the dense network's.
        """
        ...


@runtime_checkable
class ExpectedCostModel(CostModel, Protocol):
    """A cost model that also says what networks cost on average that are drawn choice by choice."""

    def expected(self, candidates: Candidates, probabilities: Tensor) -> Tensor:
        """The expected cost, a scalar differentiable in `probabilities` [num_choices, most candidates]."""
        ...


class Supernet(Protocol):
    """Every candidate of every choice in one network, of which one path at a time is active.

    A path is one candidate's index per choice, [num_choices]. Weights are trained on the train split in `epochs` of
    `steps_per_epoch` steps, the first `warmup_epochs` of them before paths are learned; gates are looked at on the
    search split. Batches, augmentation and schedules are the supernet's own, and part of its state.
    """

    candidates: Candidates
    warmup_epochs: int
    epochs: int
    steps_per_epoch: int

    def train(self, paths: IntArray) -> FloatArray:
        """One step of the weights per path of `paths` [num_steps, num_choices], each on the next batch; the losses.

        Only the weights of the step's own path move. A loss that is not finite ends it: NaN stands for the rest.
        """
        ...

    def gates(self, path: IntArray, wanted: BoolArray) -> tuple[float, FloatArray]:
        """The loss of `path` on the next batch of the search split, and its gradient with respect to the gates.

        Gate j of a choice multiplies what candidate j gives; those of `path` are 1, all others 0. Both `wanted` and the
        gradient are [num_choices, most candidates]; what is not wanted is 0. No weight changes.
        """
        ...

    def accuracies(self, paths: IntArray) -> FloatArray:
        """Accuracy of each of `paths` [num_paths, num_choices] on one and the same next batch of the search split."""
        ...

    def slow_down(self) -> None:
        """Halves the learning rate from here on, and lets an epoch of its schedule pass: one that was undone."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Workbench(Protocol):
    """Turns a policy into a network and does with networks what a run needs after the search.

    A network is the backend's own object; the run only hands it around. Networks are never changed by being measured.
    """

    @property
    def machine(self) -> str:
        """What the networks run on, as people name it."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of its networks' accuracies must know, a sentence each."""
        ...

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
