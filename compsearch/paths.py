"""What a search over paths believed when it derived a network, kept with the trial for plots and people to read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from compsearch.trial import Genome

_PREFIX = "path:"
_SEARCH = "search"


@dataclass(frozen=True)
class PathState:
    """Where a search stood after `epoch` epochs of supernet training.

    `expected_cost_ratio` is the mean cost of networks drawn from `probabilities` over the dense one's, in the resource
    that is limited; `train_loss` the mean over the epoch. `probabilities` are by choice and candidate, the dense
    network's candidate first.
    """

    epoch: int
    expected_cost_ratio: float
    train_loss: float
    probabilities: Mapping[str, Mapping[str, float]]

    @property
    def entropy(self) -> float:
        """Mean over choices of the entropy of their probabilities over that of equal ones: 1 undecided, 0 settled."""
        shares = [
            -sum(p * math.log(p) for p in choice.values() if p > 0) / math.log(len(choice))
            for choice in self.probabilities.values()
            if len(choice) > 1
        ]
        return sum(shares) / len(shares) if shares else 0.0

    def to_genome(self) -> Genome:
        """As a trial keeps it."""
        search = {
            "epoch": float(self.epoch),
            "expected_cost_ratio": self.expected_cost_ratio,
            "train_loss": self.train_loss,
        }
        return {_SEARCH: search} | {f"{_PREFIX}{name}": dict(choice) for name, choice in self.probabilities.items()}

    @classmethod
    def from_genome(cls, genome: Genome) -> PathState | None:
        """The inverse of `to_genome`; None for the genome of another searcher, or none."""
        search = genome.get(_SEARCH)
        if search is None:
            return None
        return cls(
            epoch=int(search["epoch"]),
            expected_cost_ratio=search["expected_cost_ratio"],
            train_loss=search["train_loss"],
            probabilities={
                name.removeprefix(_PREFIX): choice for name, choice in genome.items() if name.startswith(_PREFIX)
            },
        )
