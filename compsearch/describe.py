"""A search space as a table for people: what may go, what ties it, and why the rest stays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from compsearch.protocols import CostModel
from compsearch.space import Operation, SearchSpace


def describe(space: SearchSpace, cost_models: Iterable[CostModel] = ()) -> str:
    """Groups in forward order, then blocks, then frozen channels with reasons, then totals; aligned, of any length.

    With `cost_models`, the totals say what the smallest policy costs of the dense network per resource.
    """
    if space.sparse:
        return _describe_sparse(space, cost_models)
    rows = [("group", "channels", "keep", "emitted by", "read by", "tied by")]
    for group in space.groups:
        channels = str(group.size) if group.width == 1 else f"{group.size} x {group.width}"
        rows.append(
            (
                group.name,
                channels,
                _counts(group.counts),
                _some(group.producers),
                _some(group.consumers),
                _some(group.tied_by),
            )
        )
    parts = [_table(rows)] if space.groups or not space.blocks else []
    if space.blocks:
        parts.append(_table([("block", "operations", "FLOPs (MACs) of the first alone"), *_blocks(space)]))
    if space.frozen:
        parts.append(
            _table([("frozen", "channels", "because"), *((f.name, str(f.size), f.reason) for f in space.frozen)])
        )
    prunable = sum(group.size * group.width for group in space.groups)
    count = (
        f"{len(space.groups)} groups, {prunable:,} prunable channels, "
        f"{sum(frozen.size for frozen in space.frozen):,} frozen"
    )
    if space.blocks:
        count += f", {len(space.blocks)} blocks"
    return "\n\n".join([*parts, "\n".join([count, *_totals(space, cost_models)])])


def _describe_sparse(space: SearchSpace, cost_models: Iterable[CostModel]) -> str:
    """Layers in forward order with the densities offered, then those that stay dense with reasons, then totals."""
    rows = [("layer", "weights", "block", "densities")]
    for weight in space.sparse:
        group = space.groups[weight.group]
        block = "×".join(map(str, weight.block))
        rows.append((group.name, f"{weight.kept[-1]:,}", block, f"{_counts(group.counts)} of {group.size}"))
    parts = [_table(rows)]
    if space.frozen:
        frozen = [(each.name, f"{each.size:,}", each.reason) for each in space.frozen]
        parts.append(_table([("dense", "weights", "because"), *frozen]))
    num_weights = sum(int(weight.kept[-1]) for weight in space.sparse)
    count = f"{len(space.groups)} layers, {num_weights:,} weights of which some may go"
    return "\n\n".join([*parts, "\n".join([count, *_totals(space, cost_models)])])


def _totals(space: SearchSpace, cost_models: Iterable[CostModel]) -> list[str]:
    # Of the dense network, which has each block's first operation alone.
    others = [operation for block in space.blocks for operation in block.operations[1:]]
    macs = sum(layer.macs for layer in space.layers) + space.constant_macs
    macs -= sum(_macs_of(space, operation) for operation in others)
    params = sum(space.parameter_sizes.values()) - sum(_params_of(space, operation) for operation in others)
    totals = [f"{macs:,.0f} FLOPs (MACs), {params:,} parameters"]
    for cost_model in cost_models:
        extremes = np.stack([space.dense_choices, space.smallest_choices])
        dense, lowest = (float(cost) for cost in cost_model.costs(extremes))
        totals.append(f"the smallest policy costs {lowest / dense:.4f} of the dense {cost_model.resource}")
    return totals


def _blocks(space: SearchSpace) -> list[tuple[str, str, str]]:
    """Of each block its name, its operations, and the dense network's MACs that go when another one is chosen."""
    rows = []
    for block in space.blocks:
        macs = _macs_of(space, block.operations[0])
        names = [operation.name for operation in block.operations]
        rows.append((block.name, " or ".join(names), f"{macs:,.0f}"))
    return rows


def _macs_of(space: SearchSpace, operation: Operation) -> float:
    """Of the layers that are there for `operation` alone."""
    return sum(layer.macs for layer in space.layers if layer.parameter.startswith(_within(operation)))


def _params_of(space: SearchSpace, operation: Operation) -> int:
    """Elements of the parameters that are there for `operation` alone."""
    return sum(size for name, size in space.parameter_sizes.items() if name.startswith(_within(operation)))


def _within(operation: Operation) -> tuple[str, ...]:
    return tuple(f"{module}." for module in operation.modules)


def _counts(counts: Sequence[int]) -> str:
    """``16..128 by 16``: the allowed counts; the last step may be shorter."""
    if len(counts) < 3:
        return " or ".join(map(str, counts))
    return f"{counts[0]}..{counts[-1]} by {counts[1] - counts[0]}"


def _some(names: Sequence[str]) -> str:
    """Two names, and how many more there are."""
    return ", ".join(names[:2]) + (f" +{len(names) - 2}" if len(names) > 2 else "") if names else "-"


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
