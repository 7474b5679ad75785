"""The trail as it is read: what changed a row, and whether each entry follows from the one before.

Room: ledger. Imports its neighbours in this room; `revisions` is what writes it. An older ledger has no trail, and then
there is nothing in it.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from usage_ledger.ledger import revisions
from usage_ledger.ledger.reading import Reader

_TABLE = "usage_revisions"


HISTORY = ("revised_at", "revised_by", "source", "reason", "before", "after")


def history(reader: Reader, record_id: str, columns: Sequence[str] = HISTORY) -> list[tuple[Any, ...]]:
    """Return the trail of one row, oldest first: these columns of each of its entries."""
    if not reader.has_table(_TABLE):
        return []
    return reader.connection.execute(
        f"SELECT {', '.join(columns)} FROM usage_revisions WHERE record_id = ? ORDER BY position", (record_id,)
    ).fetchall()


def afters(reader: Reader, record_ids: Sequence[str]) -> list[tuple[str, str]]:
    """Return id and `after` of these rows' revisions, one row after the other, oldest first."""
    if not reader.has_table(_TABLE):
        return []
    return reader.connection.execute(
        "SELECT record_id, after FROM usage_revisions "
        "WHERE record_id IN (SELECT value FROM json_each(?)) ORDER BY record_id, position",
        (json.dumps(list(record_ids)),),
    ).fetchall()


def revised_but_gone(reader: Reader) -> list[str]:
    """Return the ids of rows that the trail knows, and that are neither in the ledger nor archived."""
    if not reader.has_table(_TABLE):
        return []
    archived = " UNION ALL SELECT record_id FROM usage_archived" if reader.has_table("usage_archived") else ""
    found = reader.connection.execute(
        "SELECT DISTINCT record_id FROM usage_revisions WHERE record_id IS NOT NULL "
        f"AND record_id NOT IN (SELECT id FROM usage_records{archived}) ORDER BY record_id LIMIT 100"
    )
    return [row[0] for row in found]


def length(reader: Reader) -> int:
    """Return how many entries the trail has."""
    if not reader.has_table(_TABLE):
        return 0
    return int(reader.connection.execute("SELECT count(*) FROM usage_revisions").fetchone()[0])


def broken(reader: Reader) -> Iterator[str]:
    """Name the first entry of the trail that does not follow from the one before; nothing where all do."""
    if not reader.has_table(_TABLE):
        if reader.was_migrated("create_usage_revisions"):
            yield "trail: its table usage_revisions is gone"
        return
    triggers = reader.triggers()
    for name in revisions.TRIGGERS:
        if name not in triggers:
            yield f"trail: its trigger {name} is gone, so that it could be changed"
    link = ""
    names = ", ".join(revisions.COLUMNS)
    told = reader.connection.execute(f"SELECT {names} FROM usage_revisions ORDER BY position")
    for number, (*entry, found) in enumerate(told, 1):
        link = revisions.hash_of(link, tuple(entry))
        position, at, _, source, _, record_id, *_ = entry
        if position != number:
            yield f"trail: entry {number} is missing; the one that follows has number {position}"
            return
        if link != found:
            yield f"trail: entry {number} ({source}, row {record_id}, {at}) is not what its hash vouches for"
            return
