"""Merging: rows of the fleet's books into a ledger.

Room: ledger. Imports its neighbours in this room. Promises that a better row is never replaced by a worse one, that
what replaces a settled row leaves its revision, that a row which people have changed on both sides is a conflict which
is told and changes nothing, and that what came from the books is not pushed back to them as news.
"""

import contextlib
import json
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any, Literal, NamedTuple

import msgspec

from usage_ledger.ledger import revisions, statements
from usage_ledger.ledger.columns import COLUMNS, COUNT_COLUMNS, JSON_COLUMNS
from usage_ledger.ledger.corrections import correction, is_accepted, is_corrected, with_counts
from usage_ledger.ledger.editing import Change, Editor
from usage_ledger.ledger.entries import entries_by
from usage_ledger.ledger.record import Entry, Record

SOURCE = "pull"

_RANKS = {"complete": 4, "none": 3, "partial": 2, "missing": 1}

type Preference = Literal["report", "ours", "theirs"]
"""What is done about a conflict: nothing, or whose row stands."""

type _Verdict = Literal["same", "keep", "claim", "take", "conflict"]
"""Keep: ours stands here, and whether also there the next push finds out. Claim: ours is to stand there as well."""

_SETTLED_BY: dict[Preference, _Verdict] = {"report": "conflict", "ours": "claim", "theirs": "take"}


class Theirs(NamedTuple):
    """A row of the books with its version there. `edited_by` has changed it by SQL; None: no one has."""

    entry: Entry
    version: int
    edited_by: str | None


class Merged(NamedTuple):
    """What came of merging: rows that are new here, rows that changed here, ids of rows in conflict."""

    added: int = 0
    changed: int = 0
    conflicts: tuple[str, ...] = ()


def merge(
    editor: Editor,
    theirs: Sequence[Theirs],
    price: Callable[[Entry], None],
    preference: Preference = "report",
    reopen: bool = False,
) -> Merged:
    """Merge rows in one transaction. `price` gives a row that somebody has corrected by SQL its cost.

    Raises `LedgerError`, and changes nothing, where a row of a closed period would change, but with `reopen`.
    """
    with editor.transaction():
        return _Merge(editor, theirs, preference).make(price, reopen)


class _Merge:
    def __init__(self, editor: Editor, theirs: Sequence[Theirs], preference: Preference) -> None:
        self._editor = editor
        self._connection = editor.connection
        self._preference = preference
        here = {entry.record.id for entry in editor.without_archived([each.entry for each in theirs])}
        self._theirs = [each for each in theirs if each.entry.record.id in here]
        ids = [each.entry.record.id for each in self._theirs]
        self._ours = {entry.record.id: entry for entry in entries_by(editor, "id", ids)}
        asked = (msgspec.json.encode(ids).decode(),)
        self._bases = dict(
            self._connection.execute(
                "SELECT record_id, version FROM fleet_versions WHERE record_id IN (SELECT value FROM json_each(?))",
                asked,
            )
        )
        self._changed_here = {
            row[0]
            for row in self._connection.execute(
                "SELECT record_id FROM fleet_outbox WHERE record_id IN (SELECT value FROM json_each(?))", asked
            )
        }

    def make(self, price: Callable[[Entry], None], reopen: bool) -> Merged:
        last = self._connection.execute("SELECT coalesce(max(number), 0) FROM fleet_outbox").fetchone()[0]
        added, replaced, adopted, conflicts, seen, kept = (list[Theirs]() for _ in range(6))
        for each in self._theirs:
            ours = self._ours.get(each.entry.record.id)
            verdict = "take" if ours is None else self._verdict(each, ours)
            if verdict == "conflict":
                conflicts.append(each)
            if verdict in ("keep", "claim") and each.entry.record.id not in self._changed_here:
                kept.append(each)
            if verdict in ("same", "take", "claim"):
                seen.append(each)
            if verdict == "take":
                (added if ours is None else replaced).append(each)
                if each.edited_by is not None and is_corrected(each.entry.record):
                    adopted.append(each)
        self._add(added)
        self._replace(replaced, reopen)
        self._connection.execute("DELETE FROM fleet_outbox WHERE number > ?", (last,))  # theirs, and so no news to them
        self._adopt(adopted, price, reopen)
        self._connection.executemany(
            "INSERT INTO fleet_outbox (record_id, is_new) VALUES (?, 0)", [(each.entry.record.id,) for each in kept]
        )
        self._connection.executemany(
            "INSERT OR REPLACE INTO fleet_versions (record_id, version) VALUES (?, ?)",
            [(each.entry.record.id, each.version) for each in seen],
        )
        return Merged(len(added), len(replaced), tuple(each.entry.record.id for each in conflicts))

    def _verdict(self, theirs: Theirs, ours: Entry) -> _Verdict:
        if _is_same(theirs.entry, ours):
            return "same"
        base = self._bases.get(ours.record.id)
        if base == theirs.version:
            return "keep"
        is_better_here = _worth(theirs.entry.record) < _worth(ours.record)
        if is_better_here and theirs.edited_by is None:
            return "keep"  # it is not pushed yet, or the books were restored from a backup, and have forgotten
        is_changed_here = ours.record.id in self._changed_here
        if base is not None and not is_changed_here:
            return "take"
        is_theirs_a_persons = theirs.edited_by is not None or _is_by_a_person(theirs.entry.record)
        if is_theirs_a_persons and (is_better_here or _is_by_a_person(ours.record)):
            return _SETTLED_BY[self._preference]
        if is_theirs_a_persons or _worth(theirs.entry.record) > _worth(ours.record):
            return "take"
        return "keep" if is_changed_here else "take"

    def _add(self, added: Sequence[Theirs]) -> None:
        self._write([each.entry for each in added])
        made = [
            revisions.Revision(each.entry.record.id, _reason(each), {}, _fields(each.entry.record, _SETTLED))
            for each in added
            if each.edited_by is not None or _is_by_a_person(each.entry.record)
        ]
        revisions.append(self._connection, SOURCE, made)

    def _write(self, entries: Sequence[Entry]) -> None:
        statements.write(self._connection, statements.insert_new, (entry.record for entry in entries))
        iterations = [iteration for entry in entries for iteration in entry.iterations]
        self._connection.execute(statements.INSERT_ITERATIONS, (msgspec.json.encode(iterations).decode(),))

    def _replace(self, replaced: Sequence[Theirs], reopen: bool) -> None:
        changes = []
        for each in replaced:
            ours, new = self._ours[each.entry.record.id], each.entry
            after = {name: value for name, value in _fields(new.record, COLUMNS).items() if name not in _FIXED}
            changes.append(Change(new.record.id, _reason(each), _fields(ours.record, COLUMNS), after))
        self._editor.make(SOURCE, changes, reopen=reopen)
        for each in replaced:
            self._connection.execute("DELETE FROM usage_iterations WHERE record_id = ?", (each.entry.record.id,))
        iterations = [iteration for each in replaced for iteration in each.entry.iterations]
        self._connection.execute(statements.INSERT_ITERATIONS, (msgspec.json.encode(iterations).decode(),))

    def _adopt(self, adopted: Sequence[Theirs], price: Callable[[Entry], None], reopen: bool) -> None:
        """Make whole corrections of what was corrected by SQL: flags, total and cost follow from the counts."""
        changes = []
        for entry in entries_by(self._editor, "id", [each.entry.record.id for each in adopted]):
            told = {name: getattr(entry.record, name) for name in COUNT_COLUMNS}
            with contextlib.suppress(ValueError):  # counts that cannot be stay as they are, and verify names them
                counts = with_counts(entry.record, told)
                changes.append(correction(entry, counts, "it was corrected by SQL in the fleet's books", price))
        self._editor.make(SOURCE, changes, reopen=reopen)


_SETTLED = (
    *COUNT_COLUMNS,
    "total_tokens",
    "usage_state",
    "requires_manual_review",
    "metadata",
    "total_cost",
    "price_source",
)
_FIXED = ("id", "occurred_at")


def _reason(theirs: Theirs) -> str:
    by = "" if theirs.edited_by is None else f", where {theirs.edited_by} has edited it by SQL"
    return f"from the fleet's books{by}"


def _worth(record: Record) -> tuple[int, int]:
    """Return what a row is worth, to compare: more where it was accepted, and of two lower bounds the larger one."""
    if is_corrected(record):
        return 2 * len(_RANKS) + 2, 0
    is_partial = record.usage_state == "partial"
    return 2 * _RANKS.get(record.usage_state, 0) + is_accepted(record), record.total_tokens if is_partial else 0


def _is_by_a_person(record: Record) -> bool:
    return is_corrected(record) or is_accepted(record)


def _is_same(theirs: Entry, ours: Entry) -> bool:
    """Whether two rows say the same; JSON by what it means, for PostgreSQL writes it its own way."""
    return _plain(theirs.record) == _plain(ours.record) and theirs.iterations == ours.iterations


def _plain(record: Record) -> dict[str, Any]:
    fields = _fields(record, COLUMNS)
    for name in JSON_COLUMNS:
        with contextlib.suppress(ValueError, RecursionError):
            fields[name] = None if fields[name] is None else _decoded(fields[name])
    return fields


def _decoded(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:  # of a number that no float can hold; PostgreSQL writes such a one another way
        return json.loads(text, parse_float=Decimal, parse_int=Decimal)


def _fields(record: Record, names: Sequence[str]) -> dict[str, Any]:
    return {name: getattr(record, name) for name in names}
