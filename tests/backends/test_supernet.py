"""Training one path at a time: what moves, what stays, and going on exactly where it stopped."""

import dataclasses
import io
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from backends.augmentation import ShiftFlip
from backends.batch_stream import BatchStream
from backends.cifar_resnet import CifarResNet
from backends.data import Normalisation, Splits, TensorSplit
from backends.groups import trace
from backends.importance import l1_inputs
from backends.path_sgd import PathSGD
from backends.seeding import isolated_rng
from backends.supernet import Supernet
from backends.width_gates import WidthGates
from compsearch.space import Block, IntArray, Operation

CPU = torch.device("cpu")
OPTIONS: dict[str, Any] = {
    "warmup_epochs": 2,
    "epochs": 6,
    "warmup_lr": 0.05,
    "lr": 0.02,
    "momentum": 0.9,
    "weight_decay": 0.01,
    "label_smoothing": 0.1,
    "batch_size": 8,
    "gate_batch_size": 6,
    "precision": "float32",
}


def split_of(name: str, num_images: int, seed: int) -> TensorSplit:
    rng = torch.Generator().manual_seed(seed)
    return TensorSplit(
        name=name,
        images=torch.randint(255, (num_images, 3, 8, 8), generator=rng).to(torch.uint8),
        labels=torch.randint(10, (num_images,), generator=rng),
        normalisation=Normalisation.of("imagenet"),
        augmentation=ShiftFlip(padding=1, flip=True),
    )


SPLITS = Splits(split_of("train", 40, 0), split_of("search", 20, 1), split_of("test", 20, 2), 10, 8, ())


def supernet(seed: int = 0, dropout: float = 0.0, **changes: Any) -> Supernet:
    with isolated_rng(0):
        model = CifarResNet(8).eval()
    if dropout:
        model.linear = nn.Sequential(nn.Dropout(dropout), model.linear)  # type: ignore[assignment]
    space = trace(model, torch.zeros(2, 3, 8, 8), divisor=1, min_keep_ratio=0.1)
    keep = Operation("keep", ("layer1.0.conv1", "layer1.0.bn1", "layer1.0.conv2", "layer1.0.bn2"))
    space = dataclasses.replace(space, blocks=(Block("layer1.0", (keep, Operation("zero"))),))
    gates = WidthGates(model=model, space=space, importance=l1_inputs(model, space), keep_ratios=[1.0, 0.75, 0.5, 0.25])
    return Supernet(gating=gates, splits=SPLITS, device=CPU, seed=seed, **(OPTIONS | changes))


def path_of(net: Supernet, seed: int) -> IntArray:
    rng = np.random.default_rng(seed)
    return np.array([rng.integers(size) for size in net.candidates.sizes])


def weights(net: Supernet) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in net.gating.network.named_parameters()}


def test_weights_that_are_not_on_the_path_do_not_move_even_by_decay_or_momentum() -> None:
    net = supernet()
    everything = np.zeros(len(net.candidates.values), dtype=np.int64)
    net.train(everything[None])  # all have momentum now
    path = path_of(net, 3)
    before, movable = weights(net), net.gating.movable(path)
    net.train(path[None])
    moved = 0
    for name, new in weights(net).items():
        if name not in movable:
            assert torch.equal(new, before[name]), name
            continue
        mask = movable[name]
        held = torch.zeros_like(new, dtype=torch.bool) if mask is None else ~mask.expand(new.shape)
        assert torch.equal(new[held], before[name][held]), name
        moved += int((new != before[name]).sum())
    assert moved > 1000


def test_looking_at_gates_moves_no_weight() -> None:
    net = supernet()
    before = weights(net)
    net.gates(path_of(net, 0), net.candidates.is_one)
    net.accuracies(np.stack([path_of(net, seed) for seed in range(3)]))
    assert all(torch.equal(new, before[name]) for name, new in weights(net).items())


def test_gates_are_looked_at_on_the_search_split_and_weights_learn_on_the_train_split() -> None:
    seen: list[str] = []

    class Watched(TensorSplit):
        def training_batches(self, batch_size: int, generator: torch.Generator) -> Any:
            seen.append(self.name)
            return super().training_batches(batch_size, generator)

    def watched(split: TensorSplit) -> Watched:
        values = (split.name, split.images, split.labels, split.normalisation, split.augmentation)
        return Watched(**dict(zip(("name", "images", "labels", "normalisation", "augmentation"), values, strict=True)))

    splits = dataclasses.replace(SPLITS, train=watched(SPLITS.train), search=watched(SPLITS.search), test=None)  # type: ignore[arg-type]
    net = Supernet(gating=supernet().gating, splits=splits, device=CPU, seed=0, **OPTIONS)
    seen.clear()
    for _ in range(5):
        net.train(path_of(net, 0)[None])  # 40 images: the sixth step begins anew
    net.train(path_of(net, 0)[None])
    assert seen == ["train"]
    for _ in range(5):
        net.gates(path_of(net, 0), net.candidates.is_one)
    assert seen == ["train", "search"]


def steps(net: Supernet, first: int, last: int) -> list[float]:
    """Steps of the weights with looks at the gates in between, by number."""
    found: list[float] = []
    for number in range(first, last):
        found += net.train(np.stack([path_of(net, 10 * number + index) for index in range(3)])).tolist()
        loss, gradient = net.gates(path_of(net, number), net.candidates.is_one)
        found += [loss, *gradient.ravel().tolist()]
        found += net.accuracies(np.stack([path_of(net, number), path_of(net, number + 1)])).tolist()
    return found


@pytest.mark.parametrize("num_before", [0, 1, 3])
def test_a_supernet_that_was_stopped_anywhere_goes_on_exactly(num_before: int) -> None:
    whole = steps(supernet(dropout=0.3), 0, 4)
    first, second = supernet(dropout=0.3), supernet(dropout=0.3)
    found = steps(first, 0, num_before)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    steps(first, num_before, 4)  # going on must not reach what was saved
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert found + steps(second, num_before, 4) == whole


def test_dropout_is_the_same_whenever_a_step_is_taken_again() -> None:
    path = np.zeros((1, len(supernet().candidates.values)), dtype=np.int64)
    whole, again = supernet(dropout=0.5), supernet(dropout=0.5)
    state = again.state_dict()
    first = again.train(path)
    again.load_state_dict(state)
    assert again.train(path) == first == whole.train(path)
    assert supernet(dropout=0.0).train(path) != first


def test_global_generators_are_left_alone() -> None:
    before = torch.get_rng_state()
    steps(supernet(dropout=0.3), 0, 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_losses_after_one_that_is_not_finite_are_not_finite() -> None:
    net = supernet(lr=1e30, warmup_lr=1e30)
    paths = np.zeros((4, len(net.candidates.values)), dtype=np.int64)
    losses = net.train(paths)
    first = int(np.flatnonzero(~np.isfinite(losses))[0])
    assert first > 0
    assert np.isnan(losses[first:]).all()


def test_training_lowers_the_loss() -> None:
    net = supernet(label_smoothing=0.0)
    path = np.zeros((5, len(net.candidates.values)), dtype=np.int64)
    epochs = [net.train(path).mean() for _ in range(6)]
    assert epochs[-1] < 0.8 * epochs[0]


def test_the_learning_rate_falls_by_a_cosine_in_the_warm_up_and_again_after_it() -> None:
    net = supernet()
    assert net.steps_per_epoch == 5
    rates = []
    path = np.zeros((1, len(net.candidates.values)), dtype=np.int64)
    for _ in range(30):
        rates.append(net.lr)
        net.train(path)
    assert rates[0] == 0.05
    assert rates[5] == pytest.approx(0.025)
    assert rates[10] == 0.02
    assert rates[20] == pytest.approx(0.01)
    assert net.lr == pytest.approx(0, abs=1e-9)
    assert all(a > b for a, b in itertools.pairwise(rates[:10]))


def test_slowing_down_halves_the_learning_rate_lets_an_epoch_pass_and_is_remembered() -> None:
    net, other = supernet(), supernet()
    path = np.zeros((5, len(net.candidates.values)), dtype=np.int64)
    other.train(path)
    second = other.lr
    net.slow_down()
    assert net.lr == second / 2
    other.load_state_dict(net.state_dict())
    assert other.lr == net.lr


def test_looking_at_accuracies_or_gates_leaves_running_statistics_alone() -> None:
    net = supernet()
    before = {name: tensor.clone() for name, tensor in net.gating.network.named_buffers()}
    net.accuracies(path_of(net, 0)[None])
    net.gates(path_of(net, 0), net.candidates.is_one)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.gating.network.named_buffers())


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 0, "warmup_epochs": 0},
        {"warmup_epochs": 7},
        {"lr": 0.0},
        {"momentum": 1.0},
        {"batch_size": 1},
        {"precision": "half"},
        {"label_smoothing": 1.0},
    ],
)
def test_options_that_make_no_sense_are_refused_in_one_line(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must hold for a supernet") as caught:
        supernet(**changes)
    assert "\n" not in str(caught.value)


def test_steps_on_everything_are_those_of_torch_sgd() -> None:
    with isolated_rng(0):
        ours, theirs = nn.Linear(4, 3), nn.Linear(4, 3)
        x = torch.randn(5, 4)
    theirs.load_state_dict(ours.state_dict())
    sgd = PathSGD(ours, momentum=0.9, weight_decay=0.1)
    groups = [{"params": [theirs.weight], "weight_decay": 0.1}, {"params": [theirs.bias], "weight_decay": 0.0}]
    reference = torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)
    for _ in range(4):
        for network in (ours, theirs):
            F.cross_entropy(network(x), torch.tensor([0, 1, 2, 0, 1])).backward()
        sgd.step(0.1, {"weight": None, "bias": None})
        reference.step()
        reference.zero_grad()
    torch.testing.assert_close(ours.weight, theirs.weight)
    torch.testing.assert_close(ours.bias, theirs.bias)


def test_a_stream_gives_every_image_once_an_epoch_and_goes_on_where_its_state_says() -> None:
    images = torch.arange(10.0)[:, None, None, None].expand(10, 1, 2, 2).contiguous()
    plain = TensorSplit(name="train", images=images, labels=torch.arange(10), normalisation=None, augmentation=None)
    stream = BatchStream(plain, batch_size=4, seed=0)
    taken = [next(stream) for _ in range(9)]
    for epoch in range(3):
        labels = torch.cat([labels for _, labels in taken[3 * epoch : 3 * epoch + 3]])
        assert sorted(labels.tolist()) == list(range(10))
    again = BatchStream(plain, batch_size=4, seed=1)
    other = BatchStream(plain, batch_size=4, seed=0)
    for _ in range(4):
        next(other)
    again.load_state_dict(other.state_dict())
    for _, labels in taken[4:]:
        assert torch.equal(next(again)[1], labels)
