import dataclasses
from pathlib import Path

import numpy as np
import pytest

from compsearch.budget import Budget
from compsearch.report.pareto import Point, on_front, pareto_figure, save_pareto, trial_points
from compsearch.report.policy_plot import policy_figure
from compsearch.report.search_plot import best_so_far, search_figure
from compsearch.report.table import summary_table
from compsearch.summary import Latency, NetworkRow, SearchCost, Summary
from compsearch.toy import toy_space
from compsearch.trial import Measurement, Trial

SPACE = toy_space()


def trial(cost_ratio: float, accuracy: float) -> Trial:
    failed = np.isnan(accuracy)
    measurement = Measurement("search", 100, accuracy, accuracy, accuracy)
    return Trial(SPACE.full_policy(), measurement, None if failed else accuracy, cost_ratio, "nan" if failed else "")


TRIALS = [trial(0.3, 0.7), trial(0.4, 0.6), trial(0.5, 0.9), trial(0.45, float("nan"))]
POINTS = [Point("dense", 1.0, 0.95), Point("uniform", 0.5, 0.92), Point("compressed", 0.5, 0.91)]


def summary() -> Summary:
    cpu = "CPU, batch 1"
    rows = (
        NetworkRow("dense", 2e6, 1000, 0.95, 0.94, 0.99, Latency(4.0, 3.0, 5.0, cpu)),
        NetworkRow("compressed", 1e6, 400, 0.9, 0.89, 0.98, Latency(3.0, 2.0, 4.0, cpu)),
    )
    cost = SearchCost(num_trials=4, num_failed=1, num_images=400, wall_s=61.0)
    return Summary("r", "AMC", "m", "d", 0, ("macs", 0.5), rows, cost, recovery="bn", notes=("look twice",))


def test_the_front_is_what_no_other_point_beats() -> None:
    scores = np.array([[0.3, 0.7], [0.4, 0.6], [0.5, 0.9], [0.5, 0.8], [0.3, 0.7]])
    assert list(on_front(scores)) == [True, False, True, False, False]


def test_every_finite_trial_is_drawn_and_failed_ones_are_counted() -> None:
    figure = pareto_figure(TRIALS, resource="macs", points=POINTS, title="t", split="search", recovery="bn")
    scattered = figure.axes[0].collections[0].get_offsets()
    assert len(np.asarray(scattered)) == 3
    labels = figure.axes[0].get_legend_handles_labels()[1]
    assert any("1 failed" in label for label in labels)
    assert any("dense 95.00%" in label for label in labels)
    assert "FLOPs (MACs)" in figure.axes[0].get_xlabel()


def test_a_trial_over_the_budget_failed_whatever_its_accuracy() -> None:
    over = dataclasses.replace(TRIALS[0], objective=None, failure="over the budget")
    assert np.isfinite(over.measurement.accuracy)
    assert len(trial_points([over, TRIALS[0]])) == 1


def test_a_better_baseline_is_said_in_the_title() -> None:
    figure = pareto_figure(TRIALS, resource="macs", points=POINTS, title="t", split="search", recovery="bn")
    assert "uniform did better, by 1.00 points" in figure.get_suptitle()
    better = [*POINTS[:2], Point("compressed", 0.5, 0.93)]
    figure = pareto_figure(TRIALS, resource="macs", points=better, title="t", split="search", recovery="bn")
    assert "uniform" not in figure.get_suptitle()


def test_plots_are_written(tmp_path: Path) -> None:
    path = tmp_path / "pareto.png"
    save_pareto(path, TRIALS, resource="macs", points=POINTS, title="t", split="search", recovery="bn")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_the_policy_plot_has_a_bar_per_group_as_high_as_its_keep_ratio() -> None:
    policy = SPACE.select([group.counts[1] for group in SPACE.groups], np.arange(SPACE.num_units, dtype=float))
    figure = policy_figure(SPACE, policy, title="t", reference=SPACE.full_policy())
    heights = [bar.get_height() for bar in figure.axes[0].containers[1]]
    assert heights == pytest.approx(SPACE.counts(policy) / SPACE.sizes)


def test_the_search_plot_shows_the_best_so_far() -> None:
    assert list(best_so_far(np.array([0.1, np.nan, 0.3, 0.2]))) == [0.1, 0.1, 0.3, 0.3]
    figure = search_figure(TRIALS, resource="macs", budget=Budget("macs", 1.0, 2.0), title="t")
    assert len(np.asarray(figure.axes[1].collections[0].get_offsets())) == 4


def test_the_table_says_numbers_ratios_and_notes() -> None:
    text = summary_table(summary())
    for piece in ("89.00%", "1 M (0.500)", "400 (0.400)", "3.00 ms (0.750)", "2.00–4.00 ms", "4 trials (1 failed)"):
        assert piece in text, piece
    assert "note: look twice" in text


def test_a_summary_survives_json() -> None:
    assert Summary.from_json(summary().to_json()) == summary()
    with pytest.raises(ValueError, match="a summary must have the fields"):
        Summary.from_json({"run_name": "x"})
