"""Archive: old rows moved into a ledger of their own, in steps of which each may be the last.

Room: ledger. Imports the standard library and its neighbours in this room. The copy is made, checked and named first;
then rows are removed, a page at a time, where they are the same in both files, each page with the keys by which a
replay would look for them (`usage_archived`); what has changed meanwhile stays, and leaves the copy instead. At last
the copy gets its trail and its seal, and the ledger the entry that names the seal's hash. Promises that every row is in
at least one ledger at every moment, that the copy has no row but those that were moved, and that doing it again after
an interruption goes on where it was.
"""

import json
import os
import secrets
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from usage_ledger.ledger import presence, revisions, seals, trail
from usage_ledger.ledger.closing import Period, periods_before, totals_of
from usage_ledger.ledger.columns import COLUMNS, ITERATION_COLUMNS
from usage_ledger.ledger.editing import Editor
from usage_ledger.ledger.filters import FLAGGED, PENDING, Filters
from usage_ledger.ledger.marks import LedgerError
from usage_ledger.ledger.moments import short
from usage_ledger.ledger.paths import new_file, refuse_name_of_sqlite
from usage_ledger.ledger.reading import as_utf8, open_for_reading
from usage_ledger.ledger.schema import migrate
from usage_ledger.ledger.statements import START

PAGE = 500
"""Rows that are copied or removed at a time: some milliseconds of other writers' time."""

ARCHIVABLE = f"NOT {PENDING} AND NOT coalesce({FLAGGED}, 0)"
"""SQL: rows that are settled, and do not want a person any more."""


class Archived(NamedTuple):
    """What was moved (`totals` as in `Sums.fields`), and how many rows stay: changed meanwhile, in flight, flagged."""

    totals: dict[str, Any]
    changed: int
    pending: int
    flagged: int


def archive(editor: Editor, before: str, path: Path, note: str, progress: Callable[[int], object]) -> Archived | None:
    """Move rows before a time into a new ledger at `path`; None where there are none.

    Where `path` is the copy that an interrupted run has made, this one finishes it, for the time that was said then.
    `progress` is told of rows as they are copied and as they are removed. Raises `LedgerError` and FileExistsError.
    """
    _check_target(editor, path)
    owner = presence.new_writer_id()
    with _marked(editor.path, owner):
        if path.exists():
            job = _go_on(editor, before, path, owner)
        elif not _has_any(editor, before):
            return None
        else:
            job = _begin(editor, before, path, owner)
            _make_copy(editor, job, path, progress)
        with _attached(editor, path):
            if not _is_sealed(path):  # once it is, nothing touches the copy any more
                _remove(editor, job, progress)
                _seal(editor, job, path, note)
        totals = _finish(editor, job, path, note)
    editor.check_current()
    stay = (ARCHIVABLE, PENDING, f"NOT {PENDING} AND {FLAGGED}")
    return Archived(totals, *(editor.count(Filters(until=job.before), condition) for condition in stay))


def _check_target(editor: Editor, path: Path) -> None:
    """Refuse what can be no archive, before anything is opened or made."""
    for each in (path, editor.path):
        try:
            str(each).encode()
        except UnicodeEncodeError as error:
            raise LedgerError(f"the name of {str(each)!r} is not UTF-8 text, which an archive needs") from error
    refuse_name_of_sqlite(path)
    if os.path.lexists(path) and (not path.is_file() or path.samefile(editor.path)):
        raise FileExistsError(f"{path} is there already; name another file")


class _Job(NamedTuple):
    """A run of this command: its number in `usage_archives`, the copy's token, and the time that it is for."""

    number: int
    token: str
    before: str


@contextmanager
def _marked(ledger: Path, owner: str) -> Iterator[None]:
    """Say, as long as this process lives, that an archive is under way."""
    mark = presence.Presence(ledger, owner)
    try:
        yield
    finally:
        mark.leave()


def _has_any(editor: Editor, before: str) -> bool:
    any_row = f"SELECT 1 FROM usage_records WHERE occurred_at < ? AND {ARCHIVABLE} LIMIT 1"
    return editor.connection.execute(any_row, (before,)).fetchone() is not None


# The copy.


def _make_copy(editor: Editor, job: _Job, path: Path, progress: Callable[[int], object]) -> None:
    """Make the copy and check it; where that cannot be, there is no copy and nothing was begun."""
    try:
        with new_file(path) as unfinished:
            _copy(editor, job, unfinished, progress)
            _check(unfinished)
    except BaseException:
        with editor.transaction():
            _forget(editor, job.number)
        raise


def _copy(editor: Editor, job: _Job, unfinished: Path, progress: Callable[[int], object]) -> None:
    """Make a ledger of the rows before a time, with their iterations, and an entry that tells it from all others."""
    try:
        with closing(sqlite3.connect(unfinished, isolation_level=None)) as copy:
            copy.execute("PRAGMA synchronous = OFF")  # it is synced as a whole, at the end
            copy.execute("PRAGMA journal_mode = MEMORY")  # should this be killed, it is made anew
            copy.text_factory = as_utf8
            migrate(copy)
            copy.execute("ATTACH ? AS source", (str(editor.path),))
            _check_columns(copy, editor.path)
            copy.execute("BEGIN")
            _copy_rows(copy, job.before, progress)
            after = {"archived_before": job.before, "token": job.token}
            revisions.append(copy, "archive", [revisions.Revision(None, "archive begun", {}, after)])
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
    for page in _pages(copy, f"source.usage_records WHERE occurred_at < ? AND {ARCHIVABLE}", before):
        ids = json.dumps(page)
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


def _pages(connection: sqlite3.Connection, rows: str, *values: str) -> Iterator[list[str]]:
    """Yield the ids of some rows (a table and a condition), oldest first, `PAGE` at a time; nothing is held open."""
    last = (b"", b"")  # as they are in the file, whether that is UTF-8 or not
    while page := connection.execute(
        f"SELECT id, CAST(occurred_at AS BLOB), CAST(id AS BLOB) FROM {rows} "
        "AND (occurred_at, id) > (CAST(? AS TEXT), CAST(? AS TEXT)) ORDER BY occurred_at, id LIMIT ?",
        (*values, *last, PAGE),
    ).fetchall():
        last = page[-1][-2:]
        yield [row[0] for row in page]


def _check(path: Path) -> None:
    """See to it that a copy is sound before anything is removed for it."""
    with open_for_reading(path) as copy:
        problem = next(iter([*copy.integrity(), *trail.broken(copy)]), None)
    if problem is not None:
        raise LedgerError(f"the copy is damaged ({problem}), so nothing is removed; run verify on the ledger")


# The removal.


def _refuse_others(editor: Editor, own: int | None) -> None:
    """Raise `LedgerError` where another archive is not finished; forget those that have removed nothing."""
    for number, other, before, owner in seals.unfinished(editor):
        if presence.is_alive(editor.path, owner):
            raise LedgerError(f"an archive into {other} is under way; wait for its end")
        has_removed = editor.connection.execute("SELECT 1 FROM usage_archived WHERE archive = ? LIMIT 1", (number,))
        if number == own:
            continue
        if has_removed.fetchone():
            raise LedgerError(seals.interrupted(other, before))
        _forget(editor, number)


def _forget(editor: Editor, number: int) -> None:
    editor.connection.execute("DELETE FROM usage_archives WHERE number = ? AND position IS NULL", (number,))


def _begin(editor: Editor, before: str, path: Path, owner: str) -> _Job:
    """Say in the ledger that rows go into a copy from now on."""
    token = secrets.token_hex(16)
    with editor.transaction():
        _refuse_others(editor, None)
        # Whoever is closing a period meanwhile finds that out, and begins anew.
        editor.connection.execute("DELETE FROM usage_closings WHERE position IS NULL")
        number = editor.connection.execute(
            "INSERT INTO usage_archives (token, path, before, owner) VALUES (?, ?, ?, ?)",
            (token, str(path), before, owner),
        ).lastrowid
    assert number is not None
    return _Job(number, token, before)


def _go_on(editor: Editor, before: str, path: Path, owner: str) -> _Job:
    """Take over from a run that was interrupted; raise FileExistsError where `path` is no copy that it has made."""
    try:
        with open_for_reading(path) as copy:
            begun = seals.entry(copy, "ORDER BY position LIMIT 1")
    except LedgerError as error:
        raise FileExistsError(f"{path} is there already; name another file") from error
    with editor.transaction():
        found = editor.connection.execute(
            "SELECT number, token, before, position FROM usage_archives WHERE token = ?", (begun.get("token"),)
        ).fetchone()
        if found is None or found[2] > before:
            raise FileExistsError(f"{path} is there already; name another file")
        if found[3] is not None:
            raise FileExistsError(f"{path} is there already, and complete; name another file for what came since")
        _refuse_others(editor, found[0])
        editor.connection.execute(
            "UPDATE usage_archives SET owner = ?, path = ? WHERE number = ?", (owner, str(path), found[0])
        )
    _check(path)
    return _Job(*found[:3])


@contextmanager
def _attached(editor: Editor, path: Path) -> Iterator[None]:
    editor.connection.execute("ATTACH ? AS archive", (str(path),))
    try:
        yield
    finally:
        editor.connection.execute("DETACH archive")


def _remove(editor: Editor, job: _Job, progress: Callable[[int], object]) -> None:
    """Remove the rows that are in the copy as they are here; those that are not leave the copy instead."""
    for page in _pages(editor.connection, "archive.usage_records WHERE true"):
        with editor.transaction():
            if job.number not in {number for number, *_ in seals.unfinished(editor)}:
                raise LedgerError("another run has taken this archive over")
            _remove_page(editor.connection, job.number, json.dumps(page))
        progress(len(page))


_OF_PAGE = "(SELECT value FROM json_each(?1))"
_ROWS, _ENTRIES = ", ".join(COLUMNS), ", ".join(ITERATION_COLUMNS)
_SAME = f"""
    SELECT id FROM (
        SELECT {_ROWS} FROM archive.usage_records WHERE id IN {_OF_PAGE}
        INTERSECT SELECT {_ROWS} FROM main.usage_records WHERE id IN {_OF_PAGE}
    ) WHERE id NOT IN (
        SELECT record_id FROM (
            SELECT {_ENTRIES} FROM archive.usage_iterations WHERE record_id IN {_OF_PAGE}
            EXCEPT SELECT {_ENTRIES} FROM main.usage_iterations WHERE record_id IN {_OF_PAGE}
        )
        UNION SELECT record_id FROM (
            SELECT {_ENTRIES} FROM main.usage_iterations WHERE record_id IN {_OF_PAGE}
            EXCEPT SELECT {_ENTRIES} FROM archive.usage_iterations WHERE record_id IN {_OF_PAGE}
        )
    )
"""
"""SQL for the ids of a page's rows that say the same in both files."""


def _remove_page(connection: sqlite3.Connection, number: int, ids: str) -> None:
    """Remove rows, within a transaction.

    Should a crash come between the two files, the page is looked at again: what is in both is removed from one.
    """
    same = json.dumps([row[0] for row in connection.execute(_SAME, (ids,))])
    connection.execute(
        "INSERT INTO usage_archived (record_id, archive, request_id, message_id, start) "
        f"SELECT id, ?2, request_id, message_id, {START} FROM main.usage_records WHERE id IN {_OF_PAGE} "
        "ON CONFLICT (record_id) DO UPDATE SET archive = excluded.archive",
        (same, number),
    )
    connection.execute(f"DELETE FROM main.usage_iterations WHERE record_id IN {_OF_PAGE}", (same,))
    connection.execute(f"DELETE FROM main.usage_records WHERE id IN {_OF_PAGE}", (same,))
    # What is here and differs leaves the copy; but a row that was moved and has come back since stays in it.
    differs = (
        f"SELECT id FROM main.usage_records WHERE id IN {_OF_PAGE} "
        "AND id NOT IN (SELECT record_id FROM main.usage_archived WHERE archive = ?2)"
    )
    connection.execute(f"DELETE FROM archive.usage_iterations WHERE record_id IN ({differs})", (ids, number))
    connection.execute(f"DELETE FROM archive.usage_records WHERE id IN ({differs})", (ids, number))


# The end.


def _is_sealed(path: Path) -> bool:
    with open_for_reading(path) as copy:
        return seals.seal_of(copy) is not None


def _seal(editor: Editor, job: _Job, path: Path, note: str) -> None:
    """Give the copy the trail of its rows, the closings that they are of, and an entry at its end that seals it."""
    with open_for_reading(path) as copy:
        parts = [(period, totals_of(copy, period.since, period.until)) for period in periods_before(editor, job.before)]
        totals = totals_of(copy, "", job.before)
    names = ", ".join(revisions.COLUMNS[1:-1])
    (head,) = editor.connection.execute(
        "SELECT coalesce((SELECT hash FROM main.usage_revisions ORDER BY position DESC LIMIT 1), '')"
    ).fetchone()
    told = editor.connection.execute(
        f"SELECT {names} FROM main.usage_revisions WHERE record_id IN (SELECT id FROM archive.usage_records) "
        "ORDER BY position"
    ).fetchall()
    try:
        with closing(sqlite3.connect(path, isolation_level=None)) as copy:
            copy.execute("BEGIN IMMEDIATE")
            revisions.append_entries(copy, told)
            for period, of_period in parts:
                if period.is_closed and of_period["requests"]:
                    _close_in_copy(copy, period, of_period)
            seal = {
                "sealed": True,
                "archived_before": job.before,
                **totals,
                "periods": [{"since": each.since, "until": each.until, **fields} for each, fields in parts],
                "source_head": head,
            }
            revisions.append(copy, "archive", [revisions.Revision(None, note, {}, seal)])
            copy.execute("COMMIT")
    except sqlite3.Error as error:
        raise LedgerError(f"cannot write {path}: {error}") from error


def _close_in_copy(copy: sqlite3.Connection, period: Period, totals: dict[str, Any]) -> None:
    """Close in the copy what is closed in the ledger, so that no command changes it there either."""
    after = {"closed_since": period.since or None, "closed_until": period.until, **totals}
    reason = "closed in the ledger that this was archived from"
    position, _ = revisions.append(copy, "close", [revisions.Revision(None, reason, {}, after)])
    copy.execute(
        "INSERT INTO usage_closings (since, until, position) VALUES (?, ?, ?)", (period.since, period.until, position)
    )


def _finish(editor: Editor, job: _Job, path: Path, note: str) -> dict[str, Any]:
    """Write into the trail what was archived, once all of it was; return its totals."""
    with open_for_reading(path) as copy:
        seal = seals.entry(copy, "ORDER BY position DESC LIMIT 1")
        _, hash_ = revisions.head(copy.connection)
    after = {
        "archived_before": job.before,
        "archive": path.name,
        "archive_hash": hash_,
        **{name: value for name, value in seal.items() if name not in ("sealed", "archived_before", "source_head")},
    }
    with editor.transaction():
        done = editor.connection.execute("SELECT position FROM usage_archives WHERE number = ?", (job.number,))
        if done.fetchone() != (None,):
            raise LedgerError(f"another run has finished the archive into {path} meanwhile")
        reason = note or f"archived before {short(job.before)}"
        position, _ = revisions.append(editor.connection, "archive", [revisions.Revision(None, reason, {}, after)])
        editor.connection.execute("UPDATE usage_archives SET position = ? WHERE number = ?", (position, job.number))
    return seal
