from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from compsearch.comparison import attainment, equal_effort, hypervolume
from compsearch.comparison.anytime import (
    BEST_ACCURACY,
    CURVE_COLUMNS,
    HYPERVOLUME,
    anytime_curves,
    anytime_references,
    seconds_clocks,
    so_far,
)
from compsearch.comparison.comparison import KEPT_COLUMNS, NETWORK_COLUMNS, TRIAL_COLUMNS, Comparison, Run
from compsearch.comparison.statistics_tables import equal_effort_tables
from compsearch.summary import NetworkRow, SearchCost, Summary

NAN = float("nan")
SUMMARY = Summary("", "", "", "", 0, None, (NetworkRow("dense", 1.0, 1),), SearchCost(1, 0, 1, 1.0))


def network(series, seed, budget, accuracy, *, ratio=None, facet="net on data", stage="before", **others):
    row = {
        "run": f"{series}-{budget}-{seed}",
        "facet": facet,
        "series": series,
        "searcher": series,
        "variant": "",
        "seed": seed,
        "resource": "macs",
        "budget": budget,
        "stage": stage,
        "accuracy_test": accuracy,
        "macs_ratio": budget if ratio is None else ratio,
        "params_ratio": budget,
        "latency_ratio": NAN,
        "device": "",
        "is_learned_elsewhere": False,
    }
    return row | others


def networks(*rows):
    return pd.DataFrame(list(rows), columns=list(NETWORK_COLUMNS))


def trials(series, seed, accuracies, *, budget=0.5, ratios=None, seconds=None, facet="net on data", cpu=True):
    seconds = seconds or [float(number) for number in range(1, len(accuracies) + 1)]
    ratios = ratios or [budget] * len(accuracies)
    return [
        {
            "run": f"{series}-{budget}-{seed}",
            "facet": facet,
            "series": series,
            "searcher": series,
            "variant": "",
            "seed": seed,
            "resource": "macs",
            "budget": budget,
            "index": index,
            "accuracy": accuracy,
            "objective": accuracy,
            "cost_ratio": ratio,
            "wall_s": 2 * at,
            "cpu_s": at if cpu else NAN,
        }
        for index, (accuracy, ratio, at) in enumerate(zip(accuracies, ratios, seconds, strict=True))
    ]


def comparison(rows, *, unfinished=(), found=(), config=None):
    frame = pd.DataFrame(rows, columns=list(TRIAL_COLUMNS))
    runs = tuple(
        Run(
            *(Path(name), config or {}, None if name in unfinished else SUMMARY, "", "", 0, "", "", {}, ""),
            trains_network=name.startswith("proxylessnas"),
        )
        for name in dict.fromkeys(frame["run"])
    )
    return Comparison(runs, networks(*found), frame, pd.DataFrame(columns=list(KEPT_COLUMNS)))


def hypervolumes(frame, **options):
    return hypervolume.hypervolumes(frame, rng=np.random.default_rng(0), costs=["macs_ratio"], **options)


def only(frame, **where):
    for column, value in where.items():
        frame = frame[frame[column] == value]
    assert len(frame) == 1, frame
    return frame.iloc[0]


def curve(frame, series, quantity=BEST_ACCURACY, clock="trials"):
    found = frame[(frame["series"] == series) & (frame["quantity"] == quantity) & (frame["clock"] == clock)]
    return [tuple(row) for row in found[["x", "mean"]].to_numpy()]


class TestHypervolume:
    def test_two_points_cover_their_two_rectangles(self):
        # 0.8 high from 0.3 on, 0.9 from 0.5 on, up to a cost_ratio of 1.
        assert hypervolume.hypervolume(np.array([[0.3, 0.8], [0.5, 0.9]])) == pytest.approx(0.2 * 0.8 + 0.5 * 0.9)

    def test_points_that_are_not_finite_or_dominated_or_dearer_than_dense_add_nothing(self):
        points = np.array([[0.3, 0.8], [NAN, 0.99], [0.1, NAN], [0.4, 0.7], [1.2, 1.0]])
        assert hypervolume.hypervolume(points) == pytest.approx(0.7 * 0.8)
        assert hypervolume.hypervolume(np.full((2, 2), NAN)) == 0.0

    def test_the_caption_states_the_reference_point(self):
        assert "(cost_ratio 1, accuracy 0)" in hypervolume.reference_sentence()

    def test_mean_and_spread_are_of_the_seeds_fronts(self):
        rows = [network("amc", seed, 0.5, accuracy) for seed, accuracy in enumerate([0.6, 0.8, 0.7])]
        row = only(hypervolumes(networks(*rows)))
        assert row["mean"] == pytest.approx(0.35)
        assert row["std"] == pytest.approx(0.05)
        assert row["num_seeds"] == 3
        # All three of one kind have probability 1/27 > 2.5%, so the interval reaches from the worst seed to the best.
        assert (row["low"], row["high"]) == pytest.approx((0.3, 0.4))
        assert row["note"] == ""

    def test_bootstrap_interval_covers_the_percentiles_of_all_resamples(self):
        # Of two values the mean is low, middle or high with probability 1/4, 1/2, 1/4: 95% reach from end to end.
        interval = hypervolume.bootstrap_interval([0.2, 0.4], rng=np.random.default_rng(0), num_resamples=1000)
        assert (interval.low, interval.high) == pytest.approx((0.2, 0.4))
        # Of 200 values it is close to the normal one, 1.96 standard errors.
        values = np.random.default_rng(1).normal(0.5, 0.1, 200)
        interval = hypervolume.bootstrap_interval(values, rng=np.random.default_rng(0), num_resamples=4000)
        assert interval.high - interval.low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(200), rel=0.08)

    def test_same_generator_gives_the_same_interval_and_another_does_not(self):
        values = [0.1, 0.2, 0.4, 0.8, 0.9]
        same, again, other = (
            hypervolume.bootstrap_interval(values, rng=np.random.default_rng(seed), num_resamples=50)
            for seed in (3, 3, 4)
        )
        assert same == again != other

    def test_one_seed_has_no_interval_and_says_so(self):
        row = only(hypervolumes(networks(network("amc", 0, 0.5, 0.8))))
        assert row["mean"] == pytest.approx(0.4)
        assert np.isnan([row["std"], row["low"], row["high"]]).all()
        assert "one seed" in row["note"]

    def test_seeds_that_lack_a_budget_are_left_out_and_named(self):
        rows = [network("amc", seed, budget, 0.8) for seed in (0, 1) for budget in (0.3, 0.5)]
        row = only(hypervolumes(networks(*rows, network("amc", 2, 0.5, 0.9))))
        assert row["num_seeds"] == 2
        assert row["mean"] == pytest.approx(0.7 * 0.8)
        assert "seed 2 lacks 0.3" in row["note"]
        assert row["budgets"] == "0.3, 0.5"

    def test_series_of_different_budgets_are_compared_on_the_common_ones(self):
        rows = [network("amc", seed, budget, 0.8) for seed in (0, 1) for budget in (0.3, 0.5, 0.7)]
        rows += [network("legr", seed, budget, 0.9) for seed in (0, 1) for budget in (0.5, 0.7)]
        frame = hypervolumes(networks(*rows))
        amc, legr = only(frame, series="amc"), only(frame, series="legr")
        assert amc["mean"] == pytest.approx(0.7 * 0.8)
        assert amc["mean"] > legr["mean"], "more budgets, more hypervolume, though it is the worse one"
        assert amc["common_mean"] == pytest.approx(0.5 * 0.8)
        assert legr["common_mean"] == pytest.approx(0.5 * 0.9) == legr["mean"]
        assert amc["common_budgets"] == legr["common_budgets"] == "0.5, 0.7"
        assert (amc["budgets"], legr["budgets"]) == ("0.3, 0.5, 0.7", "0.5, 0.7")

    def test_series_without_a_common_budget_have_nothing_to_compare(self):
        row = only(hypervolumes(networks(network("amc", 0, 0.3, 0.8), network("legr", 0, 0.5, 0.9))), series="amc")
        assert np.isnan(row["common_mean"])
        assert row["common_note"] == "no budget is covered by every series"

    def test_a_network_found_in_several_runs_counts_once_and_dense_not_at_all(self):
        twice = network("uniform", 0, 0.5, 0.8), network("uniform", 0, 0.5, 0.8) | {"run": "amc-0.5-0"}
        row = only(hypervolumes(networks(network("dense", 0, NAN, 0.95, stage="dense"), *twice)))
        assert (row["series"], row["num_seeds"], row["mean"]) == ("uniform", 1, pytest.approx(0.4))

    def test_facets_stages_and_devices_are_never_put_together(self):
        rows = [
            network("amc", 0, 0.5, 0.6, facet="a", latency_ratio=0.5, device="laptop"),
            network("amc", 1, 0.5, 0.7, facet="a", latency_ratio=0.5, device="phone"),
            network("amc", 0, 0.5, 0.8, facet="a", stage="after"),
            network("amc", 0, 0.5, 0.9, facet="b"),
        ]
        frame = hypervolume.hypervolumes(
            networks(*rows), rng=np.random.default_rng(0), costs=["macs_ratio", "latency_ratio"]
        )
        by_macs = frame[frame["cost"] == "macs_ratio"]
        assert by_macs[["facet", "stage", "num_seeds"]].to_numpy().tolist() == [
            ["a", "before", 2],
            ["a", "after", 1],
            ["b", "before", 1],
        ]
        by_latency = frame[frame["cost"] == "latency_ratio"]
        assert by_latency[["device", "mean"]].to_numpy().tolist() == [
            ["laptop", pytest.approx(0.3)],
            ["phone", pytest.approx(0.35)],
        ]

    def test_nothing_to_compare_is_an_empty_table_with_all_columns(self):
        assert tuple(hypervolumes(networks()).columns) == hypervolume.HYPERVOLUME_COLUMNS


class TestAttainment:
    #: Three runs, each at two costs; the points of a run don't lie together.
    POINTS = np.array([[0.3, 0.6], [0.3, 0.7], [0.3, 0.8], [0.5, 0.9], [0.5, 0.85], [0.5, 0.85]])
    RUNS = (7, 1, 4, 7, 1, 4)

    @pytest.mark.parametrize(
        ("percentile", "corners"),
        [
            (25, [[0.3, 0.8], [0.5, 0.9]]),  # the best of three
            (50, [[0.3, 0.7], [0.5, 0.85]]),  # two of three
            (75, [[0.3, 0.6], [0.5, 0.85]]),  # all three
        ],
    )
    def test_three_runs_by_hand(self, percentile, corners):
        assert attainment.attainment(self.POINTS, self.RUNS, percentile) == pytest.approx(np.array(corners))

    def test_order_of_the_points_does_not_matter(self):
        order = np.random.default_rng(0).permutation(6)
        shuffled = attainment.attainment(self.POINTS[order], np.array(self.RUNS)[order], 75)
        assert shuffled == pytest.approx(attainment.attainment(self.POINTS, self.RUNS, 75))

    def test_points_that_are_not_finite_do_not_count(self):
        points = np.vstack([self.POINTS, [[0.1, NAN], [NAN, 1.0]]])
        assert attainment.attainment(points, (*self.RUNS, 7, 1), 25)[0] == pytest.approx([0.3, 0.8])
        assert attainment.attainment(np.full((1, 2), NAN), [0], 50).shape == (0, 2)

    def test_polyline_is_a_staircase_that_goes_on_to_the_right(self):
        surface = only_surface([network("amc", 0, 0.3, 0.6), network("amc", 0, 0.5, 0.8)])
        assert surface.polyline(right=0.9).tolist() == [[0.3, 0.6], [0.5, 0.6], [0.5, 0.8], [0.9, 0.8]]

    def test_one_seed_attains_its_own_front_at_every_percentile(self):
        found = attainment.surfaces(networks(network("amc", 0, 0.3, 0.6)), costs=["macs_ratio"])
        assert [surface.percentile for surface in found] == [25, 50, 75]
        assert all(surface.corners.tolist() == [[0.3, 0.6]] and surface.num_runs == 1 for surface in found)

    def test_median_of_networks_is_over_complete_seeds(self):
        rows = [network("amc", seed, budget, 0.6 + 0.1 * seed) for seed in (0, 1, 2) for budget in (0.3, 0.5)]
        surface = only_surface([*rows, network("amc", 3, 0.3, 0.99)])
        assert surface.num_runs == 3
        assert "seed 3 lacks 0.5" in surface.note
        assert surface.corners == pytest.approx(np.array([[0.3, 0.7]]))


def only_surface(rows):
    (surface,) = attainment.surfaces(networks(*rows), costs=["macs_ratio"], percentiles=[50])
    return surface


class TestSoFar:
    def test_best_accuracy_never_falls_and_waits_for_the_first_success(self):
        run = pd.DataFrame(trials("amc", 0, [NAN, 0.5, 0.4, NAN, 0.7]))
        assert so_far(run, BEST_ACCURACY).tolist() == pytest.approx([NAN, 0.5, 0.5, 0.5, 0.7], nan_ok=True)

    def test_trials_above_the_budget_change_nothing(self):
        run = pd.DataFrame(trials("amc", 0, [0.5, 0.9, 0.6], ratios=[0.5, 0.51, 0.49]))
        assert so_far(run, BEST_ACCURACY).tolist() == [0.5, 0.5, 0.6]
        assert so_far(run, HYPERVOLUME).tolist() == pytest.approx([0.25, 0.25, 0.51 * 0.6])

    def test_without_a_budget_every_trial_counts(self):
        run = pd.DataFrame(trials("amc", 0, [0.5, 0.9], ratios=[0.5, 0.9], budget=NAN))
        assert so_far(run, BEST_ACCURACY).tolist() == [0.5, 0.9]

    def test_hypervolume_so_far_is_that_of_the_trials_so_far(self):
        rng = np.random.default_rng(0)
        ratios, accuracies = rng.uniform(0.1, 0.5, 30), rng.uniform(0.2, 0.9, 30)
        accuracies[[0, 7]] = NAN
        run = pd.DataFrame(trials("amc", 0, list(accuracies), ratios=list(ratios)))
        points = np.column_stack([ratios, accuracies])
        expected = [hypervolume.hypervolume(points[:number]) for number in range(1, 31)]
        assert so_far(run, HYPERVOLUME) == pytest.approx(np.array(expected))


class TestAnytimeCurves:
    def test_mean_staircase_of_two_seeds_by_hand(self):
        rows = [*trials("amc", 0, [0.4, 0.6, 0.5, 0.8]), *trials("amc", 1, [NAN, 0.2, 0.6])]
        frame = anytime_curves(comparison(rows))
        assert tuple(frame.columns) == CURVE_COLUMNS
        # From the second trial on both have something; the finished second seed holds its 0.6 to the end.
        assert curve(frame, "amc") == [
            (2, pytest.approx(0.4)),
            (3, pytest.approx(0.6)),
            (4, pytest.approx(0.7)),
        ]
        last = frame[(frame["clock"] == "trials") & (frame["quantity"] == BEST_ACCURACY)].iloc[-1]
        assert (last["low"], last["high"], last["num_seeds"]) == (0.6, 0.8, 2)

    def test_curves_against_seconds_step_when_a_seed_gets_better(self):
        rows = [*trials("amc", 0, [0.4, 0.6], seconds=[1.0, 3.0]), *trials("amc", 1, [0.2, 0.4], seconds=[0.5, 10.0])]
        assert curve(anytime_curves(comparison(rows)), "amc", clock="cpu_s") == [
            (1.0, pytest.approx(0.3)),
            (3.0, pytest.approx(0.4)),
            (10.0, pytest.approx(0.5)),
        ]

    def test_a_facet_with_a_run_that_did_not_count_cpu_seconds_goes_by_the_clock(self):
        rows = [
            *trials("amc", 0, [0.4, 0.5], facet="a"),
            *trials("legr", 0, [0.4, 0.5], facet="a", cpu=False),
            *trials("amc", 0, [0.4, 0.5], facet="b"),
        ]
        assert seconds_clocks(pd.DataFrame(rows)) == {"a": "wall_s", "b": "cpu_s"}

    def test_unfinished_runs_are_left_out_beside_finished_ones(self):
        rows = [*trials("amc", 0, [0.4, 0.6]), *trials("amc", 1, [0.9])]
        frame = anytime_curves(comparison(rows, unfinished={"amc-0.5-1"}))
        assert curve(frame, "amc") == [(1, 0.4), (2, 0.6)]
        assert set(frame["note"]) == {"left out: 1 run unfinished"}

    def test_curve_of_unfinished_runs_ends_with_the_shortest(self):
        rows = [*trials("amc", 0, [0.4, 0.5, 0.6]), *trials("amc", 1, [0.6, 0.7])]
        frame = anytime_curves(comparison(rows, unfinished={"amc-0.5-0", "amc-0.5-1"}))
        assert curve(frame, "amc") == [(1, pytest.approx(0.5)), (2, pytest.approx(0.6))]

    def test_searches_of_one_trial_are_references_not_curves(self):
        rows = [*trials("uniform", 0, [0.5]), *trials("uniform", 1, [0.7]), *trials("amc", 0, [0.4, 0.6])]
        whole = comparison(rows)
        assert set(anytime_curves(whole)["series"]) == {"amc"}
        references = anytime_references(whole, quantities=[BEST_ACCURACY])
        row = only(references)
        assert (row["series"], row["mean"], row["low"], row["high"]) == ("uniform", pytest.approx(0.6), 0.5, 0.7)

    def test_members_of_a_uniform_family_make_it_no_search(self):
        rows = trials("uniform", 0, [0.5, 0.7, 0.8], budget=0.3, ratios=[0.3, 0.5, 0.7])
        whole = comparison(rows, config={"budget": {"cost_ratios": [0.7, 0.5, 0.3]}})
        assert anytime_curves(whole).empty
        assert only(anytime_references(whole, quantities=[BEST_ACCURACY]))["mean"] == 0.5

    def test_what_was_learned_elsewhere_is_a_reference_that_says_so(self):
        rows = [*trials("legr", 0, [0.5]), *trials("amc", 0, [0.4, 0.6])]
        found = [network("legr", 0, 0.5, 0.5, is_learned_elsewhere=True), network("amc", 0, 0.5, 0.5)]
        references = anytime_references(comparison(rows, found=found), quantities=[BEST_ACCURACY])
        assert bool(only(references)["is_learned_elsewhere"])

    def test_beside_runs_that_searched_those_that_learned_elsewhere_are_left_out(self):
        rows = [*trials("legr", 0, [0.4, 0.6]), *trials("legr", 1, [0.9])]
        found = [network("legr", 1, 0.5, 0.5, is_learned_elsewhere=True)]
        frame = anytime_curves(comparison(rows, found=found))
        assert curve(frame, "legr") == [(1, 0.4), (2, 0.6)]
        assert "learned at another budget" in frame["note"].iloc[0]

    def test_an_unfinished_run_and_one_that_learned_elsewhere_are_both_left_out(self):
        rows = [*trials("legr", 0, [0.4, 0.6]), *trials("legr", 1, [0.9]), *trials("legr", 2, [0.8])]
        found = [network("legr", 1, 0.5, 0.5, is_learned_elsewhere=True)]
        frame = anytime_curves(comparison(rows, found=found, unfinished={"legr-0.5-2"}))
        assert curve(frame, "legr") == [(1, 0.4), (2, 0.6)]
        assert frame["note"].iloc[0] == "left out: 1 run unfinished; left out: 1 run learned at another budget"

    def test_a_search_with_one_trial_within_its_budget_is_still_a_search(self):
        rows = trials("amc", 0, [0.9, 0.4, 0.8], ratios=[0.6, 0.5, 0.7])
        whole = comparison(rows)
        assert anytime_references(whole).empty
        assert curve(anytime_curves(whole), "amc") == [(2, 0.4), (3, 0.4)]

    def test_a_search_that_trains_its_own_network_is_flagged(self):
        rows = [*trials("proxylessnas", 0, [0.4, 0.6]), *trials("amc", 0, [0.4, 0.6])]
        frame = anytime_curves(comparison(rows))
        assert frame.groupby("series")["is_by_trials"].unique().map(list).to_dict() == {
            "amc": [True],
            "proxylessnas": [False],
        }

    def test_trials_of_two_folders_of_one_name_are_not_mixed(self):
        rows = [*trials("amc", 0, [0.4, 0.6]), *trials("amc", 0, [0.5, 0.9])]
        assert curve(anytime_curves(comparison(rows)), "amc") == [(1, 0.4), (2, 0.6)]

    def test_a_seed_of_failures_only_has_no_curve(self):
        rows = [*trials("amc", 0, [NAN, NAN]), *trials("amc", 1, [0.5, 0.6])]
        assert curve(anytime_curves(comparison(rows)), "amc") == []


class TestEqualEffort:
    ROWS = (
        *trials("amc", 0, [0.3, 0.4, 0.9], seconds=[1.0, 2.0, 3.0]),
        *trials("amc", 1, [0.5, 0.6, 0.7], seconds=[1.0, 2.0, 30.0]),
        *trials("legr", 0, [0.2, 0.5], seconds=[4.0, 8.0]),
        *trials("proxylessnas", 0, [0.1, 0.8], seconds=[2.5, 9.0]),
        *trials("uniform", 0, [0.45], seconds=[0.1]),
    )

    def test_at_equal_trials_everyone_has_as_many_as_the_shortest_search(self):
        frame = equal_effort.at_equal_trials(comparison(self.ROWS))
        assert set(frame["effort"]) == {2.0}
        amc = only(frame, series="amc")
        assert (amc["mean"], amc["low"], amc["high"], amc["own_total"]) == (pytest.approx(0.5), 0.4, 0.6, 3.0)
        assert only(frame, series="legr")["mean"] == 0.5

    def test_trials_do_not_tell_what_training_costs(self):
        row = only(equal_effort.at_equal_trials(comparison(self.ROWS)), series="proxylessnas")
        assert np.isnan(row["mean"])
        assert "not told by trials" in row["note"]

    def test_at_equal_seconds_the_shortest_run_says_how_many(self):
        frame = equal_effort.at_equal_seconds(comparison(self.ROWS))
        assert set(frame["clock"]) == {"cpu_s"}
        assert set(frame["effort"]) == {3.0}
        assert only(frame, series="amc")["mean"] == pytest.approx((0.9 + 0.6) / 2)
        assert only(frame, series="proxylessnas")["mean"] == 0.1
        assert only(frame, series="uniform")["mean"] == 0.45

    def test_who_has_found_nothing_by_then_has_no_number(self):
        row = only(equal_effort.at_equal_seconds(comparison(self.ROWS)), series="legr")
        assert (row["num_seeds"], row["note"]) == (0, "nothing found by then")

    def test_unfinished_searches_do_not_shorten_the_others(self):
        frame = equal_effort.at_equal_trials(
            comparison([*self.ROWS, *trials("evolution", 0, [0.99])], unfinished={"evolution-0.5-0"})
        )
        assert set(frame["effort"]) == {2.0}
        assert only(frame, series="evolution")["note"] == "unfinished"

    def test_accuracies_after_another_recovery_are_said_not_to_compare(self):
        whole = comparison(self.ROWS, config={"recover": {"_target_": "a.Usual"}})
        runs = tuple(
            replace(run, config={"recover": {"_target_": "a.Other"}}) if run.name == "amc-0.5-0" else run
            for run in whole.runs
        )
        whole = replace(whole, runs=runs)
        frame = equal_effort.at_equal_trials(whole)
        said = "scored otherwise (recover=Other): does not compare"
        assert [said in note for note in frame["note"]] == [series == "amc" for series in frame["series"]]
        (table,) = equal_effort_tables(frame)
        assert {row[0].text for row in table.rows if row[4].is_bold} == {"legr"}
        curves = anytime_curves(whole)
        assert set(curves.loc[curves["scored_otherwise"] == "recover=Other", "series"]) == {"amc"}

    def test_budgets_have_efforts_of_their_own_those_without_one_too(self):
        rows = [*trials("amc", 0, [0.3, 0.4]), *trials("amc", 0, [0.3] * 5, budget=NAN)]
        frame = equal_effort.at_equal_trials(comparison(rows))
        assert list(frame["effort"]) == [2.0, 5.0]
