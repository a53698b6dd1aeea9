"""The explorer and the report in a real browser, against a real `dermaudit explore`."""

from __future__ import annotations

import os
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
from dermaudit.dashboards.exhibits.run_view import RunView
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
        server.wait(timeout=20)
    with socket.socket() as probe:
        # The end of the verb is the end of its server.
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


def test_overview_leads_to_a_concept_whose_images_load(browser: Any, explorer: str) -> None:
    browser.get(explorer)
    _wait(browser, "document.body.innerText.includes('Do not use this run if')")
    body = browser.execute_script("return document.body.innerText")
    assert "Research use, not a medical device" in body and "encountered an error" not in body
    _wait(browser, "document.querySelectorAll('.js-plotly-plot .main-svg').length > 2")
    browser.execute_script(
        "[...document.querySelectorAll('.da-links a')].find(a => a.innerText === 'ruler').click()"
    )
    _wait(browser, "document.body.innerText.includes('Where it fires')")
    assert "latent=" in browser.current_url
    heading = browser.execute_script("return document.querySelector('h2').innerText")
    assert heading.startswith("ruler: latent 0 of visual.pooled")
    _loaded(browser)


def test_concept_link_of_a_patch_site_opens_by_itself(
    browser: Any, explorer: str, whole_run: Path
) -> None:
    row = next(r for r in RunView.open(whole_run).concepts if r["site"] == PATCHES and r["name"])
    browser.get(f"{explorer}/concepts?latent={quote(PATCHES + '/' + str(row['latent']), safe='')}")
    _wait(browser, "document.querySelectorAll('.da-scale').length === 1")
    assert row["name"] in browser.execute_script("return document.querySelector('h2').innerText")
    _loaded(browser)


@pytest.mark.parametrize("page", ["overview", "concepts", "image", "suppression", "training"])
def test_every_page_opens_by_its_own_address(browser: Any, explorer: str, page: str) -> None:
    browser.get(f"{explorer}/{page}")
    _wait(browser, "document.querySelector('h1') && document.querySelector('h1').innerText")
    heading = browser.execute_script("return document.querySelector('h1').innerText")
    assert heading.lower().startswith(page)
    links = "[...document.querySelectorAll('[data-testid=stSidebarNavLink]')].map(a => a.innerText)"
    names = ["Overview", "Concepts", "Image", "Suppression", "Training"]
    assert browser.execute_script(f"return {links}") == names


def test_suppression_page_separates_the_edit_from_the_moved_threshold(
    browser: Any, explorer: str
) -> None:
    browser.get(f"{explorer}/suppression?concept=ruler")
    _wait(browser, "document.body.innerText.includes('By the edit, or by the threshold')")
    body = browser.execute_script("return document.body.innerText")
    assert "At the unchanged threshold the worst group goes from" in body
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
