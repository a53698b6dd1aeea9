"""Take the screenshot of the explorer that README shows, on the phantoms of the demo.

    python docs/scripts/screenshot.py runs/demo

Needs Chromium and its driver. Phantoms are rendered, so no photograph of a person is shown.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

OUT = Path(__file__).resolve().parents[1] / "images" / "explorer.png"
PAGE, READY = "overview", "How far the prediction moves with the artifact"
WIDTH, HEIGHT = 1280, 960


def main(run: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "dermaudit", "explore", "--run", run, "--no-browser"]
    server = subprocess.Popen([*command, "--port", str(port)])
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", f"--window-size={WIDTH},{HEIGHT}"):
        options.add_argument(argument)
    browser = webdriver.Chrome(options)
    try:
        time.sleep(8)  # the server starts
        browser.get(f"http://127.0.0.1:{port}/{PAGE}")
        WebDriverWait(browser, 60).until(
            lambda page: READY in page.find_element(By.TAG_NAME, "body").text
        )
        time.sleep(12)  # figures are drawn
        OUT.parent.mkdir(exist_ok=True)
        browser.save_screenshot(str(OUT))
    finally:
        browser.quit()
        server.terminate()
    with Image.open(OUT) as picture:
        picture.convert("P", palette=Image.Palette.ADAPTIVE, colors=128).save(OUT, optimize=True)


if __name__ == "__main__":
    main(sys.argv[1])
