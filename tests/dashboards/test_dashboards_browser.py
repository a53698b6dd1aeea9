"""The explorer and the report in a real browser, against a real `dermaudit explore`."""

from __future__ import annotations

import base64
import itertools
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from toy_run import PATCHES

import dermaudit
from dermaudit.dashboards.report import report

pytestmark = pytest.mark.browser
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1300,1400",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    for name in ("/usr/bin/chromium", "/usr/bin/chromedriver"):
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def explorer(whole_run: Path) -> Iterator[str]:
    """The address of a running explorer."""
    with _exploring("--run", whole_run) as url:
        yield url


@contextmanager
def _exploring(*argv: str | Path) -> Iterator[str]:
    """`dermaudit explore` with these arguments; the address while it runs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "dermaudit",
            "explore",
            *map(str, argv),
            "--port",
            str(port),
            "--no-browser",
        ],
        env={**os.environ, "PYTHONPATH": str(Path(dermaudit.__file__).parent.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_up(url, server)
        yield url
    finally:
        server.terminate()
        server.communicate(timeout=20)
    with socket.socket() as probe:
        # The end of the command is the end of its server.
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def _wait_until_up(url: str, server: subprocess.Popen) -> None:
    for _ in range(240):
        assert server.poll() is None, "the explorer ended by itself"
        try:
            with urllib.request.urlopen(f"{url}/_stcore/health", timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.25)
    raise AssertionError("the explorer did not answer")


def _wait(browser: Any, script: str) -> Any:
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 60).until(lambda d: d.execute_script(f"return {script}"))


def _open(browser: Any, address: str) -> None:
    """Load a page and wait until the script has ended. Only a new load removes the mark."""
    browser.get(address)
    _settled(browser)
    browser.execute_script("window.loadedOnce = true")


def _settled(browser: Any) -> None:
    """Wait until the page is drawn to its end."""
    time.sleep(0.4)  # the click must first reach the server
    _wait(
        browser,
        "document.querySelector('[data-test-script-state=notRunning]') && document.querySelector('h1')",
    )


def _click(browser: Any, selector: str, text: str = "") -> None:
    """Click the first element that matches, with this text if one is given."""
    script = "[...document.querySelectorAll(arguments[0])].find(e => !arguments[1] || e.innerText === arguments[1])"
    _wait(browser, f"document.querySelector({selector!r})")
    browser.execute_script(f"{script}.click()", selector, text)
    _settled(browser)


def _heading(browser: Any) -> str:
    return browser.execute_script("return document.querySelector('h1')?.innerText")


PAGES = {
    "overview": "",
    "concepts": "concepts",
    "concept": f"concept?latent={quote(PATCHES, safe='')}/0",
    "images": "images",
    "image": "image?row=70",
    "suppression": "suppression?concept=ruler",
    "training": "training",
}


@pytest.mark.parametrize("name", PAGES)
def test_every_page_opens_by_its_address_with_headings_in_order_and_leads_on(
    browser: Any, explorer: str, name: str
) -> None:
    _open(browser, f"{explorer}/{PAGES[name]}")
    levels = browser.execute_script(
        "return [...document.querySelectorAll('h1,h2,h3,h4,h5,h6')].map(h => Number(h.tagName[1]))"
    )
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    links = "[...document.querySelectorAll('[data-testid=stSidebarNavLink]')].map(a => a.innerText)"
    names = ["Overview", "Concepts", "Images", "Suppression", "Training"]
    assert browser.execute_script(f"return {links}") == names
    body = browser.execute_script("return document.body.innerText")
    assert "Research use, not a medical device" in body and "encountered an error" not in body
    # No page is a dead end.
    pages = browser.execute_script(
        "return [...new Set([...document.querySelectorAll('[data-testid=stMain] a[data-page]')]"
        ".map(a => new URL(a.href).pathname.slice(1)))]"
    )
    expected = {
        "overview": {"concepts", "images", "suppression", "concept"},
        "concepts": {"", "images"},
        "concept": {"", "concepts", "image"},
        "images": {"", "concepts", "image"},
        "image": {"", "images", "image", "concept", "suppression"},
        "suppression": {"", "concept", "images", "image"},
        "training": {""},
    }[name]
    assert expected <= set(pages)
    if name == "concepts":  # its rows open the pages of latents
        assert browser.execute_script(
            "return !!document.querySelector('[data-testid=stDataFrame]')"
        )


def test_the_first_page_is_found_by_its_name_too(browser: Any, explorer: str) -> None:
    _open(browser, f"{explorer}/overview")
    assert "not found" not in browser.execute_script("return document.body.innerText")
    assert _heading(browser) == "Overview"


@pytest.mark.parametrize("width", [1000, 1440])
@pytest.mark.parametrize("name", ["overview", "concept", "image", "suppression"])
def test_nothing_overlaps_or_is_cut(browser: Any, explorer: str, name: str, width: int) -> None:
    size = browser.get_window_size()
    try:
        browser.set_window_size(width, 1400)
        _open(browser, f"{explorer}/{PAGES[name]}")
        _wait(browser, "document.querySelectorAll('.js-plotly-plot .main-svg').length > 1")
        time.sleep(1)  # plotly moves its axes once more after the first drawing
        cut = browser.execute_script(
            "return [...document.querySelectorAll('.js-plotly-plot')].flatMap(p => {"
            " const box = p.getBoundingClientRect();"
            " return [...p.querySelectorAll('.xtitle, .ytitle, .xtick text, .ytick text')]"
            " .filter(t => { const b = t.getBoundingClientRect();"
            "  return b.width && (b.left < box.left - 1 || b.right > box.right + 1); })"
            " .map(t => t.textContent); })"
        )
        assert cut == []
        overlaps = browser.execute_script(
            "const shown = [...document.querySelectorAll('.da-grid, .js-plotly-plot, .da-table')]"
            ".map(e => e.getBoundingClientRect()).filter(b => b.width && b.height);"
            "return shown.filter((a, i) => shown.some((b, j) => i < j && a.left < b.right - 1 &&"
            " b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1)).length"
        )
        assert overlaps == 0
    finally:
        browser.set_window_size(size["width"], size["height"])


@pytest.mark.parametrize("width", [600, 1000, 1440])
def test_an_image_and_its_map_are_one_figure(browser: Any, explorer: str, width: int) -> None:
    size = browser.get_window_size()
    try:
        browser.set_window_size(width, 1400)
        _open(browser, f"{explorer}/{PAGES['concept']}")
        _wait(browser, "document.querySelectorAll('.da-scale').length === 1")
        _loaded(browser)
        apart = browser.execute_script(
            "return [...document.querySelectorAll('.da-pair')].map(p => {"
            " const [a, b] = [...p.querySelectorAll('img')].map(i => i.getBoundingClientRect());"
            " return Math.abs(a.top - b.top) < 1 && a.right <= b.left && a.width > 40; })"
        )
        assert len(apart) == 6 and all(apart)
    finally:
        browser.set_window_size(size["width"], size["height"])


def test_links_keep_the_session_blur_and_filters_and_back_undoes_one_step(
    browser: Any, explorer: str
) -> None:
    blurred = (
        "[...document.querySelectorAll('.da-grid img')].length > 0 && "
        "[...document.querySelectorAll('.da-grid img')].every(i => getComputedStyle(i).filter === 'blur(9px)')"
    )
    _open(browser, f"{explorer}/images?split=test")
    _click(browser, "[data-testid=stSidebar] [data-testid=stCheckbox] input")
    _wait(browser, blurred)
    body = "return document.querySelector('[data-testid=stMain]').innerText"
    assert "64 of 120 images" in browser.execute_script(body)
    _click(browser, ".da-grid a")
    _wait(browser, "(document.querySelector('h1')?.innerText || '').startsWith('Image ')")
    _wait(browser, blurred)
    first = _heading(browser)
    _click(browser, "a[data-page]", "next image")
    _wait(browser, f"document.querySelector('h1')?.innerText !== {first!r}")
    _wait(browser, blurred)
    browser.back()
    _wait(browser, f"document.querySelector('h1')?.innerText === {first!r}")
    browser.back()
    _wait(browser, "document.querySelector('h1')?.innerText === 'Images'")
    _settled(browser)
    assert "64 of 120 images" in browser.execute_script(body)
    _wait(browser, blurred)
    # By the menu, too, the filter and the blur are kept.
    _click(browser, "[data-testid=stSidebarNavLink]", "Concepts")
    _wait(browser, "document.querySelector('h1')?.innerText === 'Concepts'")
    _click(browser, "[data-testid=stSidebarNavLink]", "Images")
    _wait(browser, "document.querySelector('h1')?.innerText === 'Images'")
    _wait(browser, "document.body.innerText.includes('64 of 120 images')")
    _wait(browser, blurred)
    assert browser.execute_script("return window.loadedOnce === true")  # never loaded again
    browser.refresh()
    _wait(browser, blurred)  # the address holds it


def test_back_undoes_one_choice_of_the_menu_while_blur_and_filter_are_set(
    browser: Any, explorer: str
) -> None:
    _open(browser, f"{explorer}/images?split=test")
    _click(browser, "[data-testid=stSidebar] [data-testid=stCheckbox] input")
    _wait(browser, "location.search.includes('blur=1')")
    for page in ("Concepts", "Images", "Overview"):
        _click(browser, "[data-testid=stSidebarNavLink]", page)
        _wait(browser, f"document.querySelector('h1')?.innerText === {page!r}")
        _wait(browser, "location.search.includes('blur=1')")
        _settled(browser)
    for page in ("Images", "Concepts", "Images"):
        browser.back()
        _wait(browser, f"document.querySelector('h1')?.innerText === {page!r}")
        _settled(browser)
        filtered = "64 of 120 images" in browser.execute_script("return document.body.innerText")
        assert filtered == (page == "Images")
    assert browser.execute_script("return window.loadedOnce === true")  # never loaded again


def test_a_click_anywhere_on_a_row_opens_the_latent(browser: Any, explorer: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    _open(browser, f"{explorer}/concepts")
    for place in (
        -100,
        150,
        150,
    ):  # from the page of a latent back to the table, the same row again
        _wait(browser, "document.querySelector('[data-testid=stDataFrame] canvas')")
        canvas = browser.find_element("css selector", "[data-testid=stDataFrame] canvas")
        ActionChains(browser).move_to_element_with_offset(canvas, place, 20).click().perform()
        _wait(browser, "location.pathname === '/concept'")
        _settled(browser)
        assert "latent " in _heading(browser)
        browser.back()
        _wait(browser, "document.querySelector('h1')?.innerText === 'Concepts'")
        _settled(browser)
    assert browser.execute_script("return window.loadedOnce === true")


def test_overview_leads_to_a_concept_whose_images_load(browser: Any, explorer: str) -> None:
    _open(browser, explorer)
    assert "Do not use this run if" in browser.execute_script("return document.body.innerText")
    _wait(browser, "document.querySelectorAll('.js-plotly-plot .main-svg').length > 2")
    _click(browser, ".da-links a", "ruler")
    _wait(browser, "document.body.innerText.includes('Where in the image it is active')")
    assert "latent=" in browser.current_url
    assert _heading(browser).startswith("ruler: latent 0, whole image")
    _loaded(browser)


def test_suppression_page_separates_the_edit_from_the_moved_threshold(
    browser: Any, explorer: str
) -> None:
    browser.get(f"{explorer}/suppression?concept=ruler")
    _wait(browser, "document.body.innerText.includes('Sensitivity and specificity of each group')")
    body = browser.execute_script("return document.body.innerText")
    assert "3 are flipped by the edit, 3 by the moved threshold alone, 2 by both together" in body
    assert "sensitivity" in body and "specificity" in body


def _loaded(browser: Any) -> None:
    """Every picture of the grids is there, in pixels, with its words."""
    _wait(browser, "document.querySelectorAll('.da-grid img').length > 5")
    _wait(
        browser,
        "[...document.querySelectorAll('.da-grid img')].every(i => i.complete && i.naturalWidth > 0)",
    )
    assert browser.execute_script(
        "return [...document.querySelectorAll('.da-grid img')].every(i => i.alt.length > 10)"
    )


def test_a_log_of_a_running_training_is_read_again(browser: Any, tmp_path: Path) -> None:
    log = tmp_path / ".mine.training" / "log.jsonl"
    log.parent.mkdir()
    line = '{"stage": "masked", "epoch": %d, "images": %d, "lr": 0.001, "loss": 0.5}\n'
    log.write_text(line % (1, 1111) + '{"stage": "mas', encoding="utf-8")
    with _exploring("--log", tmp_path / "mine") as url:
        browser.get(url)
        _wait(browser, "document.querySelectorAll('.js-plotly-plot .main-svg').length > 2")
        body = browser.execute_script("return document.body.innerText")
        assert "mine (not finished)" in body and "n = 1 111" in body
        assert "Overview" not in body and "half written" in body
        log.write_text(line % (1, 1111) + line % (2, 2222), encoding="utf-8")
        browser.execute_script(
            "[...document.querySelectorAll('button')].find(b => b.innerText === 'Read again').click()"
        )
        _wait(browser, "document.body.innerText.includes('n = 2 222')")
        _wait(browser, "!document.body.innerText.includes('half written')")
        drawn = "[...document.querySelectorAll('.js-plotly-plot')][0].data[0].x"
        _wait(browser, f"JSON.stringify({drawn}) === '[1111,2222]'")


def test_report_draws_itself_without_a_network(
    browser: Any, whole_run: Path, tmp_path: Path
) -> None:
    path, _ = report.write_report(whole_run, tmp_path / "report.html")
    browser.get(path.as_uri())
    figures = path.read_text(encoding="utf-8").count('class="figure"')
    _wait(browser, f"document.querySelectorAll('.figure .main-svg').length >= {figures}")
    fetched = browser.execute_script(
        "return performance.getEntriesByType('resource').map(e => e.name)"
    )
    assert [name for name in fetched if not name.startswith("data:")] == []
    assert browser.execute_script(
        "return [...document.images].every(i => i.complete && i.naturalWidth > 0)"
    )
    assert browser.execute_script(
        "return document.documentElement.scrollWidth <= window.innerWidth"
    )


def test_report_is_printed_in_few_pages_with_short_tables_open(
    browser: Any, whole_run: Path, tmp_path: Path
) -> None:
    path, _ = report.write_report(whole_run, tmp_path / "report.html")
    browser.get(path.as_uri())
    figures = path.read_text(encoding="utf-8").count('class="figure"')
    _wait(browser, f"document.querySelectorAll('.figure .main-svg').length >= {figures}")
    from selenium.webdriver.common.print_page_options import PrintOptions

    options = PrintOptions()
    options.page_width, options.page_height = 21.0, 29.7
    printed = base64.b64decode(browser.print_page(options))
    pages = len(re.findall(rb"/Type\s*/Page\b(?!s)", printed))
    assert 4 <= pages <= 14
    opened = browser.execute_script(
        "return [...document.querySelectorAll('details')].map(d => [d.open, d.className,"
        " d.querySelectorAll('tbody tr').length])"
    )
    assert any(is_open for is_open, _, _ in opened)
    assert all(is_open or kind == "screen" for is_open, kind, _ in opened)
    assert all(n <= report.LONG_TABLE for is_open, _, n in opened if is_open)
