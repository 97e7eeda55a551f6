from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backends.cifar_resnet import CifarResNet
from backends.groups import trace
from backends.surgery import extract, mask
from compsearch.space import Policy, SearchSpace

IMAGE = (2, 3, 16, 16)


def conv(inputs: int, outputs: int, kernel: int = 3, **options: int | bool) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)  # type: ignore[arg-type]


class Head(nn.Module):
    """Pooled features to ten classes."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3)))


class Concatenation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = conv(3, 8), conv(3, 24)
        self.bn = nn.BatchNorm2d(35)
        self.join, self.head = conv(35, 16), Head(16)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([self.left(x), x, self.right(x)], 1)
        return self.head(self.join(F.relu(self.bn(both))))


class FlattenToLinear(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(conv(3, 16), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, 32))
        self.append(nn.BatchNorm1d(32)).append(nn.Dropout()).append(nn.Linear(32, 10))


class FlattenedNorm(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(conv(3, 16), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 10))


class ChannelShuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = conv(3, 24), conv(24, 16), Head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        b, c, h, w = x.shape
        x = x.view(b, 3, c // 3, h, w).transpose(1, 2).reshape(b, c, h, w)
        return self.head(self.second(x))


class ShuffleModule(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(conv(3, 24), nn.ChannelShuffle(4), conv(24, 16), Head(16))


class PixelShuffle(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(conv(3, 32), nn.PixelShuffle(2), conv(8, 16), nn.PixelUnshuffle(2), conv(64, 8), Head(8))


class SqueezeExcitation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = conv(3, 32), nn.BatchNorm2d(32)
        self.squeeze, self.excite = nn.Linear(32, 16), nn.Linear(16, 32)
        self.out, self.head = conv(32, 16), Head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv(x)))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3))))))
        return self.head(self.out(x * gate[:, :, None, None]))


class TiedWeights(nn.Module):
    """One weight in two modules, and once more as its transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 16)
        self.one, self.two = conv(16, 16), conv(16, 16)
        self.two.weight = self.one.weight
        self.encode, self.fc = nn.Linear(16, 24), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.two(F.relu(self.one(F.relu(self.stem(x))))))
        code = F.relu(self.encode(x.mean((2, 3))))
        return self.fc(F.linear(code, self.encode.weight.t()))


class FunctionalConstants(nn.Module):
    """Convolved with a fixed kernel, scaled by a fixed vector."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third, self.head = conv(3, 8), conv(8, 16), conv(16, 12), Head(12)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(self.first(x), torch.full((8, 1, 3, 3), 1 / 9), padding=1, groups=8)
        x = self.second(x) * torch.linspace(0.5, 1.5, 16).view(1, -1, 1, 1)
        return self.head(F.relu(self.third(x)))


class ConvClassifier(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(conv(3, 16), nn.ReLU(), nn.Dropout(), conv(16, 10, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class CalledTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.bn, self.head = conv(3, 16), conv(16, 16), nn.BatchNorm2d(16), Head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(2):
            x = F.relu(self.bn(self.block(x)))
        return self.head(x)


class GatedHalves(nn.Module):
    """GLU by chunk, by slices, and as a module."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third, self.head = conv(3, 32), conv(16, 32), conv(16, 32), Head(16)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.first(x).chunk(2, dim=1)
        x = self.second(value * torch.sigmoid(gate))
        half = x.shape[1] // 2
        x = self.third(x[:, :half] * torch.tanh(x[:, half:]))
        return self.head(F.glu(x, dim=1))


class OneChannelGate(nn.Module):
    """A spatial gate, broadcast once by the operation and once by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.gate, self.other, self.head = conv(3, 16), conv(16, 1), conv(16, 1), Head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        x = x * torch.sigmoid(self.gate(x))
        return self.head(x * torch.sigmoid(self.other(x)).expand_as(x))


class BufferConstants(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.second, self.head = conv(3, 16), conv(16, 24), Head(24)
        self.register_buffer("scale", torch.linspace(0.5, 2, 16).view(1, 16, 1, 1))
        self.register_buffer("blur", torch.ones(24, 1, 3, 3) / 9, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(F.relu(self.conv(x)) * self.scale)
        return self.head(F.conv2d(x, self.blur, padding=1, groups=x.shape[1]))


class GroupNorms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = conv(3, 32), nn.GroupNorm(8, 32)
        self.second, self.bare = conv(32, 24), nn.GroupNorm(6, 24, affine=False)
        self.third, self.instance = conv(24, 16), nn.InstanceNorm2d(16)
        self.fourth, self.affine, self.head = conv(16, 16), nn.InstanceNorm2d(16, affine=True), Head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bare(self.second(F.relu(self.norm(self.first(x))))))
        return self.head(F.relu(self.affine(self.fourth(F.relu(self.instance(self.third(x)))))))


class GroupedConvolutions(nn.Module):
    """Four groups, a depthwise convolution with multiplier, and a transposed one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.grouped, self.bn = conv(3, 32), conv(32, 48, groups=4, bias=False), nn.BatchNorm2d(48)
        self.mix, self.depthwise = conv(48, 16), conv(16, 32, groups=16)
        self.up = nn.ConvTranspose2d(32, 24, 2, 2)
        self.up_grouped = nn.ConvTranspose2d(24, 12, 2, 2, groups=6)
        self.head = Head(12)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.grouped(F.relu(self.stem(x)))))
        return self.head(self.up_grouped(F.relu(self.up(self.depthwise(self.mix(x))))))


class TwoGroups(nn.Module):
    """One of two convolution groups left is an ordinary convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.grouped, self.depthwise = conv(3, 16), conv(16, 16, groups=2), conv(2, 4, groups=2)
        self.narrow, self.norm, self.head = conv(16, 2), nn.GroupNorm(2, 4), Head(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.narrow(F.relu(self.grouped(F.relu(self.stem(x)))))
        return self.head(self.norm(self.depthwise(x)))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.unpooled = conv(3, 16), conv(16, 32), conv(16, 16)
        self.up, self.join, self.head = nn.ConvTranspose2d(32, 16, 2, 2), conv(48, 16), Head(16)

    def forward(self, x: Tensor) -> Tensor:
        one = F.relu(self.one(x))
        pooled, indices = F.max_pool2d(one, 2, return_indices=True)
        up = self.up(F.relu(self.two(pooled)))
        return self.head(self.join(torch.cat([up, F.max_unpool2d(self.unpooled(pooled), indices, 2), one], 1)))


class SplitAttention(nn.Module):
    """A softmax between two halves of the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.squeeze, self.excite, self.head = conv(3, 32), conv(16, 8, 1), conv(8, 32, 1), Head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        b, c, h, w = x.shape
        x = x.reshape(b, 2, c // 2, h, w)
        gate = self.excite(F.relu(self.squeeze(x.sum(1).mean((2, 3), keepdim=True))))
        return self.head((x * gate.view(b, 2, c // 2, 1, 1).softmax(1)).sum(1))


class PaddedShortcut(nn.Module):
    """Option A with constants in the forward: the margins stay, the middle may go."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = conv(3, 16), conv(16, 32), Head(32)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        return self.head(self.second(x) + F.pad(x, (0, 0, 0, 0, 8, 8)))


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.act, self.head = conv(3, 16), conv(16, 16), nn.ReLU(inplace=True), Head(32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = self.second(self.act(x)).clamp_(-1, 1)
        y += x
        y.mul_(0.5).unsqueeze_(0)
        return self.head(torch.cat([x, y[0]], 1))


class Written(nn.Module):
    """Results written into parts of a tensor, which labels do not follow: frozen, but still right."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third, self.head = conv(3, 16), conv(16, 16), conv(32, 16), Head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        out = torch.zeros(len(x), 2 * x.shape[1], *x.shape[2:])
        out[:, : x.shape[1]] = x
        out[:, x.shape[1] :] = self.second(x)
        return self.head(self.third(out))


class OddMoves(nn.Module):
    """Flip, repeat, stack, unfold, roll and index, none of which minds fewer channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.fc = conv(3, 16), conv(32, 16), nn.Linear(16 * 9, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).flip(1).roll((1, 2), dims=(2, 3))
        x = self.second(x.repeat(1, 2, 1, 1))[:, :, torch.tensor([0, 3, 5])]
        x = torch.stack([x, 2 * x]).sum(0).permute(0, 2, 3, 1)
        patches = F.unfold(x.permute(0, 3, 1, 2), 3, padding=1)
        return self.fc(patches.mean(2))


class Einsum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = conv(3, 16), Head(24)
        self.weight = nn.Parameter(torch.randn(16, 24) / 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.einsum("bchw,co->bohw", F.relu(self.first(x)), self.weight))


class FrozenNorm(nn.Module):
    """Batch norm folded from buffers, a scaled residual, a learnt activation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.act, self.head = conv(3, 16), conv(16, 16), nn.PReLU(16), Head(16)
        for name, value in (("weight", 1.5), ("bias", 0.2), ("mean", 0.3), ("var", 0.7)):
            self.register_buffer(name, torch.full((16,), value))
        self.gamma = nn.Parameter(torch.rand(16, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        scale = self.weight.reshape(1, -1, 1, 1) * (self.var.reshape(1, -1, 1, 1) + 1e-5).rsqrt()
        shift = self.bias.reshape(1, -1, 1, 1) - self.mean.reshape(1, -1, 1, 1) * scale
        x = self.act(x * scale + shift)
        return self.head(x + self.gamma * self.second(x))


class ReadsValues(nn.Module):
    """A forward that looks at values, which shapes alone cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = conv(3, 16), conv(16, 16), Head(16)

    def forward(self, x: Tensor) -> Tensor:
        features = self.first(x)
        if float(x.abs().sum()) >= 0:
            features = self.second(F.relu(features))
        return self.head(features)


EXACT = [
    Concatenation,
    FlattenToLinear,
    FlattenedNorm,
    ChannelShuffle,
    ShuffleModule,
    PixelShuffle,
    SqueezeExcitation,
    TiedWeights,
    FunctionalConstants,
    ConvClassifier,
    CalledTwice,
    GatedHalves,
    OneChannelGate,
    BufferConstants,
    GroupNorms,
    GroupedConvolutions,
    TwoGroups,
    UNet,
    SplitAttention,
    PaddedShortcut,
    InPlace,
    Written,
    OddMoves,
    Einsum,
    FrozenNorm,
    ReadsValues,
]
#: Channels of these layers must be offered to be removed.
PRUNABLE = {
    Concatenation: {"left", "right", "join"},
    FlattenToLinear: {"0", "4"},
    FlattenedNorm: {"0"},
    ChannelShuffle: {"first", "second"},
    ShuffleModule: {"0", "2"},
    PixelShuffle: {"0", "2", "4"},
    SqueezeExcitation: {"conv", "squeeze", "out"},
    TiedWeights: {"stem", "encode"},
    FunctionalConstants: {"third"},
    ConvClassifier: {"0"},
    CalledTwice: {"stem"},
    GatedHalves: {"first", "second", "third"},
    OneChannelGate: {"features"},
    BufferConstants: {"conv", "second"},
    GroupNorms: {"first", "second", "third", "fourth"},
    GroupedConvolutions: {"stem", "mix", "up"},
    TwoGroups: {"stem", "narrow"},
    UNet: {"one", "two", "up", "unpooled", "join"},
    SplitAttention: {"stem", "squeeze", "excite"},
    PaddedShortcut: {"first"},
    InPlace: {"first", "second"},
    Written: {"third"},
    OddMoves: {"first", "second"},
    Einsum: {"first", "weight"},
    FrozenNorm: {"first"},
    ReadsValues: {"first", "second"},
}


def seeded(network: type[nn.Module]) -> nn.Module:
    """A network in eval mode whose norms have statistics and weights of all signs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = network().eval()
        for norm in module.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.running_mean is not None:
                norm.running_mean.normal_()
                norm.running_var.uniform_(0.5, 2)
            if (
                isinstance(norm, nn.modules.batchnorm._NormBase | nn.GroupNorm | nn.LayerNorm)
                and norm.weight is not None
            ):
                nn.init.normal_(norm.weight)
                nn.init.normal_(norm.bias)
    return module


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def search_space(model: nn.Module, shape: tuple[int, ...] = IMAGE, divisor: int = 2) -> SearchSpace:
    return trace(model, torch.zeros(shape), divisor=divisor, min_keep_ratio=0.1)


def random_policy(space: SearchSpace, seed: int) -> Policy:
    rng = np.random.default_rng(seed)
    return space.select([rng.choice(group.counts) for group in space.groups], rng.random(space.num_units))


def difference(ours: Tensor, reference: Tensor) -> float:
    assert ours.shape == reference.shape
    return float((ours - reference).abs().max() / reference.abs().max())


@pytest.mark.parametrize("network", EXACT, ids=lambda network: network.__name__)
def test_extracted_logits_equal_masked_logits(network: type[nn.Module]) -> None:
    model = seeded(network)
    space = search_space(model)
    x = images(*IMAGE)
    smallest = space.select(space.min_counts, np.arange(space.num_units, dtype=np.float64))
    for policy in (*(random_policy(space, seed) for seed in range(3)), smallest):
        with torch.no_grad():
            assert difference(extract(model, space, policy)(x), mask(model, space, policy)(x)) < 1e-5


@pytest.mark.parametrize("network", EXACT, ids=lambda network: network.__name__)
def test_layers_that_can_be_pruned_are_offered(network: type[nn.Module]) -> None:
    space = search_space(seeded(network))
    offered = {name for group in space.groups for name in group.producers}
    assert PRUNABLE[network] <= offered, space.describe()


def test_mask_is_not_the_dense_network() -> None:
    """The negative control of every comparison above."""
    model = seeded(SqueezeExcitation)
    space = search_space(model)
    x = images(*IMAGE)
    with torch.no_grad():
        assert difference(mask(model, space, random_policy(space, 0))(x), model(x)) > 1e-2


@pytest.mark.parametrize("depth", [20, 56])
def test_residual_groups_of_cifar_resnets_can_be_pruned(depth: int) -> None:
    model = seeded(lambda: CifarResNet(depth))  # type: ignore[arg-type]
    space = search_space(model, (1, 3, 32, 32))
    sizes = {group.name: group.size for group in space.groups if group.is_coupled}
    # Each stage adds the channels on both sides of the earlier ones.
    assert sorted(sizes.values()) == [16, 16, 32]
    assert all("add" in group.tied_by for group in space.groups if group.is_coupled)
    x = images(2, 3, 32, 32)
    policy = random_policy(space, 0)
    with torch.no_grad():
        assert difference(extract(model, space, policy)(x), mask(model, space, policy)(x)) < 1e-5


class LayerNorms(nn.Module):
    """Norms over channels that may go: channels last, without parameters, over channels and positions, one group."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = conv(3, 16), nn.LayerNorm(16)
        self.second, self.bare = nn.Linear(16, 24), nn.LayerNorm(24, elementwise_affine=False)
        self.third, self.whole = conv(24, 16), nn.LayerNorm([16, 16, 16])
        self.fourth, self.single, self.head = conv(16, 16), nn.GroupNorm(1, 16), Head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x).permute(0, 2, 3, 1))
        x = self.bare(F.gelu(self.second(x))).permute(0, 3, 1, 2)
        return self.head(F.relu(self.single(self.fourth(self.whole(self.third(x))))))


def test_layer_norms_see_the_kept_channels_only() -> None:
    model = seeded(LayerNorms)
    space = search_space(model)
    assert {name for group in space.groups for name in group.producers} >= {"first", "second", "third", "fourth"}
    policy = random_policy(space, 3)
    kept = {site.parameter: np.append(space.keep_mask(policy), True)[site.units] for site in space.sites}
    kept |= {site.parameter: np.append(space.keep_mask(policy), True)[site.units] for site in space.size_sites}
    reference = mask(model, space, policy)
    for name, dims in (("norm", 3), ("bare", 3), ("whole", 1), ("single", 1)):
        norm = reference.get_submodule(name)
        channels = torch.from_numpy(kept[f"{name}.weight" if name != "bare" else "bare.normalized_shape"])
        norm.forward = kept_norm(norm, channels, dims)  # type: ignore[method-assign]
    x = images(*IMAGE)
    with torch.no_grad():
        assert difference(extract(model, space, policy)(x), reference(x)) < 1e-5


def kept_norm(norm: nn.Module, kept: Tensor, dim: int) -> object:
    """A layer norm whose mean and variance are those of the kept channels of dimension `dim`."""
    over = [dim] if dim == 3 else [1, 2, 3]

    def forward(x: Tensor) -> Tensor:
        shape = [-1 if d == dim else 1 for d in range(4)]
        seen = x.index_select(dim, kept.nonzero()[:, 0])
        mean, var = seen.mean(over, keepdim=True), seen.var(over, keepdim=True, unbiased=False)
        x = (x - mean) / torch.sqrt(var + norm.eps)
        if norm.weight is not None:
            x = x * (norm.weight if norm.weight.dim() == 3 else norm.weight.view(shape))
            x = x + (norm.bias if norm.bias.dim() == 3 else norm.bias.view(shape))
        return x * kept.view(shape)

    return forward


class WrittenOut(nn.Module):
    """Norms over channels as PyTorch's modules compute them, and written out."""

    def __init__(self, *, by_hand: bool) -> None:
        super().__init__()
        self.by_hand = by_hand
        self.first, self.layer, self.second = conv(3, 16), nn.LayerNorm(16), conv(16, 24)
        self.rms, self.third, self.head = nn.RMSNorm(24, eps=1e-5), conv(24, 16), Head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.by_hand:
            mean = x.mean(1, keepdim=True)
            var = (x - mean).pow(2).mean(1, keepdim=True)
            x = (x - mean) / torch.sqrt(var + 1e-5)
            x = self.layer.weight[:, None, None] * x + self.layer.bias[:, None, None]
            x = self.second(F.relu(x))
            x = x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-5) * self.rms.weight.view(1, -1, 1, 1)
        else:
            x = self.second(F.relu(self.layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)))
            x = self.rms(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.head(F.relu(self.third(x)))


def test_norms_written_out_see_the_kept_channels_as_modules_do() -> None:
    by_hand, modules = (seeded(lambda by_hand=each: WrittenOut(by_hand=by_hand)) for each in (True, False))
    spaces = [search_space(model) for model in (by_hand, modules)]
    assert [group.name for group in spaces[0].groups] == ["first", "second", "third"]
    assert spaces[0].fingerprint == spaces[1].fingerprint
    x = images(*IMAGE)
    for seed in range(3):
        policy = random_policy(spaces[0], seed)
        with torch.no_grad():
            ours, reference = (extract(model, spaces[0], policy)(x) for model in (by_hand, modules))
        assert difference(ours, reference) < 1e-5


class ResponseNorm(nn.Module):
    """Each channel's strength over the mean strength of all (global response normalization), then unit vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third, self.head = conv(3, 16, bias=False), conv(16, 24), conv(24, 16), Head(16)
        self.kept = slice(None)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        strength = torch.linalg.vector_norm(x, dim=(2, 3), keepdim=True)
        x = x + x * (strength / (strength[:, self.kept].mean(1, keepdim=True) + 1e-6))
        return self.head(F.relu(self.third(F.normalize(self.second(x), dim=1))))


def test_response_norms_compare_with_the_kept_channels() -> None:
    model = seeded(ResponseNorm)
    space = search_space(model)
    assert [group.name for group in space.groups] == ["first", "second", "third"]
    policy = random_policy(space, 1)
    reference = mask(model, space, policy)
    [site] = [site for site in space.sites if site.parameter == "first.weight"]
    reference.kept = torch.from_numpy(np.flatnonzero(np.append(space.keep_mask(policy), True)[site.units]))
    x = images(*IMAGE)
    with torch.no_grad():
        assert difference(extract(model, space, policy)(x), reference(x)) < 1e-5


class Standardized(nn.Conv2d):
    """A convolution whose filters have mean 0 and variance 1 (weight standardization), times a gain."""

    def __init__(self, inputs: int, outputs: int, groups: int = 1) -> None:
        super().__init__(inputs, outputs, 3, padding=1, groups=groups)
        self.gain = nn.Parameter(torch.rand(outputs, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        rows = self.weight.reshape(1, self.out_channels, -1)
        gain = (self.gain * 0.5).view(-1)
        weight = F.batch_norm(rows, None, None, weight=gain, training=True, momentum=0.0).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class StandardizedNet(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(Standardized(3, 16), nn.ReLU(), Standardized(16, 24), nn.ReLU(), Standardized(24, 24, 24))
        self.extend([Standardized(24, 24, 3), nn.ReLU(), Standardized(24, 16), Head(16)])


def test_standardized_weights_see_their_kept_entries() -> None:
    model = seeded(StandardizedNet)
    space = search_space(model)
    assert {name for group in space.groups for name in group.producers} == {"0", "2", "7"}
    policy = random_policy(space, 2)
    keep = {
        (site.parameter, site.dim): np.append(space.keep_mask(policy), True)[site.units].nonzero()[0]
        for site in space.sites
    }
    reference = mask(model, space, policy)
    for name, module in reference.named_modules():
        if isinstance(module, Standardized):
            rows, columns = (keep.get((f"{name}.weight", dim), np.arange(module.weight.shape[dim])) for dim in (0, 1))
            weight = torch.zeros_like(module.weight)
            kept = module.weight[rows][:, columns]
            kept = (kept - kept.mean((1, 2, 3), keepdim=True)) / (
                kept.var((1, 2, 3), False, keepdim=True) + 1e-5
            ).sqrt()
            weight[np.ix_(rows, columns)] = kept * module.gain[rows] * 0.5
            module.forward = lambda x, module=module, weight=weight: F.conv2d(  # type: ignore[method-assign]
                x, weight, module.bias, padding=1, groups=module.groups
            )
    x = images(*IMAGE)
    with torch.no_grad():
        assert difference(extract(model, space, policy)(x), reference(x)) < 1e-5


class Auxiliary(nn.Module):
    """A second classifier that runs in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv(3, 16), conv(16, 16)
        self.side, self.bn, self.side_head, self.head = conv(16, 8), nn.BatchNorm2d(8), Head(8), Head(16)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = F.relu(self.first(x))
        logits = self.head(self.second(x))
        return (logits, self.side_head(self.bn(self.side(x)))) if self.training else logits


def test_parts_that_run_in_training_only_are_cut_to_fit() -> None:
    model = seeded(Auxiliary)
    space = trace(model, torch.zeros(1, 3, 16, 16), divisor=2, min_keep_ratio=0.1)
    assert [group.name for group in space.groups] == ["first", "second"]
    extracted = extract(model, space, random_policy(space, 0)).train()
    logits, side = extracted(images(*IMAGE))
    assert logits.shape == side.shape == (2, 10)
    assert extracted.side.in_channels == len(dict(random_policy(space, 0).kept)["first"])
    assert extracted.side.out_channels == 8


# What extraction leaves as it was.


class ByChance(nn.Module):
    """In training a branch is skipped now and then, and there is another head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.convs = conv(3, 16), nn.ModuleList(conv(16, 16) for _ in range(8))
        self.head, self.other = Head(16), Head(16)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.stem(x)
        for layer in self.convs:
            if not self.training or random.random() < 0.5:
                x = x + F.relu(layer(x))
        return (self.head(x), self.other(x)) if self.training else self.head(x)


def test_a_forward_that_goes_by_chance_is_followed_and_leaves_the_generators_alone() -> None:
    state = random.getstate()
    space = search_space(seeded(ByChance))
    assert [group.name for group in space.groups] == ["stem"]
    assert random.getstate() == state


def test_the_model_given_is_not_changed() -> None:
    model = seeded(SqueezeExcitation).train()
    before = copy.deepcopy(model.state_dict())
    hooks = [len(module._forward_hooks) for module in model.modules()]
    state = torch.get_rng_state()
    space = search_space(model)
    policy = random_policy(space, 0)
    for made in (extract(model, space, policy), mask(model, space, policy)):
        with torch.no_grad():
            for tensor in [*made.parameters(), *made.buffers()]:
                tensor.fill_(7)
    assert all(module.training for module in model.modules())
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert torch.equal(torch.get_rng_state(), state)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert model.conv.out_channels == 32
    assert torch.backends.mha.get_fastpath_enabled()


def test_mode_dtype_format_and_gradients_stay_as_they_were() -> None:
    model = seeded(GroupedConvolutions).double().to(memory_format=torch.channels_last).train()
    model.bn.eval()
    model.stem.weight.requires_grad_(False)
    space = trace(model, torch.zeros(IMAGE, dtype=torch.float64), divisor=2, min_keep_ratio=0.1)
    extracted = extract(model, space, random_policy(space, 0))
    assert {parameter.dtype for parameter in extracted.parameters()} == {torch.float64}
    assert extracted.training
    assert not extracted.bn.training
    assert not extracted.stem.weight.requires_grad
    assert extracted.mix.weight.requires_grad
    assert extracted.grouped.weight.is_contiguous(memory_format=torch.channels_last)
    assert not extracted.grouped.weight.is_contiguous()


def test_the_device_stays_the_same() -> None:
    model = seeded(GroupNorms)
    policy = random_policy(search_space(model), 0)
    model = model.to("meta")
    extracted = extract(model, trace(model, torch.zeros(IMAGE), divisor=2, min_keep_ratio=0.1), policy)
    assert {tensor.device.type for tensor in (*extracted.parameters(), *extracted.buffers())} == {"meta"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpu_traces_and_extracts_the_same() -> None:
    model = seeded(SqueezeExcitation)
    policy = random_policy(search_space(model), 0)
    expected = extract(model, search_space(model), policy)
    model = model.cuda()
    space = trace(model, torch.zeros(IMAGE, device="cuda"), divisor=2, min_keep_ratio=0.1)
    extracted = extract(model, space, policy)
    assert {parameter.device.type for parameter in extracted.parameters()} == {"cuda"}
    for name, tensor in extracted.state_dict().items():
        assert torch.equal(tensor.cpu(), expected.state_dict()[name]), name


def test_ties_stay_ties() -> None:
    model = seeded(TiedWeights)
    space = search_space(model)
    extracted = extract(model, space, random_policy(space, 0))
    assert extracted.one.weight is extracted.two.weight
    assert extracted.one.weight is not model.one.weight


def test_buffers_outside_the_state_dict_are_cut() -> None:
    model = seeded(BufferConstants)
    space = search_space(model)
    policy = random_policy(space, 0)
    extracted = extract(model, space, policy)
    assert len(extracted.blur) == policy.counts["second"]
    assert "blur" not in extracted.state_dict()


def test_attributes_that_name_sizes_are_repaired() -> None:
    model = seeded(GroupNorms)
    space = search_space(model)
    smallest = space.select(space.min_counts, np.zeros(space.num_units))
    extracted = extract(model, space, smallest)
    for name, module in extracted.named_modules():
        if isinstance(module, nn.Conv2d):
            assert (module.out_channels, module.in_channels) == module.weight.shape[:2], name
    assert (extracted.norm.num_groups, extracted.norm.num_channels) == (1, 4)
    assert extracted.bare.num_channels == 4 * extracted.bare.num_groups == extracted.second.out_channels
    assert extracted.instance.num_features == extracted.third.out_channels
    grouped = seeded(GroupedConvolutions)
    space = search_space(grouped)
    extracted = extract(grouped, space, space.select(space.min_counts, np.zeros(space.num_units)))
    assert extracted.grouped.groups == extracted.grouped.in_channels // 8 < 4
    assert extracted.depthwise.groups == extracted.depthwise.in_channels == extracted.depthwise.out_channels // 2


@pytest.mark.parametrize("network", [SqueezeExcitation, GroupedConvolutions, LayerNorms, BufferConstants])
def test_extracted_modules_train_copy_and_export(network: type[nn.Module]) -> None:
    model = seeded(network)
    space = search_space(model)
    extracted = extract(model, space, random_policy(space, 0))
    x = images(*IMAGE)
    twin = copy.deepcopy(extracted)
    exported = torch.export.export(extracted, (x,)).module()
    with torch.no_grad():
        expected = extracted(x)
        assert torch.equal(twin(x), expected)
        assert difference(exported(x), expected) < 1e-5
    extracted.train()
    optimizer = torch.optim.SGD(extracted.parameters(), lr=0.1)
    extracted(x).square().mean().backward()
    assert all(parameter.grad is not None for parameter in extracted.parameters())
    optimizer.step()
    with torch.no_grad():
        assert not torch.equal(extracted.eval()(x), expected)
    copied = extract(model, space, random_policy(space, 0))
    copied.load_state_dict(twin.state_dict())


# What is refused.


def test_a_policy_of_another_network_is_refused() -> None:
    space, other = search_space(seeded(ConvClassifier)), search_space(seeded(FlattenToLinear))
    with pytest.raises(ValueError, match=r"must name groups of this network|must belong to this network"):
        extract(seeded(ConvClassifier), space, random_policy(other, 0))


def test_a_policy_that_empties_a_group_is_refused() -> None:
    model = seeded(ConvClassifier)
    space = search_space(model)
    with pytest.raises(ValueError, match="must keep at least one of its 16 channels, but '0' keeps none"):
        extract(model, space, Policy(space.fingerprint, (("0", ()),)))


def test_a_model_that_was_not_traced_is_refused() -> None:
    model = seeded(ConvClassifier)
    space = search_space(model)
    policy = random_policy(space, 0)
    with pytest.raises(ValueError, match="must be the one its space was traced from"):
        extract(seeded(FlattenToLinear), space, policy)
    with pytest.raises(ValueError, match=r"must be the one its space was traced from, but parameter '0\.weight'"):
        extract(extract(model, space, policy), space, policy)
