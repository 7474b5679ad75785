"""What the client and upstream see: the same bytes, at once, whatever the meter thinks of them."""

import asyncio
import gzip
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from scripts.fake_console import NORMAL, SSE, FakeConsole, Reply, Request, streaming
from scripts.real_proxy import ADDON, Proxy, rows_of, settled_rows

KEY = {"x-api-key": "sk-ant-api03-R2D2secretsecretsecretsecretsecretigAA"}


@pytest.mark.parametrize("encoding", ["", "gzip", "br", "lies"])
def test_the_client_receives_exactly_the_bytes_upstream_sent(
    console: FakeConsole, start_proxy: Callable[..., Proxy], ask: Callable[..., httpx.Response], encoding: str
) -> None:
    noise = random.Random(7).randbytes(200_000)
    body = b"".join(NORMAL) + b"event: \xff\xfe\r\n\r\n\x00" + noise
    if encoding == "gzip":
        body = gzip.compress(body)
    pieces = [body[place : place + 1337] for place in range(0, len(body), 1337)]
    console.scenarios["noise"] = streaming(pieces, {"content-encoding": encoding} if encoding else None)
    answer = ask(start_proxy(), "noise")
    assert answer.extensions["raw"] == body


def test_each_chunk_reaches_the_client_before_the_next_leaves_upstream(
    console: FakeConsole, start_proxy: Callable[..., Proxy]
) -> None:
    """Upstream sends a chunk only once the client has told that it holds the one before."""
    received = asyncio.Event()

    async def step_by_step(request: Request, reply: Reply) -> None:
        await reply.start(200, SSE)
        for piece in NORMAL:
            received.clear()
            await reply.send(piece)
            await received.wait()
        await reply.end()

    console.scenarios["steps"] = step_by_step
    proxy = start_proxy()
    got = []
    with httpx.stream(
        "POST", f"{proxy.address}/v1/messages", headers={"x-scenario": "steps", **KEY}, json={}, timeout=20
    ) as answer:
        for chunk in answer.iter_raw():
            got.append(chunk)
            console.call(received.set)
    assert got == NORMAL
    assert rows_of(proxy.ledger)[0]["usage_state"] == "complete"


def test_the_row_is_pending_before_upstream_hears_of_the_request_and_final_before_the_client_sees_the_end(
    console: FakeConsole, start_proxy: Callable[..., Proxy], ledger: Path
) -> None:
    seen: list[str] = []

    async def looks_into_the_ledger(request: Request, reply: Reply) -> None:
        seen.append(rows_of(ledger)[0]["usage_state"])
        await streaming(NORMAL)(request, reply)

    console.scenarios["looks"] = looks_into_the_ledger
    proxy = start_proxy()
    httpx.post(f"{proxy.address}/v1/messages", headers={"x-scenario": "looks", **KEY}, json={}, timeout=20)
    seen.append(rows_of(ledger)[0]["usage_state"])
    assert seen == ["pending", "complete"]


def test_with_a_parser_that_raises_the_client_gets_every_byte_and_the_row_is_flagged(
    tmp_path: Path, start_proxy: Callable[..., Proxy], ask: Callable[..., httpx.Response]
) -> None:
    script = tmp_path / "broken_parser.py"
    script.write_text(
        "from usage_ledger.messages import sse\n"
        "from usage_ledger.proxy.addon import UsageLedger\n"
        "def feed(self, data):\n    raise RuntimeError('a bug')\n"
        "sse.EventReader.feed = feed\n"
        "addons = [UsageLedger()]\n"
    )
    proxy = start_proxy(script=_with_package(script))
    answer = ask(proxy, "normal")
    assert answer.extensions["raw"] == b"".join(NORMAL)
    (row,) = rows_of(proxy.ledger)
    assert (row["usage_state"], row["review_reason"]) == ("missing", "unreadable_body")


def _with_package(script: Path) -> Path:
    """Put the package beside a script, where mitmproxy finds it."""
    shutil.copytree(ADDON.parent / "usage_ledger", script.parent / "usage_ledger")
    return script


@pytest.mark.parametrize(
    ("path", "metered"),
    [
        ("/v1/messages", True),
        ("/v1/messages?beta=true", True),
        ("/relay/v1/messages", True),
        ("/v1/messages/count_tokens", False),
        ("/v1/messages/batches", False),
        ("/v1/models?next=/v1/messages", False),
    ],
)
def test_what_is_metered(
    start_proxy: Callable[..., Proxy], ask: Callable[..., httpx.Response], path: str, metered: bool
) -> None:
    proxy = start_proxy()
    assert ask(proxy, "normal", path).status_code == 200
    ask(proxy, "normal")
    assert len(rows_of(proxy.ledger)) == 1 + metered


def test_the_tag_header_is_stored_and_does_not_go_upstream(
    console: FakeConsole, start_proxy: Callable[..., Proxy], ask: Callable[..., httpx.Response]
) -> None:
    proxy = start_proxy("--set", "usage_tag_header=X-Team", "--set", "usage_account=acme")
    ask(proxy, "normal", **{"x-team": "blue"})
    (row,) = rows_of(proxy.ledger)
    assert (row["tag"], row["account_id"]) == ("blue", "acme")
    assert "x-team" not in console.requests[0].headers


def test_columns_of_a_request(
    console: FakeConsole, start_proxy: Callable[..., Proxy], ask: Callable[..., httpx.Response]
) -> None:
    console.scenarios["named"] = streaming(
        NORMAL,
        {
            "request-id": "req_1",
            "anthropic-organization-id": "org-1",
            "anthropic-workspace-id": "ws-1",
            "anthropic-ratelimit-requests-remaining": "41",
        },
    )
    proxy = start_proxy()
    ask(proxy, "named", "/v1/messages?beta=true", **{"x-claude-code-session-id": "s-1", "user-agent": "tests/1"})
    (row,) = rows_of(proxy.ledger)
    expected = {
        "account_id": "org-1",
        "organization_id": "org-1",
        "workspace_id": "ws-1",
        "request_id": "req_1",
        "session_id": "s-1",
        "api_key_hint": "sk-ant-api03-R2D...igAA",
        "credential_kind": "api_key",
        "host": "127.0.0.1",
        "path": "/v1/messages",
        "requested_model": "claude-asked",
        "model": "claude-sonnet-4-6",
        "message_id": "msg_fake",
        "stop_reason": "end_turn",
        "service_tier": "standard",
        "stream": 1,
        "http_status": 200,
        "input_tokens": 12,
        "output_tokens": 42,
        "cache_creation_input_tokens": 100,
        "cache_creation_5m_input_tokens": 100,
        "cache_read_input_tokens": 2000,
        "total_tokens": 2154,
        "response_bytes": sum(map(len, NORMAL)),
        "origin": "live",
        "metadata": '{"user_agent":"tests/1","rate_limits":{"anthropic-ratelimit-requests-remaining":"41"}}',
    }
    assert {name: row[name] for name in expected} == expected
    assert row["time_to_first_token_ms"] <= row["duration_ms"]


def test_the_log_has_one_line_a_request(start_proxy: Callable[..., Proxy], ask: Callable[..., httpx.Response]) -> None:
    proxy = start_proxy()
    for scenario in ("normal", "without_usage", "rate_limited"):
        ask(proxy, scenario)
    with suppress(httpx.TransportError):
        ask(proxy, "breaks")
    settled_rows(proxy.ledger, 4)
    proxy.stop()
    normal, without, limited, breaks = rows_of(proxy.ledger)
    expected = [
        "📊 usage recorded: claude-sonnet-4-6 in=12 out=42 cache_write=100 cache_read=2000 (complete)",
        "⚠️ Stream completed without usage data - recording basic request for billing consistency: "
        f"claude-sonnet-4-6 {without['request_id']}",
        "📊 usage recorded: claude-asked in=0 out=0 cache_write=0 cache_read=0 (none)",
        f"⚠️ usage flagged for review: claude-sonnet-4-6 {breaks['request_id']} upstream_closed (partial)",
    ]
    said = [line.partition("] ")[2] for line in proxy.lines if "📊" in line or "⚠️" in line]
    assert said == expected
    assert normal["request_id"] != limited["request_id"]
