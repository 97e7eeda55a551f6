"""Exact costs from a ledger: multiply-accumulates and parameters of any policy, without building its network.

Equal to ``torch.utils.flop_counter`` / 2 (counted with grad enabled, for one image) and to the number of parameters of
the extracted network, to the last unit. Where a space makes weights sparse, those that are kept count: what a runtime
that skips zeros would compute and store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from compsearch.candidates import Candidates
from compsearch.space import FloatArray, IntArray, Policy, SearchSpace


class Ledger:
    """How much of each parameter of a network is kept, from the number of units kept per group.

    A dimension of a parameter keeps ``fixed + times @ counts`` entries: all units of a group occur in it equally often,
    so counts are all that matters. What a parameter keeps is the product over its dimensions. A parameter that is there
    for one operation of a block alone is there or not, whole.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        num_groups = len(space.groups)
        group_of = np.repeat(np.arange(num_groups), space.sizes)
        weights = {*space.parameter_sizes, *(layer.parameter for layer in space.layers)}
        #: For each weight that changes, per dimension that does: entries in all, entries per unit of each group.
        self._dims: dict[str, dict[int, tuple[int, IntArray]]] = {}
        for site in space.sites:
            if site.parameter in weights:
                occurrences = np.bincount(group_of[site.units[site.units >= 0]], minlength=num_groups)
                self._dims.setdefault(site.parameter, {})[site.dim] = (len(site.units), occurrences // space.sizes)
        self._sparse = {weight.parameter: weight for weight in space.sparse}
        #: The operation that a weight is there for alone, as block and operation.
        self._operation_of = {
            name: (number, index)
            for name in sorted(weights)
            for number, block in enumerate(space.blocks)
            for index, operation in enumerate(block.operations)
            if is_part_of(name, operation.modules)
        }

    def entries(self, parameter: str, dim: int, size: int) -> tuple[int, IntArray]:
        """What dimension `dim` of `parameter`, of `size` entries, keeps: as many always, and per unit of each group."""
        size, per_unit = self._dims.get(parameter, {}).get(dim, (size, np.zeros(len(self.space.groups), np.int64)))
        return size - int(per_unit @ self.space.sizes), per_unit

    def total(self, amounts: Mapping[str, float], constant: float = 0.0) -> LedgerTotal:
        """``constant + sum of amounts[parameter] * fraction of the parameter kept`` as a function of counts."""
        names = [name for name in amounts if name in self._dims or name in self._operation_of]
        depth = max((len(self._dims.get(name, {})) for name in names), default=0)
        times = np.zeros((depth, len(names), len(self.space.groups)))
        fixed = np.ones((depth, len(names)))
        weights = np.ones(len(names))
        for row, name in enumerate(names):
            entries = 1
            for level, (size, per_unit) in enumerate(self._dims.get(name, {}).values()):
                times[level, row] = per_unit
                fixed[level, row] = size - per_unit @ self.space.sizes
                entries *= size
            weights[row] = amounts[name] / entries
        sparse = [self._sparse[name] for name in amounts if name in self._sparse]
        tables = [(weight.group, amounts[weight.parameter] / weight.kept[-1] * weight.kept) for weight in sparse]
        fixed_names = [name for name in amounts if name not in names and name not in self._sparse]
        constant += sum(amounts[name] for name in fixed_names)
        is_whole = all(float(amount).is_integer() for amount in amounts.values())
        # [num_parameters] each; a parameter of no operation is of block -1.
        operation_of = np.array([self._operation_of.get(name, (-1, 0)) for name in names], dtype=np.int64).reshape(
            -1, 2
        )
        shapes = (len(self.space.groups), len(self.space.blocks))
        return LedgerTotal(times.transpose(0, 2, 1), fixed, weights, constant, is_whole, tables, operation_of, shapes)


class LedgerTotal:
    """A sum over parameters: of products over dimensions, each affine in the counts, or of tables by a count.

    What belongs to one operation of a block counts only where that one is chosen.
    """

    def __init__(
        self,
        times: FloatArray,
        fixed: FloatArray,
        weights: FloatArray,
        constant: float,
        is_whole: bool,
        tables: Sequence[tuple[int, FloatArray]],
        operation_of: IntArray,
        shape: tuple[int, int],
    ) -> None:
        self._times = times  # [depth, num_groups, num_parameters]
        self._fixed = fixed  # [depth, num_parameters]
        self._weights = weights  # [num_parameters]
        self._constant = constant
        self._is_whole = is_whole
        self._num_groups, self._num_blocks = shape
        [self._optional] = (operation_of[:, 0] >= 0).nonzero()
        self._block, self._operation = operation_of[self._optional].T  # [num_optional]
        self._groups = np.array([group for group, _ in tables], dtype=np.int64)
        width = max((len(table) for _, table in tables), default=0)
        self._tables = np.zeros((len(tables), width))  # [num_tables, most units + 1], a group's own from the left
        for row, (_, table) in enumerate(tables):
            self._tables[row, : len(table)] = table

    def __call__(self, choices: IntArray) -> FloatArray:
        """Totals [num_policies] of kept units per group and, if given, operations per block behind them.

        `choices` is [num_policies, num_groups] or [num_policies, num_groups + num_blocks].
        """
        num_groups, num_choices = self._num_groups, self._num_groups + self._num_blocks
        if choices.ndim != 2 or choices.shape[1] not in (num_groups, num_choices):
            raise ValueError(f"counts must be [num_policies, {num_groups}], but got {list(choices.shape)}")
        counts, operations = choices[:, :num_groups], choices[:, num_groups:]
        product: FloatArray = np.ones((len(counts), len(self._weights)))
        for times, fixed in zip(self._times, self._fixed, strict=True):
            product *= counts @ times + fixed
        if len(self._optional):
            chosen = operations[:, self._block] if operations.shape[1] else 0
            product[:, self._optional] *= chosen == self._operation
        totals: FloatArray = product @ self._weights + self._constant
        if len(self._groups):
            totals += self._tables[np.arange(len(self._groups)), counts[:, self._groups]].sum(axis=1)
        return np.rint(totals) if self._is_whole else totals

    def expected(self, candidates: Candidates, probabilities: Tensor) -> Tensor:
        """The mean total, a scalar, over networks drawn choice by choice; differentiable in `probabilities`.

        `probabilities` is [num_choices, most candidates]. Exact: with counts independent of each other, the mean of a
        product of two affine functions is the product of their means and what the groups in both have as covariance.
        """
        if len(self._groups):
            raise ValueError("expected costs are of channels and operations, but the space is one of weights")
        values = torch.from_numpy(candidates.values).to(probabilities)
        mean = (probabilities * values)[: self._num_groups].sum(1)
        variance = (probabilities * values**2)[: self._num_groups].sum(1) - mean**2
        times, fixed = (torch.from_numpy(array).to(probabilities) for array in (self._times, self._fixed))
        product = torch.ones(len(self._weights)).to(probabilities)
        for level in range(len(times)):
            product = product * (mean @ times[level] + fixed[level])
        if len(times) > 1:
            # No weight changes along more than two dimensions; the others are whole.
            product = product + variance @ (times[0] * times[1])
        if len(self._optional):
            rows, columns = (torch.from_numpy(index) for index in (self._block + self._num_groups, self._operation))
            present = torch.ones(len(self._weights)).to(probabilities)
            present = present.index_put((torch.from_numpy(self._optional),), probabilities[rows, columns])
            product = product * present
        return product @ torch.from_numpy(self._weights).to(probabilities) + self._constant


class MacsCost:
    """Multiply-accumulates of convolutions, linear layers and attention products, for one image."""

    resource = "macs"

    def __init__(self, space: SearchSpace, ledger: Ledger | None = None) -> None:
        self._space = space
        amounts: dict[str, float] = {}
        for layer in space.layers:
            amounts[layer.parameter] = amounts.get(layer.parameter, 0.0) + layer.macs
        self.costs = (ledger or Ledger(space)).total(amounts, space.constant_macs)
        self.expected = self.costs.expected

    def cost(self, policy: Policy) -> float:
        """The cost of one policy. Raises ValueError when it belongs to another space."""
        return float(self.costs(policy_counts(self._space, policy))[0])


class ParamsCost:
    """Elements of all parameters; buffers do not count."""

    resource = "params"

    def __init__(self, space: SearchSpace, ledger: Ledger | None = None) -> None:
        self._space = space
        self.costs = (ledger or Ledger(space)).total({name: float(n) for name, n in space.parameter_sizes.items()})
        self.expected = self.costs.expected

    def cost(self, policy: Policy) -> float:
        """The cost of one policy. Raises ValueError when it belongs to another space."""
        return float(self.costs(policy_counts(self._space, policy))[0])


def policy_counts(space: SearchSpace, policy: Policy) -> IntArray:
    """A policy as cost models take it, [1, num_groups + num_blocks]. Raises ValueError when it is of another space."""
    if policy.space != space.fingerprint:
        raise ValueError(
            f"a policy must belong to the space that prices it, but got one of {policy.space!r}, not "
            f"{space.fingerprint!r}"
        )
    return space.choices(policy)[None]


def is_part_of(name: str, modules: Sequence[str]) -> bool:
    """Whether the tensor or module `name` belongs to one of `modules`, or is one."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)
