"""One-layer ONNX models compute what torch's layers compute."""

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor
from torch.nn import functional as F

from backends.onnx_layer import ACTIVATIONS, layer_model
from backends.onnx_session import OnnxSession

IN_TORCH = {
    "relu": F.relu,
    "hardtanh": F.relu6,
    "silu": F.silu,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "sigmoid": torch.sigmoid,
    "gelu": F.gelu,
}


def parameters(model: bytes) -> dict[str, Tensor]:
    graph = onnx.load_model_from_string(model).graph
    return {entry.name: torch.from_numpy(numpy_helper.to_array(entry).copy()) for entry in graph.initializer}


def images(*shape: int) -> Tensor:
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(1))


def outputs(model: bytes, x: Tensor) -> Tensor:
    onnx.checker.check_model(model, full_check=True)
    return OnnxSession(model, threads=1, provider="CPU")(x)


CONVOLUTIONS: list[dict[str, Any]] = [
    {"kernel": (3, 3), "padding": (1, 1)},
    {"kernel": (3, 5), "padding": (1, 2), "stride": (2, 1)},
    {"kernel": (3, 3), "padding": (2, 2), "dilation": (2, 2), "bias": False},
    {"kernel": (3, 3), "padding": (1, 1), "groups": 4},
    {"kernel": (1, 1), "bias": False},
]


@pytest.mark.parametrize("options", CONVOLUTIONS)
def test_a_convolution_equals_torchs(options: dict[str, Any]) -> None:
    model = layer_model(kind="conv", in_channels=8, out_channels=12, height=9, width=7, batch=2, **options)
    found = parameters(model)
    settings = {key: options[key] for key in ("stride", "padding", "dilation", "groups") if key in options}
    x = images(2, 8, 9, 7)
    expected = F.conv2d(x, found["weight"], found.get("bias"), **settings)
    assert ("bias" in found) == options.get("bias", True)
    torch.testing.assert_close(outputs(model, x), expected, rtol=1e-4, atol=1e-4)


def test_a_depthwise_convolution_equals_torchs() -> None:
    model = layer_model(
        kind="conv",
        in_channels=6,
        out_channels=6,
        height=8,
        width=8,
        batch=1,
        kernel=(3, 3),
        padding=(1, 1),
        groups=6,
        activation="hardtanh",
    )
    found, x = parameters(model), images(1, 6, 8, 8)
    expected = F.relu6(F.conv2d(x, found["weight"], found["bias"], padding=1, groups=6))
    torch.testing.assert_close(outputs(model, x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("height", "shape"), [(1, (3, 8)), (4, (3, 4, 5, 8))])
def test_a_linear_layer_equals_torchs(bias: bool, height: int, shape: tuple[int, ...]) -> None:
    width = 1 if height == 1 else 5
    model = layer_model(kind="linear", in_channels=8, out_channels=5, height=height, width=width, batch=3, bias=bias)
    found, x = parameters(model), images(*shape)
    weight = found["weight"] if height == 1 else found["weight"].T
    torch.testing.assert_close(outputs(model, x), F.linear(x, weight, found.get("bias")), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_an_activation_equals_torchs(kind: str, activation: str) -> None:
    size = 5 if kind == "conv" else 1
    common = {"kind": kind, "in_channels": 4, "out_channels": 6, "height": size, "width": size, "batch": 32}
    x = images(32, 4, 5, 5) if kind == "conv" else images(32, 4)
    plain = outputs(layer_model(**common), x)
    assert plain.min() < -3 < 6 < plain.max(), "every piece of the activation must be met"
    activated = outputs(layer_model(**common, activation=activation), x)
    torch.testing.assert_close(activated, IN_TORCH[activation](plain), rtol=1e-4, atol=1e-4)


def test_weights_follow_from_the_seed_alone() -> None:
    common = {"kind": "conv", "in_channels": 4, "out_channels": 4, "height": 4, "width": 4, "batch": 1}
    before = np.random.get_state()[1].copy()  # noqa: NPY002 (the global one is what must not move)
    assert layer_model(**common, seed=3) == layer_model(**common, seed=3)
    assert layer_model(**common, seed=3) != layer_model(**common, seed=4)
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"activation": "mish"}, "`activation` must be one of relu, .*'mish'"),
        ({"kind": "pool"}, "`kind` must be conv or linear, but got 'pool'"),
        ({"groups": 3}, "`groups` must divide both channels, but got in_channels=4"),
        ({"out_channels": 0}, "must be at least 1 .*out_channels=0"),
        ({"padding": (-1, 0)}, "padding at least 0"),
        ({"kernel": (7, 7)}, r"must fit the padded image, .*kernel=\(7, 7\)"),
        ({"kind": "linear", "groups": 2}, "a linear layer must be given no .*groups=2"),
    ],
)
def test_what_is_no_layer_is_refused_in_one_line(options: dict[str, Any], words: str) -> None:
    common = {"kind": "conv", "in_channels": 4, "out_channels": 4, "height": 4, "width": 4, "batch": 1}
    with pytest.raises(ValueError, match=words) as caught:
        layer_model(**{**common, **options})
    assert "\n" not in str(caught.value)
