"""A real browser: headless Chromium as Debian packages it, driven through Playwright."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import pytest
from playwright.sync_api import Page, sync_playwright

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")

QUIET = (
    # Chromium asks its maker for updates and lists at every start, which tests that use loopback only must not.
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"),
    *("--disable-quic", "--disable-gpu", "--no-sandbox"),
)


def browser_path() -> str | None:
    return next((path for path in map(shutil.which, PROGRAMS) if path), None)


needs_browser = pytest.mark.skipif(browser_path() is None, reason="there is no Chromium; apt-get install chromium")


@contextmanager
def open_page(address: str, width: int = 1400, color_scheme: Literal["light", "dark"] = "light") -> Iterator[Page]:
    """Open a page; fail where it asks any other host for anything, or where its scripts fail or complain."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path(), args=[*QUIET])
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=color_scheme)
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
        page.on("request", lambda request: faults.append(request.url) if "127.0.0.1" not in request.url else None)
        try:
            page.goto(address)
            yield page
            assert faults == []
        finally:
            browser.close()
