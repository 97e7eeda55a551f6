"""Every criterion against its definition, by other means; and what holds for all of them."""

import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backends import importance as criteria
from backends.cifar_resnet import CifarResNet
from backends.data import TensorSplit
from backends.groups import trace
from backends.macs import MacsCost
from compsearch.composition import compose_config, conf_dir, make
from compsearch.importance import LayerImportance
from compsearch.space import FloatArray, SearchSpace
from searchers.ranking import Ranking

CPU = torch.device("cpu")
#: All but the one of single weights, which is tested with their surgery.
NAMES = sorted({path.stem for path in (conf_dir() / "importance").glob("*.yaml")} - {"magnitude"})


class Mixed(nn.Module):
    """Biases, a depthwise, a grouped and a linear hidden layer, registered against the order they run in."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(10, 5)
        self.hidden = nn.Linear(12, 10)
        self.grouped = nn.Conv2d(6, 12, 3, padding=1, groups=3)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.stem = nn.Conv2d(3, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.grouped(self.depthwise(self.stem(x)).relu()).relu().mean((2, 3))
        return self.last(self.hidden(x).relu())


@pytest.fixture
def mixed() -> SimpleNamespace:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Mixed().eval()
    return SimpleNamespace(model=model, space=trace(model, torch.zeros(2, 3, 8, 8), divisor=1, min_keep_ratio=0.1))


def values(importance: LayerImportance, layer: str) -> FloatArray:
    """The entries of one layer, by unit."""
    chosen = importance.layer_index == importance.layers.index(layer)
    return importance.values[chosen][np.argsort(importance.units[chosen])]


def of_group(space: SearchSpace, scores: FloatArray, group: str) -> FloatArray:
    index = [each.name for each in space.groups].index(group)
    return scores[space.offsets[index] : space.offsets[index + 1]]


def weight_of(model: nn.Module, layer: str) -> Tensor:
    return model.get_parameter(f"{layer}.weight").detach().double()


def taylor(tiny: SimpleNamespace, **changes: Any) -> LayerImportance:
    given = {"calibration": tiny.calibration, "device": CPU, "batch_size": 16}
    return criteria.taylor(tiny.model, tiny.space, **(given | changes))


@pytest.mark.parametrize(
    ("criterion", "norm"),
    [
        (criteria.l1, lambda weight: weight.abs().sum(1)),
        (criteria.l2, lambda weight: weight.norm(dim=1)),
        (criteria.squared_l2, lambda weight: (weight * weight).sum(1)),
        (criteria.geometric_median, lambda weight: torch.stack([(weight - row).norm(dim=1).sum() for row in weight])),
    ],
)
def test_a_filter_criterion_is_that_of_each_layers_filters(
    tiny: SimpleNamespace, criterion: Callable[..., LayerImportance], norm: Callable[[Tensor], Tensor]
) -> None:
    found = criterion(tiny.model, tiny.space)
    assert found.layers == ("stem", "conv1", "conv2", "down")
    for layer in found.layers:
        expected = norm(weight_of(tiny.model, layer).flatten(1)).numpy()
        assert values(found, layer) == pytest.approx(expected, rel=1e-6), layer


def test_input_importance_sums_over_every_layer_that_reads_a_unit(tiny: SimpleNamespace) -> None:
    found = criteria.l1_inputs(tiny.model, tiny.space)
    assert found.layers == ("conv1", "conv2", "down", "linear")
    readers = (tiny.model.conv1.weight, tiny.model.down.weight)
    by_hand = sum(weight.detach().abs().sum((0, 2, 3)).double() for weight in readers).numpy()
    assert of_group(tiny.space, found.scores(), "stem") == pytest.approx(by_hand, rel=1e-5)
    linear = tiny.model.linear.weight.detach().abs().sum(0).double().numpy()
    assert of_group(tiny.space, found.scores(), "conv2") == pytest.approx(linear, rel=1e-5)


def test_bn_scale_is_the_size_of_gamma(tiny: SimpleNamespace) -> None:
    norms = (tiny.model.stem_norm, tiny.model.norm1, tiny.model.norm2)
    with torch.no_grad():
        for norm in norms:
            norm.weight.copy_(torch.randn(len(norm.weight), generator=torch.Generator().manual_seed(3)))
    found = criteria.bn_scale(tiny.model, tiny.space)
    assert found.layers == ("stem_norm", "norm1", "norm2")
    expected = torch.cat([norm.weight.detach().abs() for norm in norms]).numpy()
    assert (expected > 0).all()
    assert found.scores() == pytest.approx(expected)


def test_bn_scale_refuses_a_group_without_a_batch_norm_and_names_it(mixed: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match=r"importance=bn_scale.*'stem' has none.*space\.freeze") as caught:
        criteria.bn_scale(mixed.model, mixed.space)
    assert "\n" not in str(caught.value)


def test_taylor_is_the_squared_slope_of_the_loss_as_a_filter_shrinks(tiny: SimpleNamespace) -> None:
    model = tiny.model.double()
    found = criteria.taylor(model, tiny.space, Double(tiny.calibration), CPU, 16)
    assert found.layers == ("stem", "conv1", "conv2", "down")
    batches = list(Double(tiny.calibration).batches(16))
    assert len(batches) == 3
    for layer, unit in (("stem", 0), ("conv1", 7), ("conv2", 3), ("down", 15)):
        weight = model.get_parameter(f"{layer}.weight").data
        original = weight[unit].clone()
        squares = []
        for images, labels in batches:
            losses = []
            for scale in (1 - 1e-5, 1 + 1e-5):
                weight[unit] = scale * original
                with torch.no_grad():
                    losses.append(float(F.cross_entropy(model(images), labels)))
            weight[unit] = original
            squares.append(((losses[1] - losses[0]) / 2e-5) ** 2)
        assert values(found, layer)[unit] == pytest.approx(np.mean(squares), rel=1e-4), layer


class Double:
    """A split with images in float64."""

    def __init__(self, split: Any) -> None:
        self._split = split

    def batches(self, batch_size: int) -> Any:
        return ((images.double(), labels) for images, labels in self._split.batches(batch_size))


def test_taylor_leaves_the_model_as_it_is(tiny: SimpleNamespace) -> None:
    tiny.model.norm1.train()
    frozen = tiny.model.linear.weight.requires_grad_(requires_grad=False)
    state = {name: tensor.clone() for name, tensor in tiny.model.state_dict().items()}
    generator = torch.get_rng_state()
    taylor(tiny)
    assert all(torch.equal(state[name], tensor) for name, tensor in tiny.model.state_dict().items())
    assert all(parameter.grad is None for parameter in tiny.model.parameters())
    training = [name for name, module in tiny.model.named_modules() if module.training]
    assert training == ["norm1"]
    assert not frozen.requires_grad
    assert all(parameter.requires_grad for parameter in tiny.model.parameters() if parameter is not frozen)
    assert torch.equal(torch.get_rng_state(), generator)


def test_taylor_looks_in_eval_mode_whatever_mode_the_model_is_in(tiny: SimpleNamespace) -> None:
    expected = taylor(tiny).values
    tiny.model.train()
    assert taylor(tiny).values == pytest.approx(expected, rel=1e-9)


def test_taylor_restores_the_mode_after_a_failure_and_refuses_no_images(tiny: SimpleNamespace) -> None:
    tiny.model.train()
    with pytest.raises(RuntimeError, match="stop"):
        taylor(tiny, calibration=SimpleNamespace(batches=failing))
    assert all(module.training for module in tiny.model.modules())
    with pytest.raises(ValueError, match=r"calibration images.*calibration\.num_images"):
        taylor(tiny, calibration=SimpleNamespace(batches=lambda batch_size: iter(())))


def failing(batch_size: int) -> Any:
    raise RuntimeError("stop")


def test_random_importance_follows_from_its_seed_alone(tiny: SimpleNamespace) -> None:
    first, again, other = (criteria.random(tiny.model, tiny.space, seed).values for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert (first != other).all()
    assert ((first >= 0) & (first < 1)).all()
    assert len(np.unique(first)) == len(first) == 8 + 12 + 16 + 16


def test_a_coupled_unit_has_an_entry_per_layer_that_makes_it(tiny: SimpleNamespace) -> None:
    for importance in (
        *(one(tiny.model, tiny.space) for one in (criteria.l1, criteria.l2, criteria.squared_l2)),
        criteria.geometric_median(tiny.model, tiny.space),
        criteria.random(tiny.model, tiny.space, 0),
        taylor(tiny),
    ):
        times = np.bincount(importance.units, minlength=tiny.space.num_units)
        for group, start in zip(tiny.space.groups, tiny.space.offsets, strict=False):
            assert set(times[start : start + group.size]) == {len(group.producers)}


@pytest.mark.parametrize(
    ("reduction", "reduce"),
    [("sum", lambda a, b: a + b), ("mean", lambda a, b: (a + b) / 2), ("max", np.maximum)],
)
def test_what_a_coupled_unit_has_in_its_layers_is_reduced_to_one_score(
    tiny: SimpleNamespace, reduction: str, reduce: Callable[[FloatArray, FloatArray], FloatArray]
) -> None:
    found = criteria.squared_l2(tiny.model, tiny.space, reduction)
    expected = reduce(values(found, "conv2"), values(found, "down"))
    assert of_group(tiny.space, found.scores(), "conv2") == pytest.approx(expected)
    assert of_group(tiny.space, found.scores(), "conv1") == pytest.approx(values(found, "conv1"))


def test_a_unit_of_several_channels_has_all_their_filters(mixed: SimpleNamespace) -> None:
    found = criteria.squared_l2(mixed.model, mixed.space)
    assert found.layers == ("stem", "depthwise", "grouped", "hidden")
    for layer, per_unit in (("stem", 2), ("depthwise", 2), ("grouped", 4), ("hidden", 1)):
        filters = weight_of(mixed.model, layer).square().flatten(1).sum(1)
        assert values(found, layer) == pytest.approx(filters.reshape(-1, per_unit).sum(1).numpy()), layer
    roots = criteria.l2(mixed.model, mixed.space)
    assert roots.values == pytest.approx(np.sqrt(found.values))


@pytest.mark.parametrize("name", ["l1", "l1_inputs", "l2", "squared_l2", "geometric_median"])
def test_layers_come_in_the_order_they_run_in(mixed: SimpleNamespace, name: str) -> None:
    forward = [layer.name for layer in mixed.space.layers]
    assert forward == ["stem", "depthwise", "grouped", "hidden", "last"]
    found = getattr(criteria, name)(mixed.model, mixed.space)
    assert found.layers == tuple(layer for layer in forward if layer in found.layers)
    assert len(found.layers) > 1


class Blurred(nn.Sequential):
    """A fixed filter per channel, held in a buffer, between layers."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 10, 3))
        self.register_buffer("blur", torch.ones(8, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self[0](x)
        return self[1](F.conv2d(x, self.blur, groups=x.shape[1])).mean((2, 3))


@pytest.mark.parametrize("criterion", [criteria.squared_l2, criteria.l1_inputs, criteria.geometric_median])
def test_fixed_filters_say_nothing_about_units(criterion: Callable[..., LayerImportance]) -> None:
    model = Blurred()
    space = trace(model, torch.zeros(1, 3, 12, 12), divisor=1, min_keep_ratio=0.1)
    assert [group.name for group in space.groups] == ["0"]
    assert criterion(model, space).layers == (("1",) if criterion is criteria.l1_inputs else ("0",))


def test_taylor_takes_grouped_depthwise_and_linear_layers(mixed: SimpleNamespace, tiny: SimpleNamespace) -> None:
    found = criteria.taylor(mixed.model, mixed.space, tiny.calibration, CPU, 16)
    assert found.layers == ("stem", "depthwise", "grouped", "hidden")
    assert (found.scores() >= 0).all()
    # A unit that nothing reads changes no loss.
    unit = int(values(found, "hidden").argmax())
    assert values(found, "hidden")[unit] > 0.0
    with torch.no_grad():
        mixed.model.last.weight[:, unit] = 0.0
    blind = criteria.taylor(mixed.model, mixed.space, tiny.calibration, CPU, 16)
    assert values(blind, "hidden")[unit] == 0.0


@pytest.mark.parametrize("name", NAMES)
def test_every_criterion_of_conf_ranks_the_units_of_a_resnet(name: str, resnet: SimpleNamespace) -> None:
    # What is chosen here wins over what the searcher prefers.
    config = compose_config(["searcher=legr", f"importance={name}", "dataset.batch_size=8", "run_name=one"])
    assert config["importance"]["_target_"] == f"backends.importance.{name}"
    before = {key: tensor.clone() for key, tensor in resnet.model.state_dict().items()}
    available = {"model": resnet.model, "space": resnet.space, "calibration": resnet.split, "device": CPU, "seed": 0}
    found = make(config["importance"], available, place="importance")
    assert found.reduction == "sum"
    scores = found.scores()
    assert len(np.unique(scores)) > 1 or name == "bn_scale"
    policy = Ranking(resnet.space, scores).policy(None, cost_model=MacsCost(resnet.space))
    assert policy == resnet.space.full_policy()
    assert all(torch.equal(before[key], tensor) for key, tensor in resnet.model.state_dict().items())


@pytest.fixture(scope="module")
def resnet() -> SimpleNamespace:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CifarResNet(depth=20, num_classes=10).eval()
    space = trace(model, torch.zeros(2, 3, 16, 16), divisor=8, min_keep_ratio=0.1)
    images = torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    split = TensorSplit(
        name="calibration", images=images, labels=torch.arange(16) % 10, normalisation=None, augmentation=None
    )
    return SimpleNamespace(model=model, space=space, split=split)


def test_all_criteria_are_in_conf() -> None:
    public = {
        name
        for name, value in vars(criteria).items()
        if callable(value) and getattr(value, "__module__", "") == criteria.__name__ and not name.startswith("_")
    }
    assert public == set(NAMES)


def test_a_wrong_reduction_and_weights_that_are_not_finite_are_refused(tiny: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match=re.escape("must be one of sum, mean, max, but got 'median'")):
        criteria.l1(tiny.model, tiny.space, "median")
    with torch.no_grad():
        tiny.model.conv1.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinity"):
        criteria.l1(tiny.model, tiny.space)
