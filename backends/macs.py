"""Exact costs from a ledger: multiply-accumulates and parameters of any policy, without building its network.

Equal to ``torch.utils.flop_counter`` / 2 (counted with grad enabled, for one image) and to the number of parameters of
the extracted network, to the last unit. Where a space makes weights sparse, those that are kept count: what a runtime
that skips zeros would compute and store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from compsearch.space import FloatArray, IntArray, Policy, SearchSpace


class Ledger:
    """How much of each parameter of a network is kept, from the number of units kept per group.

    A dimension of a parameter keeps ``fixed + times @ counts`` entries: all units of a group occur in it equally often,
    so counts are all that matters. What a parameter keeps is the product over its dimensions.
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

    def entries(self, parameter: str, dim: int, size: int) -> tuple[int, IntArray]:
        """What dimension `dim` of `parameter`, of `size` entries, keeps: as many always, and per unit of each group."""
        size, per_unit = self._dims.get(parameter, {}).get(dim, (size, np.zeros(len(self.space.groups), np.int64)))
        return size - int(per_unit @ self.space.sizes), per_unit

    def total(self, amounts: Mapping[str, float], constant: float = 0.0) -> LedgerTotal:
        """``constant + sum of amounts[parameter] * fraction of the parameter kept`` as a function of counts."""
        names = [name for name in amounts if name in self._dims]
        depth = max((len(self._dims[name]) for name in names), default=0)
        times = np.zeros((depth, len(names), len(self.space.groups)))
        fixed = np.ones((depth, len(names)))
        weights = np.ones(len(names))
        for row, name in enumerate(names):
            entries = 1
            for level, (size, per_unit) in enumerate(self._dims[name].values()):
                times[level, row] = per_unit
                fixed[level, row] = size - per_unit @ self.space.sizes
                entries *= size
            weights[row] = amounts[name] / entries
        sparse = [self._sparse[name] for name in amounts if name in self._sparse]
        tables = [(weight.group, amounts[weight.parameter] / weight.kept[-1] * weight.kept) for weight in sparse]
        fixed_names = [name for name in amounts if name not in self._dims and name not in self._sparse]
        constant += sum(amounts[name] for name in fixed_names)
        is_whole = all(float(amount).is_integer() for amount in amounts.values())
        return LedgerTotal(times.transpose(0, 2, 1), fixed, weights, constant, is_whole, tables)


class LedgerTotal:
    """A sum over parameters: of products over dimensions, each affine in the counts, or of tables by a count."""

    def __init__(
        self,
        times: FloatArray,
        fixed: FloatArray,
        weights: FloatArray,
        constant: float,
        is_whole: bool,
        tables: Sequence[tuple[int, FloatArray]] = (),
    ) -> None:
        self._times = times  # [depth, num_groups, num_parameters]
        self._fixed = fixed  # [depth, num_parameters]
        self._weights = weights  # [num_parameters]
        self._constant = constant
        self._is_whole = is_whole
        self._groups = np.array([group for group, _ in tables], dtype=np.int64)
        width = max((len(table) for _, table in tables), default=0)
        self._tables = np.zeros((len(tables), width))  # [num_tables, most units + 1], a group's own from the left
        for row, (_, table) in enumerate(tables):
            self._tables[row, : len(table)] = table

    def __call__(self, counts: IntArray) -> FloatArray:
        """Totals [num_policies] of kept units per group [num_policies, num_groups]."""
        num_groups = self._times.shape[1]
        if counts.ndim != 2 or counts.shape[1] != num_groups:
            raise ValueError(f"counts must be [num_policies, {num_groups}], but got {list(counts.shape)}")
        product: FloatArray = np.ones((len(counts), len(self._weights)))
        for times, fixed in zip(self._times, self._fixed, strict=True):
            product *= counts @ times + fixed
        totals: FloatArray = product @ self._weights + self._constant
        if len(self._groups):
            totals += self._tables[np.arange(len(self._groups)), counts[:, self._groups]].sum(axis=1)
        return np.rint(totals) if self._is_whole else totals


class MacsCost:
    """Multiply-accumulates of convolutions, linear layers and attention products, for one image."""

    resource = "macs"

    def __init__(self, space: SearchSpace, ledger: Ledger | None = None) -> None:
        self._space = space
        amounts: dict[str, float] = {}
        for layer in space.layers:
            amounts[layer.parameter] = amounts.get(layer.parameter, 0.0) + layer.macs
        self.costs = (ledger or Ledger(space)).total(amounts, space.constant_macs)

    def cost(self, policy: Policy) -> float:
        """The cost of one policy. Raises ValueError when it belongs to another space."""
        return float(self.costs(policy_counts(self._space, policy))[0])


class ParamsCost:
    """Elements of all parameters; buffers do not count."""

    resource = "params"

    def __init__(self, space: SearchSpace, ledger: Ledger | None = None) -> None:
        self._space = space
        self.costs = (ledger or Ledger(space)).total({name: float(n) for name, n in space.parameter_sizes.items()})

    def cost(self, policy: Policy) -> float:
        """The cost of one policy. Raises ValueError when it belongs to another space."""
        return float(self.costs(policy_counts(self._space, policy))[0])


def policy_counts(space: SearchSpace, policy: Policy) -> IntArray:
    """Kept units as cost models take them, [1, num_groups]. Raises ValueError when the policy is of another space."""
    if policy.space != space.fingerprint:
        raise ValueError(
            f"a policy must belong to the space that prices it, but got one of {policy.space!r}, not "
            f"{space.fingerprint!r}"
        )
    return space.counts(policy)[None]
