"""Server-sent events are read by the WHATWG rules, however the bytes are framed and cut into chunks."""

import tracemalloc
from collections.abc import Callable, Iterable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from usage_ledger.messages import Ending, MessageReader, State, reader
from usage_ledger.messages.sse import EVENT_LIMIT, Event, EventReader

from scripts.fake_console import NORMAL, START_USAGE, STOP, delta, start, text

MARKERS = (b"message_", b'"usage"', b"error")
HINTS = (b"sage", b"error")
A = b"event: message_a\ndata: 1\n\n"
B = b"event: message_b\ndata: 2\n\n"
BOM = b"\xef\xbb\xbf"


def read(chunks: Iterable[bytes], ends: bool = True) -> list[tuple[bytes, bytes]]:
    """Read a stream; and once more behind the first output, from where on whole events are passed over at a glance."""
    pieces = list(chunks)
    found = read_behind(b"", pieces, ends)
    if not b"".join(pieces).startswith(BOM[:1]):  # which is one at the beginning alone
        assert read_behind(b"data: content_block_delta\n\n", pieces, ends) == found
    return found


def read_behind(first: bytes, chunks: Iterable[bytes], ends: bool) -> list[tuple[bytes, bytes]]:
    events: list[Event] = []
    reader = reading(events, lambda _event: bool(first))
    for chunk in (first, *chunks):
        reader.feed(chunk)
    if ends:
        reader.finish()
    return [(event.name, event.data) for event in events]


def reading(events: list[Event], is_it: Callable[[Event], bool] = lambda _event: False) -> EventReader:
    """Return a reader that tells `events` of what it finds."""
    return EventReader(events.append, MARKERS, HINTS, once=b"content_block_delta", is_it=is_it)


def test_each_marker_has_a_hint() -> None:
    for markers, hints in ((MARKERS, HINTS), (reader._MARKERS, reader._HINTS)):
        assert all(any(hint in marker for hint in hints) for marker in markers)


def every_cut(stream: bytes) -> Iterator[list[bytes]]:
    yield [stream]
    yield [stream[at : at + 1] for at in range(len(stream))]
    for at in range(1, len(stream)):
        yield [stream[:at], stream[at:]]


CASES = {
    "LF": (A + B, [(b"message_a", b"1"), (b"message_b", b"2")]),
    "CRLF": ((A + B).replace(b"\n", b"\r\n"), [(b"message_a", b"1"), (b"message_b", b"2")]),
    "CR": ((A + B).replace(b"\n", b"\r"), [(b"message_a", b"1"), (b"message_b", b"2")]),
    "mixed line ends": (
        b"event: message_a\r\ndata: 1\n\revent: message_b\rdata: 2\r\n\n",
        [(b"message_a", b"1"), (b"message_b", b"2")],
    ),
    "CRLF then CR": (b"event: message_a\r\ndata: 1\r\n\r" + B, [(b"message_a", b"1"), (b"message_b", b"2")]),
    "one byte order mark": (BOM + A, [(b"message_a", b"1")]),
    "second byte order mark is part of the field name": (BOM + BOM + A, [(b"", b"1")]),
    "comments": (b": message_\n\n: hello\n" + A + b":\n\n" + b":x\n" + B, [(b"message_a", b"1"), (b"message_b", b"2")]),
    "comment inside an event": (b"event: message_a\n: message_x\ndata: 1\n\n", [(b"message_a", b"1")]),
    "data of several lines": (b"event: message_a\ndata: 1\ndata\ndata:2\n\n", [(b"message_a", b"1\n\n2")]),
    "no space after the colon": (b"event:message_a\ndata:1\n\n", [(b"message_a", b"1")]),
    "only one space is dropped": (b"event: message_a\ndata:  1\n\n", [(b"message_a", b" 1")]),
    "data before the name": (b"data: 1\nevent: message_a\n\n", [(b"message_a", b"1")]),
    "the last name wins": (b"event: message_x\nevent: message_a\ndata: 1\n\n", [(b"message_a", b"1")]),
    "no event line": (b'data: {"type":"message_stop"}\n\n', [(b"", b'{"type":"message_stop"}')]),
    "other fields": (b"id: 7\nretry: 10\nfoo: bar\n" + A, [(b"message_a", b"1")]),
    "a name without data is no event": (b"event: message_x\n\n" + A, [(b"message_a", b"1")]),
    "a name does not outlive its event": (
        b"event: message_x\n\ndata: message_\n\n",
        [(b"", b"message_")],
    ),
    "empty data is an event": (b"event: message_a\ndata:\n\n", [(b"message_a", b"")]),
    "field names are exact": (b"Event: message_x\n data: message_\ndata: message_\n\n", [(b"", b"message_")]),
    "colons in the value": (b"event: message_a\ndata: a:b: c\n\n", [(b"message_a", b"a:b: c")]),
    "many blank lines": (b"\n\n\n" + A + b"\n\n\n" + B + b"\n", [(b"message_a", b"1"), (b"message_b", b"2")]),
    "U+2028 and U+0085 end no line": (
        "event: message_a\ndata: a\u2028b\u2029c\u0085d\x0be\x0cf\n\n".encode(),
        [(b"message_a", "a\u2028b\u2029c\u0085d\x0be\x0cf".encode())],
    ),
    "NUL bytes": (b"\0\n\nevent: message_a\ndata: \0\n\n", [(b"message_a", b"\0")]),
    "last event without its blank line": (A + B.removesuffix(b"\n\n"), [(b"message_a", b"1"), (b"message_b", b"2")]),
    "last event with one line end": (A + B.removesuffix(b"\n"), [(b"message_a", b"1"), (b"message_b", b"2")]),
    "events without a marker are passed over": (b"event: ping\ndata: {}\n\n" + A, [(b"message_a", b"1")]),
    "nothing": (b"", []),
}


@pytest.mark.parametrize(("stream", "expected"), CASES.values(), ids=CASES)
def test_events_are_the_same_whole_byte_by_byte_and_cut_anywhere(
    stream: bytes, expected: list[tuple[bytes, bytes]]
) -> None:
    for chunks in every_cut(stream):
        assert read(chunks) == expected


def test_what_is_looked_for_once_is_asked_about_until_it_is_found() -> None:
    word = b"event: x\ndata: content_block_delta %d\n\n"
    stream = b"".join([word % 1, A, word % 2, word % 3, B, word % 4])
    for chunks in every_cut(stream):
        asked: list[bytes] = []

        def is_it(event: Event, asked: list[bytes] = asked) -> bool:
            asked.append(event.data[-1:])
            return event.data.endswith(b"2")

        events: list[Event] = []
        reader = reading(events, is_it)
        for chunk in chunks:
            reader.feed(chunk)
        assert (asked, [event.data for event in events]) == ([b"1", b"2"], [b"1", b"2"])


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
def test_an_unterminated_last_event_counts_at_a_clean_end_only(line_end: bytes) -> None:
    stream = (A + B).removesuffix(b"\n\n").replace(b"\n", line_end)
    for chunks in every_cut(stream):
        assert read(chunks) == [(b"message_a", b"1"), (b"message_b", b"2")]
        assert read(chunks, ends=False) == [(b"message_a", b"1")]


def test_empty_chunks_change_nothing() -> None:
    stream = A.replace(b"\n", b"\r\n")
    chunks = [piece for at in range(len(stream)) for piece in (b"", stream[at : at + 1], b"")]
    assert read(chunks) == [(b"message_a", b"1")]


@given(
    st.lists(st.sampled_from([b"event: message_a", b"data: 1", b"data", b": c", b"", b"", BOM, b"\0"]), max_size=20),
    st.data(),
)
def test_line_ends_make_no_difference(lines: list[bytes], data: st.DataObject) -> None:
    """The same lines, each ended by LF, CRLF or CR at random and cut at random, are the same events.

    A CR directly followed by an empty line's LF would be one CRLF, so a LF never follows a CR.
    """
    plain = b"".join(line + b"\n" for line in lines)
    mixed = b""
    for line in lines:
        ends = [b"\r\n", b"\r"] if not line and mixed.endswith(b"\r") else [b"\n", b"\r\n", b"\r"]
        mixed += line + data.draw(st.sampled_from(ends))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(mixed)), max_size=6)))
    chunks = [mixed[a:b] for a, b in zip([0, *cuts], [*cuts, len(mixed)], strict=True)]
    assert read(chunks) == read([plain])


@pytest.mark.parametrize("opening", [b"data: ", b"event: message_x\ndata: ", b"", b'data: {"usage":'])
@pytest.mark.parametrize("size", [1000, 100_000, 1_000_000])
def test_an_event_that_never_ends_is_held_in_bounded_memory(opening: bytes, size: int) -> None:
    reader = reading([])
    reader.feed(opening)
    chunk = b"x" * size
    tracemalloc.start()
    for _ in range(8_000_000 // size):
        reader.feed(chunk)
        assert len(reader._carry) <= EVENT_LIMIT + size
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * (EVENT_LIMIT + size)


@pytest.mark.parametrize("size", [1, 7, 4096, 300_000, 10_000_000])
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
def test_the_event_after_a_huge_one_is_read(size: int, line_end: bytes) -> None:
    huge = b"event: ping\ndata: " + b"x" * (EVENT_LIMIT * 2) + b"\n\n"
    stream = (A + huge + B).replace(b"\n", line_end)
    chunks = [stream[at : at + size] for at in range(0, len(stream), size)]
    assert read(chunks) == [(b"message_a", b"1"), (b"message_b", b"2")]


def test_a_huge_event_that_lacks_its_end_is_not_taken_for_a_whole_one() -> None:
    chunks = [A, b"event: message_x\ndata: ", *([b"x" * 10_000] * 60)]
    events: list[Event] = []
    reader = reading(events)
    for chunk in chunks:
        reader.feed(chunk)
    reader.finish()
    assert [(event.name, event.truncated) for event in events] == [(b"message_a", False), (b"message_x", True)]


@pytest.mark.parametrize("size", [1 << 30, 100_000, 4099, 5], ids=["whole", "100 kB", "4 kB", "5 bytes"])
@pytest.mark.parametrize("ends", [b"\n\n", b""], ids=["ended", "not ended"])
@pytest.mark.parametrize("place", [10, EVENT_LIMIT - 4, EVENT_LIMIT + 9, EVENT_LIMIT * 3])
def test_a_marker_is_found_in_a_huge_event_wherever_it_is(place: int, ends: bytes, size: int) -> None:
    huge = b"event: odd\ndata: " + b"x" * place + b'"usage"' + b"x" * (EVENT_LIMIT * 2) + ends
    stream = A + huge + (B if ends else b"")
    events: list[Event] = []
    reader = reading(events)
    for at in range(0, len(stream), size):
        reader.feed(stream[at : at + size])
    reader.finish()
    told = [(event.name, event.truncated) for event in events]
    assert told == [(b"message_a", False), (b"odd", True), *([(b"message_b", False)] if ends else [])]


def test_a_huge_event_says_nothing_of_the_huge_one_before() -> None:
    plain = b"event: odd\ndata: " + b"x" * (EVENT_LIMIT * 2) + b"\n\n"
    marked = b"event: message_odd\ndata: " + b"x" * (EVENT_LIMIT * 2) + b"\n\n"
    for size in (4096, 300_000):
        stream = plain + marked + plain
        assert [name for name, _ in read([stream[at : at + size] for at in range(0, len(stream), size)])] == [
            b"message_odd"
        ]


@pytest.mark.parametrize("size", [1 << 30, 100_000, 1024], ids=["whole", "100 kB", "1 kB"])
def test_a_usage_event_longer_than_the_limit_gives_one_verdict_in_any_pieces(size: int) -> None:
    """Any bytes in any pieces give the same verdict as the whole."""
    long_delta = delta({"output_tokens": 42}, padding="x" * (EVENT_LIMIT + 1000))
    stream = b"".join([start(START_USAGE), *text("hello"), long_delta, STOP])

    def judged(pieces: Iterable[bytes]) -> tuple[State, object, int]:
        reader = MessageReader()
        for piece in pieces:
            reader.feed(piece)
        reader.finish(clean=True)
        verdict = reader.verdict(Ending.FINISHED, 200)
        return verdict.state, verdict.reason, verdict.counts.output_tokens

    events = judged([start(START_USAGE), *text("hello"), long_delta, STOP])
    assert judged(stream[at : at + size] for at in range(0, len(stream), size)) == events


def test_a_huge_content_event_does_not_hide_the_usage_after_it() -> None:
    huge = b'data: {"type":"content_block_start","content_block":{"usage":"' + b"x" * (EVENT_LIMIT * 3) + b'"}}\n\n'
    stream = b"".join([*NORMAL[:2], huge, *NORMAL[2:]])
    for size in (4096, len(stream)):
        reader = MessageReader()
        for at in range(0, len(stream), size):
            reader.feed(stream[at : at + size])
        reader.finish(clean=True)
        assert reader.verdict(Ending.FINISHED, 200).state is State.COMPLETE
