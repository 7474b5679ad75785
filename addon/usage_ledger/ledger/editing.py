"""Editing: changes to settled rows by a person's command, each with its entry in the trail.

Room: ledger. Imports its neighbours in this room. Promises that a change is made whole or not at all, that a row which
is not any more what the change was made for is left alone, and that proxies that write to the same ledger are not kept
waiting: what takes time happens between transactions, not in them.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from usage_ledger.ledger import closing, revisions
from usage_ledger.ledger.columns import COLUMNS
from usage_ledger.ledger.marks import LedgerError
from usage_ledger.ledger.presence import new_writer_id
from usage_ledger.ledger.reading import Reader, may_be_written, open_for_reading
from usage_ledger.ledger.record import Entry
from usage_ledger.ledger.store import Store

BUSY_MS = 10_000
"""How long a change waits for its turn to write."""


class Change(NamedTuple):
    """A change of one row: what it was made for (`expected`, which has all columns of `after`), and what it sets.

    `iteration_costs` are what the row's iterations cost as well, each with its position (USD; None: nothing). `before`
    is what the row was before another program changed it, where that is not what is expected, and `noted` is what the
    trail tells of the row beside `after`.
    """

    record_id: str
    reason: str
    expected: revisions.Values
    after: revisions.Values
    iteration_costs: Sequence[tuple[int, str | None]] = ()
    before: revisions.Values = MappingProxyType({})
    noted: revisions.Values = MappingProxyType({})


@contextmanager
def open_for_editing(path: Path) -> Iterator["Editor"]:
    """Open an existing ledger to change rows in it; raise `LedgerError` (one line) where that cannot be."""
    with open_for_reading(path):
        pass  # says what is wrong with a path that leads to no ledger
    if not may_be_written(path):
        raise LedgerError(f"cannot write {path}: you may not change it and what is beside it")
    try:
        store = Store(path, "full", new_writer_id(), BUSY_MS)
    except (sqlite3.Error, OSError) as error:
        raise LedgerError(f"cannot write {path}: {error}") from error
    try:
        yield Editor(store)
    except (sqlite3.Error, OverflowError) as error:  # OverflowError: numbers that another program has made too large
        raise LedgerError(f"cannot write {path}: {error}") from error
    finally:
        store.close()


class Editor(Reader):
    """An open ledger whose rows can be changed."""

    def __init__(self, store: Store) -> None:
        super().__init__(store.connection)
        self._store = store

    def change(
        self, source: str, changes: Sequence[Change], all_or_none: bool = False, reopen: bool = False
    ) -> set[str]:
        """Make changes in one transaction, each with its revision; return the ids of rows that were as expected.

        With `all_or_none`, one that was not is a `LedgerError`, and no row is changed; so is one of a closed period,
        but with `reopen`.
        """
        if not changes:
            return set()
        with self.transaction():
            made = self.make(source, changes, all_or_none, reopen)
        self.check_current()
        return made

    def make(self, source: str, changes: Sequence[Change], all_or_none: bool = False, reopen: bool = False) -> set[str]:
        """Do as `change` does, within a transaction of the caller's."""
        made: dict[str, revisions.Revision] = {}
        if not reopen:
            closing.refuse_closed(self, [change.record_id for change in changes])
        for change in changes:
            is_set = self._set(change)
            if all_or_none and not is_set:
                raise LedgerError(f"row {change.record_id} changed meanwhile, so no row is changed; run it again")
            if is_set:
                before = {name: change.expected[name] for name in change.after} | dict(change.before)
                made[change.record_id] = self._revised(change, before)
        revisions.append(self.connection, source, made.values())
        return set(made)

    def without_archived(self, entries: Sequence[Entry]) -> list[Entry]:
        """Leave out entries whose rows this ledger has archived."""
        return self._store.without_archived(list(entries), lambda _: True)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Keep other writers out, and commit all that is done meanwhile, or nothing of it."""
        with self._store.transaction():
            yield

    def check_current(self) -> None:
        """See to it that the file is still the one that its path leads to; raise `LedgerError` where it is not."""
        if not self._store.is_current():
            raise LedgerError(f"{self.path} was removed or replaced meanwhile; the changes went with it")

    @property
    def path(self) -> Path:
        return self._store.path

    def _set(self, change: Change) -> bool:
        unknown = (change.expected.keys() | change.after.keys()) - set(COLUMNS)
        assert not unknown, unknown
        setting = ", ".join(f"{name} = ?" for name in change.after)
        as_expected = " AND ".join(f"{name} IS ?" for name in change.expected)
        done = self.connection.execute(
            f"UPDATE usage_records SET {setting} WHERE id = ? AND {as_expected}",
            (*change.after.values(), change.record_id, *change.expected.values()),
        )
        return done.rowcount == 1

    def _revised(self, change: Change, before: revisions.Values) -> revisions.Revision:
        """Change what belongs to a row that is changed, and return all of it as its revision."""
        after = {**change.after, **change.noted}
        if not change.iteration_costs:
            return revisions.Revision(change.record_id, change.reason, before, after)
        former = [row[0] for row in self.iterations([change.record_id], ["total_cost"])]
        self.connection.executemany(
            "UPDATE usage_iterations SET total_cost = ? WHERE record_id = ? AND position = ?",
            [(cost, change.record_id, position) for position, cost in change.iteration_costs],
        )
        costs = [cost for _, cost in change.iteration_costs]
        before, after = {**before, "iteration_costs": former}, {**after, "iteration_costs": costs}
        return revisions.Revision(change.record_id, change.reason, before, after)
