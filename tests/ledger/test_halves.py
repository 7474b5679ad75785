"""Halves: each row is in one of them, both are of one moment, and where that cannot be there is one reader."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from usage_ledger.ledger import halves, reading
from usage_ledger.ledger.filters import Filters
from usage_ledger.ledger.halves import halves_of
from usage_ledger.ledger.reading import Reader, open_for_reading
from usage_ledger.ledger.record import Entry, Record
from usage_ledger.ledger.store import Store


def fill(path: Path, *ids: str) -> Path:
    with closing(Store(path, "normal", "abc")) as store:
        given = {"occurred_at": "2026-11-01T08:00:00.000Z", "host": "h", "path": "/v1/messages"}
        store.write([Entry(Record(id=each, **given)) for each in ids], [])
    return path


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return fill(tmp_path / "books" / "usage.db", *"abcde")


@pytest.fixture
def many(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A ledger of so many rows that it is worth two threads."""
    monkeypatch.setattr(halves, "MANY", 1)
    return ledger


def ids_in(half: tuple[Reader, str]) -> set[str]:
    reader, its_part = half
    return {row[0] for row in reader.connection.execute(f"SELECT id FROM usage_records WHERE {its_part}")}


def all_of(path: Path) -> set[str]:
    with open_for_reading(path) as reader:
        return {row[0] for row in reader.rows(Filters(), ["id"])}


def halved(path: Path) -> list[set[str]]:
    """The ids that each reader gets."""
    with open_for_reading(path) as reader, halves_of(reader) as found:
        return [*map(ids_in, found)]


def test_each_row_is_in_one_of_two_halves(many: Path) -> None:
    one, other = halved(many)
    assert one
    assert other
    assert one | other == all_of(many)
    assert not one & other


def test_a_few_rows_are_not_halved(ledger: Path) -> None:
    assert halved(ledger) == [all_of(ledger)]


def test_both_halves_stay_at_their_moment_until_the_end(many: Path) -> None:
    before = all_of(many)
    with open_for_reading(many) as reader, halves_of(reader) as found:
        fill(many, "later")
        assert set.union(*map(ids_in, found)) == before
        assert reader.connection.in_transaction
    assert all_of(many) == before | {"later"}


def test_afterwards_the_reader_goes_on_with_what_is_new(many: Path) -> None:
    """A transaction that stays open would keep the ledger's -wal from being taken in."""
    with open_for_reading(many) as reader:
        with halves_of(reader) as found:
            assert len(found) == 2
        fill(many, "later")
        assert "later" in {row[0] for row in reader.rows(Filters(), ["id"])}
        with pytest.raises(RuntimeError), halves_of(reader):
            raise RuntimeError
        assert not reader.connection.in_transaction


@pytest.mark.parametrize(("writes", "readers"), [(1, 2), (1000, 1)])
def test_who_writes_while_they_begin_is_in_both_halves_or_there_is_but_one(
    many: Path, monkeypatch: pytest.MonkeyPatch, writes: int, readers: int
) -> None:
    """A row moves from the first half to the second after the first reader has chosen its moment."""
    connect, left = reading._connect, iter(range(writes))

    def interrupted(path: Path, *more: Path) -> sqlite3.Connection:
        connection = connect(path, *more)

        def look(statement: str) -> None:
            if statement == "BEGIN" and (number := next(left, None)) is not None:
                fill(path, f"more {number}")
                with closing(sqlite3.connect(path)) as writing, writing:
                    writing.execute("DELETE FROM usage_records WHERE rowid = (SELECT min(rowid) FROM usage_records)")

        connection.set_trace_callback(look)
        return connection

    with open_for_reading(many) as reader, monkeypatch.context() as patched:
        patched.setattr(reading, "_connect", interrupted)
        with halves_of(reader) as found:
            assert len(found) == readers
            seen = [*map(ids_in, found)]
    assert "more 0" in set.union(*seen)
    assert set.union(*seen) == all_of(many)


@pytest.mark.parametrize("what", ["moved", "replaced"])
def test_a_ledger_that_is_not_there_any_more_is_read_on_by_one(many: Path, tmp_path: Path, what: str) -> None:
    """Else half of the rows were those of the ledger in its place."""
    before = all_of(many)
    other = fill(tmp_path / "other.db", *(f"other {number}" for number in range(10)))
    with open_for_reading(many) as reader:
        many.rename(tmp_path / "moved.db")
        if what == "replaced":
            other.rename(many)
        with halves_of(reader) as found:
            assert [*map(ids_in, found)] == [before]


def test_who_waits_for_the_first_reader_to_write_is_not_waited_for(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a WAL a writer lets no reader begin while it waits for the others to end."""
    before = all_of(many)
    with closing(sqlite3.connect(many)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
    connect = reading._connect

    def interrupted(path: Path, *more: Path) -> sqlite3.Connection:
        connection = connect(path, *more)

        def look(statement: str) -> None:
            if statement == "BEGIN" and not writing.in_transaction:
                writing.execute("BEGIN IMMEDIATE")
                writing.execute("DELETE FROM usage_records")
                with pytest.raises(sqlite3.OperationalError, match="locked"):
                    writing.execute("COMMIT")  # which goes on waiting

        connection.set_trace_callback(look)
        return connection

    with closing(sqlite3.connect(many, timeout=0, isolation_level=None)) as writing, open_for_reading(many) as reader:
        monkeypatch.setattr(reading, "_connect", interrupted)
        with halves_of(reader) as found:
            assert len(found) == 1
            assert not reader.connection.in_transaction
        writing.execute("COMMIT")
    assert before
    assert all_of(many) == set()


@pytest.mark.parametrize("change", [("STRICT", ""), ("STRICT", "STRICT, WITHOUT ROWID")])
def test_a_table_that_others_have_made_in_their_way_is_not_halved(many: Path, change: tuple[str, str]) -> None:
    before = all_of(many)
    with closing(sqlite3.connect(many)) as connection, connection:
        (made,) = connection.execute("SELECT sql FROM sqlite_master WHERE name = 'usage_records'").fetchone()
        connection.execute("CREATE TEMP TABLE rows AS SELECT * FROM usage_records")
        connection.execute("DROP TABLE usage_records")
        connection.execute(made.replace(*change))
        connection.execute("INSERT INTO usage_records SELECT * FROM rows")
    assert halved(many) == [before]


def test_several_ledgers_and_a_reader_in_a_transaction_are_not_halved(many: Path, tmp_path: Path) -> None:
    archive = Path(shutil.copy(many, tmp_path / "archive.db"))
    with open_for_reading(many, archive) as reader, halves_of(reader) as found:
        assert len(found) == 1
    with open_for_reading(many) as reader, reader.snapshot(), halves_of(reader) as found:
        assert len(found) == 1
