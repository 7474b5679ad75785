"""The store: a better row is never replaced by a worse one, a batch is whole or not at all, the dead are settled."""

import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from usage_ledger.ledger.marks import MAJOR
from usage_ledger.ledger.presence import Presence, writers_folder
from usage_ledger.ledger.record import Entry, IterationRow, Record
from usage_ledger.ledger.store import Store

WORTH = ["pending", "missing", "partial", "none", "complete"]
HOLD_PRESENCE = """
import sys
from pathlib import Path
from usage_ledger.ledger.presence import Presence
Presence(Path(sys.argv[1]), sys.argv[2])
print("here", flush=True)
sys.stdin.read()
"""


def record(**fields: Any) -> Record:
    given = {
        "id": "flow-1",
        "occurred_at": "2026-11-01T08:00:00.000Z",
        "host": "api.anthropic.com",
        "path": "/v1/messages",
        "writer": "0.1.0 aaaaaaaaaaaa",
        **fields,
    }
    return Record(**given)


def iteration(position: int, tokens: int = 1, of: str = "flow-1") -> IterationRow:
    return IterationRow(of, position, "message", "claude-opus-4-6", 1, input_tokens=tokens)


class Books:
    """A ledger under test: what is written through a store, and read back by a connection of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = Store(path, "normal", "aaaaaaaaaaaa")

    def write(self, *records: Record, withdrawn: tuple[str, ...] = (), **entry: Any) -> None:
        self.store.write([Entry(record, **entry) for record in records], list(withdrawn))

    def query(self, sql: str, *values: Any) -> list[dict[str, Any]]:
        with closing(sqlite3.connect(self.path)) as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute(sql, values)]

    def change(self, sql: str, *values: Any) -> None:
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute(sql, values)

    def rows(self) -> list[dict[str, Any]]:
        return self.query("SELECT * FROM usage_records ORDER BY id")

    def row(self) -> dict[str, Any]:
        (only,) = self.rows()
        return only

    def iterations(self) -> list[tuple[str, int, int]]:
        found = self.query("SELECT * FROM usage_iterations ORDER BY record_id, position")
        return [(row["record_id"], row["position"], row["input_tokens"]) for row in found]


@pytest.fixture
def books(tmp_path: Path) -> Iterator[Books]:
    opened = Books(tmp_path / "usage.db")
    yield opened
    opened.store.close()


def settled(state: str, which: str, **fields: Any) -> Record:
    """A row of this state in which every field that may differ between two tellings does differ."""
    return record(
        usage_state=state,
        model=f"model-{which}",
        stop_reason=f"stop-{which}",
        usage_raw=json.dumps({"told": which}),
        metadata=json.dumps({"told": which}),
        completed_at=f"2026-11-01T08:00:0{len(which)}.000Z",
        writer=f"0.1.0 {which}",
        **fields,
    )


# A better row is never replaced by a worse one.


@pytest.mark.parametrize("new", WORTH)
@pytest.mark.parametrize("old", WORTH)
def test_a_better_row_is_never_replaced_by_a_worse_one(books: Books, old: str, new: str) -> None:
    books.write(settled(old, "old", total_tokens=7))
    before = books.row()
    books.write(settled(new, "newer", total_tokens=7))
    if WORTH.index(new) > WORTH.index(old):
        assert (books.row()["usage_state"], books.row()["model"]) == (new, "model-newer")
    else:
        assert books.row() == before


@pytest.mark.parametrize("new", WORTH)
@pytest.mark.parametrize("old", WORTH)
def test_a_corrected_row_is_replaced_by_nothing(books: Books, old: str, new: str) -> None:
    """A correction keeps `usage_state` as history, so it is told by its flag and not by its state."""
    books.write(settled(old, "old"))
    books.change(
        "UPDATE usage_records SET metadata = json_set(metadata, '$._manually_updated', json('true')), input_tokens = 5"
    )
    before = books.row()
    books.write(settled(new, "newer", total_tokens=10**6))
    assert books.row() == before


def test_an_accepted_row_still_gives_way_to_a_better_one(books: Books) -> None:
    books.write(settled("missing", "old", requires_manual_review=0))
    books.change("UPDATE usage_records SET metadata = json_set(metadata, '$._accepted', json('true'))")
    books.write(settled("complete", "newer"))
    assert books.row()["usage_state"] == "complete"


@pytest.mark.parametrize("order", [1, -1], ids=["worse first", "better first"])
def test_the_order_in_which_tellings_arrive_does_not_matter(books: Books, order: int) -> None:
    for state in WORTH[::order]:
        books.write(settled(state, state))
    assert (books.row()["usage_state"], books.row()["model"]) == ("complete", "model-complete")


@pytest.mark.parametrize("order", [1, -1], ids=["worse first", "better first"])
def test_nor_does_it_within_one_batch(books: Books, order: int) -> None:
    books.write(*(settled(state, state) for state in WORTH[::order]))
    assert (books.row()["usage_state"], books.row()["model"]) == ("complete", "model-complete")


@pytest.mark.parametrize(("old", "new", "kept"), [(10, 11, 11), (10, 10, 10), (10, 9, 10), (0, 1, 1)])
def test_a_partial_row_takes_a_larger_lower_bound(books: Books, old: int, new: int, kept: int) -> None:
    books.write(settled("partial", "old", total_tokens=old, output_tokens=old))
    before = books.row()
    books.write(settled("partial", "newer", total_tokens=new, output_tokens=new))
    after = books.row()
    assert (after["total_tokens"], after["output_tokens"]) == (kept, kept)
    assert (after == before) == (kept == old)


@pytest.mark.parametrize(
    ("old", "new", "replaced"),
    [
        ({"http_status": None}, {"http_status": 200}, True),
        ({"http_status": 200}, {"http_status": None}, False),
        ({"http_status": 200}, {"http_status": 200}, False),
        ({"review_reason": "body_not_captured", "http_status": 200}, {"http_status": 200}, True),
        ({"http_status": 200}, {"review_reason": "body_not_captured", "http_status": 200}, False),
        ({"http_status": None, "metadata": '{"_accepted":true}'}, {"http_status": 200}, False),
        ({"http_status": None, "metadata": '{"_manually_updated":true}'}, {"http_status": 200}, False),
    ],
)
def test_a_missing_row_takes_a_response_or_a_body_that_was_not_known_of(
    books: Books, old: dict[str, Any], new: dict[str, Any], replaced: bool
) -> None:
    books.write(record(**{"usage_state": "missing", "review_reason": "no_usage_data", "stop_reason": "old", **old}))
    books.write(record(**{"usage_state": "missing", "review_reason": "no_usage_data", "stop_reason": "new", **new}))
    assert (books.row()["stop_reason"] == "new") is replaced


def test_filler_goes_also_where_the_real_one_tells_nothing(books: Books) -> None:
    """A HAR has no tag."""
    books.write(record(usage_state="complete", tag="xxxx", session_id="xxx", metadata='{"_redacted":true}'))
    books.write(record(usage_state="complete", session_id="of mine"))
    assert (books.row()["tag"], books.row()["session_id"]) == (None, "of mine")


def test_a_tag_of_the_same_letters_as_filler_stays(books: Books) -> None:
    books.write(record(usage_state="partial", tag="xx"))
    books.write(record(usage_state="complete"))
    assert books.row()["tag"] == "xx"


@pytest.mark.parametrize(
    ("old", "new", "replaced"),
    [
        ({}, {}, True),
        ({"usage_state": "complete"}, {"usage_state": "missing"}, False),
        ({"total_tokens": 8}, {"total_tokens": 7}, False),
        ({"metadata": '{"_redacted":true,"_accepted":true}'}, {}, False),
        ({"metadata": '{"_redacted":true,"_manually_updated":true}'}, {}, False),
        ({"metadata": "{}"}, {}, False),
        ({"metadata": "no JSON"}, {}, False),
        ({}, {"metadata": '{"_redacted":true}'}, False),
    ],
)
def test_a_row_of_a_redacted_capture_gives_way_to_the_real_one_if_that_knows_as_much(
    books: Books, old: dict[str, Any], new: dict[str, Any], replaced: bool
) -> None:
    books.write(record(**{"usage_state": "partial", "metadata": '{"_redacted":true}', "host": "xxx", **old}))
    books.write(record(**{"usage_state": "partial", **new}))
    assert (books.row()["host"] == "api.anthropic.com") is replaced


@pytest.mark.parametrize("state", ["missing", "none", "complete"])
def test_a_larger_count_alone_makes_no_row_better(books: Books, state: str) -> None:
    books.write(settled(state, "old", total_tokens=1))
    before = books.row()
    books.write(settled(state, "newer", total_tokens=99))
    assert books.row() == before


TOLD = '{"input_tokens": 9}'


@pytest.mark.parametrize(
    ("writer", "known", "news", "taken"),
    [
        ("0.1.0 aaaaaaaaaaaa", None, TOLD, True),
        ("0.1.0 aaaaaaaaaaaa", TOLD, TOLD, True),
        ("0.1.0 aaaaaaaaaaaa", None, None, True),
        ("0.1.0 aaaaaaaaaaaa", TOLD, None, False),
        ("0.1.0 bbbbbbbbbbbb", None, TOLD, False),
    ],
    ids=["first usage", "more usage", "the body's fields", "less than is known", "another writer"],
)
def test_a_pending_row_takes_what_its_own_writer_has_learnt(
    books: Books, writer: str, known: str | None, news: str | None, taken: bool
) -> None:
    books.write(record(usage_raw=known))
    before = books.row()
    books.write(record(writer=writer, usage_raw=news, requested_model="claude", total_tokens=9))
    after = books.row()
    assert (after["requested_model"] == "claude") == taken
    assert (after == before) != taken


@pytest.mark.parametrize(
    ("name", "seen_live", "seen_later"),
    [
        ("tag", "team-1", "team-2"),
        ("time_to_first_token_ms", 120, 80),
        ("api_key_hint", "sk-ant-api03-R2D...igAA", "sk-ant-api03-C3P...0gAA"),
        ("session_id", "s1", "s2"),
        ("organization_id", "o1", "o2"),
        ("workspace_id", "w1", "w2"),
    ],
)
def test_an_improved_row_keeps_what_a_replay_cannot_see(
    books: Books, name: str, seen_live: Any, seen_later: Any
) -> None:
    books.write(record(usage_state="missing", **{name: seen_live}))
    books.write(record(usage_state="partial", **{name: None}))
    assert books.row()[name] == seen_live
    books.write(record(usage_state="complete", **{name: seen_later}))
    assert books.row()[name] == seen_later


def test_an_improved_row_keeps_its_id_and_its_start(books: Books) -> None:
    books.write(record())
    books.write(record(usage_state="complete", occurred_at="2026-12-24T00:00:00.000Z"))
    assert (books.row()["id"], books.row()["occurred_at"]) == ("flow-1", "2026-11-01T08:00:00.000Z")


# Iterations.


def test_iterations_are_written_once_however_often_a_row_is_told(books: Books) -> None:
    for _ in range(3):
        books.write(record(usage_state="complete"), iterations=[iteration(0), iteration(1)])
    assert books.iterations() == [("flow-1", 0, 1), ("flow-1", 1, 1)]


def test_iterations_are_replaced_when_the_row_improves(books: Books) -> None:
    books.write(record(usage_state="partial"), iterations=[iteration(0, 1), iteration(1, 1)])
    books.write(record(usage_state="complete"), iterations=[iteration(0, 5)])
    assert books.iterations() == [("flow-1", 0, 5)]


def test_iterations_go_when_a_better_row_has_none(books: Books) -> None:
    """One row per entry of `usage.iterations`: what the better telling does not have must not be priced."""
    books.write(record(usage_state="partial"), iterations=[iteration(0, 1)])
    books.write(record(usage_state="complete"))
    assert books.iterations() == []


@pytest.mark.parametrize("new", ["pending", "missing", "partial", "none", "complete"])
def test_iterations_are_untouched_when_the_row_is(books: Books, new: str) -> None:
    books.write(record(usage_state="complete"), iterations=[iteration(0, 1)])
    books.write(record(usage_state=new), iterations=[iteration(0, 9), iteration(1, 9)])
    assert books.iterations() == [("flow-1", 0, 1)]


@pytest.mark.parametrize("other", [[], [iteration(0, 9)], [iteration(0, 9), iteration(1, 9)], [iteration(1, 9)]])
@pytest.mark.parametrize("better_first", [True, False])
def test_a_row_told_twice_in_one_batch_has_the_better_tellings_iterations(
    books: Books, better_first: bool, other: list[IterationRow]
) -> None:
    better = Entry(record(usage_state="complete"), [iteration(0, 1)])
    worse = Entry(record(usage_state="partial"), other)
    books.store.write([better, worse] if better_first else [worse, better], [])
    assert (books.row()["usage_state"], books.iterations()) == ("complete", [("flow-1", 0, 1)])


# Rows that go, rows that only come, rows whose id is new at each read.


@pytest.mark.parametrize("state", WORTH)
def test_only_a_pending_row_can_be_withdrawn(books: Books, state: str) -> None:
    books.write(record(usage_state=state), record(id="flow-2"))
    books.write(withdrawn=("flow-1", "never-there"))
    assert [row["id"] for row in books.rows()] == (["flow-2"] if state == "pending" else ["flow-1", "flow-2"])


def test_a_row_handed_in_and_withdrawn_in_one_batch_is_not_there(books: Books) -> None:
    books.write(record(), withdrawn=("flow-1",))
    assert books.rows() == []


@pytest.mark.parametrize("old", WORTH)
def test_a_row_that_may_only_be_new_changes_none_that_is_there(books: Books, old: str) -> None:
    books.write(settled(old, "old"))
    before = books.row()
    books.write(settled("complete", "newer"), only_new=True)
    assert books.row() == before


def test_a_row_that_may_only_be_new_is_added_where_there_is_none(books: Books) -> None:
    books.write(record(usage_state="missing", review_reason="body_not_captured"), only_new=True)
    assert books.row()["review_reason"] == "body_not_captured"


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


# Whole or not at all.


@pytest.mark.parametrize(
    "spoilt",
    [
        {"input_tokens": "many"},
        {"model": None},
        {"total_tokens": 2**70},
        {"tag": "\ud800"},
    ],
    ids=["text for a count", "null for a text", "too large", "not Unicode"],
)
@pytest.mark.parametrize(
    "more", [{}, {"only_new": True}, {"iterations": [iteration(0)]}, {"withdrawn": ("old",)}], ids=str
)
def test_a_failing_batch_writes_nothing(books: Books, more: dict[str, Any], spoilt: dict[str, Any]) -> None:
    books.write(record(id="old"))
    before = books.rows()
    with pytest.raises(Exception):  # noqa: B017, PT011 - which one is the writer's business
        books.write(record(), record(id="flow-2", **spoilt), **more)
    assert (books.rows(), books.iterations()) == (before, [])


def test_after_a_failing_batch_the_next_one_is_written(books: Books) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        books.write(record(input_tokens="many"), withdrawn=("nothing",))
    books.write(record(), withdrawn=("nothing",))
    assert books.row()["id"] == "flow-1"


def test_a_row_with_missing_iteration_counts_writes_neither_half(books: Books) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        books.write(record(), iterations=[iteration(0), iteration(1, "many")])
    assert (books.rows(), books.iterations()) == ([], [])


# The file behind the path.


def test_a_store_knows_when_its_path_leads_elsewhere(books: Books) -> None:
    assert books.store.is_current()
    books.path.unlink()
    assert not books.store.is_current()
    books.path.touch()
    assert not books.store.is_current()


def test_probing_changes_nothing(books: Books) -> None:
    books.write(record())
    before = books.rows()
    books.store.probe()
    assert books.rows() == before
    assert books.query("PRAGMA user_version") == [{"user_version": MAJOR}]


def test_probing_leaves_the_version_of_a_ledger_that_a_newer_program_took_over(books: Books) -> None:
    books.change(f"PRAGMA user_version = {MAJOR + 1}")
    books.store.probe()
    assert books.query("PRAGMA user_version") == [{"user_version": MAJOR + 1}]


@pytest.mark.parametrize(("durability", "synchronous"), [("full", 2), ("normal", 1)])
def test_durability_is_sqlites_synchronous(tmp_path: Path, durability: str, synchronous: int) -> None:
    with closing(Store(tmp_path / "other.db", durability, "aaaaaaaaaaaa")) as store:
        assert store.connection.execute("PRAGMA synchronous").fetchone() == (synchronous,)
        assert store.connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


# The dead and the living.


@contextmanager
def living_writer(ledger: Path, writer_id: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Another process that holds a writer's mark until it is ended."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD_PRESENCE, str(ledger), writer_id], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"here\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_dead_writers_rows_are_settled_on_what_their_streams_had_told(books: Books) -> None:
    dead = {"writer": "0.1.0 dddddddddddd", "metadata": '{"user_agent":"x"}'}
    books.write(
        record(id="silent", **dead),
        record(id="told", usage_raw='{"input_tokens":9}', input_tokens=9, total_tokens=9, **dead),
        record(id="done", usage_state="complete", **dead),
    )
    assert books.store.settle_dead_writers() == 2
    done, silent, told = books.rows()
    assert (done["usage_state"], done["requires_manual_review"], done["review_reason"]) == ("complete", 0, None)
    assert (silent["usage_state"], told["usage_state"]) == ("missing", "partial")
    assert {row["requires_manual_review"] for row in (silent, told)} == {1}
    assert {row["review_reason"] for row in (silent, told)} == {"proxy_stopped"}
    assert (told["input_tokens"], told["total_tokens"]) == (9, 9)
    assert json.loads(silent["metadata"]) == {
        "user_agent": "x",
        "_no_usage_data": True,
        "_requires_manual_review": True,
    }
    assert json.loads(told["metadata"]) == {"user_agent": "x", "_partial_usage": True, "_requires_manual_review": True}


def test_settling_again_finds_nothing(books: Books) -> None:
    books.write(record(writer="0.1.0 dddddddddddd"))
    assert (books.store.settle_dead_writers(), books.store.settle_dead_writers()) == (1, 0)


def test_rows_of_living_writers_and_its_own_are_left_alone(books: Books) -> None:
    books.write(record(id="own"), record(id="other", writer="0.1.0 bbbbbbbbbbbb"))
    before = books.rows()
    with living_writer(books.path, "bbbbbbbbbbbb"):
        assert books.store.settle_dead_writers() == 0
        assert books.rows() == before


def test_a_writer_of_another_version_is_known_by_its_id(books: Books) -> None:
    books.write(record(writer="2.0.0 dev build bbbbbbbbbbbb"))
    with living_writer(books.path, "bbbbbbbbbbbb"):
        assert books.store.settle_dead_writers() == 0


def test_after_kill_9_a_writers_rows_are_settled(books: Books) -> None:
    books.write(record(writer="0.1.0 bbbbbbbbbbbb"))
    with living_writer(books.path, "bbbbbbbbbbbb") as process:
        assert books.store.settle_dead_writers() == 0
        process.kill()
        process.wait()
        assert books.store.settle_dead_writers() == 1
    assert books.row()["review_reason"] == "proxy_stopped"
    assert not (writers_folder(books.path) / "bbbbbbbbbbbb.lock").exists()


def test_a_settled_row_gives_way_to_a_replay_that_knows_more(books: Books) -> None:
    books.write(record(writer="0.1.0 dddddddddddd", tag="team-1"))
    books.store.settle_dead_writers()
    books.write(record(usage_state="complete", origin="replay"))
    row = books.row()
    assert (row["usage_state"], row["requires_manual_review"], row["review_reason"]) == ("complete", 0, None)
    assert (row["tag"], row["metadata"]) == ("team-1", "{}")


def test_marks_of_the_living_stay_beside_the_ledger(books: Books) -> None:
    own = Presence(books.path, "aaaaaaaaaaaa")
    books.store.settle_dead_writers()
    assert own.still_marked()
    own.leave()


@pytest.mark.parametrize("metadata", ["{bad", "", "[", "null"])
@pytest.mark.parametrize("state", ["pending", "partial", "complete"])
def test_metadata_that_another_program_broke_keeps_nothing_from_being_written(
    books: Books, metadata: str, state: str
) -> None:
    """Such a row once put the whole ledger into trouble, for every proxy that came after."""
    books.write(record(usage_state=state))
    books.change("UPDATE usage_records SET metadata = ?", metadata)
    books.write(record(usage_state="complete", total_tokens=5), record(id="flow-2"))
    assert [row["id"] for row in books.rows()] == ["flow-1", "flow-2"]
    assert books.rows()[0]["total_tokens"] == (0 if state == "complete" else 5)


def test_metadata_that_another_program_broke_keeps_no_dead_writers_row_from_being_settled(books: Books) -> None:
    books.write(record(writer="0.1.0 bbbbbbbbbbbb"))
    books.change("UPDATE usage_records SET metadata = '{bad'")
    assert books.store.settle_dead_writers() == 1
    assert json.loads(books.row()["metadata"]) == {"_no_usage_data": True, "_requires_manual_review": True}
