"""Backup: a whole copy of a ledger, as it is at one moment, while proxies write to it.

Room: ledger. Imports the standard library and its neighbours in this room. By SQLite's backup API, so what is still in
the -wal file is part of it. Promises a private file that is there whole or not at all.
"""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from usage_ledger.ledger import trail
from usage_ledger.ledger.marks import LedgerError
from usage_ledger.ledger.paths import new_file
from usage_ledger.ledger.reading import open_for_reading

PAGES = 2_000
"""Pages that are copied at a time (8 MB)."""


def back_up(ledger: Path, target: Path, progress: Callable[[int, int], None]) -> tuple[int, int]:
    """Copy a ledger to a new file and check the copy; return how many rows and entries of the trail it has.

    `progress` is told how many pages are left, and of how many. Raises `LedgerError`, OSError (FileExistsError where
    there is such a file); then there is no new file.
    """
    with open_for_reading(ledger) as source, new_file(target) as unfinished:
        with closing(sqlite3.connect(unfinished, isolation_level=None)) as copy, source.snapshot():
            trail.length(source)  # from now on it is read as it is at this moment, so that nothing makes it start anew
            try:
                copy.execute("PRAGMA synchronous = OFF")  # it is synced as a whole, at the end
                copy.execute("PRAGMA journal_mode = MEMORY")
                source.connection.backup(
                    copy, pages=PAGES, progress=lambda _status, left, count: progress(left, count), sleep=0
                )
                copy.execute("PRAGMA journal_mode = DELETE")  # one file, which can be read where nobody can write
            except sqlite3.Error as error:
                raise LedgerError(f"cannot write {target}: {error}") from error
        with open_for_reading(unfinished) as made:
            damages = made.integrity()
            if damages:
                raise LedgerError(f"the copy of {ledger} is damaged ({damages[0]}), so the ledger may be; run verify")
            return sum(1 for _ in made.connection.execute("SELECT 1 FROM usage_records")), trail.length(made)
