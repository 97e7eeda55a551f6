"""How labels pass through computation: layers, norms, pooling, reductions, attention, elementwise operations.

`RULES` is by operation name as in ATen's native_functions.yaml. Each rule gets the tracer, the call and its result, and
returns what the result carries (one mark, or one per output).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from backends.labels import ANY, NONE, Call, Channels, LayerRecord, Mark, Rule, Tracer, Weight

RULES: dict[str, Rule] = {}

#: Tensors of one repeated value, or whose values are about to be written.
FILLS = frozenset(
    [
        "zeros",
        "ones",
        "full",
        "empty",
        "empty_strided",
        "zeros_like",
        "ones_like",
        "full_like",
        "empty_like",
        "new_zeros",
        "new_ones",
        "new_full",
        "new_empty",
        "new_empty_strided",
        "scalar_tensor",
    ]
)


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Registers a rule under operation names."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


# Layers.


@rule("convolution", "_convolution", "cudnn_convolution", "convolution_overrideable", "mkldnn_convolution")
def convolution(t: Tracer, call: Call, out: Tensor) -> Mark:
    """Input channels are the weight's dimension 1, output channels its dimension 0 (swapped when transposed).

    In a grouped convolution all inputs and outputs of one convolution group are tied to one unit, which removes whole
    groups; a depthwise convolution is the case of one input per group.
    """
    x, weight = call.first, call["weight"]
    transposed, groups = bool(call.arguments.get("transposed", False)), int(call["groups"])
    spatial = x.shape[2:] if transposed else out.shape[2:]
    macs = x.shape[0] * math.prod(spatial) * weight.numel()
    mark = t.mark(weight)
    if not isinstance(mark, Weight) or None in mark.axes[:2]:
        t.constant_macs += macs
        return t.opaque(call, f"convolved with a computed weight in {t.where}")
    in_dim, out_dim = (0, 1) if transposed else (1, 0)
    ins, outs = mark.axes[in_dim], mark.axes[out_dim]
    assert ins is not None and outs is not None
    labels, why = t.axis(x, 1, "convolution")
    if groups == 1:
        kind = "conv"
        _contract(t, labels, ins, why)
        t.labels.emit(outs)
    else:
        kind = "depthwise" if x.shape[1] == groups else "grouped"
        # The sliceable dimension of the weight is dimension 0: outputs, or inputs when transposed.
        rows = mark.axes[0]
        assert rows is not None
        rows = rows.reshape(groups, -1)
        lead = labels.reshape(groups, -1)
        fixed = (lead == NONE).any(dim=1)
        t.labels.freeze([lead[fixed], rows[fixed]], f"reads {why}")
        first = rows[:, :1]
        t.labels.unify(rows, first.expand_as(rows), f"{kind} convolution")
        t.labels.unify(lead, first.expand_as(lead), f"{kind} convolution")
        outs = first.expand(groups, out.shape[1] // groups).reshape(-1) if transposed else mark.axes[0]
        assert outs is not None
    if call["bias"] is not None:
        _align(t, call["bias"], outs, "bias")
    stride, kernel = call["stride"], weight.shape[2:]
    _record(
        t,
        mark,
        LayerRecord(
            mark.name,
            kind,
            ins if groups == 1 else ins[:0],
            outs,
            x.shape[1],
            out.shape[1],
            height=int(x.shape[2]) if x.dim() > 3 else 1,
            width=int(x.shape[-1]),
            stride=int(stride[-1]),
            kernel_size=int(kernel[-1]),
        ),
        macs,
    )
    return Channels(outs.reshape(1, -1, *(1,) * (out.dim() - 2)))


def _contract(t: Tracer, labels: Tensor, weight: Tensor, why: str) -> None:
    """Ties a weight's input dimension to the channels it reads; entries that read no channel always stay."""
    t.labels.unify(labels, weight, "input")
    t.labels.freeze(weight[labels == NONE], f"reads {why}")


def _align(t: Tracer, tensor: Tensor, labels: Tensor, what: str) -> None:
    """Ties a vector with one entry per channel to the channels; one that is no parameter freezes them."""
    mark = t.mark(tensor)
    axis = mark.axes[-1] if isinstance(mark, Weight) else None
    if axis is None or tensor.dim() != 1:
        t.labels.freeze(labels, f"a constant {what} in {t.where}")
        return
    t.labels.unify(axis, labels, what)
    t.labels.freeze(axis[labels == NONE], "aligned with no channel")


def _record(t: Tracer, weight: Weight, record: LayerRecord, macs: int) -> None:
    record = t.layers.setdefault(weight.name, record)
    record.macs += macs


@rule("mm", "bmm", "addmm", "baddbmm", "addbmm")
def matrix_product(t: Tracer, call: Call, out: Tensor) -> Mark:
    """A parameter on one side is a linear layer; two activations are attention, which freezes both."""
    names = list(call.arguments)
    has_bias = call.name.startswith("add") or call.name == "baddbmm"
    left, right = (call[name] for name in names[has_bias : has_bias + 2])
    product = _product(t, call, left, right)
    if has_bias and call.name != "addbmm":
        return combine(t, [(product, tuple(out.shape)), (call.first, None)], tuple(out.shape), "bias")
    return product


def _product(t: Tracer, call: Call, left: Tensor, right: Tensor) -> Channels:
    macs = left.numel() * right.shape[-1]
    sides = [t.mark(left), t.mark(right)]
    weights = [isinstance(side, Weight) and None not in side.axes[-2:] for side in sides]
    batched = [math.prod(tensor.shape[:-2]) > 1 for tensor in (left, right)]
    if sum(weights) != 1 or any(w and b for w, b in zip(weights, batched, strict=True)):
        t.constant_macs += macs
        return t.opaque(call, f"a product of activations ({call.name}) in {t.where}")
    on_right = weights[1]
    weight, x = (sides[1], left) if on_right else (sides[0], right)
    assert isinstance(weight, Weight)
    for axis in weight.axes[:-2]:
        if axis is not None:
            t.labels.freeze(axis, "a batch of weights")
    ins, outs = (weight.axes[-2], weight.axes[-1]) if on_right else (weight.axes[-1], weight.axes[-2])
    assert ins is not None and outs is not None
    labels, why = t.axis(x, x.dim() - 1 if on_right else x.dim() - 2, "a linear layer")
    _contract(t, labels, ins, why)
    t.labels.emit(outs)
    record = LayerRecord(weight.name, "linear", ins, outs, len(ins), len(outs))
    _record(t, weight, record, macs)
    result = outs.reshape(-1) if on_right else outs.reshape(-1, 1)
    return Channels(result.reshape((1,) * (x.dim() - result.dim()) + result.shape))


@rule(
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
)
def attention(t: Tracer, call: Call, out: Any) -> Mark:
    """Freezes queries, keys and values: heads cannot lose channels alone."""
    query, key, value = call["query"], call["key"], call["value"]
    t.constant_macs += query.numel() * key.shape[-2] + query.numel() // query.shape[-1] * math.prod(value.shape[-2:])
    return t.opaque(call, f"attention in {t.where}")


@rule("embedding")
def embedding(t: Tracer, call: Call, out: Tensor) -> Mark:
    """Emits the channels of its rows."""
    mark = t.mark(call["weight"])
    if not isinstance(mark, Weight) or mark.axes[1] is None or mark.axes[0] is None:
        return t.opaque(call, "a computed embedding")
    t.labels.freeze(mark.axes[0], "entries of an embedding")
    return Channels(mark.axes[1].reshape((1,) * (out.dim() - 1) + (-1,)))


# Norms.


@rule(
    "native_batch_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training",
    "_batch_norm_with_update",
    "_batch_norm_no_update",
    "cudnn_batch_norm",
    "miopen_batch_norm",
)
def batch_norm(t: Tracer, call: Call, out: Any) -> Sequence[Mark | None]:
    """Each channel alone: parameters and running statistics line up with dimension 1."""
    labels, _ = t.axis(call.first, 1, "batch norm")
    parameters = [
        call.arguments.get(name) for name in ("weight", "bias", "running_mean", "running_var") if name in call.arguments
    ]
    for parameter in parameters:
        if isinstance(parameter, Tensor) and parameter.numel():
            _align(t, parameter, labels, "norm")
    if not any(isinstance(parameter, Tensor) for parameter in parameters):
        module = t.modules[-1][1] if t.modules else None
        if isinstance(module, nn.modules.instancenorm._InstanceNorm):
            # Instance norm runs as a batch norm over [1, batch * channels].
            _hold_size(t, "num_features", labels[: module.num_features])
    return [Channels(labels.reshape(1, -1, *(1,) * (call.first.dim() - 2)), "a norm of no channels")]


def _hold_size(t: Tracer, attribute: str, labels: Tensor, index: int = 0) -> None:
    """Remembers that the running module holds the number of these channels in an attribute."""
    name, module = t.modules[-1]
    if hasattr(module, attribute):
        t.sizes[f"{name}.{attribute}".lstrip("."), index] = labels


@rule("native_layer_norm", "_fused_rms_norm")
def layer_norm(t: Tracer, call: Call, out: Any) -> Sequence[Mark | None]:
    """Channels inside the normalised dimensions may go: the norm then sees the kept ones."""
    x, first = call.first, call.first.dim() - len(call["normalized_shape"])
    carried = t.channels(x, near=range(first, x.dim()))
    varying = t.varying(carried.labels)
    if len(varying) > 1:
        t.labels.freeze(carried.labels, "layer norm over rearranged channels")
    for dim in range(first, x.dim()):
        shown = carried.labels.movedim(dim, -1).reshape(-1, carried.labels.shape[dim])[0].expand(x.shape[dim])
        for name in ("weight", "bias"):
            mark = t.mark(call.arguments[name]) if call.arguments.get(name) is not None else None
            axis = mark.axes[dim - first] if isinstance(mark, Weight) else None
            if axis is not None and varying == {dim}:
                t.labels.unify(axis, shown, "norm")
                t.labels.freeze(axis[shown < 2], "aligned with no channel")
            elif axis is not None:
                t.labels.freeze(axis, "positions of a norm")
            elif call.arguments.get(name) is not None and varying:
                t.labels.freeze(carried.labels, f"a computed norm in {t.where}")
        if call.arguments.get("weight") is None and varying == {dim} and t.modules:
            _hold_size(t, "normalized_shape", shown, dim - first)
    return [carried]


@rule("native_group_norm")
def group_norm(t: Tracer, call: Call, out: Any) -> Sequence[Mark | None]:
    """With several groups each is a unit, so that whole groups go; one group over everything sees the kept channels."""
    labels, _ = t.axis(call["input"], 1, "group norm")
    groups = int(call["group"])
    if 1 < groups < len(labels):
        rows = labels.reshape(groups, -1)
        fixed = (rows == NONE).any(dim=1)
        t.labels.freeze(rows[fixed], "a norm over no channel")
        t.labels.unify(rows, rows[:, :1].expand_as(rows), "group norm")
    parameters = [call[name] for name in ("weight", "bias") if call[name] is not None]
    for parameter in parameters:
        _align(t, parameter, labels, "norm")
    if not parameters and t.modules:
        _hold_size(t, "num_channels", labels)
    return [Channels(labels.reshape(1, -1, *(1,) * (call["input"].dim() - 2)), "a norm of no channels")]


# Pooling, resizing, reductions.


def _spatial(num_dims: int) -> Rule:
    """An operation on the last `num_dims` dimensions that treats each channel alike."""

    def spatial(t: Tracer, call: Call, out: Any) -> Mark:
        carried = t.channels(call.first)
        if any(dim >= call.first.dim() - num_dims for dim in t.varying(carried.labels)):
            return t.opaque(call, f"{call.name} across channels in {t.where}")
        return carried

    return spatial


for _dims in (1, 2, 3):
    rule(
        *(
            f"{name}{_dims}d{tail}"
            for name in [
                "avg_pool",
                "adaptive_avg_pool",
                "_adaptive_avg_pool",
                "adaptive_max_pool",
                "max_pool",
                "fractional_max_pool",
                "max_unpool",
                "upsample_nearest",
                "_upsample_nearest_exact",
                "upsample_linear",
                "upsample_bilinear",
                "upsample_trilinear",
                "upsample_bicubic",
                "_upsample_bilinear",
                "_upsample_bicubic",
                "reflection_pad",
                "replication_pad",
            ]
            for tail in ("", "_with_indices", "_aa")
        )
    )(_spatial(_dims))
rule("grid_sampler_2d")(_spatial(2))
rule("grid_sampler_3d")(_spatial(3))


@rule(
    *[
        "mean",
        "sum",
        "amax",
        "amin",
        "prod",
        "var",
        "std",
        "var_mean",
        "std_mean",
        "linalg_vector_norm",
        "norm",
        "logsumexp",
        "max",
        "min",
        "median",
        "any",
        "all",
        "argmax",
        "argmin",
        "nansum",
        "nanmean",
        "aminmax",
    ]
)
def reduction(t: Tracer, call: Call, out: Any) -> Mark:
    """Over positions channels stay apart; over channels their number matters, which freezes them."""
    x = call.first
    given = call.arguments.get("dim")
    dims = [given] if isinstance(given, int) else list(given or range(x.dim()))
    over = {dim % max(1, x.dim()) for dim in dims}
    mark = t.mark(x)
    if isinstance(mark, Weight) and sum(axis is not None for axis in mark.axes) > 1:
        return t.opaque(call, f"{call.name} of a parameter in {t.where}")
    carried = t.channels(x)
    if t.varying(carried.labels) & over:
        return t.opaque(call, f"{call.name} across channels in {t.where}")
    labels = carried.labels
    for dim in sorted(over, reverse=True):
        labels = labels.narrow(dim, 0, 1)
        if not call.arguments.get("keepdim"):
            labels = labels.squeeze(dim)
    return Channels(labels, carried.why)


@rule("_softmax", "_log_softmax", "_safe_softmax", "cumsum", "cumprod", "logcumsumexp", "sort", "topk", "kthvalue")
def along(t: Tracer, call: Call, out: Any) -> Mark:
    """Like a reduction that keeps the shape."""
    carried = t.channels(call.first)
    if call.first.dim() and call.dim() in t.varying(carried.labels):
        return t.opaque(call, f"{call.name.lstrip('_')} across channels in {t.where}")
    return carried


# Elementwise.


@rule(
    *[
        "_to_copy",
        "copy",
        "_prelu_kernel",
        "native_dropout",
        "masked_fill",
        "floor_divide",
        "fill",
        "zero",
        "where",
        "hardswish",
        "rsub",
        "rrelu_with_noise",
        "log_sigmoid_forward",
        "bernoulli",
        "complex",
        "polar",
        "_conj",
        "special_entr",
    ]
)
def pointwise(t: Tracer, call: Call, out: Any) -> Mark:
    """Channels that meet position by position stay or go together."""
    first = out if isinstance(out, Tensor) else out[0]
    if torch.broadcast_shapes(*[tensor.shape for tensor in call.tensors]) != first.shape:
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
        one, other = torch.broadcast_tensors(joined, labels)
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
