"""The store: one open connection that writes rows. Lives on one thread.

Room: ledger. Imports the standard library and its neighbours in this room. Promises that a batch is written whole or
not at all, that files are private, and that opening a ledger settles the rows that dead writers left pending.
"""

import os
import sqlite3
from itertools import groupby
from pathlib import Path

import msgspec

from usage_ledger.ledger import presence, statements
from usage_ledger.ledger.marks import LedgerError
from usage_ledger.ledger.paths import make_private_folder, open_private_file
from usage_ledger.ledger.record import Entry
from usage_ledger.ledger.schema import migrate

BUSY_MS = 1500
"""How long a commit waits for another writer's lock before the rows are kept for a later try."""


class Store:
    """An open ledger. `durability` is `full` (fsync each commit) or `normal` (survives the process, not the power)."""

    def __init__(self, path: Path, durability: str, writer_id: str) -> None:
        self.path = path
        self._writer_id = writer_id
        make_private_folder(path.parent)
        os.close(open_private_file(path, os.O_RDWR))
        self._connection = sqlite3.connect(path, isolation_level=None, timeout=BUSY_MS / 1000, check_same_thread=False)
        try:
            self._prepare(durability)
        except BaseException:
            self._connection.close()
            raise
        self._identity = _identity(path)

    def _prepare(self, durability: str) -> None:
        connection = self._connection
        migrate(connection)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {'FULL' if durability == 'full' else 'NORMAL'}")
        connection.execute("PRAGMA journal_size_limit = 67108864")  # give back what a long reader let the WAL grow to

    def is_current(self) -> bool:
        """Whether the path still leads to the file that is open here."""
        return _identity(self.path) == self._identity

    def write(self, entries: list[Entry], withdrawn: list[str]) -> None:
        """Write a batch of entries, in their order, and remove withdrawn pending rows: all of it or nothing."""
        if not withdrawn and all(map(_is_plain, entries)):
            self._upsert(entries)
            return
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            for plain, run in groupby(entries, _is_plain):
                if plain:
                    self._upsert(list(run))
                else:
                    for entry in run:
                        self._write_special(entry)
            if withdrawn:
                self._connection.execute(statements.WITHDRAW, (_as_json(withdrawn),))
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def _upsert(self, entries: list[Entry]) -> None:
        self._connection.execute(statements.UPSERT, (_as_json([entry.record for entry in entries]),))

    def _write_special(self, entry: Entry) -> None:
        """Write an entry that has to find its row first, may only add one, or has iterations."""
        if entry.identify:
            self._identify(entry)
        statement = statements.INSERT_NEW if entry.only_new else statements.UPSERT
        changed = self._connection.execute(f"{statement} RETURNING id", (_as_json([entry.record]),)).fetchall()
        if changed and entry.iterations:
            self._connection.execute(statements.INSERT_ITERATIONS, (_as_json(entry.iterations),))

    def _identify(self, entry: Entry) -> None:
        """Give an entry whose flow id does not last the id of the row that it already has."""
        record = entry.record
        for statement, values in (
            (statements.FIND_BY_REQUEST_ID, (record.request_id,)),
            (statements.FIND_BY_MESSAGE_ID, (record.message_id, record.request_id)),
            (
                statements.FIND_BY_START,
                (record.occurred_at, record.host, record.path, record.request_id, record.message_id),
            ),
        ):
            found = self._connection.execute(statement, values).fetchone() if values[0] else None
            if found:
                record.id = found[0]
                for iteration in entry.iterations:
                    iteration.record_id = record.id
                return

    def probe(self) -> None:
        """Find out whether the ledger can be written, by writing something that changes nothing."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            version = self._connection.execute("PRAGMA user_version").fetchone()[0]
            self._connection.execute(f"PRAGMA user_version = {version}")  # writes a page, which a full disk refuses
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def settle_dead_writers(self) -> int:
        """Settle the pending rows of writers that no longer run; return how many there were."""
        settled = 0
        for (writer,) in self._connection.execute(statements.PENDING_WRITERS).fetchall():
            writer_id = writer.rpartition(" ")[2]
            if writer_id != self._writer_id and not presence.is_alive(self.path, writer_id):
                settled += self._connection.execute(statements.SETTLE_DEAD, (writer,)).rowcount
        presence.forget_dead_writers(self.path)
        return settled

    def close(self) -> None:
        self._connection.close()


def _is_plain(entry: Entry) -> bool:
    """Whether one statement can write this entry together with others."""
    return not (entry.iterations or entry.identify or entry.only_new)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _as_json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def is_trouble(error: BaseException) -> bool:
    """Whether an error is the ledger's (disk, locks, permissions) and may pass, rather than one row's."""
    return isinstance(error, sqlite3.OperationalError | OSError | LedgerError) or (
        isinstance(error, sqlite3.DatabaseError)
        and not isinstance(error, sqlite3.IntegrityError | sqlite3.DataError | sqlite3.ProgrammingError)
    )
