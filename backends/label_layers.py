"""How labels pass through layers: convolutions, linear layers, attention, embeddings, norms.

Rules are by operation name as in ATen's native_functions.yaml. Each gets the tracer, the call and its result, and
returns what the result carries (one mark, or one per output).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from backends.label_values import combine
from backends.labels import ANY, NONE, Channels, Mark, Weight
from backends.operations import Call, Rule, register
from backends.tracer import LayerRecord, Tracer

LAYERS: dict[str, Rule] = {}


@register(LAYERS, "convolution", "_convolution", "cudnn_convolution", "convolution_overrideable", "mkldnn_convolution")
def convolution(t: Tracer, call: Call, out: Tensor) -> Mark:
    """Input channels are the weight's dimension 1, output channels its dimension 0 (swapped when transposed).

    In a grouped convolution all inputs and outputs of one convolution group are tied to one unit, which removes whole
    groups; a depthwise convolution is the case of one input per group.
    """
    x, weight = call.first, call["weight"]
    transposed, groups = bool(call.arguments.get("transposed", False)), int(call["groups"])
    spatial = x.shape[2:] if transposed else out.shape[2:]
    macs = t.macs(call, x.shape[0] * math.prod(spatial) * weight.numel())
    mark = t.mark(weight)
    if not isinstance(mark, Weight) or None in mark.axes[:2]:
        t.constant_macs += macs
        t.computed[t.where] = out.shape[1]
        return t.opaque(call, f"convolved with a computed weight in {t.where}")
    rows, columns = mark.axes[:2]
    assert rows is not None
    assert columns is not None
    ins, outs = (rows, columns) if transposed else (columns, rows)
    # One group left of several is no convolution over all its inputs.
    dense = t.dense.layers.get(mark.name) if t.dense is not None else None
    if groups == 1 and (dense is None or dense.kind == "conv"):
        kind = "conv"
    else:
        kind = "depthwise" if x.shape[1] == groups else "grouped"
        # The weight is sliced along dimension 0 only: by outputs, or by inputs when transposed.
        rows = rows.reshape(groups, -1)
        ins = ins[:0]
        outs = rows[:, :1].expand(groups, out.shape[1] // groups).reshape(-1) if transposed else outs
    record = LayerRecord(
        mark.name,
        kind,
        ins,
        outs,
        x.shape[1],
        out.shape[1],
        height=int(x.shape[2]) if x.dim() > 3 else 1,
        width=int(x.shape[-1]),
        stride=int(call["stride"][-1]),
        kernel_size=int(weight.shape[-1]),
    )
    t.layers.setdefault(mark.name, record).macs += macs
    labels, why = t.axis(x, 1, "convolution")
    if kind == "conv":
        _contract(t, labels, ins, why)
        t.labels.emit(outs)
    else:
        lead = labels.reshape(groups, -1)
        fixed = (lead == NONE).any(dim=1)
        t.labels.freeze([lead[fixed], rows[fixed]], f"reads {why}")
        t.labels.unify(rows, rows[:, :1].expand_as(rows), f"{kind} convolution")
        t.labels.unify(lead, rows[:, :1].expand_as(lead), f"{kind} convolution")
    if call["bias"] is not None:
        _align(t, call["bias"], outs, "bias")
    return Channels(outs.reshape(1, -1, *(1,) * (out.dim() - 2)))


def _contract(t: Tracer, labels: Tensor, weight: Tensor, why: str) -> None:
    """Ties a weight's input dimension to the channels it reads; entries that read no channel always stay."""
    t.labels.unify(labels, weight, "a weight's inputs")
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


@register(LAYERS, "mm", "bmm", "addmm", "baddbmm", "addbmm")
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
    macs = t.macs(call, left.numel() * right.shape[-1])
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
    assert ins is not None
    assert outs is not None
    record = LayerRecord(weight.name, "linear", ins, outs, len(ins), len(outs))
    t.layers.setdefault(weight.name, record).macs += macs
    labels, why = t.axis(x, x.dim() - 1 if on_right else x.dim() - 2, "a linear layer")
    _contract(t, labels, ins, why)
    t.labels.emit(outs)
    result = outs.reshape(-1) if on_right else outs.reshape(-1, 1)
    return Channels(result.reshape((1,) * (x.dim() - result.dim()) + result.shape))


@register(
    LAYERS,
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


@register(LAYERS, "embedding")
def embedding(t: Tracer, call: Call, out: Tensor) -> Mark:
    """Emits the channels of its rows."""
    mark = t.mark(call["weight"])
    if not isinstance(mark, Weight) or mark.axes[1] is None or mark.axes[0] is None:
        return t.opaque(call, "a computed embedding")
    t.labels.freeze(mark.axes[0], "entries of an embedding")
    return Channels(mark.axes[1].reshape((1,) * (out.dim() - 1) + (-1,)))


# Norms.


@register(
    LAYERS,
    "native_batch_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training",
    "_batch_norm_with_update",
    "_batch_norm_no_update",
    "cudnn_batch_norm",
    "miopen_batch_norm",
)
def batch_norm(t: Tracer, call: Call, out: Any) -> Sequence[Mark | None]:
    """Each channel alone: parameters and running statistics line up with dimension 1.

    Of a weight's rows, each is normed over its entries, of which it then sees the kept ones (weight standardization).
    """
    mark = t.mark(call.first)
    if isinstance(mark, Weight) and mark.folded:
        return [_standardized(t, call, mark)]
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


def _standardized(t: Tracer, call: Call, mark: Weight) -> Mark:
    """A weight whose rows are normed by their own entries; by anything else it is a computed one."""
    rows = mark.axes[1]
    if rows is None or any(call.arguments.get(name) is not None for name in ("running_mean", "running_var")):
        return t.opaque(call, f"a computed weight in {t.where}")
    for name in ("weight", "bias"):
        if call.arguments.get(name) is not None:
            _align(t, call[name], rows, "norm")
    return mark


def _hold_size(t: Tracer, attribute: str, labels: Tensor, index: int = 0) -> None:
    """Remembers that the running module holds the number of these channels in an attribute."""
    name, module = t.modules[-1]
    if hasattr(module, attribute):
        t.sizes[f"{name}.{attribute}".lstrip("."), index] = labels


@register(LAYERS, "native_layer_norm", "_fused_rms_norm")
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
                t.labels.freeze(axis[shown <= ANY], "aligned with no channel")
            elif axis is not None:
                t.labels.freeze(axis, "positions of a norm")
            elif call.arguments.get(name) is not None and varying:
                t.labels.freeze(carried.labels, f"a computed norm in {t.where}")
        if call.arguments.get("weight") is None and varying == {dim} and t.modules:
            _hold_size(t, "normalized_shape", shown, dim - first)
    return [carried]


@register(LAYERS, "native_group_norm")
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
