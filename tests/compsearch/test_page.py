from __future__ import annotations

import dataclasses
import html.parser
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import plotly.offline
import pytest

from compsearch.comparison.comparison import Comparison
from compsearch.comparison.page import script_json, write_page
from compsearch.comparison.page_data import facet_data, link_to, thinned
from compsearch.comparison.page_policies import trial_choices
from compsearch.comparison.page_settings import constant_settings, machine_table, settings_table, unfinished_table
from compsearch.comparison.page_table import Cell, PageTable, marked_outliers, sort_number, text_of
from compsearch.comparison.runs import read_comparison
from compsearch.comparison.text_table import TextCell, TextTable

Maker = Callable[..., Comparison]

HOSTILE = """</script><script>alert("x")</script><img src=x onerror='alert(1)'> & "quoted" """


class _Reader(html.parser.HTMLParser):
    """What a page has of elements, attributes and text outside of scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in {"script", "style"}:
            self._inside = tag
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = "" if tag == self._inside else self._inside

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.scripts[-1] += data
        else:
            self.text += data


def read(path: Path) -> _Reader:
    reader = _Reader()
    reader.feed(path.read_text())
    reader.close()
    return reader


def page_of(comparison: Comparison, path: Path, **given: Any) -> _Reader:
    write_page(path, comparison, **{"tables": (), "verdicts": {}, "title": "Compared"} | given)
    return read(path)


def data_of(reader: _Reader) -> dict[str, Any]:
    (text,) = [text for text in reader.scripts if text.startswith('{"facets":')]
    found: dict[str, Any] = json.loads(text)["facets"][0]
    return found


def test_page_loads_nothing_but_itself(page_comparison: Maker, tmp_path: Path) -> None:
    reader = page_of(page_comparison(), tmp_path / "report.html")

    for tag, attributes in reader.elements:
        if tag != "a":  # links are followed by people, not loaded
            loaded = [attributes[key] for key in ("src", "href", "srcset", "data", "action") if key in attributes]
            assert all((value or "").startswith("data:") for value in loaded), (tag, loaded)
    links = [attributes["href"] or "" for tag, attributes in reader.elements if tag == "a"]
    assert links
    assert not [link for link in links if link.startswith("http") or link.startswith("//")]
    style = next(text for text in reader.scripts if ":root" in text)
    assert "url(" not in style
    assert "@import" not in style
    (policy,) = [
        attributes["content"] or ""
        for tag, attributes in reader.elements
        if tag == "meta" and "http-equiv" in attributes
    ]
    assert "default-src 'none'" in policy
    assert "unsafe-eval" not in policy


def test_page_holds_the_library_once_and_little_else(page_comparison: Maker, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    page_of(page_comparison(), path)
    library = plotly.offline.get_plotlyjs()
    assert "</script" not in library.lower()
    text = path.read_text()
    assert text.count("plotly.js v") == library.count("plotly.js v")
    assert len(text) - len(library) < 120_000


def test_texts_from_runs_cannot_become_markup(page_comparison: Maker, tmp_path: Path) -> None:
    name = """amc <b>"bold"</b> 'n' & more""".replace("/", "")
    made = page_comparison(facet=f"net {HOSTILE}", extra_run=name, remarks=(f"remark {HOSTILE}",))
    runs = [
        dataclasses.replace(run, command=f"python {HOSTILE}", settings={**run.settings, "path": HOSTILE, "n": run.seed})
        for run in made.runs
    ]
    comparison = dataclasses.replace(made, runs=tuple(runs))
    table = PageTable(f"table {HOSTILE}", (HOSTILE,), ((Cell(HOSTILE, href=f"x{HOSTILE}"),),), note=HOSTILE)

    plain = page_of(page_comparison_of(page_comparison, tmp_path), tmp_path / "plain.html", tables=[table])
    verdicts = {comparison.facets[0]: [f"verdict {HOSTILE}"]}
    title = f"title {HOSTILE}"
    reader = page_of(comparison, tmp_path / "report.html", tables=[table], verdicts=verdicts, title=title)

    assert len(reader.scripts) == len(plain.scripts)
    assert not [attributes for _, attributes in reader.elements if any(key.startswith("on") for key in attributes)]
    assert not [tag for tag, _ in reader.elements if tag in {"img", "iframe", "object"}]
    for said in ("remark", "verdict", "title", "table", "net", "python"):
        assert f"{said} {HOSTILE}".strip() in reader.text
    assert name in reader.text
    assert data_of(reader)["name"] == f"net {HOSTILE}"


def page_comparison_of(maker: Maker, tmp_path: Path) -> Comparison:
    """Another comparison beside the one that a test has already made."""
    (tmp_path / "results").rename(tmp_path / "first")
    other = maker()
    (tmp_path / "results").rename(tmp_path / "second")
    (tmp_path / "first").rename(tmp_path / "results")
    return other


def test_json_in_a_script_has_no_markup_and_no_nan() -> None:
    text = script_json({"<a>&": [math.nan, math.inf, "</script>"]})
    assert not set("<>&") & set(text)
    assert json.loads(text) == {"<a>&": [None, None, "</script>"]}


def test_page_states_split_seeds_and_that_costs_are_achieved(page_comparison: Maker, tmp_path: Path) -> None:
    comparison = page_comparison()
    text = page_of(comparison, tmp_path / "report.html", verdicts={comparison.facets[0]: ["legr wins."]}).text
    assert text.index("Accuracy and cost") < text.index("legr wins.") < text.index("Best so far")
    assert "top-1 on the test split" in text
    assert "2 seeds per series" in text
    assert "Costs as achieved, not as asked for" in text
    assert "8 finished runs and 1 that has no result yet" in text


def test_points_know_their_run_policy_and_costs(page_comparison: Maker, tmp_path: Path) -> None:
    facet = data_of(page_of(page_comparison(), tmp_path / "report.html"))
    network = next(row for row in facet["networks"] if row["series"] == "legr" and row["stage"] == "after")
    run = facet["runs"][network["run"]]

    assert run["name"] == "legr-resnet20-digits-macs0.3-seed0"
    assert run["href"] == "results/legr-resnet20-digits-macs0.3-seed0/"
    assert [file["name"] for file in run["files"]] == ["summary.json", "policy.json", "config.yaml", "trials.jsonl"]
    assert network["test"] == pytest.approx(0.79)
    assert [axis["column"] for axis in facet["axes"]] == ["macs_ratio", "params_ratio", "latency_ratio"]
    assert network["x"] == pytest.approx([0.291, 0.291, 0.6455])
    assert network["budget"] == "0.3 of FLOPs (MACs)"
    space = facet["spaces"][network["policy"]["space"]]
    assert space == {"groups": ["layer1.0.conv1", "layer2.0.conv1", "layer3.0.conv1"], "sizes": [16, 32, 64]}
    assert network["policy"]["counts"] == [4, 16, 8]


def test_means_are_over_seeds_with_their_deviation(page_comparison: Maker, tmp_path: Path) -> None:
    facet = data_of(page_of(page_comparison(), tmp_path / "report.html"))
    (mean,) = [
        mean for mean in facet["means"] if (mean["axis"], mean["stage"], mean["series"]) == (0, "before", "legr")
    ]
    assert mean["cost"] == pytest.approx([0.291, 0.485])
    assert mean["accuracy"] == pytest.approx([0.745, 0.835])
    assert mean["std"] == pytest.approx([0.01 / math.sqrt(2)] * 2)
    assert mean["num_seeds"] == [2, 2]


def test_trials_of_unfinished_runs_are_shown_with_their_policy(page_comparison: Maker, tmp_path: Path) -> None:
    facet = data_of(page_of(page_comparison(), tmp_path / "report.html"))
    trials = facet["trials"]
    unfinished = next(i for i, run in enumerate(facet["runs"]) if run["name"].endswith("seed2"))
    own = [i for i, run in enumerate(trials["run"]) if run == unfinished]
    assert len(trials["run"]) == trials["num_all"] == 54
    assert [trials["index"][i] for i in own] == list(range(6))
    assert trials["policy"][own[0]]["counts"] == [4, 16, 8]
    assert trials["costs"][0]["column"] == "macs_ratio"
    assert trials["costs"][0]["ratios"][own[0]] == pytest.approx(0.294)


def test_best_so_far_steps_where_a_run_improved(page_comparison: Maker, tmp_path: Path) -> None:
    accuracy, hypervolume = data_of(page_of(page_comparison(), tmp_path / "report.html"))["curves"][:2]
    for curve in (accuracy, hypervolume):
        assert curve["trials"] == [1, 3, 5, 6]
        assert curve["wall_s"] == [1.0, 5.0, 9.0, 11.0]
    assert accuracy["values"] == pytest.approx([0.5, 0.54, 0.58, 0.58])
    saved = 1 - 0.98 * 0.3
    assert hypervolume["values"] == pytest.approx([saved * value for value in accuracy["values"]])


def test_what_costs_more_than_the_budget_is_not_the_best_so_far(page_comparison: Maker, tmp_path: Path) -> None:
    comparison = page_comparison()
    is_third = (comparison.trials["index"] == 2) & (comparison.trials["run"] == comparison.runs[0].name)
    comparison.trials.loc[is_third, "cost_ratio"] = 2 * comparison.trials["budget"]
    curve = facet_data(comparison, comparison.facets[0], page=tmp_path / "report.html")["curves"][0]
    assert curve["trials"] == [1, 5, 6]


def test_a_network_timed_on_two_devices_is_one_mark_but_on_the_latency_axes(
    page_comparison: Maker, tmp_path: Path
) -> None:
    comparison = page_comparison()
    networks = comparison.networks.assign(device="one core", latency_ratio=0.5)
    comparison = dataclasses.replace(
        comparison, networks=pd.concat([networks, networks.assign(device="a GPU")], ignore_index=True)
    )
    facet = facet_data(comparison, comparison.facets[0], page=tmp_path / "report.html")
    assert [axis["device"] for axis in facet["axes"]] == ["", "", "one core", "a GPU"]
    for column in zip(*(row["x"] for row in facet["networks"] if row["stage"] == "before"), strict=True):
        assert sum(x is not None for x in column) == (networks["stage"] == "before").sum()


def test_a_baseline_measured_by_another_run_has_no_policy_of_that_run(page_comparison: Maker, tmp_path: Path) -> None:
    comparison = page_comparison()
    networks = comparison.networks
    uniform = networks[(networks["series"] == "legr") & (networks["stage"] == "before")].assign(series="uniform")
    comparison = dataclasses.replace(comparison, networks=pd.concat([networks, uniform], ignore_index=True))
    rows = facet_data(comparison, comparison.facets[0], page=tmp_path / "report.html")["networks"]
    assert all(row["policy"] is None for row in rows if row["series"] == "uniform")
    assert all(row["policy"] is not None for row in rows if row["series"] == "legr")


def test_many_trials_are_thinned_but_never_an_improvement(page_comparison: Maker) -> None:
    trials = page_comparison().trials
    kept = thinned(trials, most=30)
    assert len(kept) == 30
    best = trials.groupby("run")["accuracy"].max()
    assert (kept.groupby("run")["accuracy"].max() == best).all()
    assert kept.index.is_monotonic_increasing
    assert thinned(trials, most=54) is trials


def test_links_are_relative_and_quoted_or_uris_without_a_common_folder(tmp_path: Path) -> None:
    run = tmp_path / "results" / "a run #1"
    run.mkdir(parents=True)
    assert link_to(run, page=tmp_path / "report.html") == "results/a%20run%20%231/"
    assert link_to(run, page=tmp_path / "out" / "report.html") == "../results/a%20run%20%231/"
    assert link_to(run, page=Path("/report.html")) == f"{run.as_uri()}/"


@pytest.mark.parametrize(
    ("shown", "number"),
    [
        ("91.2%", 91.2),
        ("77.23 ± 0.41*", 77.23),
        ("77.23 ± 0.41 (2 seeds)*", 77.23),
        ("12.09 M (0.298)", 12.09e6),
        ("0.291–0.390", 0.291),
        ("0.5 [0.4, 0.6]", 0.5),
        ("−1,234.5", -1234.5),
        ("1:02:03", 3723.0),
        (7, 7.0),
        ("–", None),
        ("0, 1, 2", None),
        ("resnet20", None),
        ("3x3", None),
        (math.nan, None),
        (True, None),
    ],
)
def test_cells_sort_by_their_first_number(shown: object, number: float | None) -> None:
    assert sort_number(shown) == (None if number is None else pytest.approx(number))


def test_a_column_is_of_numbers_only_when_all_its_cells_are() -> None:
    rows = ((Cell("1 ± 0.5"), Cell("1")), (Cell(None), Cell("one")))
    text = PageTable("t", ("number", "mixed"), rows).to_html()
    assert '<td class="number" data-sort="1.0">1 ± 0.5</td>' in text
    assert '<td class="number empty">–</td>' in text
    assert "<td>1</td>" in text


def test_a_text_table_keeps_its_notes_and_bold_cells() -> None:
    table = TextTable(
        "caption", ("series", "test"), ((TextCell("legr"), TextCell("91.0", is_bold=True)),), notes=("n",)
    )
    page_table = PageTable.from_text(table, facet="f")
    assert (page_table.title, page_table.note, page_table.facet) == ("caption", "n", "f")
    assert "<b>91.0</b>" in page_table.to_html()


def test_numbers_are_written_for_people() -> None:
    assert [text_of(value) for value in (0.123456, 12345.6, 1234, None, math.nan, True, "x")] == [
        "0.1235",
        "12,346",
        "1,234",
        "–",
        "–",
        "yes",
        "x",
    ]


def test_a_row_too_short_is_refused() -> None:
    with pytest.raises(ValueError, match="one cell per column"):
        PageTable("t", ("a", "b"), ((Cell(1),),))


def test_a_table_of_an_unknown_facet_is_refused(page_comparison: Maker, tmp_path: Path) -> None:
    table = PageTable("t", ("a",), ((Cell(1),),), facet="elsewhere")
    with pytest.raises(ValueError, match="elsewhere"):
        page_of(page_comparison(), tmp_path / "report.html", tables=[table])
    assert not (tmp_path / "report.html").exists()


def test_what_differs_from_a_majority_is_marked() -> None:
    def marked(*values: object, weights: list[int] | None = None) -> list[bool]:
        return [cell.is_marked for cell in marked_outliers([Cell(value) for value in values], weights)]

    assert marked(1, 1, 2, None) == [False, False, True, False]
    assert marked(1, 2) == [False, False]
    assert marked(1, 2, weights=[1, 5]) == [True, False]


def test_settings_that_differ_are_shown_and_constant_ones_folded(page_comparison: Maker) -> None:
    comparison = page_comparison()
    facet = comparison.facets[0]
    table = settings_table(comparison, facet)
    assert table is not None
    lines = {row[0].text: [cell.text for cell in row[1:]] for row in table.rows}
    # Fine-tuning of the seeds above 0 is longer: two kinds of run for each searcher.
    assert len(table.columns) == 5
    assert sorted(lines["finetune.epochs"]) == ["2", "2", "3", "3"]
    assert "seed" not in lines
    assert constant_settings(comparison, facet) == {"dataset": "digits"}


def test_machines_and_versions_that_differ_are_marked(page_comparison: Maker) -> None:
    comparison = page_comparison(extra_run="amc-extra")
    rows = {(row[0].text, row[1].text): row for row in machine_table(comparison).rows}
    assert rows["torch", "2.14.0"][1].is_marked
    assert not rows["torch", "2.15.0"][1].is_marked
    assert not rows["python", "3.11.7"][1].is_marked
    assert rows["python", "3.11.7"][3].text == "all"
    assert ("git commit", "0123456789ab") in rows


def test_unfinished_runs_are_listed_with_the_command_that_resumes_them(page_comparison: Maker, tmp_path: Path) -> None:
    table = unfinished_table(page_comparison(), page=tmp_path / "report.html")
    assert table is not None
    (row,) = table.rows
    assert row[0].href == "results/amc-resnet20-digits-macs0.3-seed2/"
    assert row[4].value == 6
    assert row[5].text == "python -m compsearch searcher=amc budget.cost_ratio=0.3 seed=2"


def test_a_comparison_without_a_finished_run_has_a_page_too(page_comparison: Maker, tmp_path: Path) -> None:
    made = page_comparison()
    runs = tuple(dataclasses.replace(run, summary=None) for run in made.runs)
    comparison = Comparison(runs, made.networks.iloc[:0], made.trials, made.kept.iloc[:0])
    reader = page_of(comparison, tmp_path / "report.html")
    assert "0 finished runs and 9 that have no result yet" in reader.text
    assert [attributes["data-kind"] for _, attributes in reader.elements if "data-kind" in attributes] == [
        "trials",
        "anytime",
    ]
    assert not re.search(r"\bnan\b", reader.text)


def test_a_damaged_line_moves_no_policy_to_another_trial(run_folders: SimpleNamespace) -> None:
    rows = [run_folders.trial(index) | {"counts": {"conv1": index}} for index in range(4)]
    path = run_folders.write("a", trials=rows)
    lines = (path / "trials.jsonl").read_text().splitlines(keepends=True)
    (path / "trials.jsonl").write_text("".join([lines[0], lines[1][:40] + "\n", *lines[2:]]))
    comparison = read_comparison([run_folders.root])
    assert list(comparison.trials["index"]) == [0, 1, 2]
    choices = trial_choices(comparison.runs[0], [0, 1, 2])
    assert [choices[index][0]["conv1"] for index in range(3)] == [0, 2, 3]
