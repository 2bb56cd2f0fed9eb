"""Tests of `report.html` in a real browser: no console messages, no requests, and no overflow of the screen.

Needs Debian's `chromium` and `chromium-driver` (`make test` installs them where it can).
"""

from __future__ import annotations

import base64
import importlib.resources
import importlib.util
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from report.reports import EMPTY, HOSTILE, HUGE, PASSED
from report.rich import PARTLY_OPEN, RICH, SEVERAL, rich

from trtopt.compare.catalog import METRICS
from trtopt.report import render

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

REPORTS = {
    "passed": PASSED, "empty": EMPTY, "hostile": HOSTILE, "huge": HUGE,
    "rich": RICH, "inconclusive": PARTLY_OPEN, "several": SEVERAL, "thousand": rich(1000),
}  # fmt: skip
every_report = pytest.mark.parametrize("name", REPORTS)
FLAGS = (
    "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
    "disable-component-update", "disable-sync", "hide-scrollbars",
)  # fmt: skip
PHONE, DESKTOP, PAPER = 390, 1100, 688
"""Widths in CSS pixels; the last is A4 without its margins."""


def _missing(what: str) -> None:
    """Skip the test where a tool is missing; CI has it."""
    pytest.fail(what) if os.environ.get("CI") else pytest.skip(what)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService

    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        _missing("no browser to open report.html: apt-get install chromium chromium-driver")
    options = ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = Chrome(options=options, service=ChromeService(driver))
    opened.get("about:blank")  # ends the requests of the page for new tabs
    yield opened
    opened.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    for name, report in REPORTS.items():
        (folder / f"{name}.html").write_text(render("html", report), encoding="utf-8")
    return {name: folder / f"{name}.html" for name in REPORTS}


def show(browser: Chrome, page: Path, width: int, *, dark: bool = False, media: str = "screen") -> None:
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width == PHONE}
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": [scheme]})
    browser.get(page.as_uri())


def requests(browser: Chrome) -> list[str]:
    """Return the addresses requested since the last call, except data URLs."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    return [each["request"]["url"] for each in sent if not each["request"]["url"].startswith("data:")]


@every_report
def test_it_opens_without_a_word_on_the_console_and_without_a_request(
    browser: Chrome, pages: dict[str, Path], name: str
) -> None:
    requests(browser)
    show(browser, pages[name], DESKTOP)
    assert browser.execute_script("return document.readyState") == "complete"
    assert browser.get_log("browser") == []
    assert requests(browser) == [pages[name].as_uri()]
    assert browser.title.startswith(("PASS", "FAIL", "INCONCLUSIVE", "UNCHECKED"))


def test_the_browser_would_report_a_request_and_an_error(browser: Chrome, tmp_path: Path) -> None:
    """Check the assumption of the tests above."""
    page = tmp_path / "page.html"
    page.write_text("<title>t</title><link rel=icon href=data:,><img src=missing.png><script>throw 1</script>")
    requests(browser)
    browser.get(page.as_uri())
    assert requests(browser) == [page.as_uri(), (tmp_path / "missing.png").as_uri()]
    assert len(browser.get_log("browser")) == 2


@every_report
@pytest.mark.parametrize(("width", "media"), [(PHONE, "screen"), (DESKTOP, "screen"), (PAPER, "print")])
def test_the_page_never_scrolls_sideways(
    browser: Chrome, pages: dict[str, Path], name: str, width: int, media: str
) -> None:
    show(browser, pages[name], width, media=media)
    inner, needed = browser.execute_script("return [innerWidth, document.documentElement.scrollWidth]")
    assert (inner, needed) == (width, width)


def test_all_metrics_of_a_labelled_output_are_on_the_screen(browser: Chrome, tmp_path: Path) -> None:
    assert PASSED.comparison is not None
    output = replace(PASSED.comparison.outputs[0], values=dict.fromkeys(METRICS, 12.3456))
    page = tmp_path / "page.html"
    report = replace(PASSED, comparison=replace(PASSED.comparison, outputs=(output,)))
    page.write_text(render("html", report), encoding="utf-8")
    show(browser, page, DESKTOP)
    region = "document.querySelector('[aria-label=\"Drift of each output\"]')"
    needed, wide = browser.execute_script(f"return [{region}.scrollWidth, {region}.clientWidth]")
    assert needed <= wide


@every_report
def test_no_text_of_a_chart_is_cut_off(browser: Chrome, pages: dict[str, Path], name: str) -> None:
    show(browser, pages[name], DESKTOP)
    outside = browser.execute_script(
        """
        const found = [];
        for (const text of document.querySelectorAll("svg[role=img] text")) {
          const box = text.getBoundingClientRect(), whole = text.ownerSVGElement.getBoundingClientRect();
          if (box.left < whole.left - 1 || box.right > whole.right + 1
              || box.top < whole.top - 1 || box.bottom > whole.bottom + 1) found.push(text.textContent);
        }
        return found;
        """
    )
    assert outside == []


@every_report
@pytest.mark.parametrize("width", [PHONE, 1280])
def test_no_reader_is_left_out(browser: Chrome, pages: dict[str, Path], name: str, width: int) -> None:
    """Run axe-core, which checks contrast, names, roles and the order of headings."""
    if importlib.util.find_spec("axe_core_python") is None:
        _missing("no axe-core to check report.html with: pip install axe-core-python")
    source = importlib.resources.files("axe_core_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    show(browser, pages[name], width)
    browser.execute_cdp_cmd("Runtime.evaluate", {"expression": source})  # page scripts are forbidden by its policy
    faults = browser.execute_async_script(
        """
        const done = arguments[arguments.length - 1];
        axe.run(document, {resultTypes: ["violations"]}).then((result) => done(result.violations
          .filter((each) => ["serious", "critical"].includes(each.impact))
          .map((each) => [each.id, each.nodes[0].html, each.nodes[0].failureSummary])));
        """
    )
    assert faults == []


def test_a_table_is_sorted_by_the_buttons_in_its_head(browser: Chrome, pages: dict[str, Path]) -> None:
    def column() -> list[str]:
        cells = browser.find_elements("css selector", "#calibration tbody td:last-child")
        return [cell.text for cell in cells]

    show(browser, pages["rich"], DESKTOP)
    head = browser.find_element("css selector", "#calibration thead th:last-child")
    before = column()
    numbers = [float(cell.removesuffix(" dB")) for cell in before]
    button = head.find_element("tag name", "button")
    button.send_keys("\ue007")  # Enter
    assert head.get_attribute("aria-sort") == "ascending"
    assert [float(cell.removesuffix(" dB")) for cell in column()] == sorted(numbers)
    button.send_keys(" ")
    assert head.get_attribute("aria-sort") == "descending"
    assert [float(cell.removesuffix(" dB")) for cell in column()] == sorted(numbers, reverse=True)
    browser.find_element("css selector", "#calibration thead th:first-child button").click()
    assert head.get_attribute("aria-sort") is None


def test_numbers_with_units_are_sorted_by_size_and_empty_cells_are_last(browser: Chrome, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(render("html", SEVERAL), encoding="utf-8")
    show(browser, page, DESKTOP)
    cells = "[...document.querySelectorAll('#candidates tbody')[0].rows].map((row) => row.cells[3])"
    texts = ["1.20 MB", "940 kB", "", "identical", "2 GB"]
    browser.execute_script(f"{cells}.forEach((cell, place) => cell.textContent = arguments[0][place])", texts)
    browser.find_elements("css selector", "#candidates thead")[0].find_elements("tag name", "button")[2].click()
    assert browser.execute_script(f"return {cells}.map((c) => c.textContent)") == [
        "940 kB", "1.20 MB", "2 GB", "identical", "",
    ]  # fmt: skip


def test_a_block_of_the_graph_opens_to_its_nodes(browser: Chrome, pages: dict[str, Path]) -> None:
    show(browser, pages["rich"], PHONE)
    block = browser.find_element("css selector", "#graph details")
    table = block.find_element("tag name", "table")
    assert not table.is_displayed()
    block.find_element("tag name", "summary").click()
    assert table.is_displayed()


def test_it_is_dark_where_the_reader_asks_for_it_and_white_on_paper(browser: Chrome, pages: dict[str, Path]) -> None:
    def background(**how: Any) -> str:
        show(browser, pages["rich"], DESKTOP, **how)
        colour = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        return str(colour)

    white = "rgb(255, 255, 255)"
    assert background() == background(media="print") == background(media="print", dark=True) == white
    assert sum(map(int, background(dark=True)[4:-1].split(","))) < 100


def test_it_prints_on_a_few_pages(browser: Chrome, pages: dict[str, Path]) -> None:
    show(browser, pages["rich"], DESKTOP)
    paper = {"printBackground": True, "paperWidth": 8.27, "paperHeight": 11.69}
    pdf = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", paper)["data"])
    assert 4 <= pdf.count(b"/Type /Page\n") <= 13


def test_every_part_can_be_reached_from_the_contents(browser: Chrome, pages: dict[str, Path]) -> None:
    show(browser, pages["rich"], PHONE)
    links = browser.find_elements("css selector", "nav a")
    assert len(links) == 12
    for link in links:
        link.click()
        target = str(link.get_attribute("href")).split("#")[1]
        assert browser.current_url.endswith(f"#{target}")
    assert browser.find_element("css selector", ":target").tag_name == "section"
