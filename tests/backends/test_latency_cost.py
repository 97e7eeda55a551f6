"""A predictor is made from measurements, checked on others, kept, and says what it is worth."""

import dataclasses
import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from backends.groups import trace
from backends.inventory import take_inventory
from backends.latency_cost import PredictorOptions, latency_cost, random_choices
from backends.macs import is_part_of
from backends.operation_surgery import OperationSurgery
from backends.sparse_space import sparse_space
from backends.surgery import ChannelSurgery
from compsearch.budget import budget_from_ratio
from compsearch.candidates import candidates_of
from compsearch.protocols import ExpectedCostModel

EXAMPLE = torch.zeros(2, 3, 8, 8)
OPTIONS = {
    "max_points": 99,
    "rounds": 1,
    "samples": 1,
    "min_sample_us": 1.0,
    "fit_policies": 4,
    "check_policies": 5,
}


@pytest.fixture
def keep():
    """A run's memory."""
    kept = {}

    def once(name, compute):
        if name not in kept:
            kept[name] = json.loads(json.dumps(compute()))
        return kept[name]

    once.kept = kept
    return once


def cost_of(network, meter, keep, folder, surgery=None, **changes):
    return latency_cost(
        model=network.model,
        space=network.space,
        example_input=EXAMPLE,
        latency=meter,
        inventory=take_inventory(network.model, network.space, EXAMPLE),
        surgery=surgery or ChannelSurgery(),
        once=keep,
        seed=0,
        table_dir=str(folder),
        options=PredictorOptions(**{**OPTIONS, **changes}),
    )


@pytest.fixture
def made(tiny, tmp_path, keep):
    def make(meter, **changes):
        return cost_of(tiny, meter, keep, tmp_path / "tables", **changes)

    make.kept = keep.kept
    return make


def params_ms(space, counts):
    """A microsecond per weight of convolutions and linear layers, as the fake runtime takes."""
    stem, conv1, conv2 = counts  # residual channels, those inside, those of the sum
    return (3 * stem * 9 + stem * conv1 * 9 + conv1 * conv2 * 9 + stem * conv2 + conv2 * 5) / 1e3


def test_where_time_is_the_sum_of_layers_and_an_overhead_it_is_predicted_exactly(tiny, made, fake_meter):
    cost_model = made(fake_meter(overhead_s=2e-4))
    assert [group.size for group in tiny.space.groups] == [8, 12, 16]
    for counts in ([8, 12, 16], [2, 3, 4], [1, 12, 9]):
        expected = params_ms(tiny.space, counts) + 0.2
        assert cost_model.costs(np.array([counts])) == pytest.approx([expected], rel=1e-6)
    assert cost_model.check.mape == pytest.approx(0, abs=1e-6)
    assert cost_model.check.tau == pytest.approx(1)


def test_the_dense_network_costs_what_was_measured_even_where_it_is_off_the_trend(tiny, made, fake_meter):
    def slow_when_dense(layer):
        return layer.weight.numel() * 1e-6 * (2.0 if layer.weight.shape[:2] == (16, 12) else 1.0)

    meter = fake_meter(slow_when_dense)
    meter.runtime.prepare_layer = lambda *arguments, **options: fake_meter().runtime.prepare_layer(
        *arguments, **options
    )
    cost_model = made(meter)
    dense = params_ms(tiny.space, [8, 12, 16]) + 16 * 12 * 9 / 1e3
    assert cost_model.costs(tiny.space.sizes[None]) == pytest.approx([dense])
    assert cost_model.predictor.costs(tiny.space.sizes[None])[0] < dense


def test_the_cost_of_a_policy_is_that_of_its_counts(tiny, made, fake_meter):
    cost_model = made(fake_meter())
    assert cost_model.cost(tiny.half) == cost_model.costs(tiny.space.counts(tiny.half)[None])[0]


def test_a_good_prediction_says_how_good_and_a_poor_one_says_so_loudly(made, fake_meter):
    assert "MAPE 0.0%, Kendall tau 1.00 on 5 unseen networks" in made(fake_meter()).note
    made.kept.clear()
    rng = np.random.default_rng(0)
    poor = made(fake_meter(lambda layer: rng.random(), threads=2))
    assert poor.note.startswith("THE LATENCY PREDICTION IS POOR: MAPE")


def test_a_second_run_measures_nothing_again(made, fake_meter):
    first = made(fake_meter())
    made.kept.clear()
    meter = fake_meter(lambda layer: 1.0)
    second = made(meter)
    assert meter.runtime.prepared == 0
    assert second.predictor.to_json() == first.predictor.to_json()


def test_what_the_run_kept_stands_even_when_the_tables_are_gone(made, fake_meter, tmp_path):
    first = made(fake_meter())
    for path in (tmp_path / "tables").iterdir():
        path.unlink()
    meter = fake_meter(lambda layer: 1.0)
    assert made(meter).predictor.to_json() == first.predictor.to_json()
    assert meter.runtime.prepared == 0


def test_a_run_does_not_go_on_on_another_device(made, fake_meter):
    made(fake_meter())
    with pytest.raises(ValueError, match=r"must go on on the device that its latencies were measured on"):
        made(fake_meter(threads=2))


def test_budgets_in_latency_are_budgets_like_others(tiny, made, fake_meter):
    cost_model = made(fake_meter())
    budget = budget_from_ratio(cost_ratio=0.4, cost_model=cost_model, space=tiny.space)
    assert (budget.resource, budget.dense) == ("latency_ms", pytest.approx(params_ms(tiny.space, [8, 12, 16])))
    with pytest.raises(ValueError, match=r"must reach what the smallest policy costs, 0\.0\d+ of the dense latency_ms"):
        budget_from_ratio(cost_ratio=0.001, cost_model=cost_model, space=tiny.space)


def test_a_policy_of_another_space_is_refused(tiny, made, fake_meter):
    cost_model = made(fake_meter())
    other = type(tiny.half)("elsewhere", tiny.half.kept)
    with pytest.raises(ValueError, match=r"must belong to the space that prices it"):
        cost_model.cost(other)


def test_random_networks_are_of_all_sizes(tiny):
    counts = np.array(random_choices(tiny.space, 200, seed=0))
    shares = (counts / tiny.space.sizes).mean(axis=1)
    assert shares.min() < 0.25
    assert shares.max() > 0.9
    assert all(count in tiny.space.groups[1].counts for count in counts[:, 1])


def test_zeros_take_as_long_as_other_weights(tiny, fake_meter, tmp_path):
    space = sparse_space(tiny.model, EXAMPLE, block=[1, 1], num_levels=8, min_keep_ratio=0.1)
    cost_model = latency_cost(
        model=tiny.model,
        space=space,
        example_input=EXAMPLE,
        latency=fake_meter(),
        inventory=None,
        surgery=None,
        once=lambda name, compute: compute(),
        seed=0,
        table_dir=str(tmp_path),
        options=PredictorOptions(**OPTIONS),
    )
    costs = cost_model.costs(np.stack([space.sizes, space.min_counts]))
    assert costs.tolist() == [costs[0], costs[0]]
    assert "zeros take as long" in cost_model.note


class Skipping(nn.Module):
    """Two blocks that may be skipped."""

    def __init__(self):
        super().__init__()
        self.stem, self.linear = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5)
        self.block1 = nn.Sequential(nn.Conv2d(8, 12, 1), nn.ReLU(), nn.Conv2d(12, 8, 1))
        self.block2 = nn.Sequential(nn.Conv2d(8, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 1))

    def forward(self, x):
        x = self.stem(x)
        x = x + self.block1(x)
        return self.linear((x + self.block2(x)).mean((2, 3)))


@pytest.fixture
def skipping():
    model = Skipping().eval()
    space = trace(model, EXAMPLE, divisor=1, min_keep_ratio=0.1, skip_blocks=True)
    assert ([group.size for group in space.groups], len(space.blocks)) == ([8, 12, 6], 2)
    return SimpleNamespace(model=model, space=space)


def test_skipped_blocks_are_predicted_and_expected_to_take_no_time(skipping, fake_meter, keep, tmp_path):
    cost_model = cost_of(skipping, fake_meter(overhead_s=2e-4), keep, tmp_path, fit_policies=8)
    assert isinstance(cost_model, ExpectedCostModel)
    assert cost_model.check.mape == pytest.approx(0, abs=1e-6)

    def taken(stem, inner1, inner2, skips1, skips2):
        first, second = stem * inner1 * 2, stem * inner2 * 10
        return 0.2 + (27 * stem + (1 - skips1) * first + (1 - skips2) * second + 5 * stem) / 1e3

    for choices in ([8, 12, 6, 0, 1], [3, 2, 5, 1, 0], [4, 4, 4, 1, 1], [4, 4, 4, 0, 0], [8, 12, 6, 0, 0]):
        assert cost_model.costs(np.array([choices])) == pytest.approx([taken(*choices)], rel=1e-6)
    assert cost_model.costs(np.array([[8, 12, 6]])) == pytest.approx([taken(8, 12, 6, 0, 0)], rel=1e-6)
    policy = skipping.space.select([4, 4, 4], np.zeros(26), [0, 1])
    assert cost_model.cost(policy) == pytest.approx(taken(4, 4, 4, 0, 1))
    candidates = candidates_of(skipping.space, [1.0, 0.5])
    halves = torch.full(candidates.values.shape, 0.5, dtype=torch.float64)
    costs = [taken(*choices) for choices in itertools.product([8, 4], [12, 6], [6, 3], [0, 1], [0, 1])]
    assert float(cost_model.expected(candidates, halves)) == pytest.approx(np.mean(costs), rel=1e-6)


def test_the_measured_time_of_the_dense_network_is_not_that_of_one_with_skipped_blocks(
    skipping, fake_meter, keep, tmp_path
):
    cost_model = cost_of(skipping, fake_meter(), keep, tmp_path)
    cost_model.check = dataclasses.replace(cost_model.check, fit_measured_ms=(1e3,))
    sizes = skipping.space.sizes
    measured = cost_model.costs(np.array([[*sizes, 0, 0], [*sizes, 0, 1], [*sizes, 1, 1]])) == 1e3
    assert measured.tolist() == [True, False, False]


def test_predictors_of_spaces_with_and_without_blocks_are_kept_apart(skipping, fake_meter, keep, tmp_path):
    cost_of(skipping, fake_meter(), keep, tmp_path)
    keep.kept.clear()
    without = SimpleNamespace(model=skipping.model, space=dataclasses.replace(skipping.space, blocks=()))
    cost_of(without, fake_meter(), keep, tmp_path)
    assert len(list(tmp_path.glob("predictor-*.json"))) == 2


def test_an_over_parameterised_network_is_expected_to_take_what_its_operations_do(mbconv, fake_meter, keep, tmp_path):
    meter = fake_meter(overhead_s=3e-4)
    cost_model = cost_of(mbconv, meter, keep, tmp_path, surgery=OperationSurgery(), fit_policies=8)
    space, candidates = mbconv.space, candidates_of(mbconv.space, [1.0])
    assert cost_model.check.mape == pytest.approx(0, abs=1e-6)
    # F(o) of every operation, in milliseconds: the fake runtime takes a microsecond per weight of its layers.
    table = [
        [
            sum(layer.num_weights for layer in space.layers if is_part_of(layer.name, operation.modules)) / 1e3
            for operation in block.operations
        ]
        for block in space.blocks
    ]
    always = 0.3 + sum(layer.num_weights for layer in space.layers if "candidates" not in layer.name) / 1e3
    weights = np.random.default_rng(0).random(candidates.values.shape) * candidates.is_one
    probabilities = torch.from_numpy(weights / weights.sum(axis=1, keepdims=True)).requires_grad_()
    found = cost_model.expected(candidates, probabilities)
    times = torch.zeros_like(probabilities)
    for number, row in enumerate(table):
        times[number, : len(row)] = torch.tensor(row)
    assert found.item() == pytest.approx(always + (probabilities * times).sum().item(), rel=1e-6)
    [gradient] = torch.autograd.grad(found, probabilities)
    assert gradient.numpy() == pytest.approx(times.numpy(), rel=1e-6, abs=1e-9)  # the slope in p_j is F(o_j)
    chosen = np.array([[0, 1, 2, 3], [3, 0, 0, 0]])[:, : len(space.blocks)]
    told = [always + sum(row[index] for row, index in zip(table, path, strict=True)) for path in chosen]
    assert cost_model.costs(chosen) == pytest.approx(told, rel=1e-6)


def test_random_networks_choose_few_and_many_of_each_operation(mbconv):
    drawn = np.array(random_choices(mbconv.space, 200, seed=0))
    sizes = [len(block.operations) for block in mbconv.space.blocks]
    for column, size in zip(drawn.T, sizes, strict=True):
        assert set(column) == set(range(size))
    zeros = (drawn == 3).sum(axis=1)
    assert (zeros.min(), zeros.max()) == (0, sum(size == 4 for size in sizes))


@pytest.mark.parametrize("change", [{"max_points": 1}, {"rounds": 0}, {"fit_policies": 0}, {"check_policies": 1}])
def test_impossible_options_are_refused(change):
    [name] = change
    with pytest.raises(ValueError, match=rf"`{name} >= \d` must hold"):
        PredictorOptions(**{**OPTIONS, **change})
