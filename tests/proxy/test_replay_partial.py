"""Captures that hold a part: of a body, of an exchange, or no notes of the proxy's."""

import gzip
import random
import socket
import sqlite3
import zlib
from collections.abc import Callable
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path

import brotli
import httpx
import pytest
import zstandard
from mitmproxy import http
from mitmproxy.io import FlowReader, FlowWriter

from scripts.fake_console import NORMAL, FakeConsole, streaming
from scripts.real_proxy import Proxy, replay, rows_of, settled_rows
from tests.hars import har_entry, write_har
from tests.proxy.captures import comparable, traffic


def in_blocks(data: bytes) -> bytes:
    """zstd as a server sends it that streams: each block whole, so that it can be read before the next one comes."""
    compressor = zstandard.ZstdCompressor().compressobj()
    pieces = [data[place : place + 2_000] for place in range(0, len(data), 2_000)]
    packed = [compressor.compress(piece) + compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK) for piece in pieces]
    return b"".join([*packed, compressor.flush()])


ENCODE: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    "gzip": gzip.compress,
    "br": brotli.compress,
    "zstd": in_blocks,
    "deflate": zlib.compress,
}


def test_a_capture_without_the_addon_adds_what_it_knows_and_touches_no_row(
    tmp_path: Path, console: FakeConsole, start_proxy: Callable[..., Proxy], ask: Callable[..., httpx.Response]
) -> None:
    """mitmproxy saves a streamed flow without its body; without the addon nothing streams unless it is told to."""
    capture = tmp_path / "plain.mitm"
    plain = Proxy(console.address, tmp_path / "unused.db", "-w", str(capture), script=None)
    with plain:
        traffic(plain, ask)
    ledger = tmp_path / "books" / "usage.db"
    replay(capture, ledger)
    states = [row["usage_state"] for row in rows_of(ledger)]
    assert states == ["complete", "missing", "complete", "missing", "complete", "complete", "none"]
    reasons = [row["review_reason"] for row in rows_of(ledger)]
    assert reasons[3] == "body_not_captured"


def test_a_body_over_the_limit_is_not_kept_and_its_replay_touches_no_row(
    tmp_path: Path, console: FakeConsole, start_proxy: Callable[..., Proxy], ask: Callable[..., httpx.Response]
) -> None:
    capture = tmp_path / "capture.mitm"
    proxy = start_proxy("-w", str(capture), "--set", "usage_capture_limit=1k")
    ask(proxy, "normal")
    proxy.stop()
    before = rows_of(proxy.ledger)
    replay(capture, proxy.ledger)
    assert rows_of(proxy.ledger) == before
    replay(capture, tmp_path / "new.db")
    (row,) = rows_of(tmp_path / "new.db")
    assert (row["usage_state"], row["review_reason"]) == ("missing", "body_not_captured")
    with capture.open("rb") as file:
        (flow,) = FlowReader(file).stream()
    assert "usage_capture_limit" in flow.comment


@pytest.mark.parametrize("noted", [True, False], ids=["with the addon's note", "without"])
def test_a_replayed_break_keeps_its_reason(
    tmp_path: Path, start_proxy: Callable[..., Proxy], ask: Callable[..., httpx.Response], noted: bool
) -> None:
    capture = tmp_path / "capture.mitm"
    proxy = start_proxy("-w", str(capture))
    traffic(proxy, ask, ("breaks",))
    proxy.stop()
    if not noted:
        with capture.open("rb") as file:
            (flow,) = FlowReader(file).stream()
        assert isinstance(flow, http.HTTPFlow)
        flow.metadata.clear()
        with capture.open("wb") as file:
            FlowWriter(file).add(flow)
    replay(capture, tmp_path / "other.db")
    (row,) = rows_of(tmp_path / "other.db")
    assert (row["usage_state"], row["review_reason"], row["input_tokens"]) == ("partial", "upstream_closed", 12)


def test_a_body_whose_encoding_breaks_yields_on_replay_what_the_live_stream_showed(
    tmp_path: Path, console: FakeConsole, start_proxy: Callable[..., Proxy], ask: Callable[..., httpx.Response]
) -> None:
    whole = gzip.compress(b"".join(NORMAL) + b": " + bytes(range(256)) * 40 + b"\n\n")
    broken = whole[:-300] + b"\xff" * 300
    pieces = [broken[place : place + 50] for place in range(0, len(broken), 50)]
    console.scenarios["broken"] = streaming(pieces, {"content-encoding": "gzip"})
    capture = tmp_path / "capture.mitm"
    proxy = start_proxy("-w", str(capture))
    ask(proxy, "broken")
    proxy.stop()
    replay(capture, tmp_path / "other.db")
    assert comparable(tmp_path / "other.db") == comparable(proxy.ledger)


def strip_notes(capture: Path) -> None:
    """Make a capture one that was written without the addon's notes."""
    with capture.open("rb") as file:
        flows = list(FlowReader(file).stream())
    with capture.open("wb") as file:
        for flow in flows:
            flow.metadata.clear()
            FlowWriter(file).add(flow)


@pytest.mark.parametrize("noted", [True, False], ids=["with the addon's notes", "without"])
def test_a_replay_knows_that_the_client_left_and_that_an_aborted_upload_went_nowhere(
    tmp_path: Path, start_proxy: Callable[..., Proxy], noted: bool
) -> None:
    capture = tmp_path / "capture.mitm"
    proxy = start_proxy("-w", str(capture))
    with socket.create_connection(("127.0.0.1", proxy.port)) as client:
        client.sendall(b"POST /v1/messages HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{")
    proxy.wait_for_line("client disconnect")
    with (
        suppress(httpx.TransportError),
        httpx.stream("POST", f"{proxy.address}/v1/messages", headers={"x-scenario": "endless"}, json={}) as answer,
    ):
        seen = b""
        for chunk in answer.iter_raw():
            seen += chunk
            if b"and on" in seen:
                break
    settled_rows(proxy.ledger, 1)
    proxy.stop()
    if not noted:
        strip_notes(capture)
    replay(capture, tmp_path / "other.db")
    (row,) = rows_of(tmp_path / "other.db")
    assert (row["usage_state"], row["review_reason"]) == ("partial", "client_disconnected")


def test_a_flow_whose_body_was_not_captured_touches_no_row_not_even_a_pending_one(
    tmp_path: Path, start_proxy: Callable[..., Proxy], ask: Callable[..., httpx.Response]
) -> None:
    capture = tmp_path / "capture.mitm"
    proxy = start_proxy("-w", str(capture), "--set", "usage_capture=never")
    ask(proxy, "normal")
    with closing(sqlite3.connect(proxy.ledger)) as ledger, ledger:
        ledger.execute("UPDATE usage_records SET usage_state = 'pending'")
    before = rows_of(proxy.ledger)
    replay(capture, proxy.ledger)  # while its writer lives, so that nobody settles what it has in flight
    assert rows_of(proxy.ledger) == before
    replay(capture, tmp_path / "other.db")
    (row,) = rows_of(tmp_path / "other.db")
    assert (row["usage_state"], row["review_reason"]) == ("missing", "body_not_captured")


@pytest.mark.parametrize("kind", ["mitm", "har"])
def test_a_flow_that_was_saved_in_flight_settles_no_row_that_its_proxy_may_yet_settle(
    tmp_path: Path, start_proxy: Callable[..., Proxy], ask: Callable[..., httpx.Response], kind: str
) -> None:
    capture = tmp_path / "capture.mitm"
    proxy = start_proxy("-w", str(capture))
    ask(proxy, "normal")
    with closing(sqlite3.connect(proxy.ledger)) as ledger, ledger:
        ledger.execute("UPDATE usage_records SET usage_state = 'pending', request_id = NULL, message_id = NULL")
    with capture.open("rb") as file:
        (flow,) = FlowReader(file).stream()
    assert isinstance(flow, http.HTTPFlow)
    flow.response = None
    flow.metadata.clear()
    with (tmp_path / "in-flight.mitm").open("wb") as file:
        FlowWriter(file).add(flow)
    saved = tmp_path / f"in-flight.{kind}"
    if kind == "har":
        started = datetime.fromtimestamp(flow.request.timestamp_start, UTC).isoformat()
        write_har(saved, har_entry(started, status=0, host=flow.request.host))
    before = rows_of(proxy.ledger)
    replay(saved, proxy.ledger)  # while its writer lives
    assert rows_of(proxy.ledger) == before
    replay(saved, tmp_path / "other.db")
    (row,) = rows_of(tmp_path / "other.db")
    assert (row["usage_state"], row["review_reason"]) == ("missing", "no_response")


def test_nor_does_one_whose_response_has_only_begun(
    tmp_path: Path, start_proxy: Callable[..., Proxy], ask: Callable[..., httpx.Response]
) -> None:
    """As an error whose body is slow: its end is the proxy's to tell."""
    capture = tmp_path / "capture.mitm"
    proxy = start_proxy("-w", str(capture))
    ask(proxy, "rate_limited")
    with closing(sqlite3.connect(proxy.ledger)) as ledger, ledger:
        ledger.execute("UPDATE usage_records SET usage_state = 'pending'")
    with capture.open("rb") as file:
        (flow,) = FlowReader(file).stream()
    assert isinstance(flow, http.HTTPFlow)
    assert flow.response is not None
    flow.response.timestamp_end = None
    flow.response.raw_content = None
    flow.metadata.clear()
    saved = tmp_path / "in-flight.mitm"
    with saved.open("wb") as file:
        FlowWriter(file).add(flow)
    before = rows_of(proxy.ledger)
    replay(saved, proxy.ledger)
    assert rows_of(proxy.ledger) == before


@pytest.mark.parametrize("encoding", ["", "gzip", "br", "zstd", "deflate"])
def test_bodies_that_broke_off_are_kept_in_captures_and_in_hars(
    tmp_path: Path,
    console: FakeConsole,
    start_proxy: Callable[..., Proxy],
    ask: Callable[..., httpx.Response],
    encoding: str,
) -> None:
    whole = b"".join([*NORMAL[:4], b": " + random.Random(1).randbytes(40_000).hex().encode() + b"\n\n", *NORMAL[4:]])
    body = ENCODE[encoding](whole)
    half = body[: len(body) // 2]
    console.scenarios["half"] = streaming([half], {"content-encoding": encoding} if encoding else {}, ends=False)
    capture, har = tmp_path / "capture.mitm", tmp_path / "flows.har"
    proxy = start_proxy("-w", str(capture), "--set", f"hardump={har}")
    with suppress(httpx.TransportError):
        ask(proxy, "half")
    (live,) = settled_rows(proxy.ledger, 1)
    proxy.stop()
    assert (live["usage_state"], live["input_tokens"], live["response_bytes"]) == ("partial", 12, len(half))
    for file, reason in ((capture, "upstream_closed"), (har, "no_usage_data")):  # a HAR does not tell of errors
        replay(file, tmp_path / f"{file.name}.db")
        (row,) = rows_of(tmp_path / f"{file.name}.db")
        assert (row["usage_state"], row["input_tokens"]) == ("partial", 12)
        assert row["review_reason"] in (reason, "unreadable_body")
