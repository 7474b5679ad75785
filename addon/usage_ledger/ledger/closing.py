"""Closing: periods whose books are closed, and what came or changed in them afterwards.

Room: ledger. Imports the standard library and its neighbours in this room. A period goes from the last closing to its
own date; its totals stand in the trail. Commands change nothing in it any more unless they are told to; proxies do,
because no request may be lost, and the ledger's triggers note what (`usage_late`).
"""

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from usage_ledger.ledger import money, revisions
from usage_ledger.ledger.columns import COUNT_COLUMNS
from usage_ledger.ledger.filters import PENDING, Filters
from usage_ledger.ledger.marks import LedgerError
from usage_ledger.ledger.moments import short
from usage_ledger.ledger.reading import Reader
from usage_ledger.ledger.reconciliations import reconciliation_of
from usage_ledger.ledger.summary import Sums, plus, summarize

if TYPE_CHECKING:
    from usage_ledger.ledger.editing import Editor

TRIES = 5
"""How often totals are added up anew because rows of the period changed meanwhile."""

TRIGGERS = ("usage_late_came", "usage_late_changed")

LATE_SHOWN = 100


class Closing(NamedTuple):
    """A closed period: rows with `since` <= `occurred_at` < `until`. `position` is that of its entry in the trail."""

    number: int
    since: str
    until: str
    position: int


class Period(NamedTuple):
    """A span between two closings, or after the last one."""

    since: str
    until: str
    is_closed: bool


class Late(NamedTuple):
    """A row that `came` to a closed period, or `changed` in it, after it was closed."""

    until: str
    record_id: str
    what: str
    noticed_at: str


def closings(reader: Reader) -> list[Closing]:
    """Return the closed periods, oldest first; of one that was closed again, the last time."""
    if not reader.has_table("usage_closings"):
        return []
    found = reader.connection.execute(
        "SELECT max(number), since, until, position FROM usage_closings WHERE position IS NOT NULL "
        "GROUP BY until ORDER BY until"
    )
    return [Closing(*row) for row in found]


def periods_before(reader: Reader, before: str) -> list[Period]:
    """Return the periods that a span from the beginning until `before` has parts of; the last one may be open."""
    closed = closings(reader)
    found = [Period(each.since, each.until, is_closed=True) for each in closed if each.since < before]
    end = closed[-1].until if closed else ""
    return [*found, Period(end, before, is_closed=False)] if end < before else found


def totals_of(reader: Reader, since: str, until: str) -> dict[str, Any]:
    """Add up the rows of a span, as in `Sums.fields`."""
    (sums,) = summarize(reader, Filters(since=since, until=until), ())
    return sums.fields()


def _whole(reader: Reader, since: str, until: str) -> dict[str, Any]:
    """Add up all of a period: its rows, and what archives have taken from it."""
    return _plus(_archived(reader, since, until), totals_of(reader, since, until))


def _archived(reader: Reader, since: str, until: str) -> dict[str, Any] | None:
    """Add up what archives have taken from a span; raise `LedgerError` where one has taken a part of a period."""
    total: dict[str, Any] | None = None
    for (after,) in reader.connection.execute("SELECT after FROM usage_revisions WHERE source = 'archive'"):
        told = revisions.values_of(after)
        periods = told.get("periods") if told.get("archive_hash") else None  # else it is an archive's own seal
        for period in periods if isinstance(periods, list) else ():
            if not isinstance(period, dict):
                continue
            begins, ends = str(period.get("since")), str(period.get("until"))
            if since <= begins and ends <= until:
                total = _plus(total, period)
            elif begins < until < ends and period.get("requests"):
                raise LedgerError(
                    f"rows before {short(ends)} are archived, so the books can be closed until then, or later"
                )
    return total


def _plus(one: dict[str, Any] | None, other: dict[str, Any]) -> dict[str, Any]:
    names = _NOTHING.keys()
    told = {name: other[name] for name in names if isinstance(other.get(name), type(_NOTHING[name]))}
    return plus(one or _NOTHING, {**_NOTHING, **told})


_NOTHING: dict[str, Any] = Sums((), 0, 0, dict.fromkeys(COUNT_COLUMNS, 0), money.Books()).fields()


def closed_until(reader: Reader) -> str | None:
    """Return until when the books are closed; None where they are open."""
    closed = closings(reader)
    return closed[-1].until if closed else None


def archived_before(reader: Reader) -> str | None:
    """Return before when rows were archived from a ledger; None where none were."""
    if not reader.has_table("usage_archives"):
        return None
    found = reader.connection.execute("SELECT max(before) FROM usage_archives").fetchone()[0]
    return None if found is None else str(found)


def refuse_closed(reader: Reader, record_ids: Sequence[str]) -> None:
    """Raise `LedgerError` where one of these rows is of a closed period."""
    until = closed_until(reader)
    if until is not None:
        found = reader.connection.execute(
            "SELECT id FROM usage_records WHERE id IN (SELECT value FROM json_each(?)) AND occurred_at < ? LIMIT 1",
            (json.dumps(list(record_ids)), until),
        ).fetchone()
        if found is not None:
            raise LedgerError(f"row {found[0]} is of {describe(until)}; --reopen changes it all the same")


def describe(until: str) -> str:
    """Name a closed period, for a message."""
    return f"a period that is closed (until {short(until)})"


def late(reader: Reader) -> Iterator[Late]:
    """Return what came or changed in closed periods since they were closed, oldest first."""
    for each in closings(reader):
        for row in reader.connection.execute(
            "SELECT record_id, what, noticed_at FROM usage_late WHERE closing = ? ORDER BY noticed_at, record_id",
            (each.number,),
        ):
            yield Late(each.until, *row)


def close_books(editor: "Editor", until: str, note: str) -> dict[str, Any]:
    """Close the books until a time, or close a period again; return what its entry in the trail says.

    Raises `LedgerError` where that time is within a closed period, or requests of the period are still in flight. The
    totals are added up without keeping proxies waiting; should a row of the period change meanwhile, once more.
    """
    for _ in range(TRIES):
        with editor.transaction():
            number, since, former = _begin(editor, until)
        with editor.snapshot():
            totals = _whole(editor, since, until)
        with editor.transaction():
            entry = _end(editor, number, former, totals, note)
        if entry is not None:
            editor.check_current()
            return entry
    raise LedgerError(f"rows before {short(until)} keep changing while they are added up; try again")


def _begin(editor: "Editor", until: str) -> tuple[int, str, Closing | None]:
    """Let the ledger's triggers note from now on what changes before `until`; return the period's number and start."""
    connection = editor.connection
    connection.execute(
        "DELETE FROM usage_late WHERE closing IN (SELECT number FROM usage_closings WHERE position IS NULL)"
    )
    connection.execute("DELETE FROM usage_closings WHERE position IS NULL")  # one that did not come to its end
    closed = closings(editor)
    former = next((each for each in closed if each.until == until), None)
    if former is None and closed and until < closed[-1].until:
        ends = ", ".join(short(each.until) for each in closed[-6:])
        raise LedgerError(
            f"the books are closed until {short(closed[-1].until)} already; "
            f"a period is closed again by its own end: {ends}"
        )
    since = former.since if former is not None else closed[-1].until if closed else ""
    _refuse_archiving(editor)
    pending = editor.count(Filters(since=since, until=until), PENDING)
    if pending:
        raise LedgerError(
            f"{pending} request(s) before {short(until)} are still in flight, or were left so by a proxy that was "
            "killed, which the next start of one settles"
        )
    number = connection.execute("INSERT INTO usage_closings (since, until) VALUES (?, ?)", (since, until)).lastrowid
    assert number is not None
    return number, since, former


def _refuse_archiving(editor: "Editor") -> None:
    """Raise `LedgerError` while rows are on their way into an archive: nobody could say what is added up."""
    found = editor.connection.execute("SELECT path FROM usage_archives WHERE position IS NULL").fetchone()
    if found is not None:
        raise LedgerError(f"an archive into {found[0]} is under way, or was interrupted; finish it first")


def _end(
    editor: "Editor", number: int, former: Closing | None, totals: dict[str, Any], note: str
) -> dict[str, Any] | None:
    """Write a closing's entry into the trail; None where rows of its period have changed since it began."""
    connection = editor.connection
    _refuse_archiving(editor)
    begun = connection.execute("SELECT since, until FROM usage_closings WHERE number = ?", (number,)).fetchone()
    changed = connection.execute("SELECT 1 FROM usage_late WHERE closing = ? LIMIT 1", (number,)).fetchone()
    if begun is None or changed is not None:
        return None
    since, until = begun
    came_late = 0
    if former is not None:
        found = connection.execute("SELECT count(*) FROM usage_late WHERE closing = ?", (former.number,))
        came_late = found.fetchone()[0]
    _, link = revisions.head(connection)
    after = {
        "closed_since": since or None,
        "closed_until": until,
        **totals,
        "late": came_late,
        "head": link,
        "reconciliation": reconciliation_of(editor, since, until),
    }
    before = {} if former is None else _told(editor, former)
    entry = revisions.Revision(None, note, before, after)
    position, hash_ = revisions.append(connection, "close", [entry])
    connection.execute("UPDATE usage_closings SET position = ? WHERE number = ?", (position, number))
    return {**after, "position": position, "hash": hash_}


def broken(reader: Reader) -> Iterator[str]:
    """Name what does not agree between closed periods, their entries in the trail, and the rows."""
    if not reader.has_table("usage_closings"):
        if reader.was_migrated("create_closings_and_archive"):
            yield "closings: their table usage_closings is gone"
        return
    if not reader.has_table("usage_revisions"):
        return  # which is told as what is wrong with the trail
    triggers = reader.triggers()
    for name in TRIGGERS:
        if name not in triggers:
            yield f"closings: their trigger {name} is gone, so that late rows are not noticed"
    entries = dict(reader.connection.execute("SELECT position, after FROM usage_revisions WHERE source = 'close'"))
    known = {
        row[0]: row[1]
        for row in reader.connection.execute("SELECT position, until FROM usage_closings WHERE position IS NOT NULL")
    }
    for position in sorted(entries.keys() | known.keys()):
        if revisions.values_of(entries.get(position)).get("closed_until") != known.get(position):
            yield f"closings: entry {position} of the trail and usage_closings do not say the same"
            return
    for closing in closings(reader):
        yield from _differences(reader, closing)


def _differences(reader: Reader, closing: Closing) -> Iterator[str]:
    """Name the rows that came or changed late; where there are none, what else is not as the closing says."""
    found = reader.connection.execute("SELECT count(*) FROM usage_late WHERE closing = ?", (closing.number,))
    (count,) = found.fetchone()
    if count:
        yield from _late_rows(reader, closing, count)
    elif not _is_archiving(reader):  # which is said of the archive
        told = _told(reader, closing)
        for name, value in _whole(reader, closing.since, closing.until).items():
            if told.get(name) != value:
                yield f"books closed until {short(closing.until)}: {name} was {told.get(name)}, and is {value}"


def _late_rows(reader: Reader, closing: Closing, count: int) -> Iterator[str]:
    first = reader.connection.execute(
        "SELECT record_id, what, noticed_at FROM usage_late WHERE closing = ? "
        f"ORDER BY noticed_at, record_id LIMIT {LATE_SHOWN}",
        (closing.number,),
    )
    for record_id, what, noticed_at in first.fetchall():
        yield f"row {record_id}: it {what} on {noticed_at}, after the books were closed until {short(closing.until)}"
    if count > LATE_SHOWN:
        yield f"and {count - LATE_SHOWN:,} more rows of the period until {short(closing.until)}"


def _is_archiving(reader: Reader) -> bool:
    """Whether rows are on their way into an archive."""
    unfinished = "SELECT number FROM usage_archives WHERE position IS NULL"
    moving = f"SELECT 1 FROM usage_archived WHERE archive IN ({unfinished}) LIMIT 1"
    return reader.has_table("usage_archives") and reader.connection.execute(moving).fetchone() is not None


def _told(reader: Reader, closing: Closing) -> dict[str, Any]:
    """Return what the trail says of a closed period."""
    found = reader.connection.execute(
        "SELECT after FROM usage_revisions WHERE position = ?", (closing.position,)
    ).fetchone()
    return revisions.values_of(found[0]) if found else {}
