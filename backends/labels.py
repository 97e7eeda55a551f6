"""Channel labels: an integer for every entry of every dimension of every parameter and buffer, carried along a forward.

A `Tracer` is a dispatch mode: while it is active each operation runs as usual and then tells, by its rule, which labels
its result has. Rules only ever *unify* labels (these channels stay or go together), *freeze* them (these always stay,
for a reason) or move them along with the data. As all labels belong to parameters and buffers from the beginning, tied
weights and modules called twice need nothing special.

Two label values are no channels: `NONE` is data that does not come from any channel (the network's input, a constant),
so that whatever must line up with it cannot be removed; `ANY` is the same value everywhere (a tensor of zeros, an
expanded one-channel gate), which lines up with whatever is left.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from compsearch.space import BoolArray, IntArray

NONE, ANY = 0, 1
_FIRST = 2


class Conflict(Exception):
    """While verifying: channels met that the dense network never tied, or a live channel would have to stay."""

    def __init__(self, roots: IntArray, message: str) -> None:
        super().__init__(message)
        self.roots = roots


class Labels:
    """Union-find over the labels of named tensors.

    `shapes` are the tensors' dense shapes. `axis(name, dim)` are the labels of one dimension, [shape[dim]]. After
    `seal(live)` nothing changes any more: to unify two classes of which one is live, or to freeze a live one, raises
    Conflict.
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]]) -> None:
        self._axes: dict[tuple[str, int], IntArray] = {}
        start = _FIRST
        for name, shape in shapes.items():
            for dim, size in enumerate(shape):
                self._axes[name, dim] = np.arange(start, start + size)
                start += size
        self._parent = np.arange(start)
        self._emitted = np.zeros(start, dtype=np.bool_)
        self._dense_size = np.ones(start, dtype=np.int64)
        for axis in self._axes.values():
            self._dense_size[axis] = len(axis)
        self._live: BoolArray | None = None
        #: Labels that an operation tied although different layers emit them, with the operation's name.
        self.ties: list[tuple[int, str]] = []
        #: Labels that always stay, with the reason.
        self.frozen: list[tuple[IntArray, str]] = []

    @property
    def size(self) -> int:
        """One more than the largest label."""
        return len(self._parent)

    def axis(self, name: str, dim: int) -> IntArray:
        """The labels of one dimension of a tensor, [size]."""
        return self._axes[name, dim]

    def was_single(self, axis: Tensor) -> bool:
        """Whether the dimension that this slice of labels comes from has one entry in the dense network."""
        return len(axis) == 1 and int(self._dense_size[int(axis[0])]) == 1

    def roots(self, labels: IntArray) -> IntArray:
        """One representative label per class, elementwise; NONE and ANY represent themselves."""
        roots = self._parent[labels]
        while True:
            above = self._parent[roots]
            if np.array_equal(above, roots):
                self._parent[labels] = roots
                return roots
            roots = above

    def classes(self, labels: Tensor) -> Tensor:
        """`roots` of a tensor of labels."""
        return torch.from_numpy(self.roots(labels.numpy()))

    def emit(self, labels: Tensor) -> None:
        """Says that a layer computes these channels."""
        if self._live is None:
            self._emitted[self.roots(labels.numpy())] = True

    def unify(self, first: Tensor, second: Tensor, cause: str) -> None:
        """Ties two tensors of labels of the same shape, position by position; NONE and ANY tie to nothing."""
        ones, others = first.numpy().ravel(), second.numpy().ravel()
        real = (ones >= _FIRST) & (others >= _FIRST)
        ones, others = ones[real], others[real]
        while True:
            ones, others = self.roots(ones), self.roots(others)
            differ = ones != others
            if not differ.any():
                return
            ones, others = ones[differ], others[differ]
            if self._live is not None:
                live = self._live[ones] | self._live[others]
                if live.any():
                    raise Conflict(np.concatenate([ones[live], others[live]]), f"{cause} joins channels by position")
                return
            both = self._emitted[ones] & self._emitted[others]
            self.ties.extend((int(label), cause) for label in np.unique(ones[both]))
            low, high = np.minimum(ones, others), np.maximum(ones, others)
            np.minimum.at(self._parent, high, low)
            np.logical_or.at(self._emitted, self.roots(high), self._emitted[high])

    def freeze(self, labels: Tensor | Iterable[Tensor], reason: str) -> None:
        """Says that these channels always stay; NONE and ANY are passed over."""
        for part in [labels] if isinstance(labels, Tensor) else labels:
            ids = np.unique(part.numpy())
            ids = ids[ids >= _FIRST]
            if not len(ids):
                continue
            if self._live is not None:
                roots = self.roots(ids)
                if self._live[roots].any():
                    raise Conflict(roots[self._live[roots]], reason)
            else:
                self.frozen.append((ids, reason))

    def seal(self, live: BoolArray) -> None:
        """From now on only verifies; `live` says which class representatives may be removed, [size]."""
        self._live = live


@dataclass(frozen=True)
class Channels:
    """What an activation carries: `labels` has its number of dimensions, each of them full or 1 (all alike).

    `why` says what the data is where a label is NONE.
    """

    labels: Tensor
    why: str = ""


@dataclass(frozen=True)
class Weight:
    """A view of a parameter or buffer: labels per dimension, None for a dimension that the view added."""

    name: str
    axes: tuple[Tensor | None, ...]

    @property
    def labels(self) -> Iterator[Tensor]:
        return (axis for axis in self.axes if axis is not None)


Mark = Channels | Weight


class Call:
    """One operation: its `name` (without namespace and in-place underscore) and arguments by name, defaults included."""

    def __init__(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        schema = func._schema
        self.namespace, _, name = schema.name.partition("::")
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
        return int(self[argument]) % max(1, self.first.dim())


Rule = Callable[["Tracer", Call, Any], "Mark | Sequence[Mark | None] | None"]


@dataclass
class LayerRecord:
    """One weight as the forward used it: labels it reads and emits, `macs` summed over calls and images.

    The remaining fields are as in `compsearch.space.Layer`, of the first call.
    """

    weight: str
    kind: str
    ins: Tensor
    outs: Tensor
    in_channels: int
    out_channels: int
    height: int = 1
    width: int = 1
    stride: int = 1
    kernel_size: int = 1
    macs: int = 0


class Tracer(TorchDispatchMode):
    """Follows labels through everything that runs while it is active.

    `tensors` are the model's parameters and buffers with the labels of each dimension; `rules` are by operation name,
    `pointwise` is the rule of elementwise operations.
    """

    def __init__(
        self,
        labels: Labels,
        tensors: Iterable[tuple[str, Tensor, tuple[Tensor, ...]]],
        *,
        rules: Mapping[str, Rule],
        pointwise: Rule,
        fills: frozenset[str],
    ) -> None:
        super().__init__()
        self.labels = labels
        self.layers: dict[str, LayerRecord] = {}
        self.constant_macs = 0
        #: Sizes that a module without parameters holds in an attribute: (attribute path, index) -> labels.
        self.sizes: dict[tuple[str, int], Tensor] = {}
        #: Names and modules that are running, outermost first.
        self.modules: list[tuple[str, nn.Module]] = []
        #: The tensors that each of these modules was called with.
        self.entered: list[list[Tensor]] = []
        self._last: list[Tensor] = []
        self._rules = rules
        self._pointwise = pointwise
        self._fills = fills
        self._marks: Any = WeakTensorKeyDictionary()
        self._written: set[int] = set()
        for name, tensor, axes in tensors:
            self._marks[tensor] = Weight(name, axes)

    # What rules ask.

    def mark(self, tensor: Tensor) -> Mark | None:
        """What a tensor carries; None for a constant."""
        mark: Mark | None = self._marks.get(tensor)
        if isinstance(mark, Channels) and self._written and tensor.untyped_storage()._cdata in self._written:
            return Channels(torch.where(mark.labels == ANY, NONE, mark.labels), mark.why or "a constant")
        return mark

    def channels(self, tensor: Tensor, *, near: Iterable[int] = ()) -> Channels:
        """What a tensor carries as an activation.

        Of a parameter or buffer one dimension counts: its only one of more than one entry, or the one among `near`.
        Its other dimensions are frozen, as they line up with positions.
        """
        mark = self.mark(tensor)
        if mark is None:
            return Channels(torch.zeros((1,) * tensor.dim(), dtype=torch.int64), "a constant")
        if isinstance(mark, Channels):
            return mark
        wanted = set(near)
        axes = [dim for dim, axis in enumerate(mark.axes) if axis is not None and not self.labels.was_single(axis)]
        if not axes:
            axes = [dim for dim, axis in enumerate(mark.axes) if axis is not None and dim in wanted]
        elif len(axes) > 1:
            axes = [dim for dim in axes if dim in wanted]
        if len(axes) != 1:
            self.labels.freeze(mark.labels, "a tensor with several dimensions of channels")
            return Channels(torch.zeros((1,) * tensor.dim(), dtype=torch.int64), f"the entries of {mark.name}")
        for dim, axis in enumerate(mark.axes):
            if axis is not None and dim != axes[0]:
                self.labels.freeze(axis, "positions of a parameter")
        chosen = mark.axes[axes[0]]
        assert chosen is not None
        return Channels(chosen.reshape([-1 if dim == axes[0] else 1 for dim in range(tensor.dim())]))

    def varying(self, labels: Tensor) -> set[int]:
        """The dimensions along which the classes of `labels` differ."""
        if labels.numel() == 0:
            return {dim for dim, size in enumerate(labels.shape) if size != 1}
        classes = self.labels.classes(labels)
        return {
            dim
            for dim, size in enumerate(classes.shape)
            if size > 1 and bool((classes != classes.narrow(dim, 0, 1)).any())
        }

    def axis(self, tensor: Tensor, dim: int, what: str) -> tuple[Tensor, str]:
        """The labels along one dimension, [size], and what is there where they are NONE.

        When other dimensions carry channels too, all are frozen and NONE is returned: `what` cannot follow them.
        """
        carried = self.channels(tensor, near=[dim])
        size = tensor.shape[dim]
        if self.varying(carried.labels) - {dim}:
            self.labels.freeze(carried.labels, f"{what} over channels")
            return torch.zeros(size, dtype=torch.int64), "rearranged channels"
        labels = carried.labels.movedim(dim, -1)
        labels = labels.reshape(-1, labels.shape[-1])[0].expand(size)
        return torch.where(labels == ANY, NONE, labels), carried.why or "a constant"

    def opaque(self, call: Call, reason: str) -> Channels:
        """Freezes everything that enters `call`; its result carries no channel."""
        for tensor in call.tensors:
            mark = self.mark(tensor)
            if mark is not None:
                self.labels.freeze(mark.labels, reason)
        return Channels(torch.zeros((), dtype=torch.int64), reason)

    def recent(self) -> IntArray:
        """Class representatives met last: where to look first when a forward has raised.

        They are those that entered the module that raised, and those of the last operation before.
        """
        entered = [self.mark(tensor) for tensor in (self.entered[-1] if self.entered else [])]
        carried = [mark.labels for mark in entered if isinstance(mark, Channels)]
        met = [labels.numpy().ravel() for labels in (*carried, *self._last)]
        return np.unique(self.labels.roots(np.concatenate([np.zeros(0, dtype=np.int64), *met])))

    @property
    def where(self) -> str:
        """The innermost running module, for messages."""
        return self.modules[-1][0] if self.modules and self.modules[-1][0] else "the forward"

    # The mode itself.

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        call = Call(func, args, kwargs)
        rule = self._rules.get(call.name) if call.namespace == "aten" else None
        if rule is None and is_pointwise(func):
            rule = self._pointwise
        if rule is None and call.name not in self._fills and _is_composite(func):
            with self:
                return func.decompose(*args, **kwargs)
        if call.is_inplace and rule is not None and rule is not self._pointwise:
            call = self._before(func, call, args, kwargs)
        result = func(*args, **kwargs)
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if call.name in self._fills:
            for output in outputs:
                self._put(call, output, Channels(torch.full((1,) * output.dim(), ANY), "a constant"))
            return result
        marks = [mark for mark in map(self.mark, call.tensors) if mark is not None]
        if not marks:
            return result
        self._last = [
            label for mark in marks for label in ([mark.labels] if isinstance(mark, Channels) else mark.labels)
        ]
        given = (
            rule(self, call, result) if rule else self.opaque(call, f"unknown operation {call.name} in {self.where}")
        )
        for output, mark in zip(
            outputs, given if isinstance(given, Sequence) else [given] * len(outputs), strict=False
        ):
            if isinstance(mark, Channels):
                missing = output.dim() - mark.labels.dim()
                mark = Channels(mark.labels.reshape((1,) * missing + mark.labels.shape), mark.why) if missing else mark
                self._last.append(mark.labels)
                assert mark.labels.dim() == output.dim(), (call.name, mark.labels.shape, output.shape)
            if mark is not None:
                self._put(call, output, mark)
        return result

    def _put(self, call: Call, output: Tensor, mark: Mark) -> None:
        if call.is_inplace:
            prior = self._marks.get(output)
            if isinstance(prior, Weight) or prior is None:
                # A parameter, or a tensor that other views may see: what was written cannot be followed there.
                self.labels.freeze(mark.labels, "written into a constant")
                if isinstance(prior, Weight):
                    self.labels.freeze(prior.labels, "written by the forward")
                    return
            elif bool((prior.labels == ANY).any()) and _is_part(output):
                self.labels.freeze(mark.labels, "written into part of a tensor")
                self._written.add(output.untyped_storage()._cdata)
        self._marks[output] = mark

    def _before(self, func: Any, call: Call, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        """`call` with a stand-in for the tensor it changes in place, so that the rule still sees the old shape."""
        old = args[0]
        mark = self.mark(old) if isinstance(old, Tensor) else None
        if mark is None:
            return call
        standin = torch.empty_strided(old.shape, old.stride(), device="meta")
        self._marks[standin] = mark
        return Call(func, [standin, *args[1:]], kwargs)


def _is_part(tensor: Tensor) -> bool:
    return tensor._is_view() or tensor.numel() * tensor.element_size() != tensor.untyped_storage().nbytes()


@functools.cache
def is_pointwise(func: Any) -> bool:
    """Whether an operation works element by element (in-place forms take after the functional one)."""
    if torch.Tag.pointwise in func.tags:
        return True
    packet = getattr(torch.ops.aten, func._schema.name.partition("::")[2].rstrip("_"), None)
    functional = getattr(packet, func._overloadname, None) if func.namespace == "aten" else None
    return functional is not None and torch.Tag.pointwise in functional.tags


@functools.cache
def _is_composite(func: Any) -> bool:
    return bool(func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd))
