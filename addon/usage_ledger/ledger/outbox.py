"""The outbox: which settled rows of a ledger have changed since they were pushed, and how far pushing has come.

Room: ledger. Imports its neighbours in this room. The ledger is its own durable queue: from the first push on, triggers
note each change in the transaction that makes it. Promises that nothing is forgotten before the other side has
acknowledged it, and that a row that changes while it is under way is pushed once more. Rows in flight are no news.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from usage_ledger.ledger import revisions
from usage_ledger.ledger.bill import KINDS
from usage_ledger.ledger.bounds import BEYOND, ITERATION_BEYOND, beyond
from usage_ledger.ledger.columns import COLUMNS, ITERATION_COLUMNS
from usage_ledger.ledger.editing import open_for_editing
from usage_ledger.ledger.entries import entries_by
from usage_ledger.ledger.pairing import Pairing, Pushes
from usage_ledger.ledger.presence import new_writer_id
from usage_ledger.ledger.store import Store
from usage_ledger.ledger.wire import IS_CUT, LINE, is_whole, line_of

ADJUSTMENT_COLUMNS = ("number", "position", "day", "model", "api_key", "workspace", *KINDS)


class Batch(NamedTuple):
    """Rows to push, as lines of `COLUMNS` by their ids, and their iterations as lines of `ITERATION_COLUMNS`.

    `months` tells the month of each row, as 2026-11. `bases` are the versions that rows were made from, where they are
    known of the other side. `changed` are rows that changed after they had been pushed, `impossible` are further ones
    that cannot be, and why (another program has written to them). `is_new`: none of the rows was
    ever pushed, nor corrected, and the id of each tells its start. `archived`: so many had changed and are in an
    archive by now. `end` is what to acknowledge.
    """

    rows: dict[str, str]
    iterations: list[str]
    months: dict[str, str]
    bases: dict[str, int]
    changed: frozenset[str]
    impossible: dict[str, str]
    is_new: bool
    archived: int
    end: tuple[str, str]


_START = "unixepoch(occurred_at) * 1000000 + substr(occurred_at, 21, 3) * 1000"
_TELLS_ITS_START = f"id BETWEEN printf('%013x', {_START}) AND printf('%013x', {_START} + 999) || '~'"
"""SQL for whether a row's id begins with its start, as ids do (`record_id`): then it has one start everywhere."""


@contextmanager
def open_outbox(path: Path, make: bool = False) -> Iterator["Outbox"]:
    """Open a ledger's outbox; with `make`, make the ledger if there is none.

    Raises `LedgerError` where that cannot be.
    """
    if make and not path.exists():
        Store(path, "full", new_writer_id()).close()
    with open_for_editing(path) as editor:
        outbox = Outbox(editor)
        outbox.prepare()
        yield outbox


class Outbox(Pairing):
    """What a ledger has to push, and the versions it knows of the other side. Rows may be written meanwhile."""

    def begin_for(self, books: str, there: Pushes, follower: str | None = None) -> None:
        super().begin_for(books, there, follower)
        if not self.editor.has_table("fleet_outbox_iteration_gone"):  # the last of its triggers
            with self.editor.transaction():
                self._watch()

    def versions(self, ids: Sequence[str]) -> dict[str, int]:
        """Return the versions of rows on the other side, as far as they are known."""
        if self._connection.execute("SELECT 1 FROM fleet_versions LIMIT 1").fetchone() is None:
            return {}
        found = self._connection.execute(
            "SELECT record_id, version FROM fleet_versions WHERE record_id IN (SELECT value FROM json_each(?))",
            (json.dumps(ids),),
        )
        return dict(found)

    def start_over(self, there: Pushes) -> None:
        """Push everything once more: the other side was restored from a backup, and has only so much (`there`).

        Rows that had come from there or gone there count as changed here, so that none gives way unheard.
        """
        with self.editor.transaction():
            self._connection.execute(
                "INSERT INTO fleet_outbox (record_id, is_new) SELECT record_id, 0 FROM fleet_versions"
            )
            self._start_over()
            self._agree(there)

    def _watch(self) -> None:
        """From now on, note which rows change."""
        for what, event, noted in (
            ("came", "INSERT ON usage_records WHEN new.usage_state <> 'pending'", "new.id, 1"),
            (
                "changed",
                "UPDATE ON usage_records WHEN new.usage_state <> 'pending'",
                "new.id, old.usage_state = 'pending'",
            ),
            ("iteration_came", "INSERT ON usage_iterations", "new.record_id, 0"),
            ("iteration_changed", "UPDATE ON usage_iterations", "new.record_id, 0"),
            (
                "iteration_gone",  # and not into an archive, with its row
                "DELETE ON usage_iterations WHEN old.record_id NOT IN (SELECT record_id FROM usage_archived)",
                "old.record_id, 0",
            ),
        ):
            self._connection.execute(
                f"""
                CREATE TRIGGER IF NOT EXISTS fleet_outbox_{what} AFTER {event}
                BEGIN
                    INSERT INTO fleet_outbox (record_id, is_new) VALUES ({noted});
                END
                """
            )

    # Rows.

    def last(self) -> int:
        """Return the number of the last change so far, so that a push takes none twice that it has to leave behind."""
        return int(self._connection.execute("SELECT coalesce(max(number), 0) FROM fleet_outbox").fetchone()[0])

    def take(self, size: int, until: int, behind: Batch | None = None) -> Batch | None:
        """Return the next rows to push, oldest first, behind a batch that is under way; None where there are none.

        Of changes, none behind `until` is taken.
        """
        if self.state("first_rows") != "all":
            return self._take_first(size, until, behind)
        after = int(behind.end[1]) if behind is not None and behind.end[0] == "outbox" else 0
        (last,) = self._connection.execute(
            "SELECT max(number) FROM "
            "(SELECT number FROM fleet_outbox WHERE number > ? AND number <= ? ORDER BY number LIMIT ?)",
            (after, until, size),
        ).fetchone()
        if last is None:
            return None
        noted = "SELECT record_id FROM fleet_outbox WHERE number > ? AND number <= ?"
        (archived,) = self._connection.execute(
            f"SELECT count(*) FROM usage_archived WHERE record_id IN ({noted})", (after, last)
        ).fetchone()
        changed = self._connection.execute(f"{noted} GROUP BY record_id HAVING NOT max(is_new)", (after, last))
        return self._batch(
            f"id IN ({noted}) ORDER BY id",
            (after, last),
            ("outbox", str(last)),
            frozenset(row[0] for row in changed),
            archived,
        )

    def _take_first(self, size: int, until: int, behind: Batch | None) -> Batch | None:
        """Return rows that were there before the outbox was."""
        told = self.state("first_rows") if behind is None else behind.end[1]
        after = tuple(json.loads(told)) if told else ("", "")
        archived = 0
        if told is None and self.editor.has_table("usage_archived"):
            (archived,) = self._connection.execute("SELECT count(*) FROM usage_archived").fetchone()
        # What came from the other side is there already, and its changes are noted.
        batch = self._batch(
            "(occurred_at, id) > (?, ?) AND id NOT IN (SELECT record_id FROM fleet_versions) "
            "ORDER BY occurred_at, id LIMIT ?",
            (*after, size),
            None,
            frozenset(),
            archived,
        )
        if batch is None and behind is None:  # else they are under way; what has changed since comes after them
            with self.editor.transaction():
                self._set_state("first_rows", "all")
            return self.take(size, until)
        return batch

    def _batch(
        self,
        condition: str,
        values: tuple[Any, ...],
        end: tuple[str, str] | None,
        changed: frozenset[str],
        archived: int,
    ) -> Batch | None:
        """Return rows to push. `end`: None is where the last of the first rows stands; then there may be no batch."""
        found = self._connection.execute(
            "SELECT id, occurred_at, instr(metadata, '_manually_updated') OR "
            f"instr(metadata, '_accepted') OR ({_TELLS_ITS_START}) IS NOT 1, {LINE}, {BEYOND}, {IS_CUT} "
            f"FROM usage_records WHERE usage_state <> 'pending' AND {condition}",
            values,
        ).fetchall()
        if end is None:
            if not found:
                return None
            end = "first_rows", json.dumps([found[-1][1], found[-1][0]])
        rows = {row[0]: row[3].replace("\\", "\\\\") for row in found}
        odd = [row[0] for row in found if row[5] or not is_whole(row[3])]
        if odd:
            rows |= {row_id: line_of(cells) for row_id, cells in self.cells(odd)[0].items()}
        iterations = self._connection.execute(
            f"SELECT {ITERATION_BEYOND}, {', '.join(ITERATION_COLUMNS)} {self._iterations()}", (json.dumps(list(rows)),)
        ).fetchall()
        impossible = self._impossible([row[0] for row in found if row[4]] + [row[1] for row in iterations if row[0]])
        for row_id in impossible:
            del rows[row_id]
        told = [line_of(cells) for _, *cells in iterations if cells[0] in rows]
        months = {row[0]: row[1][:7] for row in found}
        is_new = not changed and not any(row[2] for row in found)
        bases = self.versions(list(rows))
        return Batch(rows, told, months, bases, changed, impossible, is_new, archived, end)

    def _impossible(self, ids: Sequence[str]) -> dict[str, str]:
        """Return those rows that cannot be, and why."""
        found = {entry.record.id: beyond(entry) for entry in entries_by(self.editor, "id", list(ids))}
        return {row_id: why for row_id, why in found.items() if why is not None}

    def _iterations(self) -> str:
        table = self.editor.table("usage_iterations", ITERATION_COLUMNS)
        return f"FROM {table} WHERE record_id IN (SELECT value FROM json_each(?)) ORDER BY record_id, position"

    def cells(self, ids: Sequence[str]) -> tuple[dict[str, tuple[Any, ...]], dict[str, list[tuple[Any, ...]]]]:
        """Return what rows hold now (`COLUMNS`), and their iterations (`ITERATION_COLUMNS`), by their ids."""
        asked = (json.dumps(ids),)
        rows = self._connection.execute(
            f"SELECT id, {', '.join(COLUMNS)} FROM usage_records "
            "WHERE id IN (SELECT value FROM json_each(?)) AND usage_state <> 'pending'",
            asked,
        )
        iterations: dict[str, list[tuple[Any, ...]]] = {}
        for row in self._connection.execute(f"SELECT {', '.join(ITERATION_COLUMNS)} {self._iterations()}", asked):
            iterations.setdefault(row[0], []).append(row)
        return {row[0]: row[1:] for row in rows}, iterations

    def acknowledge(self, batch: Batch, versions: Sequence[tuple[str, int]] = (), left: Sequence[str] = ()) -> None:
        """Forget what is stored on the other side.

        `versions`: what rows have there whose version is to be known. `left` are ids of rows that were not taken: they
        wait on, as what they were.
        """
        kind, place = batch.end
        waiting = [(row_id, int(row_id not in batch.changed)) for row_id in left]
        with self.editor.transaction():
            if kind == "outbox":
                self._connection.execute("DELETE FROM fleet_outbox WHERE number <= ?", (int(place),))
            else:
                self._set_state(kind, place)
            self._connection.executemany(
                "INSERT OR REPLACE INTO fleet_versions (record_id, version) VALUES (?, ?)", versions
            )
            self._connection.executemany("INSERT INTO fleet_outbox (record_id, is_new) VALUES (?, ?)", waiting)
            self._count_batch()

    # What only grows.

    def entries(self, kind: str, size: int) -> tuple[dict[int, str], int]:
        """Return entries of the trail (`revisions`) or adjustments that were not pushed, as lines of COPY by their
        numbers, and the number of the last one.
        """
        table, columns, key = _GROWING[kind]
        after = int(self.state(kind) or 0)
        if not self.editor.has_table(table):
            return {}, after
        found = self._connection.execute(
            f"SELECT {', '.join(columns)} FROM {table} WHERE {key} > ? ORDER BY {key} LIMIT ?", (after, size)
        ).fetchall()
        return {row[0]: line_of(row) for row in found}, found[-1][0] if found else after

    def acknowledge_entries(self, kind: str, last: int) -> None:
        with self.editor.transaction():
            self._set_state(kind, str(last))
            self._count_batch()

    def skip_entries(self, position: int) -> None:
        """Push no entry of the trail up to this one, nor what it adjusted: they are there, under a former id."""
        with self.editor.transaction():
            self._set_state("revisions", str(position))
            if self.editor.has_table("bill_adjustments"):
                found = "SELECT coalesce(max(number), 0) FROM bill_adjustments WHERE position <= ?"
                (number,) = self._connection.execute(found, (position,)).fetchone()
                self._set_state("adjustments", str(number))


_GROWING = {
    "revisions": ("usage_revisions", revisions.COLUMNS, "position"),
    "adjustments": ("bill_adjustments", ADJUSTMENT_COLUMNS, "number"),
}
