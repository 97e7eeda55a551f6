"""Predictions are exact at measured widths, bilinear between, and have the gradient of what they are."""

import numpy as np
import pytest
import torch
from torch import nn

from backends.groups import trace
from backends.latency_predictor import LatencyPredictor, LayerGrid, grid_widths
from backends.layer_shapes import layer_calls


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


def predictor_of(chain, max_points, time=lambda ins, outs: ins * outs, **options):
    space, calls = chain
    grids = [
        LayerGrid(shape, tuple(ins), tuple(outs), np.array([[time(i, o) for o in outs] for i in ins], dtype=float))
        for shape, (ins, outs) in grid_widths(calls, space, max_points=max_points).items()
    ]
    options = {"traffic": (0.0, np.zeros(len(space.groups))), **options}
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
    predictor = predictor_of(chain, 99, traffic=(100.0, np.array([10.0, 1.0])), coefficients=(2.0, 0.01, 5.0))
    assert predictor.costs(np.array([[16, 32]])) == pytest.approx([2 * by_hand(16, 32) + 0.01 * (100 + 160 + 32) + 5])


def test_the_gradient_in_expected_widths_is_that_of_finite_differences(chain):
    predictor = predictor_of(chain, 5, traffic=(0.0, np.array([10.0, 1.0])), coefficients=(2.0, 0.01, 5.0))
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
    predictor = predictor_of(chain, 4, traffic=(1.0, np.array([2.0, 3.0])), coefficients=(1.5, 0.25, 2.0))
    again = LatencyPredictor.from_json(predictor.to_json(), calls=chain[1])
    counts = np.array([[3, 7], [16, 32]])
    assert again.costs(counts).tolist() == predictor.costs(counts).tolist()
