"""What the reader judges by is kept where it looks for it, and only there."""

import re

import pytest
from usage_ledger.messages.filler import fill_request, fill_response
from usage_ledger.messages.sse import EVENT_LIMIT

from tests.messages.filling import ANSWER, RESPONSE, filled, judged, of, told


def test_a_filled_stream_keeps_usage_byte_for_byte() -> None:
    body = b"".join(RESPONSE)
    found = re.compile(rb'"usage": ?\{[^}]*+(?:\}[^}]*+)??\}')
    assert found.findall(body)
    assert found.findall(filled(body)) == found.findall(body)


USAGE = b'{"a b": [1, NaN, {"n": -5, "speed": "fast", "role": "user"}], "o": "many", "input": {"k": null}}'
KEPT = b'{"xxx": [1, NaN, {"n": -5, "speed": "fast", "role": "xxxx"}], "o": "xxxx", "input": {"k": null}}'
GONE = b'{"xxx": [1, 111, {"x": -1, "xxxxx": "xxxx", "xxxx": "xxxx"}], "x": "xxxx", "xxxxx": {"x": null}}'
WHERE = {
    # name: (body, as a JSON answer, as the data of an event); a request has neither usage nor an id of its own.
    "an id": (b'{"id": "m"}', b'{"id": "m"}', b'{"id": "x"}'),
    "an id that is not plain": (b'{"id": "a b"}', b'{"id": "xxx"}', b'{"id": "xxx"}'),
    "a message's id": (b'{"message": {"id": "m"}}', b'{"message": {"id": "x"}}', b'{"message": {"id": "m"}}'),
    "an error's id": (b'{"error": {"id": "m"}}', b'{"error": {"id": "x"}}', b'{"error": {"id": "x"}}'),
    "a block's id": (b'{"content": [{"id": "m"}]}', b'{"content": [{"id": "x"}]}', b'{"content": [{"id": "x"}]}'),
    "a list of ids": (b'{"message": [{"id": "m"}]}', b'{"message": [{"xx": "x"}]}', b'{"message": [{"id": "x"}]}'),
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
        b'{"content": [{"usage": %s}]}' % USAGE,
        b'{"content": [{"usage": %s}]}' % GONE,
        b'{"content": [{"usage": %s}]}' % GONE,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WHERE)
def test_ids_and_usage_are_kept_where_the_reader_looks(name: str) -> None:
    """In usage stay names that a field can have, numbers and literals, and of texts the labels that usage has."""
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
