"""How requests end that never reach their end: clients, upstreams, proxies and people who leave."""

import asyncio
import json
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from scripts.fake_console import NORMAL, SSE, START_USAGE, FakeConsole, Reply, Request, start
from scripts.real_proxy import ADDON, Proxy, rows_of, settled_rows, wait_until

KEY = {"x-api-key": "sk-ant-api03-R2D2secretsecretsecretsecretsecretigAA"}


@contextmanager
def open_stream(proxy: Proxy, scenario: str, until: bytes) -> Iterator[Iterator[bytes]]:
    """Ask for a stream, read it until these bytes came, and hand on the rest; leaving the block leaves the stream."""
    with (
        suppress(httpx.TransportError),
        httpx.stream(
            "POST",
            f"{proxy.address}/v1/messages",
            headers={"x-scenario": scenario, **KEY},
            json={"stream": True},
            timeout=20,
        ) as answer,
    ):
        chunks = answer.iter_raw()
        seen = b""
        while until not in seen:
            seen += next(chunks)
        yield chunks


@pytest.mark.parametrize(
    ("pieces", "state", "reason"),
    [
        (NORMAL[:4], "partial", "client_disconnected"),
        ([start()], "missing", "client_disconnected"),
        (NORMAL[:-1], "complete", None),
    ],
    ids=["after the start", "before any usage", "after the final usage"],
)
def test_a_client_that_leaves(
    console: FakeConsole, start_proxy: Callable[..., Proxy], pieces: list[bytes], state: str, reason: str | None
) -> None:
    async def waits(request: Request, reply: Reply) -> None:
        await reply.start(200, SSE)
        for piece in pieces:
            await reply.send(piece)
        await asyncio.Event().wait()

    console.scenarios["waits"] = waits
    proxy = start_proxy()
    with open_stream(proxy, "waits", pieces[-1]):
        pass
    (row,) = settled_rows(proxy.ledger, 1)
    assert (row["usage_state"], row["review_reason"]) == (state, reason)


def test_a_client_that_leaves_before_the_headers(console: FakeConsole, start_proxy: Callable[..., Proxy]) -> None:
    arrived = asyncio.Event()

    async def silent(request: Request, reply: Reply) -> None:
        arrived.set()
        await asyncio.Event().wait()

    console.scenarios["silent"] = silent
    proxy = start_proxy()
    with socket.create_connection(("127.0.0.1", proxy.port)) as client:
        client.sendall(b"POST /v1/messages HTTP/1.1\r\nhost: x\r\nx-scenario: silent\r\ncontent-length: 2\r\n\r\n{}")
        proxy.wait_for_line("server connect")
        wait_until(lambda: console.received["silent"])
    (row,) = settled_rows(proxy.ledger, 1)
    assert (row["usage_state"], row["review_reason"], row["http_status"]) == ("missing", "client_disconnected", None)


def test_an_upload_that_the_client_aborts_leaves_no_row(
    start_proxy: Callable[..., Proxy], ask: Callable[..., httpx.Response]
) -> None:
    proxy = start_proxy()
    with socket.create_connection(("127.0.0.1", proxy.port)) as client:
        client.sendall(b"POST /v1/messages HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{")
    proxy.wait_for_line("client disconnect")
    ask(proxy, "normal")
    assert len(rows_of(proxy.ledger)) == 1


def test_an_upstream_that_is_down_gives_a_502_and_a_row_that_says_nothing_was_sent(
    start_proxy: Callable[..., Proxy], ask: Callable[..., httpx.Response]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    proxy = start_proxy(upstream=f"http://127.0.0.1:{port}")
    assert ask(proxy, "normal").status_code == 502
    (row,) = settled_rows(proxy.ledger, 1)
    assert (row["usage_state"], row["requires_manual_review"], row["http_status"]) == ("none", 0, None)
    assert json.loads(row["metadata"])["_not_sent"] is True


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_proxy_that_is_stopped_mid_stream_settles_its_rows(
    start_proxy: Callable[..., Proxy], how: signal.Signals
) -> None:
    proxy = start_proxy()
    with open_stream(proxy, "endless", b"and on"):
        proxy.stop(how)
    (row,) = rows_of(proxy.ledger)
    assert (row["usage_state"], row["review_reason"], row["input_tokens"]) == ("partial", "proxy_stopped", 12)


def test_a_proxy_that_is_killed_leaves_rows_that_the_next_one_settles(
    start_proxy: Callable[..., Proxy], ask: Callable[..., httpx.Response]
) -> None:
    """A stream open for more than a second has its start's usage in its pending row."""
    proxy = start_proxy()
    with open_stream(proxy, "endless", b"and on"):
        wait_until(lambda: rows_of(proxy.ledger)[0]["usage_raw"])
        assert rows_of(proxy.ledger)[0]["usage_state"] == "pending"
        second = start_proxy()
        ask(second, "normal")
        assert rows_of(proxy.ledger)[0]["usage_state"] == "pending", "the first proxy still lives"
        second.stop()
        proxy.stop(signal.SIGKILL)
    start_proxy().wait_for_line("left in flight")
    row, _ = rows_of(proxy.ledger)
    counts = [row["input_tokens"], row["cache_creation_input_tokens"], row["cache_read_input_tokens"]]
    assert (row["usage_state"], row["review_reason"], row["requires_manual_review"]) == ("partial", "proxy_stopped", 1)
    assert counts == [START_USAGE["input_tokens"], 100, 2000]


def test_a_reload_of_the_script_mid_stream_leaves_one_row(
    tmp_path: Path, console: FakeConsole, start_proxy: Callable[..., Proxy], ask: Callable[..., httpx.Response]
) -> None:
    go_on = asyncio.Event()

    async def waits_in_the_middle(request: Request, reply: Reply) -> None:
        await reply.start(200, SSE)
        for piece in NORMAL[:4]:
            await reply.send(piece)
        await go_on.wait()
        for piece in NORMAL[4:]:
            await reply.send(piece)
        await reply.end()

    console.scenarios["waits"] = waits_in_the_middle
    script = tmp_path / "usage.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(ADDON.parent)!r})\n{ADDON.read_text()}")
    proxy = start_proxy(script=script)
    with open_stream(proxy, "waits", NORMAL[3]) as chunks:
        script.write_text(script.read_text() + "\n# saved again\n")
        wait_until(lambda: sum("usage ledger: /" in line for line in proxy.lines) == 2)
        ask(proxy, "normal")
        console.call(go_on.set)
        assert b"message_stop" in b"".join(chunks)
    rows = settled_rows(proxy.ledger, 2)
    assert [(row["usage_state"], row["total_tokens"]) for row in rows] == [("complete", 2154)] * 2


def test_two_proxies_on_one_ledger_leave_one_row_a_request(
    start_proxy: Callable[..., Proxy], ask: Callable[..., httpx.Response]
) -> None:
    proxies = [start_proxy(), start_proxy()]
    for proxy in proxies * 10:
        ask(proxy, "normal")
    rows = rows_of(proxies[0].ledger)
    assert [row["usage_state"] for row in rows] == ["complete"] * 20
    assert len({row["writer"] for row in rows}) == 2


def test_a_proxy_whose_ledger_cannot_be_written_blocks_or_passes(
    tmp_path: Path, console: FakeConsole, start_proxy: Callable[..., Proxy], ask: Callable[..., httpx.Response]
) -> None:
    (tmp_path / "file").write_text("no folder")
    nowhere = tmp_path / "file" / "usage.db"
    assert ask(start_proxy(ledger=nowhere), "normal").extensions["raw"] == b"".join(NORMAL)
    blocking = start_proxy("--set", "usage_on_ledger_error=block", ledger=nowhere)
    answer = ask(blocking, "json")
    assert answer.status_code == 503
    assert json.loads(answer.extensions["raw"])["error"]["type"] == "overloaded_error"
    assert console.received["json"] == 0
    blocking.wait_for_line("cannot write")
    ask(blocking, "json")
    blocking.stop()
    assert sum("cannot write" in line for line in blocking.lines) == 1


def test_an_answer_of_the_proxy_itself_leaves_no_row(
    tmp_path: Path, console: FakeConsole, start_proxy: Callable[..., Proxy], ask: Callable[..., httpx.Response]
) -> None:
    (tmp_path / "answer.json").write_text("{}")
    capture = tmp_path / "capture.mitm"
    proxy = start_proxy("--map-local", f"|/v1/messages[?]local|{tmp_path / 'answer.json'}", "-w", str(capture))
    assert ask(proxy, "normal", "/v1/messages?local").extensions["raw"] == b"{}"
    ask(proxy, "normal")
    assert console.received.total() == 1
    assert len(rows_of(proxy.ledger)) == 1


@pytest.mark.parametrize(
    ("hook", "state", "reason"),
    [("request", "none", None), ("responseheaders", "missing", "upstream_closed")],
)
def test_a_flow_that_is_killed_leaves_its_row(
    tmp_path: Path, start_proxy: Callable[..., Proxy], hook: str, state: str, reason: str | None
) -> None:
    """Before it left, nothing was sent; once headers came back, upstream has billed what it did."""
    script = tmp_path / "kill.py"
    script.write_text(f"def {hook}(flow):\n    flow.kill()\n")
    proxy = start_proxy("-s", str(script))
    with suppress(httpx.TransportError):
        httpx.post(f"{proxy.address}/v1/messages", headers={"x-scenario": "normal", **KEY}, json={}, timeout=20)
    (row,) = settled_rows(proxy.ledger, 1)
    assert (row["usage_state"], row["review_reason"], row["origin"]) == (state, reason, "live")


def test_an_upstream_that_speaks_no_tls_was_never_sent_the_request(
    start_proxy: Callable[..., Proxy], ask: Callable[..., httpx.Response]
) -> None:
    """The connection is made, but the request would only follow the handshake."""

    def answer_in_plain_text(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=answer_in_plain_text, args=(server,), daemon=True).start()
        proxy = start_proxy(upstream=f"https://127.0.0.1:{server.getsockname()[1]}")
        assert ask(proxy, "normal").status_code == 502
    (row,) = settled_rows(proxy.ledger, 1)
    assert (row["usage_state"], row["http_status"]) == ("none", None)
    assert json.loads(row["metadata"])["_not_sent"] is True


def test_a_ledger_that_is_changed_at_run_time_gets_what_begins_after(
    tmp_path: Path, start_proxy: Callable[..., Proxy], ask: Callable[..., httpx.Response]
) -> None:
    other = tmp_path / "other" / "usage.db"
    script = tmp_path / "change.py"
    script.write_text(
        "from mitmproxy import ctx\ndef responseheaders(flow):\n"
        f"    if flow.request.path.endswith('?change'):\n        ctx.options.update(usage_db={str(other)!r})\n"
    )
    proxy = start_proxy("-s", str(script))
    ask(proxy, "normal", "/v1/messages?change")
    ask(proxy, "normal")
    assert [row["usage_state"] for row in settled_rows(proxy.ledger, 1)] == ["complete"]
    assert [row["usage_state"] for row in settled_rows(other, 1)] == ["complete"]
