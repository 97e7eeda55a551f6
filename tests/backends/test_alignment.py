"""The divisor is read off the staircase."""

import numpy as np
import pytest
import torch

from backends.alignment import AlignmentOptions, divisor_of, preferred_divisor, rounding_growth

WIDTHS = np.arange(1, 65)


def stairs(times, axis="outputs"):
    return {"axis": axis, "layer": "", "widths": WIDTHS.tolist(), "median_us": list(times)}


def blocks_of(size):
    return np.ceil(WIDTHS / size) * size + 20.0


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16, 32])
def test_blocks_of_a_size_prefer_that_size(size):
    assert divisor_of([stairs(blocks_of(size))], most_growth=0.4) == size


def test_the_axis_that_needs_more_decides():
    both = [stairs(blocks_of(4), "inputs"), stairs(blocks_of(16), "outputs")]
    assert divisor_of(both, most_growth=0.4) == 16


def test_widths_that_are_slow_unless_multiples_of_four_prefer_four_and_no_more():
    times = WIDTHS + np.where(WIDTHS % 4, 30.0, 0.0)
    assert divisor_of([stairs(times)], most_growth=0.4) == 4


def test_noise_on_an_even_growth_prefers_nothing():
    times = WIDTHS * 1.0 + np.random.default_rng(0).normal(0, 0.2, 64)
    assert divisor_of([stairs(times)], most_growth=0.4) == 1


def test_growth_is_one_on_a_line_and_nothing_within_a_step():
    assert rounding_growth(WIDTHS, 3.0 * WIDTHS, 4) == pytest.approx(1)
    assert rounding_growth(WIDTHS, blocks_of(16), 4) == pytest.approx(0)
    assert rounding_growth(WIDTHS[:3], 3.0 * WIDTHS[:3], 32) is None


def test_layers_are_timed_at_every_width_on_both_sides(tiny, fake_meter, tmp_path):
    def blocky(layer):
        return -(-layer.weight.shape[0] // 4) * layer.weight[0].numel() * 1e-6

    found = preferred_divisor(
        model=tiny.model,
        space=tiny.space,
        example_input=torch.zeros(2, 3, 8, 8),
        latency=fake_meter(blocky),
        table_dir=str(tmp_path),
        options=AlignmentOptions(num_layers=2, num_widths=64, most_growth=0.4, rounds=1, samples=1, min_sample_us=1.0),
    )
    assert found["divisor"] == 4
    assert "fake" in found["device"]
    axes = [(each["axis"], each["widths"][-1]) for each in found["staircases"]]
    assert ("inputs", 12) in axes
    assert ("outputs", 16) in axes
    assert all(each["widths"] == list(range(1, each["widths"][-1] + 1)) for each in found["staircases"])
