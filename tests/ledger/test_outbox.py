"""The outbox: what has changed since it was pushed, until that is acknowledged; and nothing before the first push."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from usage_ledger.ledger.columns import COLUMNS
from usage_ledger.ledger.outbox import Outbox, open_outbox
from usage_ledger.ledger.pairing import Pushes
from usage_ledger.ledger.record import Entry, IterationRow, Record
from usage_ledger.ledger.store import Store
from usage_ledger.ledger.wire import NULL, SEPARATOR, line_of

BOOKS, OTHERS = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"


def record(name: str, **more: Any) -> Record:
    given = {"occurred_at": "2026-11-01T08:00:00.000Z", "host": "h", "path": "/", "usage_state": "complete", **more}
    return Record(id=name, **given)


def write(path: Path, *records: Record, iterations: tuple[IterationRow, ...] = ()) -> None:
    with closing(Store(path, "normal", "abc")) as store:
        store.write([Entry(each, [one for one in iterations if one.record_id == each.id]) for each in records], [])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "usage.db"
    write(path, record("a"), record("b"), record("c", usage_state="pending"))
    return path


@pytest.fixture
def outbox(path: Path) -> Iterator[Outbox]:
    with open_outbox(path) as outbox:
        outbox.begin_for(BOOKS, Pushes())
        yield outbox


def pushed(outbox: Outbox, size: int = 10) -> list[list[str]]:
    """Take and acknowledge all that waits; the ids of each batch."""
    batches = []
    while (batch := outbox.take(size, outbox.last())) is not None:
        batches.append(list(batch.rows))
        outbox.acknowledge(batch)
    return batches


def test_a_ledger_that_is_not_pushed_notes_nothing(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        triggers = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'")}
        assert not [name for name in triggers if name.startswith("fleet")]


def test_what_was_there_comes_first_and_what_is_in_flight_never(outbox: Outbox) -> None:
    assert pushed(outbox) == [["a", "b"]]
    assert pushed(outbox) == []


def test_what_comes_or_changes_afterwards_is_taken(path: Path, outbox: Outbox) -> None:
    pushed(outbox)
    write(path, record("d"), record("c"), record("e", usage_state="pending"))
    batch = outbox.take(10, outbox.last())
    assert batch is not None
    assert (set(batch.rows), batch.changed) == ({"c", "d"}, set())
    outbox.acknowledge(batch)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE usage_records SET tag = 'x' WHERE id = 'a'")
    batch = outbox.take(10, outbox.last())
    assert batch is not None
    assert (set(batch.rows), batch.changed, batch.is_new) == ({"a"}, {"a"}, False)


@pytest.mark.parametrize(("start", "is_new"), [("2026-11-01T08:00:00.007Z", True), ("2026-11-01T08:00:00.008Z", False)])
def test_rows_whose_ids_do_not_tell_their_start_are_looked_at(
    path: Path, outbox: Outbox, start: str, is_new: bool
) -> None:
    """Another ledger may have them with another start."""
    pushed(outbox)
    microseconds = 1_793_520_000_007_999
    write(path, record(f"{microseconds:013x}-ffffffffffff", occurred_at=start))
    batch = outbox.take(10, outbox.last())
    assert batch is not None
    assert batch.is_new is is_new


def test_what_is_not_acknowledged_is_taken_again(outbox: Outbox) -> None:
    first, again = outbox.take(1, outbox.last()), outbox.take(1, outbox.last())
    assert first == again


def test_batches_follow_one_another_before_they_are_acknowledged(path: Path, outbox: Outbox) -> None:
    first = outbox.take(1, outbox.last())
    second = outbox.take(1, outbox.last(), first)
    assert first is not None
    assert second is not None
    assert [list(first.rows), list(second.rows)] == [["a"], ["b"]]
    outbox.acknowledge(first)
    outbox.acknowledge(second)
    pushed(outbox)
    write(path, record("d"), record("e"))
    third = outbox.take(1, outbox.last())
    fourth = outbox.take(1, outbox.last(), third)
    assert third is not None
    assert fourth is not None
    assert [list(third.rows), list(fourth.rows), outbox.take(1, outbox.last(), fourth)] == [["d"], ["e"], None]


def test_a_row_that_changes_while_it_is_under_way_is_taken_once_more(path: Path, outbox: Outbox) -> None:
    pushed(outbox)
    write(path, record("d", usage_state="partial"))
    batch = outbox.take(10, outbox.last())
    assert batch is not None
    write(path, record("d"))
    outbox.acknowledge(batch)
    assert pushed(outbox) == [["d"]]


def test_what_was_not_taken_is_put_back(outbox: Outbox) -> None:
    batch = outbox.take(10, outbox.last())
    assert batch is not None
    outbox.acknowledge(batch, left=["b"])
    assert pushed(outbox) == [["b"]]


def test_what_was_not_taken_waits_for_the_next_push(path: Path, outbox: Outbox) -> None:
    pushed(outbox)
    write(path, record("d"), record("e"))
    until, batches = outbox.last(), []
    while (batch := outbox.take(1, until)) is not None:
        batches.append(list(batch.rows))
        outbox.acknowledge(batch, left=list(batch.rows))
    assert batches == [["d"], ["e"]]
    assert pushed(outbox) == [["d", "e"]]


def test_books_that_were_restored_get_everything_again(outbox: Outbox) -> None:
    pushed(outbox)
    assert outbox.pushes.batches == 1
    outbox.start_over(Pushes())
    assert outbox.pushes.batches == 0
    assert pushed(outbox) == [["a", "b"]]


def test_a_ledger_that_was_restored_goes_on_under_another_id(outbox: Outbox) -> None:
    pushed(outbox)
    former = outbox.ledger
    outbox.renew()
    assert outbox.ledger != former
    assert outbox.formers == [former]
    assert pushed(outbox) == [["a", "b"]]


def test_other_books_get_everything(outbox: Outbox) -> None:
    pushed(outbox)
    ledger = outbox.ledger
    outbox.begin_for(OTHERS, Pushes())
    assert pushed(outbox) == [["a", "b"]]
    assert outbox.ledger == ledger


def test_a_ledger_keeps_its_id(path: Path) -> None:
    ids = []
    for _ in range(2):
        with open_outbox(path) as outbox:
            ids.append(outbox.ledger)
    assert ids[0] == ids[1]


def test_a_line_has_every_column_with_what_is_special_in_copy_escaped(path: Path, outbox: Outbox) -> None:
    pushed(outbox)
    write(
        path,
        record("d", tag="a\\b", usage_raw='{"x":"\\n"}'),
        iterations=(IterationRow("d", 0, "message", None, 1, 5),),
    )
    batch = outbox.take(10, outbox.last())
    assert batch is not None
    cells = dict(zip(COLUMNS, batch.rows["d"].split(SEPARATOR), strict=True))
    assert (cells["id"], cells["tag"], cells["session_id"]) == ("d", r"a\\b", NULL)
    assert cells["usage_raw"] == r'{"x":"\\n"}'
    assert batch.iterations == [SEPARATOR.join(["d", "0", "message", NULL, "1", "5", *"00000", NULL])]
    assert batch.months == {"d": "2026-11"}


def test_a_line_may_say_anything() -> None:
    assert line_of(["a", None, 1, "b\\N\n", f"c{SEPARATOR}{NULL}\0"]) == SEPARATOR.join(
        ["a", NULL, "1", "b\\\\N\\\n", f"c\\{SEPARATOR}\\{NULL}\ufffd"]
    )
