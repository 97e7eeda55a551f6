"""Networks whose modules hold sizes as plain numbers: these follow the channels that they count."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from backends.data import TensorSplit
from backends.execution import choose_execution
from backends.groups import trace
from backends.least_squares import LeastSquaresRecovery
from backends.macs import MacsCost, ParamsCost
from backends.sequential_least_squares import SequentialLeastSquaresRecovery
from backends.surgery import extract, mask
from backends.workers import Workers
from compsearch.space import Policy, SearchSpace

IMAGE = (2, 3, 16, 16)


class Blur(nn.Module):
    """A fixed filter on each of a held number of channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.register_buffer("filter", torch.full((channels, 1, 3, 3), 1 / 9), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, [1] * 4, mode="reflect"), self.filter, stride=2, groups=self.channels)


class Cascade(nn.Module):
    """Equal parts of a held width, each convolved after the one before was added."""

    def __init__(self, channels: int, parts: int) -> None:
        super().__init__()
        self.width = channels // parts
        self.convs = nn.ModuleList(nn.Conv2d(self.width, self.width, 3, padding=1) for _ in range(parts - 1))

    def forward(self, x: Tensor) -> Tensor:
        first, *rest = torch.split(x, self.width, 1)
        done = [first]
        for conv, part in zip(self.convs, rest, strict=True):
            done.append(F.relu(conv(done[-1] + part)))
        return torch.cat(done, 1)


class Kernels(nn.Module):
    """Parts of held sizes, two of which are equal, with a depthwise convolution of another kernel each."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self.sizes = sizes
        self.convs = nn.ModuleList(
            nn.Conv2d(size, size, 2 * place + 1, padding=place, groups=size) for place, size in enumerate(sizes)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([conv(part) for conv, part in zip(self.convs, x.split(self.sizes, 1), strict=True)], 1)


class Partial(nn.Module):
    """Convolves some of the channels; both numbers are held, and one that only happens to be all channels' number."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.some, self.others, self.seed = channels // 4, channels - channels // 4, channels
        self.conv = nn.Conv2d(self.some, self.some, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        some, others = torch.split(x, [self.some, self.others], 1)
        return torch.cat([self.conv(some), others], 1)


class Widening(nn.Module):
    """A shortcut to the first channels of a wider output."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.inputs = inputs
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv(x)
        return torch.cat([out[:, : self.inputs] + x, out[:, self.inputs :]], 1)


class Halves(nn.Module):
    """Splits its inputs by their held number, which its outputs have too."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.out_channels, self.in_channels = channels, channels
        self.left, self.right = (nn.Conv2d(channels // 2, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        left, right = torch.split(x, self.in_channels // 2, 1)
        return F.relu(self.left(left) + self.right(right))


class ChannelsNorm(nn.LayerNorm):
    """A norm over channels by a shape that surgery knows, in a class that tracers look into."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class Scale(nn.Module):
    """A weight per channel, viewed by a held shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shape = (channels, 1, 1)
        self.scale = nn.Parameter(torch.rand(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale.view(self.shape)


def network(middle: nn.Module, outputs: int = 16) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for parameter in middle.parameters():
            nn.init.normal_(parameter, std=0.3)
        ends = (nn.Conv2d(3, 16, 3, padding=1), nn.ReLU()), (nn.Conv2d(outputs, 12, 3, padding=1), nn.Conv2d(12, 10, 3))
        return nn.Sequential(*ends[0], middle, *ends[1]).eval()


def search_space(model: nn.Module, divisor: int = 2) -> SearchSpace:
    return trace(model, torch.zeros(IMAGE), divisor=divisor, min_keep_ratio=0.1)


def random_policy(space: SearchSpace, seed: int) -> Policy:
    rng = np.random.default_rng(seed)
    return space.select([rng.choice(group.counts) for group in space.groups], rng.random(space.num_units))


HOLDERS = [
    (lambda: Blur(16), 16),
    (lambda: Cascade(16, 4), 16),
    (lambda: Kernels([4, 8, 4]), 16),
    (lambda: Partial(16), 16),
    (lambda: Widening(16, 28), 28),
    (lambda: Halves(16), 16),
    (lambda: Scale(16), 16),
]


@pytest.mark.parametrize("divisor", [1, 2])
@pytest.mark.parametrize(("middle", "outputs"), HOLDERS)
def test_held_sizes_follow_the_channels_that_are_left(middle: type[nn.Module], outputs: int, divisor: int) -> None:
    model = network(middle(), outputs)
    space = search_space(model, divisor)
    assert {frozen.reason for frozen in space.frozen} == {"reaches the network's output"}
    x = torch.randn(IMAGE, generator=torch.Generator().manual_seed(1))
    smallest = space.select(space.min_counts, np.zeros(space.num_units))
    for policy in (*(random_policy(space, seed) for seed in range(4)), smallest):
        extracted = extract(model, space, policy)
        with torch.no_grad():
            ours, reference = extracted(x), mask(model, space, policy)(x)
        assert (ours - reference).abs().max() < 1e-5 * reference.abs().max()
        with FlopCounterMode(display=False) as counter:
            extracted(x[:1])
        assert MacsCost(space).cost(policy) == counter.get_total_flops() / 2
        assert ParamsCost(space).cost(policy) == sum(parameter.numel() for parameter in extracted.parameters())


def test_extracted_modules_hold_the_new_sizes_and_the_dense_one_its_own() -> None:
    sizes = [4, 8, 4]
    model = network(nn.Sequential(Kernels(sizes), Blur(16)))
    space = search_space(model)
    extracted = extract(model, space, space.select(space.min_counts, np.zeros(space.num_units)))
    kernels, blur = extracted[2]
    assert kernels.sizes == [conv.in_channels for conv in kernels.convs] != sizes
    assert blur.channels == sum(kernels.sizes) == len(blur.filter)
    assert model[2][0].sizes is sizes
    assert (sizes, model[2][1].channels) == ([4, 8, 4], 16)
    twin = copy.deepcopy(extracted).train()
    twin(torch.zeros(IMAGE)).sum().backward()
    assert all(parameter.grad is not None for parameter in twin.parameters())


class Twist(nn.Module):
    """Needs its held number of channels to run at all, and uses it, or what else it holds, for something else too."""

    def __init__(self, twist: Callable[[Twist, Tensor, Tensor], Tensor], **numbers: object) -> None:
        super().__init__()
        self.twist, self.channels, self.outputs, self.squeezed = twist, 16, 16, nn.Conv2d(16, 4, 1)
        for name, value in numbers.items():
            setattr(self, name, value)
        self.register_buffer("filter", torch.ones(16, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.twist(self, x, F.conv2d(x, self.filter, groups=self.channels, padding=1))


TWISTS = {
    "a condition on two sizes": lambda m, x, y: x + y if m.channels == m.outputs else y,
    "a condition on one": lambda m, x, y: y.relu() if m.channels >= 10 else y,
    "a dilation": lambda m, x, y: F.max_pool2d(y, 3, 1, 1, m.channels // 8),
    "a shift": lambda m, x, y: y.roll(m.channels // 2, 2),
    "a divisor": lambda m, x, y: F.avg_pool2d(y, 2, divisor_override=m.channels),
    "a number in a tensor": lambda m, x, y: y / torch.tensor([float(m.channels)]),
    "a fill": lambda m, x, y: y / torch.full((1,), float(m.channels)),
    "a constant of as many entries": lambda m, x, y: y + torch.arange(float(m.channels)).sum(),
    "another entry of a list": lambda m, x, y: (
        F.conv2d(x, m.filter, groups=m.sizes[0]).roll(m.sizes[1], 2)
        + m.squeezed(x[..., :14, :14]).mean(1, keepdim=True)
    ),
}


@pytest.mark.parametrize("name", TWISTS)
def test_a_number_that_is_more_than_a_count_of_channels_changes_nothing(name: str) -> None:
    model = network(Twist(TWISTS[name], sizes=[16, 4]))
    space = search_space(model)
    x = torch.randn(IMAGE, generator=torch.Generator().manual_seed(1))
    for seed in range(4):
        policy = random_policy(space, seed)
        with torch.no_grad():
            ours, reference = extract(model, space, policy)(x), mask(model, space, policy)(x)
        assert (ours - reference).abs().max() < 1e-5 * reference.abs().max()


def test_what_one_module_holds_is_not_taken_over_where_it_means_something_else() -> None:
    counts = Twist(lambda m, x, y: y)
    shifts = Twist(lambda m, x, y: x.roll(m.number, 2), number=16)
    shifts.channels, shifts.forward = 1, lambda x: shifts.twist(shifts, x, x)
    counts.number = 4
    model = network(nn.Sequential(counts, shifts))
    space = search_space(model)
    assert {site.parameter for site in space.size_sites} == {"2.0.channels"}


def test_of_as_many_channels_those_are_found_that_the_number_counts() -> None:
    """With one smaller count everywhere, removing channels of all groups cannot tell inputs from outputs."""
    space = trace(network(Halves(16)), torch.zeros(IMAGE), divisor=8, min_keep_ratio=0.1, min_choices=2)
    assert [(group.size, group.width, group.counts) for group in space.groups[:2]] == [(8, 2, (4, 8)), (16, 1, (8, 16))]
    counted = {site.parameter: set(site.units.tolist()) for site in space.size_sites}
    assert counted == {"2.in_channels": set(range(8))}


def test_a_number_that_counts_nothing_stays_as_it_is() -> None:
    model = network(Partial(16))
    space = search_space(model)
    assert {site.parameter for site in space.size_sites} == {"2.some", "2.others"}
    assert extract(model, space, space.select(space.min_counts, np.zeros(space.num_units)))[2].seed == 16


class Literal(nn.Module):
    """The size is in the code; the number that is held is another that happens to be equal."""

    def __init__(self) -> None:
        super().__init__()
        self.seed = 8

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.split(8, 1)
        return torch.cat([right, left], 1) * self.seed


class Shared(nn.Module):
    """Swaps a number of channels by position, though nothing tells them from the others."""

    def __init__(self) -> None:
        super().__init__()
        self.some, self.others = 6, 10

    def forward(self, x: Tensor) -> Tensor:
        some, others = x.split([self.some, self.others], 1)
        return torch.cat([others, some], 1)


@pytest.mark.parametrize("middle", [Literal(), Shared()], ids=["literal", "shared"])
def test_channels_are_frozen_where_no_held_number_counts_them(middle: nn.Module) -> None:
    space = search_space(network(middle))
    assert [group.name for group in space.groups] == ["3"]
    assert not space.size_sites


def classifier(middle: nn.Module, outputs: int) -> nn.Module:
    return nn.Sequential(network(middle, outputs), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def calibration() -> TensorSplit:
    images = torch.randn(48, *IMAGE[1:], generator=torch.Generator().manual_seed(2))
    labels = torch.zeros(48, dtype=torch.int64)
    return TensorSplit(name="calibration", images=images, labels=labels, normalisation=None, augmentation=None)


@pytest.mark.parametrize("recovery", [LeastSquaresRecovery, SequentialLeastSquaresRecovery])
@pytest.mark.parametrize(("middle", "outputs"), [*HOLDERS, (lambda: ChannelsNorm(16), 16)])
def test_least_squares_brings_networks_of_any_sizes_nearer_to_the_dense_one(
    middle: type[nn.Module], outputs: int, recovery: type
) -> None:
    model, split = classifier(middle(), outputs), calibration()
    space = search_space(model)
    own = {"max_gram_gib": 1.0} if recovery is LeastSquaresRecovery else {"max_gib": 1.0, "rectifications": 0}
    given = {"model": model, "space": space, "calibration": split, "device": torch.device("cpu"), "seed": 0}
    recover = recovery(**given, positions_per_image=64, ridge=1e-6, batch_size=16, **own)
    errors = []
    with torch.no_grad():
        wanted = model(split.images)
        for seed in range(4):
            policy = random_policy(space, seed)
            cut, recovered = extract(model, space, policy), extract(model, space, policy)
            recover(recovered, policy)
            errors.append([float((each(split.images) - wanted).square().mean()) for each in (cut, recovered)])
    before, after = np.mean(errors, axis=0)
    assert after < before


@pytest.mark.parametrize(("middle", "outputs"), [*HOLDERS, (lambda: ChannelsNorm(16), 16)])
def test_networks_of_any_sizes_are_run_as_they_are(middle: type[nn.Module], outputs: int) -> None:
    model, workers = classifier(middle(), outputs), Workers(1)
    space = search_space(model)
    images = [batch.to(memory_format=torch.channels_last) for batch in calibration().images.split(16)]
    checked, full = (extract(model, space, policy) for policy in (random_policy(space, 0), space.full_policy()))
    execution = choose_execution(checked, full, images, workers, torch.float32)
    for seed in range(1, 4):
        extracted = extract(model, space, random_policy(space, seed))
        logits, _ = execution.logits(extracted, images, workers)
        torch.testing.assert_close(logits, extracted(torch.cat(images)).detach(), rtol=1e-4, atol=1e-5)
