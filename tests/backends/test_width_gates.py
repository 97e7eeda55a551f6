"""Gates on widths: what a path computes, what its gates' gradients are, and what a step may move."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from backends.cifar_resnet import CifarResNet
from backends.groups import trace
from backends.importance import l1_inputs
from backends.seeding import isolated_rng
from backends.surgery import extract
from backends.width_gates import WidthGates
from backends.zoo import torchvision_model
from compsearch.space import Block, IntArray, Operation, SearchSpace

RATIOS = [1.0, 0.75, 0.5, 0.25]
KEPT = Operation("keep", ("layer1.0.conv1", "layer1.0.bn1", "layer1.0.conv2", "layer1.0.bn2"))
SKIPPABLE = Block("layer1.0", (KEPT, Operation("zero")))


def with_block(space: SearchSpace) -> SearchSpace:
    return dataclasses.replace(space, blocks=(SKIPPABLE,))


def resnet() -> tuple[nn.Module, SearchSpace, Tensor]:
    with isolated_rng(0):
        model = CifarResNet(8).double().eval()
        images = torch.randn(6, 3, 16, 16, dtype=torch.float64)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.5, 0.5)
    space = trace(model, images.float().double(), divisor=1, min_keep_ratio=0.1)
    return model, with_block(space), images


def gates_of(model: nn.Module, space: SearchSpace) -> WidthGates:
    return WidthGates(model=model, space=space, importance=l1_inputs(model, space), keep_ratios=RATIOS)


def random_path(gates: WidthGates, seed: int) -> IntArray:
    rng = np.random.default_rng(seed)
    return np.array([rng.integers(size) for size in gates.candidates.sizes])


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v2", pytest.param("densenet121", marks=pytest.mark.slow), "shufflenet_v2_x0_5"]
)
def test_a_path_computes_what_the_extracted_network_computes(name: str) -> None:
    with isolated_rng(0):
        model = torchvision_model(name=name, num_classes=10).eval()
        images = torch.randn(2, 3, 64, 64)
    space = trace(model, images, divisor=8, min_keep_ratio=0.1)
    gates = gates_of(model, space)
    gates.network.eval()
    path = random_path(gates, 1)
    policy = gates.candidates.policy(path, l1_inputs(model, space).scores())
    with torch.no_grad():
        told, found = gates.logits(images, path), extract(model, space, policy)(images)
    torch.testing.assert_close(told, found, atol=1e-4 * float(found.abs().max()), rtol=0)


def hooked_loss(model: CifarResNet, space: SearchSpace, images: Tensor, labels: Tensor) -> Callable[..., float]:
    """The loss as a function of gates that are numbers, by hooks on activations rather than masks on weights."""
    scores = l1_inputs(model, space).scores()

    def loss(values: np.ndarray, gates: np.ndarray) -> float:
        units = np.zeros(space.num_units)
        for index, group in enumerate(space.groups):
            start = int(space.offsets[index])
            order = np.argsort(-scores[start : start + group.size], kind="stable")
            for count, gate in zip(values[index], gates[index], strict=True):
                units[start + order[: max(count, 0)]] += gate
        handles: list[RemovableHandle] = []
        readers = {site.parameter.removesuffix(".weight"): site for site in space.sites if site.dim == 1}
        for name, module in model.named_modules():
            if name in readers and isinstance(module, nn.Conv2d | nn.Linear):
                mask = torch.from_numpy(np.append(units, 1.0)[readers[name].units])

                def scale(module: nn.Module, inputs: tuple[Tensor], mask: Tensor = mask) -> tuple[Tensor]:
                    x = inputs[0]
                    return (x * mask.view(1, -1, *[1] * (x.dim() - 2)),)

                handles.append(module.register_forward_pre_hook(scale))
        keep = gates[len(space.groups), 0]
        handles.append(model.layer1[0].bn2.register_forward_hook(lambda module, inputs, output: output * keep))
        with torch.no_grad():
            found = float(F.cross_entropy(model(images), labels))
        for handle in handles:
            handle.remove()
        return found

    return loss


@pytest.mark.parametrize("seed", range(3))
def test_gradients_of_all_gates_are_those_of_finite_differences(seed: int) -> None:
    model, space, images = resnet()
    model.train()
    labels = torch.arange(6) % 10
    gates = gates_of(model, space)
    path = random_path(gates, seed)
    path[-1] = 0  # where a block is skipped, the ReLU behind it stands on its kink wherever the shortcut is 0
    is_one = gates.candidates.is_one
    logits, gradients = gates.logits_with_gates(images, path, is_one)
    F.cross_entropy(logits, labels).backward()
    found = gradients()
    values = gates.candidates.values
    active = np.zeros(values.shape)
    active[np.arange(len(path)), path] = 1.0
    loss = hooked_loss(model, space, images, labels)
    step = 1e-6
    for choice, candidate in zip(*is_one.nonzero(), strict=True):
        up, down = active.copy(), active.copy()
        up[choice, candidate] += step
        down[choice, candidate] -= step
        expected = (loss(values, up) - loss(values, down)) / (2 * step)
        assert found[choice, candidate] == pytest.approx(expected, abs=2e-7, rel=1e-4), gates.candidates.names[choice]


def test_only_wanted_gates_have_gradients() -> None:
    model, space, images = resnet()
    gates = gates_of(model, space)
    wanted = gates.candidates.is_one & (np.arange(4) < 2)
    logits, gradients = gates.logits_with_gates(images, random_path(gates, 0), wanted)
    logits.sum().backward()
    found = gradients()
    assert (found[~wanted] == 0).all()
    assert np.abs(found[wanted]).sum() > 0


def test_a_look_at_the_gates_leaves_weights_without_gradients_and_trainable() -> None:
    model, space, images = resnet()
    gates = gates_of(model, space)
    logits, _ = gates.logits_with_gates(images, random_path(gates, 0), gates.candidates.is_one)
    logits.sum().backward()
    assert all(parameter.grad is None and parameter.requires_grad for parameter in gates.network.parameters())


def test_the_model_given_is_left_alone() -> None:
    model, space, images = resnet()
    gates = gates_of(model, space)
    with torch.no_grad():
        for parameter in gates.network.parameters():
            parameter.zero_()
        assert model(images).abs().sum() > 0
    assert not any(module._forward_hooks for module in model.modules())


def test_what_a_step_may_move_are_the_entries_of_kept_channels() -> None:
    model, space, _ = resnet()
    gates = gates_of(model, space)
    path = random_path(gates, 3)
    path[-1] = 0
    kept = space.keep_mask(gates.candidates.policy(path, l1_inputs(model, space).scores()))
    movable = gates.movable(path)
    parameters = dict(model.named_parameters())
    assert movable.keys() == parameters.keys()
    for name, parameter in parameters.items():
        expected = torch.ones(parameter.shape, dtype=torch.bool)
        for site in space.sites:
            if site.parameter == name:
                dropped = torch.from_numpy((site.units >= 0) & ~np.append(kept, True)[site.units])
                expected.index_fill_(site.dim, dropped.nonzero().squeeze(1), False)
        mask = movable[name]
        assert torch.equal(torch.ones_like(expected) if mask is None else mask.expand(parameter.shape), expected), name


def test_nothing_of_a_skipped_block_moves() -> None:
    model, space, _ = resnet()
    gates = gates_of(model, space)
    path = random_path(gates, 3)
    path[-1] = 1
    assert not {f"{module}.weight" for module in KEPT.modules} & gates.movable(path).keys()


def test_a_skipped_block_gives_what_its_shortcut_gives() -> None:
    model, space, images = resnet()
    gates = gates_of(model, space)
    gates.network.eval()
    path = np.zeros(len(gates.candidates.values), dtype=np.int64)
    path[-1] = 1
    nn.init.zeros_(model.layer1[0].bn2.weight)  # type: ignore[index, union-attr]
    nn.init.zeros_(model.layer1[0].bn2.bias)  # type: ignore[index, union-attr]
    with torch.no_grad():
        torch.testing.assert_close(gates.logits(images, path), model(images))


def test_a_space_of_weights_is_refused_with_the_way_out() -> None:
    model, space, _ = resnet()
    importance = l1_inputs(model, space)
    with pytest.raises(ValueError, match=r"spaces of channels.*space=width"):
        WidthGates(model=model, space=dataclasses.replace(space, groups=()), importance=importance, keep_ratios=RATIOS)


@pytest.mark.parametrize("ratios", [[0.5], [1.0, 1.0], [1.0, 0.0], []])
def test_candidate_widths_must_be_distinct_and_have_the_dense_one(ratios: list[float]) -> None:
    model, space, _ = resnet()
    with pytest.raises(ValueError, match="candidate widths must be distinct"):
        WidthGates(model=model, space=space, importance=l1_inputs(model, space), keep_ratios=ratios)
