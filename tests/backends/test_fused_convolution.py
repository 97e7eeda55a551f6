from typing import Any

import pytest
import torch
from torch import Tensor, nn

from backends.fused_convolution import FusedConvolution, has_fused_kernels
from backends.fusion import HARDSWISH, RELU, Activation

pytestmark = pytest.mark.skipif(not has_fused_kernels(torch.zeros(1)), reason="this machine has no fused kernels")


def images(size: tuple[int, ...], seed: int = 0) -> Tensor:
    x = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    return x.contiguous(memory_format=torch.channels_last)


def expected(layer: nn.Conv2d, x: Tensor, other: Tensor | None, activation: Activation | None) -> Tensor:
    result = layer(x).detach()
    result = result if other is None else result + other
    return result if activation is None else activation(result)


# Few channels on wide images go two columns at a time, all others one.
LAYERS: dict[str, dict[str, Any]] = {
    "few": {"out_channels": 8, "kernel_size": 3, "padding": 1},
    "one": {"out_channels": 1, "kernel_size": 3, "padding": 1, "bias": False},
    "no padding": {"out_channels": 5, "kernel_size": (1, 5)},
    "rows strided": {"out_channels": 7, "kernel_size": 3, "padding": (0, 2), "stride": (2, 1), "dilation": (2, 1)},
    "columns strided": {"out_channels": 8, "kernel_size": 3, "padding": 1, "stride": (1, 2)},
    "columns dilated": {"out_channels": 8, "kernel_size": 3, "padding": 2, "dilation": 2},
    "grouped": {"out_channels": 8, "kernel_size": 3, "padding": 1, "groups": 2},
    "pointwise": {"out_channels": 4, "kernel_size": 1},
    "many": {"out_channels": 40, "kernel_size": 3, "padding": 1},
}


@pytest.mark.parametrize("activation", [None, RELU, HARDSWISH], ids=["linear", "relu", "hardswish"])
@pytest.mark.parametrize("addition", ["nothing", "one alike", "one to broadcast"])
@pytest.mark.parametrize("width", [40, 41, 8])
@pytest.mark.parametrize("name", LAYERS)
def test_it_computes_layer_addition_and_activation(
    name: str, width: int, addition: str, activation: Activation | None
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = nn.Conv2d(6, **LAYERS[name])
    fused = FusedConvolution(
        layer, layer.weight.detach(), None if layer.bias is None else layer.bias.detach(), activation
    )
    for seed in range(3):  # the first batch, the one after which the weight is packed, and one more
        x = images((4, 6, 12, width), seed)
        shape = layer(x).shape
        other = None if addition == "nothing" else images(tuple(shape), 9)
        other = other[:, :, :1, :1] if addition == "one to broadcast" and other is not None else other
        with torch.no_grad():
            got = fused(x, other)
        wanted = expected(layer, x, other, activation)
        assert got.shape == wanted.shape
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_images_of_another_size_may_follow() -> None:
    layer = nn.Conv2d(64, 40, 3, padding=1)
    fused = FusedConvolution(layer, layer.weight.detach(), None, None)
    layer.bias = None
    for size in (8, 8, 8, 14, 7, 32, 8):
        x = images((2, 64, size, size))
        with torch.no_grad():
            torch.testing.assert_close(fused(x), layer(x), rtol=1e-4, atol=1e-5)


def test_what_it_is_given_is_left_as_it_is() -> None:
    layer = nn.Conv2d(3, 8, 3, padding=1)
    fused = FusedConvolution(layer, layer.weight.detach(), None, HARDSWISH)
    x, other = images((2, 3, 32, 32)), images((2, 8, 32, 32))
    before = x.clone(), other.clone()
    with torch.no_grad():
        fused(x, other)
        fused(x, other[:, :, :1])
    assert torch.equal(x, before[0])
    assert torch.equal(other, before[1])


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX512", reason="columns go in pairs where a vector holds 16 numbers"
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_columns_in_pairs_give_the_same_numbers(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    if not has_fused_kernels(torch.zeros(1, dtype=dtype)):
        pytest.skip(f"this machine has no fused kernels in {dtype}")
    layer = nn.Conv2d(16, 8, 3, padding=1)
    weight, x = layer.weight.detach().to(dtype), images((2, 16, 32, 32)).to(dtype)
    pairs = FusedConvolution(layer, weight, None, RELU)
    assert pairs._pairs is not None
    monkeypatch.setattr("backends.fused_convolution._LEAST_WIDTH", 64)
    single = FusedConvolution(layer, weight, None, RELU)(x)
    monkeypatch.undo()
    torch.testing.assert_close(pairs(x), single, rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-2)
