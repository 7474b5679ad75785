"""Lines: whatever a row holds, its line is to the byte what Python's csv module makes of its cells."""

import csv
import io
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from usage_ledger.cli.spreadsheets import FORMULA_STARTS, safe
from usage_ledger.ledger.columns import COLUMNS, JSON_COLUMNS, NUMBER_COLUMNS
from usage_ledger.ledger.filters import Filters
from usage_ledger.ledger.lines import AT_ONCE, Form, lines
from usage_ledger.ledger.marks import LedgerError
from usage_ledger.ledger.reading import Reader, open_for_reading
from usage_ledger.ledger.record import Entry, Record
from usage_ledger.ledger.store import Store

HOSTILE = st.one_of(
    st.sampled_from(
        ["", "plain", ",", '"', "\t", "\n", "\r", "\0", "{}", "{", '{"a":"b,c"}', "a\0b", '{"a":1}\0', '={"}']
    ),
    st.builds("".join, st.tuples(st.sampled_from([*FORMULA_STARTS, "a"]), st.text(max_size=3))),
    st.text(st.sampled_from([*'{}",=+-@\t\r\n\0aé\u2028', *FORMULA_STARTS]), max_size=6),
).map(str.encode) | st.binary(max_size=4)
"""Text, UTF-8 or not, of which each piece means something to somebody."""


def row_of(number: int, cells: dict[str, Any]) -> tuple[str, list[Any]]:
    """A statement that makes a row, and what it binds."""
    plain = {"occurred_at": b"2026-11-01T08:00:00.000Z", **dict.fromkeys(JSON_COLUMNS, b"{}")}
    plain |= dict.fromkeys(NUMBER_COLUMNS, 0)
    told = dict.fromkeys(COLUMNS, b"x") | plain | {"id": f"{number:06}".encode()} | cells
    marks = ", ".join("CAST(? AS TEXT)" if isinstance(value, bytes) else "?" for value in told.values())
    return f"INSERT OR REPLACE INTO usage_records ({', '.join(told)}) VALUES ({marks})", list(told.values())


NEVER_NULL = ("id", "occurred_at", "account_id", "credential_kind", "host", "path", "model", "usage_state", "origin")
CELLS = st.fixed_dictionaries(
    {},
    optional={
        name: st.integers(-(2**63), 2**63 - 1)
        if name in NUMBER_COLUMNS
        else HOSTILE
        if name in (*NEVER_NULL, "metadata", "writer")
        else HOSTILE | st.none()
        for name in COLUMNS
    },
)


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    path = tmp_path / "usage.db"
    Store(path, "normal", "abc").close()
    return path


@pytest.fixture
def reader(ledger: Path) -> Iterator[Reader]:
    with open_for_reading(ledger) as opened:
        yield opened


def written(rows: Iterable[tuple[Any, ...]], delimiter: str) -> str:
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter, lineterminator="\r\n").writerows([safe(each) for each in row] for row in rows)
    return out.getvalue()


def fast_and_slow(reader: Reader, columns: tuple[str, ...], delimiter: str) -> tuple[str, str, int]:
    """The lines, what Python makes of the same rows, and how many of them SQLite left to Python."""
    left = []

    def write(rows: Iterable[tuple[Any, ...]]) -> str:
        told = list(rows)
        left.extend(told)
        return written(told, delimiter)

    with reader.snapshot():
        found = list(lines(reader, Filters(), columns, Form(delimiter, FORMULA_STARTS, write)))
        rows = list(reader.rows(Filters(), columns))
    assert sum(count for _, count in found) == len(rows)
    return "".join(text for text, _ in found), written(rows, delimiter), len(left)


COLUMN_LISTS = st.lists(st.sampled_from(COLUMNS), min_size=1, max_size=6, unique=True).map(tuple)


@given(st.lists(CELLS, max_size=4), COLUMN_LISTS | st.just(COLUMNS), st.sampled_from([",", "\t"]))
@example([{"model": b"a\0b"}], COLUMNS, ",")
@example([{"tag": b""}, {"tag": None}], ("tag",), ",")
@example([{"tag": b"a\rb"}, {"model": b'a"b'}, {"id": b"a\nb"}], COLUMNS, ",")
@example([{"usage_raw": b'={"}'}, {"metadata": b'"'}], COLUMNS, ",")
@example([{"tag": b"\xe2\x82"}, {"session_id": b"\x82\xac"}], COLUMNS, ",")
@example([{"usage_raw": b'{\0"'}, {"metadata": b'{"a":"\xff"}'}], COLUMNS, ",")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)  # the table is emptied each time
def test_lines_are_what_python_makes_of_the_rows(
    ledger: Path, reader: Reader, rows: list[dict[str, Any]], columns: tuple[str, ...], delimiter: str
) -> None:
    with closing(sqlite3.connect(ledger)) as connection, connection:
        connection.execute("DELETE FROM usage_records")
        for number, cells in enumerate(rows):
            connection.execute(*row_of(number, cells))
    found, expected, _ = fast_and_slow(reader, columns, delimiter)
    assert found == expected


@pytest.mark.parametrize("delimiter", [",", "\t"])
def test_only_rows_that_hold_something_special_are_left_to_python(ledger: Path, reader: Reader, delimiter: str) -> None:
    special = {7: "=1", 300: "a\0b", AT_ONCE: f"a{delimiter}b", 2 * AT_ONCE - 1: "two\nlines"}
    records = [
        Record(
            id=f"{number:04}",
            occurred_at="2026-11-01T08:00:00.000Z",
            host="h",
            path="/",
            tag=special.get(number, "größe, a-b" if delimiter == "\t" else "größe; a-b"),
            usage_raw='{"input_tokens":1,"note":"a,b"}',
            metadata='{"user_agent":"tool/1.0 (x, y)"}',
        )
        for number in range(3 * AT_ONCE - 10)
    ]
    with closing(Store(ledger, "normal", "abc")) as store:
        store.write([Entry(each) for each in records], [])
    found, expected, left = fast_and_slow(reader, COLUMNS, delimiter)
    assert found == expected
    assert left == len(special)


def test_rows_of_several_ledgers_and_of_an_older_one_are_lines_as_well(ledger: Path, tmp_path: Path) -> None:
    older = tmp_path / "older.db"
    Store(older, "normal", "abc").close()
    with closing(sqlite3.connect(older)) as connection, connection:
        connection.execute(*row_of(2, {"tag": b"=1"}))
        connection.execute("ALTER TABLE usage_records DROP COLUMN speed")
    with closing(sqlite3.connect(ledger)) as connection, connection:
        connection.execute(*row_of(1, {"tag": b'"'}))
        connection.execute(*row_of(3, {}))
    for paths, expected_left in (((ledger, older), 2), ((older,), 1)):
        with open_for_reading(*paths) as opened:
            found, expected, left = fast_and_slow(opened, COLUMNS, ",")
        assert (found, left) == (expected, expected_left)


def test_a_row_that_changes_meanwhile_is_told_as_it_was(ledger: Path, reader: Reader) -> None:
    with closing(sqlite3.connect(ledger)) as connection, connection:
        connection.execute(*row_of(1, {"tag": b"=1"}))
    with reader.snapshot():
        found = lines(reader, Filters(), ("id", "tag"), Form(",", FORMULA_STARTS, partial(written, delimiter=",")))
        with closing(sqlite3.connect(ledger)) as connection, connection:
            connection.execute("DELETE FROM usage_records")
        assert list(found) == [("000001,'=1\r\n", 1)]


def test_a_damaged_index_of_ids_is_an_error(ledger: Path) -> None:
    with closing(sqlite3.connect(ledger)) as connection, connection:
        connection.execute(*row_of(1, {"tag": b"=1"}))
    with closing(sqlite3.connect(ledger)) as connection, connection:
        connection.execute("PRAGMA writable_schema = 1")
        connection.execute(
            "UPDATE sqlite_master SET rootpage = (SELECT rootpage FROM sqlite_master "
            "WHERE name = 'usage_revisions_record_id') WHERE name = 'sqlite_autoindex_usage_records_1'"
        )
    with open_for_reading(ledger) as opened, pytest.raises(LedgerError, match="damaged"):
        fast_and_slow(opened, COLUMNS, ",")


def test_columns_of_numbers_are_those_of_the_schema(ledger: Path) -> None:
    with closing(sqlite3.connect(ledger)) as connection:
        types = dict(connection.execute("SELECT name, type FROM pragma_table_info('usage_records')").fetchall())
    assert {name for name in COLUMNS if types[name] == "INTEGER"} == set(NUMBER_COLUMNS)
    assert {types[name] for name in COLUMNS if name not in NUMBER_COLUMNS} == {"TEXT"}
    assert set(JSON_COLUMNS).isdisjoint(NUMBER_COLUMNS)
