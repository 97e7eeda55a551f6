"""What is recorded of a network's layers is what the networks cut from it have."""

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from backends.cifar_resnet import CifarResNet
from backends.groups import trace
from backends.layer_shapes import layer_calls, layer_input, layer_module
from backends.mixed_operation import mixed_operations
from backends.surgery import extract


def traced(model, size):
    example = torch.zeros(2, 3, size, size)
    model.eval()
    return model, trace(model, example, divisor=1, min_keep_ratio=0.1), example


NETWORKS = {
    "resnet20": lambda: traced(CifarResNet(depth=20, num_classes=10), 32),
    "mobilenet_v2": lambda: traced(torchvision.models.mobilenet_v2(), 64),
    "resnext50_32x4d": lambda: traced(torchvision.models.resnext50_32x4d(), 64),
    "squeezenet1_1": lambda: traced(torchvision.models.squeezenet1_1(), 64),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_widths_are_those_of_the_extracted_network(name):
    model, space, example = NETWORKS[name]()
    rng = np.random.default_rng(0)
    counts = np.array([rng.choice(group.counts) for group in space.groups])
    network = extract(model, space, space.select(counts, np.zeros(space.num_units)))
    calls = layer_calls(model, space, example)
    assert [call.name for call in calls] == [layer.name for layer in space.layers]
    for call in calls:
        layer = network.get_submodule(call.name)
        ins, outs = int(call.ins(counts[None])[0]), int(call.outs(counts[None])[0])
        alone = layer_module(call.shape, ins, outs)[0]
        assert str(alone) == str(layer)


def test_norm_and_activation_belong_to_the_layer_that_alone_feeds_them(tiny):
    shapes = {call.name: call.shape for call in layer_calls(tiny.model, tiny.space, torch.zeros(2, 3, 8, 8))}
    assert (shapes["conv1"].norm, shapes["conv1"].activation) == ("batch_norm", "relu")
    assert (shapes["conv2"].norm, shapes["conv2"].activation) == ("batch_norm", "")  # an addition comes first
    assert (shapes["down"].norm, shapes["down"].activation) == ("", "")
    assert (shapes["linear"].kind, shapes["linear"].height) == ("linear", 1)


def test_an_activation_that_others_read_too_is_not_the_layers_own():
    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)
            self.out = nn.Conv2d(8, 4, 1)

        def forward(self, x):
            x = self.conv(x)
            return self.out(torch.sigmoid(x) * x).mean((2, 3))

    model, space, example = traced(Gate(), 8)
    assert layer_calls(model, space, example)[0].shape.activation == ""


def test_a_layer_run_twice_is_two_calls():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, padding=1)
            self.conv = nn.Conv2d(8, 8, 3, padding=1)
            self.linear = nn.Linear(8, 4)

        def forward(self, x):
            return self.linear(self.conv(self.conv(self.stem(x))).mean((2, 3)))

    model, space, example = traced(Twice(), 8)
    assert [call.name for call in layer_calls(model, space, example)] == ["stem", "conv", "conv", "linear"]


def test_a_layer_alone_runs_on_its_input(tiny):
    for call in layer_calls(tiny.model, tiny.space, torch.zeros(2, 3, 8, 8)):
        output = layer_module(call.shape, 6, 5)(layer_input(call.shape, 6, batch_size=3))
        assert output.shape[:2] == (3, 5)


def test_transposed_convolutions_are_refused_by_name():
    class Up(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)
            self.up = nn.ConvTranspose2d(8, 4, 2)

        def forward(self, x):
            return self.up(self.conv(x)).mean((2, 3))

    model, space, example = traced(Up(), 8)
    with pytest.raises(ValueError, match=r"'up' is transposed; limit another resource"):
        layer_calls(model, space, example)


def test_the_global_generator_and_the_model_are_left_alone(tiny):
    before, state = torch.random.get_rng_state(), [tensor.clone() for tensor in tiny.model.state_dict().values()]
    for call in layer_calls(tiny.model, tiny.space, torch.zeros(2, 3, 8, 8)):
        layer_module(call.shape, 6, 5)
        layer_input(call.shape, 6, batch_size=1)
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(state, tiny.model.state_dict().values(), strict=True))


def test_a_layer_that_cannot_be_followed_is_refused_not_left_out():
    class Standardised(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.linear = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

        def forward(self, x):
            return self.linear(self.conv(x).mean((2, 3)))

    _, space, example = traced(Standardised(), 8)

    class Computed(Standardised):
        def forward(self, x):
            weight = self.conv.weight - self.conv.weight.mean()
            return self.linear(nn.functional.conv2d(x, weight, self.conv.bias).mean((2, 3)))

    with pytest.raises(ValueError, match=r"must know every layer, but conv can't be followed"):
        layer_calls(Computed().eval(), space, example)


def test_a_network_that_refuses_a_single_image_is_followed_on_the_batch():
    class Picky(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.linear = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

        def forward(self, x):
            if len(x) == 1:
                raise ValueError("needs two images")
            return self.linear(self.conv(x).mean((2, 3)))

    model, space, example = traced(Picky(), 8)
    assert [(call.name, call.shape.height) for call in layer_calls(model, space, example)] == [
        ("conv", 8),
        ("linear", 1),
    ]


def test_layers_of_every_candidate_are_there_for_their_operation_alone(mbconv):
    calls = layer_calls(mbconv.model, mbconv.space, torch.zeros(2, 3, 8, 8))
    assert sorted(call.name for call in calls) == sorted(layer.name for layer in mbconv.space.layers)
    for call in calls:
        layer = mbconv.space.layer_by_name[call.name]
        assert (call.shape.height, call.shape.kernel[:1]) == (
            layer.height,
            (layer.kernel_size,)[: len(call.shape.kernel)],
        )
        if call.block < 0:
            assert "candidates" not in call.name
        else:
            block = mbconv.space.blocks[call.block]
            assert call.name.startswith(f"{block.operations[call.operation].modules[0]}.")
    # What follows a candidate's layers is seen where it is the active one.
    followed = {call.shape.activation for call in calls if call.name.endswith("depthwise.conv")}
    assert followed == {"hardtanh"}
    assert all(candidate.active == 0 for candidate in mixed_operations(mbconv.model).values())


def test_layers_of_a_block_that_may_be_skipped_are_there_where_it_is_kept():
    model, example = CifarResNet(depth=8, num_classes=10).eval(), torch.zeros(2, 3, 32, 32)
    space = trace(model, example, divisor=1, min_keep_ratio=0.1, skip_blocks=True)
    calls = layer_calls(model, space, example)
    assert [call.name for call in calls] == [layer.name for layer in space.layers]
    owners = {call.name: (call.block, call.operation) for call in calls}
    assert owners["layer1.0.conv1"] == owners["layer1.0.conv2"] == (0, 0)
    assert owners["conv1"] == owners["layer2.0.conv1"] == (-1, 0)
