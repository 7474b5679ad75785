"""Any bytes in any pieces give the same verdict as the whole, in bounded memory, and never an exception."""

import gzip
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import brotli
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from usage_ledger.messages import Ending, MessageReader, Reason, State, Verdict
from usage_ledger.messages.reader import JSON_LIMIT

from scripts.fake_console import ITERATIONS, MESSAGE, NORMAL, START_USAGE, STOP, delta, event, start, text

ROOT = Path(__file__).parents[2]
ENCODINGS = ["", "gzip", "deflate", "br", "zstd", "gzip, br", "identity", "?"]
ENDINGS = list(Ending)
STATUSES = [None, 200, 204, 302, 400, 529]


def judge(
    pieces: list[bytes], ending: Ending = Ending.FINISHED, status: int | None = 200, encoding: str = ""
) -> Verdict:
    reader = MessageReader(encoding)
    for piece in pieces:
        reader.feed(piece)
    reader.finish(clean=ending is Ending.FINISHED)
    return reader.verdict(ending, status)


def cut(body: bytes, marks: list[int]) -> list[bytes]:
    places = sorted(mark % (len(body) + 1) for mark in marks)
    return [body[a:b] for a, b in zip([0, *places], [*places, len(body)], strict=True)]


MARKS = st.lists(st.integers(0, 100_000), max_size=12)
COUNT = st.one_of(
    st.integers(0, 10_000), st.sampled_from([None, -1, True, 1.5, 500.0, 1e30, "12", [], {}, 10**20, float("nan")])
)
USAGE = st.one_of(
    st.sampled_from([None, {}, [], "usage", 5]),
    st.dictionaries(
        st.sampled_from(["input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"]),
        COUNT,
    ),
    st.fixed_dictionaries(
        {
            "output_tokens": COUNT,
            "iterations": st.lists(
                st.fixed_dictionaries({"type": st.just("message"), "output_tokens": COUNT}), max_size=3
            ),
        }
    ),
)
WORDS = st.sampled_from(
    ["hello", "Grüße 模型 😀", 'an error in "usage"', "message_delta", "event: error\n\ndata: x", "\u2028"]
)
EVENT = st.one_of(
    st.builds(lambda usage, number: start(usage, f"msg_{number}"), USAGE, st.integers(1, 2)),
    st.builds(
        lambda usage, reason, category: delta(usage, reason, stop_details={"category": category}),
        USAGE,
        st.sampled_from([None, "end_turn", "refusal"]),
        st.sampled_from([None, "bio", "cyber"]),
    ),
    st.builds(lambda usage: event("message_stop", usage=usage), USAGE),
    st.builds(lambda usage: event("ping", usage=usage), USAGE),
    st.builds(lambda words: b"".join(text(words)), WORDS),
    st.builds(
        lambda words: (
            b"data: "
            + json.dumps({"type": "content_block_delta", "text": words}, ensure_ascii=False).encode()
            + b"\n\n"
        ),
        WORDS,
    ),
    st.sampled_from(
        [
            STOP,
            event("error", error={"type": "overloaded_error"}),
            b": comment\n\n",
            b"\n",
            b"\xef\xbb\xbf",
            b"data: [DONE]\n\n",
            b"event: message_delta\ndata: {\n\n",
            b'data: {"type":"message_delta",\ndata: "usage":{"output_tokens":3}}\n\n',
            b"\0\n\n",
        ]
    ),
)
STREAM = st.lists(EVENT, max_size=8).map(b"".join)


@given(STREAM, MARKS, st.sampled_from([b"\n", b"\r\n", b"\r"]), st.integers(0, 40), st.sampled_from(ENDINGS))
@settings(max_examples=300, deadline=None)
def test_generated_events_give_the_same_verdict_whole_and_cut(
    stream: bytes, marks: list[int], line_end: bytes, lost: int, ending: Ending
) -> None:
    stream = stream.replace(b"\n", line_end)
    stream = stream[: len(stream) - lost] if lost else stream
    whole = judge([stream], ending)
    assert judge(cut(stream, marks), ending) == whole
    assert judge([stream[at : at + 1] for at in range(len(stream))], ending) == whole


@given(
    STREAM,
    MARKS,
    st.sampled_from(
        [
            ("gzip", gzip.compress),
            ("", gzip.compress),
            ("br", brotli.compress),
            ("zstd", zstandard.compress),
            ("gzip, br", lambda data: brotli.compress(gzip.compress(data))),
        ]
    ),
)
@settings(max_examples=200, deadline=None)
def test_encoded_events_give_the_verdict_of_the_plain_ones(stream: bytes, marks: list[int], coding: tuple) -> None:
    label, encode = coding
    assert judge(cut(encode(stream), marks), encoding=label) == judge([stream])


@given(
    st.lists(st.binary(max_size=300), max_size=8),
    st.sampled_from(ENCODINGS),
    st.sampled_from(ENDINGS),
    st.sampled_from(STATUSES),
)
@settings(max_examples=500, deadline=None)
def test_any_bytes_give_a_verdict_and_never_an_exception(
    pieces: list[bytes], encoding: str, ending: Ending, status: int | None
) -> None:
    verdict = judge(pieces, ending, status, encoding)
    assert verdict.state is not State.PENDING
    json.dumps(verdict.metadata)


@given(STREAM, st.binary(max_size=20), st.integers(0, 5000), MARKS, st.sampled_from(ENCODINGS))
@settings(max_examples=300, deadline=None)
def test_a_stream_with_damage_gives_a_verdict(
    stream: bytes, damage: bytes, place: int, marks: list[int], encoding: str
) -> None:
    at = place % (len(stream) + 1)
    verdict = judge(cut(stream[:at] + damage + stream[at:], marks), encoding=encoding)
    assert verdict.counts.total_tokens >= 0


HEADS = [
    b"\x1f\x8b\x08",
    b"\x28\xb5\x2f\xfd",
    b"\x78\x9c",
    b"{",
    b'{"usage":',
    b"event: message_delta\ndata: ",
    b"\xef\xbb\xbf",
]


@given(st.sampled_from(HEADS), st.binary(max_size=200), MARKS, st.sampled_from(ENCODINGS))
@settings(max_examples=500, deadline=None)
def test_bytes_that_begin_like_something_give_one_verdict_in_any_pieces(
    head: bytes, rest: bytes, marks: list[int], encoding: str
) -> None:
    assert judge(cut(head + rest, marks), encoding=encoding) == judge([head + rest], encoding=encoding)


@pytest.mark.parametrize(
    "body",
    [
        b'{"usage":' * 50_000,
        b"[" * 100_000,
        b'data: {"type":"message_delta","usage":' + b"[" * 100_000 + b"\n\n",
        b'event: message_delta\ndata: {"usage":' + b'{"a":' * 20_000 + b"1" + b"}" * 20_001 + b"\n\n",
        b'{"usage":{"output_tokens":' + b"9" * 100_000 + b"}}",
        b'event: message_delta\ndata: {"usage":{"output_tokens":3,"a":"\\ud800"},'
        b'"delta":{"stop_reason":"\\udfff"}}\n\n',
        b'event: message_delta\ndata: {"usage":{"output_tokens":3,"a":"\xff\xfe"}}\n\n',
        b"event: message_start\ndata: null\n\nevent: message_delta\ndata: 5\n\n",
        b'event: message_start\ndata: {"message":[],"usage":[]}\n\nevent: message_delta\ndata: {"delta":[]}\n\n',
    ],
    ids=lambda body: repr(body[:30]),
)
def test_hostile_bodies_give_a_verdict(body: bytes) -> None:
    for pieces in ([body], cut(body, list(range(0, len(body), 997)))):
        assert judge(pieces).state in (State.MISSING, State.PARTIAL, State.COMPLETE)


def test_a_verdict_can_be_asked_at_any_moment() -> None:
    reader = MessageReader()
    states = []
    for piece in NORMAL:
        reader.feed(piece)
        states.append(reader.verdict(Ending.PROXY_STOPPED, 200).state)
    assert states[0] is State.PARTIAL
    assert states[-1] is State.COMPLETE
    reader.finish(clean=True)
    assert reader.verdict(Ending.FINISHED, 200) == judge(NORMAL)


def test_output_begins_with_the_first_content_block_delta() -> None:
    reader = MessageReader()
    begun = []
    for piece in NORMAL:
        reader.feed(piece)
        begun.append(reader.output_begun)
    assert begun.index(True) == next(n for n, piece in enumerate(NORMAL) if b"content_block_delta" in piece)


def test_words_in_the_text_are_not_taken_for_events() -> None:
    words = 'event: error data: {"type":"message_delta","usage":{"output_tokens":999}} message_stop content_block_delta'
    unnamed = event("content_block_delta", delta={"type": "text_delta", "text": words}).split(b"\n", 1)[1]
    stream = [start(START_USAGE), *text(words), unnamed, delta({"output_tokens": 42}), STOP]
    verdict = judge(stream)
    assert (verdict.state, verdict.counts.output_tokens) == (State.COMPLETE, 42)
    assert judge(stream[:-2]).counts.output_tokens == 1


def test_a_stop_sequence_named_like_an_event_is_only_a_word() -> None:
    delta_data = (
        b'data: {"type":"message_delta","delta":{"stop_reason":"stop_sequence","stop_sequence":"content_block_stop"},'
    )
    verdict = judge([start(START_USAGE), delta_data + b'"usage":{"output_tokens":42}}\n\n'])
    assert (verdict.state, verdict.stop_reason) == (State.COMPLETE, "stop_sequence")


@pytest.mark.parametrize("strip", [b"event: ", b"data: "], ids=["no event lines", "no space after data"])
def test_looser_framing_of_relays_gives_the_same_verdict(strip: bytes) -> None:
    lines = b"".join(ITERATIONS).split(b"\n")
    if strip == b"event: ":
        lines = [line for line in lines if not line.startswith(strip)]
    else:
        lines = [b"data:" + line.removeprefix(strip) if line.startswith(strip) else line for line in lines]
    assert judge([b"\n".join(lines)]) == judge(ITERATIONS)


def test_a_json_answer_is_read_in_any_pieces() -> None:
    body = json.dumps({**MESSAGE, "content": [{"type": "text", "text": "Grüße 😀"}]}, ensure_ascii=False).encode()
    whole = judge([body])
    assert whole.state is State.COMPLETE
    assert judge([body[at : at + 1] for at in range(len(body))]) == whole
    assert judge([b"\r\n", b" ", body]) == whole
    assert judge([gzip.compress(body)]) == whole
    assert judge([brotli.compress(body)], encoding="br") == whole


def test_a_json_answer_beyond_the_limit_is_unreadable() -> None:
    piece = b"x" * 1_000_000
    verdict = judge([b'{"a":"', *([piece] * (JSON_LIMIT // len(piece) + 1)), b'"}'])
    assert (verdict.state, verdict.reason) == (State.MISSING, Reason.UNREADABLE_BODY)


def test_reading_a_long_stream_takes_bounded_memory() -> None:
    words = b"".join(text("word " * 100))
    reader = MessageReader()
    reader.feed(start(START_USAGE))
    tracemalloc.start()
    for _ in range(500):
        reader.feed(words)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_giving_up_keeps_what_was_read_and_reads_no_more() -> None:
    reader = MessageReader()
    reader.feed(NORMAL[0])
    reader.give_up()
    for piece in NORMAL[1:]:
        reader.feed(piece)
    reader.finish(clean=True)
    verdict = reader.verdict(Ending.FINISHED, 200)
    assert (verdict.state, verdict.reason) == (State.PARTIAL, Reason.UNREADABLE_BODY)
    assert reader.unreadable
    assert reader.usage_begun


def test_giving_up_within_the_first_bytes_reads_no_more() -> None:
    reader = MessageReader()
    reader.feed(b'{"us')
    reader.give_up()
    reader.finish(clean=True)
    assert reader.verdict(Ending.FINISHED, 200).reason is Reason.UNREADABLE_BODY


def test_this_room_loads_neither_mitmproxy_nor_a_database() -> None:
    """Beside the standard library only msgspec, brotli and zstandard are imported."""
    program = (
        "import sys; before = set(sys.modules); import usage_ledger.messages; "
        "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before} - sys.stdlib_module_names)); "
        "print(sorted({'sqlite3', 'mitmproxy', 'click', 'asyncio'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT / "addon",
        capture_output=True,
        text=True,
        check=True,
    )
    packages, forbidden = done.stdout.splitlines()
    # msgspec itself imports typing_extensions where it is installed.
    allowed = {"usage_ledger", "msgspec", "brotli", "_brotli", "zstandard", "_cffi_backend", "typing_extensions"}
    assert set(packages.split()) <= allowed
    assert forbidden == "[]"
