from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backends import forwards
from backends.labels import ANY, NONE, Channels, Conflict, Labels, Weight
from backends.tracer import Tracer


def tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values)


# Union-find.


def test_every_entry_of_every_dimension_has_its_own_label() -> None:
    labels = Labels({"weight": (4, 3), "bias": (4,), "empty": (0, 2), "scalar": ()})
    axes = [labels.axis("weight", 0), labels.axis("weight", 1), labels.axis("bias", 0), labels.axis("empty", 1)]
    together = np.concatenate(axes)
    assert len(set(together.tolist())) == len(together) == 13
    assert together.min() > ANY > NONE
    assert len(labels.axis("empty", 0)) == 0


def test_unified_labels_share_a_class_and_others_do_not() -> None:
    labels = Labels({"a": (5,), "b": (5,), "c": (5,)})
    a, b, c = (labels.axis(name, 0) for name in "abc")
    labels.unify(tensor(a), tensor(b), "add")
    labels.unify(tensor(c[:2]), tensor(b[3:]), "add")
    roots = labels.roots(np.stack([a, b, c]))
    assert (roots[0] == roots[1]).all()
    assert roots[2, :2].tolist() == roots[0, 3:].tolist()
    assert len(np.unique(roots)) == 8


def test_chains_of_unions_within_one_call_end_in_one_class() -> None:
    labels = Labels({"a": (100,)})
    a = labels.axis("a", 0)
    order = np.random.default_rng(0).permutation(100)
    labels.unify(tensor(a[order[:-1]]), tensor(a[order[1:]]), "chain")
    assert len(np.unique(labels.roots(a))) == 1


def test_none_and_any_tie_to_nothing() -> None:
    labels = Labels({"a": (2,)})
    a = tensor(labels.axis("a", 0))
    labels.unify(a, torch.tensor([NONE, NONE]), "add")
    labels.unify(a, torch.tensor([ANY, ANY]), "add")
    assert labels.roots(a.numpy()).tolist() == a.tolist()
    labels.freeze(torch.tensor([NONE, ANY]), "nothing")
    assert not labels.frozen


def test_ties_are_noted_only_between_channels_that_layers_emit() -> None:
    labels = Labels({"one": (3,), "two": (3,), "norm": (3,)})
    one, two, norm = (tensor(labels.axis(name, 0)) for name in ("one", "two", "norm"))
    labels.emit(one)
    labels.emit(two)
    labels.unify(one, norm, "norm")
    assert not labels.ties
    labels.unify(norm, two, "add")
    assert {cause for _, cause in labels.ties} == {"add"}
    assert len(labels.ties) == 3


def test_sealed_labels_only_verify() -> None:
    labels = Labels({"a": (3,), "b": (3,)})
    a, b = tensor(labels.axis("a", 0)), tensor(labels.axis("b", 0))
    labels.unify(a, b, "add")
    live = np.zeros(labels.size, dtype=np.bool_)
    live[labels.roots(a.numpy())[:2]] = True
    labels.seal(live)
    labels.unify(a[1:], b[1:], "add")
    labels.freeze(a[2:], "dead already")
    with pytest.raises(Conflict, match="add would join other channels") as caught:
        labels.unify(a[:2], b[1:], "add")
    assert set(caught.value.roots.tolist()) <= set(labels.roots(a.numpy()).tolist())
    with pytest.raises(Conflict, match="a reason"):
        labels.freeze(a[1:], "a reason")


def test_members_of_one_class_that_change_places_are_a_conflict() -> None:
    labels = Labels({"a": (2,), "b": (2,)})
    a, b = tensor(labels.axis("a", 0)), tensor(labels.axis("b", 0))
    labels.unify(a, b, "input")
    labels.unify(a[:1], a[1:], "split")
    labels.seal(np.zeros(labels.size, dtype=np.bool_))
    assert labels.roots(a.numpy())[0] == labels.roots(b.numpy())[1]
    with pytest.raises(Conflict):
        labels.unify(a, b.flip(0), "input")


# Rules, one operation at a time.


class Probe:
    """Labels of what a function makes of a 1×8×4×4 feature map and of a weight per channel."""

    def __init__(self) -> None:
        self.module = nn.Module()
        self.module.register_parameter("x", nn.Parameter(torch.zeros(1, 8, 4, 4)))
        self.module.register_parameter("y", nn.Parameter(torch.zeros(1, 8, 4, 4)))
        self.labels = Labels({"x": (1, 8, 4, 4), "y": (1, 8, 4, 4)})
        self.tracer: Tracer = forwards.follower(self.module, self.labels, {})
        self.x, self.y = self._map(self.module.x, "x"), self._map(self.module.y, "y")

    def _map(self, like: Tensor, name: str) -> Tensor:
        made = like.detach().clone()
        labels = tensor(self.labels.axis(name, 1)).view(1, 8, 1, 1)
        self.tracer._marks[made] = Channels(labels)
        return made

    def run(self, function: object, *tensors: Tensor) -> Tensor:
        with torch.no_grad(), self.tracer:
            result: Tensor = function(*tensors)  # type: ignore[operator]
        return result

    def channels(self, result: Tensor) -> Tensor:
        """Which channel of x each entry of `result` is, 0-based; -1 where it is none."""
        mark = self.tracer.mark(result)
        assert isinstance(mark, Channels)
        full = mark.labels.expand(result.shape) if mark.labels.dim() == result.dim() else mark.labels
        return torch.where(full > ANY, full - int(self.labels.axis("x", 1)[0]), -1)

    def frozen(self) -> list[str]:
        return [reason for _, reason in self.labels.frozen]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.permute(0, 2, 3, 1),
        lambda x: x.transpose(1, 3),
        lambda x: x.flatten(1),
        lambda x: x.flatten(2).transpose(1, 2),
        lambda x: x.unsqueeze(0).squeeze(1),
        lambda x: torch.cat([x, x.flip(1)], 1),
        lambda x: torch.stack([x, x], 2),
        lambda x: x.repeat(1, 3, 1, 2),
        lambda x: x[:, :, 1:3, ::2],
        lambda x: x[:, :, [0, 2]],
        lambda x: x.select(2, 1),
        lambda x: x.roll(1, 3),
        lambda x: x.unfold(2, 2, 1),
        lambda x: x.expand(3, -1, -1, -1),
        lambda x: F.pixel_unshuffle(x, 2),
        lambda x: x.narrow(3, 1, 2),
        lambda x: x.view(1, 2, 4, 4, 4).transpose(1, 2).reshape(1, 8, 4, 4),
        lambda x: torch.cat(x.chunk(4, 1)[::-1], 1),
        lambda x: x[:, 4:],
        lambda x: x[:, 1::2],
        lambda x: F.unfold(x, 2),
        lambda x: x.movedim(1, -1).contiguous().view(1, 16, 8),
        lambda x: F.channel_shuffle(x, 2),
    ],
)
def test_data_movement_moves_labels_as_it_moves_data(function: object) -> None:
    probe = Probe()
    result = probe.run(function, probe.x)
    # The same on a feature map whose values are channel numbers.
    numbers = torch.arange(8.0).view(1, 8, 1, 1).expand(1, 8, 4, 4)
    assert torch.equal(probe.channels(result), function(numbers).long())  # type: ignore[operator]
    assert not probe.frozen()


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.max_pool2d(F.relu(x), 2),
        lambda x: F.adaptive_avg_pool2d(x, 2),
        lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
        lambda x: F.interpolate(x, size=(3, 3)),
        lambda x: F.pad(x, (1, 1, 1, 1)),
        lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
        lambda x: F.pad(x, (1, 1, 1, 1), mode="replicate"),
        lambda x: x.mean((2, 3), keepdim=True),
        lambda x: x.amax(3, keepdim=True),
        lambda x: F.hardswish(x) * torch.sigmoid(x) + F.softplus(x) / 2,
        lambda x: F.dropout(x, training=True),
        lambda x: x.softmax(2),
        lambda x: x.double(),
        lambda x: torch.where(x > 0, x, torch.zeros_like(x)),
        lambda x: x.clone().add_(1).relu_(),
        lambda x: x + torch.ones(1, 1, 4, 4),
        lambda x: x * torch.full_like(x, 2),
        lambda x: x.masked_fill(x.bool(), 0.0),
        lambda x: x.gather(2, x.argmax(2, keepdim=True)),
        lambda x: x.index_select(2, torch.tensor([1, 0])),
    ],
)
def test_channels_stay_where_they_are(function: object) -> None:
    probe = Probe()
    result = probe.run(function, probe.x)
    mark = probe.tracer.mark(result)
    assert isinstance(mark, Channels)
    # Held along the channel dimension only.
    assert mark.labels.shape == (1, 8, 1, 1)
    assert mark.labels.flatten().tolist() == probe.labels.axis("x", 1).tolist()
    assert not probe.frozen()


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: x.softmax(1), "softmax across channels"),
        (lambda x: x.mean(1), "mean across channels"),
        (lambda x: x.std(), "std across channels"),
        (lambda x: x.cumsum(1), "cumsum across channels"),
        (lambda x: x.topk(3, 1)[0], "topk across channels"),
        (lambda x: x.roll(1, 1), "rolled channels"),
        (lambda x: x.gather(2, torch.arange(32).view(1, 8, 1, 4) % 4), "meets a constant (gather"),
        (lambda x: x.gather(2, torch.zeros(1, 3, 1, 4, dtype=torch.long)), "gather of channels by position"),
        (lambda x: x[:, 3], "select of channels by position"),
        (lambda x: x[:, :3], "a slice of channels"),
        (lambda x: x.split([3, 5], 1)[0], "unequal parts"),
        (lambda x: x[:, torch.arange(8)], "channels indexed by position"),
        (lambda x: x[x > 0], "indexing"),
        (lambda x: x + torch.arange(8.0).view(8, 1, 1), "meets a constant"),
        (lambda x: F.local_response_norm(x, 3), "avg_pool3d across channels"),
        (lambda x: x.flatten(2) @ x.flatten(2).mT, "a product of activations"),
        (lambda x: F.conv2d(x.mean(1, keepdim=True), torch.ones(1, 1, 3, 3)), "convolution of what was taken across"),
        (lambda x: x / x.var(1, keepdim=True), "var across channels"),
        (lambda x: x * x.mean(1, keepdim=True).sigmoid(), "sigmoid of what was taken across channels"),
        (lambda x: torch.where(x > x.mean(1, keepdim=True), x, -x), "gt of what was taken across channels"),
        (lambda x: x.mean(1, keepdim=True).square().amax((2, 3)), "amax of what was taken across channels"),
        (lambda x: torch.cdist(x, x), "unknown operation _cdist_forward"),
        (lambda x: F.conv2d(x, torch.ones(2, 8, 1, 1)), "convolved with a computed weight"),
        (lambda x: torch.zeros(1, 16, 4, 4)[:, 8:].copy_(x), "written into part of a tensor"),
    ],
)
def test_what_acts_across_channels_freezes_them(function: object, reason: str) -> None:
    probe = Probe()
    probe.run(function, probe.x)
    assert any(given.startswith(reason) for given in probe.frozen()), probe.frozen()


def test_channels_that_meet_are_unified_by_position() -> None:
    probe = Probe()
    probe.run(lambda x, y: x + y, probe.x, probe.y)
    x, y = (probe.labels.roots(probe.labels.axis(name, 1)) for name in "xy")
    assert x.tolist() == y.tolist()
    assert len(set(x.tolist())) == 8


def test_a_mean_of_channels_stays_with_them() -> None:
    probe = Probe()
    result = probe.run(lambda x: x / (x.mean(1, keepdim=True).expand_as(x) + 1), probe.x)
    assert probe.channels(result)[0, :, 0, 0].tolist() == list(range(8))
    assert not probe.frozen()
    probe.run(lambda x, y: y * x.mean(1, keepdim=True), probe.x, probe.y)
    assert probe.frozen() == ["mul of what was taken across channels in the forward"]


def test_constant_padding_of_channels_freezes_what_meets_it() -> None:
    probe = Probe()
    probe.run(lambda x, y: F.pad(x[:, ::1], (0, 0, 0, 0, 2, 0)) + torch.cat([y, y[:, 6:]], 1), probe.x, probe.y)
    assert any("meets padding with constants" in reason for reason in probe.frozen())


def test_a_gate_of_one_channel_ties_to_nothing() -> None:
    probe = Probe()
    gate = nn.Conv2d(8, 1, 1)
    labels = Labels({"x": (8,), "weight": (1, 8, 1, 1), "bias": (1,)})
    weight_axes = tuple(tensor(labels.axis("weight", dim)) for dim in range(4))
    tracer = Tracer(
        labels,
        [("weight", gate.weight, weight_axes), ("bias", gate.bias, (tensor(labels.axis("bias", 0)),))],
        forwards._RULES,
    )
    x = torch.zeros(2, 8, 4, 4)
    tracer._marks[x] = Channels(tensor(labels.axis("x", 0)).view(1, 8, 1, 1))
    with torch.no_grad(), tracer:
        once = x * gate(x)
        twice = x * gate(x).expand_as(x)
    for result in (once, twice):
        mark = tracer.mark(result)
        assert isinstance(mark, Channels)
        assert mark.labels.flatten().tolist() == labels.axis("x", 0).tolist()
    assert len(np.unique(labels.roots(labels.axis("x", 0)))) == 8
    assert not labels.frozen
    assert probe.x is not x


def test_views_of_a_parameter_stay_a_parameter() -> None:
    probe = Probe()
    result = probe.run(lambda: probe.module.x.detach().permute(1, 0, 2, 3).squeeze(1).view(8, 1, 4, 4).clone())
    mark = probe.tracer.mark(result)
    assert isinstance(mark, Weight)
    assert [None if axis is None else len(axis) for axis in mark.axes] == [8, None, 4, 4]


def test_activations_are_not_kept_alive() -> None:
    probe = Probe()
    result = probe.run(lambda x: x + 1, probe.x)
    before = len(probe.tracer._marks)
    del result
    gc.collect()
    assert len(probe.tracer._marks) == before - 1
