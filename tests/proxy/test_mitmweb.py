"""What a person sees in mitmweb: flagged flows are marked, say why, and show usage and verdict before their text."""

import json
import socket
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect

from scripts.fake_console import FakeConsole
from scripts.make_samples import SAMPLES
from scripts.real_proxy import Proxy, rows_of, settled_rows
from tests.browsing import needs_browser, open_page

PASSWORD = "only-here"
NAMES = ("normal-stream", "client-left-mid-stream", "stream-without-usage", "rate-limited")


class Mitmweb:
    """A running mitmweb that has loaded a capture."""

    def __init__(self, proxy: Proxy, port: int) -> None:
        self.proxy = proxy
        self.address = f"http://127.0.0.1:{port}/?token={PASSWORD}"
        self._root = f"http://127.0.0.1:{port}"

    def command(self, name: str, *arguments: str) -> Any:
        """Run a command as the prompt in mitmweb does."""
        body = json.dumps({"arguments": arguments}).encode()
        request = urllib.request.Request(
            f"{self._root}/commands/{name}",
            body,
            {
                "Authorization": f"Bearer {PASSWORD}",
                "Content-Type": "application/json",
                "Cookie": "_mitmproxy_xsrf=same",
                "X-XSRFToken": "same",
            },
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.load(answer)

    def get(self, path: str) -> Any:
        request = urllib.request.Request(f"{self._root}/{path}", headers={"Authorization": f"Bearer {PASSWORD}"})
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.load(answer)

    def flows(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.get("flows")
        return found


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port: int = server.getsockname()[1]
    return port


@contextmanager
def started(upstream: str, ledger: Path, *arguments: str) -> Iterator[Mitmweb]:
    port, web_port = free_port(), free_port()
    proxy = Proxy(
        upstream,
        ledger,
        *("--no-web-open-browser", "--web-host", "127.0.0.1", "--web-port", str(web_port)),
        *("--set", f"web_password={PASSWORD}", "-p", str(port), *arguments),
        program="mitmweb",
    )
    proxy.port = port  # of the two that the log tells
    try:
        proxy.wait_for_line("Web server listening at")
        yield Mitmweb(proxy, web_port)
    finally:
        proxy.stop()


@pytest.fixture(scope="module")
def mitmweb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mitmweb]:
    folder = tmp_path_factory.mktemp("mitmweb")
    capture = folder / "capture.mitm"
    capture.write_bytes(b"".join((SAMPLES / f"{name}.mitm").read_bytes() for name in NAMES))
    with started("http://127.0.0.1:9", folder / "usage.db", "-r", str(capture)) as mitmweb:
        mitmweb.proxy.wait_for_line("flows replayed:")
        settled_rows(mitmweb.proxy.ledger, len(NAMES))
        yield mitmweb


@pytest.fixture
def page(mitmweb: Mitmweb) -> Iterator[Page]:
    with open_page(mitmweb.address) as page:
        yield page


def select_the_one_whose_client_left(page: Page) -> None:
    page.locator("tr:has(td.col-path)", has_text="⚠").last.click()


@needs_browser
def test_flagged_flows_are_marked_and_others_are_not(page: Page) -> None:
    rows = page.locator("tr:has(td.col-path)")
    expect(rows).to_have_count(len(NAMES))
    expect(rows.filter(has_text="⚠")).to_have_count(2)


@needs_browser
def test_the_comment_says_why(page: Page) -> None:
    select_the_one_whose_client_left(page)
    page.get_by_text("Comment", exact=True).click()
    expect(page.locator(".flow-detail")).to_contain_text(
        "usage ledger: flagged client_disconnected: only a part of the usage came: the client left after"
    )


@needs_browser
def test_the_response_shows_verdict_and_usage_before_its_text(page: Page) -> None:
    select_the_one_whose_client_left(page)
    page.get_by_text("Response", exact=True).click()
    shown = page.locator(".flow-detail")
    expect(shown).to_contain_text("partial, flagged client_disconnected")
    text = shown.inner_text()
    words = ("verdict", "`message_delta` never came", "input_tokens 12", "block 1: text")
    places = [text.index(each) for each in words]
    assert places == sorted(places)


def test_the_commands_tell_of_the_flows_that_are_there(mitmweb: Mitmweb) -> None:
    (heading, *lines) = mitmweb.command("usage.rows")["value"]
    rows = rows_of(mitmweb.proxy.ledger)
    assert [line[0] for line in lines] == [row["occurred_at"] for row in rows]
    assert heading[6:] == ["state", "reason", "USD", "id"]
    assert [line[6] for line in lines] == [row["usage_state"] for row in rows]
    assert [line[9] for line in lines] == [row["id"] for row in rows]
    (_, *models, total) = mitmweb.command("usage.summary")["value"]
    assert total[:3] == ["total", "4", "2"]
    assert int(total[3]) == sum(row["input_tokens"] for row in rows) == sum(int(model[3]) for model in models)


def test_commands_take_flows(mitmweb: Mitmweb) -> None:
    assert len(mitmweb.command("usage.rows", "@marked")["value"]) == 3
    assert mitmweb.command("usage.summary", "~c 429")["value"][-1][:2] == ["total", "1"]
    assert mitmweb.command("usage.rows", "~c 999")["value"][1:] == []
    assert "error" in mitmweb.command("usage.rows", "~nonsense")


def test_flagged_shows_only_flagged_flows_and_then_all_again(mitmweb: Mitmweb) -> None:
    assert mitmweb.command("usage.flagged")["value"] == [["2 flagged; only these are shown"]]
    shown = mitmweb.command("view.properties.length")["value"]
    assert mitmweb.command("usage.flagged")["value"] == [["2 flagged; all flows are shown"]]
    assert (shown, mitmweb.command("view.properties.length")["value"]) == (2, len(NAMES))


def test_flagged_keeps_a_filter_of_ones_own(mitmweb: Mitmweb) -> None:
    def shown() -> int:
        return int(mitmweb.command("view.properties.length")["value"])

    own = "~c 429 | ~comment no_usage_data"
    mitmweb.command("set", f"view_filter={own}")
    assert shown() == 2
    try:
        assert mitmweb.command("usage.flagged")["value"] == [["1 flagged; only these are shown"]]
        assert shown() == 1
        assert mitmweb.command("usage.flagged")["value"] == [[f"1 flagged; the view filter is {own} again"]]
        assert shown() == 2
    finally:
        mitmweb.command("set", "view_filter=")
    assert shown() == len(NAMES)


def test_a_stream_that_passes_live_is_shown_too(
    tmp_path: Path, console: FakeConsole, ask: Callable[..., httpx.Response]
) -> None:
    """`usage_capture` is left as it is: what keeps flows to show them keeps streamed bodies."""
    with started(console.address, tmp_path / "usage.db") as live:
        ask(live.proxy, "normal")
        (row,) = settled_rows(live.proxy.ledger, 1)
        (flow,) = live.flows()
        shown = live.get(f"flows/{flow['id']}/response/content/Auto")
        assert shown["view_name"] == "Claude usage"
        assert f"input_tokens {row['input_tokens']}" in shown["text"]


def test_marks_and_comments_are_what_mitmweb_has(mitmweb: Mitmweb) -> None:
    told = {flow["comment"].split(":")[1].strip(): flow["marked"] for flow in mitmweb.flows() if flow["comment"]}
    assert told == {"flagged client_disconnected": "⚠", "flagged no_usage_data": "⚠"}
    assert [flow["marked"] for flow in mitmweb.flows()].count("") == 2
