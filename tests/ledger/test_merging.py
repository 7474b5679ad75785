"""A better row is never replaced by a worse one; rows go, or only come."""

from typing import Any

import pytest
from usage_ledger.ledger.record import Entry, IterationRow

from tests.ledger.books import WORTH, Books, iteration, record, settled


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


# Rows that go, rows that only come.


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
