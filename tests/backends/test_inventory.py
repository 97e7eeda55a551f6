from __future__ import annotations

import dataclasses
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from backends.cifar_resnet import CifarResNet
from backends.groups import trace
from backends.inventory import Inventory, take_inventory
from backends.operation_surgery import OperationSurgery
from backends.recording import Recording, record
from backends.surgery import extract
from compsearch.space import Block, Operation, Policy, SearchSpace

AMOUNTS = ("activations_read", "elements_written", "alive")


def random_policy(space: SearchSpace, seed: int) -> Policy:
    rng = np.random.default_rng(seed)
    return space.select([rng.choice(group.counts) for group in space.groups], rng.random(space.num_units))


def recorded(model: nn.Module, space: SearchSpace, policy: Policy, x: Tensor) -> Recording:
    """What really happens when the extracted network sees one image."""
    layers = {layer.parameter: layer.name for layer in space.layers}
    return record(extract(model, space, policy).eval(), (x[:1],), layers)


def assert_exact(model: nn.Module, space: SearchSpace, inventory: Inventory, x: Tensor) -> None:
    for seed in range(2):
        policy = random_policy(space, seed)
        recording = recorded(model, space, policy, x)
        assert recording.ops == inventory.ops
        assert recording.layer_names == inventory.layer_names
        for name in AMOUNTS:
            told = getattr(inventory, name)(space.counts(policy)[None])[0]
            assert told.tolist() == getattr(recording, name).tolist(), name


class Chain(nn.Module):
    """Two convolutions on 5×5 images and a linear layer, with everything done in between in a known way."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.linear = nn.Conv2d(8, 4, 1), nn.Linear(4 * 25, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.norm(self.conv1(x)))
        return self.linear(torch.flatten(self.conv2(x), 1))


def test_a_chain_by_hand() -> None:
    space = trace(Chain(), torch.zeros(2, 3, 5, 5), divisor=1, min_keep_ratio=0.1)
    inventory = take_inventory(Chain(), space, torch.zeros(2, 3, 5, 5))
    assert inventory.ops == ("convolution", "native_batch_norm", "relu_", "convolution", "addmm")
    assert inventory.layer_names == ("conv1", "", "", "conv2", "linear")
    assert inventory.places == ("conv1", "norm", "", "conv2", "linear")
    assert inventory.num_kernels == 5
    [read], [constants], [written], [alive] = (
        amount(np.array([[6, 3]]))
        for amount in (
            *(inventory.activations_read, inventory.constants_read),
            *(inventory.elements_written, inventory.alive),
        )
    )
    image, first, second = 3 * 25, 6 * 25, 3 * 25
    assert read.tolist() == [image, first, first, first, second]
    assert constants.tolist() == [0, 4 * 6, 0, 0, 0]
    assert written.tolist() == [first, first, first, second, 2]
    # relu_ works on the norm's result; the flattened view keeps the second convolution's alive.
    assert alive.tolist() == [image + first, first + first, first, first + second, second + 2]
    counts = np.array([[6, 3], [8, 4]])
    assert inventory.other_traffic(counts)[:, 0].tolist() == [4 * 150 + 24, 4 * 200 + 32]
    assert inventory.activation_traffic(counts)[0, 0] == (read + written).sum()


@pytest.mark.parametrize(
    "name",
    [
        *("resnet18", "mobilenet_v2", "shufflenet_v2_x0_5", "squeezenet1_1"),
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("convnext_tiny", "densenet121", "efficientnet_b0", "swin_t")
        ),
    ],
)
def test_the_inventory_of_torchvision_networks_is_what_extracted_networks_really_do(name: str) -> None:
    model = torchvision.models.get_model(name, weights=None).eval()
    x = torch.zeros(2, 3, 64, 64)
    space = trace(model, x, divisor=8, min_keep_ratio=0.1)
    inventory = take_inventory(model, space, x)
    assert {layer for layer in inventory.layer_names if layer} == set(space.layer_by_name)
    assert_exact(model, space, inventory, x)


def test_the_inventory_of_residual_networks_is_what_extracted_networks_really_do() -> None:
    model, x = CifarResNet(20).eval(), torch.zeros(2, 3, 32, 32)
    space = trace(model, x, divisor=4, min_keep_ratio=0.1)
    assert_exact(model, space, take_inventory(model, space, x), x)


class Reader(nn.Module):
    """A forward that asks for values, which shapes cannot answer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 8, 3), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        scale = 2.0 if float(x.abs().max()) < 1e9 else 1.0
        return self.linear((self.conv(x) * scale).mean((2, 3)))


def test_a_forward_that_reads_values_is_run_for_real() -> None:
    model, x = Reader().eval(), torch.ones(2, 3, 8, 8)
    space = trace(model, x, divisor=1, min_keep_ratio=0.1)
    inventory = take_inventory(model, space, x)
    assert "_local_scalar_dense" in inventory.ops
    assert_exact(model, space, inventory, x)


class Pair(nn.Module):
    """A forward that compares the images of a batch with each other."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 8, 3), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) < 2:
            raise RuntimeError("needs two images")
        return self.linear(F.relu(self.conv(x)).mean((2, 3)))


def test_a_forward_that_refuses_one_image_counts_per_image_nevertheless() -> None:
    x = torch.zeros(4, 3, 8, 8)
    space = trace(Pair(), x, divisor=1, min_keep_ratio=0.1)
    inventory = take_inventory(Pair(), space, x)
    assert inventory.ops[:2] == ("convolution", "relu")
    assert inventory.elements_written(np.array([[5]]))[0, :2].tolist() == [5 * 36, 5 * 36]
    assert inventory.alive(np.array([[5]]))[0, :2].tolist() == [3 * 64 + 5 * 36, 2 * 5 * 36]


class Memories(nn.Module):
    """What is alive when: a shortcut over two operations, a part written in place, indices, an input read late."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.register = nn.Conv2d(2, 4, 1), None
        self.register_buffer("shift", torch.ones(1, 1, 4, 4))
        self.linear = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.conv(x)
        z = F.max_pool2d(y, 2)
        x[:, 0].zero_()
        y = y + self.shift.expand(1, 4, 4, 4)
        early = y.sum(1)
        return early, self.linear(z.mean((2, 3)))


def test_memory_is_alive_from_its_making_to_its_last_use() -> None:
    recording = record(Memories().eval(), (torch.zeros(1, 2, 4, 4),), {"conv.weight": "conv", "linear.weight": "fc"})
    assert recording.ops == ("convolution", "max_pool2d_with_indices", "zero_", "add", "sum", "mean", "addmm")
    x, y, z, indices, early = 32, 64, 16, 2 * 16, 16
    assert recording.alive.tolist() == [
        x + y,
        x + y + z + indices,
        x + y + z,
        y + z + y,
        z + y + early,
        z + early + 4,
        early + 4 + 2,
    ]
    # zero_ does not look at what it writes over, and an expanded buffer is read once.
    assert recording.activations_read.tolist() == [x, y, 0, y, y, z, 4]
    assert recording.constants_read.tolist() == [8 + 4, 0, 0, 16, 0, 0, 8 + 2]
    assert recording.elements_written.tolist() == [y, z + indices, 16, y, early, 4, 2]


class Quadratic(nn.Module):
    """Fills a square as wide as its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.linear = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 8, 3), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = self.conv2(x + torch.zeros(x.shape[1], x.shape[1], device=x.device).sum())
        return self.linear(x.mean((2, 3)))


def test_amounts_that_do_not_grow_linearly_are_refused_by_name() -> None:
    x = torch.zeros(2, 3, 8, 8)
    space = trace(Quadratic(), x, divisor=1, min_keep_ratio=0.1)
    assert "conv1" in {group.name for group in space.groups}
    with pytest.raises(ValueError, match=r"grow linearly .* for sum in the forward .* set a budget in macs") as caught:
        take_inventory(Quadratic(), space, x)
    assert "\n" not in str(caught.value)


class Rearranging(nn.Module):
    """Copies its channels into another order, for which there is no need when one is left."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 8, 3), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.conv(x).flatten(2).transpose(1, 2).contiguous()).mean(1)


def test_operations_that_depend_on_width_are_refused_by_name() -> None:
    x = torch.zeros(2, 3, 8, 8)
    space = trace(Rearranging(), x, divisor=1, min_keep_ratio=0.1)
    with pytest.raises(ValueError, match=r"clone in the forward becomes addmm in linear when conv keeps 1 of 8; "):
        take_inventory(Rearranging(), space, x)
    wider = trace(Rearranging(), x, divisor=1, min_keep_ratio=0.25)
    assert_exact(Rearranging(), wider, take_inventory(Rearranging(), wider, x), x)


def test_a_model_that_does_not_run_is_refused_in_one_line() -> None:
    space = trace(Chain(), torch.zeros(1, 3, 5, 5), divisor=1, min_keep_ratio=0.1)
    with pytest.raises(ValueError, match="must run on the example input, but raises RuntimeError") as caught:
        take_inventory(Chain(), space, torch.zeros(1, 3, 6, 6))
    assert "\n" not in str(caught.value)


def test_taking_an_inventory_changes_neither_model_nor_input() -> None:
    model, x = CifarResNet(8).train(), torch.ones(2, 3, 32, 32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    space = trace(model, x, divisor=4, min_keep_ratio=0.1)
    take_inventory(model, space, x)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(x, torch.ones(2, 3, 32, 32))


def test_misshapen_counts_are_refused() -> None:
    space = trace(Chain(), torch.zeros(1, 3, 5, 5), divisor=1, min_keep_ratio=0.1)
    inventory = take_inventory(Chain(), space, torch.zeros(1, 3, 5, 5))
    with pytest.raises(ValueError, match=r"counts must be \[num_policies, 2\], but got \[2\]"):
        inventory.alive(space.sizes)


@pytest.mark.parametrize("name", ["resnet20", pytest.param("mobilenet_v2", marks=pytest.mark.slow)])
def test_the_inventory_of_networks_with_skipped_blocks_is_what_extracted_networks_really_do(name: str) -> None:
    model = (CifarResNet(20) if name == "resnet20" else torchvision.models.get_model(name, weights=None)).eval()
    x = torch.zeros(2, 3, 32, 32)
    space = trace(model, x, divisor=8, min_keep_ratio=0.2, skip_blocks=True)
    assert len(space.blocks) > 5
    inventory = take_inventory(model, space, x)
    rng, kernels = np.random.default_rng(0), []
    for _ in range(3):
        counts = [rng.choice(group.counts) for group in space.groups]
        policy = space.select(counts, rng.random(space.num_units), rng.integers(2, size=len(space.blocks)))
        assert_moves(inventory, space, policy, recorded(model, space, policy, x))
        kernels.append(len(recorded(model, space, policy, x).ops))
    assert max(kernels) < inventory.num_kernels
    # With every block there, operations may be left out.
    assert inventory.alive(space.sizes[None]).tolist() == inventory.alive(space.dense_choices[None]).tolist()


def assert_moves(inventory: Inventory, space: SearchSpace, policy: Policy, recording: Recording) -> None:
    """That all operations together move what was recorded, and as much is alive when most is."""
    choices = space.choices(policy)[None]
    moved = recording.activations_read + recording.elements_written
    assert inventory.activation_traffic(choices)[0, 0] == moved.sum()
    is_layer = np.array([bool(name) for name in recording.layer_names])
    assert inventory.other_traffic(choices)[0, 0] == (moved + recording.constants_read)[~is_layer].sum()
    assert inventory.alive(choices).max() == recording.alive.max()


class Skipping(nn.Module):
    """Blocks whose shortcuts are added in the same forward, around functions that run skipped or not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.linear = nn.Conv2d(3, 8, 3), nn.Linear(8, 2)
        self.conv1, self.conv2 = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 8, 1)
        self.conv3, self.conv4 = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = x + self.conv2(F.relu(self.conv1(x)))
        x = x + self.conv4(F.relu(self.conv3(x)))
        return self.linear(x.mean((2, 3)))


def test_a_function_between_layers_that_are_skipped_moves_what_it_is_then_given() -> None:
    x = torch.zeros(1, 3, 6, 6)
    space = trace(Skipping(), x, divisor=1, min_keep_ratio=0.1, skip_blocks=True)
    assert [group.name for group in space.groups] == ["stem", "conv1", "conv3"]
    inventory = take_inventory(Skipping(), space, x)
    for counts, operations in itertools.product(
        ([8, 16, 4], [3, 5, 2], [2, 2, 1]), itertools.product(range(2), repeat=2)
    ):
        policy = space.select(counts, np.zeros(space.num_units), operations)
        assert_moves(inventory, space, policy, recorded(Skipping(), space, policy, x))


def test_the_inventory_of_an_over_parameterised_network_is_what_derived_networks_really_do(
    mbconv: SimpleNamespace,
) -> None:
    model, space, x = mbconv.model, mbconv.space, torch.zeros(2, 3, 8, 8)
    inventory = take_inventory(model, space, x)
    rng = np.random.default_rng(0)
    for _ in range(5):
        operations = [int(rng.integers(len(block.operations))) for block in space.blocks]
        policy = space.select([], np.zeros(0), operations)
        derived = OperationSurgery()(model, space, policy)
        layers = {
            f"{name}.weight": name for name, part in derived.named_modules() if isinstance(part, nn.Conv2d | nn.Linear)
        }
        assert_moves(inventory, space, policy, record(derived.eval(), (x[:1],), layers))


class Interleaved(nn.Module):
    """Two branches that run by turns, so that what one keeps alive is there while the other runs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.linear = nn.Conv2d(3, 8, 3), nn.Linear(8, 2)
        self.conv1, self.conv2 = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 8, 1)
        self.conv3, self.conv4 = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        one, other = F.relu(self.conv1(x)), F.relu(self.conv3(x))
        x = x + self.conv2(one) + self.conv4(other)
        return self.linear(x.mean((2, 3)))


def test_blocks_that_change_what_happens_in_each_other_are_refused() -> None:
    x = torch.zeros(1, 3, 6, 6)
    space = trace(Interleaved(), x, divisor=1, min_keep_ratio=0.1)
    blocks = tuple(
        Block(modules[0], (Operation("keep", modules), Operation("zero")))
        for modules in (("conv1", "conv2"), ("conv3", "conv4"))
    )
    with pytest.raises(ValueError, match=r"need blocks whose operations change nothing beside them, .* alive is"):
        take_inventory(Interleaved(), dataclasses.replace(space, blocks=blocks), x)
