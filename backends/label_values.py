"""How labels pass through what has no channels of its own: elementwise operations, pooling, resizing, reductions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from backends.labels import ANY, NONE, Channels, Mark, Weight
from backends.operations import Call, Rule, register
from backends.tracer import Tracer

VALUES: dict[str, Rule] = {}

#: Operations that make a tensor of one repeated value, or one whose values are about to be written.
FILLS = frozenset(
    (
        *("zeros", "ones", "full", "empty", "empty_strided", "scalar_tensor"),
        *("zeros_like", "ones_like", "full_like", "empty_like"),
        *("new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided"),
    )
)

_NORMS = frozenset(("mean", "var", "std", "var_mean", "std_mean", "linalg_vector_norm"))

_POOLING = (
    *("avg_pool", "adaptive_avg_pool", "_adaptive_avg_pool", "adaptive_max_pool", "max_pool", "fractional_max_pool"),
    *("max_unpool", "reflection_pad", "replication_pad", "upsample_nearest", "_upsample_nearest_exact"),
    *("upsample_linear", "upsample_bilinear", "upsample_trilinear", "upsample_bicubic"),
    *("_upsample_bilinear", "_upsample_bicubic"),
)


def _spatial(num_dims: int) -> Rule:
    """An operation on the last `num_dims` dimensions that treats each channel alike."""

    def spatial(t: Tracer, call: Call, out: Any) -> Mark:
        carried = t.channels(call.first)
        if any(dim >= call.first.dim() - num_dims for dim in t.varying(carried.labels)):
            return t.opaque(call, f"{call.name} across channels in {t.where}")
        if call.name.startswith("max_unpool"):
            return combine(t, [(tensor, None) for tensor in call.tensors], tuple(call.first.shape), call.name)
        return carried

    return spatial


for _dims in (1, 2, 3):
    for _tail in ("", "_with_indices", "_aa"):
        register(VALUES, *(f"{_name}{_dims}d{_tail}" for _name in _POOLING))(_spatial(_dims))
register(VALUES, "grid_sampler_2d")(_spatial(2))
register(VALUES, "grid_sampler_3d")(_spatial(3))


@register(
    VALUES,
    *("mean", "sum", "amax", "amin", "prod", "var", "std", "var_mean", "std_mean", "linalg_vector_norm", "norm"),
    *("logsumexp", "max", "min", "median", "any", "all", "argmax", "argmin", "nansum", "nanmean", "aminmax"),
)
def reduction(t: Tracer, call: Call, out: Any) -> Mark:
    """Over positions channels stay apart; over channels their number matters, which freezes them.

    A mean, variance or norm over all channels that goes back to them is what norms compute, which see the kept ones.
    """
    x = call.first
    given = call.arguments.get("dim")
    dims = [given] if isinstance(given, int) else list(given or range(x.dim()))
    over = {dim % max(1, x.dim()) for dim in dims}
    mark = t.mark(x)
    if isinstance(mark, Weight) and sum(axis is not None for axis in mark.axes) > 1:
        return t.opaque(call, f"{call.name} of a parameter in {t.where}")
    carried = t.channels(x)
    varying = t.varying(carried.labels)
    if len(varying) == 1 and varying <= over and _is_norm(call):
        return Channels(torch.full((1,) * x.dim(), ANY), carried.why, over=carried.labels)
    if varying & over:
        return t.opaque(call, f"{call.name} across channels in {t.where}")
    labels = carried.labels
    for dim in sorted(over, reverse=True):
        labels = labels.narrow(dim, 0, 1)
        if not call.arguments.get("keepdim"):
            labels = labels.squeeze(dim)
    return Channels(labels, carried.why)


def _is_norm(call: Call) -> bool:
    """Whether a reduction may be part of a norm: it makes sense of any number of channels, also of one."""
    is_biased = call.arguments.get("correction", 0) == 0 and not call.arguments.get("unbiased", False)
    return bool(call.arguments.get("keepdim")) and call.name in _NORMS and is_biased


@register(
    VALUES,
    *("_softmax", "_log_softmax", "_safe_softmax", "cumsum", "cumprod", "logcumsumexp", "sort", "topk", "kthvalue"),
)
def along(t: Tracer, call: Call, out: Any) -> Mark:
    """Like a reduction that keeps the shape."""
    carried = t.channels(call.first)
    if call.first.dim() and call.dim() in t.varying(carried.labels):
        return t.opaque(call, f"{call.name.lstrip('_')} across channels in {t.where}")
    return carried


@register(
    VALUES,
    *("_to_copy", "copy", "fill", "zero", "masked_fill", "where", "_prelu_kernel", "hardswish", "log_sigmoid_forward"),
    *("floor_divide", "rsub", "native_dropout", "rrelu_with_noise", "bernoulli", "complex", "polar", "_conj"),
)
def pointwise(t: Tracer, call: Call, out: Any) -> Mark:
    """Channels that meet position by position stay or go together."""
    first = out if isinstance(out, Tensor) else out[0]
    shapes = [tensor.shape for tensor in call.tensors]
    if torch.broadcast_shapes(*shapes) != first.shape:  # type: ignore[no-untyped-call]
        return t.opaque(call, f"unknown operation {call.name} in {t.where}")
    marks = [t.mark(tensor) for tensor in call.tensors]
    if all(isinstance(mark, Weight) or tensor.numel() == 1 for mark, tensor in zip(marks, call.tensors, strict=True)):
        weights = [mark for mark in marks if isinstance(mark, Weight)]
        if weights:
            return _combine_weights(t, call, weights, first)
    return combine(t, [(tensor, None) for tensor in call.tensors], tuple(first.shape), call.name)


def _combine_weights(t: Tracer, call: Call, weights: list[Weight], out: Tensor) -> Mark:
    """Elementwise among parameters (a folded norm, a quantised weight): still a parameter, dimension by dimension."""
    axes: list[Tensor | None] = [None] * out.dim()
    for weight in weights:
        for dim, axis in enumerate(weight.axes, start=out.dim() - len(weight.axes)):
            if axis is None or len(axis) != out.shape[dim]:
                continue
            met = axes[dim]
            if met is not None:
                t.labels.unify(met, axis, call.name)
            axes[dim] = axis if met is None else met
    return Weight(weights[0].name, tuple(axes))


def combine(
    t: Tracer, operands: Sequence[tuple[Tensor | Channels, tuple[int, ...] | None]], shape: tuple[int, ...], cause: str
) -> Channels:
    """Labels of an elementwise result of `shape`; each operand is a tensor, or what one of the given shape carries.

    An operand of one entry along a dimension of channels (a spatial gate) belongs to none of them and ties to nothing.
    """
    ndim = len(shape)
    activations = [
        (t.channels(value), size or tuple(value.shape)) if isinstance(value, Tensor) else (value, size or shape)
        for value, size in operands
        if not (isinstance(value, Tensor) and isinstance(t.mark(value), Weight))
    ]
    varying = set[int]()
    for carried, _ in activations:
        varying |= {dim + ndim - carried.labels.dim() for dim in t.varying(carried.labels)}
    for value, _ in operands:
        if isinstance(value, Tensor) and isinstance(t.mark(value), Weight):
            near = [dim - ndim + value.dim() for dim in varying]
            mark = t.mark(value)
            assert isinstance(mark, Weight)
            carried = t.channels(value, near=near)
            misplaced = {dim + ndim - value.dim() for dim in t.varying(carried.labels)} - varying
            if misplaced and varying:
                t.labels.freeze(carried.labels, "positions of a parameter")
                carried = Channels(torch.zeros((1,) * value.dim(), dtype=torch.int64), f"the entries of {mark.name}")
            else:
                varying |= misplaced
            activations.append((carried, tuple(value.shape)))
    joined: Tensor | None = None
    why = ""
    for carried, size in activations:
        labels = carried.labels.reshape((1,) * (ndim - carried.labels.dim()) + carried.labels.shape)
        size = (1,) * (ndim - len(size)) + size
        if any(size[dim] == 1 and shape[dim] > 1 for dim in varying):
            if t.varying(labels):
                t.labels.freeze(labels, f"{cause} of channels with other channels")
            continue
        if joined is None:
            joined, why = labels, carried.why
            continue
        one, other = torch.broadcast_tensors(joined, labels)  # type: ignore[no-untyped-call]
        t.labels.unify(one, other, cause)
        for met, what in ((other[one == NONE], why), (one[other == NONE], carried.why)):
            t.labels.freeze(met, f"meets {what or 'a constant'} ({cause} in {t.where})")
        # A label stays even where it met NONE: it is frozen by now, so its position is fixed. NONE outweighs ANY.
        low, high = torch.minimum(one, other), torch.maximum(one, other)
        joined = torch.where(high == ANY, low, high)
        why = why or carried.why
    if joined is None:
        joined = torch.zeros((1,) * ndim, dtype=torch.int64)
    return Channels(joined, why)
