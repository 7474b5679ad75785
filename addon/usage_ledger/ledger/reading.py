"""Reading: rows out of a ledger, one at a time, also while proxies write to it.

Room: ledger. Imports the standard library and its neighbours in this room, and nothing heavy: reading commands start
fast. Promises that reading creates and changes nothing, and that memory does not grow with the number of rows.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from usage_ledger.ledger.filters import Filters
from usage_ledger.ledger.marks import LedgerError, check_marks

BUSY_SECONDS = 10.0


@contextmanager
def open_for_reading(path: Path) -> Iterator["Reader"]:
    """Open an existing ledger read-only; raise `LedgerError` (one line, says what to do) where that cannot be."""
    if not path.exists():
        raise LedgerError(f"there is no ledger at {path}; start the proxy first, or name another with --db")
    connection = _connect(path)
    try:
        yield Reader(connection)
    except sqlite3.Error as error:
        raise LedgerError(f"cannot read {path}: {error}") from error
    finally:
        connection.close()


def _connect(path: Path) -> sqlite3.Connection:
    """Connect for reading. On a medium nobody can write, SQLite needs to be told that the file will not change."""
    address = path.resolve().as_uri()
    try:
        return _checked(f"{address}?mode=rw", path)
    except sqlite3.OperationalError as error:
        if path.with_name(path.name + "-wal").exists():
            raise LedgerError(
                f"cannot read {path}: {error}; copy it with its -wal file to a folder you can write"
            ) from error
    try:
        return _checked(f"{address}?mode=ro&immutable=1", path)
    except sqlite3.OperationalError as error:
        raise LedgerError(f"cannot read {path}: {error}") from error


def _checked(address: str, path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(address, uri=True, timeout=BUSY_SECONDS, isolation_level=None)
    try:
        # Opened for writing, so that SQLite takes its own -wal and -shm files away again; but nothing may be written.
        connection.execute("PRAGMA query_only = 1")
        if not check_marks(connection, path):
            raise LedgerError(f"{path} is empty and not a usage ledger; name another with --db")
    except BaseException:
        connection.close()
        raise
    return connection


class Reader:
    """An open ledger that can only be read."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def rows(self, filters: Filters, columns: Sequence[str], last: int | None = None) -> Iterator[tuple[Any, ...]]:
        """Return an iterator over the rows that match, oldest first; with `last`, only so many of the newest."""
        names = ", ".join(f'"{name}"' for name in columns)
        where, values = filters.where()
        select = f"SELECT {names} FROM usage_records WHERE {where} ORDER BY occurred_at, id"
        if last is not None:
            inner = f"SELECT * FROM usage_records WHERE {where} ORDER BY occurred_at DESC, id DESC LIMIT {int(last)}"
            select = f"SELECT {names} FROM ({inner}) ORDER BY occurred_at, id"
        return self._connection.execute(select, values)
