"""The static plots of a comparison show what its tables say, whatever the tables lack."""

import colorsys
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import same_color
from matplotlib.figure import Figure

from compsearch.comparison.accuracy_axis import is_wide, set_accuracy_axis
from compsearch.comparison.anytime import HYPERVOLUME
from compsearch.comparison.anytime_plot import anytime_figure
from compsearch.comparison.attainment_plot import attainment_figure
from compsearch.comparison.budget_plot import budget_figure, budget_sentence
from compsearch.comparison.comparison import KEPT_COLUMNS, NETWORK_COLUMNS, TRIAL_COLUMNS, Comparison, Run
from compsearch.comparison.cost_plot import cost_figure
from compsearch.comparison.keep_ratio_plot import keep_ratio_figure
from compsearch.comparison.look import PLOTLY_SYMBOLS, SEARCHER_LOOKS, looks, looks_of
from compsearch.comparison.pareto_plots import MACS_AXIS, CostAxis, over_seeds, pareto_figure, pareto_macs_figure
from compsearch.comparison.plot_frame import wrapped
from compsearch.comparison.plots import plots, save_plots
from compsearch.report.style import new_figure, save_both
from compsearch.summary import NetworkRow, SearchCost, Summary

FACET = "m on d"
BUDGETS = (0.3, 0.5, 0.7)
SEEDS = (0, 1, 2)
DENSE = 0.93
#: At every budget, before fine-tuning.
ACCURACIES = {"amc": (0.80, 0.90, 0.925), "legr": (0.85, 0.91, 0.92), "uniform": (0.78, 0.88, 0.92)}
#: Of every seed, added to all accuracies; their standard deviation is 0.01.
OFFSETS = (-0.01, 0.0, 0.01)
TUNED = 0.005
SUMMARY = Summary("r", "S", "m", "d", 0, None, (NetworkRow("dense", 1e6, 1000),), SearchCost(1, 0, 1, 1.0))


def run_of(series: str, searcher: str, budget: float, seed: int) -> Run:
    path = Path(f"{series}-{budget:g}-seed{seed}")
    trains_network = searcher == "proxylessnas"
    return Run(path, {}, SUMMARY, searcher, "", seed, FACET, series, {}, "", trains_network=trains_network)


def comparison_of(
    accuracies: dict[str, Sequence[float]] = ACCURACIES,  # type: ignore[assignment]
    *,
    budgets: Sequence[float] = BUDGETS,
    seeds: Sequence[int] = SEEDS,
    stages: Sequence[str] = ("before", "after"),
    has_latency: bool = True,
    num_trials: int = 4,
) -> Comparison:
    """Networks cost 0.01 less than the budget in FLOPs, 0.1 more in parameters; series are searchers up to a comma.

    Trials find half of the accuracy first, and the accuracy itself in the last of them; a second each, `uniform` one.
    """
    runs, networks, trials, kept = [], [], [], []
    for series, levels in accuracies.items():
        searcher = series.split(",")[0]
        for budget, level in zip(budgets, levels, strict=False):
            for seed in seeds:
                run = run_of(series, searcher, budget, seed)
                runs.append(run)
                shared = {"run": run.name, "facet": FACET, "series": series, "searcher": searcher, "variant": ""}
                shared |= {"seed": seed, "resource": "macs", "budget": budget}
                num = 1 if searcher == "uniform" else num_trials
                latency = budget + 0.2 if has_latency else math.nan
                for stage in stages:
                    accuracy = level + OFFSETS[seed] + (TUNED if stage == "after" else 0.0)
                    row = shared | {"stage": stage, "accuracy_test": accuracy, "macs_ratio": budget - 0.01}
                    row |= {"params_ratio": budget + 0.1, "latency_ratio": latency, "latency_p10": latency - 0.02}
                    row |= {"latency_p90": latency + 0.03, "device": "a box" if has_latency else "", "trials": num}
                    networks.append(row | {"wall_s": 2.0 * num, "cpu_s": 1.0 * num, "is_learned_elsewhere": False})
                dense = shared | {"series": "dense", "searcher": "dense", "budget": math.nan, "stage": "dense"}
                dense |= {"accuracy_test": DENSE, "macs_ratio": 1.0, "params_ratio": 1.0, "is_learned_elsewhere": False}
                networks.append(dense | {"latency_ratio": 1.0 if has_latency else math.nan, "device": row["device"]})
                for index in range(num):
                    found = (level + OFFSETS[seed]) * (1.0 if index == num - 1 else 0.5)
                    trial = shared | {
                        "index": index,
                        "accuracy": found,
                        "objective": found,
                        "cost_ratio": budget - 0.01,
                    }
                    trials.append(trial | {"wall_s": 2.0 * (index + 1), "cpu_s": 1.0 * (index + 1)})
                for place, group in enumerate(("stem.conv", "a.0.conv", "a.1.conv", "b.0.conv")):
                    ratio = min(budget + 0.05 * place + 5 * OFFSETS[seed], 1.0)
                    kept.append(shared | {"group": group, "keep_ratio": ratio})
    return Comparison(
        tuple(runs),
        pd.DataFrame(networks, columns=NETWORK_COLUMNS),
        pd.DataFrame(trials, columns=TRIAL_COLUMNS),
        pd.DataFrame(kept, columns=KEPT_COLUMNS),
    )


WHOLE = comparison_of()


def changed(comparison: Comparison, **values: object) -> Comparison:
    return replace(comparison, networks=comparison.networks.assign(**values))


def lines_of(axes: Axes, series: str) -> list[np.ndarray]:
    """Points [num_points, 2] of the lines of a known searcher."""
    look = SEARCHER_LOOKS[series]
    return [
        np.asarray(line.get_xydata())
        for line in axes.get_lines()
        if same_color(line.get_color(), look.color) and line.get_marker() == look.marker
    ]


def text_of(figure: Figure) -> str:
    assert figure._suptitle is not None
    return str(figure._suptitle.get_text())


def legend_of(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def assert_shows_all_points(figure: Figure) -> None:
    """Draws `figure` (what matplotlib warns of is an error), and checks that no line or mark is out of sight."""
    figure.canvas.draw()
    for axes in figure.axes:
        (left, right), (bottom, top) = axes.get_xlim(), sorted(axes.get_ylim())
        clouds = [
            np.asarray(cloud.get_offsets())
            for cloud in axes.collections
            if cloud.get_offset_transform() == axes.transData
        ]
        drawn = [np.asarray(line.get_xydata()) for line in axes.get_lines() if line.get_transform() == axes.transData]
        for points in [*clouds, *drawn]:
            assert np.all((points[:, 0] >= left) & (points[:, 0] <= right))
            assert np.all((points[:, 1] >= bottom) & (points[:, 1] <= top))


class TestLooks:
    def test_known_searchers_are_told_apart_by_shape_alone_and_by_dash_alone(self) -> None:
        assert len({look.marker for look in SEARCHER_LOOKS.values()}) == len(SEARCHER_LOOKS)
        assert len({look.dash for look in SEARCHER_LOOKS.values()}) == len(SEARCHER_LOOKS)
        assert len({look.color for look in SEARCHER_LOOKS.values()}) == len(SEARCHER_LOOKS)

    def test_a_look_does_not_depend_on_the_order_or_the_number_of_mentions(self) -> None:
        pairs = [
            ("amc", "amc"),
            ("amc, raw", "amc"),
            ("mine", "mine"),
            ("legr, tau 10", "legr"),
            ("legr, tau 2", "legr"),
        ]
        found = looks_of(pairs)
        assert looks_of([*reversed(pairs), *pairs]) == found
        assert list(found) == ["amc", "amc, raw", "legr, tau 2", "legr, tau 10", "mine"]

    def test_searchers_look_the_same_alone_and_in_company(self) -> None:
        everything = looks_of([(word, word) for word in [*SEARCHER_LOOKS, "mine"]])
        assert list(everything)[-2:] == ["mine", "dense"]
        for word in SEARCHER_LOOKS:
            assert looks_of([(word, word)])[word] == everything[word] == SEARCHER_LOOKS[word]

    def test_variants_share_the_hue_and_differ_in_shape_or_dash(self) -> None:
        series = ["legr", *(f"legr, tau {number}" for number in range(15))]
        found = looks_of([(each, "legr") for each in series])
        assert len({(look.marker, look.dash) for look in found.values()}) == len(series)
        channels = [[int(look.color[start : start + 2], 16) / 255 for start in (1, 3, 5)] for look in found.values()]
        hues = [colorsys.rgb_to_hsv(*channel)[0] for channel in channels]
        assert hues == pytest.approx([hues[0]] * len(hues), abs=0.02)
        assert found["legr, tau 3"].label == "LeGR, tau 3"

    def test_first_variants_of_two_searchers_differ_without_colour(self) -> None:
        found = looks_of([("amc", "amc"), ("amc, x", "amc"), ("legr", "legr"), ("legr, x", "legr")])
        assert len({look.marker for look in found.values()}) == 4

    def test_searchers_of_ones_own_get_a_look_and_a_readable_name(self) -> None:
        found = looks_of([("my_search", "my_search"), ("other", "other")])
        assert found["my_search"].label == "my search"
        assert len({look.color for look in found.values()}) == len({look.marker for look in found.values()}) == 2

    def test_plotly_understands_every_symbol_and_dash(self) -> None:
        graph_objects = pytest.importorskip("plotly.graph_objects")
        for look in looks_of(
            [(f"{word}{end}", word) for word in SEARCHER_LOOKS for end in ("", ", x", ", y")]
        ).values():
            drawn = graph_objects.Scatter(marker_symbol=look.symbol, line_dash=look.plotly_dash, line_color=look.color)
            assert drawn.marker.symbol == PLOTLY_SYMBOLS[look.marker]


class TestAccuracyAxis:
    @pytest.mark.parametrize("accuracies", [[0.10, 0.5, 0.99], [0.92, 0.925, math.nan], [1.0], [0.0, 1.0]])
    @pytest.mark.parametrize("is_stretched", [True, False])
    def test_all_accuracies_are_inside_and_ticks_too(self, accuracies: list[float], is_stretched: bool) -> None:
        axes = new_figure(4, 3).subplots()
        set_accuracy_axis(axes, accuracies, label="a", is_stretched=is_stretched)
        axes.figure.canvas.draw()
        low, high = axes.get_ylim()
        finite = [value for value in accuracies if math.isfinite(value)]
        assert low < min(finite) <= max(finite) < high
        assert ("log scale" in axes.get_ylabel()) == is_stretched

    def test_only_errors_far_apart_want_a_stretched_axis(self) -> None:
        assert is_wide([0.70, 0.93, math.nan])
        assert not is_wide([0.90, 0.93])

    def test_ticks_of_a_stretched_axis_are_round_and_apart(self) -> None:
        axes = new_figure(4, 3).subplots()
        set_accuracy_axis(axes, [0.60, 0.99], label="a", is_stretched=True)
        ticks = axes.get_yticks()
        assert {0.6, 0.8, 0.9, 0.95}.issubset(np.round(ticks, 6))
        places = axes.transData.transform([(0.0, tick) for tick in ticks])[:, 1]
        assert np.diff(places).min() >= 0.07 * axes.get_window_extent().height

    def test_a_stretched_axis_of_close_accuracies_has_enough_ticks(self) -> None:
        axes = new_figure(4, 3).subplots()
        set_accuracy_axis(axes, [0.905, 0.93], label="a", is_stretched=True)
        assert len(axes.get_yticks()) >= 4

    def test_no_accuracy_is_refused(self) -> None:
        with pytest.raises(ValueError, match="must have an accuracy"):
            set_accuracy_axis(new_figure(4, 3).subplots(), [math.nan], label="a", is_stretched=False)


class TestPareto:
    def test_a_panel_per_cost_and_stage(self) -> None:
        figure = pareto_figure(WHOLE, FACET)
        assert len(figure.axes) == 6
        assert [axes.get_xlabel() for axes in figure.axes[3:]] == [
            "FLOPs (MACs) / dense",
            "parameters / dense",
            "measured latency / dense",
        ]
        assert figure.axes[2].get_title() == "a box"
        assert_shows_all_points(figure)

    def test_means_over_seeds_are_drawn_at_the_cost_achieved(self) -> None:
        before, after = pareto_macs_figure(WHOLE, FACET).axes
        for axes, gain in ((before, 0.0), (after, TUNED)):
            for series, levels in ACCURACIES.items():
                [line] = lines_of(axes, series)
                expected = [(budget - 0.01, level + gain) for budget, level in zip(BUDGETS, levels, strict=True)]
                assert line == pytest.approx(np.array(expected))
            [dense] = lines_of(axes, "dense")
            assert dense == pytest.approx(np.array([[1.0, DENSE]]))

    def test_every_seed_is_a_mark(self) -> None:
        axes = pareto_macs_figure(WHOLE, FACET).axes[0]
        num_marks = sum(len(each.get_offsets()) for each in axes.collections if isinstance(each, PathCollection))
        assert num_marks == len(ACCURACIES) * len(BUDGETS) * len(SEEDS)

    def test_bars_are_one_standard_deviation(self) -> None:
        table = over_seeds(WHOLE.networks, MACS_AXIS)
        assert list(table["std"]) == pytest.approx([0.01] * len(table))
        assert set(table["num_seeds"]) == {3}
        [bars] = pareto_macs_figure(comparison_of({"amc": (0.8,)}), FACET).axes[0].containers
        [ends] = bars.lines[2][0].get_segments()
        assert ends == pytest.approx(np.array([[0.29, 0.79], [0.29, 0.81]]))

    def test_a_baseline_found_again_by_another_run_counts_once_per_seed(self) -> None:
        again = WHOLE.networks[WHOLE.networks["series"] == "uniform"].assign(run="other", accuracy_test=0.1)
        networks = pd.concat([WHOLE.networks, again], ignore_index=True)
        table = over_seeds(networks, MACS_AXIS)
        pd.testing.assert_frame_equal(table, over_seeds(WHOLE.networks, MACS_AXIS))

    def test_title_says_facet_seeds_and_split(self) -> None:
        text = text_of(pareto_macs_figure(WHOLE, FACET))
        assert f"{FACET}: 3 seeds; test split, read once" in text
        assert "± one standard deviation" in text

    def test_the_legend_names_each_once_with_its_seeds_where_they_differ(self) -> None:
        assert legend_of(pareto_figure(WHOLE, FACET)) == ["AMC", "LeGR", "uniform", "dense, 93.0%"]
        is_left_out = (WHOLE.networks["series"] == "amc") & (WHOLE.networks["seed"] > 0)
        fewer = replace(WHOLE, networks=WHOLE.networks[~is_left_out])
        figure = pareto_macs_figure(fewer, FACET)
        assert legend_of(figure)[:2] == ["AMC (1 seed)", "LeGR (3 seeds)"]
        assert "1–3 seeds" in text_of(figure)

    def test_what_was_not_measured_has_no_panel(self) -> None:
        figure = pareto_figure(comparison_of(stages=["before"], has_latency=False), FACET)
        assert len(figure.axes) == 2
        assert figure.axes[0].get_title("left") == "before fine-tuning"
        assert_shows_all_points(figure)

    def test_latencies_of_two_devices_have_panels_of_their_own(self) -> None:
        device = np.where(WHOLE.networks["seed"] == 0, "a phone", "a box")
        figure = pareto_figure(changed(WHOLE, device=device), FACET)
        assert len(figure.axes) == 8
        assert {figure.axes[2].get_title(), figure.axes[3].get_title()} == {"a phone", "a box"}

    def test_a_network_timed_on_two_devices_is_in_both_panels(self) -> None:
        elsewhere = changed(WHOLE, device="a phone").networks
        networks = pd.concat([changed(WHOLE, device="a box").networks, elsewhere], ignore_index=True)
        for device in ("a box", "a phone"):
            axis = CostAxis("latency_ratio", "latency", device)
            assert len(over_seeds(networks, axis)) == len(over_seeds(WHOLE.networks, MACS_AXIS)) > 0
        assert over_seeds(networks, MACS_AXIS).equals(over_seeds(WHOLE.networks, MACS_AXIS))

    def test_one_seed_and_one_budget_are_enough(self) -> None:
        figure = pareto_macs_figure(comparison_of(budgets=[0.5], seeds=[1]), FACET)
        assert "one seed: no spread is known" in text_of(figure)
        assert not any(bars.has_yerr and len(bars.lines[2][0].get_segments()) for bars in figure.axes[0].containers)
        assert_shows_all_points(figure)

    def test_a_network_without_budget_is_drawn(self) -> None:
        figure = pareto_figure(changed(comparison_of(budgets=[0.5]), budget=math.nan, resource=""), FACET)
        assert len(lines_of(figure.axes[0], "amc")[0]) == 1

    def test_a_facet_without_test_accuracies_is_refused(self) -> None:
        with pytest.raises(ValueError, match="m on d"):
            pareto_figure(changed(WHOLE, accuracy_test=math.nan), FACET)
        with pytest.raises(ValueError, match="another"):
            pareto_macs_figure(WHOLE, "another")


class TestAttainment:
    def test_a_panel_per_series_with_the_median_over_seeds(self) -> None:
        figure = attainment_figure(WHOLE, FACET)
        assert [axes.get_title("left") for axes in figure.axes] == ["AMC", "LeGR", "uniform"]
        for axes, series in zip(figure.axes, ACCURACIES, strict=True):
            [marks] = lines_of(axes, series)
            expected = [(budget - 0.01, level) for budget, level in zip(BUDGETS, ACCURACIES[series], strict=True)]
            assert marks == pytest.approx(np.array(expected))
            assert [text.get_text() for text in axes.texts] == ["3 seeds"]
        assert_shows_all_points(figure)

    def test_the_band_spans_the_quartiles_on_either_side_of_a_step(self) -> None:
        [band] = attainment_figure(comparison_of({"amc": (0.8, 0.9)}), FACET).axes[0].collections
        outline = {(round(x, 6), round(y, 6)) for x, y in band.get_paths()[0].vertices}
        assert {(0.29, 0.79), (0.29, 0.81), (0.49, 0.79), (0.49, 0.81), (0.49, 0.89), (0.49, 0.91)} <= outline
        assert {(1.0, 0.89), (1.0, 0.91)} <= outline

    def test_one_seed_has_no_quartiles_and_says_so(self) -> None:
        figure = attainment_figure(comparison_of(seeds=[0], budgets=[0.5]), FACET, stage="after")
        assert "no quartiles" in text_of(figure)
        assert_shows_all_points(figure)

    def test_a_stage_that_nobody_reached_is_refused(self) -> None:
        with pytest.raises(ValueError, match="after fine-tuning"):
            attainment_figure(comparison_of(stages=["before"]), FACET, stage="after")


@pytest.mark.parametrize("draw", [budget_figure, pareto_figure, pareto_macs_figure])
def test_what_did_not_search_at_a_budget_is_named_with_it(draw: Callable[[Comparison, str], Figure]) -> None:
    is_reused = (WHOLE.networks["series"] == "legr") & (WHOLE.networks["budget"] > 0.3)
    figure = draw(changed(WHOLE, is_learned_elsewhere=is_reused), FACET)
    assert "LeGR at 0.5, 0.7: learned at another budget" in " ".join(figure.get_suptitle().split())
    assert "learned at another budget" not in draw(WHOLE, FACET).get_suptitle()


class TestBudgetSentence:
    def test_it_tells_of_marks_and_lines_that_are_there(self) -> None:
        both = budget_sentence(WHOLE, FACET)
        assert "A hollow mark left of the dashed line does worse than uniform pruning before fine-tuning" in both
        assert "a filled mark left of the solid line does worse than uniform pruning after fine-tuning." in both
        before = budget_sentence(comparison_of(stages=["before"]), FACET)
        assert before.endswith("A mark left of the dashed line does worse than uniform pruning before fine-tuning.")
        assert "line" not in budget_sentence(comparison_of({"amc": (0.8, 0.9, 0.92)}), FACET)


class TestAnytime:
    def test_a_row_per_budget_against_trials_and_processor_seconds(self) -> None:
        figure = anytime_figure(WHOLE, FACET)
        assert len(figure.axes) == 6
        assert [axes.get_xlabel() for axes in figure.axes[4:]] == ["trials", "processor seconds of search"]
        assert figure.axes[5].get_xscale() == "log"
        assert "0.3 of dense FLOPs (MACs)" in figure.axes[0].get_title("left")
        figure.canvas.draw()

    def test_the_best_so_far_is_a_mean_over_seeds_and_one_trial_is_a_level(self) -> None:
        axes = anytime_figure(WHOLE, FACET).axes[0]
        [curve] = lines_of(axes, "amc")
        assert curve == pytest.approx(np.array([[1.0, 0.40], [4.0, 0.80]]))
        look = SEARCHER_LOOKS["uniform"]
        [level] = [
            line
            for line in axes.get_lines()
            if same_color(line.get_color(), look.color) and not line.get_marker().strip("None")
        ]
        assert list(level.get_ydata()) == pytest.approx([0.78, 0.78])
        assert len(axes.collections) == 2  # bands of amc and legr

    def test_a_level_that_was_learned_at_another_budget_has_a_hollow_mark_and_an_entry(self) -> None:
        whole = comparison_of({"uniform": (0.8,), "amc": (0.9,)})
        learned = changed(whole, is_learned_elsewhere=whole.networks["series"] == "uniform")
        for comparison, face in ((whole, SEARCHER_LOOKS["uniform"].color), (learned, "white")):
            figure = anytime_figure(comparison, FACET)
            [mark] = [line for line in figure.axes[0].get_lines() if list(line.get_xdata()) == [1.0]]
            assert same_color(mark.get_markerfacecolor(), face)
            labels = [text.get_text() for text in figure.legends[0].get_texts()]
            assert ("learned at another budget" in labels) == (face == "white")

    def test_without_processor_seconds_the_clock_counts(self) -> None:
        trials = WHOLE.trials.assign(cpu_s=math.nan)
        figure = anytime_figure(replace(WHOLE, trials=trials), FACET)
        assert figure.axes[-1].get_xlabel() == "seconds of search by the clock"

    def test_who_does_not_pay_in_trials_is_drawn_against_seconds_only(self) -> None:
        figure = anytime_figure(comparison_of({"amc": (0.8,), "proxylessnas": (0.85,)}), FACET)
        by_trials, by_seconds = figure.axes
        assert not lines_of(by_trials, "proxylessnas")
        assert lines_of(by_seconds, "proxylessnas")
        assert "ProxylessNAS: against seconds only" in text_of(figure)

    def test_a_comparison_of_baselines_alone_can_be_drawn(self) -> None:
        figure = anytime_figure(comparison_of({"uniform": (0.8,)}), FACET)
        figure.canvas.draw()
        assert len(figure.axes) == 1

    def test_the_hypervolume_so_far_is_drawn_on_an_axis_of_its_own(self) -> None:
        axes = anytime_figure(WHOLE, FACET, quantity=HYPERVOLUME).axes[0]
        [curve] = lines_of(axes, "amc")
        cost_ratio = WHOLE.trials.loc[WHOLE.trials["series"] == "amc", "cost_ratio"].min()
        # One cost: the square left of it and below the accuracy.
        assert curve == pytest.approx(np.array([[1.0, 0.40 * (1 - cost_ratio)], [4.0, 0.80 * (1 - cost_ratio)]]))
        assert axes.get_ylabel() == "hypervolume so far"
        low, high = axes.get_ylim()
        assert low < curve[1, 1] < high

    def test_no_trials_are_refused(self) -> None:
        with pytest.raises(ValueError, match="a trial with an accuracy"):
            anytime_figure(replace(WHOLE, trials=WHOLE.trials.iloc[:0]), FACET)


class TestKeepRatios:
    def test_a_map_per_budget_of_means_over_seeds(self) -> None:
        figure = keep_ratio_figure(WHOLE, FACET)
        maps = [np.asarray(axes.get_images()[0].get_array()) for axes in figure.axes[: len(BUDGETS)]]
        for values, budget in zip(maps, BUDGETS, strict=True):
            assert values == pytest.approx(np.tile(budget + 0.05 * np.arange(4), (3, 1)))
        assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["AMC", "LeGR", "uniform"]
        assert [label.get_text() for label in figure.axes[2].get_xticklabels()] == ["stem", "a.0", "a.1", "b.0"]
        assert [text.get_text() for text in figure.axes[0].texts] == ["± 0.05"] * 3
        assert "3 seeds" in text_of(figure)
        figure.canvas.draw()

    def test_the_colours_are_of_ratios_from_0_to_1(self) -> None:
        image = keep_ratio_figure(WHOLE, FACET).axes[0].get_images()[0]
        assert image.get_clim() == (0.0, 1.0)

    def test_a_group_that_only_some_could_prune_stands_in_the_network_s_order_and_is_empty_for_others(self) -> None:
        more = comparison_of({"amc": (0.8,), "legr": (0.8,)})
        kept = more.kept[~((more.kept["series"] == "legr") & (more.kept["group"] == "a.0.conv"))]
        axes = keep_ratio_figure(
            replace(more, kept=kept.sort_values("series", ascending=False, kind="stable")), FACET
        ).axes[0]
        assert [label.get_text() for label in axes.get_xticklabels()] == ["stem", "a.0", "a.1", "b.0"]
        values = np.ma.masked_invalid(axes.get_images()[0].get_array())
        assert values.mask.tolist() == [[False] * 4, [False, True, False, False]]

    def test_a_group_of_a_shorter_list_comes_after_what_it_follows_there(self) -> None:
        more = comparison_of({"amc": (0.8,), "legr": (0.8,)})
        is_other = (more.kept["series"] == "legr") & (more.kept["group"] == "a.1.conv")
        group = more.kept["group"].where(~is_other, "a.0.shift")
        kept = more.kept.assign(group=group)[~((more.kept["series"] == "legr") & (group == "b.0.conv"))]
        axes = keep_ratio_figure(replace(more, kept=kept), FACET).axes[0]
        names = [label.get_text() for label in axes.get_xticklabels()]
        assert names == ["stem.conv", "a.0.conv", "a.0.shift", "a.1.conv", "b.0.conv"]

    def test_of_many_groups_every_few_are_named(self) -> None:
        kept = pd.concat([WHOLE.kept.assign(group=WHOLE.kept["group"] + f".{copy}") for copy in range(20)])
        figure = keep_ratio_figure(replace(WHOLE, kept=kept), FACET)
        assert len(figure.axes[2].get_xticklabels()) <= 30
        assert "one in 3 named" in figure.axes[2].get_xlabel()
        figure.canvas.draw()

    def test_one_seed_has_no_spread(self) -> None:
        figure = keep_ratio_figure(comparison_of(seeds=[0]), FACET)
        assert not figure.axes[0].texts
        assert "mean" not in text_of(figure)
        figure.canvas.draw()

    def test_nothing_kept_is_refused(self) -> None:
        with pytest.raises(ValueError, match="keep_ratio"):
            keep_ratio_figure(WHOLE, "another")


class TestCosts:
    def test_seconds_of_search_against_accuracy_before_fine_tuning(self) -> None:
        figure = cost_figure(WHOLE, FACET)
        assert len(figure.axes) == len(BUDGETS)
        [mark] = lines_of(figure.axes[0], "amc")
        assert mark == pytest.approx(np.array([[4.0, 0.80]]))
        assert figure.axes[0].get_xlabel() == "processor seconds of search"
        assert_shows_all_points(figure)

    def test_a_baseline_in_another_run_s_summary_has_no_cost_of_its_own(self) -> None:
        alone = replace(WHOLE, runs=tuple(run for run in WHOLE.runs if run.series != "uniform"))
        assert "uniform" in legend_of(cost_figure(WHOLE, FACET))
        assert "uniform" not in legend_of(cost_figure(alone, FACET))

    def test_what_was_learned_at_another_budget_costs_what_both_runs_took_and_is_hollow(self) -> None:
        is_taught = (WHOLE.networks["series"] == "legr") & (WHOLE.networks["budget"] == 0.5)
        cpu_s = WHOLE.networks["cpu_s"].where(~is_taught, 0.5)
        figure = cost_figure(changed(WHOLE, is_learned_elsewhere=is_taught, cpu_s=cpu_s), FACET)
        look = SEARCHER_LOOKS["legr"]
        [mark] = [line for line in figure.axes[1].get_lines() if same_color(line.get_color(), look.color)]
        assert mark.get_markerfacecolor() == "white"
        assert np.asarray(mark.get_xydata()) == pytest.approx(np.array([[4.5, 0.91]]))
        assert any("learned at another budget" in label for label in legend_of(figure))

    def test_what_was_learned_by_a_run_that_is_not_there_is_left_out_and_said(self) -> None:
        is_taught = WHOLE.networks["series"] == "legr"
        figure = cost_figure(changed(WHOLE, is_learned_elsewhere=is_taught), FACET)
        assert "9 networks not shown" in text_of(figure)
        assert "LeGR" not in legend_of(figure)

    def test_without_processor_seconds_of_all_the_clock_counts_for_all(self) -> None:
        cpu_s = WHOLE.networks["cpu_s"].where(WHOLE.networks["series"] != "amc")
        figure = cost_figure(changed(WHOLE, cpu_s=cpu_s), FACET)
        assert figure.axes[0].get_xlabel() == "seconds of search by the clock"

    def test_no_seconds_are_refused(self) -> None:
        with pytest.raises(ValueError, match="its seconds"):
            cost_figure(changed(WHOLE, cpu_s=math.nan, wall_s=math.nan), FACET)


class TestBudgets:
    def test_a_row_per_series_with_its_means_before_and_after(self) -> None:
        figure = budget_figure(WHOLE, FACET)
        assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["AMC", "LeGR", "uniform"]
        means = [line.get_xdata()[0] for line in figure.axes[1].get_lines() if line.get_marker() == "^"]
        assert means == pytest.approx([0.91, 0.91 + TUNED])
        figure.canvas.draw()

    def test_the_level_of_uniform_is_drawn_through_all_rows(self) -> None:
        axes = budget_figure(WHOLE, FACET).axes[0]
        levels = [line for line in axes.get_lines() if list(line.get_ydata()) == [0, 1]]
        assert levels[0].get_xdata() == pytest.approx([0.78, 0.78])

    def test_one_stage_is_drawn_filled(self) -> None:
        axes = budget_figure(comparison_of(stages=["before"], seeds=[0]), FACET).axes[0]
        [mark] = [line for line in axes.get_lines() if line.get_marker() == "^"]
        assert same_color(mark.get_markerfacecolor(), SEARCHER_LOOKS["legr"].color)

    def test_a_facet_without_networks_is_refused(self) -> None:
        with pytest.raises(ValueError, match="test accuracy"):
            budget_figure(WHOLE, "another")


ALL = [
    "pareto-macs",
    "budgets",
    "pareto",
    "attainment-before",
    "attainment-after",
    "cost",
    "anytime",
    "anytime-hypervolume",
    "keep-ratio",
]


class TestAllPlots:
    def test_whatever_there_is_data_for_is_saved_as_bitmap_and_vector(self, tmp_path: Path) -> None:
        saved = save_plots(comparison_of(budgets=[0.5]), FACET, tmp_path)
        assert [plot.name for plot, _ in saved] == ALL
        assert {path.name for path in tmp_path.iterdir()} == {
            f"{name}.{kind}" for name in ALL for kind in ("png", "svg")
        }
        assert all(plot.sentence.endswith(".") for plot in plots(WHOLE, FACET))

    def test_unfinished_runs_have_trials_to_show_only(self) -> None:
        unfinished = replace(WHOLE, networks=WHOLE.networks.iloc[:0], kept=WHOLE.kept.iloc[:0])
        assert [plot.name for plot in plots(unfinished, FACET)] == ["anytime", "anytime-hypervolume"]

    def test_a_facet_that_is_not_there_has_no_plots(self) -> None:
        assert plots(WHOLE, "another") == []

    def test_a_dozen_variants_with_long_names_fit_into_every_plot(self) -> None:
        names = ["amc", *(f"amc, a.rather.long.setting={number}, another_setting={number}" for number in range(11))]
        many = comparison_of({name: (0.8 + 0.005 * index,) for index, name in enumerate([*names, "uniform"])})
        assert len(set(looks(many).values())) == len(names) + 2
        for plot in plots(many, FACET):
            plot.draw().canvas.draw()

    def test_one_network_of_one_run_is_enough_for_every_plot(self) -> None:
        for plot in plots(comparison_of({"amc": (0.8,)}, seeds=[0], has_latency=False), FACET):
            plot.draw().canvas.draw()


def test_the_same_figure_is_saved_as_the_same_bytes(tmp_path: Path) -> None:
    contents = []
    for name in ("one", "other"):
        contents.append(
            [path.read_bytes() for path in save_both(pareto_macs_figure(WHOLE, FACET), tmp_path / f"{name}.png")]
        )
    assert contents[0] == contents[1]
    assert b"<dc:date>" not in contents[0][1]


def test_a_figure_s_path_ends_in_png(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.png"):
        save_both(new_figure(1, 1), tmp_path / "plot.svg")


def test_labels_are_broken_between_settings_only() -> None:
    label = "global magnitude, importance=geometric_median, population=64"
    assert wrapped(label) == "global magnitude,\nimportance=geometric_median,\npopulation=64"
    assert wrapped("AMC, raw") == "AMC, raw"
