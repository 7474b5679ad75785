"""Revisions: the trail of what changed a row after it was settled, each entry chained to the one before.

Room: ledger. Imports the standard library and its neighbours in this room. An entry's hash is SHA-256, in hex, of this
JSON array in UTF-8, without spaces: the hash of the entry before ("" for the first), then the entry's other columns in
the table's order, `before` and `after` as the text they are. So nobody can change, remove or insert an entry without a
new hash for every entry after it.
"""

import hashlib
import json
import os
import pwd
import socket
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from usage_ledger.ledger.moments import now
from usage_ledger.ledger.reading import as_object

COLUMNS = ("position", "revised_at", "revised_by", "source", "reason", "record_id", "before", "after", "hash")

TRIGGERS = ("usage_revisions_stay", "usage_revisions_remain", "usage_revisions_follow")
"""What lets nothing be changed, removed or inserted."""

Values = Mapping[str, Any]
"""Columns of a row and what they hold; `iteration_costs` has `usage_iterations.total_cost` in the iterations' order,
and `iterations` the rest of their columns, from `type` on."""


class Revision(NamedTuple):
    """One change of one row: why, and the columns it changed, before and after.

    Without a `record_id` it is about the ledger as a whole: closed books, an archive.
    """

    record_id: str | None
    reason: str
    before: Values
    after: Values


def append(connection: sqlite3.Connection, source: str, revisions: Iterable[Revision]) -> tuple[int, str]:
    """Add entries to the trail, within the transaction that changes the rows; return its last position and hash.

    `source` is the command that does so.
    """
    revised_at, revised_by = now(), who()
    return append_entries(
        connection,
        (
            (
                *(revised_at, revised_by, source, revision.reason, revision.record_id),
                *(_as_json(revision.before), _as_json(revision.after)),
            )
            for revision in revisions
        ),
    )


def append_entries(connection: sqlite3.Connection, entries: Iterable[tuple[str | None, ...]]) -> tuple[int, str]:
    """Add entries as they are (their columns from `revised_at` to `after`); return the trail's last position and hash.

    So an archive takes over what was said of its rows, in a chain of its own.
    """
    position, link = head(connection)

    def chained() -> Iterator[tuple[str | int | None, ...]]:
        nonlocal position, link
        for entry in entries:
            position += 1
            link = hash_of(link, (position, *entry))
            yield (position, *entry, link)

    places = ", ".join("?" for _ in COLUMNS)
    connection.executemany(f"INSERT INTO usage_revisions ({', '.join(COLUMNS)}) VALUES ({places})", chained())
    return position, link


def head(connection: sqlite3.Connection) -> tuple[int, str]:
    """Return the position and the hash of the trail's last entry; 0 and "" where there is none."""
    last = connection.execute("SELECT position, hash FROM usage_revisions ORDER BY position DESC LIMIT 1").fetchone()
    return last or (0, "")


def values_of(after: object) -> dict[str, Any]:
    """Return what an entry's `before` or `after` says; nothing where another program has broken it."""
    return as_object(after) or {}


def hash_of(link: str, entry: tuple[str | int | None, ...]) -> str:
    """Return the hash of an entry (its columns but `hash`) that follows one whose hash is `link`."""
    return hashlib.sha256(_as_json([link, *entry]).encode("utf-8", "surrogatepass")).hexdigest()


def who() -> str:
    """Return whom a change is put down to: the user's name on this machine, and the machine's."""
    try:
        name = pwd.getpwuid(os.getuid()).pw_name  # what the environment says of it could be anything
    except KeyError:  # a container's user may have no name
        name = str(os.getuid())
    return f"{name}@{socket.gethostname()}".encode("utf-8", "replace").decode()


def _as_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
