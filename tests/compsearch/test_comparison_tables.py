import csv
import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from compsearch.comparison import tables
from compsearch.comparison.comparison import KEPT_COLUMNS, NETWORK_COLUMNS, TRIAL_COLUMNS, Comparison
from compsearch.comparison.estimate import Estimate, is_beyond, joint_spread, mean_and_spread
from compsearch.comparison.hypervolume import hypervolumes
from compsearch.comparison.statistics_tables import equal_effort_tables, hypervolume_tables
from compsearch.comparison.text_table import (
    TextCell,
    TextTable,
    escape_latex,
    escape_markdown,
    to_latex,
    to_markdown,
    write_csv,
    write_texts,
)
from compsearch.comparison.verdicts import verdicts

NAN = float("nan")


def network(series, seed, accuracy, *, budget=0.5, stage="before", **others):
    row = {
        "run": f"{series}-{budget}-{seed}",
        "facet": "net on data",
        "series": series,
        "searcher": series,
        "variant": "",
        "seed": seed,
        "resource": "macs",
        "budget": budget,
        "stage": stage,
        "accuracy_test": accuracy,
        "macs_ratio": budget - 0.001 * seed,
        "params_ratio": 0.6,
        "latency_ratio": NAN,
        "device": "",
        "trials": 100,
        "images": 5000,
        "wall_s": 20.0 + seed,
        "cpu_s": 10.0 + seed,
        "is_learned_elsewhere": False,
    }
    return row | others


def dense(accuracy, seed=0, **others):
    at = {"budget": 1.0, "stage": "dense"}
    return network("dense", seed, accuracy, **at) | {"budget": NAN, "resource": "", "trials": 0, **others}


def seeds(series, accuracies, **others):
    return [network(series, seed, accuracy, **others) for seed, accuracy in enumerate(accuracies)]


def comparison(*rows):
    return Comparison(
        (),
        pd.DataFrame(list(rows), columns=list(NETWORK_COLUMNS)),
        pd.DataFrame(columns=list(TRIAL_COLUMNS)),
        pd.DataFrame(columns=list(KEPT_COLUMNS)),
    )


def only(frame, **where):
    for column, value in where.items():
        frame = frame[frame[column] == value]
    assert len(frame) == 1, frame
    return frame.iloc[0]


class TestEstimate:
    def test_of_three_values_by_hand(self):
        estimate = Estimate.of([0.6, 0.7, NAN, 0.8])
        assert (estimate.mean, estimate.std, estimate.num) == (pytest.approx(0.7), pytest.approx(0.1), 3)
        assert mean_and_spread(estimate, scale=100) == "70.00 ± 10.00"

    def test_one_value_has_no_spread_and_none_no_mean(self):
        assert mean_and_spread(Estimate.of([0.5])) == "0.50"
        assert mean_and_spread(Estimate.of([NAN])) == "–"

    def test_joint_spread_is_that_of_a_difference(self):
        assert joint_spread(Estimate(0.7, 0.03, 3), Estimate(0.6, 0.04, 3)) == pytest.approx(0.05)

    @pytest.mark.parametrize(
        ("difference", "spread", "expected"),
        [
            (0.06, 0.05, True),
            (-0.06, 0.05, True),
            (0.05, 0.05, False),
            (0.06, NAN, None),
            (NAN, 0.05, None),
            (0.06, 0.0, None),
        ],
    )
    def test_beyond_the_spread(self, difference, spread, expected):
        assert is_beyond(difference, spread) is expected


class TestSummary:
    def test_rows_are_series_by_budget_dense_first_and_budgets_falling(self):
        whole = comparison(
            dense(0.95),
            network("amc", 0, 0.8, budget=0.3),
            network("amc", 0, 0.9, budget=0.7),
            network("uniform", 0, 0.85, budget=0.7),
        )
        frame = tables.summary_frame(whole)
        assert tuple(frame.columns) == tables.SUMMARY_COLUMNS
        assert frame[["series", "budget"]].to_numpy().tolist() == [
            ["dense", pytest.approx(NAN, nan_ok=True)],
            ["amc", 0.7],
            ["uniform", 0.7],
            ["amc", 0.3],
        ]

    def test_numbers_of_three_seeds_by_hand(self):
        whole = comparison(*seeds("amc", [0.6, 0.7, 0.8]), *seeds("amc", [0.8, 0.9], stage="after"))
        row = only(tables.summary_frame(whole))
        assert (row["before_mean"], row["before_std"]) == (pytest.approx(0.7), pytest.approx(0.1))
        assert (row["after_mean"], row["after_num_seeds"]) == (pytest.approx(0.85), 2)
        assert (row["macs_ratio_min"], row["macs_ratio_max"]) == (pytest.approx(0.498), pytest.approx(0.5))
        assert (row["num_seeds"], row["trials"], row["clock"]) == (3, 100, "cpu_s")
        assert (row["search_s_mean"], row["search_s_std"]) == (pytest.approx(11.0), pytest.approx(1.0))

    def test_best_of_a_budget_is_marked_with_its_lead(self):
        whole = comparison(*seeds("amc", [0.79, 0.81]), *seeds("legr", [0.69, 0.71]), *seeds("uniform", [0.6, 0.6]))
        frame = tables.summary_frame(whole)
        assert list(frame["before_is_best"]) == [True, False, False]
        best = frame.iloc[0]
        assert best["before_runner_up"] == "legr"
        assert best["before_lead"] == pytest.approx(0.1)
        assert best["before_spread"] == pytest.approx(0.02)
        assert best["before_is_beyond_spread"] is True
        assert frame.iloc[1]["before_is_beyond_spread"] is None

    def test_a_lead_with_one_seed_is_neither_beyond_nor_within(self):
        frame = tables.summary_frame(comparison(network("amc", 0, 0.9), *seeds("legr", [0.5, 0.6])))
        assert only(frame, series="amc")["before_is_best"]
        assert only(frame, series="amc")["before_is_beyond_spread"] is None

    def test_alone_nobody_is_the_best(self):
        assert not only(tables.summary_frame(comparison(network("amc", 0, 0.9))))["before_is_best"]

    def test_networks_without_a_test_accuracy_are_no_row(self):
        assert tables.summary_frame(comparison(network("amc", 0, NAN))).empty

    def test_the_same_dense_network_in_many_runs_is_one(self):
        row = only(tables.summary_frame(comparison(dense(0.9), dense(0.9, seed=1), dense(0.92, seed=2))))
        assert (row["before_mean"], row["before_num_seeds"]) == (pytest.approx(0.91), 2)

    def test_seconds_are_by_the_clock_where_a_search_of_the_facet_lacks_cpu_seconds(self):
        frame = tables.summary_frame(comparison(network("amc", 0, 0.8), network("legr", 0, 0.8, cpu_s=NAN)))
        assert set(frame["clock"]) == {"wall_s"}
        assert only(frame, series="amc")["search_s_mean"] == 20.0

    def test_a_search_counted_elsewhere_has_no_seconds_and_the_table_says_why(self):
        whole = comparison(network("legr", 0, 0.8), network("legr", 0, 0.9, budget=0.7, is_learned_elsewhere=True))
        frame = tables.summary_frame(whole)
        assert np.isnan(only(frame, budget=0.7)["search_s_mean"])
        (table,) = tables.summary_tables(frame)
        assert any("it is counted there" in note for note in table.notes)

    def test_table_for_people_marks_and_counts(self):
        whole = comparison(
            dense(0.95),
            *seeds("amc", [0.79, 0.81, 0.80]),
            *seeds("legr", [0.69, 0.71]),
            *seeds("amc", [0.9], stage="after"),
        )
        (table,) = tables.summary_tables(tables.summary_frame(whole))
        by_series = {row[0].text: row for row in table.rows}
        assert [cell.text for cell in by_series["amc"][:5]] == ["amc", "0.5", "3", "100", "0.498–0.500"]
        assert by_series["amc"][7] == TextCell("80.00 ± 1.00*", is_bold=True)
        assert by_series["legr"][7] == TextCell("70.00 ± 1.41")
        assert by_series["amc"][8].text == "90.00 (1 seed)"
        assert by_series["dense"][7].text == "95.00"

    def test_latencies_of_several_devices_are_told_apart(self):
        timed = {"latency_ratio": 0.5}
        whole = comparison(
            network("amc", 0, 0.8, device="laptop", **timed), network("amc", 1, 0.8, device="phone", **timed)
        )
        (table,) = tables.summary_tables(tables.summary_frame(whole))
        assert any("laptop; phone" in note and "do not compare" in note for note in table.notes)

    def test_nothing_compared_is_no_table(self):
        assert tables.summary_tables(tables.summary_frame(comparison())) == []
        assert tables.search_cost_tables(tables.search_cost_frame(comparison())) == []
        assert verdicts(comparison()) == []


class TestSearchCost:
    def test_a_search_is_counted_once_however_many_networks_it_gave(self):
        family = [network("legr", 0, 0.8, budget=budget, run="legr-family") for budget in (0.3, 0.5, 0.7)]
        tuned = [row | {"stage": "after"} for row in family]
        reused = network("legr", 1, 0.8, budget=0.7, is_learned_elsewhere=True)
        row = only(tables.search_cost_frame(comparison(*family, *tuned, network("legr", 1, 0.8, budget=0.3), reused)))
        assert (row["num_searches"], row["num_networks"]) == (2, 5)
        assert (row["trials_total"], row["images_total"]) == (200, 10000)
        assert (row["wall_s_mean"], row["wall_s_std"]) == (pytest.approx(20.5), pytest.approx(0.5**0.5))

    def test_a_network_that_a_run_was_compared_with_is_no_search(self):
        nothing = {"trials": 0, "images": 0, "wall_s": 0.0, "cpu_s": 0.0}
        whole = comparison(network("uniform", 0, 0.8), network("uniform", 1, 0.8, run="amc-0.5-1", **nothing))
        row = only(tables.search_cost_frame(whole))
        assert (row["num_searches"], row["num_networks"], row["trials_mean"]) == (1, 1, 100)
        assert only(tables.summary_frame(whole))["search_s_mean"] == 10.0
        assert tables.search_cost_frame(comparison(network("uniform", 1, 0.8, **nothing))).empty

    def test_cpu_seconds_that_some_runs_lack_are_not_told_of_the_rest(self):
        row = only(tables.search_cost_frame(comparison(network("amc", 0, 0.8), network("amc", 1, 0.8, cpu_s=NAN))))
        assert np.isnan([row["cpu_s_mean"], row["cpu_s_total"]]).all()
        assert row["wall_s_total"] == 41.0

    def test_table_for_people(self):
        (table,) = tables.search_cost_tables(tables.search_cost_frame(comparison(*seeds("amc", [0.8, 0.9]))))
        texts = [cell.text for cell in table.rows[0]]
        assert texts == ["amc", "2", "2", "100 ± 0", "5000 ± 0", "20.5 ± 0.7", "10.5 ± 0.7"]


class TestVerdicts:
    def test_a_lead_beyond_the_spread(self):
        whole = comparison(*seeds("amc", [0.79, 0.81]), *seeds("legr", [0.69, 0.71]), *seeds("uniform", [0.6, 0.62]))
        assert verdicts(whole) == [
            "net on data, budget 0.5 of FLOPs (MACs), before fine-tuning: amc is ahead with 80.00% ± 1.41 (2 seeds, at "
            "0.499), 10.00 points over legr with 70.00% ± 1.41 (2 seeds, at 0.499), more than the seeds' spread of "
            "2.00; the best baseline, uniform with 61.00% ± 1.41 (2 seeds, at 0.499), is 19.00 points behind, more "
            "than the seeds' spread of 2.00."
        ]

    def test_a_lead_within_the_spread_says_so(self):
        (sentence,) = verdicts(comparison(*seeds("amc", [0.7, 0.8]), *seeds("legr", [0.69, 0.79])))
        assert "1.00 points over legr" in sentence
        assert "within the seeds' spread of 10.00" in sentence
        assert "no baseline has been run there" in sentence

    def test_means_over_other_seeds_are_called_so_with_what_shared_seeds_say(self):
        (sentence,) = verdicts(comparison(network("amc", 0, 0.8), *seeds("uniform", [0.82, 0.7])))
        assert "4.00 points over uniform" in sentence
        assert "(not on the same seeds: -2.00 on the 1 seed that both have)" in sentence
        (sentence,) = verdicts(comparison(network("amc", 3, 0.8), *seeds("uniform", [0.82, 0.7])))
        assert "cannot tell from chance, on other seeds" in sentence

    def test_one_seed_cannot_tell(self):
        (sentence,) = verdicts(comparison(network("amc", 0, 0.8), network("uniform", 0, 0.7)))
        assert "which one seed cannot tell from chance" in sentence
        assert "uniform is a baseline" in sentence

    def test_a_baseline_ahead_of_every_search_method_is_called_so(self):
        (sentence,) = verdicts(
            comparison(*seeds("random", [0.8, 0.82]), *seeds("uniform", [0.75, 0.77]), *seeds("amc", [0.7, 0.72]))
        )
        assert "random is ahead" in sentence
        assert "random and uniform, baselines, are at least as good as every search method (amc, the best" in sentence

    def test_a_baseline_level_with_the_best_method_is_at_least_as_good(self):
        (sentence,) = verdicts(comparison(*seeds("amc", [0.7, 0.8]), *seeds("uniform", [0.75, 0.75])))
        assert "are level" in sentence
        assert "uniform, a baseline, is at least as good as every search method" in sentence

    def test_all_that_are_level_are_named(self):
        rows = [row for series in ("amc", "legr", "evolution") for row in seeds(series, [0.7, 0.8])]
        (sentence,) = verdicts(comparison(*rows, *seeds("uniform", [0.6, 0.7])))
        assert "amc, legr and evolution are level" in sentence
        frame = tables.summary_frame(comparison(*rows, *seeds("uniform", [0.6, 0.7])))
        assert list(frame.loc[frame["before_is_best"].eq(True), "series"]) == ["amc", "legr", "evolution"]

    def test_seeds_that_agree_to_the_last_image_prove_nothing(self):
        (sentence,) = verdicts(comparison(*seeds("amc", [0.81, 0.81]), *seeds("legr", [0.8, 0.8])))
        assert "which seeds that do not differ at all cannot tell from chance" in sentence

    def test_names_with_commas_are_quoted_and_long_lists_of_baselines_are_cut(self):
        rows = [network(f"uniform, v={index}", 0, 0.9 + index / 100, searcher="uniform") for index in range(5)]
        (sentence,) = verdicts(comparison(*rows, network("amc", 0, 0.8)))
        assert "“uniform, v=4”, “uniform, v=3” and 3 others, baselines, are at least as good" in sentence

    def test_a_sentence_per_budget_and_stage_largest_budget_first(self):
        whole = comparison(
            network("amc", 0, 0.8, budget=0.3),
            network("amc", 0, 0.9, budget=0.7),
            network("amc", 0, 0.85, budget=0.3, stage="after"),
        )
        places = [sentence.split(": ")[0] for sentence in verdicts(whole)]
        assert places == [
            "net on data, budget 0.7 of FLOPs (MACs), before fine-tuning",
            "net on data, budget 0.3 of FLOPs (MACs), before fine-tuning",
            "net on data, budget 0.3 of FLOPs (MACs), after fine-tuning",
        ]
        assert "only amc has been run, 90.00% (1 seed, at 0.700)" in verdicts(whole)[0]


class TestTextTable:
    TABLE = TextTable(
        "a & b",
        ("series", "top_1 (%)"),
        ((TextCell("global_magnitude"), TextCell("77.2 ± 0.4", is_bold=True)), (TextCell("a|b #1"), TextCell("–"))),
        notes=("50% of it.",),
    )

    def test_markdown(self):
        assert to_markdown(self.TABLE) == (
            "**a & b**\n\n"
            "| series | top_1 (%) |\n"
            "| --- | ---: |\n"
            "| global_magnitude | **77.2 ± 0.4** |\n"
            "| a\\|b #1 | – |\n"
            "\n50% of it.\n"
        )

    def test_latex(self):
        lines = to_latex(self.TABLE).splitlines()
        assert r"\caption{a \& b}" in lines
        assert r"\begin{tabular}{lr}" in lines
        assert r"series & top\_1 (\%) \\" in lines
        assert r"global\_magnitude & \textbf{77.2 $\pm$ 0.4} \\" in lines
        assert r"a|b \#1 & -- \\" in lines
        assert lines.index(r"\toprule") < lines.index(r"\midrule") < lines.index(r"\bottomrule")

    @pytest.mark.parametrize(
        ("text", "escaped"),
        [
            (r"50% & #1_a", r"50\% \& \#1\_a"),
            ("{x}^~$", r"\{x\}\textasciicircum{}\textasciitilde{}\$"),
            ("a\\b", r"a\textbackslash{}b"),
            ("1 ± 2", r"1 $\pm$ 2"),
        ],
    )
    def test_latex_reads_every_special_character_as_itself(self, text, escaped):
        assert escape_latex(text) == escaped

    def test_markdown_reads_markup_as_itself(self):
        assert escape_markdown("_a_ snake_case *b* <c> `d` \\") == r"\_a\_ snake_case \*b\* \<c> \`d\` \\"

    def test_a_row_of_another_length_is_a_mistake(self):
        with pytest.raises(AssertionError, match="one cell per heading"):
            TextTable("t", ("a", "b"), ((TextCell("x"),),))

    def test_csv_keeps_numbers_plain_and_missing_ones_empty(self, tmp_path: Path):
        whole = comparison(*seeds("amc", [1 / 3, 0.5]), network("legr", 0, 0.25))
        write_csv(tmp_path / "summary.csv", tables.summary_frame(whole))
        rows = list(csv.DictReader(io.StringIO((tmp_path / "summary.csv").read_text())))
        assert float(rows[0]["before_mean"]) == (1 / 3 + 0.5) / 2
        assert (rows[0]["before_is_best"], rows[0]["before_is_beyond_spread"]) == ("True", "")
        assert rows[0]["latency_ratio_min"] == rows[1]["before_std"] == ""

    def test_texts_go_beside_each_other(self, tmp_path: Path):
        paths = write_texts(tmp_path / "summary", [self.TABLE, self.TABLE])
        assert [path.name for path in paths] == ["summary.md", "summary.tex"]
        assert paths[0].read_text().count("global_magnitude") == 2
        assert paths[1].read_text().count(r"\end{table}") == 2


class TestStatisticsTables:
    def test_hypervolumes_state_the_reference_and_mark_the_largest(self):
        rows = [*seeds("amc", [0.6, 0.7]), *seeds("legr", [0.8, 0.9])]
        frame = hypervolumes(comparison(*rows).networks, rng=np.random.default_rng(0), costs=["params_ratio"])
        (table,) = hypervolume_tables(frame)
        assert table.headings == ("series", "budgets", "seeds", "over parameters", "95% of the mean")
        assert [row[0].text for row in table.rows] == ["legr", "amc"]
        assert table.rows[0][3] == TextCell("0.3400 ± 0.0283", is_bold=True)
        assert table.rows[0][4].text == "0.3200–0.3600"
        assert not table.rows[1][3].is_bold
        assert "reference point (cost_ratio 1, accuracy 0)" in table.notes[0]

    def test_hypervolumes_over_the_latency_of_each_device_are_columns_of_their_own(self):
        timed = [
            network("amc", 0, 0.6, latency_ratio=0.5, device="laptop"),
            network("amc", 0, 0.6, latency_ratio=0.8, device="phone"),
            network("legr", 0, 0.7, latency_ratio=0.8, device="phone"),
        ]
        frame = hypervolumes(comparison(*timed).networks, rng=np.random.default_rng(0), costs=["latency_ratio"])
        (table,) = hypervolume_tables(frame)
        assert table.headings[3::2] == ("over latency 1", "over latency 2")
        numbers = {row[0].text: [cell.text for cell in row[3::2]] for row in table.rows}
        assert numbers == {"amc": ["0.3000", "0.1200"], "legr": ["–", "0.1400"]}
        assert table.notes[-2:] == ("Latency 1: laptop.", "Latency 2: phone.")

    def test_without_common_budgets_only_series_of_the_same_ones_are_compared(self):
        rows = [network("amc", 0, 0.6), network("legr", 0, 0.7), network("random", 0, 0.9, budget=0.3)]
        frame = hypervolumes(comparison(*rows).networks, rng=np.random.default_rng(0), costs=["macs_ratio"])
        (table,) = hypervolume_tables(frame)
        assert [(row[0].text, row[1].text, row[3].is_bold) for row in table.rows] == [
            ("legr", "0.5", True),
            ("amc", "0.5", False),
            ("random", "0.3", False),
        ]
        assert table.rows[0][3].text == "0.3500"
        assert any("compare only those of the same budgets" in note for note in table.notes)

    def test_seeds_left_out_of_a_hypervolume_are_named_below_the_table(self):
        rows = [network("amc", 0, 0.6), network("amc", 0, 0.7, budget=0.3), network("amc", 1, 0.6)]
        frame = hypervolumes(comparison(*rows).networks, rng=np.random.default_rng(0), costs=["macs_ratio"])
        (table,) = hypervolume_tables(frame)
        assert "Of amc left out: seed 1 lacks 0.3; one seed: no interval." in table.notes

    def test_equal_effort_marks_the_best_of_each_budget(self):
        columns = {"facet": "f", "resource": "macs", "clock": "trials", "effort": 40.0, "own_total": 100.0, "note": ""}
        columns["scored_otherwise"] = ""
        numbers = [("amc", 0.3, 0.7), ("legr", 0.3, 0.8), ("amc", 0.5, NAN), ("legr", 0.5, 0.6)]
        frame = pd.DataFrame(
            [
                {**columns, "series": s, "budget": b, "mean": m, "std": 0.01, "num_seeds": 0 if m != m else 3}
                for s, b, m in numbers
            ]
        )
        (table,) = equal_effort_tables(frame)
        assert [(row[0].text, row[1].text) for row in table.rows if row[4].is_bold] == [
            ("legr", "0.5"),
            ("legr", "0.3"),
        ]
        assert [cell.text for cell in table.rows[0]][:6] == ["amc", "0.5", "40", "100", "–", "0"]
