"""Other scripts and mitmproxy's own features beside the meter: they answer, kill, stream, fail; the row is right."""

import asyncio
import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import httpx
import pytest

from scripts.fake_console import NORMAL, SSE, FakeConsole, Reply, Request, streaming
from scripts.real_proxy import ADDON, Proxy, replay, rows_of, settled_rows, wait_until

KEY = {"x-api-key": "sk-ant-api03-R2D2secretsecretsecretsecretsecretigAA"}


@pytest.fixture
def other(tmp_path: Path) -> Callable[[str], Path]:
    """Write another script."""

    def write(code: str) -> Path:
        path = tmp_path / "other.py"
        path.write_text(f"import asyncio\nfrom mitmproxy import ctx, http\n{code}")
        return path

    return write


def after(script: Path) -> tuple[str, ...]:
    """Load a script after the meter."""
    return ("-s", str(script))


def verdict(row: dict[str, object]) -> tuple[object, object, object]:
    return row["usage_state"], row["review_reason"], row["origin"]


@pytest.mark.parametrize("hook", ["requestheaders", "request", "responseheaders", "response"])
def test_a_script_that_raises_before_the_meter_costs_no_row(
    start_proxy: Callable[..., Proxy], ask: Callable[..., httpx.Response], other: Callable[[str], Path], hook: str
) -> None:
    """mitmproxy then calls none of the scripts behind it for that hook."""
    proxy = start_proxy(*after(ADDON), script=other(f"def {hook}(flow):\n    raise RuntimeError('theirs')\n"))
    wait_until(proxy.ledger.exists)  # mitmdump ends itself over an error that is logged while it starts
    assert ask(proxy, "json").status_code == 200
    (row,) = settled_rows(proxy.ledger, 1)
    assert verdict(row) == ("complete", None, "live")
    assert (row["requested_model"], row["total_tokens"]) == ("claude-asked", 16)


@pytest.mark.parametrize("value", ["True", "lambda data: data"])
@pytest.mark.parametrize("scenario", ["json", "normal"])
def test_a_response_that_a_script_streams_is_read(
    start_proxy: Callable[..., Proxy],
    ask: Callable[..., httpx.Response],
    other: Callable[[str], Path],
    value: str,
    scenario: str,
) -> None:
    script = other(f"def responseheaders(flow):\n    flow.response.stream = {value}\n")
    proxy = start_proxy(*after(ADDON), script=script)
    ask(proxy, scenario)
    (row,) = settled_rows(proxy.ledger, 1)
    assert verdict(row) == ("complete", None, "live")


def test_a_script_that_takes_the_stream_back_costs_neither_bytes_nor_the_row(
    tmp_path: Path,
    start_proxy: Callable[..., Proxy],
    ask: Callable[..., httpx.Response],
    other: Callable[[str], Path],
) -> None:
    script = other("def responseheaders(flow):\n    flow.response.stream = False\n")
    proxy = start_proxy(*after(script), "-w", str(tmp_path / "capture.mitm"))
    assert ask(proxy, "normal").extensions["raw"] == b"".join(NORMAL)
    (row,) = settled_rows(proxy.ledger, 1)
    assert verdict(row) == ("complete", None, "live")


def test_a_script_that_puts_its_own_in_the_taps_place_leaves_a_flagged_row(
    start_proxy: Callable[..., Proxy], ask: Callable[..., httpx.Response], other: Callable[[str], Path]
) -> None:
    script = other("def responseheaders(flow):\n    flow.response.stream = lambda data: data\n")
    proxy = start_proxy(*after(script))
    assert ask(proxy, "normal").extensions["raw"] == b"".join(NORMAL)
    (row,) = settled_rows(proxy.ledger, 1)
    assert verdict(row) == ("missing", "no_usage_data", "live")


@pytest.mark.parametrize("strategy", ["lazy", "eager"])
def test_an_answer_of_a_script_before_the_meter_leaves_no_row_live_or_replayed(
    tmp_path: Path,
    console: FakeConsole,
    start_proxy: Callable[..., Proxy],
    ask: Callable[..., httpx.Response],
    other: Callable[[str], Path],
    strategy: str,
) -> None:
    script = other("def request(flow):\n    flow.response = http.Response.make(200, b'{}')\n")
    capture = tmp_path / "capture.mitm"
    proxy = start_proxy(*after(ADDON), "-w", str(capture), script=script, strategy=strategy)
    assert ask(proxy, "normal").extensions["raw"] == b"{}"
    proxy.stop()
    assert console.received.total() == 0
    assert rows_of(proxy.ledger) == []
    replay(capture, tmp_path / "other.db")
    assert not (tmp_path / "other.db").exists() or rows_of(tmp_path / "other.db") == []


def test_a_request_that_a_script_kills_before_the_meter_was_never_sent(
    start_proxy: Callable[..., Proxy], other: Callable[[str], Path]
) -> None:
    proxy = start_proxy(*after(ADDON), script=other("def request(flow):\n    flow.kill()\n"))
    with suppress(httpx.TransportError):
        httpx.post(f"{proxy.address}/v1/messages", headers=KEY, json={}, timeout=20)
    (row,) = settled_rows(proxy.ledger, 1)
    assert verdict(row) == ("none", None, "live")


@pytest.mark.parametrize("body", [b'{"model":"m"}', b'{"model":"%b"}' % (b"m" * 5000)], ids=["small", "large"])
def test_with_stream_large_bodies_mitmproxys_own_answers_still_answer_what_is_not_streamed(
    tmp_path: Path, console: FakeConsole, start_proxy: Callable[..., Proxy], body: bytes
) -> None:
    (tmp_path / "answer.json").write_text("{}")
    local = ("--map-local", f"|/v1/messages|{tmp_path / 'answer.json'}")
    proxy = start_proxy(*local, "--set", "stream_large_bodies=10m")
    assert httpx.post(f"{proxy.address}/v1/messages", content=body, timeout=20).content == b"{}"
    assert console.received.total() == 0
    assert settled_rows(proxy.ledger, 0) == []


def test_with_stream_large_bodies_a_script_still_changes_what_is_not_streamed(
    console: FakeConsole, start_proxy: Callable[..., Proxy], ask: Callable[..., httpx.Response]
) -> None:
    proxy = start_proxy("--set", "stream_large_bodies=10m", "--modify-body", "/claude-asked/claude-changed")
    ask(proxy, "normal")
    assert b"claude-changed" in console.requests[0].body


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
@pytest.mark.parametrize("chunked", [False, True], ids=["sized", "chunked"])
def test_a_blocked_request_never_goes_upstream_streamed_or_not(
    console: FakeConsole,
    start_proxy: Callable[..., Proxy],
    ask: Callable[..., httpx.Response],
    large: bool,
    chunked: bool,
) -> None:
    """mitmproxy cannot answer a request whose body it passes on, so that one is cut off instead."""
    proxy = start_proxy("--set", "stream_large_bodies=1k", "--set", "usage_on_ledger_error=block")
    ask(proxy, "normal")
    body = b'{"model":"%b"}' % (b"m" * (5000 if large else 5))

    def pieces() -> Iterator[bytes]:
        yield body

    with closing(sqlite3.connect(proxy.ledger, isolation_level=None)) as locked:
        locked.execute("BEGIN IMMEDIATE")
        try:
            status = httpx.post(
                f"{proxy.address}/v1/messages", content=pieces() if chunked else body, headers=KEY, timeout=20
            ).status_code
        except httpx.TransportError:
            status = 0
    assert status == (0 if large or chunked else 503)
    assert console.received.total() == 1
    assert len(settled_rows(proxy.ledger, 1)) == 1
    proxy.wait_for_line("can be written again")
    ask(proxy, "normal")
    proxy.stop()
    assert "crashed" not in proxy.log
    assert [row["usage_state"] for row in rows_of(proxy.ledger)] == ["complete"] * 2


def test_a_body_over_mitmproxys_limit_is_answered_by_it_and_leaves_no_row(
    console: FakeConsole, start_proxy: Callable[..., Proxy], ask: Callable[..., httpx.Response]
) -> None:
    proxy = start_proxy("--set", "body_size_limit=1k", "--set", "stream_large_bodies=100")
    with suppress(httpx.TransportError):
        assert httpx.post(f"{proxy.address}/v1/messages", content=b"x" * 5000, timeout=20).status_code == 413
    ask(proxy, "normal")
    assert console.received.total() == 1
    assert [row["usage_state"] for row in settled_rows(proxy.ledger, 1)] == ["complete"]


def test_a_changed_durability_leaves_open_streams_and_their_rows_alone(
    console: FakeConsole,
    start_proxy: Callable[..., Proxy],
    ask: Callable[..., httpx.Response],
    other: Callable[[str], Path],
) -> None:
    """The option changes while one stream is open, as from mitmweb's option page; another request comes; it ends."""
    code = (
        "def responseheaders(flow):\n"
        "    ctx.options.update(usage_durability='normal' if flow.request.path.endswith('?change') else 'full')\n"
    )
    proxy = start_proxy(*after(other(code)))
    with httpx.stream(
        "POST", f"{proxy.address}/v1/messages", headers={"x-scenario": "endless", **KEY}, json={}, timeout=20
    ) as answer:
        next(answer.iter_raw())
        for _ in range(3):
            assert ask(proxy, "normal", "/v1/messages?change").extensions["raw"] == b"".join(NORMAL)
            assert ask(proxy, "normal").extensions["raw"] == b"".join(NORMAL)
    rows = settled_rows(proxy.ledger, 7)
    assert sorted(str(row["review_reason"]) for row in rows) == ["None"] * 6 + ["client_disconnected"]


@pytest.mark.parametrize(
    "broken",
    [
        "from usage_ledger.proxy import exchange as room\nroom.read_request = fail",
        "from usage_ledger.flows import rows as room\nroom.rate_limits = fail",
        "from usage_ledger.flows import rows as room\nroom.name_requester = fail",
        "from usage_ledger.messages import MessageReader\nMessageReader.verdict = fail_once",
    ],
    ids=["the request's body", "the response's headers", "the request's headers", "the verdict"],
)
def test_a_rule_of_the_meter_that_raises_costs_neither_bytes_nor_the_row(
    tmp_path: Path,
    console: FakeConsole,
    start_proxy: Callable[..., Proxy],
    ask: Callable[..., httpx.Response],
    broken: str,
) -> None:
    script = tmp_path / "broken.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(ADDON.parent)!r})\n"
        "from usage_ledger.messages import MessageReader\n"
        "from usage_ledger.proxy.addon import UsageLedger\n"
        "real = MessageReader.verdict\n"
        "def fail(*args, **more):\n    raise RuntimeError('a bug')\n"
        "def fail_once(*args, **more):\n    MessageReader.verdict = real\n    fail()\n"
        f"{broken}\naddons = [UsageLedger()]\n"
    )
    proxy = start_proxy(script=script)
    assert ask(proxy, "normal").extensions["raw"] == b"".join(NORMAL)
    assert console.received.total() == 1
    (row,) = settled_rows(proxy.ledger, 1)
    assert row["usage_state"] in ("complete", "missing")
    assert (row["usage_state"] == "complete") or row["requires_manual_review"] == 1
    proxy.wait_for_line("please report this")


def test_a_key_in_the_path_or_in_other_names_is_stored_as_its_hint(
    start_proxy: Callable[..., Proxy], ask: Callable[..., httpx.Response]
) -> None:
    proxy = start_proxy("--set", "usage_tag_header=x-team")
    key = KEY["x-api-key"]
    named = {"x-team": key, "user-agent": f"a {key}", "x-claude-code-session-id": key}
    ask(proxy, "normal", f"/{key}/v1/messages", **named)
    (row,) = settled_rows(proxy.ledger, 1)
    assert row["path"] == "/sk-ant-api03-R2D...igAA/v1/messages"
    assert row["tag"] == row["session_id"] == "sk-ant-api03-R2D...igAA"
    assert key not in json.dumps(row)


KILLS_LATER = "def request(flow):\n    asyncio.get_running_loop().call_later(0.3, flow.kill)\n"


def test_a_request_that_is_killed_while_upstream_thinks_was_sent(
    console: FakeConsole, start_proxy: Callable[..., Proxy], other: Callable[[str], Path]
) -> None:
    async def thinks(request: Request, reply: Reply) -> None:
        await asyncio.sleep(1)
        await streaming(NORMAL)(request, reply)

    console.scenarios["thinks"] = thinks
    proxy = start_proxy(*after(other(KILLS_LATER)))
    with suppress(httpx.TransportError):
        httpx.post(f"{proxy.address}/v1/messages", headers={"x-scenario": "thinks", **KEY}, json={}, timeout=20)
    assert console.received.total() == 1
    (row,) = settled_rows(proxy.ledger, 1)
    assert row["usage_state"] != "none"
    assert "_not_sent" not in row["metadata"]
    assert row["usage_state"] == "complete" or row["requires_manual_review"] == 1


def test_a_stream_that_is_killed_and_runs_on_to_its_end_has_its_final_usage(
    console: FakeConsole, start_proxy: Callable[..., Proxy], other: Callable[[str], Path]
) -> None:
    """mitmproxy looks at kills between hooks only, so a stream that has begun may go on for long."""

    async def slow(request: Request, reply: Reply) -> None:
        await reply.start(200, SSE)
        for piece in NORMAL:
            await reply.send(piece)
            await asyncio.sleep(0.4)
        await reply.end()

    console.scenarios["slow"] = slow
    proxy = start_proxy(*after(other(KILLS_LATER)))
    received = b""
    with (
        suppress(httpx.TransportError),
        httpx.stream(
            "POST", f"{proxy.address}/v1/messages", headers={"x-scenario": "slow", **KEY}, json={}, timeout=20
        ) as answer,
    ):
        for chunk in answer.iter_raw():
            received += chunk
    (row,) = settled_rows(proxy.ledger, 1)
    assert (row["usage_state"] == "complete") == (b"message_stop" in received)
    assert (row["output_tokens"] == 42) == (b"message_delta" in received)


def test_a_log_handler_that_fails_costs_no_row(
    start_proxy: Callable[..., Proxy], ask: Callable[..., httpx.Response], other: Callable[[str], Path]
) -> None:
    script = other(
        """
import logging

class Failing(logging.Handler):
    def emit(self, record):
        if "usage" in record.getMessage():
            raise RuntimeError("theirs")

def request(flow):
    logging.getLogger("usage_ledger").handlers[:] = [Failing()]
"""
    )
    proxy = start_proxy(*after(script))
    for scenario in ("normal", "without_usage", "normal"):
        ask(proxy, scenario)
    assert [verdict(row)[0] for row in settled_rows(proxy.ledger, 3)] == ["complete", "missing", "complete"]
