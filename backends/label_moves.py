"""How labels pass through operations that only move data: the operation is applied to the labels themselves.

Right by construction as long as the forward, run again on fewer channels, moves what is left in the same way. Where it
acts by position (a split into parts, a view that breaks the channel dimension up), the parts are tied so that each
keeps as many channels as the others; where that cannot be, the channels are frozen.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from backends.label_values import combine
from backends.labels import ANY, NONE, Channels, Mark, Weight
from backends.operations import Call, Rule, register
from backends.tracer import Tracer

MOVES: dict[str, Rule] = {}


def _compact(labels: Tensor) -> Tensor:
    """`labels` with size 1 along every dimension in which they are all alike, so that none is held at full size."""
    for dim in range(labels.dim()):
        size = labels.shape[dim]
        if size > 1 and (labels.stride(dim) == 0 or bool((labels == labels.narrow(dim, 0, 1)).all())):
            labels = labels.narrow(dim, 0, 1)
    # A view of an expanded tensor may still hold the large one.
    return labels.clone() if labels.untyped_storage().nbytes() > 8 * labels.numel() else labels


def _tie_parts(t: Tracer, labels: Tensor, dim: int, cause: str) -> None:
    """Ties the slices of `labels` along `dim` to each other."""
    first = labels.narrow(dim, 0, 1).expand_as(labels)
    t.labels.unify(labels, first, cause)
    t.labels.freeze([first[labels <= ANY], labels[first <= ANY]], f"{cause} mixes channels and other data")


# The same data under other dimensions.


@register(MOVES, "detach", "alias", "lift_fresh", "lift", "contiguous")
def same(t: Tracer, call: Call, out: Tensor) -> Mark | None:
    """The result carries what the argument carries."""
    return t.mark(call.first)


@register(MOVES, "t", "transpose", "permute", "movedim", "swapaxes", "unsqueeze", "squeeze")
def rearrange(t: Tracer, call: Call, out: Tensor) -> Mark | None:
    """Dimensions change places, or ones of size 1 come and go."""
    x, mark = call.first, t.mark(call.first)
    if mark is None:
        return None
    order: list[int | None] = list(range(x.dim()))
    if call.name == "t":
        order.reverse()
    elif call.name == "permute":
        order = [int(dim) % x.dim() for dim in call["dims"]]
    elif call.name == "unsqueeze":
        order.insert(int(call["dim"]) % (x.dim() + 1), None)
    elif call.name == "squeeze":
        given = call.arguments.get("dim")
        dims = range(x.dim()) if given is None else [given] if isinstance(given, int) else given
        gone = {int(dim) % max(1, x.dim()) for dim in dims}
        order = [dim for dim in order if dim not in gone or x.shape[dim] != 1]
    else:
        one, other = (int(value) % max(1, x.dim()) for value in list(call.arguments.values())[1:3])
        if x.dim():
            order[one], order[other] = order[other], order[one]
    if isinstance(mark, Weight):
        return Weight(mark.name, tuple(None if dim is None else mark.axes[dim] for dim in order))
    kept = [dim for dim in order if dim is not None]
    labels = mark.labels.permute([*kept, *(dim for dim in range(x.dim()) if dim not in kept)])
    labels = labels.reshape(labels.shape[: len(kept)])
    for index, dim in enumerate(order):
        if dim is None:
            labels = labels.unsqueeze(index)
    return Channels(labels, mark.why)


@register(MOVES, "expand", "broadcast_to")
def expand(t: Tracer, call: Call, out: Tensor) -> Mark | None:
    """Repeats along dimensions of size 1; a single channel repeated is `ANY`, as it then stands for any number."""
    x, mark = call.first, t.mark(call.first)
    added = out.dim() - x.dim()
    if isinstance(mark, Weight):
        axes = [
            None if axis is not None and len(axis) == 1 and out.shape[dim + added] != 1 else axis
            for dim, axis in enumerate(mark.axes)
        ]
        return Weight(mark.name, (*(None,) * added, *axes))
    if mark is None:
        return None
    grown = any(x.shape[dim] == 1 and out.shape[dim + added] > 1 for dim in range(x.dim()))
    labels = mark.labels.reshape((1,) * added + mark.labels.shape)
    if grown and labels.numel() == 1 and int(labels) > ANY and t.labels.was_single(labels.flatten()):
        labels = torch.full_like(labels, ANY)
    return Channels(labels, mark.why)


@register(MOVES, "view", "_unsafe_view", "reshape", "_reshape_alias", "_reshape_copy", "view_copy")
def view(t: Tracer, call: Call, out: Tensor) -> Mark | None:
    """Any change of shape; where it breaks the channel dimension up, the outer parts are tied."""
    x, mark = call.first, t.mark(call.first)
    if mark is None:
        return None
    if out.dtype != x.dtype:
        return t.opaque(call, f"another type's view in {t.where}")
    if isinstance(mark, Weight):
        return _view_weight(t, mark, call, out)
    before = t.varying(mark.labels)
    labels = _compact(mark.labels.expand(x.shape).reshape(out.shape))
    after = sorted(t.varying(labels))
    while len(after) > max(1, len(before)):
        _tie_parts(t, labels, after[0], "a view")
        after = [dim for dim in sorted(t.varying(labels)) if dim != after[0]]
    return Channels(labels, mark.why)


def _view_weight(t: Tracer, mark: Weight, call: Call, out: Tensor) -> Mark:
    """A parameter with more or fewer dimensions of size 1 keeps its axes; anything else is a computed tensor.

    All its rows as they are, each with its entries in one dimension, can be followed to a norm of each row and back.
    """
    shape = call.first.shape
    if tuple(shape) == tuple(out.shape):
        return mark
    if mark.folded:
        unfolded = (mark.axes[1], *mark.folded)
        if tuple(out.shape) == tuple(len(axis) for axis in unfolded if axis is not None):
            return Weight(mark.name, unfolded)
        return t.opaque(call, f"a parameter of another shape in {t.where}")
    first, *others = mark.axes
    entries = tuple(axis for axis in others if axis is not None)
    if len(entries) == len(others) > 1 and first is not None and tuple(out.shape) == (1, shape[0], shape[1:].numel()):
        return Weight(mark.name, (None, first, None), entries)
    # Dimensions that can be told apart: those of more than one entry in the dense network.
    kept = [axis for axis in mark.axes if axis is not None and not t.labels.was_single(axis)]
    sizes = [len(axis) for axis in kept]
    axes: list[Tensor | None] = []
    for size in out.shape:
        if kept and size == sizes[0]:
            axes.append(kept.pop(0))
            sizes.pop(0)
        elif size == 1:
            axes.append(None)
        else:
            return t.opaque(call, f"a parameter of another shape in {t.where}")
    if kept or any(axis is None and size != 1 for axis, size in zip(mark.axes, shape, strict=True)):
        return t.opaque(call, f"a parameter of another shape in {t.where}")
    return Weight(mark.name, tuple(axes))


@register(MOVES, "as_strided")
def as_strided(t: Tracer, call: Call, out: Tensor) -> Mark | None:
    """Only another memory format of the same tensor can be followed."""
    x = call.first
    moved = [dim for dim in range(min(x.dim(), out.dim())) if x.shape[dim] > 1 and x.stride(dim) != out.stride(dim)]
    if x.shape != out.shape or moved:
        return t.opaque(call, f"as_strided in {t.where}")
    return t.mark(x)


# Parts and pieces.


@register(
    MOVES, "split", "split_with_sizes", "chunk", "unbind", "unsafe_split", "unsafe_chunk", "unsafe_split_with_sizes"
)
def split(t: Tracer, call: Call, out: Sequence[Tensor]) -> Sequence[Mark | None] | Mark:
    """Equal parts are tied position by position, so that all keep as many channels.

    Unequal parts are frozen, unless their sizes can be made to follow.
    """
    mark = t.mark(call.first)
    if mark is None:
        return [None] * len(out)
    dim = call.dim()
    carried = _weight_along(t, mark, dim) if isinstance(mark, Weight) else mark
    if isinstance(carried, Weight):
        return t.opaque(call, "a parameter in parts") if call.name == "unbind" else _weight_parts(carried, dim, out)
    labels = carried.labels
    is_whole = labels.shape[dim] == 1
    sizes = [1] if call.name == "unbind" else [part.shape[dim] for part in out]
    is_equal = t.as_before(len(set(sizes)) == 1)
    if dim in t.varying(labels):
        if is_equal and len(set(sizes)) == 1:
            lines = labels.movedim(dim, 0)
            _tie_parts(t, lines.reshape(-1, sizes[0], *lines.shape[1:]), 0, call.name.partition("_")[0])
        elif is_equal or not t.is_held(*sizes):
            t.labels.freeze(labels, f"unequal parts ({call.name}) in {t.where}")
    marks = []
    start = 0
    for index, part in enumerate(out):
        if call.name == "unbind":
            piece = labels.select(dim, 0 if is_whole else index)
        else:
            piece = labels if is_whole else labels.narrow(dim, start, part.shape[dim])
            start += part.shape[dim]
        marks.append(Channels(_compact(piece), carried.why))
    return marks


def _weight_along(t: Tracer, mark: Weight, dim: int) -> Weight:
    """Part of a parameter: what lies along `dim` stays, the other dimensions are followed."""
    axis = mark.axes[dim]
    if axis is not None:
        t.labels.freeze(axis, "part of a parameter")
    return mark


def _weight_parts(mark: Weight, dim: int, parts: Sequence[Tensor]) -> list[Mark | None]:
    marks: list[Mark | None] = []
    start = 0
    for part in parts:
        axis = mark.axes[dim]
        piece = None if axis is None else axis[start : start + part.shape[dim]]
        marks.append(Weight(mark.name, (*mark.axes[:dim], piece, *mark.axes[dim + 1 :])))
        start += part.shape[dim]
    return marks


@register(MOVES, "slice", "narrow", "slice_copy")
def slice_(t: Tracer, call: Call, out: Tensor) -> Mark | None:
    """A half, a quarter, every second channel: tied as `split` does.

    Any other part freezes the channels, unless its ends can be made to follow.
    """
    x, mark, dim = call.first, t.mark(call.first), call.dim()
    if mark is None or x.shape[dim] == out.shape[dim]:
        return mark
    start = int(call["start"] or 0)
    start = max(0, start + x.shape[dim] if start < 0 else start)
    step = int(call.arguments.get("step") or 1)
    length = out.shape[dim]
    part = slice(start, start + (length - 1) * step + 1 if length else start, step)
    if isinstance(mark, Weight):
        axis = _weight_along(t, mark, dim).axes[dim]
        return Weight(mark.name, (*mark.axes[:dim], None if axis is None else axis[part], *mark.axes[dim + 1 :]))
    labels = mark.labels
    is_fraction = t.as_before(step == 1 and length > 0 and x.shape[dim] % length == 0 and start % length == 0)
    if labels.shape[dim] == 1:
        return mark
    if dim in t.varying(labels):
        lines = labels.movedim(dim, 0)
        if is_fraction and length and x.shape[dim] % length == 0:
            _tie_parts(t, lines.reshape(-1, length, *lines.shape[1:]), 0, "a slice")
        elif step > 1 and x.shape[dim] % step == 0 and length * step == x.shape[dim]:
            _tie_parts(t, lines.reshape(length, step, *lines.shape[1:]), 1, "a slice")
        elif is_fraction or step > 1 or not t.is_held(*{start, start + length} - {0, x.shape[dim]}):
            t.labels.freeze(labels, f"a slice of channels in {t.where}")
    index = [slice(None)] * x.dim()
    index[dim] = part
    return Channels(_compact(labels[tuple(index)]), mark.why)


@register(MOVES, "select", "index_select", "gather", "select_copy")
def select(t: Tracer, call: Call, out: Tensor) -> Mark | None:
    """One position, or given ones, of a dimension without channels; of channels it freezes them."""
    mark, dim = t.mark(call.first), call.dim()
    if mark is None:
        return None
    if isinstance(mark, Weight):
        if call.name != "select":
            return t.opaque(call, f"entries of a parameter in {t.where}")
        _weight_along(t, mark, dim)
        return Weight(mark.name, (*mark.axes[:dim], *mark.axes[dim + 1 :]))
    if dim in t.varying(mark.labels):
        return t.opaque(call, f"{call.name} of channels by position in {t.where}")
    labels = mark.labels.narrow(dim, 0, 1)
    if call.name == "gather":
        moved = [other for other in t.varying(labels) if call.first.shape[other] != out.shape[other]]
        if moved:
            return t.opaque(call, f"gather of channels by position in {t.where}")
        shape = tuple(out.shape)
        return combine(t, [(Channels(labels, mark.why), shape), (call["index"], None)], shape, "gather")
    return Channels(labels if call.name == "index_select" else labels.squeeze(dim), mark.why)


@register(MOVES, "index", "_unsafe_index")
def index(t: Tracer, call: Call, out: Tensor) -> Mark | None:
    """Positions given by integer tensors."""
    mark = t.mark(call.first)
    indices = call["indices"]
    if mark is None:
        return None
    if isinstance(mark, Weight) or any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices):
        return t.opaque(call, f"indexing in {t.where}")
    dims = {dim for dim, given in enumerate(indices) if given is not None}
    if dims & t.varying(mark.labels):
        return t.opaque(call, f"channels indexed by position in {t.where}")
    labels = mark.labels
    for dim in dims:
        labels = labels.narrow(dim, 0, 1)
    zeros = [None if i is None else torch.zeros(i.shape, dtype=torch.int64) for i in indices]
    return Channels(_compact(torch.ops.aten.index(labels, zeros)), mark.why)


# Several tensors into one.


@register(MOVES, "cat", "stack")
def cat(t: Tracer, call: Call, out: Tensor) -> Mark:
    """Channels side by side; along another dimension, channels that line up are tied."""
    tensors = [tensor for tensor in call["tensors"] if tensor.dim() == out.dim() or call.name == "stack"]
    dim = int(call["dim"]) % out.dim()
    is_stack = call.name == "stack"
    varying = set[int]()
    for tensor in tensors:
        if not isinstance(t.mark(tensor), Weight):
            varying |= t.varying(t.channels(tensor).labels)
    parts = [t.channels(tensor, near=varying or {dim}) for tensor in tensors]
    labels = [part.labels.unsqueeze(dim) if is_stack else part.labels for part in parts]
    sizes = [1 if is_stack else tensor.shape[dim] for tensor in tensors]
    why = next((part.why for part in parts if part.why), "a constant")
    across = [line.narrow(dim, 0, 1) if line.shape[dim] else None for line in labels]
    if any(t.varying(line) - {dim} for line in labels):
        # Channels lie along other dimensions, which must agree.
        if any(dim in t.varying(line) for line in labels):
            t.labels.freeze(labels, f"concatenation of rearranged channels in {t.where}")
        shape = (*out.shape[:dim], 1, *out.shape[dim + 1 :])
        met = [(Channels(line, part.why), shape) for line, part in zip(across, parts, strict=True) if line is not None]
        return combine(t, met, shape, "cat")
    thin = [(*line.shape[:dim], 1, *line.shape[dim + 1 :]) for line in labels]
    rest = torch.broadcast_shapes(*thin)  # type: ignore[no-untyped-call]
    pairs = zip(labels, sizes, strict=True)
    joined = torch.cat([line.expand(*rest[:dim], size, *rest[dim + 1 :]) for line, size in pairs], dim)
    return Channels(torch.where(joined == ANY, NONE, joined), why)


@register(MOVES, "constant_pad_nd")
def pad(t: Tracer, call: Call, out: Tensor) -> Mark | None:
    """Around positions nothing changes; channels of padding are constants, always as many."""
    mark = t.mark(call.first)
    if mark is None:
        return None
    if isinstance(mark, Weight):
        return t.opaque(call, f"a padded parameter in {t.where}")
    labels = mark.labels
    widths = list(call["pad"])
    for step, dim in enumerate(range(labels.dim() - 1, labels.dim() - 1 - len(widths) // 2, -1)):
        before, after = widths[2 * step : 2 * step + 2]
        if labels.shape[dim] > 1:
            labels = torch.constant_pad_nd(labels, [0, 0] * step + [int(before), int(after)], NONE)
    return Channels(torch.where(labels == ANY, NONE, labels), mark.why or "padding with constants")


# Repetition and reordering.


@register(MOVES, "flip", "repeat", "pixel_unshuffle", "diagonal", "tril", "triu")
def apply(t: Tracer, call: Call, out: Tensor) -> Mark | None:
    """Positions map one to one whatever is left, so the operation on the labels says it all."""
    x, mark = call.first, t.mark(call.first)
    if mark is None or (call.name in ("tril", "triu") and not isinstance(mark, Weight) and not t.varying(mark.labels)):
        return mark
    if isinstance(mark, Weight):
        if call.name != "repeat" or len(call["repeats"]) != len(mark.axes):
            return t.opaque(call, f"{call.name} of a parameter in {t.where}")
        axes = zip(mark.axes, call["repeats"], strict=True)
        return Weight(mark.name, tuple(None if axis is None else axis.repeat(count) for axis, count in axes))
    if call.name in ("diagonal", "tril", "triu"):
        return t.opaque(call, f"{call.name} of channels in {t.where}")
    return Channels(_compact(_again(call, mark.labels.expand(x.shape))), mark.why)


def _again(call: Call, labels: Tensor) -> Tensor:
    """The call's operation on labels in place of its first argument."""
    function = getattr(torch.ops.aten, call.name)
    result = function(labels, *list(call.arguments.values())[1:])
    assert isinstance(result, Tensor)
    return result


@register(MOVES, "roll")
def roll(t: Tracer, call: Call, out: Tensor) -> Mark | None:
    """Along positions nothing changes; rolled channels are frozen."""
    mark = t.mark(call.first)
    if mark is None:
        return None
    dims = {int(dim) % call.first.dim() for dim in call["dims"]} or set(range(call.first.dim()))
    if isinstance(mark, Weight) or t.varying(mark.labels) & dims:
        return t.opaque(call, f"rolled channels in {t.where}")
    return mark


@register(MOVES, "pixel_shuffle")
def pixel_shuffle(t: Tracer, call: Call, out: Tensor) -> Mark:
    """The square of channels that becomes one channel's pixels stays or goes together."""
    labels, why = t.axis(call.first, -3 % call.first.dim(), "pixel shuffle")
    squares = labels.reshape(-1, int(call["upscale_factor"]) ** 2)
    _tie_parts(t, squares, 1, "pixel shuffle")
    return Channels(squares[:, 0].reshape(-1, 1, 1), why)


@register(MOVES, "native_channel_shuffle", "channel_shuffle")
def channel_shuffle(t: Tracer, call: Call, out: Tensor) -> Mark:
    """Groups of channels interleaved: the same position in each group stays or goes together."""
    labels, why = t.axis(call.first, 1, "channel shuffle")
    rows = labels.reshape(int(call["groups"]), -1)
    _tie_parts(t, rows, 0, "channel shuffle")
    return Channels(rows.T.reshape(1, -1, *(1,) * (out.dim() - 2)), why)


@register(MOVES, "glu")
def glu(t: Tracer, call: Call, out: Tensor) -> Mark:
    """The gate's channels are tied to those they gate."""
    carried, dim = t.channels(call.first), call.dim()
    if carried.labels.shape[dim] == 1:
        return carried
    shape = carried.labels.shape
    halves = carried.labels.reshape(*shape[:dim], 2, shape[dim] // 2, *shape[dim + 1 :])
    _tie_parts(t, halves, dim, "glu")
    return Channels(halves.select(dim, 0), carried.why)


@register(MOVES, "unfold")
def unfold(t: Tracer, call: Call, out: Tensor) -> Mark | None:
    """Sliding windows over positions; over channels they are frozen."""
    mark, dim = t.mark(call.first), call.dim("dimension")
    if mark is None:
        return None
    if isinstance(mark, Weight) or dim in t.varying(mark.labels):
        return t.opaque(call, f"windows over channels in {t.where}")
    return Channels(mark.labels.narrow(dim, 0, 1).unsqueeze(-1), mark.why)


@register(MOVES, "im2col")
def im2col(t: Tracer, call: Call, out: Tensor) -> Mark:
    """[B, C, H, W] -> [B, C * kernel, positions]: each channel once per kernel entry."""
    labels, why = t.axis(call.first, -3 % call.first.dim(), "im2col")
    kernel = int(torch.tensor(call["kernel_size"]).prod())
    return Channels(labels.repeat_interleave(kernel).reshape(-1, 1), why)
