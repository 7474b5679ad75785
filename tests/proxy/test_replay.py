"""Captures that are replayed: the same rows, never more, never worse."""

import asyncio
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import httpx
import pytest

from scripts.fake_console import JSON, NORMAL, SSE, FakeConsole, Reply, Request, streaming
from scripts.real_proxy import Proxy, replay, rows_of
from tests.proxy.captures import SCENARIOS, comparable, traffic

DATA = Path(__file__).parents[2] / "data"


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


def test_the_line_of_a_replayed_row_stands_beside_its_flow(tmp_path: Path) -> None:
    """It says model and tokens but not of which request: so does its place in what mitmdump shows."""
    shown = replay(DATA / "demo.mitm", tmp_path / "usage.db").splitlines()
    told = [number for number, line in enumerate(shown) if "usage recorded" in line]
    assert len(told) == 5
    assert all(" POST http" in shown[number + 1] for number in told)


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


@pytest.mark.parametrize("capture", sorted(DATA.glob("*.mitm")), ids=lambda path: path.name)
def test_a_capture_in_the_checkout_yields_the_rows_beside_it(tmp_path: Path, capture: Path) -> None:
    ledger = tmp_path / "usage.db"
    replay(capture, ledger)
    expected = json.loads(capture.with_suffix(".json").read_text())
    assert [{name: row[name] for name in expected[0]} for row in rows_of(ledger)] == expected


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
