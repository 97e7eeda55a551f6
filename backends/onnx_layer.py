"""The ONNX model of one convolution or linear layer, written directly: no network, no exporter, a millisecond."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from backends.extras import import_extra

#: Gelu is an operator from here on, HardSwish since 14. onnxruntime knows this opset since 1.17.
OPSET = 20

#: The version of the file format that came with that opset; older runtimes refuse newer ones.
IR_VERSION = 9

#: What may follow a layer.
ACTIVATIONS = ("relu", "hardtanh", "silu", "hardswish", "hardsigmoid", "sigmoid", "gelu")


def layer_model(
    *,
    kind: str,
    in_channels: int,
    out_channels: int,
    height: int,
    width: int,
    batch: int,
    kernel: tuple[int, int] = (1, 1),
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    bias: bool = True,
    activation: str | None = None,
    seed: int = 0,
) -> bytes:
    """One layer of `kind` "conv" or "linear" with random float32 weights, and `activation` after it where there is one.

    A convolution takes [batch, in_channels, height, width], with the same zero padding on both sides. A linear layer
    takes [batch, in_channels], or [batch, height, width, in_channels] where that is more than one place, and none of
    the arguments from `kernel` to `groups`. "hardtanh" is ReLU6, from 0 to 6; "gelu" is the exact one. The input is
    called "x" and the output "y"; "weight" [out, in / groups, kh, kw] or [out, in] and "bias" [out] are initializers,
    drawn from a generator of their own so that outputs are about as large as inputs.

    Raises ValueError for an unknown kind or activation, sizes below 1, `groups` that don't divide the channels, a
    kernel larger than the padded image, and where onnx is not installed.
    """
    onnx = import_extra("onnx", extra="onnx")
    if activation is not None and activation not in ACTIVATIONS:
        raise ValueError(f"`activation` must be one of {', '.join(ACTIVATIONS)} or None, but got {activation!r}")
    sizes = (in_channels, out_channels, height, width, batch, groups, *kernel, *stride, *dilation)
    if min(sizes) < 1 or min(padding) < 0:
        raise ValueError(
            "sizes of a layer must be at least 1 and its padding at least 0, but got "
            f"{in_channels=}, {out_channels=}, {height=}, {width=}, {batch=}, {kernel=}, {stride=}, {padding=}, "
            f"{dilation=}, {groups=}"
        )
    weight: tuple[int, ...]
    if kind == "conv":
        if in_channels % groups or out_channels % groups:
            raise ValueError(f"`groups` must divide both channels, but got {in_channels=}, {out_channels=}, {groups=}")
        places = _places((height, width), kernel, stride, padding, dilation)
        shapes = [batch, in_channels, height, width], [batch, out_channels, *places]
        weight = (out_channels, in_channels // groups, *kernel)
    elif kind == "linear":
        if (kernel, stride, padding, dilation, groups) != ((1, 1), (1, 1), (0, 0), (1, 1), 1):
            raise ValueError(
                "a linear layer must be given no kernel, stride, padding, dilation or groups, but got "
                f"{kernel=}, {stride=}, {padding=}, {dilation=}, {groups=}"
            )
        rows = [batch] if height * width == 1 else [batch, height, width]
        shapes = [*rows, in_channels], [*rows, out_channels]
        weight = (out_channels, in_channels)
    else:
        raise ValueError(f"`kind` must be conv or linear, but got {kind!r}")

    rng = np.random.default_rng(seed)
    bound = math.sqrt(3 / math.prod(weight[1:]))
    parameters = {"weight": rng.uniform(-bound, bound, weight).astype(np.float32)}
    if bias:
        parameters["bias"] = rng.uniform(-bound, bound, out_channels).astype(np.float32)
    layer = "y" if activation is None else "layer"
    node = onnx.helper.make_node
    if kind == "conv":
        nodes = [
            node(
                "Conv",
                ["x", *parameters],
                [layer],
                kernel_shape=kernel,
                strides=stride,
                pads=[*padding, *padding],
                dilations=dilation,
                group=groups,
            )
        ]
    elif len(shapes[0]) == 2:
        nodes = [node("Gemm", ["x", *parameters], [layer], transB=1)]
    else:
        nodes = _many_rows(onnx, parameters, layer)
    if activation is not None:
        nodes += _activation(onnx, activation, parameters)
    graph = onnx.helper.make_graph(
        nodes,
        "layer",
        [_value(onnx, "x", shapes[0])],
        [_value(onnx, "y", shapes[1])],
        [onnx.numpy_helper.from_array(array, name) for name, array in parameters.items()],
    )
    opset = onnx.helper.make_opsetid("", OPSET)
    model: bytes = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION).SerializeToString()
    return model


def _places(
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> list[int]:
    """Height and width of what a convolution puts out. Raises ValueError when that is nothing."""
    places = [
        (size[axis] + 2 * padding[axis] - dilation[axis] * (kernel[axis] - 1) - 1) // stride[axis] + 1
        for axis in (0, 1)
    ]
    if min(places) < 1:
        raise ValueError(f"a kernel must fit the padded image, but got {size=}, {kernel=}, {padding=}, {dilation=}")
    return places


def _many_rows(onnx: Any, parameters: dict[str, Any], layer: str) -> list[Any]:
    """A linear layer on more than two dimensions, which Gemm doesn't take. Turns "weight" round."""
    node = onnx.helper.make_node
    parameters["weight"] = np.ascontiguousarray(parameters["weight"].T)
    if "bias" not in parameters:
        return [node("MatMul", ["x", "weight"], [layer])]
    return [node("MatMul", ["x", "weight"], ["product"]), node("Add", ["product", "bias"], [layer])]


def _activation(onnx: Any, name: str, parameters: dict[str, Any]) -> list[Any]:
    """Nodes from "layer" to "y"; adds the constants they need to `parameters`."""
    node = onnx.helper.make_node
    if name == "hardtanh":
        parameters["least"], parameters["most"] = np.float32(0), np.float32(6)
        return [node("Clip", ["layer", "least", "most"], ["y"])]
    if name == "silu":
        return [node("Sigmoid", ["layer"], ["gate"]), node("Mul", ["layer", "gate"], ["y"])]
    operators: dict[str, tuple[str, dict[str, Any]]] = {
        "relu": ("Relu", {}),
        "hardswish": ("HardSwish", {}),
        "hardsigmoid": ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}),
        "sigmoid": ("Sigmoid", {}),
        "gelu": ("Gelu", {"approximate": "none"}),
    }
    operator, attributes = operators[name]
    return [node(operator, ["layer"], ["y"], **attributes)]


def _value(onnx: Any, name: str, shape: list[int]) -> Any:
    return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
