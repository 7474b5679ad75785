"""What relays and look-alikes send, read as one message: nothing is lost, nothing doubled, nothing guessed.

Each case is read whole and byte by byte; its columns follow from the rules of the contract alone.
"""

import gzip
import json
import tracemalloc
import zlib
from typing import Any

import brotli
import pytest
import zstandard
from usage_ledger.messages import Ending, MessageReader, Reason, State, Verdict, read_request
from usage_ledger.messages.sse import EVENT_LIMIT

from scripts.fake_console import MESSAGE, NORMAL, START_USAGE, STOP, delta, event, start, text

COMPLETE, MISSING = State.COMPLETE, State.MISSING
TEXT = text("hello there")
JSON = json.dumps(MESSAGE).encode()


def named(name: str, **fields: Any) -> bytes:
    """An event whose name and data may disagree."""
    return f"event: {name}\ndata: {json.dumps(fields)}\n\n".encode()


def unnamed(**fields: Any) -> bytes:
    return f"data: {json.dumps(fields)}\n\n".encode()


def anonymous_start(usage: dict[str, Any]) -> bytes:
    return unnamed(type="message_start", message={"usage": usage})


def both(in_: int, out: int) -> dict[str, int]:
    return {"input_tokens": in_, "output_tokens": out}


def entry(kind: str, in_: int, out: int) -> dict[str, Any]:
    return {"type": kind, **both(in_, out)}


REFUSED = {"stop_details": {"type": "refusal", "category": "cyber"}}
LONG = "x" * (EVENT_LIMIT + 1000)

START = start(both(10, 1))
DONE = delta({"output_tokens": 20})


def misnamed(name: str, kind: str = "message_delta") -> bytes:
    """The final delta, under another name than its type."""
    return named(name, type=kind, delta={"stop_reason": "end_turn"}, usage={"output_tokens": 20})


# name: (pieces, "state reason input output")
CASES: dict[str, tuple[list[bytes], str]] = {
    # Usage before the start.
    "usage in a ping before the start": (
        [event("ping", usage={"output_tokens": 0}), START, delta(both(0, 20)), STOP],
        "complete - 10 20",
    ),
    "the delta before the start": ([delta(both(12, 20)), START, STOP], "complete - 12 20"),
    "a start without usage, then one with": ([start(), START, delta(both(0, 20)), STOP], "complete - 10 20"),
    "a repeated start": ([START, start(both(99, 9)), DONE, STOP], "complete - 10 20"),
    # The placeholder.
    "0 in the delta replaces the start's placeholder": ([START, delta({"output_tokens": 0})], "complete - 10 0"),
    "so it does after iterations have told the output": (
        [START, delta({"iterations": [entry("message", 0, 0)]}, None), delta({"output_tokens": 0})],
        "complete - 10 0",
    ),
    # Iterations.
    "zeros in later iterations erase nothing": (
        [
            START,
            delta({"output_tokens": 20, "iterations": [entry("compaction", 500, 5), entry("message", 10, 20)]}, None),
            delta({"output_tokens": 20, "iterations": [entry("compaction", 0, 0), entry("message", 0, 20)]}),
        ],
        "complete - 510 25",
    ),
    "later iterations go on where the earlier ones ended": (
        [
            delta({"output_tokens": 20, "iterations": [entry("compaction", 500, 5)]}, None),
            delta({"output_tokens": 20, "iterations": [entry("compaction", 500, 5), entry("message", 10, 20)]}),
        ],
        "complete - 510 25",
    ),
    "an entry of another type replaces the one before": (
        [
            delta({"output_tokens": 20, "iterations": [entry("compaction", 500, 5)]}, None),
            delta({"output_tokens": 20, "iterations": [entry("message", 10, 20)]}),
        ],
        "complete - 10 20",
    ),
    "a hundred iterations": (
        [delta({"output_tokens": 1, "iterations": [entry("message", 1, 1)] * 100})],
        "complete - 100 100",
    ),
    # Several messages.
    "two answers without ids": (
        [anonymous_start(both(10, 1)), DONE, STOP, anonymous_start(both(30, 1)), delta({"output_tokens": 40}), STOP],
        "complete multiple_messages 40 60",
    ),
    "an id that is told late": (
        [delta(both(10, 20), None), start(), delta({"output_tokens": 21}), STOP],
        "complete - 10 21",
    ),
    # Usage in odd places.
    "usage in an error event": (
        [event("error", usage=both(5, 9), error={"type": "x"})],
        "partial stream_error 5 9",
    ),
    "usage of the message in the stop": (
        [START, event("message_stop", message={"usage": both(10, 20)})],
        "complete - 10 20",
    ),
    "usage inside the delta": (
        [START, event("message_delta", delta={"stop_reason": "end_turn", "usage": {"output_tokens": 20}})],
        "complete - 10 20",
    ),
    # Names and types that disagree: the data is what the SDK acts on.
    "a delta named ping": ([START, misnamed("ping")], "complete - 10 20"),
    "a delta named message_start": ([START, misnamed("message_start")], "complete - 10 20"),
    "a delta named content_block_stop": ([START, misnamed("content_block_stop")], "complete - 10 20"),
    "an error named ping": (
        [START, named("ping", type="error", error={"type": "overloaded_error"})],
        "partial stream_error 10 1",
    ),
    "a type nobody knows under a known name": ([START, misnamed("message_delta", "?")], "complete - 10 20"),
    # The stop.
    "a stop that says [DONE]": ([START, DONE, b"event: message_stop\ndata: [DONE]\n\n"], "complete - 10 20"),
    "a stop with empty data": (
        [START, delta({"output_tokens": 20}, None), b"event: message_stop\ndata:\n\n"],
        "complete - 10 20",
    ),
    "[DONE] at the end": ([*NORMAL, b"data: [DONE]\n\n"], "complete - 12 42"),
    # Damage.
    "unnamed usage that is no JSON": (
        [START, b'data: {"type":"x","usage":{"output_tokens":\n\n', STOP],
        "partial malformed_usage 10 1",
    ),
    "bytes that are no UTF-8 beside the usage": (
        [START, delta({"output_tokens": 20}, stop_sequence="@").replace(b"@", b"\xff"), STOP],
        "complete - 10 20",
    ),
    "a lone surrogate beside the usage": (
        [START, delta({"output_tokens": 20}, stop_sequence="\ud83d"), STOP],
        "complete - 10 20",
    ),
    "NaN beside the usage": (
        [START, delta({"output_tokens": 20, "ratio": float("nan")}), STOP],
        "complete - 10 20",
    ),
    "bytes that are no UTF-8 within a JSON answer's usage": (
        [b'{"usage":{"input_tokens":10,"output_tokens":20,"a":"\xff"},"stop_reason":"end_turn"}'],
        "complete - 10 20",
    ),
    "NaN as a count of a JSON answer": (
        [b'{"usage":{"input_tokens":10,"output_tokens":NaN},"stop_reason":"end_turn"}'],
        "partial malformed_usage 10 0",
    ),
    "NaN as a count": ([START, delta({"output_tokens": float("nan")}), STOP], "partial malformed_usage 10 1"),
    "a refusal beside an event that cannot be read": (
        [START, b'data: {"usage":\n\n', delta({"output_tokens": 0}, "refusal", **REFUSED), STOP],
        "partial malformed_usage 10 0",
    ),
    # Output that has begun.
    "a refusal after output, where an event before quotes the word": (
        [
            START,
            unnamed(type="ping", x="content_block_delta"),
            *TEXT,
            delta({"output_tokens": 20}, "refusal", **REFUSED),
            STOP,
        ],
        "complete - 10 20",
    ),
    "a refusal before output, where an event quotes the word": (
        [START, unnamed(type="ping", x="content_block_delta"), delta({"output_tokens": 0}, "refusal", **REFUSED), STOP],
        "none - 0 0",
    ),
    # Huge events.
    "a start behind a long comment": (
        [b": " + LONG.encode() + b"\n" + anonymous_start(both(10, 1)), DONE, STOP],
        "partial malformed_usage 0 20",
    ),
    "a long unnamed delta whose type comes late": (
        [START, unnamed(padding=LONG, type="message_delta", usage={"output_tokens": 20}), STOP],
        "partial malformed_usage 10 1",
    ),
    "a long content block": (
        [START, unnamed(type="content_block_start", content_block={"text": LONG + "usage message_"}), DONE, STOP],
        "complete - 10 20",
    ),
}


def judge(pieces: list[bytes], encoding: str = "", ending: Ending = Ending.FINISHED) -> Verdict:
    reader = MessageReader(encoding)
    for piece in pieces:
        reader.feed(piece)
    reader.finish(clean=ending is Ending.FINISHED)
    return reader.verdict(ending, 200)


@pytest.mark.parametrize("name", CASES)
def test_odd_streams(name: str) -> None:
    pieces, expected = CASES[name]
    body = b"".join(pieces)
    step = 1 if len(body) < 10_000 else 997
    for cut in ([body], [body[at : at + step] for at in range(0, len(body), step)]):
        verdict = judge(cut)
        counts = verdict.counts
        told = f"{verdict.state} {verdict.reason or '-'} {counts.input_tokens} {counts.output_tokens}"
        assert told == expected


def test_a_repeated_start_does_not_rename_the_model() -> None:
    verdict = judge([start(both(1, 1), model="one"), start(both(1, 1), model="two"), delta({"output_tokens": 2}), STOP])
    assert verdict.model == "one"


@pytest.mark.parametrize(
    ("first", "later", "total", "unknown"),
    [
        ((100, 100, 0), (100, 0, 100), 100, True),
        ((0, 60, 40), (None, None, None), 100, False),
        ((None, 60, 40), (None, None, None), 100, False),
        ((100, 60, 0), (None, None, None), 100, True),
        ((100, 60, 40), (None, None, None), 100, False),
    ],
)
def test_a_cache_creation_total_is_what_upstream_told(
    first: tuple[int | None, ...], later: tuple[int | None, ...], total: int, unknown: bool
) -> None:
    def usage(told: tuple[int | None, ...]) -> dict[str, Any]:
        split = {"ephemeral_5m_input_tokens": told[1], "ephemeral_1h_input_tokens": told[2]}
        return {"cache_creation_input_tokens": told[0], "cache_creation": split, "output_tokens": 3}

    verdict = judge([start(usage(first)), delta(usage(later)), STOP])
    assert verdict.counts.cache_creation_input_tokens == total
    assert verdict.metadata.get("_cache_split_unknown", False) is unknown


# Answers that are broken behind what matters.

ENCODERS = {"gzip": gzip.compress, "br": brotli.compress, "zstd": zstandard.compress, "deflate": zlib.compress}
JUNK = [b"\n", b"\0", b"\x1fjunk", b"HTTP/1.1 200 OK", zstandard.FRAME_HEADER + b"junk" * 9]


@pytest.mark.parametrize("junk", JUNK, ids=["line end", "NUL", "like gzip", "text", "like zstd"])
@pytest.mark.parametrize("body", [JSON, b"".join(NORMAL).removesuffix(b"\n\n")], ids=["JSON", "events"])
@pytest.mark.parametrize("encoding", ENCODERS)
def test_bytes_behind_the_end_of_an_encoded_body_say_nothing(encoding: str, body: bytes, junk: bytes) -> None:
    encoded = ENCODERS[encoding](body)
    for step in (1 << 30, 1, 7, len(encoded)):
        whole = encoded + junk
        verdict = judge([whole[at : at + step] for at in range(0, len(whole), step)], encoding)
        assert (verdict.state, verdict.reason) == (COMPLETE, None)


def test_a_json_answer_whose_checksum_is_wrong_is_read() -> None:
    encoded = bytearray(gzip.compress(JSON))
    encoded[-6] ^= 0xFF
    assert judge([bytes(encoded)], "gzip").state is COMPLETE


@pytest.mark.parametrize("encoding", ENCODERS)
def test_an_encoded_stream_that_breaks_off_at_a_clean_end_is_unreadable_and_not_malformed(encoding: str) -> None:
    body = b"".join([start(START_USAGE), *(TEXT * 200)])
    encoded = ENCODERS[encoding](body + delta({"output_tokens": 20}) + STOP)
    assert judge([encoded[:-12]], encoding).reason in (None, Reason.UNREADABLE_BODY)
    assert judge([encoded[: len(encoded) // 2]], encoding).reason is Reason.UNREADABLE_BODY


# Bounded work and memory, whatever arrives.

MANY = b"[" + b"{}," * 3_000_000 + b"{}]"


def memory_of(action: Any) -> int:
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("field", ["usage", "id", "stop_details", "content", "else"])
@pytest.mark.parametrize("odd", [b"1", b"NaN", b'"\\ud800"'], ids=["plain", "NaN", "lone surrogate"])
def test_a_json_answer_is_never_decoded_to_a_whole_tree(field: str, odd: bytes) -> None:
    fields = {**MESSAGE, field: "@"}
    body = json.dumps({**fields, "odd": "%"}).encode().replace(b'"@"', MANY).replace(b'"%"', odd)
    verdicts: list[Verdict] = []
    assert memory_of(lambda: verdicts.append(judge([body]))) < 8 * len(body)
    expected = (MISSING, Reason.MALFORMED_USAGE) if field == "usage" else (COMPLETE, None)
    assert (verdicts[0].state, verdicts[0].reason) == expected


def test_text_that_looks_like_no_number_does_not_break_an_answer_that_has_to_be_mended() -> None:
    text = {"type": "text", "text": "Is it [NaN, -Infinity]? \\", "id": "@"}
    body = json.dumps({**MESSAGE, "content": [text]}).replace('"@"', '"\\ud800"').encode()
    verdict = judge([body])
    assert (verdict.state, verdict.reason) == (COMPLETE, None)


def test_a_text_that_never_ends_is_gone_over_once() -> None:
    """Looked at anew from each of its quotes, a megabyte of it would hold the proxy up for an hour."""
    body = b'{"model":"m","x":NaN,"y":"' + b'\\"' * 500_000
    assert read_request(body).model is None
    assert judge([body]).state == MISSING


@pytest.mark.parametrize("field", ["model", "metadata", "stream", "messages"])
@pytest.mark.parametrize("odd", [b"1", b"NaN", b'"\\ud800"'], ids=["plain", "NaN", "lone surrogate"])
def test_nor_is_a_request(field: str, odd: bytes) -> None:
    fields = {"model": "claude", "stream": True, field: "@", "odd": "%"}
    body = json.dumps(fields).encode().replace(b'"@"', MANY).replace(b'"%"', odd)
    assert memory_of(lambda: read_request(body)) < 8 * len(body)
    assert read_request(body).model == (None if field == "model" else "claude")


def test_usage_that_grows_with_every_event_is_held_in_bounded_memory_and_keeps_its_counts() -> None:
    reader = MessageReader()

    def feed() -> None:
        reader.feed(start(both(10, 1)))
        for number in range(300):
            reader.feed(event("ping", usage={f"k{number}": {f"e{number}": [{}] * 20_000}}))
        reader.feed(delta({"output_tokens": 20, "service_tier": "standard"}))

    assert memory_of(feed) < 12_000_000
    reader.finish(clean=True)
    verdict = reader.verdict(Ending.FINISHED, 200)
    told = (verdict.state, verdict.counts.input_tokens, verdict.counts.output_tokens, verdict.service_tier)
    assert told == (COMPLETE, 10, 20, "standard")


def test_a_bomb_in_one_piece_stops_where_reading_stops() -> None:
    bomb = gzip.compress(b'{"content":"' + b"x" * 200_000_000)
    assert memory_of(lambda: judge([bomb], "gzip")) < 120_000_000
