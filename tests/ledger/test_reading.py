"""Reading: rows in order, while others write, and without leaving a trace."""

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from usage_ledger.ledger.columns import COLUMNS
from usage_ledger.ledger.filters import Filters
from usage_ledger.ledger.marks import LedgerError
from usage_ledger.ledger.reading import open_for_reading
from usage_ledger.ledger.record import Entry, Record
from usage_ledger.ledger.store import Store

ODD_NAMES = ["usage?mode=rw.db", "usage#1.db", "100%25 usage.db", "bücher 📊.db", "a'b\"c.db"]


def record(id_: str, **fields: Any) -> Record:
    given = {"occurred_at": "2026-11-01T08:00:00.000Z", "host": "h", "path": "/v1/messages", **fields}
    return Record(id=id_, **given)


def fill(path: Path, *records: Record) -> Path:
    """Make a ledger, and close it."""
    with closing(Store(path, "normal", "abc")) as store:
        store.write([Entry(one) for one in records], [])
    return path


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """Five rows in three seconds, handed in in no order."""
    seconds = {"d": 2, "a": 0, "e": 2, "c": 1, "b": 1}
    path = tmp_path / "books" / "usage.db"
    return fill(path, *(record(id_, occurred_at=f"2026-11-01T08:00:0{n}.000Z") for id_, n in seconds.items()))


def ids(path: Path, filters: Filters | None = None, last: int | None = None) -> str:
    with open_for_reading(path) as ledger:
        return "".join(row[0] for row in ledger.rows(filters or Filters(), ["id"], last))


def traces(folder: Path) -> list[tuple[str, bytes | None]]:
    return sorted((str(path), path.read_bytes() if path.is_file() else None) for path in folder.rglob("*"))


def test_rows_come_oldest_first_and_by_id_where_they_began_together(ledger: Path) -> None:
    assert ids(ledger) == "abcde"


@pytest.mark.parametrize(
    ("last", "expected"), [(None, "abcde"), (0, ""), (1, "e"), (2, "de"), (3, "cde"), (5, "abcde"), (99, "abcde")]
)
def test_the_last_rows_are_the_newest_oldest_of_them_first(ledger: Path, last: int | None, expected: str) -> None:
    assert ids(ledger, last=last) == expected


def test_filters_apply_before_the_last_rows_are_taken(ledger: Path) -> None:
    until = Filters(until="2026-11-01T08:00:02.000Z")
    assert (ids(ledger, until), ids(ledger, until, last=2)) == ("abc", "bc")


def test_the_columns_asked_for_come_in_the_order_asked_for(ledger: Path) -> None:
    with open_for_reading(ledger) as opened:
        assert next(opened.rows(Filters(), ["host", "id"])) == ("h", "a")


def test_every_column_comes_back_as_it_was_written(tmp_path: Path) -> None:
    told = record("a", tag="tëam \n1", metadata='{"x": [1]}', http_status=None, total_tokens=2**62, total_cost="0.10")
    with open_for_reading(fill(tmp_path / "usage.db", told)) as opened:
        (row,) = opened.rows(Filters(), COLUMNS)
    assert row == tuple(getattr(told, name) for name in COLUMNS)


def test_a_ledger_without_rows_has_none(tmp_path: Path) -> None:
    assert ids(fill(tmp_path / "usage.db")) == ""


@pytest.mark.parametrize("name", ODD_NAMES)
def test_any_file_name_will_do(tmp_path: Path, name: str) -> None:
    assert ids(fill(tmp_path / name, record("a"))) == "a"
    assert all(path.name.startswith(name) for path in tmp_path.iterdir())


# Reading creates and changes nothing.


def test_a_closed_ledger_is_read_without_a_trace(ledger: Path) -> None:
    before = traces(ledger.parent)
    assert ids(ledger) == "abcde"
    assert traces(ledger.parent) == before


def test_a_closed_ledger_has_no_companions_even_while_it_is_read(ledger: Path) -> None:
    """A reader that is killed leaves nothing behind, and a folder nobody can write is no obstacle."""
    with open_for_reading(ledger) as opened:
        next(opened.rows(Filters(), ["id"]))
        during = [path.name for path in ledger.parent.iterdir()]
    assert set(during) <= {"usage.db", "usage.db-wal", "usage.db-shm"}
    assert [path.name for path in ledger.parent.iterdir()] == ["usage.db"]


@pytest.mark.parametrize("where", ["usage.db", "no/such/folder/usage.db"])
def test_where_there_is_no_ledger_none_is_made(tmp_path: Path, where: str) -> None:
    with pytest.raises(LedgerError, match="no ledger at"):
        ids(tmp_path / where)
    assert list(tmp_path.iterdir()) == []


def test_a_reader_cannot_write(ledger: Path) -> None:
    with (
        pytest.raises(LedgerError),
        open_for_reading(ledger) as opened,
    ):
        opened.connection.execute("DELETE FROM usage_records")
    assert ids(ledger) == "abcde"


SOMEBODY = 65534
"""The user id of nobody, as whom a folder with 0555 really is read-only."""


@pytest.fixture
def read_only() -> Iterator[Path]:
    """A folder that everybody can enter and nobody (but an administrator) can write, once it is filled and closed."""
    folder = Path(tempfile.mkdtemp())
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


@contextmanager
def as_somebody(path: Path, file: int = 0o444, folder: int = 0o555) -> Iterator[None]:
    """Be somebody for whom a ledger and its folder have these modes; who may read both and not write both."""
    path.chmod(file)
    path.parent.chmod(folder)
    mine = os.geteuid()
    if mine == 0:
        os.seteuid(SOMEBODY)
    try:
        assert not all(os.access(each, os.W_OK, effective_ids=True) for each in (path, path.parent))
        yield
    finally:
        os.seteuid(mine)


def test_a_closed_ledger_on_a_read_only_medium_is_read(read_only: Path) -> None:
    path = fill(read_only / "usage.db", record("a"), record("b"))
    with as_somebody(path):
        assert ids(path) == "ab"
    assert [path.name for path in read_only.iterdir()] == ["usage.db"]


NOT_BOTH = pytest.mark.parametrize(
    ("file", "folder"),
    [(0o444, 0o777), (0o666, 0o555), (0o444, 0o555)],
    ids=["a file nobody can write", "a folder nobody can write", "neither"],
)


@NOT_BOTH
def test_where_not_both_can_be_written_reading_leaves_nothing_behind(read_only: Path, file: int, folder: int) -> None:
    """SQLite could make its -wal and -shm files, but not take them away again."""
    path = fill(read_only / "usage.db", record("a"), record("b"))
    with as_somebody(path, file, folder):
        assert ids(path) == "ab"
        with open_for_reading(path) as opened:
            assert next(opened.rows(Filters(), ["id"])) == ("a",)
            assert [path.name for path in read_only.iterdir()] == ["usage.db"]
    assert [path.name for path in read_only.iterdir()] == ["usage.db"]


def killed(path: Path, *records: Record) -> Path:
    """Make a ledger the way a killed writer leaves it: with its newest rows in a -wal file."""
    with tempfile.TemporaryDirectory() as elsewhere, closing(Store(Path(elsewhere, "l.db"), "normal", "abc")) as store:
        store.write([Entry(one) for one in records], [])
        for ending in ("", "-wal"):
            shutil.copy(f"{store.path}{ending}", f"{path}{ending}")
    return path


@NOT_BOTH
def test_an_unclosed_one_there_is_refused_in_one_line(read_only: Path, file: int, folder: int) -> None:
    """Its newest rows are in the -wal file: reading without it would show too few."""
    path = killed(read_only / "usage.db", record("a"))
    Path(f"{path}-wal").chmod(0o444)
    with as_somebody(path, file, folder):
        before = traces(read_only)
        with pytest.raises(LedgerError, match="copy it with its -wal file to a folder you can write") as refused:
            ids(path)
        assert traces(read_only) == before
    assert "\n" not in str(refused.value)


def test_what_that_line_says_to_do_helps(read_only: Path, tmp_path: Path) -> None:
    path = killed(read_only / "usage.db", record("a"))
    for ending in ("", "-wal"):
        copy = Path(shutil.copy(f"{path}{ending}", tmp_path))
        copy.chmod(0o600)
    assert ids(tmp_path / "usage.db") == "a"


def test_a_link_is_followed_to_the_ledger_and_its_wal(read_only: Path, tmp_path: Path) -> None:
    path = killed(read_only / "usage.db", record("a"))
    (tmp_path / "link.db").symlink_to(path)
    with as_somebody(path), pytest.raises(LedgerError, match="with its -wal"):
        ids(Path(os.path.realpath(path)))
    tmp_path.chmod(0o755)
    assert ids(tmp_path / "link.db") == "a"


def test_what_a_killed_writer_left_is_read_and_no_row_changed(tmp_path: Path) -> None:
    """Its -wal file may go into the ledger meanwhile."""
    told = [record("a", tag="one"), record("b", total_tokens=7)]
    path = killed(tmp_path / "usage.db", *told)
    for _ in range(2):
        with open_for_reading(path) as opened:
            found = list(opened.rows(Filters(), COLUMNS))
        assert found == [tuple(getattr(one, name) for name in COLUMNS) for one in told]


# Ledgers that are older, or that other programs have written to.


@pytest.mark.parametrize("last", [None, 5])
@pytest.mark.parametrize("column", ["tag", "speed", "total_cost", "api_key_hint", "http_status"])
def test_a_column_that_an_older_ledger_does_not_have_reads_as_none(ledger: Path, column: str, last: int | None) -> None:
    """SQLite would take its quoted name for text, and show it in every row."""
    with closing(sqlite3.connect(ledger)) as connection:
        connection.execute(f"ALTER TABLE usage_records DROP COLUMN {column}")
    with open_for_reading(ledger) as opened:
        found = [dict(zip(COLUMNS, row, strict=True)) for row in opened.rows(Filters(), COLUMNS, last)]
    assert [(row["id"], row[column], row["host"]) for row in found] == [(id_, None, "h") for id_ in "abcde"]


@pytest.mark.parametrize("value", ["x", "*", "tag"])
def test_a_filter_on_such_a_column_matches_nothing(ledger: Path, value: str) -> None:
    with closing(sqlite3.connect(ledger)) as connection:
        connection.execute("ALTER TABLE usage_records DROP COLUMN tag")
    assert ids(ledger, Filters(tags=(value,))) == ids(ledger, Filters(tags=(value,)), last=3) == ""


def test_text_that_is_not_utf_8_is_read_with_a_mark_in_its_place(ledger: Path) -> None:
    with closing(sqlite3.connect(ledger)) as connection, connection:
        connection.execute("UPDATE usage_records SET tag = CAST(x'61ff62' AS TEXT) WHERE id = 'a'")
    with open_for_reading(ledger) as opened:
        assert next(opened.rows(Filters(), ["tag"])) == ("a\ufffdb",)


def test_what_cannot_be_read_fails_before_the_first_row_is_asked_for(ledger: Path) -> None:
    """A command that writes a header first would have written it for nothing."""
    with closing(sqlite3.connect(ledger)) as connection:
        connection.execute("DROP TABLE usage_iterations")
        connection.execute("DROP TABLE usage_records")
    asked = []
    with pytest.raises(LedgerError), open_for_reading(ledger) as opened:
        asked.append(opened.rows(Filters(), ["id"]))
    assert asked == []


# While others write.


def test_rows_are_read_while_another_connection_writes(ledger: Path) -> None:
    with closing(Store(ledger, "normal", "abc")) as store:
        store.write([Entry(record("f", occurred_at="2026-11-01T08:00:03.000Z"))], [])
        with closing(sqlite3.connect(ledger, isolation_level=None)) as writing:
            writing.execute("BEGIN IMMEDIATE")
            writing.execute("DELETE FROM usage_records WHERE id = 'a'")
            assert ids(ledger) == "abcdef"
            writing.execute("COMMIT")
        assert ids(ledger) == "bcdef"


def test_a_reader_holds_up_no_writer_and_sees_one_moment(ledger: Path) -> None:
    with closing(Store(ledger, "normal", "abc")) as store, open_for_reading(ledger) as opened:
        rows = opened.rows(Filters(), ["id"])
        seen = [next(rows)[0]]
        store.write([Entry(record("f", occurred_at="2026-11-01T08:00:03.000Z"))], [])
        seen += [row[0] for row in rows]
    assert "".join(seen) == "abcde"
    assert ids(ledger) == "abcdef"


# What cannot be read.


def text(path: Path) -> None:
    path.write_text("Dear diary,\n" * 500)


def nothing(path: Path) -> None:
    path.touch()


def folder(path: Path) -> None:
    path.mkdir()


def other_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE notes (body TEXT)")


def newer(path: Path) -> None:
    with closing(sqlite3.connect(fill(path))) as connection:
        connection.execute("PRAGMA user_version = 99")


def torn(path: Path) -> None:
    fill(path, *(record(str(number)) for number in range(500)))
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)


@pytest.mark.parametrize("make", [text, nothing, folder, other_database, newer, torn])
def test_what_is_no_ledger_is_refused_in_one_line_and_left_alone(tmp_path: Path, make) -> None:
    path = tmp_path / "usage.db"
    make(path)
    before = traces(tmp_path)
    with pytest.raises(LedgerError) as refused:
        ids(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert traces(tmp_path) == before


def test_totals_keep_subscriptions_apart_and_say_what_they_leave_out(tmp_path: Path) -> None:
    path = fill(
        tmp_path / "usage.db",
        record("a", usage_state="complete", total_cost="0.1", credential_kind="api_key"),
        record("b", usage_state="complete", total_cost="0.2", credential_kind="none", model="other"),
        record("c", usage_state="complete", total_cost="0.4", credential_kind="oauth"),
        record("d", usage_state="none", total_cost="0"),
        record("e", usage_state="complete", total_cost=None),
        record("f", usage_state="complete", total_cost="not money"),
        record("g", usage_state="partial"),
        record("h", usage_state="pending"),
        record("i", usage_state="missing", metadata='{"_manually_updated":true}'),
    )
    with open_for_reading(path) as ledger:
        assert ledger.books(Filters()) == (Decimal("0.3"), Decimal("0.4"), 3, 2)
        assert ledger.books(Filters(models=("other",))) == (Decimal("0.2"), 0, 0, 0)
        assert ledger.books(Filters(models=("none",))) == (0, 0, 0, 0)
