"""The plots and tables of times show what they say they show, and say it where times disappoint."""

import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import same_color
from matplotlib.figure import Figure

from compsearch.report.agreement import kendall_tau, mape, prediction_verdict
from compsearch.report.captions import balanced, caption, three_figures
from compsearch.report.latency_pareto import (
    LatencyPoint,
    Unit,
    latency_pareto_figure,
    latency_pareto_verdict,
    save_latency_pareto,
)
from compsearch.report.latency_plot import latency_figure, latency_verdict, save_latency, trend, trend_verdict
from compsearch.report.latency_table import LatencyRow, latency_markdown, latency_table
from compsearch.report.predictor_plot import CheckedPolicy, predictor_figure, predictor_verdict, save_predictor
from compsearch.report.staircase_plot import (
    Staircase,
    StaircasePanel,
    save_staircase,
    staircase_figure,
    step_height,
)
from compsearch.report.style import VERMILION
from compsearch.report.timed import Spread, Timed

NAN = float("nan")
MISSING = Spread(NAN, NAN, NAN)
CPU = "torch (torch 2.15.0) on a processor, 1 of 2 cores, float32, batch 1"
GPU = "torch (torch 2.15.0) on a GPU, float32, batch 1"
Points = np.ndarray[tuple[int, int], np.dtype[np.float64]]


def spread(median: float, width: float = 0.01) -> Spread:
    return Spread(median, median - width, median + width)


def timed(cost_ratio: float, latency: float, width: float = 0.01) -> Timed:
    return Timed(cost_ratio, spread(latency, width))


def labels(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def scattered(axes: Axes, start: str) -> Points:
    [found] = [each for each in axes.collections if str(each.get_label()).startswith(start)]
    return np.asarray(found.get_offsets(), dtype=np.float64)


def front(axes: Axes) -> list[tuple[float, float]]:
    [line] = [line for line in axes.lines if str(line.get_label()).startswith("front")]
    xs, ys = np.asarray(line.get_xdata(), dtype=float), np.asarray(line.get_ydata(), dtype=float)
    return [(float(x), float(y)) for x, y in zip(xs, ys, strict=True)]


class TestAgreement:
    def test_mape_is_the_mean_error_as_a_fraction_of_what_was_measured(self) -> None:
        assert mape([1.1, 1.8], [1.0, 2.0]) == pytest.approx((0.1 + 0.1) / 2)
        assert mape([2.0], [4.0]) == 0.5
        assert mape([4.0], [2.0]) == 1.0
        assert math.isnan(mape([], []))

    def test_tau_counts_pairs_in_order(self) -> None:
        # Of six pairs one is in the other order: (5 - 1) / 6.
        assert kendall_tau([1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 2.0, 4.0]) == pytest.approx(4 / 6)
        assert kendall_tau([1.0, 2.0, 3.0], [3.0, 2.0, 1.0]) == pytest.approx(-1.0)
        # A tie in one: two pairs in order of sqrt(3 · 2).
        assert kendall_tau([1.0, 2.0, 3.0], [1.0, 1.0, 2.0]) == pytest.approx(2 / math.sqrt(6))

    @pytest.mark.parametrize("pair", [([], []), ([1.0], [2.0]), ([1.0, 1.0], [1.0, 2.0]), ([1.0, NAN], [1.0, 2.0])])
    def test_tau_is_undefined_where_there_is_no_rank(self, pair: tuple[list[float], list[float]]) -> None:
        assert math.isnan(kendall_tau(*pair))

    def test_bad_input_is_named(self) -> None:
        with pytest.raises(ValueError, match="same length"):
            mape([1.0], [1.0, 2.0])
        with pytest.raises(ValueError, match="same length"):
            kendall_tau([1.0], [1.0, 2.0])
        with pytest.raises(ValueError, match="measured ones positive"):
            mape([1.0], [0.0])
        with pytest.raises(ValueError, match="leave out what was not measured"):
            mape([1.0], [NAN])

    def test_the_verdict_is_silent_only_when_both_are_good(self) -> None:
        assert prediction_verdict(0.05, 0.9) == ""
        assert prediction_verdict(0.0501, 0.9) == "prediction is off: MAPE 5.01% is above 5%"
        assert prediction_verdict(0.05, 0.899) == "prediction is off: Kendall τ 0.899 is below 0.9"
        both = prediction_verdict(NAN, NAN)
        assert "MAPE is undefined" in both
        assert "Kendall τ is undefined" in both


class TestSpread:
    def test_percentiles_out_of_order_are_refused(self) -> None:
        with pytest.raises(ValueError, match="same repetitions"):
            Spread(1.0, 1.1, 1.2)
        with pytest.raises(ValueError, match="p10 <= median <= p90"):
            Spread(1.0, 0.9, 0.95)

    def test_a_spread_is_written_with_its_percentiles(self) -> None:
        assert f"{Spread(0.62, 0.6, 0.655):.2f}" == "0.62 [0.60, 0.66]"

    def test_what_was_not_measured_is_not_finite(self) -> None:
        assert not MISSING.is_finite
        assert not Timed(NAN, spread(1.0)).is_finite
        assert timed(0.5, 0.6).is_finite


class TestCaptions:
    def test_lines_are_as_few_as_possible_and_even(self) -> None:
        assert balanced("aa bb cc dd ee", 12) == "aa bb cc\ndd ee"
        assert balanced("short", 12) == "short"

    def test_empty_sentences_take_no_line(self) -> None:
        assert caption("title", "device", "", "verdict", width=50) == "title\ndevice\nverdict"

    def test_three_figures_have_no_exponent(self) -> None:
        assert [three_figures(x) for x in (0.6, 3.1, 11.26, 99.99, 1234.0)] == ["0.600", "3.10", "11.3", "100", "1234"]


TRIALS = [timed(0.2, 0.4), timed(0.4, 0.5), timed(0.8, 0.9), timed(0.6, 0.45), Timed(0.5, MISSING)]


class TestLatencyOverFlops:
    def test_timed_trials_are_drawn_with_their_rank_and_slope_and_others_counted(self) -> None:
        figure = latency_figure(TRIALS, title="t", device=CPU)
        assert scattered(figure.axes[0], "4 trials timed") == pytest.approx(
            np.array([[0.2, 0.4], [0.4, 0.5], [0.8, 0.9], [0.6, 0.45]])
        )
        # One of six pairs is in the other order.
        assert "4 trials timed, p10–p90 (1 without a time, not shown): Kendall τ 0.67" in labels(figure)
        # By hand: the means are 0.5 and 0.5625; Sxy = 0.145, Sxx = 0.2.
        assert "least squares through the timed trials: slope 0.72" in labels(figure)
        assert "latency falling as FLOPs do" in labels(figure)
        assert figure.get_suptitle() == f"t\n{CPU}"

    def test_axes_say_what_is_divided_by_what(self) -> None:
        [axes] = latency_figure(TRIALS, title="t", device=CPU).axes
        assert axes.get_xlabel() == "cost_ratio: FLOPs (MACs) / dense"
        assert "latency" in axes.get_ylabel()

    def test_trend_is_the_least_squares_line(self) -> None:
        assert trend(TRIALS) == pytest.approx((0.725, 0.2))
        assert all(math.isnan(number) for number in trend([timed(0.5, 0.6), timed(0.5, 0.7)]))
        assert all(math.isnan(number) for number in trend([]))

    def test_bars_go_from_p10_to_p90(self) -> None:
        trial = Timed(0.5, Spread(0.6, 0.55, 0.7))
        [axes] = latency_figure([trial, timed(0.9, 0.9)], title="t", device=CPU).axes
        [bars] = axes.containers
        segments = bars[2][0].get_segments()
        assert np.asarray(segments[0]) == pytest.approx(np.array([[0.5, 0.55], [0.5, 0.7]]))

    def test_predictions_are_labelled_as_such_and_bad_ones_counted(self) -> None:
        predicted = [(0.3, 0.5), (0.7, 0.8), (0.5, NAN)]
        figure = latency_figure(TRIALS, title="t", device=CPU, predicted=predicted)
        assert scattered(figure.axes[0], "2 trials, predicted") == pytest.approx(np.array(predicted[:2]))
        assert "2 trials, predicted (1 without a prediction, not shown)" in labels(figure)
        assert not any("predicted" in label for label in labels(latency_figure(TRIALS, title="t", device=CPU)))

    def test_networks_are_marked_with_ratio_and_spread(self) -> None:
        networks = {"dense": timed(1.0, 1.0), "uniform": Timed(0.5, MISSING), "compressed": timed(0.49, 0.61)}
        figure = latency_figure(TRIALS, title="t", device=CPU, networks=networks)
        assert "compressed: 0.61 [0.60, 0.62] at 0.49 of the FLOPs" in labels(figure)
        assert not any(label.startswith("uniform") for label in labels(figure))
        assert scattered(figure.axes[0], "dense") == pytest.approx(np.array([[1.0, 1.0]]))

    def test_latency_that_did_not_fall_as_flops_did_is_said(self) -> None:
        slow = {"compressed": timed(0.5, 0.6)}
        assert latency_verdict(slow) == (
            "latency fell less than FLOPs did: compressed takes 0.60 [0.59, 0.61] of dense at 0.50 of the FLOPs"
        )
        assert latency_verdict(slow) in latency_figure(TRIALS, title="t", device=CPU, networks=slow).get_suptitle()
        assert "did not fall beyond its spread" in latency_verdict({"compressed": timed(0.5, 0.995)})
        assert "fine-tuned takes 0.60" in latency_verdict({"fine-tuned": timed(0.5, 0.6)})

    @pytest.mark.parametrize(
        "networks",
        [
            {"compressed": timed(0.5, 0.505)},  # within its spread
            {"compressed": timed(0.5, 0.4)},
            {"compressed": timed(1.0, 1.2)},  # no FLOPs were saved
            {"compressed": Timed(0.5, MISSING)},
            {"uniform": timed(0.5, 0.9)},
            {},
        ],
    )
    def test_otherwise_nothing_is_said(self, networks: dict[str, Timed]) -> None:
        assert latency_verdict(networks) == ""
        assert latency_figure([], title="t", device=CPU, networks=networks).get_suptitle() == f"t\n{CPU}"

    def test_trials_that_are_no_faster_for_fewer_flops_are_said(self) -> None:
        falling = [timed(0.2, 0.8), timed(0.4, 0.7), timed(0.6, 0.6)]
        sentence = "among the 3 timed trials, latency did not fall with FLOPs"
        assert trend_verdict(falling) == sentence
        assert sentence in latency_figure(falling, title="t", device=CPU).get_suptitle()
        assert trend_verdict(TRIALS) == ""
        assert trend_verdict([timed(0.50, 0.8), timed(0.51, 0.7), timed(0.52, 0.6)]) == ""  # the same FLOPs, nearly
        assert trend_verdict(falling[:2]) == ""

    def test_crowded_trials_are_magnified(self) -> None:
        crowd = [timed(0.49, 0.6), timed(0.5, 0.62)]
        dense = {"dense": timed(1.0, 1.0)}
        whole, near = latency_figure(crowd, title="t", device=CPU, networks=dense).axes
        assert near.get_xlim()[0] > 0.4
        assert near.get_xlim()[1] < 0.6
        assert whole.get_xlim()[0] == 0.0
        assert len(latency_figure(TRIALS, title="t", device=CPU, networks=dense).axes) == 1

    def test_nothing_timed_is_drawn_as_nothing(self) -> None:
        figure = latency_figure([], title="t", device=CPU)
        figure.draw_without_rendering()
        assert "0 trials timed, p10–p90" in labels(figure)


def point(
    accuracy: float, cost_ratio: float, latency: float, *, device: str = CPU, is_timed: bool = False
) -> LatencyPoint:
    return LatencyPoint(accuracy, cost_ratio, spread(latency) if is_timed else latency, device)


#: The second is beaten in FLOPs by the first, but in latency by none.
POINTS = [point(0.7, 0.3, 0.6), point(0.6, 0.4, 0.5, is_timed=True), point(0.9, 0.5, 0.7), point(0.8, 0.9, 0.9)]
NETWORKS = {
    "dense": point(0.95, 1.0, 1.0, is_timed=True),
    "uniform": point(0.9, 0.5, 0.6, is_timed=True),
    "compressed": point(0.91, 0.5, 0.7, is_timed=True),
}


def pareto(trials: list[LatencyPoint], networks: dict[str, LatencyPoint], unit: Unit = "ratio") -> Figure:
    return latency_pareto_figure(
        trials, networks=networks, device=CPU, unit=unit, title="t", split="search", recovery="bn"
    )


class TestLatencyPareto:
    def test_each_panel_has_the_front_of_its_own_cost(self) -> None:
        flops, latency = pareto(POINTS, NETWORKS).axes
        assert front(flops) == [(0.3, 0.7), (0.5, 0.9)]
        assert front(latency) == [(0.5, 0.6), (0.6, 0.7), (0.7, 0.9)]
        assert flops.get_shared_y_axes().joined(flops, latency)
        assert flops.get_xlabel() == "cost_ratio: FLOPs (MACs) / dense"
        assert "latency" in latency.get_xlabel()
        assert "search split" in flops.get_ylabel()

    def test_predicted_and_timed_are_told_apart_and_only_timed_have_bars(self) -> None:
        figure = pareto(POINTS, {})
        flops, latency = figure.axes
        assert "3 trials, latency predicted" in labels(figure)
        assert "1 trial, latency timed, p10–p90" in labels(figure)
        [bars] = latency.containers
        assert np.asarray(bars[2][0].get_segments()[0]) == pytest.approx(np.array([[0.49, 0.6], [0.51, 0.6]]))
        assert not flops.containers

    def test_what_has_no_accuracy_or_latency_is_counted(self) -> None:
        bad = [point(NAN, 0.5, 0.5), point(0.5, 0.5, NAN), LatencyPoint(0.5, 0.5, MISSING, CPU)]
        figure = pareto([*POINTS, *bad], NETWORKS)
        assert "front of 4 trials (3 without accuracy or latency, not shown)" in labels(figure)
        assert len(scattered(figure.axes[1], "3 trials, latency predicted")) == 3

    def test_ratios_of_several_devices_are_refused(self) -> None:
        with pytest.raises(ValueError, match="must be of one device") as caught:
            pareto([*POINTS, point(0.5, 0.5, 0.5, device=GPU)], NETWORKS)
        assert GPU in str(caught.value)
        with pytest.raises(ValueError, match="must be of one device"):
            pareto(POINTS, {"uniform": point(0.9, 0.5, 0.6, device=GPU)})

    def test_times_of_another_device_are_marked_named_and_left_out_of_the_front(self) -> None:
        other = [point(0.95, 0.2, 0.1, device=GPU)]
        figure = pareto([*POINTS, *other], {"uniform": point(0.9, 0.5, 0.6, device=GPU)}, "ms")
        flops, latency = figure.axes
        named = [label.replace("\n", " ") for label in labels(figure)]
        assert f"latency on another device: {GPU}" in named
        assert any(label.startswith("uniform") and label.endswith("ms, on another device") for label in named)
        assert front(latency) == [(0.5, 0.6), (0.6, 0.7), (0.7, 0.9)]
        assert front(flops) == [(0.2, 0.95)]
        assert latency.get_xlabel() == "latency (ms)"
        assert scattered(latency, "latency on another device") == pytest.approx(np.array([[0.1, 0.95]]))
        assert len(scattered(latency, "3 trials, latency predicted")) == 3
        assert f"latency: {CPU}" in figure.get_suptitle()

    def test_one_device_is_named_in_the_title_alone(self) -> None:
        figure = pareto(POINTS, NETWORKS, "ms")
        assert f"latency: {CPU}" in figure.get_suptitle()
        assert not any("another device" in label for label in labels(figure))

    def test_what_uniform_did_better_is_said(self) -> None:
        assert latency_pareto_verdict(NETWORKS) == "uniform is faster, latency 0.600 against 0.700"
        assert latency_pareto_verdict(NETWORKS) in pareto(POINTS, NETWORKS).get_suptitle()
        better = {**NETWORKS, "uniform": point(0.92, 0.5, 0.695, is_timed=True)}
        assert latency_pareto_verdict(better) == "uniform did better, by 1.00 points"

    @pytest.mark.parametrize(
        "uniform",
        [
            point(0.9, 0.5, 0.69, is_timed=True),  # the spreads meet
            point(0.9, 0.5, 0.6),  # predicted only
            point(0.9, 0.5, 0.1, device=GPU, is_timed=True),
        ],
    )
    def test_latencies_that_can_not_be_compared_are_not(self, uniform: LatencyPoint) -> None:
        assert latency_pareto_verdict({**NETWORKS, "uniform": uniform}) == ""

    def test_crowded_trials_are_magnified_with_the_networks_among_them(self) -> None:
        crowd = [point(0.8, 0.49, 0.6), point(0.85, 0.5, 0.62)]
        figure = pareto(crowd, NETWORKS)
        assert len(figure.axes) == 4
        _, _, flops, latency = figure.axes
        assert 0.4 < flops.get_xlim()[0] < 0.49
        assert latency.get_xlim()[1] == pytest.approx(0.7, abs=0.02)
        assert flops.get_ylim() == latency.get_ylim()

    def test_nothing_is_drawn_as_nothing(self) -> None:
        figure = pareto([], {})
        figure.draw_without_rendering()
        assert "front of 0 trials" in labels(figure)


def checked(predicted: float, measured: float, *, is_fitted: bool = False) -> CheckedPolicy:
    return CheckedPolicy(predicted, spread(measured), is_fitted)


GOOD = [checked(1.0, 1.0), checked(2.0, 2.02), checked(3.0, 2.97)]
WRONG_BUT_FITTED = [checked(1.0, 3.0, is_fitted=True), checked(3.0, 1.0, is_fitted=True)]


class TestPredictor:
    def test_only_policies_held_out_count(self) -> None:
        figure = predictor_figure([*GOOD, *WRONG_BUT_FITTED, checked(NAN, 1.0)], title="t", device=CPU)
        # (0 + 0.02 / 2.02 + 0.03 / 2.97) / 3
        assert "3 policies held out: MAPE 0.67%, Kendall τ 1.000 (1 without a time, not shown)" in labels(figure)
        assert "2 policies fitted to: MAPE 133.33%, Kendall τ -1.000" in labels(figure)
        assert figure.axes[0].get_title() == ""
        [axes] = figure.axes
        assert scattered(axes, "3 policies held out") == pytest.approx(np.array([[1.0, 1.0], [2.02, 2.0], [2.97, 3.0]]))
        assert scattered(axes, "2 policies fitted to") == pytest.approx(np.array([[3.0, 1.0], [1.0, 3.0]]))
        assert axes.get_xlabel() == "measured latency (ms), p10–p90"
        assert axes.get_ylabel() == "predicted latency (ms)"

    def test_held_out_and_fitted_have_different_shapes(self) -> None:
        [axes] = predictor_figure([*GOOD, *WRONG_BUT_FITTED], title="t", device=CPU).axes
        shapes = {
            each.get_paths()[0].vertices.tobytes()  # type: ignore[union-attr]
            for each in axes.collections
            if "policies" in str(each.get_label())
        }
        assert len(shapes) == 2

    def test_a_prediction_that_is_off_is_said_loudly(self) -> None:
        off = [checked(1.2, 1.0), checked(2.4, 2.0)]
        figure = predictor_figure(off, title="t", device=CPU)
        [axes] = figure.axes
        assert axes.get_title() == "prediction is off: MAPE 20.00% is above 5%"
        assert same_color(axes.title.get_color(), VERMILION)
        assert axes.title.get_fontweight() == "bold"
        swapped = [checked(1.02, 1.0), checked(1.0, 1.02)]
        assert predictor_verdict(swapped) == "prediction is off: Kendall τ -1.000 is below 0.9"

    def test_a_predictor_seen_only_where_it_was_fitted_is_not_checked(self) -> None:
        fitted = [checked(1.0, 1.0, is_fitted=True), checked(2.0, 2.0, is_fitted=True)]
        assert predictor_verdict(fitted) == "prediction was not checked: no policy was held out and timed"
        for policies in (fitted, []):
            figure = predictor_figure(policies, title="t", device=CPU)
            figure.draw_without_rendering()
            assert "not checked" in figure.axes[0].get_title()

    def test_the_band_is_five_percent_about_the_line(self) -> None:
        [axes] = predictor_figure(GOOD, title="t", device=CPU).axes
        [band] = [each for each in axes.collections if str(each.get_label()).startswith("within 5%")]
        corners = np.asarray(band.get_paths()[0].vertices)
        positive = corners[corners[:, 0] > 0]
        assert set(np.round(positive[:, 1] / positive[:, 0], 6)) == {0.95, 1.05}


#: Steps of four: 1 to 4 cost 10, 5 to 8 cost 12, 9 to 12 cost 18.
STEPS = Staircase(
    list(range(1, 13)), [10.0] * 4 + [12.0] * 4 + [18.0] * 4, [9.0] * 4 + [11.0] * 4 + [17.0] * 4, [20.0] * 12
)


class TestStaircase:
    def test_a_panel_per_axis_and_a_curve_per_layer(self) -> None:
        panels = [
            StaircasePanel("output channels", {"a": STEPS, "b": STEPS}, 4),
            StaircasePanel("input", {"a": STEPS}, 1),
        ]
        figure = staircase_figure(panels, title="t", device=CPU)
        above, below = figure.axes
        curves = [line for line in above.lines if str(line.get_label())[0] in "ab"]
        assert len(curves) == 2
        assert np.asarray(curves[0].get_ydata(), dtype=float) == pytest.approx(np.array(STEPS.median_us))
        assert curves[0].get_linestyle() != curves[1].get_linestyle()  # told apart without colour
        assert [axes.get_xlabel() for axes in figure.axes] == ["output channels", "input"]
        assert {axes.get_ylabel() for axes in figure.axes} == {"time of the layer (µs)"}
        assert figure.get_suptitle() == f"t\n{CPU}"
        assert "multiples of 4" in above.get_title()
        assert below.get_title() == "no preferred divisor"

    def test_multiples_of_the_divisor_are_marked(self) -> None:
        def marked(divisor: int) -> list[float]:
            [axes] = staircase_figure([StaircasePanel("x", {"a": STEPS}, divisor)], title="t", device=CPU).axes
            return [float(np.asarray(line.get_xdata())[0]) for line in axes.lines if line.get_linestyle() == ":"]

        assert marked(4) == [4.0, 8.0, 12.0]
        assert marked(1) == []

    def test_the_step_is_the_median_of_what_one_more_channel_costs(self) -> None:
        assert step_height(STEPS, 4) == pytest.approx((0.2 + 0.5) / 2)
        assert step_height(STEPS, 6) == pytest.approx(0.0)
        assert math.isnan(step_height(STEPS, 12))
        [axes] = staircase_figure([StaircasePanel("x", {"a": STEPS}, 4)], title="t", device=CPU).axes
        assert axes.get_legend_handles_labels()[1] == ["a, one channel past a multiple of 4: +35%"]

    def test_widths_without_a_time_are_counted(self) -> None:
        holes = Staircase([1, 2, 3], [1.0, NAN, 2.0], [1.0, NAN, 2.0], [1.0, NAN, 2.0])
        [axes] = staircase_figure([StaircasePanel("x", {"a": holes}, 2)], title="t", device=CPU).axes
        assert axes.get_legend_handles_labels()[1] == ["a (1 without a time, not shown)"]

    def test_layers_of_very_different_times_share_a_logarithmic_axis(self) -> None:
        slow = Staircase([1, 2], [1000.0, 1100.0], [1000.0, 1100.0], [1000.0, 1100.0])
        figure = staircase_figure(
            [StaircasePanel("x", {"a": STEPS, "b": slow}, 4), StaircasePanel("x", {"a": STEPS}, 4)],
            title="t",
            device=CPU,
        )
        assert [axes.get_yscale() for axes in figure.axes] == ["log", "linear"]

    def test_bad_input_is_named(self) -> None:
        with pytest.raises(ValueError, match="for every width"):
            Staircase([1, 2], [1.0], [1.0], [1.0])
        with pytest.raises(ValueError, match="must ascend"):
            Staircase([2, 1], [1.0] * 2, [1.0] * 2, [1.0] * 2)
        with pytest.raises(ValueError, match="does not for 2 channels"):
            Staircase([1, 2], [1.0, 1.0], [1.0, 2.0], [1.0, 3.0])
        with pytest.raises(ValueError, match="divisor >= 1"):
            StaircasePanel("x", {}, 0)
        with pytest.raises(ValueError, match="at least one axis"):
            staircase_figure([], title="t", device=CPU)

    def test_a_layer_never_measured_is_drawn_as_nothing(self) -> None:
        for curves in ({}, {"a": Staircase([], [], [], [])}, {"a": Staircase([1], [NAN], [NAN], [NAN])}):
            staircase_figure([StaircasePanel("x", curves, 8)], title="t", device=CPU).draw_without_rendering()


ROWS = [
    LatencyRow("uniform 70%", 0.7, {"torch": spread(0.8), "onnxruntime": spread(0.7)}),
    LatencyRow("uniform 50%", 0.5, {"torch": spread(0.995), "onnxruntime": MISSING}),
    LatencyRow("uniform 30%", 0.3, {"torch": spread(0.3)}),
]
DEVICES = {"torch": CPU, "onnxruntime": "onnxruntime on a processor | 1 core"}


class TestTable:
    def test_a_row_per_network_and_a_column_per_runtime(self) -> None:
        lines = latency_table(ROWS, title="resnet56", devices=DEVICES).splitlines()
        assert lines[0] == "resnet56"
        header = [cell.strip() for cell in lines[2].split("   ") if cell.strip()]
        assert header == ["over the dense network", "FLOPs (MACs)", "latency, torch", "latency, onnxruntime"]
        cells = [line.split("   ") for line in lines[4:7]]
        assert [[cell.strip() for cell in row if cell.strip()] for row in cells] == [
            ["uniform 70%", "0.700", "0.800 [0.790, 0.810] *", "0.700 [0.690, 0.710]"],
            ["uniform 50%", "0.500", "0.995 [0.985, 1.005] !", "–"],
            ["uniform 30%", "0.300", "0.300 [0.290, 0.310]", "–"],
        ]
        assert not any(line.endswith(" ") for line in lines)

    def test_marks_are_explained_only_where_they_occur(self) -> None:
        text = latency_table(ROWS, title="t", devices=DEVICES)
        assert "* latency fell less than FLOPs did" in text
        assert "! no faster than the dense network" in text
        text = latency_table(ROWS[2:], title="t", devices=DEVICES)
        assert "fell less" not in text
        assert "no faster" not in text

    def test_every_runtime_says_where_it_ran(self) -> None:
        assert f"torch: {CPU}" in latency_table(ROWS, title="t", devices=DEVICES)
        with pytest.raises(ValueError, match=r"every runtime needs its device, but \['onnxruntime'\]"):
            latency_table(ROWS, title="t", devices={"torch": CPU})

    def test_markdown_has_the_same_cells(self) -> None:
        lines = latency_markdown(ROWS, title="t", devices=DEVICES).splitlines()
        assert lines[0] == "**t**"
        assert lines[3] == "| :-- | --: | --: | --: |"
        assert lines[4] == r"| uniform 70% | 0.700 | 0.800 [0.790, 0.810] \* | 0.700 [0.690, 0.710] |"
        assert lines[6] == "| uniform 30% | 0.300 | 0.300 [0.290, 0.310] | – |"
        assert f"- torch: {CPU}" in lines

    def test_a_table_without_rows_has_its_header(self) -> None:
        assert "latency, torch" in latency_table([], title="t", devices=DEVICES)


def test_latency_plots_are_written(tmp_path: Path) -> None:
    save_latency(tmp_path / "latency.png", TRIALS, title="t", device=CPU, predicted=[(0.5, 0.5)])
    save_latency_pareto(
        tmp_path / "latency_pareto.png",
        POINTS,
        networks=NETWORKS,
        device=CPU,
        unit="ratio",
        title="t",
        split="search",
        recovery="none",
    )
    save_predictor(tmp_path / "predictor.png", GOOD, title="t", device=CPU)
    save_staircase(tmp_path / "staircase.png", [StaircasePanel("x", {"a": STEPS}, 4)], title="t", device=CPU)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "latency.png",
        "latency_pareto.png",
        "predictor.png",
        "staircase.png",
    ]
    for path in tmp_path.iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")
