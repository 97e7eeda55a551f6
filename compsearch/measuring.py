"""What the table says of a network: the only module that reads the test split, once per network."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from compsearch.assembly import Parts
from compsearch.space import Policy
from compsearch.summary import Latency, NetworkRow, StoredSize


def measured(parts: Parts, name: str, policy: Policy, network: Any) -> dict[str, Any]:
    """Accuracies of `network` on the search and test splits and the costs of `policy`, as plain values.

    Where weights are sparse, also the bytes that the network takes on disk.
    """
    search, test = parts.workbench.measure(network, "search"), parts.workbench.measure(network, "test")
    row = {"name": name, "accuracy_search": search.accuracy, "accuracy_test": test.accuracy, "top5_test": test.top5}
    size = {"size": dataclasses.asdict(parts.sizes(network))} if parts.space.sparse else {}
    return row | size | {"costs": {resource: model.cost(policy) for resource, model in parts.cost_models.items()}}


def network_row(row: Mapping[str, Any], latency: Mapping[str, Any] | None) -> NetworkRow:
    """The row of the table that `measured` found, with the latency where one was measured."""
    costs = dict(row["costs"])
    return NetworkRow(
        name=row["name"],
        macs=costs.pop("macs"),
        params=int(costs.pop("params")),
        accuracy_search=row["accuracy_search"],
        accuracy_test=row["accuracy_test"],
        top5_test=row["top5_test"],
        latency=Latency(**latency) if latency else None,
        block_sparsity=costs.pop("block_sparsity", None),
        size=StoredSize(**row["size"]) if "size" in row else None,
        costs=costs,
    )
