"""Flows that are read again find the rows that their requests have."""

from typing import Any

import pytest

from tests.ledger.books import Books, iteration, record


@pytest.mark.parametrize(
    ("told", "found"),
    [
        ({"request_id": "req_1", "host": "elsewhere.example"}, True),
        ({"request_id": "req_1", "message_id": "msg_1", "occurred_at": "2026-11-01T08:00:00.900Z"}, True),
        ({"request_id": "req_1", "message_id": "msg_1", "occurred_at": "2026-11-01T08:00:01.001Z"}, False),
        ({"request_id": "req_1", "message_id": "msg_9"}, False),
        ({"request_id": "req_1", "message_id": "msg_9", "occurred_at": "2026-11-01T08:00:00.900Z"}, False),
        ({"request_id": "req_1", "occurred_at": "2026-11-09T00:00:00.000Z"}, False),
        ({"request_id": None, "message_id": "msg_1", "host": "elsewhere.example"}, True),
        ({"request_id": None, "message_id": "msg_1", "occurred_at": "2026-11-09T00:00:00.000Z"}, False),
        ({"request_id": "req_9", "message_id": "msg_9"}, False),
        ({"request_id": "req_9", "message_id": None, "occurred_at": "2026-11-09T00:00:00.000Z"}, False),
    ],
)
def test_a_flow_whose_id_is_new_finds_its_row_by_an_id_and_its_start(
    books: Books, told: dict[str, Any], found: bool
) -> None:
    """Seen at another place, and so at another time, by both ids and while it was under way."""
    ended = "2026-11-01T08:00:01.000Z"
    books.write(record(usage_state="missing", request_id="req_1", message_id="msg_1", completed_at=ended))
    books.write(
        record(id="har-1", usage_state="complete", **told), identify=True, iterations=[iteration(0, of="har-1")]
    )
    if found:  # some relays call each message, or each request, the same
        assert (books.row()["id"], books.row()["usage_state"]) == ("flow-1", "complete")
        assert books.iterations() == [("flow-1", 0, 1)]
    else:
        assert [row["id"] for row in books.rows()] == ["flow-1", "har-1"]
        assert books.iterations() == [("har-1", 0, 1)]


@pytest.mark.parametrize(
    ("told", "found"),
    [
        ({}, True),
        ({"request_id": "req_1", "message_id": "msg_1"}, True),
        ({"occurred_at": "2026-11-01T08:00:00.001Z"}, False),
        ({"host": "elsewhere.example"}, False),
        ({"path": "/v1/messages/other"}, False),
    ],
)
def test_else_by_start_host_and_path(books: Books, told: dict[str, Any], found: bool) -> None:
    books.write(record(usage_state="pending"))
    books.write(record(**{"id": "har-1", "usage_state": "complete", **told}), identify=True)
    assert len(books.rows()) == (1 if found else 2)


START = 0x661057E494C57  # microseconds, as ids of rows begin


@pytest.mark.parametrize(
    ("told", "started", "found"),
    [
        ({"request_id": "req_1", "message_id": "msg_1"}, START, True),
        ({"request_id": "req_1"}, START, True),
        ({"message_id": "msg_1"}, START, True),
        ({}, START, False),
        ({"request_id": "req_1", "message_id": "msg_9"}, START, False),
        ({"request_id": "req_9", "message_id": "msg_1"}, START, False),
        ({"request_id": "req_1", "message_id": "msg_1"}, START + 2, False),
        ({"request_id": "req_1", "message_id": "msg_1"}, START - 2, False),
    ],
)
@pytest.mark.parametrize("at_once", [True, False], ids=["in one batch", "later"])
def test_a_flow_that_was_duplicated_finds_the_row_of_the_request_by_an_id_and_its_start(
    books: Books, told: dict[str, Any], started: int, found: bool, at_once: bool
) -> None:
    """One that was really sent again began at another time."""
    known = {"usage_state": "complete", "origin": "replay"}
    first = record(id=f"{START:x}-aaaaaaaaaaaa", request_id="req_1", message_id="msg_1", **known)
    again = record(id=f"{started:x}-bbbbbbbbbbbb", **told, **known)
    batches = [[first, again]] if at_once else [[first], [again]]
    for batch in batches:
        books.write(*batch, alias="har")
    assert len(books.rows()) == (1 if found else 2)


@pytest.mark.parametrize("ids", [{}, {"request_id": "req_1", "message_id": "msg_1"}], ids=["none", "constant ones"])
def test_requests_that_began_in_one_millisecond_have_a_row_each(books: Books, ids: dict[str, str]) -> None:
    requests = [record(id=f"{START + 5 * n:x}-har", usage_state="complete", **ids) for n in range(3)]
    for _ in range(2):
        books.write(*requests, identify=True)
    assert len(books.rows()) == 3


def test_so_have_those_of_constant_ids_that_were_under_way_together_with_other_usage(books: Books) -> None:
    ids = {"request_id": "req_1", "message_id": "msg_1"}
    for n in range(3):
        times = {"occurred_at": f"2026-11-01T08:00:00.{n}00Z", "completed_at": "2026-11-01T08:00:05.000Z"}
        usage = f'{{"output_tokens":{n}}}'
        books.write(record(id=f"har-{n}", usage_state="complete", usage_raw=usage, **ids, **times), identify=True)
    assert len(books.rows()) == 3


@pytest.mark.parametrize(
    ("row_id", "found"), [("0661057e494c0-ofahar", True), ("0661057e494c0-another", False)], ids=["har", "capture"]
)
def test_a_capture_finds_the_row_that_a_har_has_made_at_another_time(books: Books, row_id: str, found: bool) -> None:
    """Of other captures it knows its own flows apart, also where a relay calls each the same."""
    ids = {"request_id": "req_1", "message_id": "msg_1", "usage_state": "complete", "origin": "replay"}
    ended = "2026-11-01T08:00:01.000Z"
    books.write(record(id=row_id, completed_at=ended, **ids), identify=True)
    for _ in range(2):
        later = record(id=f"{START:x}-flow", occurred_at="2026-11-01T08:00:00.007Z", completed_at=ended, **ids)
        books.write(later, alias=f"{START:013x}-ofahar")
    assert len(books.rows()) == (1 if found else 2)


def test_of_rows_under_way_together_the_one_of_the_same_usage_is_found(books: Books) -> None:
    ids = {"request_id": "req_1", "message_id": "msg_1", "completed_at": "2026-11-01T08:00:05.000Z"}
    books.write(record(id="a", usage_state="partial", **ids))
    usage = {"usage_state": "complete", "usage_raw": '{"output_tokens":2}', **ids}
    books.write(record(id="b", occurred_at="2026-11-01T08:00:00.100Z", **usage))
    books.write(record(id="har", occurred_at="2026-11-01T08:00:00.200Z", **usage), identify=True)
    assert [row["usage_state"] for row in books.rows()] == ["partial", "complete"]


def test_reading_the_same_har_again_adds_no_row(books: Books) -> None:
    for attempt in range(3):
        books.write(record(id=f"har-{attempt}", usage_state="complete", request_id="req_1"), identify=True)
    assert books.row()["id"] == "har-0"


def test_flows_of_one_batch_find_each_other(books: Books) -> None:
    """A capture may hold one request twice."""
    twice = [record(id=f"har-{n}", usage_state="complete", request_id="req_1") for n in range(2)]
    books.write(*twice, identify=True)
    assert len(books.rows()) == 1
