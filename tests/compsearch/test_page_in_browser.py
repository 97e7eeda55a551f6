"""The page as people use it: in a real browser, with a real mouse."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pandas as pd
import pytest

from compsearch.comparison.comparison import Comparison
from compsearch.comparison.page import write_page
from compsearch.comparison.page_table import PageTable
from compsearch.comparison.text_table import TextCell, TextTable

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
ActionChains = webdriver.ActionChains

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CHROMEDRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and CHROMEDRIVER), reason="needs chromium and chromedriver on the path")

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
TIMEOUT_S = 30.0
PARETO = '#facet-0 .plot[data-kind="pareto"]'
TRIALS = '#facet-0 .plot[data-kind="trials"]'
ANYTIME = '#facet-0 .plot[data-kind="anytime"]'
TABLE = TextTable(
    "results",
    ("series", "accuracy"),
    tuple(
        tuple(map(TextCell, row)) for row in (("b10", "9.50 ± 3.00"), ("b9", "–"), ("a", "80.25 ± 0.10"), ("c", "79"))
    ),
)


class Page:
    """A page in the browser, and what a reader does with it."""

    def __init__(self, driver: Any, path: Path) -> None:
        self.driver, self.path = driver, path
        driver.get(path.as_uri())
        self.wait_for(lambda: self.script("return document.documentElement.dataset.ready") == "true")

    def script(self, code: str, *arguments: Any) -> Any:
        return self.driver.execute_script(code, *arguments)

    def wait_for(self, holds: Callable[[], Any]) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not holds():
            assert time.monotonic() < deadline, "the page did not get there in time"
            time.sleep(0.05)

    def one(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def texts(self, selector: str) -> list[str]:
        return [element.text for element in self.driver.find_elements("css selector", selector)]

    def marks(self, figure: str, series: str) -> list[tuple[float, float]]:
        """Where the marks of the single networks or trials of `series` are on the screen, in pixels."""
        code = """
            const canvas = document.querySelector(arguments[0] + " .canvas");
            const index = canvas.data.findIndex((trace) => trace.name === arguments[1]);
            const {xaxis, yaxis} = canvas._fullLayout, box = canvas.getBoundingClientRect(), trace = canvas.data[index];
            return trace.x.map((x, i) => [
              box.x + xaxis._offset + xaxis.d2p(x), box.y + yaxis._offset + yaxis.d2p(trace.y[i])]);
        """
        return [(x, y) for x, y in self.script(code, figure, series)]

    def point_at(self, figure: str, series: str, number: int = 0) -> None:
        """Moves the mouse to a mark and waits for what is said about it."""
        self.script(f"document.querySelector('{figure}').scrollIntoView({{behavior: 'instant'}})")
        x, y = self.marks(figure, series)[number]
        actions = ActionChains(self.driver)
        for near in (40, 0):  # a mouse comes from somewhere
            actions.w3c_actions.pointer_action.move_to_location(round(x + near), round(y + near))
        actions.perform()
        self.wait_for(lambda: self.one("#tooltip").is_displayed())

    def click(self) -> None:
        ActionChains(self.driver).click().perform()

    def close_others(self) -> None:
        """Closes the tab that a click has opened."""
        self.wait_for(lambda: len(self.driver.window_handles) == 2)
        first, opened = self.driver.window_handles
        self.driver.switch_to.window(opened)
        self.driver.close()
        self.driver.switch_to.window(first)

    def press(self, text: str, within: str) -> None:
        """Clicks the button called `text`."""
        (button,) = [
            each for each in self.driver.find_elements("css selector", f"{within} button") if each.text == text
        ]
        button.click()


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SE_OFFLINE", "true")  # neither a driver is fetched nor anything reported
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}", "--window-size=1300,1000"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=CHROMEDRIVER))
        try:
            yield driver
        finally:
            driver.quit()


@pytest.fixture
def opened(driver: Any, page_comparison: Callable[..., Comparison], tmp_path: Path) -> Page:
    """The page of the small comparison, opened."""
    driver.get("about:blank")
    for kind in ("browser", "performance"):
        driver.get_log(kind)  # what was there before
    path = tmp_path / "report.html"
    made = page_comparison(extra_run="amc <img src=x> 'third' & last")
    baseline = made.networks[made.networks["stage"] == "after"].iloc[[0]].assign(series="uniform", accuracy_test=0.6)
    comparison = dataclasses.replace(made, networks=pd.concat([made.networks, baseline], ignore_index=True))
    tables = [PageTable.from_text(TABLE)]
    write_page(path, comparison, tables=tables, verdicts={comparison.facets[0]: ["legr is ahead."]}, title="Compared")
    return Page(driver, path)


@pytest.fixture
def page(opened: Page) -> Iterator[Page]:
    """The same; at the end nothing may have gone wrong or over a network."""
    yield opened
    assert not [entry for entry in opened.driver.get_log("browser") if entry["level"] == "SEVERE"]
    messages = [json.loads(entry["message"])["message"] for entry in opened.driver.get_log("performance")]
    sent = [each["params"] for each in messages if each["method"] == "Network.requestWillBeSent"]
    own = [each["request"]["url"] for each in sent if each["documentURL"] == opened.path.as_uri()]
    assert own[0] == opened.path.as_uri()  # the log does tell of requests
    assert not [url for url in own if urlparse(url).scheme not in {"file", "data", "blob"}]


def test_every_plot_is_drawn_and_nothing_sticks_out(page: Page) -> None:
    assert page.texts("h1") == ["Compared"]
    assert page.script("return document.querySelectorAll('.js-plotly-plot .scatterlayer').length") == 3
    # Two stages and the dense network; each budget and seed is a mark.
    assert len(page.marks(PARETO, "legr")) == 4
    assert len(page.marks(TRIALS, "amc")) == 30
    for width in (1200, 400):
        page.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
        )
        assert page.script("return document.documentElement.scrollWidth") <= width
        assert page.script("return innerWidth") == width
    page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_browser_forbids_what_the_page_does_not_hold(opened: Page) -> None:
    opened.script(
        "window.refused = []; addEventListener('securitypolicyviolation', (e) => refused.push(e.blockedURI));"
        "const image = new Image(); image.src = 'http://127.0.0.1:9/x.png'"
    )
    opened.wait_for(lambda: opened.script("return refused") == ["http://127.0.0.1:9/x.png"])


def test_pointing_at_a_network_tells_its_policy_and_command(page: Page) -> None:
    page.point_at(PARETO, "legr")
    told = page.one("#tooltip").text
    assert "LeGR, seed 0" in told
    assert "legr-resnet20-digits-macs0.3-seed0" in told
    assert "0.3 of FLOPs (MACs)" in told
    assert "FLOPs (MACs) 0.291 · parameters 0.291 · latency 0.645 (0.625–0.675)" in told
    assert "test 79.00% · search 80.00%" in told
    assert "▂▄▁" in told
    assert "3 groups: layer1.0.conv1 4/16, layer2.0.conv1 16/32, layer3.0.conv1 8/64" in told
    assert "python -m compsearch searcher=legr budget.cost_ratio=0.3 seed=0" in told

    actions = ActionChains(page.driver)
    actions.w3c_actions.pointer_action.move_to_location(2, 2)
    actions.perform()
    page.wait_for(lambda: not page.one("#tooltip").is_displayed())


def test_pointing_at_a_baseline_of_another_run_says_so(page: Page) -> None:
    page.point_at(PARETO, "uniform")
    told = page.one("#tooltip").text
    assert "measured\nas the baseline of this run\npython -m compsearch searcher=amc" in told
    page.click()
    page.wait_for(lambda: page.one("#facet-0 .details").is_displayed())
    assert "holds no policy of this network" in page.one("#facet-0 .details").text
    page.close_others()


def test_pointing_at_a_trial_tells_its_number_and_objective(page: Page) -> None:
    page.point_at(TRIALS, "legr", 4)
    told = page.one("#tooltip").text
    assert "trial\n4" in told
    assert "search 58.00%" in told
    assert "objective\n-0.58" in told
    assert "layer1.0.conv1 4/16" in told


def test_names_of_runs_are_shown_as_they_are(page: Page) -> None:
    page.point_at(TRIALS, "amc", 5)
    assert "amc <img src=x> 'third' & last" in page.one("#tooltip").text
    assert page.script("return document.querySelectorAll('img').length") == 0


def test_a_click_opens_the_run_and_pins_its_details(page: Page) -> None:
    assert not page.one("#facet-0 .details").is_displayed()
    page.point_at(PARETO, "amc", 1)
    page.click()
    page.wait_for(lambda: len(page.driver.window_handles) == 2)
    first, opened = page.driver.window_handles
    page.driver.switch_to.window(opened)
    page.wait_for(lambda: page.driver.current_url.startswith("file:"))
    folder = Path(unquote(urlparse(page.driver.current_url).path))
    page.driver.close()
    page.driver.switch_to.window(first)
    assert folder == page.path.parent / "results" / "amc-resnet20-digits-macs0.3-seed1"
    assert folder.is_dir()

    panel = page.one("#facet-0 .details")
    assert panel.is_displayed()
    assert "AMC, seed 1" in panel.text
    assert "layer2.0.conv1 16/32" in panel.text
    assert "python -m compsearch searcher=amc budget.cost_ratio=0.3 seed=1" in panel.text
    hrefs = [link.get_attribute("href") for link in page.driver.find_elements("css selector", "#facet-0 .details a")]
    targets = [Path(unquote(urlparse(href).path)) for href in hrefs]
    assert targets[0] == folder
    assert [target.name for target in targets[1:]] == ["summary.json", "policy.json", "config.yaml", "trials.jsonl"]
    assert all(target.exists() for target in targets)

    page.one("#facet-0 .details .close").click()
    assert not page.one("#facet-0 .details").is_displayed()


def test_cost_and_stage_are_chosen_by_buttons(page: Page) -> None:
    def drawn() -> tuple[str, list[float], list[float]]:
        title, x, y = page.script(
            "const plot = document.querySelector(arguments[0] + ' .canvas');"
            "const trace = plot.data.find((each) => each.name === 'legr');"
            "return [plot.layout.xaxis.title.text, trace.x, plot.layout.yaxis.type === 'log'"
            " ? trace.y.map((error) => 1.004 - error) : trace.y]",
            PARETO,
        )
        return title, x, y

    title, x, y = drawn()
    assert title == "FLOPs (MACs) / dense, as achieved"
    assert x[0] == pytest.approx(0.291)
    assert y[0] == pytest.approx(0.79)
    page.press("measured latency", PARETO)
    page.press("before fine-tuning", PARETO)
    page.wait_for(lambda: drawn()[0] == "measured latency / dense, as achieved")
    title, x, y = drawn()
    assert x[0] == pytest.approx(0.6455)
    assert y[0] == pytest.approx(0.74)
    assert "torch, 1 core" in page.one(f"{PARETO} .device").text
    pressed = f'{PARETO} [data-key="stage"] button[aria-pressed="true"]'
    assert page.texts(pressed) == ["before fine-tuning"]


def test_the_hypervolume_so_far_is_chosen_by_a_button_and_told(page: Page) -> None:
    title = f"return document.querySelector('{ANYTIME} .canvas').layout.annotations[0].text"
    page.press("hypervolume", ANYTIME)
    page.wait_for(lambda: page.script(title) == "hypervolume, search split")
    page.point_at(ANYTIME, "legr")
    assert f"hypervolume so far\n{0.5 * (1 - 0.98 * 0.3):.3f}" in page.one("#tooltip").text
    page.press("best accuracy", ANYTIME)
    page.wait_for(lambda: page.script(title).startswith("best top-1"))
    page.point_at(ANYTIME, "legr")
    assert "best so far" in page.one("#tooltip").text


def test_a_series_can_be_hidden(page: Page) -> None:
    names = "return document.querySelector(arguments[0] + ' .canvas').data.map((trace) => trace.name)"
    assert "legr" in page.script(names, PARETO)
    page.press("LeGR (2 seeds)", ".legend")
    page.wait_for(lambda: "legr" not in page.script(names, PARETO))
    assert "amc" in page.script(names, PARETO)
    assert page.texts('.legend button[aria-pressed="false"]') == ["LeGR (2 seeds)"]


def test_headings_sort_their_table_both_ways(page: Page) -> None:
    table = "#tables table"
    head = f"{table} th:nth-child(2)"

    def column(number: int) -> list[str]:
        return page.texts(f"{table} tbody td:nth-child({number})")

    page.one(f"{head} button").click()
    assert column(2) == ["9.50 ± 3.00", "79", "80.25 ± 0.10", "–"]
    assert page.one(head).get_attribute("aria-sort") == "ascending"
    page.one(f"{head} button").send_keys("\ue007")  # Enter
    assert column(2) == ["80.25 ± 0.10", "79", "9.50 ± 3.00", "–"]
    assert page.one(head).get_attribute("aria-sort") == "descending"
    page.one(f"{table} th:nth-child(1) button").click()
    assert column(1) == ["a", "b9", "b10", "c"]
    assert page.one(head).get_attribute("aria-sort") == "none"
