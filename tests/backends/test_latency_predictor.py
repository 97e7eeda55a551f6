"""Predictions are exact at measured widths, bilinear between, and have the gradient of what they are."""

import itertools
import json

import numpy as np
import pytest
import torch
from torch import nn

from backends.amounts import Affine, Amounts
from backends.groups import trace
from backends.inventory import take_inventory
from backends.latency_predictor import LatencyPredictor, LayerGrid, grid_widths
from backends.layer_shapes import layer_calls
from compsearch.candidates import candidates_of


@pytest.fixture
def chain():
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 4),
    ).eval()
    example = torch.zeros(2, 3, 8, 8)
    space = trace(model, example, divisor=1, min_keep_ratio=0.1)
    return space, layer_calls(model, space, example)


def linear(base, slope):
    return Amounts(Affine(np.array([base]), np.array(slope)[:, None]))


def predictor_of(chain, max_points, time=lambda ins, outs: ins * outs, **options):
    space, calls = chain
    grids = [
        LayerGrid(shape, tuple(ins), tuple(outs), np.array([[time(i, o) for o in outs] for i in ins], dtype=float))
        for shape, (ins, outs) in grid_widths(calls, space, max_points=max_points).items()
    ]
    options = {"traffic": linear(0.0, np.zeros(len(space.groups))), **options}
    return LatencyPredictor(calls=calls, grids=grids, **options)


def by_hand(a, b, time=lambda ins, outs: ins * outs):
    return (time(3, a) + time(a, b) + time(b, 4)) / 1e3


def test_at_measured_widths_it_is_the_sum_of_the_layers(chain):
    predictor = predictor_of(chain, max_points=99, time=lambda ins, outs: (ins * 7 + outs * 3) % 11 + 1.0)
    for counts in ([16, 32], [2, 4], [5, 17]):
        expected = by_hand(*counts, time=lambda ins, outs: (ins * 7 + outs * 3) % 11 + 1.0)
        assert predictor.costs(np.array([counts])) == pytest.approx([expected])


def test_between_measured_widths_it_is_bilinear(chain):
    predictor = predictor_of(chain, max_points=3)
    counts = np.array([[16, 32], [2, 4], [7, 9], [11, 30]])
    # A product of widths is bilinear, so interpolation has no error at all.
    assert predictor.costs(counts) == pytest.approx([by_hand(*row) for row in counts])


def test_all_widths_are_measured_where_they_are_few_and_the_ends_always(chain):
    space, calls = chain
    for ins, outs in grid_widths(calls, space, max_points=99).values():
        assert len(ins) in (1, 15, 29)
        assert len(outs) in (1, 15, 29)
    for ins, outs in grid_widths(calls, space, max_points=4).values():
        assert len(ins) in (1, 4)
        assert len(outs) in (1, 4)
        assert max(ins) in (3, 16, 32)


def test_the_rest_is_weighed_by_the_coefficients(chain):
    predictor = predictor_of(chain, 99, traffic=linear(100.0, [10.0, 1.0]), coefficients=(2.0, 0.01, 5.0))
    assert predictor.costs(np.array([[16, 32]])) == pytest.approx([2 * by_hand(16, 32) + 0.01 * (100 + 160 + 32) + 5])


def test_the_gradient_in_expected_widths_is_that_of_finite_differences(chain):
    predictor = predictor_of(chain, 5, traffic=linear(0.0, [10.0, 1.0]), coefficients=(2.0, 0.01, 5.0))
    counts = torch.tensor([[7.3, 18.6]], dtype=torch.float64, requires_grad=True)
    [gradient] = torch.autograd.grad(predictor.milliseconds(counts).sum(), counts)
    for group in range(2):
        step = torch.zeros(1, 2, dtype=torch.float64)
        step[0, group] = 1e-6
        high, low = predictor.milliseconds(counts.detach() + step), predictor.milliseconds(counts.detach() - step)
        assert gradient[0, group].item() == pytest.approx(float((high - low) / 2e-6), rel=1e-5)


def test_depthwise_layers_have_one_axis(chain):
    model = nn.Sequential(
        nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 3, groups=16), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)
    ).eval()
    example = torch.zeros(2, 3, 8, 8)
    space = trace(model, example, divisor=1, min_keep_ratio=0.1)
    predictor = predictor_of((space, layer_calls(model, space, example)), 99)
    # As times are inputs × outputs and a grouped layer's inputs stand for all: 1 × outputs.
    assert predictor.costs(np.array([[10]])) == pytest.approx([(3 * 10 + 10 + 10 * 4) / 1e3])


def test_it_survives_json(chain):
    predictor = predictor_of(chain, 4, traffic=linear(1.0, [2.0, 3.0]), coefficients=(1.5, 0.25, 2.0))
    again = LatencyPredictor.from_json(predictor.to_json(), calls=chain[1])
    counts = np.array([[3, 7], [16, 32]])
    assert again.costs(counts).tolist() == predictor.costs(counts).tolist()


class Residual(nn.Module):
    """Two residual blocks, a depthwise convolution, and channels of two groups side by side."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.block1 = nn.Sequential(nn.Conv2d(8, 12, 1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 8, 1))
        self.block2 = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU(), nn.Conv2d(8, 8, 1))
        self.side, self.linear = nn.Conv2d(8, 6, 1), nn.Linear(14, 4)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.block1(x)
        x = x + self.block2(x)
        return self.linear(torch.cat([x, self.side(x)], 1).mean((2, 3)))


@pytest.fixture(scope="module")
def residual():
    model, example = Residual().eval(), torch.zeros(2, 3, 8, 8)
    space = trace(model, example, divisor=1, min_keep_ratio=0.1, skip_blocks=True)
    assert ([group.size for group in space.groups], len(space.blocks)) == ([8, 12, 6], 2)
    calls = layer_calls(model, space, example)
    traffic = take_inventory(model, space, example).other_traffic
    predictor = predictor_of(
        (space, calls),
        # Neither all widths nor a product: what is interpolated is not what is interpolated between.
        max_points=4,
        time=lambda ins, outs: ins**1.5 * outs + (ins * 7 + outs * 3) % 11,
        traffic=traffic,
        coefficients=(1.5, 1e-4, 2.0),
    )
    return space, predictor, candidates_of(space, [1.0, 0.6, 0.25])


def every_network(candidates):
    return np.array(list(itertools.product(*(range(size) for size in candidates.sizes))))


def drawn(candidates, seed=0):
    """Probabilities of candidates, by chance."""
    weights = np.random.default_rng(seed).random(candidates.values.shape) * candidates.is_one
    return torch.from_numpy(weights / weights.sum(axis=1, keepdims=True))


def test_a_layer_in_a_skipped_block_takes_no_time(residual):
    space, predictor, _ = residual
    layers = {call.name: (call.block, call.operation) for call in predictor.calls}
    assert layers["block1.0"] == layers["block1.3"] == (0, 0)
    assert layers["block2.0"] == layers["block2.2"] == (1, 0)
    assert layers["stem"][0] == layers["side"][0] == layers["linear"][0] == -1
    sizes = space.sizes
    choices = np.array([[*sizes, 0, 0], [*sizes, 1, 0], [*sizes, 0, 1], [*sizes, 1, 1]])
    dense, first, second, both = predictor.features(torch.from_numpy(choices).double())[:, 0].tolist()

    def taken(name):
        [grid] = [
            grid
            for call in predictor.calls
            if call.name == name
            for grid in predictor.grids
            if grid.shape == call.shape
        ]
        return grid.times_us[-1, -1] / 1e3

    assert dense - first == pytest.approx(taken("block1.0") + taken("block1.3"))
    assert dense - both == pytest.approx(dense - first + dense - second)
    assert predictor.costs(sizes[None]) == predictor.costs(choices[:1])


def test_the_expected_latency_is_the_mean_over_all_networks(residual):
    _, predictor, candidates = residual
    # One layer reads what two groups give side by side: its width is taken at its mean, all else is exact.
    exact = [call for call in predictor.calls if call.name != "linear"]
    shapes = {call.shape for call in exact}
    grids = [grid for grid in predictor.grids if grid.shape in shapes]
    predictor = LatencyPredictor(
        calls=exact, grids=grids, traffic=predictor.traffic, coefficients=predictor.coefficients
    )
    paths = every_network(candidates)
    probabilities = drawn(candidates)
    weights = probabilities.numpy()[np.arange(len(candidates.values)), paths].prod(axis=1)
    assert weights.sum() == pytest.approx(1)
    mean = weights @ predictor.costs(candidates.choices(paths))
    assert float(predictor.expected(candidates, probabilities)) == pytest.approx(mean, rel=1e-12)
    widths = np.concatenate([(probabilities.numpy() * candidates.values).sum(axis=1)[:3], [0, 0]])
    assert float(predictor.costs(widths[None])[0]) != pytest.approx(mean, rel=1e-2)


def test_where_groups_meet_the_mean_width_is_taken(residual):
    _, predictor, candidates = residual
    [linear] = [call for call in predictor.calls if call.name == "linear"]
    grids = [grid for grid in predictor.grids if grid.shape == linear.shape]
    nothing = predictor.traffic.sum([False])
    alone = LatencyPredictor(calls=[linear], grids=grids, traffic=nothing)
    probabilities = drawn(candidates)
    mean = (probabilities.numpy() * candidates.values).sum(axis=1)[:3]
    assert float(alone.expected(candidates, probabilities)) == pytest.approx(alone.costs(mean[None])[0])


def test_a_certain_network_is_expected_to_take_what_it_costs(residual):
    _, predictor, candidates = residual
    paths = np.random.default_rng(0).integers(candidates.sizes, size=(20, len(candidates.values)))
    for path in paths:
        certain = torch.nn.functional.one_hot(torch.from_numpy(path), candidates.values.shape[1])
        cost = predictor.costs(candidates.choices(path)[None])[0]
        assert float(predictor.expected(candidates, certain)) == pytest.approx(cost, rel=1e-12)


def test_the_expected_latency_is_the_mean_over_sampled_networks(residual):
    _, predictor, candidates = residual
    probabilities, rng = drawn(candidates, seed=3), np.random.default_rng(0)
    paths = np.stack([rng.choice(len(row), size=20_000, p=row) for row in probabilities.numpy()], axis=1)
    costs = predictor.costs(candidates.choices(paths))
    error = costs.std() / len(costs) ** 0.5
    assert float(predictor.expected(candidates, probabilities)) == pytest.approx(costs.mean(), abs=4 * error, rel=2e-3)


def test_the_gradient_of_the_expected_latency_is_that_of_finite_differences(residual):
    _, predictor, candidates = residual
    logits = torch.randn(candidates.values.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits = logits.masked_fill(~torch.from_numpy(candidates.is_one), -torch.inf).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda parameters: predictor.expected(candidates, parameters),
        torch.softmax(logits, 1).detach().requires_grad_(),
    )
    [gradient] = torch.autograd.grad(predictor.expected(candidates, torch.softmax(logits, 1)), logits)
    assert (gradient[3:, 0] > 0).all()  # to keep a block
    assert (gradient[3:, 1] < 0).all()  # to skip it
    assert (gradient[:3, 0] > 0).all()  # all channels


def test_another_set_of_candidates_is_not_taken_for_the_first(residual):
    space, predictor, candidates = residual
    fewer = candidates_of(space, [1.0, 0.5])
    before = float(predictor.expected(candidates, drawn(candidates)))
    assert float(predictor.expected(fewer, drawn(fewer))) != before
    assert float(predictor.expected(candidates, drawn(candidates))) == before


def test_a_predictor_of_blocks_survives_json(residual):
    space, predictor, _ = residual
    again = LatencyPredictor.from_json(json.loads(json.dumps(predictor.to_json())), calls=predictor.calls)
    choices = np.stack([space.dense_choices, space.smallest_choices])
    assert again.costs(choices).tolist() == predictor.costs(choices).tolist()


def test_a_predictor_kept_before_there_were_blocks_is_read(chain):
    predictor = predictor_of(chain, 4, traffic=linear(1.0, [2.0, 3.0]), coefficients=(1.5, 0.25, 2.0))
    kept = {**predictor.to_json(), "traffic": [1.0, [2.0, 3.0]]}
    counts = np.array([[3, 7], [16, 32]])
    assert LatencyPredictor.from_json(kept, calls=chain[1]).costs(counts).tolist() == predictor.costs(counts).tolist()
