import copy
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from backends import fast_inference
from backends.cifar_resnet import CifarResNet
from backends.fast_inference import FusedNetwork
from backends.fusion import make_plan
from backends.workers import Workers


class Corners(nn.Module):
    """What fused kernels don't do: a broadcast sum, other paddings, 1-d convolutions, a norm before its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm0 = nn.BatchNorm2d(3)
        self.same = nn.Conv2d(3, 8, 3, padding="same")
        self.reflect = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect", bias=False)
        self.norm1 = nn.BatchNorm2d(8, affine=False)
        self.offset = nn.Parameter(torch.randn(1, 8, 1, 1))
        self.strided = nn.Conv2d(8, 6, 3, stride=2, padding=(1, 2), dilation=(1, 2))
        self.swish = nn.Hardswish()
        self.sequence = nn.Conv1d(6, 5, 3)
        self.norm2 = nn.BatchNorm1d(5)
        self.linear = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.norm1(self.reflect(self.same(self.norm0(x)))) + x.mean(1, keepdim=True))
        x = self.swish(self.strided(x) + self.strided(self.offset.expand_as(x)))
        x = F.relu(self.norm2(self.sequence(x.flatten(2))))
        return self.linear(x.mean(2))


def torchvision_model(name: str) -> Callable[[], nn.Module]:
    return lambda: torchvision.models.get_model(name, num_classes=10)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "cifar_resnet": lambda: CifarResNet(14),
    "corners": Corners,
    "resnet18": torchvision_model("resnet18"),
    "mobilenet_v2": torchvision_model("mobilenet_v2"),
    "mobilenet_v3_small": torchvision_model("mobilenet_v3_small"),
    "shufflenet_v2_x0_5": torchvision_model("shufflenet_v2_x0_5"),
    "squeezenet1_1": torchvision_model("squeezenet1_1"),
}


def built(name: str) -> tuple[nn.Module, Tensor]:
    """A network with running statistics that are its own, in eval mode, and images."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network, images = NETWORKS[name](), torch.randn(8, 3, 64, 64)
        for norm in network.modules():
            if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
                norm.momentum = None
        with torch.no_grad():
            network.train()(images)
    return network.eval(), images.contiguous(memory_format=torch.channels_last)


def outputs(network: nn.Module, images: Tensor, dtype: torch.dtype) -> Tensor:
    plan = make_plan(network)
    assert plan is not None
    with torch.no_grad():
        return FusedNetwork(network, plan, dtype=dtype)(images).float()


@pytest.mark.parametrize("has_kernels", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_fused_network_computes_what_the_network_does(
    name: str, has_kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_kernels:
        monkeypatch.setattr(fast_inference, "has_fused_kernels", lambda weight: False)
    network, images = built(name)
    expected = network(images).detach()
    difference = (outputs(network, images, torch.float32) - expected).abs().max()
    assert float(difference) < 1e-4 * float(expected.abs().max())


@pytest.mark.parametrize("name", NETWORKS)
def test_in_bfloat16_it_errs_no_more_than_the_network_in_bfloat16(name: str) -> None:
    network, images = built(name)
    plain = copy.deepcopy(network).bfloat16()
    with torch.no_grad():
        expected, rounded = network(images), plain(images.bfloat16()).float()
    error, plain_error = (
        float((other - expected).square().mean()) for other in (outputs(network, images, torch.bfloat16), rounded)
    )
    assert 0 < error < 1.5 * plain_error


def test_the_network_is_left_as_it_is() -> None:
    network, images = built("corners")
    before, kept = copy.deepcopy(network.state_dict()), network(images).detach()
    outputs(network, images, torch.bfloat16)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert torch.equal(network(images), kept)


def test_later_changes_of_weights_do_not_reach_a_fused_convolution() -> None:
    network, images = built("cifar_resnet")
    plan = make_plan(network)
    assert plan is not None
    fused = FusedNetwork(network, plan, dtype=torch.float32)
    with torch.no_grad():
        before = fused(images)
        network.get_submodule("conv1").weight.zero_()  # type: ignore[union-attr, operator]
        assert torch.equal(fused(images), before)


def test_several_threads_may_run_it_at_once() -> None:
    network, images = built("cifar_resnet")
    plan = make_plan(network)
    assert plan is not None
    fused = FusedNetwork(network, plan, dtype=torch.float32)
    parts = list(torch.split(images, 2)) * 5
    one, several = (torch.cat(Workers(count).map(fused, parts)) for count in (1, 3))
    assert torch.equal(one, several)
