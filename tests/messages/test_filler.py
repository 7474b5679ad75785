"""A filled body has the size, the structure and the verdict of the original, and nothing that anybody wrote."""

import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from usage_ledger.messages import Ending, MessageReader, Reason, State, Verdict, read_request
from usage_ledger.messages.decoding import decoder_for
from usage_ledger.messages.filler import fill_key, fill_request, fill_response, fill_text
from usage_ledger.messages.sse import EVENT_LIMIT

from scripts.fake_console import ITERATIONS, MESSAGE, NORMAL, START_USAGE, STOP, delta, event, start
from tests.messages.test_reader import STREAM

CORPUS = Path(__file__).parents[3] / "shared" / "corpus"
STREAMS = sorted(CORPUS.glob("*.sse"))
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


# What is filled.

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

SHARED = [
    (fill_request, of(REQUEST)),
    (fill_request, json.dumps(REQUEST, ensure_ascii=False, indent=2).encode()),
    (fill_request, b"PK\x03\x04 " + of(REQUEST)),
    (fill_response, b"".join(RESPONSE)),
    (fill_response, b"".join(RESPONSE).replace(b"\n", b"\r\n").replace(b"event: ", b"event:")),
    (fill_response, of(ANSWER)),
    (fill_response, b"<html>\n<p>" + secret().encode() + b"</p>\n\n" + secret().encode() + b"\n"),
    (fill_response, b"[" + of(ANSWER) + b"]"),
]


@pytest.mark.parametrize(("fill", "body"), SHARED)
def test_no_secret_is_left_whatever_the_body_is_cut_to(fill: Callable[[bytes], bytes], body: bytes) -> None:
    """A piece that begins with an object within the body is left out: it says that it is all of it."""
    generator = random.Random(5)
    cuts = [sorted(generator.choices(range(len(body)), k=2)) for _ in range(200)]
    pieces = [body[begin:end] for begin, end in cuts if not body[begin:].lstrip().startswith(b"{")]
    for piece in (body, *pieces, *(body[:end] for _, end in cuts)):
        out = filled(piece, fill)
        assert b"Secr" not in out
        assert b"98765" not in out


def test_a_filled_request_is_a_request_of_the_same_shape() -> None:
    out = json.loads(filled(of(REQUEST), fill_request))
    assert out["messages"][2]["content"][2] == {
        "type": "tool_use",
        "id": "x" * len(REQUEST["messages"][2]["content"][2]["id"]),
        "name": "x" * len(REQUEST["messages"][2]["content"][2]["name"]),
        "input": {
            "xxxxxxxx": ["xxxxxxxx", 111111111.1, {"xxxx": "xxxxxxxx", "xx": "xxxxxxxx", "xxxxx": "xxxxxxxx"}],
        },
    }
    assert out["tools"][1] == {
        "type": "web_search_20250305",
        "name": "xxxxxxxx",
        "max_uses": 3,
        "user_location": {"xxxx": "xxxxxxxx"},
    }
    assert out["system"] == [
        {"type": "text", "text": "xxxxxxx", "cache_control": {"type": "ephemeral", "ttl": "1h"}},
    ]
    assert out["thinking"] == REQUEST["thinking"]
    for name in ("model", "stream", "max_tokens", "temperature", "service_tier"):
        assert out[name] == REQUEST[name]
    assert list(out)[-1] == "x" * 8
    assert read_request(of(out)).model == "claude-sonnet-4-6"
    assert read_request(of(out)).stream


def test_a_filled_stream_keeps_usage_byte_for_byte() -> None:
    body = b"".join(RESPONSE)
    found = re.compile(rb'"usage": ?\{[^}]*+(?:\}[^}]*+)??\}')
    assert found.findall(body)
    assert found.findall(filled(body)) == found.findall(body)


FILLED = [
    # A text is filled with its escapes, a name that is not the API's too, and what stands under such a name wholly.
    (rb'{"text": "a\n\u00e9\"b"}', rb'{"text": "xxxxxxxxxxxx"}'),
    (rb'{"secret": {"type": "text", "n": [1, true]}}', rb'{"xxxxxx": {"xxxx": "xxxx", "x": [1, null]}}'),
    (rb'{"secret": "s", "text": true}', rb'{"xxxxxx": "x", "text": true}'),
    # The inside of a tool's input is the caller's.
    (
        b'{"input": {"a": {"type": "object", "max_tokens": -12.5e3}, "b": [true, false, null, {}, []]}}',
        b'{"input": {"x": {"xxxx": "xxxxxx", "xxxxxxxxxx": -11.1e1}, "x": [null, null , null, {}, []]}}',
    ),
    (b'{"metadata": {"user_id": "u"}, "role": "user"}', b'{"metadata": {"xxxxxxx": "x"}, "role": "user"}'),
    (b'{"properties": {"model": "m"}, "model": "m"}', b'{"properties": {"xxxxx": "x"}, "model": "m"}'),
    (b'{"input_schema": {"model": "m"}, "input": "m"}', b'{"input_schema": {"xxxxx": "x"}, "input": "x"}'),
    # Labels are kept where they are plain and under their own name.
    (b'{"type": "text", "role": "a b", "name": "text"}', b'{"type": "text", "role": "xxx", "name": "xxxx"}'),
    (b'{"type": ["text"], "model": {"type": "m"}}', b'{"type": ["xxxx"], "model": {"type": "m"}}'),
    (b'{"type": "%s"}' % (b"a" * 65), b'{"type": "%s"}' % (b"x" * 65)),
    ('{"type": "tëxt", "model": "é"}'.encode(), b'{"type": "xxxxx", "model": "xx"}'),
    (b'{"model": "eu.claude@2[1m]/x:0"}', b'{"model": "eu.claude@2[1m]/x:0"}'),
    (rb'{"t\u0079pe": "te\u0078t", "s\u0079pe": 1}', rb'{"t\u0079pe": "te\u0078t", "xxxxxxxxx": 1}'),
    (b'{"type": "a" "b" 7, "max_tokens": 5 7}', b'{"type": "a" "x" 1, "max_tokens": 5 1}'),
    (b'{"role": "user", "content": {"role": "wizard"}}', b'{"role": "user", "content": {"role": "xxxxxx"}}'),
    # Numbers are kept under the names of settings.
    (b'{"index": 23, "status": 529, "content": [42]}', b'{"index": 23, "status": 111, "content": [11]}'),
    # Empty is not the same as filled, nor is blank.
    (b'{"content": "", "text": "  ", "system": [], "error": {}}',) * 2,
    # What is no JSON is filled as far as it goes, and is no JSON afterwards.
    (b'{"text": "cut of', b'{"text": "xxxxxx'),
    (b'{"text": "cut of\\', b'{"text": "xxxxxx\\'),
    (b'{"text": 012, "index": 1.}', b'{"text": xxx, "index": xx}'),
    (b'{"text": "a\\qb\tc\\"d", "x": "\x00\xff"}', b'{"text": "x\\xxxxxxx", "x": "\tx"}'),
    (b'{"type": "t"]}, {"type": "t", "max_tokens": 5}', b'{"type": "t"]}, {"xxxx": "x", "xxxxxxxxxx": 1}'),
    (b'{"content": {"type": [5}, "index": 5, "type": "t"}}', b'{"content": {"type": [1}, "xxxxx": 1, "xxxx": "x"}}'),
    (b'[{"type": "t", "text": 5}]', b'[{"xxxx": "x", "xxxx": 1}]'),
    (b'{"type": "t"}, {"type": "t"} "type"', b'{"type": "t"}, {"xxxx": "x"} "xxxx"'),
    (b"hello 'you', nul \x00\xff", b"xxxxx xxxxx, xxx xx"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "expected"), FILLED)
def test_how_json_is_filled(body: bytes, expected: bytes) -> None:
    assert filled(body, fill_request) == expected
    in_a_stream = filled(b"data: " + body)
    if b'"error"' not in body and b'"usage"' not in body:
        assert in_a_stream == b"data: " + expected


USAGE = b'{"a b": [1, NaN, {"n": -5, "speed": "fast", "role": "user"}], "o": "many", "input": {"k": null}}'
KEPT = b'{"a b": [1, NaN, {"n": -5, "speed": "fast", "role": "xxxx"}], "o": "xxxx", "input": {"k": null}}'
GONE = b'{"xxx": [1, 111, {"x": -1, "xxxxx": "xxxx", "xxxx": "xxxx"}], "x": "xxxx", "xxxxx": {"x": null}}'
WHERE = {
    # name: (body, as a JSON answer, as the data of an event); a request has neither usage nor an id of its own.
    "an id": (b'{"id": "m"}', b'{"id": "m"}', b'{"id": "x"}'),
    "an id that is not plain": (b'{"id": "a b"}', b'{"id": "xxx"}', b'{"id": "xxx"}'),
    "a message's id": (b'{"message": {"id": "m"}}', b'{"message": {"id": "x"}}', b'{"message": {"id": "m"}}'),
    "an error's id": (b'{"error": {"id": "m"}}', b'{"error": {"id": "x"}}', b'{"error": {"id": "x"}}'),
    "a block's id": (b'{"content": {"id": "m"}}', b'{"content": {"id": "x"}}', b'{"content": {"id": "x"}}'),
    "a list of ids": (b'{"message": [{"id": "m"}]}', b'{"message": [{"id": "x"}]}', b'{"message": [{"id": "x"}]}'),
    "usage": (b'{"usage": %s}' % USAGE, b'{"usage": %s}' % KEPT, b'{"usage": %s}' % KEPT),
    "a delta's usage": (
        b'{"delta": {"usage": %s}}' % USAGE,
        b'{"delta": {"usage": %s}}' % GONE,
        b'{"delta": {"usage": %s}}' % KEPT,
    ),
    "a message's usage": (
        b'{"message": {"usage": %s}}' % USAGE,
        b'{"message": {"usage": %s}}' % GONE,
        b'{"message": {"usage": %s}}' % KEPT,
    ),
    "usage within content": (
        b'{"content": {"usage": %s}}' % USAGE,
        b'{"content": {"usage": %s}}' % GONE,
        b'{"content": {"usage": %s}}' % GONE,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WHERE)
def test_ids_and_usage_are_kept_where_the_reader_looks(name: str) -> None:
    """In usage stay names, numbers and literals, and of texts the labels that usage has."""
    body, answer, data = WHERE[name]
    assert filled(body, fill_response) == answer
    assert filled(b"data: " + body) == b"data: " + data
    assert b'"m"' not in filled(body, fill_request)
    assert b"-5" not in filled(body, fill_request)


EVENTS = [
    (b"event: ping\ndata: {}\nid: 7\nretry: 5\n: hello\n\n", b"event: ping\ndata: {}\nid: x\nretry: 1\n:xxxxxx\n\n"),
    (b"event: pong\nretry: 35\n\n", b"event: xxxx\nretry: 11\n\n"),
    (b"event:ping\rdata:{}\r\r", b"event:ping\rdata:{}\r\r"),
    (b"event: My event\r\nretry: soon\r\n\r\n", b"event: xxxxxxxx\r\nretry: xxxx\r\n\r\n"),
    (b"event: a\xe9\nevent: Ping\n", b"event: xx\nevent: xxxx\n"),
    (b"data\nevent\nid\ndatax: 1\n data: 2\n\xef\xbb\xbfdata: 3", b"data\nevent\nid\nxxxxxxxx\nxxxxxxxx\nxxxxxxxxxx"),
    (b"\xef\xbb\xbfdata: [DONE]", b"\xef\xbb\xbfdata: [xxxx]"),
    (b'data: {"type":\ndata:"text",\ndata:  "a": 5}\n\n', b'data: {"type":\ndata:"text",\ndata:  "x": 1}\n\n'),
    (b'data: {"text": "a\ndata: b"}\n\n', b'data: {"text": "x\ndata: x"}\n\n'),
    (b'data: {"text": "a\\\ndata: b"}\n\n', b'data: {"text": "x\\\ndata: x"}\n\n'),
    (b'data: say "usage" or "message_stop" or usage\n\n', b'data: xxx "usage" xx "message_stop" xx usage\n\n'),
    # Where nothing can be decoded, the words that the reader searches for stay; in a content block they do not.
    (b'data: {"text": "an error, a message_id', b'data: {"text": "xxxerrorxxxxmessage_xx'),
    (b'event: content_block_delta\ndata: {"text": "an error', b'event: content_block_delta\ndata: {"text": "xxxxxxxx'),
    (b'data: {"text": "an error"}\n\n', b'data: {"text": "xxxxxxxx"}\n\n'),
    (b'{"text": "an error', b'{"text": "xxxerror'),
    (b'data: {"input": {"usage": 5, "use": 5}}\n\n', b'data: {"input": {"usage": 1, "xxx": 1}}\n\n'),
]


@pytest.mark.parametrize(("body", "expected"), EVENTS)
def test_how_an_event_stream_is_filled(body: bytes, expected: bytes) -> None:
    assert filled(body) == expected


WITHOUT_END = b'"usage":{"output_tokens":5,"cache_creation":{"ephemeral_1h_input_tokens":6},"service_tier":"standard"'
BEHIND_IT = [
    b',"content":[{"type":"text","name":"Secret","Secret":98765}]',
    b',"Secret":98765,"input":{"Secret":true,"Secret2":[98765],"usage":{"Secret":98765}}',
    b',"iterations":[{"type":"message","Secret":98765}],"input_tokens":{"Secret":98765}',
    b',"Secret":{"Secret":98765}},"delta":{"Secret":98765',
]


@pytest.mark.parametrize("behind", BEHIND_IT)
@pytest.mark.parametrize(
    "where",
    [
        b"{%s}",
        b"{%s",
        b'{"type":"message",%s}}]',
        b'data: {"type":"message_delta",%s}\n\n',
        b'data: {"message":{%s\n\n',
    ],
)
def test_what_stands_behind_usage_that_has_no_end_is_filled(where: bytes, behind: bytes) -> None:
    body = where % (WITHOUT_END + behind)
    out = filled(body)
    assert WITHOUT_END in out
    assert b"Secret" not in out
    assert b"98765" not in out
    assert told(out) == told(body)


def test_usage_in_an_event_longer_than_the_reader_keeps_may_have_no_end_either() -> None:
    body = b'data: {"type":"message_delta",%s,"Secret":98765,"text":"%s"}}\n\n' % (WITHOUT_END, b"y" * EVENT_LIMIT)
    assert b"Secret" not in filled(body)


def test_an_answer_in_json_may_have_blanks_and_a_byte_order_mark_before_it() -> None:
    for before in (b"", b" \r\n\t", b"\xef\xbb\xbf", b"\n\xef\xbb\xbf"):
        body = before + of(ANSWER)
        assert filled(body).startswith(before + b'{"id": "msg_')
        assert judged(filled(body)) == judged(body)


def test_a_request_shares_not_even_the_words_that_the_reader_looks_for() -> None:
    body = b'{"messages": [{"content": "error"}], "input": {"usage": "message_stop"}}'
    assert filled(body, fill_request) == b'{"messages": [{"content": "xxxxx"}], "input": {"xxxxx": "xxxxxxxxxxxx"}}'


KEYS = [
    ("sk-ant-api03-R2Dq-x_y", "sk-ant-api03-xxxxxxxx"),
    ("sk-ant-oat01-abc", "sk-ant-oat01-xxx"),
    ("sk-ant-admin01-abc", "sk-ant-admin01-xxx"),
    ("sk-ant-secret-abc", "sk-ant-xxxxxxxxxx"),
    ("sk-ant-abc", "sk-ant-xxx"),
    ("Bearer sk-ant-api03-abc", "x" * 23),
    ("", ""),
    ("ключ", "xxxx"),
]


@pytest.mark.parametrize(("credential", "expected"), KEYS)
def test_a_key_keeps_its_kind(credential: str, expected: str) -> None:
    assert fill_key(credential) == expected


def test_a_header_is_filled_wholly() -> None:
    assert fill_text("req_011C – ü") == "x" * 12


# What stays the same.

TOKENS = st.sampled_from(
    [
        *'{}[]:,"\\\n\r\t \x00',
        *('"usage"', '"type"', '"message"', '"delta"', '"error"', '"content"', '"input"', '"id"', '"text"', '"model"'),
        *('"output_tokens"', '"message_start"', '"message_delta"', '"message_stop"', '"content_block_delta"', '"ping"'),
        *('"m1"', '"stop_reason"', '"refusal"', '"end_turn"', "usage", "error", "message_", "NaN", "-Infinity", "12"),
        *("-1.5e3", "01", "true", "false", "null", "nul", '"\\ud800"', '"\\q"', '"é"', '"us\\u0061ge"', "\ufeff", '""'),
        *('"a message_ or an error"', '{"type":', '"usage":{"output_tokens":', '"delta":{', '"message":{"id":"m1"'),
        *("data: ", "\ndata: ", "\n\n", "\nevent: error\n", "event: message_delta\n", "event: message_stop\n", ": c\n"),
        *("event: content_block_delta\n", "event: odd\n", "id: 7\n", "data\n", "event: message_start\n"),
    ]
)
WRECK = st.lists(TOKENS, max_size=30).map(lambda tokens: "".join(tokens).encode())


def changed(stream: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    for place, length, new in changes:
        stream = stream[: place % (len(stream) + 1)] + new + stream[place % (len(stream) + 1) + length :]
    return stream


CHANGES = st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 20), WRECK | st.binary(max_size=9)), max_size=3)
ORIGINALS = [b"".join(NORMAL), b"".join(ITERATIONS), b"".join(RESPONSE), of(MESSAGE), of(ANSWER), of(REQUEST)]
BODY = st.one_of(
    st.binary(max_size=200), WRECK, STREAM, st.builds(changed, st.sampled_from(ORIGINALS) | STREAM, CHANGES)
)


@given(BODY, st.sampled_from(FILLERS), st.sampled_from(LINE_ENDS))
@settings(max_examples=1000, deadline=None)
def test_any_bytes_are_filled_at_their_length(body: bytes, fill: Callable[[bytes], bytes], line_end: bytes) -> None:
    filled(body.replace(b"\n", line_end), fill)


@given(STREAM, st.sampled_from(LINE_ENDS), st.integers(0, 40))
@settings(max_examples=500, deadline=None)
def test_generated_events_have_the_same_verdict_filled(stream: bytes, line_end: bytes, lost: int) -> None:
    body = stream.replace(b"\n", line_end)
    body = body[: len(body) - lost]
    assert judged(filled(body)) == judged(body)


@given(BODY)
@settings(max_examples=1500, deadline=None)
@example(b'data: "a"usage"b"')
@example(b'{"a"usage"b"')
@example(b'{"content":"say \\"usage"')
@example(b'data: {"text":"say \\"usage"}}\n\ndata: {"text":"say \\\\\\"usage":{}\n\n')
@example(b'data: {"type":"error","text":"content_block_start"}\n\n')
@example(b'data: {"type":"error","input":{"content_block_stop":5}}\n\n')
@example(b'data: {"type":"message_delta","usage":{"output_tokens":5},"text":"\\q"}\n\n')
@example(b'data: {"type":"message_delta","usage":{"output_tokens":5},"text":"\x01"}\n\n')
@example(b'data: \xef\xbb\xbf{"type":"message_delta","usage":{"output_tokens":5}}\n\n')
@example(b'data: {"type":"message_delta","usage":{"output_tokens":NaN},"input":[NaN,-Infinity]}\n\n')
@example(b'data: {"type":"message_delta","us\\u0061ge":{"output_tokens":5}}\n\n')
@example(b'data: {"type":"content_block_delta","text":"a message_ b","usage":5\n\n')
@example(b'{"content":"  ","stop_reason":"refusal","usage":{"output_tokens":5}}')
@example(b'{"content":[{"input":{"usage":5}}')
@example(b'event: message_delta\ndata: {"usage":{"output_tokens":5},"delta":{"stop_reason":"end_turn"}} x\n\n')
def test_whatever_is_broken_has_the_same_verdict_filled(body: bytes) -> None:
    assume(decoder_for("", body[:6]) is None)  # one that is still compressed is for the caller to decode
    assert told(filled(body)) == told(body)


LONG = "x y " * (EVENT_LIMIT // 4)
OVERSIZED = [
    b"data: " + of({"type": "odd", "text": f"an error {LONG}"}) + b"\n\n",
    b"data: " + of({"type": "odd", "text": f"{LONG} a message_ behind the limit"}) + b"\n\n",
    b"data: " + of({"type": "content_block_delta", "text": f"a message_ before {LONG}"}) + b"\n\n",
    b"data: " + of({"type": "content_block_delta", "text": f"{LONG} no marker"}) + b"\n\n",
    event("content_block_start", text=f"an error, a message_ {LONG}"),
    b"<html><p>error\n" + f"{LONG}\n".encode() * 2,
    b"<html><p>no marker\n" + f"{LONG}\n".encode() * 2,
    event("message_delta", usage={"output_tokens": 5}, text=LONG),
    b"data: " + of({"text": f"error {LONG}"}) + b"\nevent: content_block_delta\n\n",
]


@pytest.mark.parametrize("body", OVERSIZED, ids=range(len(OVERSIZED)))
def test_an_event_longer_than_the_reader_keeps_has_the_same_verdict_filled(body: bytes) -> None:
    whole = start(START_USAGE) + body
    assert judged(filled(whole)) == judged(whole)


def test_the_oversized_events_are_of_both_kinds() -> None:
    reasons = {judged(start(START_USAGE) + body)[0].reason for body in OVERSIZED}
    assert reasons == {Reason.MALFORMED_USAGE, Reason.NO_USAGE_DATA}


@pytest.fixture(params=STREAMS or [None], ids=lambda path: path.stem if path else "none")
def recorded(request: pytest.FixtureRequest) -> bytes:
    if request.param is None:
        pytest.skip("the folder of recorded streams is missing")
    return request.param.read_bytes().replace(b"\r\n", b"\n")


def versions(stream: bytes) -> Iterator[bytes]:
    """A stream whole and cut, with each kind of line end, and without the names of its events."""
    generator = random.Random("cut")
    for line_end in LINE_ENDS:
        whole = stream.replace(b"\n", line_end)
        yield whole
        yield re.sub(rb"event: [^\r\n]*(?:\r\n?|\n)", b"", whole)
        yield from (whole[: generator.randrange(len(whole))] for _ in range(6))


def test_a_recorded_stream_has_the_same_verdict_filled(recorded: bytes) -> None:
    for body in versions(recorded):
        assert judged(filled(body)) == judged(body)


TEXTS = re.compile(
    rb'"(?:text|thinking|partial_json|signature|cited_text|url|title|encrypted_content)": ?"(?!")([^"]*)'
)


def test_of_a_recorded_stream_no_text_is_left(recorded: bytes) -> None:
    """What stays of texts are blanks, and the words that the reader looks for."""
    left = b"".join(TEXTS.findall(filled(recorded))).translate(None, b"x \t")
    assert left.replace(b"\\", b"") == b""


def test_a_filled_stream_is_complete_where_the_original_is() -> None:
    assert judged(filled(b"".join(NORMAL)))[0].state is State.COMPLETE


# What is large or deep.

MANY = 5_000_000
LARGE = {
    "image": b'{"messages":[{"content":[{"source":{"data":"' + b"A" * 30_000_000 + b'"}}]}]}',
    "image, cut": b'data: {"type":"x","data":"' + b"A" * 30_000_000,
    "escapes": b'{"text":"' + b"\\n" * MANY + b'"}',
    "bad escapes": b'data: "' + b"\\q" * MANY,
    "backslashes": b'data: "' + b"\\" * (MANY + 1),
    "blanks": b"data:" + b" " * MANY,
    "digits": b"data: " + b"9" * MANY,
    "junk": b"A" * MANY,
    "lines": b'data: "\n' * (MANY // 20),
    "blank lines": b"\n" * (MANY // 10),
    "quotes": b'data: "' + b'"' * (MANY // 10),
    "brackets": b"data: " + b"[" * (MANY // 10) + b"}]" * (MANY // 20),
}


@pytest.mark.parametrize("name", LARGE)
def test_a_large_body_is_filled_in_linear_time(name: str) -> None:
    """What is quadratic does not end here."""
    for fill in FILLERS:
        assert len(fill(LARGE[name])) == len(LARGE[name])


@pytest.mark.parametrize("fill", FILLERS)
@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"content":', b"}"), (b'{"input":', b"}")])
def test_json_of_any_depth_is_filled(fill: Callable[[bytes], bytes], opening: bytes, closing: bytes) -> None:
    body = b'{"content":' + opening * 100_000 + b'"secret"' + closing * 100_000 + b"}"
    out = filled(body, fill)
    assert out.count(b'"xxxxxx"') == 1
    assert out.startswith(b'{"content":' + opening)
    assert out.endswith(closing + b"}")
