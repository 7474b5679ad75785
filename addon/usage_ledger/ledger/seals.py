"""Seals: whether an archive is what its seal says, and what the ledger that it came from says of it.

Room: ledger. Imports the standard library and its neighbours in this room. An archive begins with an entry that has a
token, by which its ledger knows it, and ends with one that seals it: its totals, whose hash stands in the ledger's own
entry (`archive`).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from usage_ledger.ledger import revisions
from usage_ledger.ledger.closing import totals_of
from usage_ledger.ledger.moments import short
from usage_ledger.ledger.reading import Reader


def unfinished(reader: Reader) -> list[tuple[int, str, str, str]]:
    """Return the archives that did not come to their end: number, path, time, and whose run it was."""
    return reader.connection.execute(
        "SELECT number, path, before, owner FROM usage_archives WHERE position IS NULL ORDER BY number"
    ).fetchall()


def interrupted(path: str, before: str) -> str:
    """Say how an archive that was interrupted is finished."""
    return f"an archive into {path} was interrupted; finish it: usage-ledger archive --before {short(before)} {path}"


def entry(reader: Reader, which: str) -> dict[str, Any]:
    """Return what an entry of an archive says; nothing where it is of something else, or cannot be read."""
    if not reader.has_table("usage_revisions"):
        return {}
    found = reader.connection.execute(f"SELECT source, after FROM usage_revisions {which}").fetchone()
    return revisions.values_of(found[1]) if found is not None and found[0] == "archive" else {}


def broken(reader: Reader) -> Iterator[str]:
    """Name what does not agree between archives and their entries in the trail."""
    if not (reader.has_table("usage_archives") and reader.has_table("usage_revisions")):
        return
    yield from _breaks_of_seal(reader)
    for _, path, before, _ in unfinished(reader):
        yield f"archive: {interrupted(path, before)}"
    entries = {position for position, after in _entries(reader) if after.get("archive_hash")}
    known = {row[0] for row in reader.connection.execute("SELECT position FROM usage_archives WHERE position > 0")}
    for position in sorted(entries ^ known):
        yield f"archive: entry {position} of the trail and usage_archives do not say the same"


def _breaks_of_seal(reader: Reader) -> Iterator[str]:
    """Name what of an archive is not what its seal says; what was revised or moved on since is not compared."""
    if not entry(reader, "ORDER BY position LIMIT 1").get("token"):
        return  # it is no archive
    sealed = seal_of(reader)
    if sealed is None:
        yield "archive: it has no seal: it was not finished, or somebody has taken it away"
        return
    position, seal = sealed
    since = "SELECT source FROM usage_revisions WHERE position > ? AND source <> 'close'"
    if reader.connection.execute(since, (position,)).fetchone() is None:
        for name, value in totals_of(reader, "", str(seal.get("archived_before"))).items():
            if seal.get(name) != value:
                yield f"the seal of this archive says {name} {seal.get(name)}, and it has {value}"


def seal_of(reader: Reader) -> tuple[int, dict[str, Any]] | None:
    """Return the entry that seals an archive."""
    return next(((position, after) for position, after in _entries(reader) if after.get("sealed")), None)


def differ(reader: Reader, copy: Reader, name: Path) -> Iterator[str]:
    """Name what of an archive is not what the ledger that it came from says of it; nothing for any other ledger.

    Whether its rows are what its seal says is its own matter (`broken`).
    """
    if not (reader.has_table("usage_archives") and copy.has_table("usage_revisions")):
        return
    token = entry(copy, "ORDER BY position LIMIT 1").get("token")
    found = reader.connection.execute("SELECT position FROM usage_archives WHERE token = ?", (token,)).fetchone()
    if found is None or found[0] is None:
        return
    told = next((after for position, after in _entries(reader) if position == found[0]), {})
    sealed = copy.connection.execute(
        "SELECT after FROM usage_revisions WHERE hash = ?", (told.get("archive_hash"),)
    ).fetchone()
    if sealed is None:
        yield f"{name}: entry {found[0]} of the trail names its seal, and it does not have it"
        return
    for field, value in revisions.values_of(sealed[0]).items():
        if field in told and told[field] != value:
            yield f"{name}: entry {found[0]} of the trail says {field} {told[field]}, and its seal {value}"


def _entries(reader: Reader) -> list[tuple[int, dict[str, Any]]]:
    found = reader.connection.execute(
        "SELECT position, after FROM usage_revisions WHERE source = 'archive' ORDER BY position"
    )
    return [(position, revisions.values_of(after)) for position, after in found]
