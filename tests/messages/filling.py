"""What the tests of the filler share: bodies full of secrets, and what is told of them before and after."""

import json
import re
from collections.abc import Callable
from typing import Any

from usage_ledger.messages import Ending, MessageReader, Verdict
from usage_ledger.messages.filler import fill_request, fill_response

from scripts.fake_console import MESSAGE, STOP, delta, event

LINE_ENDS = [b"\n", b"\r\n", b"\r"]
FILLERS = [fill_request, fill_response]


def judged(body: bytes) -> list[Verdict]:
    """Every verdict on a body: however it ended, under a status that bills and one that does not."""
    verdicts = []
    for ending in (Ending.FINISHED, Ending.CLIENT_DISCONNECTED):
        reader = MessageReader()
        reader.feed(body)
        reader.finish(clean=ending is Ending.FINISHED)
        verdicts += [reader.verdict(ending, status) for status in (200, 400)]
    return verdicts


def told(body: bytes) -> list[tuple[Any, ...]]:
    """What the verdicts on a body come to where labels may not be plain."""
    return [(verdict.state, verdict.reason, verdict.counts) for verdict in judged(body)]


def filled(body: bytes, fill: Callable[[bytes], bytes] = fill_response) -> bytes:
    out = fill(body)
    assert len(out) == len(body)
    assert re.sub(rb"[^\r\n]", b".", out) == re.sub(rb"[^\r\n]", b".", body), "line breaks have moved"
    assert fill(out) == out, "what was filled has nothing left to fill"
    return out


def of(value: object) -> bytes:
    return json.dumps(value).encode()


SECRETS = (f"Secret{number}" for number in range(1000))


def secret() -> str:
    return next(SECRETS)


REQUEST: dict[str, Any] = {
    "model": "claude-sonnet-4-6",
    "stream": True,
    "max_tokens": 1024,
    "temperature": 0.5,
    "service_tier": "auto",
    "system": [{"type": "text", "text": secret(), "cache_control": {"type": "ephemeral", "ttl": "1h"}}],
    "metadata": {"user_id": f"user_{secret()}_account_1_session_{secret()}", secret(): secret()},
    "stop_sequences": [secret()],
    "container": secret(),
    "mcp_servers": [{"type": "url", "url": secret(), "name": secret(), "authorization_token": secret()}],
    "tool_choice": {"type": "tool", "name": secret()},
    "thinking": {"type": "enabled", "budget_tokens": 2048},
    "tools": [
        {
            "name": secret(),
            "description": secret(),
            "input_schema": {
                "type": "object",
                "title": secret(),
                "properties": {secret(): {"type": secret(), "enum": [secret()], "model": secret()}},
                "required": [secret()],
            },
        },
        {"type": "web_search_20250305", "name": secret(), "max_uses": 3, "user_location": {"city": secret()}},
    ],
    "output_config": {"effort": secret(), "format": {"type": "json_schema", "schema": {"type": secret()}}},
    "messages": [
        {"role": "user", "content": secret()},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": f'"\\\n{secret()} ü 模型 \N{GRINNING FACE}'},
                {
                    "type": "image",
                    "source": {"type": "base64", "media_type": "image/png", "data": secret() + "A" * 100 + "=="},
                },
                {"type": "document", "source": {"type": "url", "url": secret()}, "title": secret()},
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": secret(), "signature": secret()},
                {"type": "redacted_thinking", "data": secret()},
                {
                    "type": "tool_use",
                    "id": secret(),
                    "name": secret(),
                    "input": {secret(): [secret(), 987654321.5, {"type": secret(), "id": secret(), "usage": secret()}]},
                },
            ],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": secret(), "content": secret()}]},
    ],
    secret(): {"type": secret(), "role": secret(), secret(): secret(), "max_tokens": 987654321},
}

RESPONSE = [
    event(
        "message_start", message={**MESSAGE, "content": [], "stop_sequence": secret(), "container": {"id": secret()}}
    ),
    b": " + secret().encode() + b"\n\n",
    event("ping", note=secret()),
    event("content_block_start", index=0, content_block={"type": "thinking", "thinking": secret(), "signature": ""}),
    event("content_block_delta", index=0, delta={"type": "signature_delta", "signature": secret()}),
    event("content_block_start", index=1, content_block={"type": "redacted_thinking", "data": secret()}),
    event(
        "content_block_start",
        index=2,
        content_block={"type": "tool_use", "id": secret(), "name": secret(), "input": {secret(): {"type": secret()}}},
    ),
    event("content_block_delta", index=2, delta={"type": "input_json_delta", "partial_json": f'{{"{secret()}": "'}),
    event(
        "content_block_delta",
        index=3,
        delta={
            "type": "citations_delta",
            "citation": {"type": "web_search_result_location", "cited_text": secret(), "url": secret()},
        },
    ),
    event("content_block_delta", index=3, delta={"type": "text_delta", "text": f"{secret()} an error in {secret()}"}),
    b"id: " + secret().encode() + b"\nretry: 3000\nevent: content_block_delta\ndata: {\n\n",
    delta(
        {"output_tokens": 42},
        "refusal",
        stop_sequence=secret(),
        stop_details={"type": "refusal", "category": "cyber", "explanation": secret()},
    ),
    event("error", error={"type": "overloaded_error", "message": secret()}, request_id=secret()),
    b"data: [DONE] " + secret().encode() + b"\n" + secret().encode() + b"\nevent: " + secret().encode() + b"\n\n",
    STOP,
]

ANSWER = {
    **MESSAGE,
    "content": [
        {"type": "text", "text": secret(), "citations": [{"type": "char_location", "cited_text": secret()}]},
        {"type": "tool_use", "id": secret(), "name": secret(), "input": {secret(): secret(), "n": 987654321}},
    ],
    "stop_sequence": secret(),
}
