"""The store: one open connection that writes rows. Lives on one thread.

Room: ledger. Imports the standard library, `msgspec` and its neighbours in this room. Promises that a batch is written
whole or not at all, that files are private, and that opening a ledger settles the rows that dead writers left pending.
"""

import contextlib
import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path

import msgspec

from usage_ledger.ledger import presence, statements
from usage_ledger.ledger.marks import LedgerError
from usage_ledger.ledger.paths import make_private_file, make_private_folder, sidecars
from usage_ledger.ledger.record import Entry
from usage_ledger.ledger.schema import migrate

BUSY_MS = 1500
"""How long a commit waits for another writer's lock before the rows are kept for a later try."""


class Store:
    """An open ledger. `durability` is `full` (fsync each commit) or `normal` (survives the process, not the power).

    Somebody may remove or replace the ledger's files while several proxies have them open. SQLite finds its `-wal` and
    `-shm` by name, so those of the old file would then be taken for the new one's, or the new one's taken away when
    the old one is closed. Here they are opened and closed by one process at a time (`presence.alone`), and what
    belongs to a file that is gone is never left to the next.
    """

    def __init__(self, path: Path, durability: str, writer_id: str, busy_ms: int = BUSY_MS) -> None:
        self.path = path
        self._names = [str(path), *map(str, sidecars(path))]
        self._writer_id = writer_id
        make_private_folder(path.parent)
        with presence.alone(path):
            self._make_file()
            self.connection = sqlite3.connect(
                path, isolation_level=None, timeout=busy_ms / 1000, check_same_thread=False
            )
            try:
                self._prepare(durability)
            except BaseException:
                self.connection.close()
                raise
            self._files = [_identity(name) for name in self._names]

    def _make_file(self) -> None:
        """Make the ledger's file if there is none; SQLite itself would not make it private.

        One that is there is not touched: closing a descriptor of it would drop this process's locks on it.
        """
        if not self.path.exists():
            for sidecar in sidecars(self.path):
                sidecar.unlink(missing_ok=True)  # of a ledger that was removed, and unreadable without it
            with contextlib.suppress(FileExistsError):
                os.close(make_private_file(self.path, os.O_RDWR))

    def _prepare(self, durability: str) -> None:
        connection = self.connection
        migrate(connection)
        connection.execute("PRAGMA journal_mode = WAL")
        self.set_durability(durability)
        connection.execute("PRAGMA journal_size_limit = 67108864")  # give back what a long reader let the WAL grow to
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()  # the -wal is there once something is read

    def set_durability(self, durability: str) -> None:
        self.durability = durability
        self.connection.execute(f"PRAGMA synchronous = {'FULL' if durability == 'full' else 'NORMAL'}")

    def is_current(self) -> bool:
        """Whether the paths of the file and of its -wal still lead to those that are open here."""
        return _identity(self._names[0]) == self._files[0] and _identity(self._names[1]) == self._files[1]

    def write(self, entries: list[Entry], withdrawn: list[str]) -> None:
        """Write a batch of entries, in their order, and remove withdrawn pending rows: all of it or nothing."""
        is_one_statement = len(entries) <= statements.AT_ONCE and not withdrawn
        if is_one_statement and all(map(_is_plain, entries)) and not any(map(_may_be_known, entries)):
            self._upsert(entries)
            return
        with self.transaction():
            # What is read again may have been archived, also a moment ago. A live request gets its row in any case.
            entries = self.without_archived(entries, _may_be_known)
            likely = self._likely_elsewhere(entries)
            for plain, run in groupby(entries, lambda entry: _is_plain(entry) and id(entry) not in likely):
                if plain:
                    self._upsert(list(run))
                else:
                    for entry in run:
                        self._write_special(entry)
            if withdrawn:
                self.connection.execute(statements.WITHDRAW, (_as_json(withdrawn),))

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Keep other writers out, and commit all that is done meanwhile, or nothing of it."""
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self.connection.execute("ROLLBACK")
            raise
        self.connection.execute("COMMIT")

    def _upsert(self, entries: list[Entry]) -> None:
        statements.write(self.connection, statements.upsert, (entry.record for entry in entries))

    def _write_special(self, entry: Entry) -> None:
        """Write an entry that has to find its row first, may only add one, is redacted, or has iterations."""
        row_id = statements.found_id(self.connection, entry) if entry.identify or entry.alias is not None else None
        if row_id is not None:
            _rename(entry, row_id)
        upsert = statements.upsert_redacted if entry.redacted else statements.upsert
        statement = statements.insert_new if entry.only_new else upsert
        changed = self.connection.execute(f"{statement(1)} RETURNING id", statements.values([entry.record])).fetchall()
        if changed and entry.iterations:
            self.connection.execute(statements.INSERT_ITERATIONS, (_as_json(entry.iterations),))

    def _likely_elsewhere(self, entries: list[Entry]) -> set[int]:
        """Return which entries (by `id`) of captures have to be looked for: a row of theirs may have another id."""
        read_again = [entry for entry in entries if entry.alias is not None]
        starts = Counter(entry.record.occurred_at for entry in read_again)
        asked = [
            (place, entry.record.id, entry.alias, entry.record.occurred_at, entry.record.request_id)
            for place, entry in enumerate(read_again)
        ]
        told = self.connection.execute(statements.FIND_LIKELY, (_as_json(asked),)) if asked else ()
        found = {row[0] for row in told}
        return {
            id(entry)
            for place, entry in enumerate(read_again)
            # A capture may hold a request twice, and then both are in this batch.
            if place in found or starts[entry.record.occurred_at] > 1
        }

    def without_archived(self, entries: list[Entry], may_be: Callable[[Entry], bool]) -> list[Entry]:
        """Leave out entries whose rows were archived, of those that may be."""
        asked = [
            (
                *(place, entry.record.id, entry.alias),
                *(*statements.ids_told(entry), _start(entry), entry.redacted, entry.identify),
                *statements.started(entry),
            )
            for place, entry in enumerate(entries)
            if may_be(entry)
        ]
        if not asked:
            return entries
        found = {row[0] for row in self.connection.execute(statements.FIND_ARCHIVED, (_as_json(asked),))}
        return [entry for place, entry in enumerate(entries) if place not in found]

    def probe(self) -> None:
        """Find out whether the ledger can be written, by writing something that changes nothing."""
        with self.transaction():
            version = self.connection.execute("PRAGMA user_version").fetchone()[0]
            self.connection.execute(f"PRAGMA user_version = {version}")  # writes a page, which a full disk refuses

    def settle_dead_writers(self) -> int:
        """Settle the pending rows of writers that no longer run; return how many there were."""
        settled = 0
        for (writer,) in self.connection.execute(statements.PENDING_WRITERS).fetchall():
            writer_id = writer.rpartition(" ")[2]
            if writer_id != self._writer_id and not presence.is_alive(self.path, writer_id):
                settled += self.connection.execute(statements.SETTLE_DEAD, (writer,)).rowcount
        presence.forget_dead_writers(self.path)
        return settled

    def settle_own(self, writer: str) -> int:
        """Settle the rows that this writer leaves in flight, as whoever starts next would; return how many."""
        return self.connection.execute(statements.SETTLE_DEAD, (writer,)).rowcount

    def close(self) -> None:
        """Close the ledger; what it holds is then in its one file, wherever that was moved to."""
        with contextlib.ExitStack() as entered:
            entered.callback(self.connection.close)
            with contextlib.suppress(OSError):  # its folder is gone, or another writer is stuck: close all the same
                entered.enter_context(presence.alone(self.path))
                entered.callback(self.connection.close)  # within the lock; closing twice does nothing
            if not self.is_current():
                self._leave_its_names_to_others()

    def _leave_its_names_to_others(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self.connection.setconfig(sqlite3.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, True)
        for name, own in zip(self._names[1:], self._files[1:], strict=True):
            if own is not None and _identity(name) == own:
                with contextlib.suppress(OSError):
                    os.unlink(name)


def _start(entry: Entry) -> str:
    return f"{entry.record.occurred_at} {entry.record.host} {entry.record.path}"


def _rename(entry: Entry, row_id: str) -> None:
    entry.record.id = row_id
    for iteration in entry.iterations:
        iteration.record_id = row_id


def _is_plain(entry: Entry) -> bool:
    """Whether one statement can write this entry together with others."""
    return not (entry.iterations or entry.identify or entry.only_new or entry.redacted)


def _may_be_known(entry: Entry) -> bool:
    """Whether an entry is of a flow that is read again."""
    return entry.record.origin == "replay" or entry.alias is not None


def _identity(name: str) -> tuple[int, int] | None:
    try:
        status = os.stat(name)
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
