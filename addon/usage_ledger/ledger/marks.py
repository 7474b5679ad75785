"""The marks by which a ledger is known: its application id and its major version.

Room: ledger. Imports the standard library only, because every reading command starts here.
"""

import sqlite3

APPLICATION_ID = 0x434C554C
"""`PRAGMA application_id` of a ledger: "CLUL"."""

MAJOR = 1
"""`PRAGMA user_version`: a ledger with a higher one was made by a program this one must not write for."""


# One statement, so that all of it is read at one moment, also while another process makes the ledger.
_MARKS = """
    SELECT application_id, user_version, (SELECT count(*) FROM sqlite_master)
    FROM pragma_application_id, pragma_user_version
"""


class LedgerError(Exception):
    """A ledger that cannot be used; the message is one line that says what to do."""


def check_marks(connection: sqlite3.Connection, path: object) -> bool:
    """Return whether the database is a ledger (False: it is empty); raise `LedgerError` where it is something else."""
    try:
        application, major, tables = connection.execute(_MARKS).fetchone()
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise
        raise LedgerError(f"{path} is not a usage ledger: {error}") from error
    if application != APPLICATION_ID:
        if tables or application:
            raise LedgerError(f"{path} is a SQLite database, but not a usage ledger; give another path")
        return False
    if major > MAJOR:
        raise LedgerError(f"{path} was made by a newer major version of usage-ledger (schema {major}); upgrade")
    return True
