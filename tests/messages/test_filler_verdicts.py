"""A filled body has the size and the verdict of the original, whatever is wrong with it."""

import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from usage_ledger.messages import Reason, State
from usage_ledger.messages.decoding import decoder_for
from usage_ledger.messages.sse import EVENT_LIMIT

from scripts.fake_console import ITERATIONS, MESSAGE, NORMAL, START_USAGE, event, start
from tests.messages.filling import ANSWER, FILLERS, LINE_ENDS, REQUEST, RESPONSE, filled, judged, of, told
from tests.messages.test_reader import STREAM

CORPUS = Path(__file__).parents[3] / "shared" / "corpus"
STREAMS = sorted(CORPUS.glob("*.sse"))


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
@example(b'{"usage":{"\x80input_tokens":9,"output_tokens":7},"stop_reason":"end_turn"}')
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
