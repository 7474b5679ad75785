"""Archive: old rows moved into a ledger of their own, in steps of which each may be the last.

Room: ledger. Imports the standard library and its neighbours in this room. The copy is made, checked and named first;
only then are rows removed, each page where it is the same in both files, in one transaction with the keys by which a
replay would look for them (`usage_archived`). Promises that every row is in at least one ledger at every moment, and
that doing it again after an interruption goes on where it was.
"""

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing as closed_at_end
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from usage_ledger.ledger import revisions
from usage_ledger.ledger.closing import Closing, closings, shown
from usage_ledger.ledger.columns import COLUMNS, COUNT_COLUMNS, ITERATION_COLUMNS
from usage_ledger.ledger.editing import Editor
from usage_ledger.ledger.filters import FINAL, FLAGGED
from usage_ledger.ledger.marks import LedgerError
from usage_ledger.ledger.money import Books, as_amount, books
from usage_ledger.ledger.paths import new_file
from usage_ledger.ledger.reading import Reader, as_utf8, open_for_reading
from usage_ledger.ledger.schema import migrate
from usage_ledger.ledger.statements import ARCHIVE_KEY
from usage_ledger.ledger.summary import Sums, plus

PAGE = 500
"""Rows that are copied or removed at a time: some milliseconds of other writers' time."""

ARCHIVABLE = f"usage_state <> 'pending' AND NOT coalesce({FLAGGED}, 0)"
"""SQL: rows that are settled, and do not want a person any more."""


_NOTHING: dict[str, Any] = Sums((), 0, 0, dict.fromkeys(COUNT_COLUMNS, 0), books(None)).fields()


@dataclass
class Archived:
    """What was moved: totals as in `Sums.fields`, those of closed periods by their ends, and rows that stay."""

    totals: dict[str, Any] = field(default_factory=lambda: _NOTHING.copy())
    of_closings: dict[str, dict[str, Any]] = field(default_factory=dict)
    differ: int = 0
    pending: int = 0
    flagged: int = 0

    def add(self, row: dict[str, Any], closed: list[Closing]) -> None:
        one = _fields(row)
        self.totals = plus(self.totals, one)
        for each in closed:
            if each.since <= row["occurred_at"] < each.until:
                self.of_closings[each.until] = plus(self.of_closings.get(each.until, _NOTHING), one)


def _fields(row: dict[str, Any]) -> dict[str, Any]:
    """Return what one row adds to totals."""
    cost = as_amount(row["total_cost"])
    by_subscription = row["credential_kind"] == "oauth"
    costs = Books(
        billed=Decimal(0) if cost is None or by_subscription else cost,
        subscription=cost if cost is not None and by_subscription else Decimal(0),
        unpriced=int(cost is None and bool(row["final"])),
        unsettled=int(cost is None and not row["final"]),
    )
    return Sums((), 1, 0, {name: row[name] for name in COUNT_COLUMNS}, costs).fields()


def archive(editor: Editor, before: str, path: Path, note: str, progress: Callable[[int], object]) -> Archived | None:
    """Move rows before a time into a new ledger at `path`; None where there are none.

    Where `path` is the copy that an interrupted run has made, this one finishes. `progress` is told of rows as they are
    copied and as they are removed. Raises `LedgerError` and FileExistsError where nothing was moved.
    """
    if not path.exists():
        if not editor.connection.execute(
            f"SELECT 1 FROM usage_records WHERE occurred_at < ? AND {ARCHIVABLE} LIMIT 1", (before,)
        ).fetchone():
            return None
        with new_file(path) as unfinished:
            _copy(editor, before, unfinished, note, progress)
            _check(unfinished)
    hash_ = _begun(editor, before, path)
    with _attached(editor, path):
        archived = _remove(editor, hash_, progress)
        _finish(editor, before, path, hash_, note, archived)
    editor.check_current()
    for name, condition in (("pending", "usage_state = 'pending'"), ("flagged", FLAGGED)):
        count = editor.connection.execute(
            f"SELECT count(*) FROM usage_records WHERE occurred_at < ? AND {condition}", (before,)
        )
        setattr(archived, name, count.fetchone()[0])
    return archived


# The copy.


def _copy(editor: Editor, before: str, unfinished: Path, note: str, progress: Callable[[int], object]) -> None:
    """Make a ledger of the rows before a time, with their iterations, and their revisions in a chain of its own."""
    try:
        with closed_at_end(sqlite3.connect(unfinished, isolation_level=None)) as copy:
            copy.execute("PRAGMA synchronous = OFF")  # it is synced as a whole, at the end
            copy.execute("PRAGMA journal_mode = MEMORY")  # should this be killed, it is made anew
            copy.text_factory = as_utf8
            migrate(copy)
            copy.execute("ATTACH ? AS source", (str(editor.path),))
            _check_columns(copy, editor.path)
            copy.execute("BEGIN")
            _copy_rows(copy, before, progress)
            copy.execute("COMMIT")
            copy.execute("BEGIN")
            _copy_trail(copy, before, note)
            copy.execute("COMMIT")
            copy.execute("DETACH source")
    except sqlite3.Error as error:
        raise LedgerError(f"cannot write the copy: {error}") from error


def _check_columns(copy: sqlite3.Connection, ledger: Path) -> None:
    """See to it that nothing is left out: a newer version may have added columns to the ledger."""
    for table in ("usage_records", "usage_iterations"):
        sides = [
            {row[0] for row in copy.execute("SELECT name FROM pragma_table_xinfo(?, ?)", (table, schema))}
            for schema in ("main", "source")
        ]
        if sides[0] != sides[1]:
            raise LedgerError(f"{ledger} has columns that this version does not know; upgrade usage-ledger")


def _copy_rows(copy: sqlite3.Connection, before: str, progress: Callable[[int], object]) -> None:
    names, of_iterations = ", ".join(COLUMNS), ", ".join(ITERATION_COLUMNS)
    last = (b"", b"")
    while True:
        page = copy.execute(
            "SELECT id, CAST(occurred_at AS BLOB), CAST(id AS BLOB) FROM source.usage_records "
            f"WHERE occurred_at < ? AND {ARCHIVABLE} "
            "AND (occurred_at, id) > (CAST(? AS TEXT), CAST(? AS TEXT)) ORDER BY occurred_at, id LIMIT ?",
            (before, *last, PAGE),
        ).fetchall()
        if not page:
            return
        last = page[-1][-2:]
        ids = json.dumps([row[0] for row in page])
        copy.execute(
            f"INSERT INTO main.usage_records ({names}) SELECT {names} FROM source.usage_records "
            "WHERE id IN (SELECT value FROM json_each(?)) ORDER BY occurred_at, id",
            (ids,),
        )
        copy.execute(
            f"INSERT INTO main.usage_iterations ({of_iterations}) SELECT {of_iterations} FROM source.usage_iterations "
            "WHERE record_id IN (SELECT value FROM json_each(?))",
            (ids,),
        )
        progress(len(page))


def _copy_trail(copy: sqlite3.Connection, before: str, note: str) -> None:
    """Take over what the trail says of the rows, and put an entry at its end that says what this is."""
    names = ", ".join(revisions.COLUMNS[1:-1])
    told = copy.execute(
        f"SELECT {names} FROM source.usage_revisions WHERE record_id IN (SELECT id FROM main.usage_records) "
        "ORDER BY position"
    )
    revisions.append_entries(copy, told)
    count = copy.execute("SELECT count(*) FROM main.usage_records").fetchone()[0]
    head = copy.execute("SELECT hash FROM source.usage_revisions ORDER BY position DESC LIMIT 1").fetchone()
    after = {"archived_before": before, "requests": count, "source_head": head[0] if head else ""}
    revisions.append(copy, "archive", [revisions.Revision(None, note, {}, after)])


def _check(path: Path) -> None:
    """See to it that a copy is sound before anything is removed for it."""
    with open_for_reading(path) as copy:
        problem = next(iter([*copy.integrity(), *copy.broken_links()]), None)
    if problem is not None:
        raise LedgerError(f"the copy is damaged ({problem}), so nothing is removed; run verify on the ledger")


# The removal.


def _begun(editor: Editor, before: str, path: Path) -> str:
    """Return the hash that tells a copy from all others, after seeing to it that `path` is a copy to go on with."""
    _check(path)
    with open_for_reading(path) as copy:
        told = copy.connection.execute(
            "SELECT source, after, hash FROM usage_revisions ORDER BY position DESC LIMIT 1"
        ).fetchone()
        count = copy.connection.execute("SELECT count(*) FROM usage_records").fetchone()[0]
        first = [row[0] for row in copy.connection.execute("SELECT id FROM usage_records LIMIT ?", (PAGE,))]
    after = json.loads(told[1]) if told is not None and told[0] == "archive" else {}
    is_ours = after.get("archived_before") == before and after.get("requests") == count
    with editor.transaction():
        connection = editor.connection
        head = after.get("source_head")
        known = head == "" or connection.execute("SELECT 1 FROM usage_revisions WHERE hash = ?", (head,)).fetchone()
        begun = connection.execute(
            "SELECT position FROM usage_archives WHERE hash = ?", (told[2] if told else "",)
        ).fetchone()
        if begun is not None and begun[0] is not None:
            raise FileExistsError(f"{path} is there already, and complete; name another file for what came since")
        may_go_on = begun is not None or editor.having("id", first, ["id"])
        if not (is_ours and known and may_go_on):
            raise FileExistsError(f"{path} is there already; name another file")
        connection.execute("INSERT OR IGNORE INTO usage_archives (hash) VALUES (?)", (told[2],))
    return str(told[2])


@contextmanager
def _attached(editor: Editor, path: Path) -> Iterator[None]:
    editor.connection.execute("ATTACH ? AS archive", (str(path),))
    try:
        yield
    finally:
        editor.connection.execute("DETACH archive")


def _remove(editor: Editor, hash_: str, progress: Callable[[int], object]) -> Archived:
    """Remove the rows that are in the copy as they are here; add up what was removed, now or by a run before."""
    connection = editor.connection
    (number,) = connection.execute("SELECT number FROM usage_archives WHERE hash = ?", (hash_,)).fetchone()
    closed = closings(editor)
    names = ("id", "occurred_at", "credential_kind", "total_cost", *COUNT_COLUMNS)
    archived = Archived()
    last = (b"", b"")
    while True:
        page = connection.execute(
            f"SELECT {', '.join(names)}, {FINAL} AS final, CAST(occurred_at AS BLOB), CAST(id AS BLOB) "
            "FROM archive.usage_records WHERE (occurred_at, id) > (CAST(? AS TEXT), CAST(? AS TEXT)) "
            "ORDER BY occurred_at, id LIMIT ?",
            (*last, PAGE),
        ).fetchall()
        if not page:
            return archived
        last = page[-1][-2:]
        with editor.transaction():
            gone = _remove_page(connection, number, [row[0] for row in page])
        for row in page:
            if row[0] in gone:
                archived.add(dict(zip((*names, "final"), row, strict=False)), closed)
            else:
                archived.differ += 1
        progress(len(page))


def _remove_page(connection: sqlite3.Connection, number: int, ids: list[str]) -> set[str]:
    """Remove rows, within a transaction; return the ids of those that are only in the archive now."""
    of_page = "(SELECT value FROM json_each(?1))"
    rows, entries = ", ".join(COLUMNS), ", ".join(ITERATION_COLUMNS)
    same = f"""
        SELECT id FROM (
            SELECT {rows} FROM archive.usage_records WHERE id IN {of_page}
            INTERSECT SELECT {rows} FROM main.usage_records WHERE id IN {of_page}
        ) WHERE id NOT IN (
            SELECT record_id FROM (
                SELECT {entries} FROM archive.usage_iterations WHERE record_id IN {of_page}
                EXCEPT SELECT {entries} FROM main.usage_iterations WHERE record_id IN {of_page}
            )
            UNION SELECT record_id FROM (
                SELECT {entries} FROM main.usage_iterations WHERE record_id IN {of_page}
                EXCEPT SELECT {entries} FROM archive.usage_iterations WHERE record_id IN {of_page}
            )
        )
    """
    found = json.dumps([row[0] for row in connection.execute(same, (json.dumps(ids),))])
    for key in ("id", ARCHIVE_KEY):
        connection.execute(
            f"INSERT OR IGNORE INTO usage_archived (key, archive) SELECT {key}, ?2 FROM main.usage_records "
            f"WHERE id IN {of_page}",
            (found, number),
        )
    connection.execute(f"DELETE FROM main.usage_iterations WHERE record_id IN {of_page}", (found,))
    connection.execute(f"DELETE FROM main.usage_records WHERE id IN {of_page}", (found,))
    gone = connection.execute(
        f"SELECT key FROM usage_archived WHERE key IN {of_page} AND archive = ?2 "
        "AND key NOT IN (SELECT id FROM main.usage_records)",
        (json.dumps(ids), number),
    )
    return {row[0] for row in gone}


def _finish(editor: Editor, before: str, path: Path, hash_: str, note: str, archived: Archived) -> None:
    """Write into the trail what was archived, once all of it was."""
    after = {
        "archived_before": before,
        "archive": path.name,
        "archive_hash": hash_,
        **archived.totals,
        "of_closings": archived.of_closings,
    }
    with editor.transaction():
        revision = revisions.Revision(None, note or f"archived before {shown(before)}", {}, after)
        position, _ = revisions.append(editor.connection, "archive", [revision])
        editor.connection.execute("UPDATE usage_archives SET position = ? WHERE hash = ?", (position, hash_))


def broken(reader: Reader) -> Iterator[str]:
    """Name what does not agree between archives and their entries in the trail."""
    if not (reader.has_table("usage_archives") and reader.has_table("usage_revisions")):
        return
    known = dict(reader.connection.execute("SELECT hash, position FROM usage_archives"))
    entries = reader.connection.execute(
        "SELECT position, after FROM usage_revisions WHERE source = 'archive' ORDER BY position"
    )
    told = {entry.get("archive_hash"): position for position, after in entries if (entry := json.loads(after))}
    for hash_, position in known.items():
        if position is None:
            yield "archive: one was interrupted; run the same command again, and it goes on where it was"
        elif told.get(hash_) != position:
            yield f"archive: entry {position} of the trail and usage_archives do not say the same"
