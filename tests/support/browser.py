"""A headless Chromium for tests of pages. Installs nothing: where there is none, the tests skip."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
DRIVERS = ("chromedriver", "chromium.chromedriver")
# What sticks out to the right, except inside a region that scrolls by itself.
_OVERFLOWING = """
const wide = document.documentElement.clientWidth, found = [];
if (document.documentElement.scrollWidth > wide) found.push(`page: ${document.documentElement.scrollWidth} > ${wide}`);
for (const e of document.querySelectorAll("body *")) {
  if (e.closest(".scroll") && !e.matches(".scroll")) continue;
  const box = e.getBoundingClientRect();
  if (box.width && (box.right > wide + 1 || box.left < -1)) found.push(`${e.tagName} ${box.left} ${box.right}`);
}
return found;
"""


def _first(names: tuple[str, ...]) -> str | None:
    return next((path for name in names if (path := shutil.which(name))), None)


@contextlib.contextmanager
def browser():
    """A Chromium driven through its own driver; skips where either, or selenium, is missing."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium drives the browser")
    binary, driver = _first(BROWSERS), _first(DRIVERS)
    if binary is None or driver is None:
        pytest.skip("no Chromium with its driver here (Debian: chromium and chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    flags = ["--headless=new", "--hide-scrollbars", "--disable-dev-shm-usage", "--no-first-run"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        flags.append("--no-sandbox")  # root has no sandbox
    for flag in flags:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
    try:
        yield Window(opened)
    finally:
        opened.quit()


class Window:
    """One window: opens pages, and says what they did."""

    def __init__(self, driver: Any):
        self.driver = driver

    def open(self, path: Path, width: int = 1280, *, dark: bool = False, media: str = "screen") -> None:
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme, "media": media})
        _ = self.console(), self.requests()  # what an earlier page left
        self.driver.get(path.resolve().as_uri())

    def resize(self, width: int) -> None:
        """Another width of the page that is open, and a frame for it to settle."""
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        frames = "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => done()))"
        self.driver.execute_async_script(frames)

    def console(self) -> list[str]:
        """What the page complained of since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """Every address asked for since the last call, data: aside."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        return [url for url in asked if not url.startswith("data:")]

    def overflowing(self) -> list[str]:
        return self.driver.execute_script(_OVERFLOWING)

    def screenshot(self, path: Path) -> None:
        """The whole page, however long."""
        shot = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
        path.write_bytes(base64.b64decode(shot["data"]))

    def run(self, script: str) -> Any:
        return self.driver.execute_script(script)

    def pdf(self) -> bytes:
        return base64.b64decode(self.driver.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"])
