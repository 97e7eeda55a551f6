"""Following channel labels through a forward.

A `Tracer` is a dispatch mode: while it is active each operation runs as usual, and then its rule says what the result
carries. Rules are small: they unify labels, freeze them, or move them along with the data.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from backends.held_sizes import Meetings
from backends.labels import ANY, NONE, Channels, Conflict, Labels, Mark, Weight
from backends.operations import Call, Rule, Rules, is_composite
from backends.program import Program
from compsearch.space import IntArray

#: What a norm does with a mean or variance before, and when, it goes back to the channels.
_NORM_STEPS = frozenset(
    (
        *("add", "sub", "rsub", "mul", "div", "true_divide", "neg", "reciprocal", "pow", "square", "sqrt", "rsqrt"),
        *("clamp", "clamp_min", "maximum", "expand", "expand_as", "_to_copy", "clone", "alias", "detach"),
    )
)


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


class Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows labels through everything that runs while it is active.

    `tensors` are the model's parameters and buffers with the labels of each dimension. `dense` is the tracer of the
    dense network when this one follows what was left of it: it must then do the same. `singles` are the `products` of a
    run on one image: what an operation costs one image can't be told from several, where it may run once for all.
    """

    def __init__(
        self,
        labels: Labels,
        tensors: Iterable[tuple[str, Tensor, tuple[Tensor, ...]]],
        rules: Rules,
        dense: Tracer | None = None,
        singles: Sequence[int] | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.labels = labels
        #: Names of the parameters and buffers that operations took.
        self.used: set[str] = set()
        self.program = Program()
        #: What `as_before` was asked.
        self.choices: list[bool] = []
        #: Channels of layers whose weight the forward computes, by module.
        self.computed: dict[str, int] = {}
        self.dense = dense
        self.layers: dict[str, LayerRecord] = {}
        self.constant_macs = 0
        #: Multiply-accumulates of every operation that has some.
        self.products: list[int] = []
        #: Sizes that a module without parameters holds in an attribute: (attribute path, index) -> labels.
        self.sizes: dict[tuple[str, int], Tensor] = {}
        #: What else attributes of modules may count.
        self.meetings = Meetings()
        #: Names and modules that are running, outermost first.
        self.modules: list[tuple[str, nn.Module]] = []
        #: The tensors that each of these modules was called with.
        self.entered: list[list[Tensor]] = []
        self._last: list[Tensor] = []
        self._rules = rules
        self._marks: Any = WeakTensorKeyDictionary()
        #: Whether each of these operations works on something computed from the network's input.
        self.all_of_images = True
        self._of_images: Any = WeakTensorKeyDictionary()
        self._singles = singles
        self._batch_size = 1
        self._written: set[int] = set()
        for name, tensor, axes in tensors:
            self._marks[tensor] = Weight(name, axes)
            self.program.name(tensor, name)

    # What rules ask.

    def mark(self, tensor: Tensor) -> Mark | None:
        """What a tensor carries; None for a constant."""
        mark: Mark | None = self._marks.get(tensor)
        if isinstance(mark, Weight):
            self.used.add(mark.name)
        elif mark is not None and self._written and tensor.untyped_storage()._cdata in self._written:
            labels = torch.where(mark.labels == ANY, NONE, mark.labels)
            return dataclasses.replace(mark, labels=labels, why=mark.why or "a constant")
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
            self.labels.freeze(mark.parts, f"{mark.name} has several dimensions")
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
            self.labels.freeze(carried.labels, f"{what} over rearranged channels")
            return torch.zeros(size, dtype=torch.int64), "rearranged channels"
        labels = carried.labels.movedim(dim, -1)
        labels = labels.reshape(-1, labels.shape[-1])[0].expand(size)
        return torch.where(labels == ANY, NONE, labels), carried.why or "a constant"

    def opaque(self, call: Call, reason: str) -> Channels:
        """Freezes everything that enters `call`; its result carries no channel."""
        for tensor in call.tensors:
            mark = self.mark(tensor)
            if mark is not None:
                self.labels.freeze(mark.parts, reason)
        return Channels(torch.zeros((), dtype=torch.int64), reason)

    def recent(self) -> IntArray:
        """Class representatives met last: where to look first when a forward has raised.

        They are those that entered the module that raised, and those of the last operation before.
        """
        entered = [self.mark(tensor) for tensor in (self.entered[-1] if self.entered else [])]
        carried = [mark.labels for mark in entered if isinstance(mark, Channels)]
        met = [labels.numpy().ravel() for labels in (*carried, *self._last)]
        return np.unique(self.labels.roots(np.concatenate([np.zeros(0, dtype=np.int64), *met])))

    def macs(self, call: Call, macs: int) -> int:
        """What an operation of as many multiply-accumulates adds to those of all images, each run alone."""
        self.products.append(macs)
        self.all_of_images &= self._is_of_images(call)
        if self._singles is None or len(self.products) > len(self._singles):
            return macs
        return self._singles[len(self.products) - 1] * self._batch_size

    def _is_of_images(self, call: Call) -> bool:
        return any(tensor in self._of_images for tensor in call.tensors)

    def as_before(self, choice: bool) -> bool:
        """A rule's choice that depends on sizes: that of the dense network, when this one follows what is left of it.

        To be asked at every call of the operation, so that choices stay in step.
        """
        self.choices.append(choice)
        before = [] if self.dense is None else self.dense.choices[len(self.choices) - 1 : len(self.choices)]
        return before[0] if before else choice

    def is_held(self, *sizes: int) -> bool:
        """Whether the running module holds each of these numbers, which can then follow the channels they count."""
        return bool(self.modules) and self.meetings.holds(*self.modules[-1], sizes)

    @property
    def running(self) -> str | None:
        """The innermost running module, after a forward has raised the one that did; None outside of all."""
        return self.modules[-1][0] if self.modules else None

    @property
    def where(self) -> str:
        """The innermost running module, for messages."""
        return self.modules[-1][0] if self.modules and self.modules[-1][0] else "the forward"

    def enter(self, inputs: Any) -> None:
        """Says which tensors are the network's input; the first says how many images there are."""
        leaves = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
        self._batch_size = leaves[0].shape[0] if leaves and leaves[0].dim() else 1
        for place, leaf in enumerate(leaves):
            self.program.name(leaf, f"input {place}")
            self._of_images[leaf] = True
            self._marks[leaf] = Channels(torch.zeros((1,) * leaf.dim(), dtype=torch.int64), "the network's input")

    # The mode itself.

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Keeps PyTorch from importing its compiler (seconds) to wrap this mode, which is never compiled."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        call = Call(func, args, kwargs)
        is_fill = call.name in self._rules.fills
        rule = self._rules.find(func, call.name)
        if rule is None and not is_fill and is_composite(func):
            with self:
                return func.decompose(*args, **kwargs)
        taken = self.program.taken(call.name, call.arguments)
        result = self._run(func, call, rule, args, kwargs)
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        # Of a constant no size may differ; of what a rule says nothing about, such as a norm's statistics, any.
        may_differ = is_fill or any(self.mark(tensor) is not None for tensor in call.tensors)
        self.program.add(taken, outputs, [self._sized(output, may_differ=may_differ) for output in outputs])
        self._compare_step(call, outputs)
        return result

    def _sized(self, output: Tensor, *, may_differ: bool) -> frozenset[int]:
        """The dimensions of what an operation gave that may be as long as there are channels."""
        mark = self.mark(output)
        if isinstance(mark, Channels) and bool((mark.labels != ANY).any()):
            return frozenset(np.flatnonzero(np.array(mark.labels.shape) > 1).tolist())
        return frozenset(range(output.dim()) if may_differ else ())

    def _compare_step(self, call: Call, outputs: Sequence[Tensor]) -> None:
        """Raises Conflict where the dense network did something else."""
        if self.dense is None:
            return
        place, step = len(self.program.steps) - 1, self.program.steps[-1]
        found = self.dense.program.steps[place : place + 1]
        if not any(dense.allows(step) for dense in found):
            is_number = any(dense.operation == step.operation for dense in found)
            what = f"{call.name} gets a number that depends on it" if is_number else "the forward goes another way"
            self._refuse([*call.tensors, *outputs], f"{what} in {self.where}")

    def _refuse(self, tensors: Iterable[Tensor], message: str) -> None:
        """Raises Conflict over what tensors carry."""
        marks = [mark for mark in map(self.mark, tensors) if mark is not None]
        met = [part.numpy().ravel() for mark in marks for part in mark.parts]
        self.labels.refuse(np.concatenate([np.zeros(0, dtype=np.int64), *met]), message)

    def _run(self, func: Any, call: Call, rule: Rule | None, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """What an operation gives; what that carries is then known."""
        is_fill = call.name in self._rules.fills
        if call.is_inplace and rule not in (None, self._rules.pointwise):
            call = self._before(func, call, args, kwargs)
        result = func(*args, **kwargs)
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if self._is_of_images(call):
            self._of_images.update(dict.fromkeys(outputs, True))
        if is_fill:
            for output in outputs:
                self._put(call, output, Channels(torch.full((1,) * output.dim(), ANY), "a constant"))
            return result
        marks = [mark for mark in map(self.mark, call.tensors) if mark is not None]
        if not marks and call.name not in self._rules.layers:
            return result
        self._last = [labels for mark in marks for labels in mark.parts]
        given = self._follow(rule, call, result)
        given = self._normed(call, marks, given)
        each = given if isinstance(given, Sequence) else [given] * len(outputs)
        for output, mark in zip(outputs, each, strict=False):
            if mark is not None:
                mark = self._fitted(mark, output)
                marks.append(mark)
                self._last.extend(mark.parts)
                self._put(call, output, mark)
        if self.dense is None and self.modules:
            self.meetings.note(*self.modules[-1], marks)
        return result

    def _follow(self, rule: Rule | None, call: Call, result: Any) -> Mark | Sequence[Mark | None] | None:
        if rule is None:
            return self.opaque(call, f"unknown operation {call.name} in {self.where}")
        if any(isinstance(mark, Weight) and mark.folded for mark in map(self.mark, call.tensors)) and (
            rule not in (self._rules.others["view"], self._rules.layers["native_batch_norm"])
        ):
            return self.opaque(call, f"{call.name} of a parameter in {self.where}")
        try:
            return rule(self, call, result)
        except Conflict:
            raise
        except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError):
            # Used in a way that its rule does not know: as good as unknown, which is always safe.
            return self.opaque(call, f"{call.name} cannot be followed in {self.where}")

    def _normed(
        self, call: Call, marks: Sequence[Mark], given: Mark | Sequence[Mark | None] | None
    ) -> Mark | Sequence[Mark | None] | None:
        """What an operation gives that takes the mean or variance of channels: more of it, or channels normed by it.

        Frozen are channels whose mean goes anywhere else than back to them.
        """
        over = [mark.over for mark in marks if isinstance(mark, Channels) and mark.over is not None]
        if not over:
            return given
        if isinstance(given, Channels) and call.name in _NORM_STEPS:
            met = [self._classes(labels) for labels in (*over, given.labels)]
            if all(map(np.array_equal, met[:-1], met[1:])):
                return given
            if not len(met[-1]) and all(map(np.array_equal, met[:-2], met[1:-1])):
                return dataclasses.replace(given, over=over[0])
        self.labels.freeze(over, f"{call.name} of what was taken across channels in {self.where}")
        return given

    def _classes(self, labels: Tensor) -> IntArray:
        """The classes of channels among labels."""
        return np.unique(self.labels.roots(labels[labels > ANY].numpy()))

    def _fitted(self, mark: Mark, output: Tensor) -> Mark:
        """`mark` with as many dimensions as `output`, each of them full or 1; frozen where labels do not fit."""
        if isinstance(mark, Weight):
            return mark
        labels = mark.labels.reshape((1,) * (output.dim() - mark.labels.dim()) + mark.labels.shape)
        if labels.numel() == 0 and labels.shape != output.shape:
            labels = torch.full((1,) * output.dim(), NONE)
        for dim in range(output.dim()):
            if labels.shape[dim] not in (1, output.shape[dim]):
                if dim in self.varying(labels):
                    self.labels.freeze(labels, f"channels out of line in {self.where}")
                labels = labels.narrow(dim, 0, 1)
        return dataclasses.replace(mark, labels=labels)

    def _put(self, call: Call, output: Tensor, mark: Mark) -> None:
        if call.is_inplace:
            prior = self._marks.get(output)
            if isinstance(prior, Weight) or prior is None:
                # A parameter, or a tensor that other views may see: what was written cannot be followed there.
                self.labels.freeze(mark.parts, "written into a constant")
                if isinstance(prior, Weight):
                    self.labels.freeze(prior.parts, f"{prior.name} is written by the forward")
                    return
            elif bool((prior.labels == ANY).any()) and _is_part(output):
                self.labels.freeze(mark.parts, f"written into part of a tensor in {self.where}")
                self._written.add(output.untyped_storage()._cdata)
        self._marks[output] = mark

    def _before(self, func: Any, call: Call, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        """`call` with a stand-in for the tensor it changes in place, so that the rule still sees the old shape."""
        old = args[0]
        mark = self.mark(old) if isinstance(old, Tensor) else None
        if mark is None:
            return call
        standin = torch.empty_strided(old.shape, old.stride(), dtype=old.dtype, device="meta")
        self._marks[standin] = mark
        return Call(func, [standin, *args[1:]], kwargs)


def _is_part(tensor: Tensor) -> bool:
    return tensor._is_view() or tensor.numel() * tensor.element_size() != tensor.untyped_storage().nbytes()
