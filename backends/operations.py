"""Operations as a dispatch mode sees them, and the tables of rules that say what they do with labels."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from backends.labels import Mark

if TYPE_CHECKING:  # rules take the tracer that asks them
    from backends.tracer import Tracer


class Call:
    """One operation: its `name` (no namespace, no in-place underscore) and arguments by name, defaults included."""

    def __init__(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        schema = func._schema
        name = schema.name.partition("::")[2]
        self.is_inplace = name.endswith("_") and not name.endswith("__")
        self.name = name.removesuffix("_") if self.is_inplace else name
        self.arguments: dict[str, Any] = {
            declared.name: args[index] if index < len(args) else kwargs.get(declared.name, declared.default_value)
            for index, declared in enumerate(schema.arguments)
        }
        self.tensors: list[Tensor] = [leaf for leaf in tree_leaves([args, kwargs]) if isinstance(leaf, Tensor)]

    def __getitem__(self, argument: str) -> Any:
        return self.arguments[argument]

    @property
    def first(self) -> Any:
        """The argument that every aten operation names differently: self, input, tensors."""
        return next(iter(self.arguments.values()))

    def dim(self, argument: str = "dim") -> int:
        """A dimension of the first argument, counted from the front."""
        ndim: int = self.first.dim()
        return int(self[argument]) % max(1, ndim)


Rule = Callable[["Tracer", Call, Any], "Mark | Sequence[Mark | None] | None"]


def register(table: dict[str, Rule], *names: str) -> Callable[[Rule], Rule]:
    """Enters a rule into a table under operation names."""

    def enter(rule: Rule) -> Rule:
        table.update(dict.fromkeys(names, rule))
        return rule

    return enter


@dataclass(frozen=True)
class Rules:
    """Rules by operation name; `layers` of them count even among constants.

    `pointwise` is the rule of elementwise operations, `fills` are the operations that make a tensor of one value.
    """

    layers: Mapping[str, Rule]
    others: Mapping[str, Rule]
    pointwise: Rule
    fills: frozenset[str]

    def find(self, func: Any, name: str) -> Rule | None:
        """The rule of an operation, if there is one."""
        if func.namespace == "aten" and (name in self.layers or name in self.others):
            return self.layers.get(name) or self.others[name]
        return self.pointwise if is_pointwise(func) else None


@functools.cache
def is_pointwise(func: Any) -> bool:
    """Whether an operation works element by element (in-place forms take after the functional one)."""
    if torch.Tag.pointwise in func.tags:
        return True
    packet = getattr(torch.ops.aten, func._schema.name.partition("::")[2].rstrip("_"), None)
    functional = getattr(packet, func._overloadname, None) if func.namespace == "aten" else None
    return functional is not None and torch.Tag.pointwise in functional.tags


@functools.cache
def is_composite(func: Any) -> bool:
    """Whether an operation is made of others, which is how a mode usually meets it; whole in inference mode only."""
    return bool(func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd))
