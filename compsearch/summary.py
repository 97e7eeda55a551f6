"""What a run has to say at the end: the rows of its table, and where they come from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from compsearch.atomic import finite_or_none
from compsearch.report.timed import Spread


@dataclass(frozen=True)
class Latency:
    """Measured time of one forward pass of a batch; p10 and p90 are the spread over the repetitions.

    `runtime` says what was timed where: the runtime, its version, the processor, threads, number format, batch size.
    `ratio` is the median of the time over that of the dense network in the same round, with its spread; None where the
    two were not timed in turns. What slows the machine is in both, so it is steadier than a quotient of two medians.
    """

    median_ms: float
    p10_ms: float
    p90_ms: float
    runtime: str
    repetitions: int = 0
    ratio: float | None = None
    ratio_p10: float | None = None
    ratio_p90: float | None = None

    @property
    def relative(self) -> Spread | None:
        """The ratio to the dense network with its spread, None where there is none."""
        if self.ratio is None or self.ratio_p10 is None or self.ratio_p90 is None:
            return None
        return Spread(self.ratio, self.ratio_p10, self.ratio_p90)


@dataclass(frozen=True)
class StoredSize:
    """Bytes of a network's tensors, its weights stored dense, in CSR or in BSR; each raw and compressed by zlib.

    `block` is BSR's, e.g. ``"4×1"`` rows × columns.
    """

    dense: int
    dense_zlib: int
    csr: int
    csr_zlib: int
    bsr: int
    bsr_zlib: int
    block: str


@dataclass(frozen=True)
class NetworkRow:
    """One network of the table: ``dense``, ``compressed``, ``fine-tuned``, or a baseline by its searcher's name.

    `accuracy_search` and `accuracy_test` are top-1 on that split, None when it was not measured. `block_sparsity` is
    the fraction of weight blocks that are zero; it and `size` are of sparse networks and those compared with them.
    `costs` is what the policy costs in the other resources there are cost models of, in each resource's own unit; a
    latency among them is predicted, where `latency` is measured.
    """

    name: str
    macs: float
    params: int
    accuracy_search: float | None = None
    accuracy_test: float | None = None
    top5_test: float | None = None
    latency: Latency | None = None
    block_sparsity: float | None = None
    size: StoredSize | None = None
    costs: Mapping[str, float] = field(default_factory=dict)

    def ratios(self, dense: NetworkRow) -> dict[str, float]:
        """What this network costs over what `dense` does, per resource; a latency only where both were measured."""
        ratios = {"macs": self.macs / dense.macs, "params": self.params / dense.params}
        for resource, cost in self.costs.items():
            if resource != "latency_ms" and dense.costs.get(resource):
                ratios[resource] = cost / dense.costs[resource]
        if self.latency and dense.latency and self.latency.runtime == dense.latency.runtime:
            ratio = self.latency.ratio
            ratios["latency_ms"] = self.latency.median_ms / dense.latency.median_ms if ratio is None else ratio
        return ratios


@dataclass(frozen=True)
class SearchCost:
    """What the search took: trials (failed ones among them), images scored in all of them, seconds of search.

    `wall_s` is by the clock, `cpu_s` of the processor's cores together, which other work on the machine lengthens less;
    None in runs of versions that didn't count it.
    """

    num_trials: int
    num_failed: int
    num_images: int
    wall_s: float
    cpu_s: float | None = None


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
    are remarks that a reader of the numbers must know, one sentence each. `variant` is the configuration's name for
    what sets this run apart, `machine` what the search ran on. `groups` are the dense network's: name to units.
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
    variant: str = ""
    machine: str = ""
    groups: Mapping[str, int] = field(default_factory=dict)

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
        return row.ratios(self.dense)

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
        data["groups"] = dict(self.groups)
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
                variant=data.get("variant", ""),
                machine=data.get("machine", ""),
                groups=dict(data.get("groups", {})),
                family=tuple(
                    FamilyMember(member["cost_ratio"], tuple(_row_from_json(row) for row in member["networks"]))
                    for member in data.get("family", ())
                ),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"a summary must have the fields of `Summary`, but {error!r}") from error


def _row_from_json(data: Mapping[str, Any]) -> NetworkRow:
    derived = {"flops_2x_macs", "cost_ratios", "latency", "size"}
    given = {key: value for key, value in data.items() if key not in derived}
    latency, size = data["latency"], data.get("size")
    return NetworkRow(
        **given,
        latency=None if latency is None else Latency(**latency),
        size=None if size is None else StoredSize(**size),
    )
