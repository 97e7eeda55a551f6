"""Which residual blocks may be skipped, and that everything after the search works on networks without them."""

from __future__ import annotations

import copy
import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from backends.batch_norm import BatchNormRecovery
from backends.cifar_resnet import CifarResNet
from backends.data import Splits, TensorSplit
from backends.evaluate import NetworkEvaluator
from backends.export import export_onnx, export_program
from backends.fast_inference import FusedNetwork
from backends.fusion import make_plan
from backends.groups import trace, trace_layers
from backends.least_squares import LeastSquaresRecovery
from backends.macs import Ledger, MacsCost, ParamsCost
from backends.mixed_operation import Zero
from backends.recovery import NoRecovery
from backends.residual_branches import residual_blocks
from backends.sequential_least_squares import SequentialLeastSquaresRecovery
from backends.sgd_recovery import SgdRecovery
from backends.surgery import ChannelSurgery, extract, mask
from backends.training import measure
from backends.workbench import load_network
from compsearch.space import ZERO, Block, Operation, Policy, SearchSpace

CPU = torch.device("cpu")
#: How many residual branches torchvision's classifiers have whose shortcut computes nothing; of transformers those
#: without attention, whose products have no weight that a ledger could leave out.
BLOCKS = {
    "convnext_tiny": 18,
    "densenet121": 0,
    "efficientnet_b0": 9,
    "mnasnet0_5": 10,
    "mobilenet_v2": 10,
    "mobilenet_v3_small": 6,
    "regnet_y_400mf": 12,
    "resnet18": 5,
    "resnet50": 12,
    "resnext50_32x4d": 12,
    "shufflenet_v2_x0_5": 0,
    "swin_t": 12,
    "vgg11": 0,
    "vit_b_16": 12,
}
#: Counted only on request: they take seconds.
LARGE = {"densenet121", "resnet50", "resnext50_32x4d", "swin_t", "vgg11", "vit_b_16"}
FAMILIES = ["convnext_tiny", "efficientnet_b0", "mobilenet_v2", "mobilenet_v3_small", "regnet_y_400mf", "resnet18"]


def slow(value: object) -> Any:
    return pytest.param(value, marks=pytest.mark.slow)


def lively(model: nn.Module, size: int = 32) -> nn.Module:
    """`model` in eval mode, with norms of any scale and the statistics of random images: every part shows."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0, 0.1, generator=generator)
            if isinstance(module, nn.Linear) and not module.weight.any():
                module.weight.normal_(0, 0.1, generator=generator)
        for name, parameter in model.named_parameters():
            if name.endswith("layer_scale"):
                parameter.uniform_(0.2, 0.6, generator=generator)
        norms = [module.train() for module in model.eval().modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = None
        if norms:
            model(torch.randn(16, 3, size, size, generator=generator))
    return model.eval()


def classifier(name: str, **options: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if name == "resnet20":
            return lively(CifarResNet(20))
        return lively(torchvision.models.get_model(name, weights=None, **options))


def shapes_of(name: str) -> nn.Module:
    """A classifier without values; RegNets compute their widths in tensors, which need some."""
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        options = {"image_size": 32} if name.startswith("vit") else {}
        return torchvision.models.get_model(name, weights=None, **options).eval()


def space_of(model: nn.Module, size: int = 32, divisor: int = 8) -> SearchSpace:
    return trace(model, torch.zeros(2, 3, size, size), divisor=divisor, min_keep_ratio=0.1, skip_blocks=True)


def random_policy(space: SearchSpace, seed: int) -> Policy:
    rng = np.random.default_rng(seed)
    counts = [rng.choice(group.counts) for group in space.groups]
    return space.select(counts, rng.random(space.num_units), rng.integers(0, 2, len(space.blocks)))


def skipping(space: SearchSpace, *names: str) -> Policy:
    """All channels, without these blocks."""
    assert {block.name for block in space.blocks}.issuperset(names)
    return space.select(space.sizes, np.zeros(space.num_units), [block.name in names for block in space.blocks])


def images(num_images: int = 4, size: int = 32) -> Tensor:
    return torch.randn(num_images, 3, size, size, generator=torch.Generator().manual_seed(1))


def difference(ours: Tensor, reference: Tensor) -> float:
    assert ours.shape == reference.shape
    return float((ours - reference).abs().max() / reference.abs().max())


def gated(model: nn.Module, block: Block) -> nn.Module:
    """A copy in which the block's last module gives zeros."""
    copied = copy.deepcopy(model)
    copied.get_submodule(block.operations[0].modules[-1]).register_forward_hook(lambda module, args, output: output * 0)
    return copied


# Which blocks there are.


@pytest.mark.parametrize("name", [slow(name) if name in LARGE else name for name in BLOCKS])
def test_torchvision_classifiers_have_as_many_blocks_as_identity_shortcuts(name: str) -> None:
    model, inputs = shapes_of(name), (torch.zeros(1, 3, 32, 32),)
    blocks = residual_blocks(model, inputs, [layer.parameter for layer in trace_layers(model, inputs).layers], taken=[])
    assert len(blocks) == BLOCKS[name], [block.name for block in blocks]
    assert len({block.name for block in blocks}) == len(blocks)


def test_blocks_are_named_by_their_module_and_list_its_layers_in_the_order_they_run() -> None:
    blocks = space_of(classifier("resnet20")).blocks
    stages = [(1, 0), (1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (3, 2)]
    assert [block.name for block in blocks] == [f"layer{stage}.{place}" for stage, place in stages]
    for block in blocks:
        keep, zero = block.operations
        assert (keep.name, zero.name, zero.modules) == ("keep", ZERO, ())
        assert keep.modules == tuple(f"{block.name}.{each}" for each in ("conv1", "bn1", "conv2", "bn2"))


def conv(inputs: int = 8, outputs: int = 8) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class Around(nn.Module):
    """A stem, what a test puts in the middle, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = conv(3), nn.Linear(8, 5)
        self.one, self.two = conv(), conv()
        self.norm = nn.BatchNorm2d(8)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self.stem(x)).mean((2, 3)))

    def middle(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class PostActivation(Around):
    """The activation is shared: between the convolutions, and after the addition."""

    def middle(self, x: Tensor) -> Tensor:
        return self.act(x + self.norm(self.two(self.act(self.one(x)))))


class BranchFirst(Around):
    def middle(self, x: Tensor) -> Tensor:
        out = self.two(F.relu(self.one(x)))
        out += x
        return out


class IntoTheShortcut(Around):
    def middle(self, x: Tensor) -> Tensor:
        return x.add_(self.two(self.act(self.one(x))))


class PreActivation(Around):
    """The activation writes into the shortcut's own tensor, so the block begins behind it."""

    def middle(self, x: Tensor) -> Tensor:
        return torch.add(x, self.two(self.one(self.act(x))))


class WritesBeforeItReads(Around):
    """With convolutions that passed on what they get, the activation would write into the shortcut's tensor."""

    def middle(self, x: Tensor) -> Tensor:
        return x + self.two(torch.sigmoid_(self.one(x)))


class Scaled(Around):
    """A learnt scale that no module holds, a gate, and chunks."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.scale = nn.Linear(8, 8), nn.Parameter(torch.rand(8, 1, 1))

    def middle(self, x: Tensor) -> Tensor:
        y = self.one(x)
        y = y * torch.sigmoid(self.gate(y.mean((2, 3))))[..., None, None]
        return x + self.scale * self.two(torch.cat(y.chunk(2, dim=1)[::-1], dim=1))


class Nested(Around):
    def middle(self, x: Tensor) -> Tensor:
        y = self.one(x)
        return x + self.norm(y + self.two(F.relu(y)))


FOUND = {
    PostActivation: ("one", "two", "norm"),
    BranchFirst: ("one", "two"),
    IntoTheShortcut: ("one", "act", "two"),
    PreActivation: ("one", "two"),
    WritesBeforeItReads: ("one", "two"),
    Scaled: ("one", "gate", "two"),
    Nested: ("two",),
}


@pytest.mark.parametrize("network", FOUND, ids=lambda network: network.__name__)
def test_a_block_is_what_runs_between_a_value_and_its_sum_with_it(network: type[Around]) -> None:
    model = lively(network(), 8)
    [block] = space_of(model, 8).blocks
    assert block.operations[0].modules == FOUND[network]
    assert skipped_as_with_zeros(model) == 1


def skipped_as_with_zeros(model: nn.Module, size: int = 8) -> int:
    """How many blocks there are, each of which, skipped, leaves what the dense network has with its gate at zero."""
    space, x = space_of(model, size), images(size=size)
    with torch.no_grad():
        dense = model(x.clone())
        for block in space.blocks:
            reference = gated(model, block)(x.clone())
            policy = skipping(space, block.name)
            assert difference(extract(model, space, policy)(x.clone()), reference) < 1e-6
            assert difference(mask(model, space, policy)(x.clone()), reference) < 1e-6
            assert difference(dense, reference) > 1e-3
    return len(space.blocks)


def test_what_functions_make_of_zeros_inside_a_branch_does_not_matter() -> None:
    class Inside(Around):
        def middle(self, x: Tensor) -> Tensor:
            return x + self.two(torch.cos(self.one(x)))

    assert skipped_as_with_zeros(lively(Inside(), 8)) == 1


class ReadOutside(Around):
    def middle(self, x: Tensor) -> Tensor:
        y = self.one(x)
        return (x + self.two(y)) * y


class ReturnedToo(Around):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        x = self.stem(x)
        y = self.two(x)
        return self.head((x + y).mean((2, 3))), y.mean((2, 3))


class ProjectedShortcut(Around):
    def middle(self, x: Tensor) -> Tensor:
        return self.one(x) + self.two(x)


class TwiceRun(Around):
    def middle(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = x + self.one(x)
        return x


class TiedLayers(Around):
    def __init__(self) -> None:
        super().__init__()
        self.two.weight = self.one.weight

    def middle(self, x: Tensor) -> Tensor:
        return self.two(x + self.one(x))


class WeightReadElsewhere(Around):
    def middle(self, x: Tensor) -> Tensor:
        return F.conv2d(x + self.one(x), self.one.weight, padding=1)


class ConstantAtTheEnd(Around):
    """Without its layers, the branch still adds something."""

    def middle(self, x: Tensor) -> Tensor:
        return x + torch.cos(self.one(x))


class ReadsSizes(Around):
    """The code around the layers does not run without them."""

    def middle(self, x: Tensor) -> Tensor:
        return x + self.one(x)[:, : self.one.out_channels]


class NoLayer(Around):
    def middle(self, x: Tensor) -> Tensor:
        return x + self.norm(F.relu(x))


class OfAnotherInput(Around):
    def forward(self, x: Tensor) -> Tensor:
        features = self.stem(x)
        return self.head((features + self.one(features * x.mean(1, keepdim=True))).mean((2, 3)))


class Broadcast(Around):
    def middle(self, x: Tensor) -> Tensor:
        return x + self.one(x).mean((2, 3), keepdim=True)


NONE = [
    *(ReadOutside, ReturnedToo, ProjectedShortcut, TwiceRun, TiedLayers, WeightReadElsewhere, ConstantAtTheEnd),
    *(ReadsSizes, NoLayer, OfAnotherInput, Broadcast),
]


@pytest.mark.parametrize("network", NONE, ids=lambda network: network.__name__)
def test_a_branch_is_not_offered_when_more_than_its_sum_depends_on_it(network: type[Around]) -> None:
    assert space_of(lively(network(), 8), 8).blocks == ()


class Encoder(Around):
    """Two blocks of one module: attention, whose products no weight stands for, and an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=True)

    def middle(self, x: Tensor) -> Tensor:
        return self.encoder(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape)


def test_attention_is_never_skipped() -> None:
    [block] = space_of(lively(Encoder(), 8), 8).blocks
    assert block.name == "encoder"
    assert block.operations[0].modules == tuple(
        f"encoder.{each}" for each in ("norm2", "linear1", "dropout", "linear2", "dropout2")
    )


def test_two_blocks_of_one_module_have_distinct_names() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.one_norm, self.two, self.two_norm = conv(), nn.BatchNorm2d(8), conv(), nn.BatchNorm2d(8)

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.one_norm(self.one(x))
            return x + self.two_norm(self.two(x))

    class Network(Around):
        def __init__(self) -> None:
            super().__init__()
            self.pair = Pair()

        def middle(self, x: Tensor) -> Tensor:
            return self.pair(x)

    assert [block.name for block in space_of(lively(Network(), 8), 8).blocks] == ["pair", "pair.1"]


def test_blocks_are_part_of_a_space_only_when_asked_for() -> None:
    model = classifier("resnet20")
    plain, space = (
        trace(model, torch.zeros(1, 3, 32, 32), divisor=8, min_keep_ratio=0.1, skip_blocks=skip)
        for skip in (False, True)
    )
    assert plain.blocks == ()
    assert [group.name for group in plain.groups] == [group.name for group in space.groups]
    assert plain.fingerprint != space.fingerprint
    with pytest.raises(ValueError, match="must belong to this network"):
        extract(model, plain, space.full_policy())


def test_tracing_leaves_the_model_and_the_global_generator_alone() -> None:
    model = classifier("mobilenet_v3_small").train()
    before, rng = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    space_of(model)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(rng, torch.get_rng_state())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_table_for_people_shows_what_skipping_a_block_saves() -> None:
    space = space_of(classifier("resnet20"))
    text = space.describe()
    macs = 2 * 16 * 16 * 9 * 32 * 32
    assert ["layer1.0", "keep", "or", "zero", f"{macs:,}"] in [line.split() for line in text.splitlines()]
    assert "12 groups, 400 prunable channels, 10 frozen, 7 blocks" in text


# What is left.


@pytest.mark.parametrize(
    "name",
    [
        "resnet20",
        "mobilenet_v3_small",
        "resnet18",
        *map(slow, ["convnext_tiny", "efficientnet_b0", "mobilenet_v2", "regnet_y_400mf"]),
    ],
)
def test_a_skipped_block_is_the_dense_network_with_a_gate_at_zero(name: str) -> None:
    model = classifier(name)
    space, x = space_of(model), images(2)
    with torch.no_grad():
        for block in space.blocks[:: max(1, len(space.blocks) // 3)]:
            extracted = extract(model, space, skipping(space, block.name))
            assert difference(extracted(x), gated(model, block)(x)) < 1e-6
            assert difference(extracted(x), model(x)) > 1e-3


def test_a_skipped_block_of_a_resnet_is_one_whose_last_norm_gives_zeros() -> None:
    model, x = classifier("resnet20"), images()
    space = space_of(model)
    silenced = copy.deepcopy(model)
    with torch.no_grad():
        for place in (1, 2):
            norm = silenced.get_submodule(f"layer2.{place}.bn2")
            norm.weight.zero_()
            norm.bias.zero_()
        assert torch.equal(extract(model, space, skipping(space, "layer2.1", "layer2.2"))(x), silenced(x))


@pytest.mark.parametrize(
    "name", ["resnet20", slow("efficientnet_b0"), *FAMILIES[2:4], slow("regnet_y_400mf"), "resnet18"]
)
def test_extracted_logits_equal_masked_ones_with_fewer_channels_and_blocks(name: str) -> None:
    model, x = classifier(name), images(2)
    space = space_of(model)
    for seed in range(3):
        policy = random_policy(space, seed)
        with torch.no_grad():
            assert difference(extract(model, space, policy)(x), mask(model, space, policy)(x)) < 1e-5


@pytest.mark.parametrize("name", [*FAMILIES[2:], *map(slow, [*FAMILIES[:2], "vit_b_16"])])
def test_the_ledger_is_exact_for_random_operations(name: str) -> None:
    model = shapes_of(name)
    space = space_of(model)
    assert len(space.blocks) == BLOCKS[name]
    ledger = Ledger(space)
    macs, params = MacsCost(space, ledger), ParamsCost(space, ledger)
    all_skipped = skipping(space, *(block.name for block in space.blocks))
    for policy in (all_skipped, *(random_policy(space, seed) for seed in range(3))):
        network = extract(model, space, policy).to("meta")
        with FlopCounterMode(display=False) as counter:
            network(torch.empty(1, 3, 32, 32, device="meta"))
        assert macs.cost(policy) == counter.get_total_flops() / 2
        assert params.cost(policy) == sum(parameter.numel() for parameter in network.parameters())


def test_only_the_branch_of_a_skipped_block_is_replaced() -> None:
    model = classifier("resnet18")
    space = space_of(model)
    network = extract(model, space, skipping(space, "layer1.1"))
    kinds = {name: type(module) for name, module in network.named_modules() if name.startswith("layer1.1.")}
    assert kinds == {
        "layer1.1.conv1": Zero,
        "layer1.1.bn1": nn.Identity,
        "layer1.1.relu": nn.ReLU,
        "layer1.1.conv2": nn.Identity,
        "layer1.1.bn2": Zero,
    }
    assert isinstance(model.get_submodule("layer1.1.conv1"), nn.Conv2d)


def test_a_space_of_other_operations_is_refused() -> None:
    model = classifier("resnet20")
    space = space_of(model)
    [first, *others] = space.blocks
    keep, zero = first.operations
    odd = dataclasses.replace(space, blocks=(Block(first.name, (keep, Operation("other"), zero)), *others))
    with pytest.raises(ValueError, match="surgery=channels removes channels, but the space is one of 7 operations"):
        extract(model, odd, odd.full_policy())


# What comes after.

NETWORKS = ["resnet20", "mobilenet_v2"]


@pytest.fixture(scope="module", params=NETWORKS)
def cut(request: pytest.FixtureRequest) -> SimpleNamespace:
    """A network of five classes, its space, and a policy with fewer channels and blocks."""
    options = {} if request.param == "resnet20" else {"width_mult": 0.25, "num_classes": 5}
    model = classifier(request.param, **options)
    space = space_of(model, divisor=2)
    importance = np.random.default_rng(0).random(space.num_units)
    counts = [space.nearest_count(index, 0.6) for index in range(len(space.groups))]
    policy = space.select(counts, importance, [number % 2 for number in range(len(space.blocks))])

    def split(name: str, num_images: int, seed: int) -> TensorSplit:
        generator = torch.Generator().manual_seed(seed)
        pixels = torch.randn(num_images, 3, 32, 32, generator=generator)
        labels = torch.randint(5, (num_images,), generator=generator)
        return TensorSplit(name=name, images=pixels, labels=labels, normalisation=None, augmentation=None)

    train, search = split("train", 24, 1), split("search", 24, 2)
    return SimpleNamespace(model=model, space=space, policy=policy, train=train, search=search)


def batch_norm(cut: SimpleNamespace) -> BatchNormRecovery:
    return BatchNormRecovery(calibration=cut.train, device=CPU, batch_size=12)


def least_squares(cut: SimpleNamespace) -> LeastSquaresRecovery:
    options = {"positions_per_image": 16, "ridge": 1e-3, "batch_size": 12, "max_gram_gib": 1.0, "seed": 0}
    return LeastSquaresRecovery(model=cut.model, space=cut.space, calibration=cut.train, device=CPU, **options)


def sequential(cut: SimpleNamespace) -> SequentialLeastSquaresRecovery:
    options: dict[str, Any] = {"positions_per_image": 16, "ridge": 1e-3, "rectifications": 1, "batch_size": 12}
    given = {"model": cut.model, "space": cut.space, "calibration": cut.train, "device": CPU, "seed": 0}
    return SequentialLeastSquaresRecovery(**given, **options, max_gib=1.0)


def sgd(cut: SimpleNamespace) -> SgdRecovery:
    splits = Splits(cut.train, cut.search, cut.search, 5, 32, tuple("abcde"))
    options: dict[str, Any] = {"num_steps": 2, "lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4, "batch_size": 12}
    return SgdRecovery(splits=splits, device=CPU, seed=0, **options)


RECOVERIES: dict[str, Callable[[SimpleNamespace], Any]] = {
    "none": lambda cut: NoRecovery(),
    "bn": batch_norm,
    "lsq": least_squares,
    "lsq_seq": sequential,
    "sgd": sgd,
}


def distance(network: nn.Module, cut: SimpleNamespace) -> float:
    """Of the calibration images' logits from the dense network's."""
    pixels = torch.cat([batch for batch, _ in cut.train.batches(24)])
    with torch.no_grad():
        return float((network(pixels) - cut.model(pixels)).square().mean())


@pytest.mark.parametrize("name", RECOVERIES)
def test_recoveries_take_networks_without_some_blocks(cut: SimpleNamespace, name: str) -> None:
    recovery = RECOVERIES[name](cut)
    states = []
    for _ in range(2):
        network = extract(cut.model, cut.space, cut.policy)
        recovery(network, cut.policy)
        states.append(network.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert all(tensor.isfinite().all() for tensor in states[0].values())
    plain = extract(cut.model, cut.space, cut.policy)
    is_changed = any(not torch.equal(states[0][key], tensor) for key, tensor in plain.state_dict().items())
    assert is_changed == (name != "none")
    if name == "lsq_seq":
        assert distance(network, cut) < 0.5 * distance(plain, cut)


def test_sequential_least_squares_makes_up_for_a_skipped_block_where_code_cannot_be_traced() -> None:
    class ReadsValues(PostActivation):
        def middle(self, x: Tensor) -> Tensor:
            return super().middle(x) if float(x.abs().sum()) >= 0 else x

    model = lively(ReadsValues(), 8)
    assert make_plan(model) is None
    space = space_of(model, 8)
    pixels, labels = images(24, 8), torch.zeros(24, dtype=torch.int64)
    train = TensorSplit(name="train", images=pixels, labels=labels, normalisation=None, augmentation=None)
    given = SimpleNamespace(model=model, space=space, train=train)
    policy = skipping(space, space.blocks[0].name)
    network = extract(model, space, policy)
    plain = distance(network, given)
    sequential(given)(network, policy)
    assert distance(network, given) < 0.5 * plain


def test_plans_and_scores_of_networks_without_some_blocks_are_right(cut: SimpleNamespace) -> None:
    options = {"recovery": NoRecovery(), "batch_size": 12, "precision": "float32", "num_workers": 1}
    given = {"model": cut.model, "space": cut.space, "split": cut.search, "cost_models": [MacsCost(cut.space)]}
    evaluator = NetworkEvaluator(**given, surgery=ChannelSurgery(), device=CPU, **options)
    policies = [cut.space.full_policy(), cut.policy, *(random_policy(cut.space, seed) for seed in range(2))]
    for policy, found in zip(policies, evaluator.measure(policies), strict=True):
        network = extract(cut.model, cut.space, policy)
        plain = measure(network, cut.search, device=CPU, batch_size=24)
        assert found.accuracy == plain.accuracy
        assert found.loss == pytest.approx(plain.loss, rel=1e-4)
        assert evaluator.execution.plan_of(network) is not None
    plan = make_plan(network)
    assert plan is not None
    pixels = images().contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert difference(FusedNetwork(network, plan, dtype=torch.float32)(pixels), network(pixels)) < 1e-5


@pytest.mark.parametrize("write", [export_program, slow(export_onnx)])
def test_networks_without_some_blocks_are_exported(cut: SimpleNamespace, write: Any, tmp_path: Path) -> None:
    exported = write(extract(cut.model, cut.space, cut.policy), images(3), tmp_path / "network")
    assert exported.difference <= 1e-4 * exported.scale


def test_networks_without_some_blocks_are_copied_saved_loaded_and_trained(cut: SimpleNamespace) -> None:
    network, x = extract(cut.model, cut.space, cut.policy), images()
    copied = copy.deepcopy(network)
    buffer = io.BytesIO()
    torch.save(network.state_dict(), buffer)
    state = torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
    given = {"model": cut.model, "space": cut.space, "surgery": ChannelSurgery(), "policy": cut.policy}
    loaded = load_network(**given, state=state)
    with torch.no_grad():
        assert torch.equal(network(x), copied(x))
        assert torch.equal(network(x), loaded(x))
    copied.train()(x).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in copied.parameters())
    assert any(parameter.grad.any() for parameter in copied.parameters() if parameter.grad is not None)
