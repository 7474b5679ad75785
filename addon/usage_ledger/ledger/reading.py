"""Reading: rows out of a ledger, one at a time, also while proxies write to it.

Room: ledger. Imports the standard library and its neighbours in this room, and nothing heavy: reading commands start
fast. Promises that reading leaves no file behind and changes no row, and that memory does not grow with the number of
rows. Where a killed writer has left a -wal file, SQLite may move its rows into the ledger (a checkpoint), as any next
writer would.
"""

import dataclasses
import json
import math
import os
import sqlite3
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from usage_ledger.ledger import money
from usage_ledger.ledger.columns import COLUMNS
from usage_ledger.ledger.filters import FINAL, OF_A_SUBSCRIPTION, Filters
from usage_ledger.ledger.marks import LedgerError, check_marks
from usage_ledger.ledger.paths import sidecars

BUSY_SECONDS = 10.0


@contextmanager
def open_for_reading(path: Path, *more: Path) -> Iterator["Reader"]:
    """Open an existing ledger read-only; raise `LedgerError` (one line, says what to do) where that cannot be.

    With `more` ledgers, such as archives, the rows of all of them are read as if they were in one. A row that several
    have is there once, as the first of them says it.
    """
    first, *_ = [_check_file(each) for each in (path, *more)]
    connection = _connect(path, *more)
    try:
        yield Reader(connection, None if more else _File(path, first))
    except sqlite3.Error as error:
        raise LedgerError(f"cannot read {' and '.join(map(str, (path, *more)))}: {error}") from error
    finally:
        connection.close()


def connect_for_reading(path: Path) -> sqlite3.Connection:
    """Connect to an existing ledger for a program that keeps its own connections, each for a thread of its own.

    Raises `LedgerError` where that cannot be.
    """
    _check_file(path)
    connection = _connect(path)
    connection.text_factory = as_utf8
    return connection


def _check_file(path: Path) -> tuple[int, int]:
    """See to it that there is a file: opening a pipe would wait for somebody to write to it. Tell which one it is."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise LedgerError(f"there is no ledger at {path}; start the proxy first, or name another with --db") from error
    except OSError as error:
        raise LedgerError(f"cannot read {path}: {error.strerror}") from error
    if stat.S_ISDIR(found.st_mode):
        raise LedgerError(f"{path} is a folder; name a file in it with --db")
    if not stat.S_ISREG(found.st_mode):
        raise LedgerError(f"{path} is not a file; name another with --db")
    return found.st_dev, found.st_ino


def _connect(path: Path, *more: Path) -> sqlite3.Connection:
    connection = _checked(path)
    try:
        for number, each in enumerate(more, 1):
            _checked(each).close()
            connection.execute(f"ATTACH ? AS more_{number}", (_address(each),))
        if more:
            _join(connection, len(more))
        connection.execute("PRAGMA query_only = 1")  # also where it is open for writing
    except sqlite3.OperationalError as error:
        connection.close()
        raise LedgerError(f"cannot read {' and '.join(map(str, (path, *more)))}: {error}") from error
    except BaseException:
        connection.close()
        raise
    return connection


def _address(path: Path) -> str:
    """Return how SQLite opens a ledger for reading in the way that leaves nothing behind.

    Opened for writing, SQLite takes its own -wal and -shm files away again. Where we may not write it could not, so
    there it is told that the file does not change and needs none. That would leave out what is still in a -wal file.
    """
    file = path.resolve()
    if may_be_written(path):
        return f"{file.as_uri()}?mode=rw"
    wal, _ = sidecars(file)
    if wal.exists():
        raise LedgerError(
            f"cannot read {path}, because you may not write it and some of its rows are in its -wal file; "
            "copy it with its -wal file to a folder you can write, and make the copies writable"
        )
    return f"{file.as_uri()}?mode=ro&immutable=1"


def _join(connection: sqlite3.Connection, more: int) -> None:
    """Make the tables of several ledgers one, by views that hide those of the first."""
    ledgers = ["main", *(f"more_{number}" for number in range(1, more + 1))]
    for table, key in (("usage_records", "id"), ("usage_iterations", "record_id"), ("usage_revisions", "record_id")):
        columns = {
            ledger: [row[0] for row in connection.execute("SELECT name FROM pragma_table_xinfo(?, ?)", (table, ledger))]
            for ledger in ledgers
        }
        names = list(dict.fromkeys(name for each in columns.values() for name in each))
        parts = []
        for place, ledger in enumerate(ledgers):
            if not columns[ledger]:
                continue  # an older ledger has no trail
            shown = ", ".join(f'"{name}"' if name in columns[ledger] else f'NULL AS "{name}"' for name in names)
            is_in = {
                other: f"EXISTS (SELECT 1 FROM {other}.usage_records AS other WHERE other.id = own.{key})"
                for other in ledgers
            }
            elsewhere = " ".join(f"AND NOT {is_in[other]}" for other in ledgers[:place])
            if table == "usage_revisions":  # which outlast a row that was archived from the first ledger
                later = [f"NOT {is_in[other]}" for other in ledgers[place + 1 :]]
                elsewhere += f" AND ({is_in[ledger]} OR ({' AND '.join(later) or 'true'}))"
            parts.append(f"SELECT {shown} FROM {ledger}.{table} AS own WHERE true {elsewhere}")
        if parts:
            connection.execute(f"CREATE TEMP VIEW {table} AS {' UNION ALL '.join(parts)}")


def may_be_written(path: Path) -> bool:
    """Whether a ledger can be opened for writing, so that SQLite's companion files come and go."""
    file = path.resolve()
    needed = (file, file.parent, *sidecars(file))
    return all(_may_write(each) for each in needed if each.exists())


def _may_write(path: Path) -> bool:
    return os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


def _checked(path: Path) -> sqlite3.Connection:
    """Connect to a ledger, after seeing to it that it is one."""
    try:
        connection = sqlite3.connect(
            _address(path), uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            if not check_marks(connection, path):
                raise LedgerError(f"{path} is empty and not a usage ledger; name another with --db")
        except BaseException:
            connection.close()
            raise
    except sqlite3.OperationalError as error:
        raise LedgerError(f"cannot read {path}: {error}") from error
    return connection


class _File(NamedTuple):
    """Where a ledger was opened, and which file that was: another may be there by now."""

    path: Path
    identity: tuple[int, int]


class Reader:
    """An open ledger that can only be read. `file` is what it is in, where that is one file."""

    def __init__(self, connection: sqlite3.Connection, file: _File | None = None) -> None:
        self.connection = connection
        self._file = file
        connection.text_factory = as_utf8
        money.register(connection)

    def rows(self, filters: Filters, columns: Sequence[str], last: int | None = None) -> Iterator[tuple[Any, ...]]:
        """Return an iterator over the rows that match, oldest first; with `last`, only so many of the newest.

        Values are None, numbers or text, whatever another program has put into the ledger. A column that this ledger
        does not have yet reads as None. What cannot be read at all fails here, and not at the first row.
        """
        names = ", ".join(f'"{name}"' for name in columns)
        table = self.table()
        where, values = filters.where()
        select = f"SELECT {names} FROM {table} WHERE {where} ORDER BY occurred_at, id"
        if last is not None:
            inner = f"SELECT * FROM {table} WHERE {where} ORDER BY occurred_at DESC, id DESC LIMIT {int(last)}"
            select = f"SELECT {names} FROM ({inner}) ORDER BY occurred_at, id"
        found = self.connection.execute(select, values)
        first = found.fetchone()
        return map(_plain, chain([] if first is None else [first], found))

    def pages(self, filters: Filters, condition: str, columns: Sequence[str], size: int) -> Iterator[list[Any]]:
        """Return rows that match and fulfil an SQL condition of this package, oldest first, `size` at a time.

        Each page is read for itself, so that nothing is held open while the caller writes.
        """
        names = ", ".join(columns)
        last = (b"", b"")  # as they are in the file, whether that is UTF-8 or not
        while True:
            where, values = filters.where()
            page = self.connection.execute(
                f"SELECT {names}, CAST(occurred_at AS BLOB), CAST(id AS BLOB) FROM {self.table()} "
                f"WHERE {where} AND {condition} AND (occurred_at, id) > (CAST(? AS TEXT), CAST(? AS TEXT)) "
                f"ORDER BY occurred_at, id LIMIT {size}",
                (*values, *last),
            ).fetchall()
            if not page:
                return
            last = page[-1][-2:]
            filters = dataclasses.replace(filters, since=None)  # else SQLite begins each page from there
            yield [row[:-2] for row in page]

    def select(self, filters: Filters, expressions: Sequence[str], size: int) -> Iterator[list[tuple[bytes, ...]]]:
        """Return SQL expressions of this package over the rows that match, oldest first, `size` rows at a time.

        Values are None or bytes: turning text into Python's takes its time.
        """
        told = ", ".join(f"CAST({each} AS BLOB)" for each in expressions)
        where, values = filters.where()
        found = self.connection.execute(
            f"SELECT {told} FROM {self.table()} WHERE {where} ORDER BY occurred_at, id", values
        )
        return iter(lambda: found.fetchmany(size), [])

    def having_id(self, ids: Sequence[bytes], columns: Sequence[str]) -> dict[bytes, tuple[Any, ...]]:
        """Return the rows that have one of these ids, under their ids as in the file, with values as in `rows`."""
        names = ", ".join(f'"{name}"' for name in columns)
        marks = ", ".join("CAST(? AS TEXT)" for _ in ids)
        found = self.connection.execute(
            f"SELECT CAST(id AS BLOB), {names} FROM {self.table()} WHERE id IN ({marks})", ids
        )
        return {row_id: _plain(tuple(row)) for row_id, *row in found}

    def is_typed(self) -> bool:
        """Whether SQLite saw to it that columns of text have text in them, and those of numbers whole numbers."""
        found = self.connection.execute(
            "SELECT min(strict) FROM pragma_table_list WHERE name = 'usage_records' AND type = 'table'"
        )
        return bool(found.fetchone()[0])

    def count(self, filters: Filters, condition: str = "true") -> int:
        """Return how many rows match and fulfil an SQL condition of this package."""
        where, values = filters.where()
        found = self.connection.execute(
            f"SELECT count(*) FROM {self.table()} WHERE {where} AND {condition}", values
        ).fetchone()
        return int(found[0])

    def having(self, column: str, values: Sequence[str], columns: Sequence[str]) -> list[tuple[Any, ...]]:
        """Return the rows that have one of these values in a column, oldest first."""
        return self.connection.execute(
            f"SELECT {', '.join(columns)} FROM {self.table()} "
            f"WHERE {column} IN (SELECT value FROM json_each(?)) ORDER BY occurred_at, id",
            (json.dumps(list(values)),),
        ).fetchall()

    def iterations(self, record_ids: Sequence[str], columns: Sequence[str]) -> list[tuple[Any, ...]]:
        """Return the iterations of these rows, in the order in which they ran."""
        return self.connection.execute(
            f"SELECT {', '.join(columns)} FROM {self.table('usage_iterations', columns)} "
            "WHERE record_id IN (SELECT value FROM json_each(?)) ORDER BY record_id, position",
            (json.dumps(list(record_ids)),),
        ).fetchall()

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Read all at one moment, whatever others write meanwhile."""
        self.connection.execute("BEGIN")
        try:
            yield
        finally:
            self.connection.execute("COMMIT")

    def once_more(self) -> "Reader | None":
        """Open the same file again; None where that cannot be, or where another is in its place."""
        if self._file is None:
            return None
        try:
            connection = _connect(self._file.path)
        except (LedgerError, OSError):
            return None
        try:
            if _check_file(self._file.path) == self._file.identity:
                return Reader(connection)
        except LedgerError:
            pass
        connection.close()
        return None

    def integrity(self) -> list[str]:
        """Return what SQLite finds wrong with the file."""
        found = [row[0] for row in self.connection.execute("PRAGMA integrity_check(20)")]
        return [] if found == ["ok"] else found

    def has_table(self, name: str) -> bool:
        """Whether there is a table (or trigger); an older ledger does not have all of them."""
        found = self.connection.execute(
            "SELECT 1 FROM sqlite_master WHERE name = ?1 UNION ALL SELECT 1 FROM sqlite_temp_master WHERE name = ?1",
            (name,),
        )
        return found.fetchone() is not None

    def triggers(self) -> set[str]:
        """Return the names of the triggers that this ledger has."""
        return {row[0] for row in self.connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'")}

    def was_migrated(self, migration: str) -> bool:
        """Whether this ledger once got what a migration of `schema` makes."""
        if not self.has_table("_sqlite_migrations"):
            return False
        found = self.connection.execute("SELECT 1 FROM _sqlite_migrations WHERE name = ?", (migration,)).fetchone()
        return found is not None

    def books(self, filters: Filters) -> money.Books:
        """Add up what the rows that match cost."""
        where, values = filters.where()
        found = self.connection.execute(
            f"SELECT {money.BOOKS} FROM (SELECT total_cost AS cost, {money.units('total_cost')} AS units, "
            f"{OF_A_SUBSCRIPTION} AS subscription, {FINAL} AS final FROM {self.table()} WHERE {where})",
            values,
        ).fetchone()
        return money.books(*found)

    def table(self, name: str = "usage_records", columns: Sequence[str] = COLUMNS) -> str:
        """Return the table to select from, with a NULL for each column that an older ledger does not have.

        Left to itself, SQLite takes a quoted name that is no column for text.
        """
        there = {row[0] for row in self.connection.execute("SELECT name FROM pragma_table_xinfo(?)", (name,))}
        missing = [f'NULL AS "{column}"' for column in columns if column not in there]
        return f"(SELECT *, {', '.join(missing)} FROM {name})" if missing else name


_ODD = frozenset({bytes, float})
"""What a ledger never holds; another program may have put it there."""


def _plain(row: tuple[Any, ...]) -> tuple[Any, ...]:
    return row if _ODD.isdisjoint(map(type, row)) else tuple(_plain_value(value) for value in row)


def _plain_value(value: Any) -> Any:
    if isinstance(value, bytes):
        return as_utf8(value)
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def as_utf8(raw: bytes) -> str:
    """Decode UTF-8, with U+FFFD for what is none."""
    return raw.decode("utf-8", "replace")


def as_object(text: object) -> dict[str, Any] | None:
    """Read a JSON object; None where another program has put something else there."""
    try:
        told = json.loads(str(text))
    except (ValueError, RecursionError):
        return None
    return told if isinstance(told, dict) else None
