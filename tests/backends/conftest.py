"""A small network with its space and images to calibrate and score on; a runtime whose times are known."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backends import latency
from backends.data import TensorSplit
from backends.groups import trace
from backends.importance import l1_inputs
from backends.latency import LatencyMeter
from backends.layer_shapes import LayerShape, layer_module
from backends.mbconv import build
from backends.operation_space import operation_space


class TinyResidual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(8)
        self.conv1 = nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(12)
        self.conv2 = nn.Conv2d(12, 16, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(16)
        self.down = nn.Conv2d(8, 16, 1, stride=2)
        self.linear = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem_norm(self.stem(x)))
        branch = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return self.linear(F.relu(branch + self.down(x)).mean((2, 3)))


def split_of(name: str, num_images: int, seed: int) -> TensorSplit:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(num_images, 3, 8, 8, generator=generator)
    labels = torch.randint(5, (num_images,), generator=generator)
    return TensorSplit(name=name, images=images, labels=labels, normalisation=None, augmentation=None)


@pytest.fixture
def tiny() -> SimpleNamespace:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = TinyResidual()
        with torch.no_grad():
            for _ in range(5):  # running statistics that are not the initial ones
                model(torch.randn(32, 3, 8, 8))
    model.eval()
    space = trace(model, torch.zeros(2, 3, 8, 8), divisor=1, min_keep_ratio=0.1)
    importance = l1_inputs(model, space).scores()
    half = space.select([max(1, group.size // 2) for group in space.groups], importance)
    return SimpleNamespace(
        model=model,
        space=space,
        importance=importance,
        half=half,
        calibration=split_of("calibration", 48, 1),
        search=split_of("search", 40, 2),
    )


@pytest.fixture
def mbconv() -> SimpleNamespace:
    """An over-parameterised network of four cells with its space; one cell of each two may be left out."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build(
            num_classes=5,
            stem_channels=8,
            stem_stride=1,
            first_channels=8,
            stages=[{"channels": 8, "cells": 2, "stride": 1}, {"channels": 16, "cells": 2, "stride": 2}],
            head_channels=24,
            candidates=["k3_e2", "k5_e2", "k3_e1", "zero"],
            width_multiplier=1.0,
            alike_noise=None,
        ).eval()
    return SimpleNamespace(model=model, space=operation_space(model, torch.zeros(2, 3, 8, 8)))


class Clock:
    """Stands still but for what runs; `others` is what other programs take of the processor during one run."""

    def __init__(self) -> None:
        self.now = 0.0
        self.worked = 0.0
        self.others: list[float] = []

    def perf_counter(self) -> float:
        return self.now

    def thread_time(self) -> float:
        return self.worked


class FakeRuntime:
    """Takes `overhead_s` and, for each layer, `seconds` of it, on a clock that nothing else moves."""

    name = "fake"
    compiles = False

    def __init__(self, clock: Clock, seconds: Callable[[nn.Module], float], overhead_s: float = 0.0) -> None:
        self.clock, self.seconds, self.overhead_s = clock, seconds, overhead_s
        self.prepared = 0
        self.runs: list[nn.Module] = []

    def device(self, wanted: torch.device) -> torch.device:
        return torch.device("cpu")

    def versions(self) -> dict[str, str]:
        return {"fake": "1"}

    def prepare(self, network: nn.Module, images: Tensor, *, threads: int) -> Callable[[], None]:
        assert not network.training
        assert not torch.is_grad_enabled()
        return self._run(network, self.overhead_s)

    def prepare_layer(
        self, shape: LayerShape, ins: int, outs: int, images: Tensor, *, threads: int
    ) -> Callable[[], None]:
        layer = layer_module(shape, ins, outs)
        assert layer(images).shape[0] == images.shape[0]
        return self._run(layer, 0.0)

    def _run(self, network: nn.Module, overhead_s: float) -> Callable[[], None]:
        self.prepared += 1
        layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
        taken = overhead_s + sum(self.seconds(layer) for layer in layers)

        def run() -> None:
            lost = self.clock.others.pop(0) if self.clock.others else 0.0
            self.runs.append(network)
            self.clock.worked += taken
            self.clock.now += taken + lost

        return run


def by_weights(layer: nn.Module) -> float:
    """A microsecond per weight: bilinear in a layer's inputs and outputs."""
    return layer.weight.numel() * 1e-6


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(latency, "time", clock)
    return clock


@pytest.fixture
def fake_meter(clock: Clock) -> Callable[..., LatencyMeter]:
    """Makes a meter with a fake runtime; `seconds` is what a layer takes, `overhead_s` what a network does beside."""

    def make(
        seconds: Callable[[nn.Module], float] = by_weights, overhead_s: float = 0.0, **changes: object
    ) -> LatencyMeter:
        options = {"batch_size": 1, "threads": 1, "repetitions": 5, "warmup": 2, "time_budget_s": 1e9, **changes}
        runtime = FakeRuntime(clock, seconds, overhead_s)
        return LatencyMeter(runtime=runtime, device=torch.device("cpu"), **options)

    return make
