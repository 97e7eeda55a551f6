from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backends.cifar_resnet import CifarResNet
from backends.fusion import RELU, LayerStep, Plan, make_plan
from backends.surgery import extract


def layer_steps(plan: Plan | None) -> dict[str, LayerStep]:
    assert plan is not None
    return {step.layer: step for step in plan.steps if isinstance(step, LayerStep)}


def test_a_residual_block_is_two_steps() -> None:
    steps = layer_steps(make_plan(CifarResNet(8).eval()))
    first, second = steps["layer1.0.conv1"], steps["layer1.0.conv2"]
    assert (first.norm, first.other, first.activation) == ("layer1.0.bn1", None, RELU)
    assert (second.norm, second.activation) == ("layer1.0.bn2", RELU)
    assert second.other is not None
    assert second.input == first.output


def test_a_norm_that_uses_batch_statistics_is_no_part_of_a_step() -> None:
    assert layer_steps(make_plan(CifarResNet(8).train()))["conv1"].norm is None


def test_networks_cut_from_one_have_the_same_plan(tiny: SimpleNamespace) -> None:
    cut = extract(tiny.model, tiny.space, tiny.half)
    assert make_plan(cut) == make_plan(tiny.model)
    assert make_plan(cut) != make_plan(CifarResNet(8).eval())


def test_code_that_depends_on_values_has_no_plan() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    assert make_plan(Branching()) is None


class Shared(nn.Module):
    """A convolution whose output is read twice, and one with a hook."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.norm1, self.norm2 = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.conv2.register_forward_hook(lambda module, args, output: output * 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x)
        return F.relu(self.norm1(y)) + y + self.norm2(self.conv2(x))


def test_only_what_nobody_else_reads_is_fused() -> None:
    steps = layer_steps(make_plan(Shared().eval()))
    assert steps["conv1"].norm is None
    assert "conv2" not in steps


def test_every_slot_is_forgotten_after_its_last_reader() -> None:
    plan = make_plan(CifarResNet(8).eval())
    assert plan is not None
    forgotten = [slot for slots in plan.last_read for slot in slots]
    assert sorted([*forgotten, plan.result]) == list(range(plan.num_slots))


def test_planning_leaves_the_network_as_it_is() -> None:
    network = CifarResNet(8).eval()
    names = set(vars(network)) | set(network.state_dict())
    make_plan(network)
    assert set(vars(network)) | set(network.state_dict()) == names
    assert torch.is_grad_enabled()
