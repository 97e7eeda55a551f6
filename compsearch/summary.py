"""What a run has to say at the end: the rows of its table, and where they come from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from compsearch.atomic import finite_or_none


@dataclass(frozen=True)
class Latency:
    """Measured time of one forward pass; p10 and p90 are the spread over the repetitions.

    `runtime` says what was timed where, e.g. ``"CPU, batch 1, 1 thread, eager float32"``.
    """

    median_ms: float
    p10_ms: float
    p90_ms: float
    runtime: str


@dataclass(frozen=True)
class NetworkRow:
    """One network of the table: ``dense``, ``compressed``, ``fine-tuned``, or a baseline by its searcher's name.

    `accuracy_search` and `accuracy_test` are top-1 on that split, None when it was not measured.
    """

    name: str
    macs: float
    params: int
    accuracy_search: float | None = None
    accuracy_test: float | None = None
    top5_test: float | None = None
    latency: Latency | None = None


@dataclass(frozen=True)
class SearchCost:
    """What the search took: trials (failed ones among them), images scored in all of them, seconds of search."""

    num_trials: int
    num_failed: int
    num_images: int
    wall_s: float


@dataclass(frozen=True)
class FamilyMember:
    """The networks at one budget of a family, `cost_ratio` as asked for: ``compressed``, ``fine-tuned``, baselines."""

    cost_ratio: float
    networks: tuple[NetworkRow, ...]

    def network(self, name: str) -> NetworkRow | None:
        """The row called `name`, None when there is none."""
        return next((row for row in self.networks if row.name == name), None)


@dataclass(frozen=True)
class Summary:
    """The content of summary.json.

    `budget` is the resource and the cost_ratio asked for, None without a limit. `networks` are the table's columns,
    the dense one first. `family` are the members at every budget of a family, largest first, the one in `networks`
    among them; empty for a single network. `recovery` names how accuracies before fine-tuning were recovered. `notes`
    are remarks that a reader of the numbers must know, one sentence each.
    """

    run_name: str
    searcher: str
    model: str
    dataset: str
    seed: int
    budget: tuple[str, float] | None
    networks: tuple[NetworkRow, ...]
    search_cost: SearchCost
    recovery: str = ""
    git_commit: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    family: tuple[FamilyMember, ...] = ()

    def __post_init__(self) -> None:
        names = [row.name for row in self.networks]
        if not names or names[0] != "dense" or len(set(names)) != len(names):
            raise ValueError(f"a summary's networks must be distinct, the dense one first, but got {names}")

    @property
    def dense(self) -> NetworkRow:
        return self.networks[0]

    def network(self, name: str) -> NetworkRow | None:
        """The row called `name`, None when there is none."""
        return next((row for row in self.networks if row.name == name), None)

    def ratios(self, row: NetworkRow) -> dict[str, float]:
        """The cost_ratio of `row` per resource: what it costs over what the dense network costs."""
        ratios = {"macs": row.macs / self.dense.macs, "params": row.params / self.dense.params}
        if row.latency and self.dense.latency and row.latency.runtime == self.dense.latency.runtime:
            ratios["latency_ms"] = row.latency.median_ms / self.dense.latency.median_ms
        return ratios

    def to_json(self) -> dict[str, Any]:
        """Plain values. What follows from others (2×MACs, cost ratios) is written too, for people who read the file."""
        data = dataclasses.asdict(self)
        data["budget"] = None if self.budget is None else {"resource": self.budget[0], "cost_ratio": self.budget[1]}
        data["networks"] = [self._row_to_json(row) for row in self.networks]
        data["family"] = [
            {"cost_ratio": member.cost_ratio, "networks": [self._row_to_json(row) for row in member.networks]}
            for member in self.family
        ]
        data["versions"] = dict(self.versions)
        data["notes"] = list(self.notes)
        plain = finite_or_none(data)
        assert isinstance(plain, dict)
        return plain

    def _row_to_json(self, row: NetworkRow) -> dict[str, Any]:
        return {**dataclasses.asdict(row), "flops_2x_macs": 2 * row.macs, "cost_ratios": self.ratios(row)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Summary:
        """The inverse of `to_json`. Raises ValueError when `data` is not a summary."""
        try:
            rest = {key: data[key] for key in ("run_name", "searcher", "model", "dataset", "seed", "recovery")}
            budget = data["budget"]
            return cls(
                **rest,
                git_commit=data["git_commit"],
                budget=None if budget is None else (budget["resource"], budget["cost_ratio"]),
                networks=tuple(_row_from_json(row) for row in data["networks"]),
                search_cost=SearchCost(**data["search_cost"]),
                versions=dict(data["versions"]),
                notes=tuple(data["notes"]),
                family=tuple(
                    FamilyMember(member["cost_ratio"], tuple(_row_from_json(row) for row in member["networks"]))
                    for member in data.get("family", ())
                ),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"a summary must have the fields of `Summary`, but {error!r}") from error


def _row_from_json(data: Mapping[str, Any]) -> NetworkRow:
    given = {key: value for key, value in data.items() if key not in {"flops_2x_macs", "cost_ratios", "latency"}}
    latency = data["latency"]
    return NetworkRow(**given, latency=None if latency is None else Latency(**latency))
