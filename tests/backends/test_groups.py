from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from backends.cifar_resnet import CifarResNet
from backends.groups import trace
from backends.macs import MacsCost
from backends.surgery import extract, mask
from compsearch.describe import describe
from compsearch.space import SearchSpace


def search_space(
    model: nn.Module, shape: tuple[int, ...] = (2, 3, 16, 16), freeze: tuple[str, ...] = (), coupled: bool = True
) -> SearchSpace:
    return trace(model, torch.zeros(shape), divisor=1, min_keep_ratio=0.1, freeze=freeze, coupled=coupled)


def reason(space: SearchSpace, name: str) -> str:
    return next(frozen.reason for frozen in space.frozen if frozen.name == name)


def names(space: SearchSpace) -> list[str]:
    return [group.name for group in space.groups]


class Net(nn.Module):
    """A convolution, whatever `middle` makes of its 16 channels, and a linear classifier over `features` of it."""

    def __init__(self, middle: nn.Module, features: int = 16) -> None:
        super().__init__()
        self.conv, self.middle, self.fc = nn.Conv2d(3, 16, 3, padding=1), middle, nn.Linear(features, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(F.relu(self.conv(x)))
        return self.fc(x.mean((2, 3)) if x.dim() == 4 else x)


# What forms groups.


def test_groups_come_in_forward_order_with_producers_and_consumers() -> None:
    space = search_space(CifarResNet(8), (1, 3, 32, 32))
    first = space.groups[0]
    assert first.name == first.producers[0] == "conv1"
    assert first.producers == ("conv1", "layer1.0.conv2", "layer2.0.conv2", "layer3.0.conv2")
    assert first.consumers == ("layer1.0.conv1", "layer2.0.conv1", "layer3.0.conv1", "linear")
    assert first.tied_by == ("add",)
    assert names(space) == [
        "conv1",
        "layer1.0.conv1",
        "layer2.0.conv1",
        "layer2.0.conv2",
        "layer3.0.conv1",
        "layer3.0.conv2",
    ]


def test_a_depthwise_convolution_neither_produces_nor_couples() -> None:
    space = search_space(Net(nn.Sequential(nn.Conv2d(16, 16, 3, groups=16), nn.BatchNorm2d(16))))
    (group,) = space.groups
    assert group.producers == ("conv",)
    assert group.consumers == ("fc",)
    assert not group.is_coupled
    assert [layer.kind for layer in space.layers] == ["conv", "depthwise", "linear"]
    sliced = {(site.parameter, site.dim) for site in space.sites}
    assert ("middle.0.weight", 0) in sliced
    assert ("middle.0.weight", 1) not in sliced
    assert {("middle.1.running_mean", 0), ("fc.weight", 1), ("conv.bias", 0)} <= sliced


def test_a_group_of_a_grouped_convolution_is_one_unit() -> None:
    (group,) = search_space(Net(nn.Conv2d(16, 32, 3, groups=4), 32)).groups
    assert (group.size, group.width, group.producers) == (4, 4, ("conv",))


def test_groups_of_one_layer_have_names_of_their_own() -> None:
    class Margins(nn.Module):
        """Sixteen channels added to the middle of 32: the 32 form two groups."""

        def __init__(self) -> None:
            super().__init__()
            self.wide = nn.Conv2d(16, 32, 1)
            self.register_buffer("side", torch.zeros(1, 8, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            side = self.side.expand(len(x), -1, *x.shape[2:])
            return self.wide(x) + torch.cat([side, x, side * 1], 1)

    space = search_space(Net(Margins(), 32))
    assert names(space) == ["conv", "middle.wide"]
    assert [group.producers for group in space.groups] == [("conv", "middle.wide"), ("middle.wide",)]
    # One buffer on both sides ties them.
    assert [(group.size, group.width) for group in space.groups] == [(16, 1), (8, 2)]


def test_layers_say_what_the_forward_did() -> None:
    model = Net(nn.Conv2d(16, 24, 3, stride=2, padding=1), 24)
    layers = search_space(model).layer_by_name
    middle = layers["middle"]
    assert (middle.parameter, middle.kind, middle.in_channels, middle.out_channels) == ("middle.weight", "conv", 16, 24)
    assert (middle.height, middle.width, middle.stride, middle.kernel_size) == (16, 16, 2, 3)
    assert middle.positions == 64
    assert middle.macs == 64 * 24 * 16 * 9
    assert layers["fc"].macs == 240


# What is frozen.


def test_the_output_is_frozen() -> None:
    assert reason(search_space(Net(nn.Identity())), "fc") == "reaches the network's output"


class Unknown(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cdist(x.flatten(2), x.flatten(2)).unsqueeze(1).expand(-1, 16, -1, -1)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).transpose(1, 2)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return (x + self.down(F.gelu(self.up(x)))).mean(1)


class Softmax(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.softmax(x, dim=1)


class Constant(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.arange(16.0).view(16, 1, 1)


class BySelection(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, torch.tensor([1, 0, *range(2, 16)])]


class UnequalParts(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        a, b = x.split([4, 12], dim=1)
        return torch.cat([b, a], 1)


@pytest.mark.parametrize(
    ("middle", "says"),
    [
        (Unknown(), "unknown operation _cdist_forward in middle"),
        (Softmax(), "softmax across channels in middle"),
        (Constant(), "meets a constant (mul in middle)"),
        (BySelection(), "channels indexed by position in middle"),
        (UnequalParts(), "unequal parts (split_with_sizes) in middle"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_labels_cannot_follow_is_frozen_with_the_reason(middle: nn.Module, says: str) -> None:
    space = search_space(Net(middle))
    assert not space.groups
    assert reason(space, "conv") == says


def test_attention_is_frozen_but_the_hidden_layer_is_not() -> None:
    space = search_space(Net(Attention()))
    assert "middle.up" in names(space)
    assert "attention" in reason(space, "middle.attention.in_proj_weight")
    # The residual width is what attention checks its input against.
    assert "conv" not in names(space)


class BakedView(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(x, 5).view(-1, 400)


class BakedSplit(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        a, b = x.split(8, dim=1)
        return torch.cat([b, a], 1)


class NumberFromSize(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / math.sqrt(x.shape[1])


class TensorFromSize(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / torch.tensor(float(x.shape[1]))


class Reinterpreted(nn.Module):
    """A view that takes neighbouring channels for pixels."""

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        return x.reshape(b, c // 4, 4, h, w).permute(0, 2, 1, 3, 4).reshape(b, c, h, w)


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.shape[1] == 16 else x * 3


class BranchOfOperations(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.tanh() if x.shape[1] == 16 else x


class BakedUnflatten(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (4, 4)).mean(1)


@pytest.mark.parametrize(
    ("middle", "features", "says"),
    [
        (BakedView(), 400, "the forward fails on fewer channels"),
        (BakedSplit(), 16, "its number or position matters: split would join other channels"),
        (NumberFromSize(), 16, "its number or position matters: div gets a number that depends on it in middle"),
        (TensorFromSize(), 16, "its number or position matters: lift_fresh gets a number that depends on it in middle"),
        (Branch(), 16, "its number or position matters: mul gets a number that depends on it in middle"),
        (BranchOfOperations(), 16, "its number or position matters: the forward goes another way in"),
        (BakedUnflatten(), 4, "the forward fails on fewer channels, in middle"),
        (Reinterpreted(), 16, "its number or position matters: a weight's inputs would join other channels"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_forward_that_names_sizes_is_found_out_by_trying(middle: nn.Module, features: int, says: str) -> None:
    space = search_space(Net(middle, features))
    assert "conv" not in names(space)
    assert any(frozen.reason.startswith(says) for frozen in space.frozen), space.describe()


def test_an_error_that_the_forward_swallows_is_still_noticed() -> None:
    class Swallowing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            try:
                return x / math.sqrt(x.shape[1])
            except Exception:
                return x

    assert "conv" not in names(search_space(Net(Swallowing())))


def test_mixing_tokens_freezes_the_tokens_only() -> None:
    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.back = nn.Linear(64, 24), nn.Linear(24, 64)
            self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

        def forward(self, x: Tensor) -> Tensor:
            x = F.max_pool2d(x, 2).flatten(2)
            x = (x + self.back(F.gelu(self.tokens(x)))).transpose(1, 2)
            return (x + self.down(F.gelu(self.up(x)))).mean(1)

    space = search_space(Net(Mixer()))
    assert names(space) == ["middle.tokens", "middle.up"]
    assert reason(space, "conv") == "a linear layer over rearranged channels"


def test_a_layer_with_a_computed_weight_is_reported() -> None:
    model = Net(nn.utils.parametrizations.weight_norm(nn.Conv2d(16, 16, 1)))
    space = search_space(model)
    assert reason(space, "middle") == "the forward computes its weight"
    assert not space.groups


class SumOfSquares(nn.Conv2d):
    """Rows of the weight taken for something else than norms of each."""

    def forward(self, x: Tensor) -> Tensor:
        rows = self.weight.reshape(1, 16, -1)
        return F.conv2d(x, (rows / rows.square().sum(-1, keepdim=True)).reshape_as(self.weight), padding=1)


class NormByConstants(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        mean, var = torch.zeros(16, device=x.device), torch.ones(16, device=x.device)
        rows = F.batch_norm(self.weight.reshape(1, 16, -1), mean, var)
        return F.conv2d(x, rows.reshape_as(self.weight), padding=1)


@pytest.mark.parametrize("kind", [SumOfSquares, NormByConstants])
def test_a_weight_computed_in_another_way_freezes_what_it_reads_and_emits(kind: type[nn.Conv2d]) -> None:
    space = search_space(Net(kind(16, 16, 3, bias=False)))
    assert not space.groups
    assert reason(space, "middle") == "the forward computes its weight"


def test_only_the_guilty_group_is_frozen() -> None:
    model = nn.Sequential(Net(NumberFromSize()).conv, nn.Conv2d(16, 16, 3), NumberFromSize(), nn.Conv2d(16, 16, 3))
    space = search_space(model.append(nn.Conv2d(16, 10, 3)))
    assert names(space) == ["0", "3"]


def test_groups_with_nothing_to_choose_are_frozen() -> None:
    space = search_space(Net(nn.Sequential(nn.Conv2d(16, 1, 1), nn.Conv2d(1, 16, 1))))
    assert reason(space, "middle.0") == "one unit, which cannot be emptied"
    space = trace(Net(nn.Identity()), torch.zeros(1, 3, 8, 8), divisor=8, min_keep_ratio=1.0)
    assert reason(space, "conv") == "no smaller count is allowed (divisor=8, min_keep_ratio=1.0)"


def test_a_frozen_group_says_what_tied_it_to_one_unit() -> None:
    class Mixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat(x.chunk(16, dim=1)[::-1], 1)

    assert reason(search_space(Net(Mixed())), "conv") == "one unit, which cannot be emptied, tied by split"


# Options.


def test_freeze_patterns_take_groups_and_layers_by_name() -> None:
    model = CifarResNet(8)
    left = names(search_space(model, (1, 3, 32, 32), freeze=("layer2.*",)))
    # The first stage's residual channels are emitted in the second too.
    assert left == ["layer1.0.conv1", "layer3.0.conv1", "layer3.0.conv2"]
    space = search_space(model, (1, 3, 32, 32), freeze=("conv1", "linear"))
    assert reason(space, "conv1") == "frozen by the space's freeze option"


def test_freezing_a_depthwise_layer_freezes_what_it_passes_on() -> None:
    model = Net(nn.Sequential(nn.Conv2d(16, 16, 3, groups=16), nn.Conv2d(16, 16, 1)))
    assert names(search_space(model, freeze=("middle.0",))) == ["middle.1"]


def test_a_freeze_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must match a group or layer, but got 'layer9\.\*'"):
        search_space(CifarResNet(8), (1, 3, 32, 32), freeze=("layer9.*",))


def test_coupled_groups_can_be_left_out() -> None:
    space = search_space(CifarResNet(8), (1, 3, 32, 32), coupled=False)
    # The last stage's own channels are emitted by one layer only.
    assert names(space) == ["layer1.0.conv1", "layer2.0.conv1", "layer3.0.conv1", "layer3.0.conv2"]
    assert "coupled option" in reason(space, "conv1")


def test_counts_follow_divisor_and_min_keep_ratio() -> None:
    space = trace(torchvision.models.resnet18(), torch.zeros(1, 3, 64, 64), divisor=8, min_keep_ratio=0.25)
    (group,) = (group for group in space.groups if group.name == "layer4.0.conv1")
    assert group.counts[:2] == (128, 136)
    with pytest.raises(ValueError, match="`divisor >= 1` must hold"):
        trace(CifarResNet(8), torch.zeros(1, 3, 32, 32), divisor=0, min_keep_ratio=0.1)


def test_a_model_that_does_not_run_on_the_example_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="must run on the example input, but raises RuntimeError: ") as caught:
        search_space(CifarResNet(8), (1, 4, 32, 32))
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="must be a tensor or a tuple with one, but got list"):
        trace(CifarResNet(8), [1], divisor=1, min_keep_ratio=0.1)  # type: ignore[arg-type]


def test_several_inputs_and_outputs_of_any_shape_are_followed() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.fc = nn.Conv2d(3, 16, 1), nn.Conv2d(1, 16, 1), nn.Conv2d(16, 5, 1)

        def forward(self, image: Tensor, depth: Tensor) -> dict[str, list[Tensor]]:
            x = self.one(image) + self.two(depth)
            return {"logits": [self.fc(x).mean((2, 3))], "size": [torch.zeros(3)]}

    model = Pair().eval()
    space = trace(model, (torch.zeros(2, 3, 8, 8), torch.zeros(2, 1, 8, 8)), divisor=1, min_keep_ratio=0.1)
    (group,) = space.groups
    assert group.producers == ("one", "two")
    policy = space.select(space.min_counts, np.zeros(space.num_units))
    inputs = torch.randn(2, 3, 8, 8), torch.randn(2, 1, 8, 8)
    ours, reference = extract(model, space, policy)(*inputs), mask(model, space, policy)(*inputs)
    torch.testing.assert_close(ours, reference)


def test_the_fingerprint_tells_networks_and_choices_apart() -> None:
    one = search_space(CifarResNet(8), (1, 3, 32, 32))
    assert one.fingerprint == search_space(CifarResNet(8), (1, 3, 32, 32)).fingerprint
    assert one.fingerprint != search_space(CifarResNet(14), (1, 3, 32, 32)).fingerprint
    assert one.fingerprint != search_space(CifarResNet(8), (1, 3, 32, 32), freeze=("conv1",)).fingerprint


# For people to read.


def test_describe_prints_groups_ties_and_reasons() -> None:
    space = search_space(CifarResNet(8), (1, 3, 32, 32))
    text = describe(space, [MacsCost(space)])
    lines = text.splitlines()
    assert lines[0].split() == ["group", "channels", "keep", "emitted", "by", "read", "by", "tied", "by"]
    assert lines[1].startswith("conv1")
    assert "2..16 by 1" in lines[1]
    assert "conv1, layer1.0.conv2 +2" in lines[1]
    assert lines[1].endswith("add")
    assert any(line.split()[:3] == ["linear", "10", "reaches"] for line in lines)
    assert "6 groups, 176 prunable channels, 10 frozen" in lines
    assert any(line.startswith("the smallest policy costs 0.0") and line.endswith("dense macs") for line in lines)
    assert text.startswith(space.describe()[:200])
