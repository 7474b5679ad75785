"""Halves: the rows of a large ledger for two readers, each in a thread of its own.

Room: ledger. Imports the standard library and its neighbours in this room. SQLite leaves the interpreter to others
while it works, so two threads take little more than half the time of one. Promises that each row is in one half, that
both readers see the ledger at one moment, and that neither holds it any longer than its half is read.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager

from usage_ledger.ledger.reading import Reader

MANY = 100_000
"""Rows from which on a second thread is worth it."""


@contextmanager
def halves_of(reader: Reader, rowid: str = "rowid") -> Iterator[list[tuple[Reader, str]]]:
    """Give the rows to two readers, each with the SQL condition of its half, over `rowid`.

    It is one reader with all rows where these are not many, not in one plain table, or where no moment is found at
    which both can begin.
    """
    middle = _middle(reader)
    other = None if middle is None else reader.once_more()
    if other is None:
        yield [(reader, "true")]
        return
    with closing(other.connection):
        if not _are_at_one_moment(reader, other):
            yield [(reader, "true")]
            return
        try:
            yield [(reader, f"{rowid} < {middle}"), (other, f"{rowid} >= {middle}")]
        finally:
            _end(reader)


def _middle(reader: Reader) -> int | None:
    """Return the number in the middle of those that SQLite gives to rows; None where they are not worth halving."""
    if reader.connection.in_transaction or reader.table() != "usage_records":
        return None
    # What is merged of two halves is text, whose bytes tell the order: in no type of their own, and in UTF-8.
    is_plain = reader.connection.execute(
        "SELECT type = 'table' AND NOT wr AND strict AND (SELECT encoding FROM pragma_encoding) = 'UTF-8' "
        "FROM pragma_table_list WHERE schema = 'main' AND name = 'usage_records'"
    ).fetchone()
    if not is_plain or not is_plain[0]:
        return None
    first, last = reader.connection.execute(
        "SELECT (SELECT min(rowid) FROM usage_records), (SELECT max(rowid) FROM usage_records)"
    ).fetchone()
    return None if first is None or last - first < MANY else (first + last) // 2


def _are_at_one_moment(one: Reader, other: Reader) -> bool:
    """Begin to read with both, and tell whether nobody has written in between; if so, both stay at it.

    The second one does not wait for a lock: without a WAL, who has it may be waiting for the first one.
    """
    other.connection.execute("PRAGMA busy_timeout = 0")
    found = False
    try:
        for _ in range(3):
            before = other.connection.execute("PRAGMA data_version").fetchone()
            for each in (one, other):
                each.connection.execute("BEGIN")
                each.connection.execute("SELECT 1 FROM usage_records LIMIT 1").fetchone()  # here its moment is chosen
            found = other.connection.execute("PRAGMA data_version").fetchone() == before
            if found:
                break
            for each in (one, other):
                _end(each)
    except sqlite3.OperationalError:  # a lock; what else it may be, one reader alone will tell
        pass
    finally:
        if not found:
            _end(one)
    return found


def _end(reader: Reader) -> None:
    """End a transaction of reading, if it has not ended by itself."""
    if reader.connection.in_transaction:
        reader.connection.execute("COMMIT")
