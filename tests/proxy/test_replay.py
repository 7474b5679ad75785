"""Captures that are replayed: the same rows, never more, never worse."""

import asyncio
import gzip
import json
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

from scripts.fake_console import JSON, NORMAL, SSE, FakeConsole, Reply, Request, streaming
from scripts.real_proxy import Proxy, replay, rows_of, settled_rows
from tests.hars import har_entry, write_har

DATA = Path(__file__).parents[2] / "data"


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
SCENARIOS = ("normal", "without_usage", "iterations", "breaks", "gzipped", "json", "rate_limited")


def traffic(proxy: Proxy, ask: Callable[..., httpx.Response], scenarios: tuple[str, ...] = SCENARIOS) -> None:
    for scenario in scenarios:
        try:
            ask(proxy, scenario)
        except httpx.TransportError:
            assert scenario == "breaks"


def comparable(ledger: Path) -> list[dict[str, object]]:
    """Rows without what only the live proxy can know, or what names the process."""
    apart = ("origin", "writer", "time_to_first_token_ms", "completed_at", "duration_ms")
    return [{name: value for name, value in row.items() if name not in apart} for row in rows_of(ledger)]


def test_a_capture_replayed_twice_changes_nothing(
    tmp_path: Path, start_proxy: Callable[..., Proxy], ask: Callable[..., httpx.Response]
) -> None:
    capture = tmp_path / "capture.mitm"
    proxy = start_proxy("-w", str(capture))
    traffic(proxy, ask)
    proxy.stop()
    before = rows_of(proxy.ledger)
    assert len(before) == len(SCENARIOS)
    for _ in range(2):
        replay(capture, proxy.ledger)
        assert rows_of(proxy.ledger) == before


def test_a_capture_alone_gives_the_same_rows(
    tmp_path: Path, start_proxy: Callable[..., Proxy], ask: Callable[..., httpx.Response]
) -> None:
    capture = tmp_path / "capture.mitm"
    proxy = start_proxy("-w", str(capture), "--set", "usage_tag_header=x-team")
    ask(proxy, "normal", **{"x-team": "blue"})
    traffic(proxy, ask)
    proxy.stop()
    other = tmp_path / "other" / "usage.db"
    replay(capture, other)
    assert comparable(other) == comparable(proxy.ledger)
    assert {row["origin"] for row in rows_of(other)} == {"replay"}


def test_a_replay_improves_a_worse_row_and_never_replaces_a_corrected_one(
    tmp_path: Path, start_proxy: Callable[..., Proxy], ask: Callable[..., httpx.Response]
) -> None:
    capture = tmp_path / "capture.mitm"
    proxy = start_proxy("-w", str(capture))
    ask(proxy, "normal")
    ask(proxy, "normal")
    proxy.stop()
    first, second = rows_of(proxy.ledger)
    with closing(sqlite3.connect(proxy.ledger)) as ledger, ledger:
        ledger.execute("UPDATE usage_records SET usage_state = 'missing', total_tokens = 0 WHERE id = ?", [first["id"]])
        corrected = json.dumps({"_manually_updated": True})
        ledger.execute(
            "UPDATE usage_records SET usage_state = 'missing', total_tokens = 7, metadata = ? WHERE id = ?",
            [corrected, second["id"]],
        )
    replay(capture, proxy.ledger)
    improved, kept = rows_of(proxy.ledger)
    assert (improved["usage_state"], improved["total_tokens"]) == ("complete", first["total_tokens"])
    assert improved["time_to_first_token_ms"] == first["time_to_first_token_ms"]
    assert (kept["usage_state"], kept["total_tokens"], kept["metadata"]) == ("missing", 7, corrected)


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


def test_a_har_finds_the_rows_of_its_flows_again(
    tmp_path: Path, console: FakeConsole, start_proxy: Callable[..., Proxy], ask: Callable[..., httpx.Response]
) -> None:
    for name in ("one", "two"):
        console.scenarios[name] = streaming(NORMAL, {"request-id": f"req_{name}"})
    har = tmp_path / "flows.har"
    proxy = start_proxy("--set", f"hardump={har}")
    ask(proxy, "one")
    ask(proxy, "two")
    proxy.stop()
    before = rows_of(proxy.ledger)
    replay(har, proxy.ledger)
    assert rows_of(proxy.ledger) == before
    other = tmp_path / "other.db"
    replay(har, other)
    first = rows_of(other)
    replay(har, other)
    assert rows_of(other) == first
    assert [row["total_tokens"] for row in first] == [2154, 2154]


def test_a_client_replay_is_billed_again_and_gets_its_own_row(
    tmp_path: Path, console: FakeConsole, start_proxy: Callable[..., Proxy], ask: Callable[..., httpx.Response]
) -> None:
    capture = tmp_path / "capture.mitm"
    proxy = start_proxy("-w", str(capture))
    ask(proxy, "normal")
    proxy.stop()
    start_proxy("--client-replay", str(capture))
    rows = settled_rows(proxy.ledger, 2)
    assert console.received["normal"] == 2
    assert [row["usage_state"] for row in rows] == ["complete", "complete"]


def test_a_server_replay_is_not_billed_and_leaves_no_row_also_when_it_is_replayed(
    tmp_path: Path, console: FakeConsole, start_proxy: Callable[..., Proxy], ask: Callable[..., httpx.Response]
) -> None:
    capture, second = tmp_path / "capture.mitm", tmp_path / "second.mitm"
    proxy = start_proxy("-w", str(capture))
    ask(proxy, "normal")
    proxy.stop()
    serving = start_proxy("--server-replay", str(capture), "-w", str(second))
    assert ask(serving, "normal").extensions["raw"] == b"".join(NORMAL)
    serving.stop()
    assert console.received["normal"] == 1
    assert len(rows_of(proxy.ledger)) == 1
    replay(second, tmp_path / "other.db")
    assert not (tmp_path / "other.db").exists() or rows_of(tmp_path / "other.db") == []


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


@pytest.mark.parametrize("capture", sorted(DATA.glob("*.mitm")), ids=lambda path: path.name)
def test_a_capture_in_the_checkout_yields_the_rows_beside_it(tmp_path: Path, capture: Path) -> None:
    ledger = tmp_path / "usage.db"
    replay(capture, ledger)
    expected = json.loads(capture.with_suffix(".json").read_text())
    assert [{name: row[name] for name in expected[0]} for row in rows_of(ledger)] == expected


def test_a_capture_that_is_client_replayed_three_times_at_once_leaves_three_rows(
    tmp_path: Path, console: FakeConsole, start_proxy: Callable[..., Proxy], ask: Callable[..., httpx.Response]
) -> None:
    capture = tmp_path / "capture.mitm"
    proxy = start_proxy("-w", str(capture), ledger=tmp_path / "first.db")
    ask(proxy, "normal")
    proxy.stop()
    # Replaying at once, mitmdump does not count what is under way, and would end itself before the answers are there.
    again = start_proxy(*["-C", str(capture)] * 3, "--set", "client_replay_concurrency=-1", "--set", "keepserving=true")
    rows = settled_rows(again.ledger, 3)
    assert console.received["normal"] == 4
    assert [row["usage_state"] for row in rows] == ["complete"] * 3


@pytest.mark.parametrize("order", [("har", "mitm"), ("mitm", "har")], ids=["HAR first", "capture first"])
def test_a_har_and_a_capture_of_the_same_traffic_give_one_row_a_request(
    tmp_path: Path, start_proxy: Callable[..., Proxy], ask: Callable[..., httpx.Response], order: tuple[str, str]
) -> None:
    files = {"har": tmp_path / "flows.har", "mitm": tmp_path / "flows.mitm"}
    proxy = start_proxy("-w", str(files["mitm"]), "--set", f"hardump={files['har']}")
    for scenario in ("normal", "iterations", "json", "without_usage", "rate_limited"):
        ask(proxy, scenario)
    proxy.stop()
    other = tmp_path / "other.db"
    replay(files[order[0]], other)
    before = rows_of(other)
    replay(files[order[1]], other)
    assert [(row["id"], row["total_tokens"]) for row in rows_of(other)] == [
        (row["id"], row["total_tokens"]) for row in before
    ]
    assert len(before) == 5


@pytest.mark.parametrize("streamed", [False, True], ids=["buffered", "stream_large_bodies"])
def test_a_capture_gives_the_rows_of_the_live_proxy_in_a_new_ledger(
    tmp_path: Path,
    console: FakeConsole,
    start_proxy: Callable[..., Proxy],
    ask: Callable[..., httpx.Response],
    streamed: bool,
) -> None:
    async def breaks_after_the_headers(request: Request, reply: Reply) -> None:
        await reply.start(200, SSE)
        await asyncio.sleep(0.2)  # the headers should be read before the reset discards them
        reply.reset()

    async def json_that_breaks(request: Request, reply: Reply) -> None:
        await reply.start(200, JSON, length=1000)
        await reply.send(b'{"id":"msg_1","usage":{"input_tokens":4')
        await asyncio.sleep(0.2)
        reply.reset()

    console.scenarios |= {"headers only": breaks_after_the_headers, "broken JSON": json_that_breaks}
    capture = tmp_path / "capture.mitm"
    limits = ("--set", "stream_large_bodies=1") if streamed else ()
    proxy = start_proxy("-w", str(capture), *limits)
    for scenario in (*SCENARIOS, "headers only", "broken JSON"):
        with suppress(httpx.TransportError):
            ask(proxy, scenario)
    proxy.stop()
    replay(capture, tmp_path / "other.db")
    assert comparable(tmp_path / "other.db") == comparable(proxy.ledger)
    assert {row["requested_model"] for row in rows_of(tmp_path / "other.db")} == {"claude-asked"}


def test_a_har_of_a_request_without_a_response_has_no_status(
    tmp_path: Path, console: FakeConsole, start_proxy: Callable[..., Proxy], ask: Callable[..., httpx.Response]
) -> None:
    async def no_answer(request: Request, reply: Reply) -> None:
        reply.reset()

    console.scenarios["no_answer"] = no_answer
    har = tmp_path / "flows.har"
    proxy = start_proxy("--set", f"hardump={har}")
    ask(proxy, "no_answer")
    proxy.stop()
    replay(har, tmp_path / "other.db")
    (row,) = rows_of(tmp_path / "other.db")
    assert (row["usage_state"], row["review_reason"], row["http_status"]) == ("missing", "no_response", None)


@pytest.mark.parametrize(
    ("chosen", "rows"), [("~q", 1), ("~t event-stream", 0), ("~b message_start", 0), ("~h request-id", 0)]
)
def test_the_filter_asks_a_replay_about_the_request_alone_as_it_did_live(
    tmp_path: Path, start_proxy: Callable[..., Proxy], ask: Callable[..., httpx.Response], chosen: str, rows: int
) -> None:
    capture = tmp_path / "capture.mitm"
    proxy = start_proxy("-w", str(capture), "--set", f"usage_filter={chosen}")
    ask(proxy, "normal")
    proxy.stop()
    replay(capture, tmp_path / "other.db", "--set", f"usage_filter={chosen}")
    assert len(rows_of(proxy.ledger)) == rows
    found = rows_of(tmp_path / "other.db") if (tmp_path / "other.db").exists() else []
    assert len(found) == rows


def test_what_was_noted_of_a_refused_request_does_not_stick_to_its_client_replay(
    tmp_path: Path, console: FakeConsole, start_proxy: Callable[..., Proxy], ask: Callable[..., httpx.Response]
) -> None:
    (tmp_path / "file").write_text("no folder")
    first, second = tmp_path / "first.mitm", tmp_path / "second.mitm"
    blocking = start_proxy(
        "--set", "usage_on_ledger_error=block", "-w", str(first), ledger=tmp_path / "file" / "usage.db"
    )
    assert ask(blocking, "normal").status_code == 503
    blocking.stop()
    again = start_proxy("--client-replay", str(first), "-w", str(second))
    settled_rows(again.ledger, 1)
    again.stop()
    assert console.received["normal"] == 1
    replay(second, tmp_path / "other.db")
    assert [row["usage_state"] for row in rows_of(tmp_path / "other.db")] == ["complete"]


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


def test_a_flow_that_was_duplicated_in_mitmproxy_is_billed_once(
    tmp_path: Path, start_proxy: Callable[..., Proxy], ask: Callable[..., httpx.Response]
) -> None:
    capture, har = tmp_path / "capture.mitm", tmp_path / "flows.har"
    proxy = start_proxy("-w", str(capture), "--set", f"hardump={har}")
    ask(proxy, "normal")
    proxy.stop()
    before = rows_of(proxy.ledger)
    with capture.open("rb") as file:
        (flow,) = FlowReader(file).stream()
    with capture.open("wb") as file:
        for each in (flow.copy(), flow, flow.copy()):
            FlowWriter(file).add(each)
    replay(capture, proxy.ledger)
    assert rows_of(proxy.ledger) == before
    replay(capture, tmp_path / "other.db")
    replay(har, tmp_path / "other.db")
    assert [row["total_tokens"] for row in rows_of(tmp_path / "other.db")] == [2154]


def test_the_host_is_the_one_that_was_asked_for_live_and_in_captures(
    tmp_path: Path, console: FakeConsole, start_proxy: Callable[..., Proxy], ask: Callable[..., httpx.Response]
) -> None:
    """With `keep_host_header`, as in transparent mode, mitmproxy connects to another one than the Host header says."""
    console.scenarios["bare"] = streaming([b": nothing that has an id\n\n"], {"request-id": ""})
    capture, har = tmp_path / "capture.mitm", tmp_path / "flows.har"
    proxy = start_proxy("-w", str(capture), "--set", f"hardump={har}", "--set", "keep_host_header=true")
    ask(proxy, "bare", host="gateway.example.com")
    proxy.stop()
    before = rows_of(proxy.ledger)
    assert [(row["host"], row["request_id"]) for row in before] == [("gateway.example.com", None)]
    for saved in (capture, har):
        replay(saved, proxy.ledger)
        assert rows_of(proxy.ledger) == before
        replay(saved, tmp_path / f"{saved.suffix}.db")
        assert [row["host"] for row in rows_of(tmp_path / f"{saved.suffix}.db")] == ["gateway.example.com"]


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


@pytest.mark.parametrize("filters", [(), ("--set", "usage_filter=~u /elsewhere")], ids=["the default", "another one"])
def test_what_the_live_proxy_has_metered_is_metered_whatever_filter_the_replay_has(
    tmp_path: Path, start_proxy: Callable[..., Proxy], ask: Callable[..., httpx.Response], filters: tuple[str, ...]
) -> None:
    """As `inspect` and `redact`, which ask for the notes, say of it."""
    capture = tmp_path / "capture.mitm"
    proxy = start_proxy("-w", str(capture), "--set", "usage_filter=~u /relay/")
    ask(proxy, "normal", "/relay/chat")
    ask(proxy, "normal", "/v1/messages/count_tokens")
    proxy.stop()
    assert [row["path"] for row in rows_of(proxy.ledger)] == ["/relay/chat"]
    replay(capture, tmp_path / "other.db", *filters)
    assert comparable(tmp_path / "other.db") == comparable(proxy.ledger)
