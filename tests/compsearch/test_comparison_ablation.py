from pathlib import Path

import matplotlib.colors
import numpy as np
import pandas as pd
import pytest
from matplotlib.container import ErrorbarContainer

from compsearch.comparison.ablation_plot import ablation_figure, save_ablation
from compsearch.comparison.ablation_table import ABLATION_COLUMNS, ablation_frame, ablation_tables
from compsearch.comparison.comparison import KEPT_COLUMNS, NETWORK_COLUMNS, TRIAL_COLUMNS, Comparison, Run
from compsearch.comparison.text_table import to_latex, to_markdown

NAN = float("nan")


def network(variant, seed, accuracy, *, stage="before", **others):
    row = {
        "run": f"amc-{variant}-{seed}",
        "facet": "net on data",
        "series": f"amc {variant}",
        "searcher": "amc",
        "variant": variant,
        "seed": seed,
        "resource": "macs",
        "budget": 0.5,
        "stage": stage,
        "accuracy_test": accuracy,
        "accuracy_search": accuracy + 0.1,
        "wall_s": 20.0 + 10 * seed,
        "cpu_s": NAN,
        "is_learned_elsewhere": False,
    }
    return row | others


def comparison(*rows, runs=()):
    return Comparison(
        runs,
        pd.DataFrame(list(rows), columns=list(NETWORK_COLUMNS)),
        pd.DataFrame(columns=list(TRIAL_COLUMNS)),
        pd.DataFrame(columns=list(KEPT_COLUMNS)),
    )


def seeds(variant, accuracies, **others):
    return [network(variant, seed, accuracy, **others) for seed, accuracy in enumerate(accuracies)]


def only(frame, **where):
    for column, value in where.items():
        frame = frame[frame[column] == value]
    assert len(frame) == 1, frame
    return frame.iloc[0]


#: The differences are 0.02, 0.03 and 0.04: far less apart than the seeds are.
PAIRED = (*seeds("", [0.5, 0.6, 0.7]), *seeds("two_path", [0.52, 0.63, 0.74]))


class TestFrame:
    def test_paired_difference_by_hand(self):
        row = only(ablation_frame(comparison(*PAIRED)), variant="two_path", quantity="test_before")
        assert (row["mean"], row["std"]) == (pytest.approx(0.63), pytest.approx(0.11))
        assert (row["difference"], row["difference_std"]) == (pytest.approx(0.03), pytest.approx(0.01))
        assert (row["num_seeds"], row["num_pairs"], row["is_beyond_spread"]) == (3, 3, True)

    def test_only_seeds_that_both_have_are_paired(self):
        rows = [*PAIRED, network("two_path", 9, 0.99)]
        row = only(ablation_frame(comparison(*rows)), variant="two_path", quantity="test_before")
        assert (row["num_seeds"], row["num_pairs"]) == (4, 3)
        assert row["difference"] == pytest.approx(0.03)

    def test_a_difference_within_its_spread_is_not_beyond(self):
        rows = [*seeds("", [0.5, 0.6]), *seeds("v", [0.6, 0.52])]
        row = only(ablation_frame(comparison(*rows)), variant="v", quantity="test_before")
        assert row["difference"] == pytest.approx(0.01)
        assert not row["is_beyond_spread"]

    def test_one_pair_cannot_tell(self):
        row = only(
            ablation_frame(comparison(network("", 0, 0.5), network("v", 0, 0.9))), variant="v", quantity="test_before"
        )
        assert row["difference"] == pytest.approx(0.4)
        assert row["is_beyond_spread"] is None

    def test_every_quantity_that_is_there_is_told_and_no_other(self):
        frame = ablation_frame(comparison(*PAIRED))
        assert list(dict.fromkeys(frame["quantity"])) == ["test_before", "search", "search_s"]
        after = [row | {"stage": "after", "accuracy_test": 0.9} for row in PAIRED]
        frame = ablation_frame(comparison(*PAIRED, *after))
        assert list(dict.fromkeys(frame["quantity"])) == ["test_before", "test_after", "search", "search_s"]
        assert tuple(frame.columns) == ABLATION_COLUMNS
        assert only(frame, variant="two_path", quantity="search_s")["unit"] == "wall_s"

    def test_failed_and_missing_networks_leave_their_seed_out(self):
        rows = [*seeds("", [0.5, NAN, 0.7]), *seeds("v", [0.6, 0.7, NAN])]
        row = only(ablation_frame(comparison(*rows)), variant="v", quantity="test_before")
        assert (row["num_seeds"], row["num_pairs"], row["difference"]) == (2, 1, pytest.approx(0.1))

    def test_a_variant_called_default_is_preferred_to_plain_runs(self):
        frame = ablation_frame(comparison(*PAIRED, *seeds("default", [0.4, 0.5, 0.6])))
        assert list(dict.fromkeys(frame["variant"])) == ["default", "two_path"]
        row = only(frame, variant="two_path", quantity="test_before")
        assert row["difference"] == pytest.approx(0.13)

    def test_without_a_default_there_are_no_differences(self):
        whole = comparison(*seeds("a", [0.5, 0.6]), *seeds("b", [0.6, 0.7]))
        frame = ablation_frame(whole)
        assert frame["difference"].isna().all()
        (table,) = ablation_tables(frame, whole)
        assert "no run of the default" in table.notes[0]

    def test_searchers_without_variants_and_dense_networks_are_no_ablation(self):
        plain = [row | {"variant": "", "searcher": "legr"} for row in PAIRED]
        assert ablation_frame(comparison(*plain, network("", 0, 0.9, stage="dense"))).empty

    def test_budgets_and_searchers_are_apart(self):
        other = [row | {"budget": 0.3, "accuracy_test": 0.3} for row in PAIRED]
        third = [row | {"searcher": "legr"} for row in PAIRED]
        frame = ablation_frame(comparison(*PAIRED, *other, *third))
        places = frame[["searcher", "budget"]].drop_duplicates().to_numpy().tolist()
        assert places == [["amc", 0.5], ["amc", 0.3], ["legr", 0.5]]

    def test_seconds_of_a_search_counted_elsewhere_are_not_told(self):
        rows = [*PAIRED, *seeds("reused", [0.5, 0.6, 0.7], is_learned_elsewhere=True)]
        frame = ablation_frame(comparison(*rows))
        assert set(frame.loc[frame["variant"] == "reused", "quantity"]) == {"test_before", "search"}


def run_of(name, searcher, variant, **config):
    return Run(Path(name), config, None, searcher, variant, 0, "net on data", "", {}, "")


def test_variants_of_another_searcher_find_their_default_among_several_ablations():
    of_amc, of_legr = {"default": []}, {"default": [], "affine_off": ["searcher=global_magnitude"]}
    rows = [
        network("default", 0, 0.5, run="a"),
        network("default", 0, 0.6, run="b", searcher="legr"),
        network("affine_off", 0, 0.4, run="c", searcher="global_magnitude"),
    ]
    runs = (
        run_of("a", "amc", "default", variants=of_amc),
        run_of("b", "legr", "default", variants=of_legr),
        run_of("c", "global_magnitude", "affine_off", variants=of_legr),
    )
    frame = ablation_frame(comparison(*rows, runs=runs))
    row = only(frame, variant="affine_off", quantity="test_before")
    assert (row["searcher"], row["difference"]) == ("legr", pytest.approx(-0.2))
    assert set(frame["searcher"]) == {"legr"}


def test_what_is_swept_beside_the_variants_has_tables_of_its_own():
    values = {"recover=bn": (0.5, 0.6), "recover=lsq": (0.7, 0.65)}
    rows, runs = [], []
    for swept, accuracies in values.items():
        for variant, accuracy in zip(("default", "raw"), accuracies, strict=True):
            rows.append(network(variant, 0, accuracy, run=f"{variant}-{swept}"))
            runs.append(run_of(f"{variant}-{swept}", "amc", variant, swept=swept))
    whole = comparison(*rows, runs=tuple(runs))
    frame = ablation_frame(whole)
    differences = {
        swept: only(frame, beside=swept, variant="raw", quantity="test_before")["difference"] for swept in values
    }
    assert differences == {"recover=bn": pytest.approx(0.1), "recover=lsq": pytest.approx(-0.05)}
    assert [table.caption.split(", mean")[0] for table in ablation_tables(frame, whole)] == [
        f"amc: net on data, budget 0.5 of FLOPs (MACs), {swept}" for swept in values
    ]


def test_runs_of_one_variant_and_seed_at_other_settings_are_counted_and_said():
    whole = comparison(*PAIRED, network("two_path", 0, 0.9, run="longer"))
    frame = ablation_frame(whole)
    assert only(frame, variant="two_path", quantity="test_before")["mean"] == pytest.approx(0.63)
    (table,) = ablation_tables(frame, whole)
    assert table.notes[1].startswith("1 further run has the variant and seed of another one")


class TestTables:
    def test_cells_of_a_variant(self):
        whole = comparison(*PAIRED)
        (table,) = ablation_tables(ablation_frame(whole), whole)
        assert [cell.text for cell in table.rows[0]][:4] == ["default", "3", "60.00 ± 10.00", ""]
        assert [cell.text for cell in table.rows[1]][:4] == ["two_path", "3", "63.00 ± 11.00", "+3.00 ± 1.00*"]
        assert table.caption.startswith("amc: net on data, budget 0.5 of FLOPs (MACs)")

    def test_losses_have_a_minus_and_incomplete_pairs_are_counted(self):
        whole = comparison(*seeds("", [0.5, 0.6]), *seeds("v", [0.4, 0.4, 0.4]))
        (table,) = ablation_tables(ablation_frame(whole), whole)
        assert table.rows[1][3].text == "−15.00 ± 7.07* (2 pairs)"

    def test_settings_stand_beside_the_variant(self):
        def run(variant, seed, value):
            settings = {"searcher.replay": value}
            return Run(Path(f"{variant}{seed}"), {}, None, "amc", variant, seed, "net on data", "", settings, "")

        runs = (run("", 0, "limited"), run("", 1, "limited"), run("two_path", 0, "raw"), run("two_path", 1, "none"))
        whole = comparison(*PAIRED, runs=runs)
        (table,) = ablation_tables(ablation_frame(whole), whole, settings=["searcher.replay", "seed"])
        assert table.headings[:4] == ("variant", "searcher.replay", "seed", "seeds")
        assert [[cell.text for cell in row[:3]] for row in table.rows] == [
            ["default", "limited", "–"],
            ["two_path", "varies", "–"],
        ]

    def test_written_as_markdown_and_latex(self):
        whole = comparison(*PAIRED)
        (table,) = ablation_tables(ablation_frame(whole), whole)
        assert r"| two_path | 3 | 63.00 ± 11.00 | +3.00 ± 1.00\* |" in to_markdown(table)
        assert r"two\_path & 3 & 63.00 $\pm$ 11.00 & +3.00 $\pm$ 1.00* &" in to_latex(table)


class TestPlot:
    def test_without_a_default_nothing_is_compared_and_that_is_said(self):
        figure = ablation_figure(ablation_frame(comparison(*seeds("recover=bn", [0.5, 0.6]))))
        assert [text.get_text() for text in figure.legends[0].get_texts()] == ["mean ± std over seeds"]
        assert "no run of the default" in figure.get_suptitle()

    def test_a_dot_per_variant_with_its_spread_and_a_line_for_the_default(self):
        (axes,) = ablation_figure(ablation_frame(comparison(*PAIRED))).axes
        bars = [container for container in axes.containers if isinstance(container, ErrorbarContainer)]
        dots = [bar.lines[0].get_xydata().tolist() for bar in bars]
        assert dots == [[[pytest.approx(0.6), 0.0]], [[pytest.approx(0.63), 1.0]]]
        (reach,) = bars[1].lines[2][0].get_segments()
        assert reach[:, 0] == pytest.approx([0.52, 0.74])
        assert [label.get_text() for label in axes.get_yticklabels()] == ["default", "two_path"]
        (band,) = axes.patches
        assert band.get_x() == pytest.approx(0.5)
        assert band.get_width() == pytest.approx(0.2)

    def test_dots_are_hollow_where_the_difference_is_within_its_spread(self):
        rows = [*PAIRED, *seeds("same", [0.6, 0.6, 0.6])]
        (axes,) = ablation_figure(ablation_frame(comparison(*rows))).axes
        faces = [
            matplotlib.colors.to_hex(container.lines[0].get_markerfacecolor())
            for container in axes.containers
            if isinstance(container, ErrorbarContainer)
        ]
        assert faces[2] == "#ffffff"
        assert "#ffffff" not in faces[:2]

    def test_after_fine_tuning_has_a_panel_of_its_own(self):
        after = [row | {"stage": "after"} for row in PAIRED]
        assert len(ablation_figure(ablation_frame(comparison(*PAIRED, *after))).axes) == 2

    def test_one_seed_has_dots_without_bars(self, tmp_path: Path):
        frame = ablation_frame(comparison(network("", 0, 0.5), network("v", 0, 0.6)))
        bitmap, vector = save_ablation(tmp_path / "ablation.png", frame)
        assert bitmap.read_bytes().startswith(b"\x89PNG")
        assert b"<svg" in vector.read_bytes()

    def test_a_plot_is_of_one_place(self):
        other = [row | {"budget": 0.3} for row in PAIRED]
        with pytest.raises(ValueError, match=r"of one facet, searcher and budget.* got 2 of them"):
            ablation_figure(ablation_frame(comparison(*PAIRED, *other)))
        with pytest.raises(ValueError, match="got 0 of them"):
            ablation_figure(ablation_frame(comparison()))


def test_numbers_of_an_ablation_do_not_depend_on_the_order_of_its_rows():
    rows = list(PAIRED)
    shuffled = [rows[index] for index in np.random.default_rng(0).permutation(len(rows))]
    by = ["variant", "quantity"]
    one, other = (ablation_frame(comparison(*each)).sort_values(by).reset_index(drop=True) for each in (rows, shuffled))
    pd.testing.assert_frame_equal(one, other)


def test_a_variant_of_another_searcher_stands_beside_the_default_it_is_left_of() -> None:
    rows = (*seeds("default", [0.5, 0.6]), *seeds("affine_off", [0.4, 0.5], searcher="global_magnitude"))
    frame = ablation_frame(comparison(*rows))
    off = only(frame, variant="affine_off", quantity="test_before")
    assert off["searcher"] == "amc"
    assert off["difference"] == pytest.approx(-0.1)


def test_variants_of_two_searchers_with_defaults_are_kept_apart() -> None:
    rows = (*seeds("default", [0.5]), *seeds("mine", [0.4]), *seeds("default", [0.7], searcher="legr"))
    frame = ablation_frame(comparison(*rows, *seeds("mine", [0.6], searcher="legr")))
    assert set(frame["searcher"]) == {"amc", "legr"}
    assert only(frame, searcher="legr", variant="mine", quantity="test_before")["difference"] == pytest.approx(-0.1)
