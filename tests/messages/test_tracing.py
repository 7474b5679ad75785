"""A trace tells where each event stands, what it said of usage and what that changed; and the row's own story."""

import gzip
import json
import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from usage_ledger.messages import Ending, MessageReader, Verdict, tracing
from usage_ledger.messages.sse import EVENT_LIMIT, EventReader
from usage_ledger.messages.tracing import COMMENT, JSON_ANSWER, TracedEvent, Tracer

from scripts.fake_console import ITERATIONS, MESSAGE, NORMAL, START_USAGE, STOP, delta, event, start, text

CORPUS = Path(__file__).parents[3] / "shared" / "corpus"
LINE_ENDS = [b"\n", b"\r\n", b"\r"]


def trace(
    body: bytes, encoding: str = "", ending: Ending = Ending.FINISHED, cuts: tuple[int, ...] = ()
) -> tuple[list[TracedEvent], Tracer]:
    events: list[TracedEvent] = []
    tracer = Tracer(encoding, lambda traced, _data: events.append(traced))
    places = sorted({0, len(body), *(cut for cut in cuts if cut < len(body))})
    for begin, end in pairwise(places):
        tracer.feed(body[begin:end])
    tracer.finish(clean=ending is Ending.FINISHED)
    return events, tracer


def judged(body: bytes, encoding: str = "", ending: Ending = Ending.FINISHED) -> Verdict:
    reader = MessageReader(encoding)
    reader.feed(body)
    reader.finish(clean=ending is Ending.FINISHED)
    return reader.verdict(ending, 200)


def test_each_event_is_told_with_its_place_and_its_kind() -> None:
    body = b"".join(NORMAL)
    events, tracer = trace(body)
    assert [body[each.offset : each.offset + each.size] for each in events] == NORMAL
    assert [each.kind for each in events] == [json.loads(block.split(b"data: ")[1])["type"] for block in NORMAL]
    assert (tracer.decoded_bytes, tracer.is_encoded) == (len(body), False)


@pytest.mark.parametrize("end", LINE_ENDS)
def test_places_are_those_of_the_body_whatever_ends_its_lines(end: bytes) -> None:
    blocks = [block.replace(b"\n", end) for block in NORMAL]
    events, _ = trace(b"".join(blocks))
    assert [each.size for each in events] == [len(block) for block in blocks]
    assert sum(len(block) for block in blocks[:-1]) == events[-1].offset


@pytest.mark.parametrize("end", LINE_ENDS)
def test_a_body_in_any_pieces_has_the_same_events(end: bytes) -> None:
    body = b"".join(NORMAL).replace(b"\n", end)
    whole, _ = trace(body)
    generator = random.Random(7)
    for _ in range(30):
        cuts = tuple(generator.randrange(len(body)) for _ in range(40))
        events, _ = trace(body, cuts=cuts)
        assert [(each.kind, each.usage, each.notes) for each in events] == [
            (each.kind, each.usage, each.notes) for each in whole
        ]


def test_usage_is_told_as_upstream_sent_it_with_what_it_changed() -> None:
    events, _ = trace(b"".join(NORMAL))
    first, last = events[0], events[-2]
    assert first.usage == START_USAGE
    assert ("cache_creation.ephemeral_5m_input_tokens", None, 100) in first.changed
    assert last.usage == {"output_tokens": 42}
    assert last.changed == [("output_tokens", 1, 42)]
    assert last.notes == ["stop_reason end_turn", "the usage is final"]
    assert not [each for each in events[1:-2] if each.has_usage]


def test_usage_that_is_null_or_the_same_again_changes_nothing() -> None:
    body = b"".join([start(START_USAGE), event("message_delta", usage=None), start(START_USAGE), STOP])
    _, empty, again, _ = trace(body)[0]
    assert (empty.has_usage, empty.usage, empty.changed) == (True, None, [])
    assert (again.has_usage, again.usage, again.changed) == (True, START_USAGE, [])


def test_a_count_that_is_none_is_told_where_it_stands() -> None:
    body = b"".join([start(START_USAGE), delta({"output_tokens": "many"}), STOP])
    events, _ = trace(body)
    assert [each.kind for each in events if "not valid" in each.notes] == ["message_delta"]


def test_another_message_and_its_fields_are_told_apart() -> None:
    body = b"".join([*NORMAL, start(START_USAGE, "msg_other"), delta({"output_tokens": 8}), STOP])
    events, _ = trace(body)
    second = events[len(NORMAL)]
    assert "another message begins" in second.notes
    assert ("output_tokens", None, 1) in second.changed
    assert [each.message for each in events] == [1] * len(NORMAL) + [2, 2, 2]
    assert [each.message for each in events if "the usage is final" in each.notes] == [1, 2]


def test_an_event_before_any_message_speaks_of_none() -> None:
    assert [each.message for each in trace(event("ping") + NORMAL[0])[0]] == [0, 1]


def test_what_is_no_usage_is_told_with_its_name_and_value() -> None:
    odd: dict[str, Any] = {"output_tokens": "many", "cache_creation": {"ephemeral_5m_input_tokens": -1}}
    odd["iterations"] = [{"input_tokens": 0.5}]
    events, _ = trace(b"".join([start(START_USAGE), delta(odd), delta("much")]))  # type: ignore[arg-type]
    assert events[1].invalid == [
        ("output_tokens", "many"),
        ("cache_creation.ephemeral_5m_input_tokens", -1),
        ("iterations.0.input_tokens", 0.5),
    ]
    assert events[2].invalid == [("usage", "much")]
    assert events[0].invalid == []


def test_of_iterations_their_number_is_told() -> None:
    entry = {"type": "message", "input_tokens": 1}
    events, _ = trace(b"".join([start({**START_USAGE, "iterations": [entry]}), delta({"iterations": [entry, entry]})]))
    assert ("iterations", None, "1 entry") in events[0].changed
    assert ("iterations", "1 entry", "2 entries") in events[1].changed


def test_events_behind_the_limit_are_read_and_not_told() -> None:
    events, heard = b"".join(NORMAL), list[TracedEvent]()
    for limit, is_cut in ((3, True), (len(NORMAL), False)):
        heard.clear()
        tracer = Tracer("", lambda traced, _data: heard.append(traced), limit)
        for place in range(0, len(events), 100):
            tracer.feed(events[place : place + 100])
        tracer.finish(clean=True)
        assert (len(heard), tracer.is_cut, tracer.decoded_bytes) == (limit, is_cut, len(events))
        assert tracer.verdict(Ending.FINISHED, 200) == judged(events)


def test_events_behind_the_limit_cost_what_they_cost_a_live_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[bytes] = []
    monkeypatch.setattr(EventReader, "feed", lambda _self, data: read.append(bytes(data)))
    tracer = Tracer("", lambda _traced, _data: None, 3)
    tracer.feed(b"".join([start(START_USAGE), *[event("ping")] * 1_000]))
    tracer.finish(clean=True)
    assert len(read) <= 5


def test_what_an_event_costs_does_not_depend_on_those_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ever new fields of usage, counted in the fields that are looked at."""
    looked_at = 0
    flat = tracing._flat

    def counted(*arguments: Any, **more: Any) -> Iterator[Any]:
        nonlocal looked_at
        for each in flat(*arguments, **more):
            looked_at += 1
            yield each

    monkeypatch.setattr(tracing, "_flat", counted)
    work = []
    for count in (200, 400):
        looked_at = 0
        events, _ = trace(start(START_USAGE) + b"".join(delta({f"field_{each}": 1}, None) for each in range(count)))
        assert events[-1].changed == [(f"field_{count - 1}", None, 1)]
        work.append(looked_at)
    assert work[1] < 2.2 * work[0]


def test_usage_that_is_nested_without_end_is_no_exception() -> None:
    for depth in (50, 400, 5_000):
        nested = b'{"a":' * depth + b"1" + b"}" * depth
        told = b'{"type":"message_delta","usage":{"output_tokens":-1,"cache_creation":[' + nested + b'],"x":' + nested
        events, _ = trace(b"event: message_delta\ndata: " + told + b"}}\n\n")
        assert len(events) == 1


def test_an_error_event_is_told_with_its_type() -> None:
    error = event("error", error={"type": "overloaded_error", "message": "Overloaded"})
    events, _ = trace(b"".join([start(START_USAGE), error]))
    assert events[-1].notes == ["error overloaded_error"]


def test_an_event_that_breaks_off_says_so() -> None:
    body = b"".join(NORMAL)[:-20]
    events, _ = trace(body, ending=Ending.CLIENT_DISCONNECTED)
    assert events[-1].notes == ["it breaks off"]
    assert events[-1].offset + events[-1].size == len(body)


def test_the_last_event_may_lack_its_blank_line_where_the_body_ended_cleanly() -> None:
    events, tracer = trace(b"".join(NORMAL)[:-2])
    assert (events[-1].kind, events[-1].notes) == ("message_stop", [])
    assert tracer.verdict(Ending.FINISHED, 200).reason is None


def test_comments_and_unknown_events_are_told_by_their_names() -> None:
    events, _ = trace(b": keep-alive\n\nevent: news\ndata: hello\n\ndata: hello\n\nretry: 5\n\n")
    assert [each.kind for each in events] == [COMMENT, "news", "event", COMMENT]


def test_blank_lines_between_events_are_no_events() -> None:
    events, tracer = trace(b"\n\n\n" + NORMAL[0] + b"\n\n\n" + b"\r\n" + STOP)
    assert [each.kind for each in events] == ["message_start", "message_stop"]
    assert events[0].offset == 3
    assert tracer.decoded_bytes == 3 + len(NORMAL[0]) + 5 + len(STOP)


def test_a_byte_order_mark_hides_nothing() -> None:
    events, _ = trace(b"\xef\xbb\xbf" + b"".join(NORMAL))
    assert events[0].kind == "message_start"
    assert events[0].size == len(NORMAL[0]) + 3


def test_a_compressed_body_has_the_places_of_its_decoded_bytes() -> None:
    events, tracer = trace(gzip.compress(b"".join(NORMAL)), "gzip")
    assert [each.size for each in events] == [len(block) for block in NORMAL]
    assert (tracer.decoded_bytes, tracer.is_encoded) == (len(b"".join(NORMAL)), True)


def test_a_json_answer_is_one_event() -> None:
    body = json.dumps(MESSAGE).encode()
    (answer,), _ = trace(body)
    assert (answer.kind, answer.offset, answer.size, answer.usage) == (JSON_ANSWER, 0, len(body), MESSAGE["usage"])


def test_an_event_of_many_megabytes_is_one_event_and_is_not_kept() -> None:
    long = b"data: " + b"x" * (8 * EVENT_LIMIT) + b"\n\n"
    heard: list[int] = []
    tracer = Tracer("", lambda _event, data: heard.append(len(data)))
    for place in range(0, len(long), 10_000):
        tracer.feed(long[place : place + 10_000])
    tracer.feed(STOP)
    tracer.finish(clean=True)
    assert len(heard) == 2
    assert max(heard) <= EVENT_LIMIT


BLOCKS = st.lists(
    st.sampled_from(
        [
            *(*NORMAL, *ITERATIONS, *text("a b"), delta(None), delta({"output_tokens": -1}), start(None)),
            *(start({}, "msg_2"), b"data: {\n\n", b"\n", b"\r\n\r\n", b": x\n\n", b'data: "usage"\n\n'),
            *(b"\xff\xfe\n", b"event: error\n\n", b'event: message_delta\ndata: {"usage":\n\n'),
            b"data: " + b"y" * (EVENT_LIMIT + 9) + b'"usage"\n\n',
        ]
    ),
    max_size=8,
)


@given(BLOCKS, st.sampled_from(["", "gzip"]), st.sampled_from(list(Ending)), st.integers(0, 400), st.data())
def test_a_trace_ends_in_the_verdict_of_the_row(
    blocks: list[bytes], encoding: str, ending: Ending, missing: int, data: st.DataObject
) -> None:
    body = b"".join(blocks)
    body = gzip.compress(body, mtime=0) if encoding else body
    body = body[: len(body) - missing] if ending is not Ending.FINISHED else body
    cuts = tuple(data.draw(st.lists(st.integers(0, max(len(body) - 1, 0)), max_size=5)))
    events, tracer = trace(body, encoding, ending, cuts)
    assert tracer.verdict(ending, 200) == judged(body, encoding, ending)
    for before, after in pairwise(events):
        assert before.offset + before.size <= after.offset


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*.sse")) or [None], ids=lambda path: path.stem if path else "none")
def test_recorded_streams_are_traced_to_their_verdict(path: Path | None) -> None:
    if path is None:
        pytest.skip("the folder of recorded streams is missing")
    body = path.read_bytes()
    events, tracer = trace(body)
    assert tracer.verdict(Ending.FINISHED, 200) == judged(body)
    assert sum(each.size for each in events) == len(body.lstrip(b"\r\n"))
