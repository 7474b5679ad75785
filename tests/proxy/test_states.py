"""Every row of the table of states, through a real mitmdump and over the wire."""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from scripts.fake_console import (
    JSON,
    MESSAGE,
    NORMAL,
    SSE,
    START_USAGE,
    STOP,
    FakeConsole,
    Reply,
    Request,
    answering,
    delta,
    event,
    start,
    streaming,
    text,
)
from scripts.real_proxy import Proxy, settled_rows

REFUSED = {"stop_details": {"type": "refusal", "category": "cyber"}}
REFUSED_BILLED = {"stop_details": {"type": "refusal", "category": "bio"}}
ERROR = event("error", error={"type": "overloaded_error", "message": "Overloaded"})
FALLBACK = {
    "output_tokens": 264,
    "iterations": [
        {"type": "message", "model": "claude-fable-5", "input_tokens": 408, "output_tokens": 0},
        {"type": "fallback_message", "model": "claude-opus-4-8", "input_tokens": 412, "output_tokens": 264},
    ],
}


async def no_response(request: Request, reply: Reply) -> None:
    reply.reset()


async def error_that_breaks_off(request: Request, reply: Reply) -> None:
    await reply.start(500, JSON, length=1000)
    await reply.send(b'{"type":"error"')
    reply.reset()


async def redirect(request: Request, reply: Reply) -> None:
    await reply.start(302, {"location": "/elsewhere"}, length=0)


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "final usage seen": (streaming(NORMAL), {"usage_state": "complete", "total_tokens": 2154}),
    "final usage seen, then upstream breaks": (
        streaming(NORMAL[:-1], ends=False),
        {"usage_state": "complete", "total_tokens": 2154},
    ),
    "no usage": (streaming([start(), *text("a b"), delta(None), STOP]), {"missing": "no_usage_data"}),
    "start usage only": (
        streaming([start(START_USAGE), *text("a b"), delta(None), STOP]),
        {"partial": "no_usage_data", "total_tokens": 2113},
    ),
    "upstream breaks after the start": (streaming(NORMAL[:3], ends=False), {"partial": "upstream_closed"}),
    "upstream breaks before any usage": (streaming([start()], ends=False), {"missing": "upstream_closed"}),
    "an error in the stream": (streaming([start(START_USAGE), ERROR]), {"partial": "stream_error"}),
    "an error before the start": (streaming([ERROR]), {"missing": "stream_error"}),
    "an error after the final usage": (streaming([*NORMAL[:-1], ERROR]), {"usage_state": "complete"}),
    "no response headers": (no_response, {"missing": "no_response", "http_status": None}),
    "every count 0": (
        streaming([start({"input_tokens": 0, "output_tokens": 0}), delta({"output_tokens": 0}), STOP]),
        {"complete": "zero_usage"},
    ),
    "a body that cannot be decoded": (
        streaming([b"\x00\x01garbage that is no gzip\xff"], {"content-encoding": "gzip"}),
        {"missing": "unreadable_body"},
    ),
    "a count that is not a number": (
        streaming([start(START_USAGE), delta({"output_tokens": "many"}), STOP]),
        {"partial": "malformed_usage"},
    ),
    "HTTP 429": (answering(429, b'{"type":"error"}', JSON), {"usage_state": "none", "http_status": 429}),
    "HTTP 500 whose body breaks off": (error_that_breaks_off, {"usage_state": "none", "http_status": 500}),
    "JSON without usage": (answering(200, b'{"id":"msg_1"}', JSON), {"missing": "no_usage_data"}),
    "another content type": (answering(200, b"<html>", {"content-type": "text/html"}), {"missing": "no_usage_data"}),
    "an empty body": (answering(200, b"", SSE), {"missing": "no_usage_data"}),
    "a redirect": (redirect, {"missing": "no_usage_data", "http_status": 302}),
    "a JSON answer": (
        answering(200, json.dumps(MESSAGE).encode(), JSON),
        {"usage_state": "complete", "total_tokens": 16, "stream": 0},
    ),
    "JSON under the content type of a stream": (
        answering(200, json.dumps(MESSAGE).encode(), SSE),
        {"usage_state": "complete", "total_tokens": 16, "stream": 1},
    ),
    "a refusal that is not billed": (
        streaming([start(START_USAGE), delta({"output_tokens": 0}, "refusal", **REFUSED), STOP]),
        {"usage_state": "none", "total_tokens": 0},
    ),
    "a refusal that is billed": (
        streaming([start(START_USAGE), delta({"output_tokens": 0}, "refusal", **REFUSED_BILLED), STOP]),
        {"usage_state": "complete", "total_tokens": 2112},
    ),
    "a refusal after output began": (
        streaming([start(START_USAGE), *text("a"), delta({"output_tokens": 3}, "refusal", **REFUSED), STOP]),
        {"usage_state": "complete", "total_tokens": 2115},
    ),
    "a fallback": (
        streaming([start({"input_tokens": 408, "output_tokens": 1}), *text("a"), delta(FALLBACK), STOP]),
        {"complete": "declined_attempt", "total_tokens": 676},
    ),
    "two messages in one body": (
        streaming([*NORMAL, start(START_USAGE, "msg_other"), delta({"output_tokens": 8}), STOP]),
        {"complete": "multiple_messages", "total_tokens": 2154 + 2120},
    ),
}


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    folder: Path = tmp_path_factory.mktemp("states")
    with FakeConsole() as console:
        for number, (scenario, _) in enumerate(CASES.values()):
            console.scenarios[f"case-{number}"] = scenario
        with Proxy(console.address, folder / "usage.db", "--set", "usage_tag_header=x-tag") as proxy:
            yield proxy


@pytest.mark.parametrize(("number", "name"), list(enumerate(CASES)))
def test_each_ending_leaves_its_row(proxied: Proxy, number: int, name: str) -> None:
    expected = dict(CASES[name][1])
    for state in ("complete", "partial", "missing"):
        if state in expected:
            expected["review_reason"] = expected.pop(state)
            expected["usage_state"] = state
    tag = f"case {number}"
    with suppress(httpx.RequestError):
        httpx.post(
            f"{proxied.address}/v1/messages",
            headers={"x-scenario": f"case-{number}", "x-tag": tag},
            json={"model": "claude-asked", "stream": True},
            timeout=20,
        )
    rows = settled_rows(proxied.ledger, 1, "tag = ?", [tag])
    assert len(rows) == 1
    reason = expected.setdefault("review_reason", None)
    assert {name: rows[0][name] for name in expected} == expected
    metadata = json.loads(rows[0]["metadata"])
    assert rows[0]["requires_manual_review"] == int(reason is not None)
    assert metadata.get("_requires_manual_review") == (True if reason else None)
    assert metadata.get("_no_usage_data") == (True if expected["usage_state"] == "missing" else None)
    assert metadata.get("_partial_usage") == (True if expected["usage_state"] == "partial" else None)
