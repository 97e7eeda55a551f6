"""The plots of a family and of what was learned show what they say they show."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import same_color

from compsearch.budget import Budget
from compsearch.report.family_plot import family_figure, family_verdict, save_family
from compsearch.report.genome_plot import genome_figure, save_genome
from compsearch.report.kept_plot import kept_figure, save_kept
from compsearch.report.neighbours import finished_beside
from compsearch.report.search_plot import population_mean, search_figure
from compsearch.summary import FamilyMember, NetworkRow, SearchCost, Summary
from compsearch.toy import toy_space
from compsearch.trial import Measurement, Trial

SPACE = toy_space()
IMPORTANCE = np.arange(SPACE.num_units, dtype=float)
COST = SearchCost(num_trials=4, num_failed=0, num_images=400, wall_s=1.0)


def row(name: str, cost_ratio: float, accuracy: float | None) -> NetworkRow:
    return NetworkRow(name, cost_ratio * 2e6, int(cost_ratio * 1000), accuracy, accuracy, accuracy)


DENSE = row("dense", 1.0, 0.94)
#: (cost_ratio asked for, compressed, fine-tuned, uniform)
ACCURACIES = ((0.8, 0.93, 0.94, 0.93), (0.5, 0.90, 0.92, 0.88), (0.3, 0.70, 0.85, 0.75))


def member(cost_ratio: float, compressed: float, tuned: float | None, uniform: float | None) -> FamilyMember:
    """Members cost 0.01 of dense less than asked for, uniform 0.02 less."""
    rows = [row("compressed", cost_ratio - 0.01, compressed)]
    rows += [] if tuned is None else [row("fine-tuned", cost_ratio - 0.01, tuned)]
    rows += [] if uniform is None else [row("uniform", cost_ratio - 0.02, uniform)]
    return FamilyMember(cost_ratio, tuple(rows))


def summary(*members: FamilyMember, searcher: str = "LeGR") -> Summary:
    return Summary(
        run_name="r",
        searcher=searcher,
        model="m",
        dataset="d",
        seed=0,
        budget=("macs", 0.3),
        networks=(DENSE, *members[-1].networks),
        search_cost=COST,
        recovery="bn",
        family=members if len(members) > 1 else (),
    )


FAMILY = summary(*(member(*numbers) for numbers in ACCURACIES))
UNTUNED = summary(*(member(ratio, own, None, uniform) for ratio, own, _, uniform in ACCURACIES))
AMC = summary(member(0.5, 0.91, 0.925, 0.88), searcher="AMC")


def points(axes: Axes, label: str) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    [found] = [each for each in axes.collections if each.get_label() == label]
    return np.asarray(found.get_offsets())


def test_the_family_is_drawn_at_what_it_costs_before_and_after_fine_tuning() -> None:
    before, after = family_figure(FAMILY, resource="macs", title="t").axes
    for axes, index in ((before, 1), (after, 2)):
        assert points(axes, "LeGR") == pytest.approx(np.array([[n[0] - 0.01, n[index]] for n in ACCURACIES[::-1]]))
        assert points(axes, "uniform") == pytest.approx(np.array([[n[0] - 0.02, n[3]] for n in ACCURACIES[::-1]]))
        assert points(axes, "dense") == pytest.approx(np.array([[1.0, 0.94]]))
        assert axes.get_xlabel() == "cost_ratio: FLOPs (MACs) / dense"
    assert "before fine-tuning, recovered by bn" in before.get_title()
    assert "fine-tuned" in after.get_title()
    assert "test split" in before.get_ylabel()


def test_a_network_looks_the_same_in_both_panels_and_in_the_legend() -> None:
    figure = family_figure(FAMILY, resource="macs", title="t", others=[AMC])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["dense", "LeGR", "uniform", "AMC, 1 run"]
    styles = [
        [(each.get_label(), each.get_paths()[0].vertices.tobytes()) for each in axes.collections]  # type: ignore[union-attr]
        for axes in figure.axes
    ]
    assert styles[0] == styles[1]
    shapes = {shape for _, shape in styles[0]}
    assert len(shapes) == len(styles[0])  # told apart without colour


def test_without_fine_tuning_there_is_one_panel() -> None:
    [axes] = family_figure(UNTUNED, resource="macs", title="t").axes
    assert points(axes, "LeGR")[:, 1] == pytest.approx([0.7, 0.9, 0.93])


def test_other_searchers_runs_are_points_single_or_families() -> None:
    evolution = dataclasses.replace(FAMILY, searcher="Evolution")
    second = summary(member(0.3, 0.65, 0.8, 0.75), searcher="AMC")
    before, after = family_figure(FAMILY, resource="macs", title="t", others=[AMC, evolution, second]).axes
    assert points(before, "AMC, 2 runs") == pytest.approx(np.array([[0.29, 0.65], [0.49, 0.91]]))
    assert points(after, "AMC, 2 runs")[:, 1] == pytest.approx([0.8, 0.925])
    assert len(points(before, "Evolution, 1 run")) == 3


def test_the_family_is_drawn_over_the_resource_that_is_asked_for() -> None:
    [axes] = family_figure(UNTUNED, resource="params", title="t").axes
    assert axes.get_xlabel() == "cost_ratio: parameters / dense"
    assert points(axes, "LeGR")[:, 0] == pytest.approx([0.29, 0.49, 0.79], abs=1e-3)


def test_the_verdict_names_the_budgets_where_uniform_did_as_well() -> None:
    assert family_verdict(FAMILY) == "uniform did as well or better at 0.8, 0.3, before fine-tuning"
    assert family_verdict(FAMILY) in family_figure(FAMILY, resource="macs", title="t").get_suptitle()
    better = summary(*(member(ratio, own, None, own - 0.001) for ratio, own, _, _ in ACCURACIES))
    assert family_verdict(better) == ""
    assert family_figure(better, resource="macs", title="t").get_suptitle() == "t"


def test_the_verdict_is_silent_where_uniform_is_the_member_itself() -> None:
    assert family_verdict(summary(member(0.8, 0.9, None, None), member(0.3, 0.7, None, None))) == ""


def test_neighbours_are_other_searchers_runs_on_the_same_network(tmp_path: Path) -> None:
    other_data = dataclasses.replace(AMC, dataset="other")
    other_weights = dataclasses.replace(AMC, networks=(row("dense", 1.0, 0.95), *AMC.networks[1:]))
    kept = {"own": FAMILY, "amc": AMC, "same": FAMILY, "data": other_data, "weights": other_weights}
    for name, each in kept.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text(json.dumps(each.to_json()))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "summary.json").write_text("{")
    assert finished_beside(tmp_path / "own", FAMILY) == [AMC]


GENOME = {
    "alpha": {"stem": 2.0, "conv": 0.25, "last": 1.0},
    "kappa": {"stem": -0.5, "conv": 0.0, "last": 3.0},
}


def test_the_genome_plot_has_a_bar_per_layer_from_what_changes_nothing() -> None:
    alpha, kappa = genome_figure(GENOME, title="t").axes
    assert alpha.get_yscale() == "log"
    assert kappa.get_yscale() == "linear"
    for axes, neutral, name in ((alpha, 1.0, "alpha"), (kappa, 0.0, "kappa")):
        ends = [bar.get_y() + bar.get_height() for bar in axes.patches]  # type: ignore[attr-defined]
        assert ends == pytest.approx(list(GENOME[name].values()))
        assert {bar.get_y() for bar in axes.patches} == {neutral}  # type: ignore[attr-defined]
    assert "α" in alpha.get_ylabel()
    assert "κ" in kappa.get_ylabel()
    assert [label.get_text() for label in kappa.get_xticklabels()] == ["stem", "conv", "last"]


def test_factors_are_written_as_plain_numbers() -> None:
    figure = genome_figure(GENOME, title="t")
    figure.draw_without_rendering()
    low, high = figure.axes[0].get_ylim()
    texts = {label.get_text() for label in figure.axes[0].get_yticklabels() if low <= label.get_position()[1] <= high}
    assert {"0.5", "1", "2"} <= texts


def test_other_genomes_and_the_identity_are_drawn(tmp_path: Path) -> None:
    figure = genome_figure({"sensitivity": {"a": 0.1, "b": 2.0}}, title="t")
    assert figure.axes[0].get_ylabel() == "sensitivity"
    save_genome(
        tmp_path / "genome.png", {"alpha": {"a": 1.0, "b": 1.0}, "kappa": {"a": 0.0, "b": 0.0}}, title="identity"
    )
    assert (tmp_path / "genome.png").read_bytes().startswith(b"\x89PNG")


POLICIES = {
    "0.8": SPACE.full_policy(),
    "0.3": SPACE.select([group.counts[0] for group in SPACE.groups], IMPORTANCE),
}


def test_the_map_of_kept_units_has_their_number_in_every_cell() -> None:
    figure = kept_figure(SPACE, POLICIES, title="t")
    axes = figure.axes[0]
    cells = {tuple(map(int, text.get_position())): int(text.get_text()) for text in axes.texts}
    for line, policy in enumerate(POLICIES.values()):
        for column, count in enumerate(SPACE.counts(policy)):
            assert cells[column, line] == count
    assert len(cells) == 2 * len(SPACE.groups)
    shown = np.asarray(axes.images[0].get_array())
    assert shown[0] == pytest.approx(np.ones(len(SPACE.groups)))
    assert shown[1] == pytest.approx(SPACE.min_counts / SPACE.sizes)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0.8", "0.3"]
    labels = [label.get_text() for label in axes.get_xticklabels()]
    for label, group in zip(labels, SPACE.groups, strict=True):
        assert label.startswith(group.name)
        assert label.endswith(str(group.size))
        assert ("(tied)" in label) == group.is_coupled


def test_numbers_stand_out_from_the_cell_they_are_in() -> None:
    texts = kept_figure(SPACE, POLICIES, title="t").axes[0].texts
    num_groups = len(SPACE.groups)
    dark = [text for text, ratio in zip(texts[num_groups:], SPACE.min_counts / SPACE.sizes, strict=True) if ratio < 0.5]
    assert dark
    assert all(same_color(text.get_color(), "white") for text in dark)
    assert all(same_color(text.get_color(), "black") for text in texts[:num_groups])


def trial(objective: float | None) -> Trial:
    score = float("nan") if objective is None else objective
    measurement = Measurement("search", 100, score, score, score)
    return Trial(SPACE.full_policy(), measurement, objective, 0.3, "nan" if objective is None else "")


def test_the_search_plot_of_an_evolution_has_the_mean_of_the_living() -> None:
    trials = [trial(value) for value in (0.2, 0.4, None, 0.6, 0.5)]
    budget = Budget("macs", 1.0, 2.0)
    figure = search_figure(trials, resource="macs", budget=budget, title="t", population_size=2)
    lines = {line.get_label(): np.asarray(line.get_ydata(), dtype=float) for line in figure.axes[0].lines}
    # A failed trial takes nobody's place.
    assert lines["mean of the population (last 2)"] == pytest.approx([0.2, 0.3, 0.3, 0.5, 0.55])
    assert lines["best so far"] == pytest.approx([0.2, 0.4, 0.4, 0.6, 0.6])
    plain = search_figure(trials, resource="macs", budget=budget, title="t")
    assert not any("population" in str(line.get_label()) for line in plain.axes[0].lines)


def test_the_mean_of_a_population_without_anyone_is_undefined() -> None:
    assert np.isnan(population_mean(np.array([np.nan, np.nan]), 3)).all()
    assert population_mean(np.array([np.nan, 1.0, 2.0, 3.0, 4.0]), 3)[1:] == pytest.approx([1.0, 1.5, 2.0, 3.0])


def test_family_plots_are_written(tmp_path: Path) -> None:
    save_family(tmp_path / "family.png", FAMILY, resource="macs", title="t", others=[AMC])
    save_kept(tmp_path / "kept.png", SPACE, POLICIES, title="t")
    for name in ("family.png", "kept.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
