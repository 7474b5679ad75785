"""A real browser: headless Chromium as Debian packages it, driven through Playwright."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

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
def a_browser() -> Iterator[Browser]:
    """A browser for several pages. While there is one, nothing can run asyncio in this thread."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path(), args=[*QUIET])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def open_page(
    address: str, width: int = 1400, color_scheme: Literal["light", "dark"] = "light", browser: Browser | None = None
) -> Iterator[Page]:
    """Open a page, in a browser of its own unless there is one; fail where it asks any other host for anything, or
    where its scripts fail or complain.
    """
    with nullcontext(browser) if browser is not None else a_browser() as opened:
        context = opened.new_context(viewport={"width": width, "height": 900}, color_scheme=color_scheme)
        page = context.new_page()
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
        page.on("request", lambda request: faults.append(request.url) if "127.0.0.1" not in request.url else None)
        try:
            page.goto(address)
            yield page
            assert faults == []
        finally:
            context.close()


_FAINT = """() => {
    const light = colour => {
        const [r, g, b] = colour.map(v => v / 255).map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
        return .2126 * r + .7152 * g + .0722 * b;
    };
    const numbers = text => text.match(/[\\d.]+/g).map(Number);
    const behind = element => {
        for (; element; element = element.parentElement) {
            const colour = numbers(getComputedStyle(element).backgroundColor);
            if (colour.length < 4 || colour[3] > .5) return colour;
        }
        return [255, 255, 255];
    };
    return [...document.querySelectorAll("body *")].flatMap(each => {
        const says = [...each.childNodes].some(node => node.nodeType == 3 && node.textContent.trim());
        const box = each.getBoundingClientRect(), style = getComputedStyle(each), isDrawn = each instanceof SVGElement;
        if (!says && !["INPUT", "SELECT", "TEXTAREA"].includes(each.tagName)) return [];
        if (!box.width || !box.height || style.visibility == "hidden") return [];
        if (["OPTION", "SCRIPT"].includes(each.tagName)) return [];
        if (isDrawn && !["text", "tspan"].includes(each.tagName)) return [];
        const [one, other] = [numbers(isDrawn ? style.fill : style.color), behind(each)].map(v => light(v.slice(0, 3)));
        const contrast = (Math.max(one, other) + .05) / (Math.min(one, other) + .05);
        return contrast < 4.5 ? [[each.tagName, each.textContent.trim().slice(0, 40), contrast]] : [];
    });
}"""

_NAMELESS = """() => [...document.querySelectorAll("select, textarea, input:not([type=hidden]):not([type=submit])")]
    .filter(each => each.offsetParent && !each.labels?.length && !each.getAttribute("aria-label"))
    .map(each => each.outerHTML.slice(0, 80))"""


def faint_texts(page: Page) -> Any:
    """Return what is hard to read: texts whose contrast is below 4.5 (WCAG 2.2, AA)."""
    return page.evaluate(_FAINT)


def nameless_fields(page: Page) -> Any:
    """Return the fields of forms that have no name for those who hear them."""
    return page.evaluate(_NAMELESS)
