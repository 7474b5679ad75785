"""Merging: rows of the fleet's books into a ledger.

Room: ledger. Imports the standard library, `msgspec` and its neighbours in this room. Promises that a better row is
never replaced by a worse one, that what replaces a settled row leaves its revision, that a row which was changed on
both sides, neither of which is worth more, is a conflict which is told and changes nothing, and that what came from the
books is not pushed back as news.
"""

import contextlib
import json
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any, Literal, NamedTuple

import msgspec

from usage_ledger.ledger import closing, revisions, statements
from usage_ledger.ledger.columns import COLUMNS, COUNT_COLUMNS, JSON_COLUMNS, TOTALLED
from usage_ledger.ledger.corrections import (
    CORRECTED_AT,
    CORRECTED_COLUMNS,
    correction,
    is_accepted,
    is_corrected,
    iterations_of,
    worth,
)
from usage_ledger.ledger.editing import Change
from usage_ledger.ledger.entries import entries_by
from usage_ledger.ledger.outbox import Outbox
from usage_ledger.ledger.record import Entry, Record, fields_of

SOURCE = "pull"

type Preference = Literal["report", "ours", "theirs"]
"""What is done about a conflict: nothing, or whose row stands."""

type _Verdict = Literal["same", "keep", "claim", "take", "conflict"]
"""Keep: ours stands here, and whether also there the next push finds out. Claim: ours is to stand there as well."""

_SETTLED_BY: dict[Preference, _Verdict] = {"report": "conflict", "ours": "claim", "theirs": "take"}


class Theirs(NamedTuple):
    """A row of the books with its version there. `edited_by` has changed it by SQL; None: no one has. `ledger`: whose
    word it is, by its id.
    """

    entry: Entry
    version: int
    edited_by: str | None
    edited_at: str | None
    ledger: str


class Merged(NamedTuple):
    """What came of merging: rows that are new here, rows that changed here, ids of rows in conflict, and of rows that
    have changed there and are of closed periods, or in an archive.
    """

    added: int = 0
    changed: int = 0
    conflicts: tuple[str, ...] = ()
    closed: tuple[str, ...] = ()
    archived: tuple[str, ...] = ()


def merge(
    outbox: Outbox,
    theirs: Sequence[Theirs],
    price: Callable[[Entry], None],
    preference: Preference = "report",
    reopen: bool = False,
) -> Merged:
    """Merge rows in one transaction. `price` gives a row that somebody has corrected by SQL its cost.

    Rows of closed periods stay as they are, but with `reopen`. Raises `LedgerError` where the ledger exchanges rows
    with other books meanwhile.
    """
    with outbox.editor.transaction():
        outbox.check_books()
        return _Merge(outbox, theirs, preference, reopen).make(price)


class _Merge:
    def __init__(self, outbox: Outbox, theirs: Sequence[Theirs], preference: Preference, reopen: bool) -> None:
        editor = outbox.editor
        self._editor = editor
        self._connection = editor.connection
        self._ledger = outbox.ledger
        self._preference = preference
        self._closed_until = "" if reopen else closing.closed_until(editor) or ""
        here = {entry.record.id for entry in editor.without_archived([each.entry for each in theirs])}
        self._theirs = [each for each in theirs if each.entry.record.id in here]
        bases = outbox.versions([each.entry.record.id for each in theirs if each.entry.record.id not in here])
        self._archived = tuple(sorted(bases))  # of the others nobody here knows whether they have changed
        ids = [each.entry.record.id for each in self._theirs]
        self._ours = {entry.record.id: entry for entry in entries_by(editor, "id", ids)}
        asked = (msgspec.json.encode(ids).decode(),)
        self._bases = outbox.versions(ids)
        waiting = self._connection.execute(
            "SELECT record_id, max(is_new) FROM fleet_outbox WHERE record_id IN (SELECT value FROM json_each(?)) "
            "GROUP BY record_id",
            asked,
        )
        self._waiting: dict[str, int] = dict(waiting)

    def make(self, price: Callable[[Entry], None]) -> Merged:
        last = self._connection.execute("SELECT coalesce(max(number), 0) FROM fleet_outbox").fetchone()[0]
        added, replaced, adopted, conflicts, closed, seen, kept = (list[Theirs]() for _ in range(7))
        for each in self._theirs:
            ours = self._ours.get(each.entry.record.id)
            verdict = "take" if ours is None else self._verdict(each, ours)
            if verdict == "take" and ours is not None and ours.record.occurred_at < self._closed_until:
                closed.append(each)
                continue
            if verdict == "conflict":
                conflicts.append(each)
            if verdict in ("keep", "claim") and each.entry.record.id not in self._waiting:
                kept.append(each)
            if verdict in ("same", "take", "claim"):
                seen.append(each)
            if verdict == "take":
                (added if ours is None else replaced).append(each)
                if _is_corrected_by_sql(each, ours):
                    adopted.append(each)
        self._add(added)
        self._replace(replaced)
        self._connection.execute("DELETE FROM fleet_outbox WHERE number > ?", (last,))  # theirs, and so no news to them
        self._adopt(adopted, price)
        self._connection.executemany(
            "INSERT INTO fleet_outbox (record_id, is_new) VALUES (?, 0)", [(each.entry.record.id,) for each in kept]
        )
        self._connection.executemany(
            "INSERT OR REPLACE INTO fleet_versions (record_id, version) VALUES (?, ?)",
            [(each.entry.record.id, each.version) for each in seen],
        )
        return Merged(len(added), len(replaced), _ids(conflicts), _ids(closed), self._archived)

    def _verdict(self, theirs: Theirs, ours: Entry) -> _Verdict:
        """Decide as push does (`pushing.MERGE`), so that what it leaves behind is told, and can be settled, here."""
        if _is_same(theirs.entry, ours):
            return "same"
        base = self._bases.get(ours.record.id)
        is_edited = theirs.edited_by is not None
        here, there = worth(ours.record), worth(theirs.entry.record)
        is_ours = base is None and theirs.ledger == self._ledger and not is_edited and there <= here
        if base == theirs.version or is_ours:
            return "keep"  # nobody has changed it there
        if there < here and not is_edited:
            return "keep"  # it is not pushed yet, or the books were restored from a backup, and have forgotten
        have_forgotten = base is not None and theirs.version < base and not is_edited
        is_changed_here = have_forgotten or self._waiting.get(ours.record.id) == 0
        if base is not None and not is_changed_here:
            return "take"
        is_theirs_a_persons = is_edited or _is_by_a_person(theirs.entry.record)
        if is_theirs_a_persons and (there < here or _is_by_a_person(ours.record)):
            return _SETTLED_BY[self._preference]
        if there == here and is_changed_here:
            return _SETTLED_BY[self._preference]
        return "take"  # it is worth more, or came before ours, which nobody has changed since

    def _add(self, added: Sequence[Theirs]) -> None:
        self._write([each.entry for each in added])
        made = [
            revisions.Revision(each.entry.record.id, _reason(each), {}, fields_of(each.entry.record, CORRECTED_COLUMNS))
            for each in added
            if each.edited_by is not None or _is_by_a_person(each.entry.record)
        ]
        revisions.append(self._connection, SOURCE, made)

    def _write(self, entries: Sequence[Entry]) -> None:
        statements.write(self._connection, statements.insert_new, (entry.record for entry in entries))
        iterations = [iteration for entry in entries for iteration in entry.iterations]
        self._connection.execute(statements.INSERT_ITERATIONS, (msgspec.json.encode(iterations).decode(),))

    def _replace(self, replaced: Sequence[Theirs]) -> None:
        changes = []
        for each in replaced:
            ours, new = self._ours[each.entry.record.id], each.entry
            after = {name: value for name, value in fields_of(new.record, COLUMNS).items() if name not in _FIXED}
            before, noted = _iterations_changed(ours, new)
            changes.append(
                Change(new.record.id, _reason(each), fields_of(ours.record, COLUMNS), after, before=before, noted=noted)
            )
        self._editor.make(SOURCE, changes, reopen=True)  # those of closed periods were left out
        for each in replaced:
            self._connection.execute("DELETE FROM usage_iterations WHERE record_id = ?", (each.entry.record.id,))
        iterations = [iteration for each in replaced for iteration in each.entry.iterations]
        self._connection.execute(statements.INSERT_ITERATIONS, (msgspec.json.encode(iterations).decode(),))

    def _adopt(self, adopted: Sequence[Theirs], price: Callable[[Entry], None]) -> None:
        """Make whole corrections of what was corrected by SQL: flags, total and cost follow from the counts."""
        edited_at = {each.entry.record.id: each.edited_at for each in adopted}
        changes = []
        for entry in entries_by(self._editor, "id", list(edited_at)):
            counts = fields_of(entry.record, COUNT_COLUMNS)
            reason = "it was corrected by SQL in the fleet's books"
            # Whoever takes it over says the same of it, so that two who do are not in each other's way.
            changes.append(correction(entry, counts, reason, price, edited_at[entry.record.id]))
        self._editor.make(SOURCE, changes, reopen=True)


_FIXED = ("id", "occurred_at")


def _reason(theirs: Theirs) -> str:
    by = "" if theirs.edited_by is None else f", where {theirs.edited_by} has edited it by SQL"
    return f"from the fleet's books{by}"


def _iterations_changed(ours: Entry, theirs: Entry) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what the trail tells of iterations that are others now: before and after."""
    before, after = dict[str, Any](), dict[str, Any]()
    for name, tell in (("iterations", iterations_of), ("iteration_costs", _costs_of_iterations)):
        if tell(ours) != tell(theirs):
            before[name], after[name] = tell(ours), tell(theirs)
    return before, after


def _costs_of_iterations(entry: Entry) -> list[Any]:
    return [each.total_cost for each in entry.iterations]


def _ids(rows: Sequence[Theirs]) -> tuple[str, ...]:
    return tuple(each.entry.record.id for each in rows)


def _is_corrected_by_sql(theirs: Theirs, ours: Entry | None) -> bool:
    """Whether somebody has corrected counts by SQL, also where the row is not marked as corrected."""
    record = theirs.entry.record
    if theirs.edited_by is None:
        return False
    counts = fields_of(record, COUNT_COLUMNS)
    is_counted = ours is not None and counts != fields_of(ours.record, COUNT_COLUMNS)
    return is_corrected(record) or is_counted or record.total_tokens != sum(counts[name] for name in TOTALLED)


def _is_by_a_person(record: Record) -> bool:
    return is_corrected(record) or is_accepted(record)


def _is_same(theirs: Entry, ours: Entry) -> bool:
    """Whether two rows say the same, as push asks it (`pushing._all`); JSON by what it means, for PostgreSQL writes it
    its own way.
    """
    return _plain(theirs.record) == _plain(ours.record) and theirs.iterations == ours.iterations


def _plain(record: Record) -> dict[str, Any]:
    fields = fields_of(record, COLUMNS)
    for name in JSON_COLUMNS:
        with contextlib.suppress(ValueError, RecursionError):
            fields[name] = None if fields[name] is None else _told_apart(decoded(fields[name]))
    if isinstance(fields["metadata"], dict):
        fields["metadata"].pop(CORRECTED_AT, None)  # two who typed the same correction agree
    return fields


def _told_apart(value: Any) -> Any:
    """Return a value of JSON whose booleans are no numbers: to Python, true is 1."""
    if isinstance(value, bool):
        return (value,)
    if isinstance(value, list):
        return [_told_apart(each) for each in value]
    if isinstance(value, dict):
        return {name: _told_apart(each) for name, each in value.items()}
    return value


def decoded(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:  # of a number that no float can hold; PostgreSQL writes such a one another way
        return json.loads(text, parse_float=Decimal, parse_int=Decimal)
