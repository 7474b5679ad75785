"""Hostile upstreams and clients: the bytes pass, the row is there, memory stays small, log and tables stay clean."""

import csv
import gzip
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import brotli
import httpx
import pytest
import zstandard

from scripts.fake_console import JSON, MESSAGE, NORMAL, SSE, FakeConsole, Reply, Request, answering, delta, start
from scripts.real_proxy import Proxy, settled_rows

MB = 1024 * 1024
DEEP = b"[" * 100_000 + b"]" * 100_000
DIGITS = b"9" * 10_000
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]")
NAMES = ["\x1b[31mred\x1b[0m", "two\nlines", "two\r\nlines", "nul\0", "tab\there", "line\u2028end", "\ud800", "=1+1"]

BODIES: dict[str, tuple[bytes | Callable[[], bytes], dict[str, str]]] = {
    "a bomb of gzip": (lambda: gzip.compress(bytes(100 * MB)), {"content-encoding": "gzip"}),
    "a bomb of br": (lambda: brotli.compress(bytes(100 * MB), quality=3), {"content-encoding": "br"}),
    "a bomb of zstd": (lambda: zstandard.compress(bytes(100 * MB)), {"content-encoding": "zstd"}),
    "a bomb in a bomb": (lambda: gzip.compress(gzip.compress(bytes(100 * MB))), {"content-encoding": "gzip, gzip"}),
    "deep JSON in an event": (b"event: message_delta\ndata: " + DEEP + b"\n\n", {}),
    "deep JSON in a delta's usage": (b'data: {"type":"message_delta","usage":' + DEEP + b"}\n\n", {}),
    "a number of 10,000 digits": (b'data: {"type":"message_delta","usage":{"output_tokens":' + DIGITS + b"}}\n\n", {}),
    "NUL bytes": (b"\0" * 5000 + b"".join(NORMAL), {}),
    "noise": (bytes(range(256)) * 1000, {}),
    "a lone surrogate": (b'data: {"type":"message_start","message":{"model":"\\ud800","usage":{}}}\n\n', {}),
    "blank lines only": (b"\n" * 100_000, {}),
    "a colon a line": (b":\n" * 100_000, {}),
    "100,000 starts": (start({"input_tokens": 1}) * 20_000, {}),
    "usage everywhere": (b'data: {"type":"ping","usage":{"output_tokens":1}}\n\n' * 20_000, {}),
}


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FakeConsole, Proxy]]:
    with (
        FakeConsole() as console,
        Proxy(
            console.address, tmp_path_factory.mktemp("hostile") / "usage.db", "--set", "usage_tag_header=x-tag"
        ) as proxy,
    ):
        yield console, proxy


def post(proxy: Proxy, scenario: str, body: bytes = b'{"stream":true}', **headers: str) -> bytes:
    with httpx.stream(
        "POST", f"{proxy.address}/v1/messages", headers={"x-scenario": scenario, **headers}, content=body, timeout=60
    ) as answer:
        return b"".join(answer.iter_raw())


def is_as_before(proxy: Proxy, tag: str) -> bool:
    """Whether a normal request still gets its complete row."""
    post(proxy, "normal", **{"x-tag": tag})
    (row,) = settled_rows(proxy.ledger, 1, "tag = ?", [tag])
    return bool(row["usage_state"] == "complete")


@pytest.mark.parametrize("kind", ["events", "JSON"])
@pytest.mark.parametrize("name", BODIES)
def test_hostile_answers(proxied: tuple[FakeConsole, Proxy], name: str, kind: str) -> None:
    console, proxy = proxied
    given, headers = BODIES[name]
    body = given() if callable(given) else given
    console.scenarios["hostile"] = answering(200, body, {**(SSE if kind == "events" else JSON), **headers})
    tag = f"{name} {kind}"
    assert post(proxy, "hostile", **{"x-tag": tag}) == body
    (row,) = settled_rows(proxy.ledger, 1, "tag = ?", [tag])
    assert row["requires_manual_review"] == 1 or row["usage_state"] == "complete"
    assert is_as_before(proxy, f"after {tag}")
    assert proxy.memory < 250 * MB
    assert "Traceback" not in proxy.log
    assert "please report" not in proxy.log


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","messages":' + DEEP + b"}",
        b'{"model":' + DEEP + b"}",
        b'{"model":"m","max_tokens":' + DIGITS + b"}",
        b'{"model":"\\ud800","x":NaN}',
        b'{"model":"m\\u0000\\u001b[31m"}',
        b"\0" * 1000,
        b"{" * 1000,
        b'{"model":"m","messages":"' + b"x" * (20 * MB) + b'"}',
    ],
    ids=["deep", "deep model", "digits", "surrogate", "escapes", "NUL", "braces", "20 MB"],
)
def test_hostile_requests(proxied: tuple[FakeConsole, Proxy], body: bytes, request: pytest.FixtureRequest) -> None:
    console, proxy = proxied
    tag = request.node.name
    assert post(proxy, "normal", body, **{"x-tag": tag}) == b"".join(NORMAL)
    assert console.requests[-1].body == body
    (row,) = settled_rows(proxy.ledger, 1, "tag = ?", [tag])
    assert (row["usage_state"], row["total_tokens"]) == ("complete", 2154)
    assert "Traceback" not in proxy.log


def test_an_event_without_an_end_takes_no_memory(
    console: FakeConsole, start_proxy: Callable[..., Proxy], sized: Callable[[int, int], int]
) -> None:
    size = sized(64, 1024) * MB

    async def endless_event(request: Request, reply: Reply) -> None:
        await reply.start(200, SSE)
        await reply.send(start({"input_tokens": 5, "output_tokens": 1}))
        await reply.send(b"data: ")
        for _ in range(size // MB):
            await reply.send(b"x" * MB)
        await reply.end()

    console.scenarios["endless event"] = endless_event
    proxy = start_proxy()
    post(proxy, "normal")
    before = proxy.memory
    with httpx.stream(
        "POST", f"{proxy.address}/v1/messages", headers={"x-scenario": "endless event"}, json={}, timeout=300
    ) as answer:
        received = sum(map(len, answer.iter_raw()))
    assert received > size
    assert proxy.memory - before < 12 * MB
    _, row = settled_rows(proxy.ledger, 2)
    assert (row["usage_state"], row["requires_manual_review"], row["input_tokens"]) == ("partial", 1, 5)


def test_names_from_outside_leave_log_table_and_csv_clean(
    console: FakeConsole, start_proxy: Callable[..., Proxy], ledger: Path
) -> None:
    """Terminal escapes are not shown, and a spreadsheet does not take a name for a formula."""
    proxy = start_proxy("--set", "usage_tag_header=x-tag")
    for number, name in enumerate(NAMES):
        console.scenarios[f"named {number}"] = answering(
            200, json.dumps({**MESSAGE, "model": name, "id": name}).encode(), {**JSON, "request-id": "=1+1"}
        )
        post(proxy, f"named {number}", json.dumps({"model": name}).encode(), **{"x-tag": "@SUM(A1)"})
    rows = settled_rows(ledger, len(NAMES))
    proxy.stop()
    assert [row["usage_state"] for row in rows] == ["complete"] * len(NAMES)
    for row in rows:
        assert not any(CONTROL.search(value) for value in row.values() if isinstance(value, str))
    assert not any(CONTROL.search(line) for line in proxy.lines)
    shown = subprocess.run(
        [sys.executable, "-m", "usage_ledger", "rows", "--db", str(ledger)], capture_output=True, check=True
    ).stdout.decode()
    assert len(shown.splitlines()) == len(NAMES) + 1
    assert not CONTROL.search(shown)
    exported = subprocess.run(
        [sys.executable, "-m", "usage_ledger", "export", "--db", str(ledger)], capture_output=True, check=True
    ).stdout.decode()
    table = list(csv.reader(io.StringIO(exported, newline="")))
    assert len(table) == len(NAMES) + 1
    assert not any(cell.startswith(("=", "+", "-", "@")) for line in table[1:] for cell in line)
    assert "'=1+1" in {cell for line in table for cell in line}


@pytest.mark.parametrize("header", ["x-api-key", "user-agent", "x-tag", "x-claude-code-session-id", "authorization"])
def test_header_bytes_that_are_no_text(proxied: tuple[FakeConsole, Proxy], header: str) -> None:
    _, proxy = proxied
    before = len(settled_rows(proxy.ledger, 0))
    with suppress(httpx.TransportError):
        httpx.post(
            f"{proxy.address}/v1/messages",
            headers=[(b"x-scenario", b"normal"), (header.encode(), b"\xff\xfe\xed\xa0\x80 \xc3")],
            content=b"{}",
            timeout=20,
        )
    rows = settled_rows(proxy.ledger, before + 1)
    assert rows[-1]["usage_state"] == "complete"
    json.dumps(rows[-1]).encode("utf-8")


def test_many_ids_in_one_body_are_flagged_and_bounded(proxied: tuple[FakeConsole, Proxy]) -> None:
    console, proxy = proxied
    body = b"".join(start({"input_tokens": 1}, f"msg_{n}") + delta({"output_tokens": 1}) for n in range(3000))
    console.scenarios["many ids"] = answering(200, body, SSE)
    assert post(proxy, "many ids", **{"x-tag": "many ids"}) == body
    (row,) = settled_rows(proxy.ledger, 1, "tag = ?", ["many ids"])
    assert (row["review_reason"], row["requires_manual_review"]) == ("multiple_messages", 1)
