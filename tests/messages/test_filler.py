"""What is filled has the structure that it had, and nothing that anybody wrote."""

import json
import random
from collections.abc import Callable

import pytest
from usage_ledger.messages import read_request
from usage_ledger.messages.filler import fill_key, fill_request, fill_response, fill_text

from tests.messages.filling import ANSWER, REQUEST, RESPONSE, filled, of, secret, told

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


@pytest.mark.parametrize("name", ["sk-ant-api03-LEAKEDKEYLEAKEDKEY", "my secret prompt words", "Secret", "a" * 60])
def test_no_text_is_left_that_stands_where_a_field_of_usage_has_its_name(name: str) -> None:
    usage = {"input_tokens": 5, name: 1, "server_tool_use": {name: True, "web_search_requests": 1}}
    body = json.dumps({"type": "message", "usage": usage}).encode()
    result = fill_response(body)
    assert name.encode() not in result
    assert len(result) == len(body)
    assert b'"web_search_requests": 1' in result
    assert told(result) == told(body)


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
    (b'{"type": ["text"], "model": {"type": "m"}}', b'{"type": ["xxxx"], "model": {"xxxx": "x"}}'),
    (b'{"type": "%s"}' % (b"a" * 65), b'{"type": "%s"}' % (b"x" * 65)),
    ('{"type": "tëxt", "model": "é"}'.encode(), b'{"type": "xxxxx", "model": "xx"}'),
    (b'{"model": "eu.claude@2[1m]/x:0"}', b'{"model": "eu.claude@2[1m]/x:0"}'),
    (rb'{"t\u0079pe": "te\u0078t", "s\u0079pe": 1}', rb'{"t\u0079pe": "te\u0078t", "xxxxxxxxx": 1}'),
    (b'{"type": "a" "b" 7, "max_tokens": 5 7}', b'{"type": "a" "x" 1, "max_tokens": 5 1}'),
    (b'{"role": "user", "messages": [{"role": "wizard"}]}', b'{"role": "user", "messages": [{"role": "xxxxxx"}]}'),
    # Where the API has no object stands one of the caller's own, as what a tool gave back.
    (
        b'{"content": [{"type": "tool_result", "content": {"type": "invoice", "model": "m", "n": [{"type": "t"}]}}]}',
        b'{"content": [{"type": "tool_result", "content": {"xxxx": "xxxxxxx", "xxxxx": "x", "x": [{"xxxx": "x"}]}}]}',
    ),
    (b'{"text": {"type": "t"}, "data": [{"type": "t"}]}', b'{"text": {"xxxx": "x"}, "data": [{"xxxx": "x"}]}'),
    # Nor is a label one where the API has it not, nor a type of content that it has not.
    (
        b'{"content": [{"type": "web_search_tool_result"}, {"type": "text", "ttl": "5m"}, {"type": "invoice"}]}',
        b'{"content": [{"type": "web_search_tool_result"}, {"type": "text", "ttl": "xx"}, {"type": "xxxxxxx"}]}',
    ),
    (
        b'{"system": [{"category": "cancer", "cache_control": {"type": "ephemeral", "ttl": "1h", "media_type": "a"}}]}',
        b'{"system": [{"category": "xxxxxx", "cache_control": {"type": "ephemeral", "ttl": "1h", "media_type": "x"}}]}',
    ),
    (
        b'{"content": [{"type": "text", "model": "m", "temperature": 42}], "tools": [{"model": "m"}], "model": "m"}',
        b'{"content": [{"type": "text", "model": "x", "temperature": 11}], "tools": [{"model": "m"}], "model": "m"}',
    ),
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
    (b'{"source": {"type": [5}, "index": 5, "type": "t"}}', b'{"source": {"type": [1}, "xxxxx": 1, "xxxx": "x"}}'),
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
