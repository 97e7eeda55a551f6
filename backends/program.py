"""A forward as the operations that ran, what each took and gave: two runs of one program can be told from two programs.

A network with fewer channels must do what the dense one did. Nothing but the sizes of channels may differ: a forward
could read such a size and go another way, or take it for a number that means something else.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

#: Arguments that say sizes, by operation. Which channels they leave is followed by labels.
_SIZES: Mapping[str, frozenset[str]] = {
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "expand", "resize"), frozenset({"size", "shape"})),
    **dict.fromkeys(
        ("as_strided", "_reshape_alias", "empty_strided", "new_empty_strided"), frozenset({"size", "stride"})
    ),
    **dict.fromkeys(("split", "split_with_sizes", "unsafe_split"), frozenset({"split_size", "split_sizes"})),
    **dict.fromkeys(("slice", "narrow", "slice_copy"), frozenset({"start", "end", "length"})),
    **dict.fromkeys(("zeros", "ones", "full", "empty", "rand", "randn"), frozenset({"size"})),
    **dict.fromkeys(("new_zeros", "new_ones", "new_full", "new_empty"), frozenset({"size"})),
    **dict.fromkeys(("convolution", "_convolution", "cudnn_convolution"), frozenset({"groups"})),
    "constant_pad_nd": frozenset({"pad"}),
    "native_layer_norm": frozenset({"normalized_shape"}),
    "native_group_norm": frozenset({"C", "HxW", "group", "num_groups"}),
    "group_norm": frozenset({"num_groups"}),
    "unflatten": frozenset({"sizes"}),
}
#: Constants of no more entries are compared by value.
_MOST_COMPARED = 4096


@dataclass(frozen=True)
class Step:
    """An operation's name and what it took; of what it gave, the sizes and the dimensions whose size may differ."""

    taken: tuple[Any, ...]
    shapes: tuple[tuple[int, ...], ...]
    may_differ: tuple[frozenset[int], ...]

    @property
    def operation(self) -> str:
        return str(self.taken[0])

    def allows(self, other: Step) -> bool:
        """Whether another network's step does the same, but for sizes that may differ."""
        return (
            self.taken == other.taken
            and list(map(len, self.shapes)) == list(map(len, other.shapes))
            and all(
                dim in free or mine == its
                for free, left, right in zip(self.may_differ, self.shapes, other.shapes, strict=True)
                for dim, (mine, its) in enumerate(zip(left, right, strict=True))
            )
        )


class Program:
    """The steps of one run. Tensors stand in them as what they are: a parameter, an input, or what a step gave."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self._names: Any = WeakTensorKeyDictionary()

    def name(self, tensor: Tensor, name: str) -> None:
        """Says what a tensor is that no step gave."""
        self._names[tensor] = name

    def taken(self, operation: str, arguments: Mapping[str, Any]) -> tuple[Any, ...]:
        """What an operation is about to take; where it says sizes, a star."""
        sizes = _SIZES.get(operation, frozenset())
        return (operation, *("*" if name in sizes else self.shown(value) for name, value in arguments.items()))

    def add(self, taken: tuple[Any, ...], outputs: Sequence[Tensor], may_differ: Iterable[frozenset[int]]) -> None:
        """A step that took `taken` and gave `outputs`; of each, the dimensions whose size may differ."""
        for place, tensor in enumerate(outputs):
            self._names[tensor] = (len(self.steps), place)
        self.steps.append(Step(taken, tuple(tuple(tensor.shape) for tensor in outputs), tuple(may_differ)))

    def shown(self, value: Any) -> Any:
        """A value as it stands in a step."""
        if isinstance(value, Tensor):
            return self._names.get(value) or _constant(value)
        if isinstance(value, list | tuple):
            return tuple(map(self.shown, value))
        # NaN is not itself, but is what it was.
        return "nan" if isinstance(value, float) and math.isnan(value) else value


def _constant(tensor: Tensor) -> Any:
    shape = tuple(tensor.shape)
    if tensor.device.type == "meta" or tensor.numel() > _MOST_COMPARED:
        return ("constant", shape, tensor.dtype)
    return ("constant", shape, tensor.dtype, repr(tensor.tolist()))
