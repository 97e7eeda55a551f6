"""A predictor is made from measurements, checked on others, kept, and says what it is worth."""

import json

import numpy as np
import pytest
import torch

from backends.inventory import take_inventory
from backends.latency_cost import PredictorOptions, latency_cost, random_counts
from backends.sparse_space import sparse_space
from compsearch.budget import budget_from_ratio

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
def made(tiny, tmp_path):
    kept = {}

    def once(name, compute):
        if name not in kept:
            kept[name] = json.loads(json.dumps(compute()))
        return kept[name]

    def make(meter, keep=once, **changes):
        return latency_cost(
            model=tiny.model,
            space=tiny.space,
            example_input=EXAMPLE,
            latency=meter,
            inventory=take_inventory(tiny.model, tiny.space, EXAMPLE),
            once=keep,
            seed=0,
            table_dir=str(tmp_path / "tables"),
            options=PredictorOptions(**{**OPTIONS, **changes}),
        )

    make.kept = kept
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
    counts = np.array(random_counts(tiny.space, 200, seed=0))
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
        once=lambda name, compute: compute(),
        seed=0,
        table_dir=str(tmp_path),
        options=PredictorOptions(**OPTIONS),
    )
    costs = cost_model.costs(np.stack([space.sizes, space.min_counts]))
    assert costs.tolist() == [costs[0], costs[0]]
    assert "zeros take as long" in cost_model.note


@pytest.mark.parametrize("change", [{"max_points": 1}, {"rounds": 0}, {"fit_policies": 0}, {"check_policies": 1}])
def test_impossible_options_are_refused(change):
    [name] = change
    with pytest.raises(ValueError, match=rf"`{name} >= \d` must hold"):
        PredictorOptions(**{**OPTIONS, **change})
