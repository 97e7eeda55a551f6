import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from compsearch.comparison.report import compare, run_command, write_report
from compsearch.comparison.runs import read_comparison

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def results(run_folders: SimpleNamespace) -> Path:
    """Two searchers, two seeds, one budget."""
    for searcher, accuracy in (("amc", 0.8), ("random", 0.7)):
        for seed in (0, 1):
            rows = [run_folders.network("compressed", 0.5, accuracy + 0.01 * seed)]
            run_folders.write(f"{searcher}{seed}", searcher=searcher, rows=rows, settings={"seed": seed})
    root = run_folders.root
    assert isinstance(root, Path)
    return root


def test_a_report_lies_beside_the_runs_and_names_what_was_compared(results: Path) -> None:
    printed = run_command([str(results)])
    folder = results / "comparison-tiny-digits"
    assert (folder / "report.html").is_file()
    assert "amc is ahead" in printed
    assert str(folder / "report.html") in printed


def test_every_table_is_there_as_csv_markdown_and_latex_and_every_plot_as_png_and_svg(results: Path) -> None:
    report = write_report(read_comparison([results]), results / "mine")
    for name in ("summary", "search_cost", "hypervolume"):
        assert {f"{name}.csv", f"{name}.md", f"{name}.tex"} <= {path.name for path in report.folder.iterdir()}
    pictures = sorted(path.stem for path in report.folder.glob("*.png"))
    assert "pareto-macs" in pictures
    assert pictures == sorted(path.stem for path in report.folder.glob("*.svg"))
    assert all(path.is_file() for path in report.files)


def test_the_written_report_shows_every_picture_and_says_the_reference_point(results: Path) -> None:
    report = write_report(read_comparison([results]), results / "mine")
    text = (report.folder / "report.md").read_text()
    for path in report.folder.glob("*.png"):
        assert f"({path.name})" in text
    assert "cost_ratio 1" in text


def test_a_report_leaves_nothing_of_an_earlier_one_in_its_folder_but_what_others_put_there(results: Path) -> None:
    folder = results / "mine"
    first = write_report(read_comparison([results]), folder)
    (folder / "notes.md").write_text("mine")
    (results / "amc0" / "trials.jsonl").unlink()
    second = write_report(read_comparison([results / "amc0"]), folder)
    there = {path for path in folder.rglob("*") if path.suffix in {".png", ".csv", ".md", ".tex", ".html"}}
    assert set(first.files) - set(second.files)
    assert there == {*second.files, folder / "notes.md"}


def test_networks_csv_has_a_row_per_network(results: Path) -> None:
    report = write_report(read_comparison([results]), results / "mine")
    networks = pd.read_csv(report.folder / "networks.csv")
    assert set(networks["run"]) >= {"amc0", "amc1", "random0", "random1"}


def test_a_second_report_reads_no_report_for_a_run(results: Path) -> None:
    first = run_command([str(results)])
    assert run_command([str(results)]) == first


def test_networks_that_share_no_axis_have_folders_of_their_own(run_folders: SimpleNamespace) -> None:
    run_folders.write("a")
    run_folders.write("b", settings={"model.name": "other"})
    report = write_report(read_comparison([run_folders.root]), run_folders.root / "mine")
    assert {path.parent.name for path in report.folder.glob("*/pareto-macs.png")} == {
        "tiny_on_digits",
        "other_on_digits",
    }


def test_runs_of_several_folders_are_compared_above_them(run_folders: SimpleNamespace, tmp_path: Path) -> None:
    run_folders.write("a")
    run_folders.write("b", settings={"seed": 1})
    compare([run_folders.root / "a", run_folders.root / "b"])
    assert (run_folders.root / "comparison-tiny-digits" / "report.html").is_file()


def test_a_report_never_goes_into_a_run(results: Path) -> None:
    before = sorted((results / "amc0").iterdir())
    with pytest.raises(ValueError, match="a report needs a folder of its own"):
        run_command([str(results), f"output={results / 'amc0'}"])
    assert sorted((results / "amc0").iterdir()) == before


def test_a_comparison_that_holds_an_ablation_leaves_the_ablations_report_alone(run_folders: SimpleNamespace) -> None:
    run_folders.write("a", settings={"variant": "default"})
    run_folders.write("b", "random")
    run_command([str(run_folders.root)])
    assert not list(run_folders.root.glob("ablation*"))
    assert (run_folders.root / "comparison-tiny-digits" / "report.html").is_file()


def test_an_ablation_has_its_table_and_picture(run_folders: SimpleNamespace) -> None:
    for variant, accuracy in (("default", 0.8), ("replay_raw", 0.7)):
        rows = [run_folders.network("compressed", 0.5, accuracy)]
        run_folders.write(variant, rows=rows, settings={"variant": variant})
    run_command([str(run_folders.root)])
    folder = run_folders.root / "ablation-amc-tiny-digits"
    assert "replay_raw" in (folder / "ablation.md").read_text()
    assert (folder / "ablation.png").is_file()
    assert "replay_raw" in (folder / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "a report needs a folder of runs"),
        (["--output", "x"], "the command is `python -m compsearch.report"),
        (["ouput=x"], "got 'ouput=x'"),
        (["nowhere"], "nowhere"),
    ],
)
def test_a_mistyped_command_is_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        run_command(arguments)
    assert "\n" not in str(caught.value)


def test_the_module_is_a_command_and_refuses_a_folder_without_a_run_in_one_line(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "compsearch.report", str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("compsearch: error: ")
    assert str(tmp_path) in line


def test_the_page_holds_the_numbers_it_shows(results: Path) -> None:
    report = write_report(read_comparison([results]), results / "mine")
    page = (report.folder / "report.html").read_text()
    assert "python -m compsearch" in page
    summary = json.loads((results / "amc0" / "summary.json").read_text())
    assert summary["run_name"] in page
