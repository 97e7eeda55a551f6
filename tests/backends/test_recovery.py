"""Batch norm, least squares, sequential least squares, SGD: each against a direct computation."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from backends.batch_norm import BatchNormRecovery
from backends.data import Splits
from backends.least_squares import LeastSquaresRecovery, ridge_solver, wide_ridge_solver
from backends.recovery import InTurn, NoRecovery
from backends.sequential_least_squares import SequentialLeastSquaresRecovery
from backends.sgd_recovery import SgdRecovery
from backends.surgery import extract

CPU = torch.device("cpu")


def images(split: Any) -> torch.Tensor:
    return torch.cat([batch for batch, _ in split.batches(16)])


def least_squares(tiny: SimpleNamespace, **changes: Any) -> LeastSquaresRecovery:
    options = {"positions_per_image": 64, "ridge": 1e-9, "batch_size": 16, "max_gram_gib": 1.0} | changes
    given = {"model": tiny.model, "space": tiny.space, "calibration": tiny.calibration, "device": CPU, "seed": 0}
    return LeastSquaresRecovery(**given, **options)


def sequential(tiny: SimpleNamespace, **changes: Any) -> SequentialLeastSquaresRecovery:
    options: dict[str, Any] = {"positions_per_image": 64, "ridge": 1e-6, "rectifications": 0, "batch_size": 16}
    given = {"model": tiny.model, "space": tiny.space, "calibration": tiny.calibration, "device": CPU, "seed": 0}
    return SequentialLeastSquaresRecovery(**given, **(options | {"max_gib": 1.0} | changes))


def sgd(tiny: SimpleNamespace, **changes: Any) -> SgdRecovery:
    options: dict[str, Any] = {"num_steps": 3, "lr": 0.05, "momentum": 0.9, "weight_decay": 1e-4, "batch_size": 16}
    splits = Splits(tiny.calibration, tiny.search, tiny.search, 5, 8, ("a", "b", "c", "d", "e"))
    return SgdRecovery(splits=splits, device=CPU, seed=0, **(options | changes))


ALL = {
    "none": lambda tiny: NoRecovery(),
    "bn": lambda tiny: BatchNormRecovery(calibration=tiny.calibration, device=CPU, batch_size=16),
    "lsq": least_squares,
    "lsq_seq": sequential,
    "sgd": sgd,
    "lsq then bn": lambda tiny: InTurn(recoveries=[least_squares(tiny), ALL["bn"](tiny)]),
}


@pytest.mark.parametrize("name", ALL)
def test_the_same_policy_always_gives_the_same_network(tiny: SimpleNamespace, name: str) -> None:
    recovery = ALL[name](tiny)
    states = []
    for _ in range(2):
        network = extract(tiny.model, tiny.space, tiny.half)
        recovery(network, tiny.half)
        states.append(network.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize("name", ALL)
def test_neither_the_dense_network_nor_the_global_generator_is_touched(tiny: SimpleNamespace, name: str) -> None:
    before = copy.deepcopy(tiny.model.state_dict())
    rng = torch.get_rng_state()
    network = extract(tiny.model, tiny.space, tiny.half)
    ALL[name](tiny)(network, tiny.half)
    assert all(torch.equal(before[key], value) for key, value in tiny.model.state_dict().items())
    assert torch.equal(rng, torch.get_rng_state())
    assert not network.training
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_batch_norm_statistics_equal_the_average_over_batches(tiny: SimpleNamespace) -> None:
    network = extract(tiny.model, tiny.space, tiny.half)
    ALL["bn"](tiny)(network, tiny.half)
    outputs = [F.conv2d(batch, network.stem.weight, padding=1) for batch, _ in tiny.calibration.batches(16)]
    mean = torch.stack([output.mean((0, 2, 3)) for output in outputs]).mean(0)
    variance = torch.stack([output.var((0, 2, 3)) for output in outputs]).mean(0)
    assert torch.allclose(network.stem_norm.running_mean, mean, atol=1e-5)
    assert torch.allclose(network.stem_norm.running_var, variance, rtol=1e-4)


def test_least_squares_equals_lstsq_on_the_same_features(tiny: SimpleNamespace) -> None:
    network = extract(tiny.model, tiny.space, tiny.half)
    least_squares(tiny)(network, tiny.half)
    with torch.no_grad():
        x = F.relu(tiny.model.stem_norm(tiny.model.stem(images(tiny.calibration))))
        hidden = F.relu(tiny.model.norm1(tiny.model.conv1(x)))
        wanted = tiny.model.conv2(hidden)
    kept = dict(tiny.half.kept)
    keep_in, keep_out = list(kept["conv1"]), None
    for group, units in tiny.half.kept:
        if "conv2" in {g.name: g.producers for g in tiny.space.groups}[group]:
            keep_out = list(units)
    assert keep_out is not None
    rows = F.unfold(hidden[:, keep_in], 3, padding=1).transpose(1, 2).flatten(0, 1).double()
    rows = torch.cat([rows, torch.ones(len(rows), 1, dtype=torch.float64)], 1)
    targets = wanted[:, keep_out].permute(0, 2, 3, 1).flatten(0, 2).double()
    solution = torch.linalg.lstsq(rows, targets).solution
    ours = network.conv2.weight.detach().flatten(1).T.double()
    assert torch.allclose(ours, solution[:-1], atol=2e-4)
    moved = tiny.model.norm2.running_mean[keep_out] - network.norm2.running_mean
    assert torch.allclose(moved.double(), solution[-1], atol=2e-4)


@pytest.mark.parametrize("name", ["lsq", "lsq_seq"])
def test_keeping_everything_changes_nothing(tiny: SimpleNamespace, name: str) -> None:
    full = tiny.space.full_policy()
    network = extract(tiny.model, tiny.space, full)
    ALL[name](tiny)(network, full)
    x = images(tiny.search)
    assert torch.allclose(network(x), tiny.model(x), atol=1e-4)


@pytest.mark.parametrize("name", ["lsq", "lsq_seq"])
def test_refitting_brings_the_logits_nearer_to_the_dense_ones(tiny: SimpleNamespace, name: str) -> None:
    x = images(tiny.search)
    errors = []
    for recovery in (NoRecovery(), ALL[name](tiny)):
        network = extract(tiny.model, tiny.space, tiny.half)
        recovery(network, tiny.half)
        errors.append(float((network(x) - tiny.model(x)).detach().square().mean()))
    assert errors[1] < 0.6 * errors[0]


def test_sequential_beats_parallel_least_squares(tiny: SimpleNamespace) -> None:
    x = images(tiny.calibration)
    errors = []
    for recovery in (least_squares(tiny), sequential(tiny)):
        network = extract(tiny.model, tiny.space, tiny.half)
        recovery(network, tiny.half)
        errors.append(float((network(x) - tiny.model(x)).detach().square().mean()))
    assert errors[1] < errors[0]


def test_the_first_refitted_layer_of_the_sequence_equals_lstsq(tiny: SimpleNamespace) -> None:
    network = extract(tiny.model, tiny.space, tiny.half)
    before = copy.deepcopy(network)
    sequential(tiny, ridge=1e-10)(network, tiny.half)
    x = images(tiny.calibration)
    with torch.no_grad():
        dense = tiny.model
        hidden = F.relu(dense.stem_norm(dense.stem(x)))
        wanted = dense.norm1(dense.conv1(hidden))[:, list(dict(tiny.half.kept)["conv1"])]
        inputs = F.relu(before.stem_norm(before.stem(x)))
        rows = F.unfold(inputs, 3, stride=2, padding=1).transpose(1, 2).flatten(0, 1).double()
        rows = torch.cat([rows, torch.ones(len(rows), 1, dtype=torch.float64)], 1)
        targets = wanted.permute(0, 2, 3, 1).flatten(0, 2).double()
        best = (rows @ torch.linalg.lstsq(rows, targets).solution - targets).square().mean()
        inputs = F.relu(network.stem_norm(network.stem(x)))
        ours = network.norm1(network.conv1(inputs)).permute(0, 2, 3, 1).flatten(0, 2).double()
    assert float((ours - targets).square().mean()) <= float(best) * 1.001


@pytest.mark.parametrize("ridge", [1e-2, 1e-5])
def test_solving_among_samples_equals_solving_among_features(ridge: float) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 15, 40, generator=generator, dtype=torch.float64)
    cross = torch.randn(2, 40, 3, generator=generator, dtype=torch.float64)
    direct = ridge_solver(features.mT @ features, ridge)(cross)
    assert torch.allclose(wide_ridge_solver(features, ridge)(cross), direct, rtol=1e-6, atol=1e-8)


def test_wide_layers_are_left_as_cut_and_said_so(tiny: SimpleNamespace) -> None:
    recovery = least_squares(tiny, max_gram_gib=1e-5)
    assert recovery.left_out
    assert all("GiB" in reason for reason in recovery.left_out.values())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda tiny: least_squares(tiny, ridge=-1.0), "ridge >= 0"),
        (lambda tiny: sequential(tiny, positions_per_image=0), "positions_per_image >= 1"),
        (lambda tiny: sgd(tiny, num_steps=0), "num_steps >= 1"),
        (lambda tiny: BatchNormRecovery(calibration=tiny.calibration, device=CPU, batch_size=1), "batch_size >= 2"),
    ],
)
def test_impossible_options_are_refused(tiny: SimpleNamespace, make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(tiny)


def test_a_network_that_fx_cannot_trace_is_refitted_too(tiny: SimpleNamespace) -> None:
    class Branching(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if float(x.sum()) > 1e30:  # depends on values: no graph
                return self.inner(-x)
            return self.inner(x)

    from backends.groups import trace
    from backends.importance import l1_inputs

    model = Branching(tiny.model).eval()
    space = trace(model, torch.zeros(2, 3, 8, 8), divisor=1, min_keep_ratio=0.1)
    half = space.select([max(1, group.size // 2) for group in space.groups], l1_inputs(model, space).scores())
    wrapped = SimpleNamespace(model=model, space=space, calibration=tiny.calibration)
    network = extract(model, space, half)
    cut = copy.deepcopy(network)
    sequential(wrapped)(network, half)
    x = images(tiny.search)
    errors = [float((each(x) - model(x)).detach().square().mean()) for each in (cut, network)]
    assert errors[1] < errors[0]
