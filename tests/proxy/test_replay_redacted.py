"""A redacted capture that is replayed makes rows better, and takes filler for nobody's name."""

import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from mitmproxy import http
from mitmproxy.io import FlowReader, FlowWriter

from scripts.fake_console import FakeConsole
from scripts.make_samples import SAMPLES
from scripts.real_proxy import Proxy, replay, rows_of

SAID_LIVE = ("origin", "writer", "completed_at", "duration_ms", "time_to_first_token_ms")


def redacted(capture: Path) -> Path:
    shared = capture.with_suffix(".shared.mitm")
    done = subprocess.run(
        [sys.executable, "-m", "usage_ledger", "redact", str(capture), str(shared)], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    return shared


def forget_usage(ledger: Path) -> None:
    """Leave rows as a proxy does that was killed."""
    with closing(sqlite3.connect(ledger)) as connection, connection:
        connection.execute("UPDATE usage_records SET usage_state = 'missing', total_tokens = 0, output_tokens = 0")


def settled(ledger: Path) -> list[dict[str, object]]:
    return [{name: value for name, value in row.items() if name not in SAID_LIVE} for row in rows_of(ledger)]


def test_a_row_gets_its_usage_and_keeps_who_asked_and_where(
    tmp_path: Path, console: FakeConsole, start_proxy: Callable[..., Proxy], ask: Callable[..., httpx.Response]
) -> None:
    capture = tmp_path / "capture.mitm"
    proxy = start_proxy("-w", str(capture), "--set", "usage_tag_header=x-team")
    headers = {"x-team": "blue", "x-claude-code-session-id": "0b5a6f0e-session"}
    ask(proxy, "normal", "/tenant-of-mine/v1/messages", **headers)
    ask(proxy, "iterations", "/tenant-of-mine/v1/messages", **headers)
    proxy.stop()
    before = settled(proxy.ledger)
    assert {(row["tag"], row["session_id"], row["path"]) for row in before} == {
        ("blue", "0b5a6f0e-session", "/tenant-of-mine/v1/messages")
    }
    forget_usage(proxy.ledger)
    replay(redacted(capture), proxy.ledger)
    assert settled(proxy.ledger) == before


def odd(capture: Path, change: Callable[[http.HTTPFlow], None]) -> Path:
    with (SAMPLES / "normal-stream.mitm").open("rb") as file, capture.open("wb") as out:
        (flow,) = FlowReader(file).stream()
        assert isinstance(flow, http.HTTPFlow)
        change(flow)
        FlowWriter(out).add(flow)
    return capture


def test_a_model_whose_name_is_not_plain_keeps_it(tmp_path: Path) -> None:
    def rename(flow: http.HTTPFlow) -> None:
        assert flow.response is not None
        assert flow.response.raw_content is not None
        name = b"a model of ours"
        flow.response.raw_content = flow.response.raw_content.replace(b"claude-sonnet-4-6", name)
        flow.request.raw_content = b'{"model": "another one", "stream": true}'

    capture, ledger = odd(tmp_path / "odd.mitm", rename), tmp_path / "usage.db"
    replay(capture, ledger)
    before = settled(ledger)
    assert (before[0]["model"], before[0]["requested_model"]) == ("a model of ours", "another one")
    forget_usage(ledger)
    replay(redacted(capture), ledger)
    assert settled(ledger) == before


def test_a_path_that_was_filled_is_metered_as_it_was(tmp_path: Path) -> None:
    """The filter of the proxy that replays does not know it any more."""

    def elsewhere(flow: http.HTTPFlow) -> None:
        flow.request.path = "/relay/chat"  # noted by a proxy with a filter of its own

    capture, ledger = odd(tmp_path / "odd.mitm", elsewhere), tmp_path / "usage.db"
    replay(capture, ledger, "--set", "usage_filter=~u /relay/")
    before = settled(ledger)
    forget_usage(ledger)
    replay(redacted(capture), ledger, "--set", "usage_filter=~u /relay/")
    assert settled(ledger) == before


@pytest.mark.parametrize("told", [("request-id",), ()], ids=["with request ids", "without"])
def test_flows_of_a_har_find_their_rows_under_filler(tmp_path: Path, told: tuple[str, ...]) -> None:
    def elsewhere(flow: http.HTTPFlow) -> None:
        flow.request.path = "/tenant-of-mine/v1/messages"
        flow.request.headers["host"] = "gateway.example.com"
        assert flow.response is not None
        if not told:
            del flow.response.headers["request-id"]
            assert flow.response.raw_content is not None
            flow.response.raw_content = flow.response.raw_content.replace(b'"msg_', b'"a msg ')

    capture, har, ledger = odd(tmp_path / "odd.mitm", elsewhere), tmp_path / "odd.har", tmp_path / "usage.db"
    replay(capture, tmp_path / "unused.db", "--set", f"hardump={har}")
    replay(har, ledger)
    before = settled(ledger)
    forget_usage(ledger)
    replay(redacted(har), ledger)
    assert settled(ledger) == before


def test_a_row_that_was_made_of_a_redacted_capture_gives_way_to_the_real_one(
    tmp_path: Path, start_proxy: Callable[..., Proxy], ask: Callable[..., httpx.Response]
) -> None:
    capture, ledger = tmp_path / "capture.mitm", tmp_path / "new.db"
    proxy = start_proxy("-w", str(capture), "--set", "usage_tag_header=x-team")
    headers = {"x-team": "blue", "x-claude-code-session-id": "0b5a6f0e-session"}
    for scenario in ("normal", "iterations", "without_usage", "rate_limited"):
        ask(proxy, scenario, "/tenant-of-mine/v1/messages", **headers)
    proxy.stop()
    replay(redacted(capture), ledger)
    assert {(row["tag"], json.loads(row["metadata"])["_redacted"]) for row in rows_of(ledger)} == {("xxxx", True)}
    for saved in (capture, capture.with_suffix(".shared.mitm")):
        replay(saved, ledger)
        assert settled(ledger) == settled(proxy.ledger)
