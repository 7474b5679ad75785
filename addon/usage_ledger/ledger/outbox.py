"""The outbox: which settled rows of a ledger have changed since they were pushed, and how far pushing has come.

Room: ledger. Imports its neighbours in this room. The ledger is its own durable queue: from the first push on, triggers
note each change in the transaction that makes it. Promises that nothing is forgotten before the other side has
acknowledged it, and that a row that changes while it is under way is pushed once more. Rows in flight are no news.

What goes over the wire are lines of PostgreSQL's COPY in its text format, with `SEPARATOR` and `NULL`.
"""

import json
import re
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from usage_ledger.ledger import revisions
from usage_ledger.ledger.bill import KINDS
from usage_ledger.ledger.bounds import BEYOND, ITERATION_BEYOND, beyond
from usage_ledger.ledger.columns import COLUMNS, ITERATION_COLUMNS, NUMBER_COLUMNS
from usage_ledger.ledger.editing import Editor, open_for_editing
from usage_ledger.ledger.entries import entries_by
from usage_ledger.ledger.marks import LedgerError
from usage_ledger.ledger.presence import is_alive, new_writer_id
from usage_ledger.ledger.store import Store

ADJUSTMENT_COLUMNS = ("number", "position", "day", "model", "api_key", "workspace", *KINDS)


class Pushes(NamedTuple):
    """What the other side has of a ledger: so many batches, and the name of the run that pushed the last (a UUID)."""

    batches: int = 0
    run: str | None = None


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


SEPARATOR, NULL = "\x1f", "\x1e"


_SPECIAL = re.compile(f"[\\\\\n\r{SEPARATOR}{NULL}]")


def line_of(cells: Iterable[object]) -> str:
    """Return a line that says these cells, whatever they hold; None is NULL, and U+FFFD stands for NUL characters."""
    return SEPARATOR.join([NULL if cell is None else _cell(str(cell)) for cell in cells])


def _cell(text: str) -> str:
    if text.isprintable() and "\\" not in text:
        return text
    return _SPECIAL.sub(r"\\\g<0>", text.replace("\0", "\ufffd"))


_CELLS = ", ".join(f"coalesce({name}, '{NULL}')" for name in COLUMNS)
_LINE = f"printf('{SEPARATOR.join(['%s'] * len(COLUMNS))}', {_CELLS})"
"""SQL for a line of what the addon writes, but for its backslashes; quicker than `line_of`.

Where another program has put something special, `_is_whole` is false, or `_IS_CUT` true.
"""


def _is_whole(line: str) -> bool:
    """Whether a line of SQL's is one row: no cell of it holds a separator or a line end."""
    return line.count(SEPARATOR) == len(COLUMNS) - 1 and "\n" not in line and "\r" not in line


_TEXTS = [name for name in COLUMNS if name not in NUMBER_COLUMNS]
_IS_CUT = f"'{NULL}' IN ({', '.join(_TEXTS)}) OR {' OR '.join(f'instr({name}, char(0))' for name in _TEXTS)}"
"""SQL for whether a line lacks text of its row: what is nothing but `NULL` would be none, and a NUL ends the others."""

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


class Outbox:
    """What a ledger has to push, and the versions it knows of the other side. Rows may be written meanwhile."""

    def __init__(self, editor: Editor) -> None:
        self.editor = editor
        self._connection = editor.connection
        self._books: str | None = None

    def prepare(self) -> None:
        """See to it that the ledger has an id of its own, for as long as it lives."""
        if self.state("ledger") is None:
            with self.editor.transaction():
                if self.state("ledger") is None:
                    self._set_state("ledger", str(uuid.uuid4()))

    @property
    def ledger(self) -> str:
        """The ledger's own id (a UUID)."""
        found = self.state("ledger")
        assert found is not None
        return found

    def state(self, name: str) -> str | None:
        found = self._connection.execute("SELECT value FROM fleet_state WHERE name = ?", (name,)).fetchone()
        return None if found is None else str(found[0])

    def _set_state(self, name: str, value: str) -> None:
        self._connection.execute("INSERT OR REPLACE INTO fleet_state (name, value) VALUES (?, ?)", (name, value))

    def begin_for(self, books: str, there: "Pushes", follower: str | None = None) -> None:
        """Begin to exchange rows with these books (a UUID), where so much was pushed from this ledger (`there`).

        Others than before get everything from the start. `follower` is the mark (`presence`) of who goes on doing so;
        raises `LedgerError` where another one, with other books, lives.
        """
        self._books = books
        is_other = self.state("books") != books
        if is_other or (follower is not None and not self._is_followed()):
            with self.editor.transaction():
                if is_other and self.state("follower") != follower and self._is_followed():
                    raise LedgerError(
                        "a push --follow of this ledger to other books is running, and it has one set; end that one"
                    )
                if is_other:
                    self._start_over()
                    self._agree(there)
                    self._set_state("books", books)
                if follower is not None:
                    self._set_state("follower", follower)
        if not self.editor.has_table("fleet_outbox_iteration_gone"):  # the last of its triggers
            with self.editor.transaction():
                self._watch()

    def _is_followed(self) -> bool:
        follower = self.state("follower")
        return follower is not None and is_alive(self.editor.path, follower)

    def check_books(self) -> None:
        """Raise `LedgerError` where the ledger exchanges rows with other books by now."""
        if self.state("books") != self._books:
            raise LedgerError("another push or pull of this ledger, with other books, came between; run it again")

    def versions(self, ids: Sequence[str]) -> dict[str, int]:
        """Return the versions of rows on the other side, as far as they are known."""
        if self._connection.execute("SELECT 1 FROM fleet_versions LIMIT 1").fetchone() is None:
            return {}
        found = self._connection.execute(
            "SELECT record_id, version FROM fleet_versions WHERE record_id IN (SELECT value FROM json_each(?))",
            (json.dumps(ids),),
        )
        return dict(found)

    def start_over(self, there: "Pushes") -> None:
        """Push everything once more: the other side was restored from a backup, and has only so much (`there`).

        Rows that had come from there or gone there count as changed here, so that none gives way unheard.
        """
        with self.editor.transaction():
            self._connection.execute(
                "INSERT INTO fleet_outbox (record_id, is_new) SELECT record_id, 0 FROM fleet_versions"
            )
            self._start_over()
            self._agree(there)

    def renew(self) -> None:
        """Give the ledger another id: it was restored from a backup or copied, and its id is that of what it was.

        Until `finish`, this may be asked for again.
        """
        if not self.is_renewed:
            with self.editor.transaction():
                self._set_state("formers", json.dumps([*self.formers, self.ledger]))
                self._set_state("renewed", "1")
                self._set_state("ledger", str(uuid.uuid4()))
                self._forget("name")
                self._start_over()

    def finish(self) -> None:
        """All was pushed under the id that `renew` gave."""
        if self.is_renewed:
            with self.editor.transaction():
                self._forget("renewed")

    @property
    def is_renewed(self) -> bool:
        """Whether `renew` gave another id, under which not everything was pushed yet."""
        return self.state("renewed") is not None

    @property
    def formers(self) -> list[str]:
        """The ids that this ledger had before; books that are restored to what they were know it by them."""
        return list(json.loads(self.state("formers") or "[]"))

    def note_name(self, name: str) -> None:
        """Note under which name the ledger is pushed."""
        if self.state("name") != name:
            with self.editor.transaction():
                self._set_state("name", name)

    def _start_over(self) -> None:
        self._forget("first_rows", "revisions", "adjustments", "batches", "run", "stored_run")
        self._connection.execute("DELETE FROM fleet_versions")

    def _agree(self, there: "Pushes") -> None:
        self._set_state("batches", str(there.batches))
        if there.run is not None:
            self._set_state("stored_run", there.run)

    def _forget(self, *names: str) -> None:
        self._connection.executemany("DELETE FROM fleet_state WHERE name = ?", [(name,) for name in names])

    @property
    def pushes(self) -> "Pushes":
        """How many batches the other side has acknowledged, and in which run the last of them."""
        return Pushes(int(self.state("batches") or 0), self.state("stored_run"))

    def recognize(self, there: "Pushes") -> None:
        """Note whose batch is the last one there: it may be of a run that was ended before it heard so."""
        if there.run is not None and there.run != self.pushes.run:
            with self.editor.transaction():
                self._set_state("stored_run", there.run)

    def begin_run(self) -> str:
        """Give what is pushed next a name (a UUID), before anything is sent: a copy of this ledger does not know it."""
        run = str(uuid.uuid4())
        with self.editor.transaction():
            self._set_state("run", run)
        return run

    def revision_hash(self, position: int) -> str | None:
        """Return the hash of an entry of the trail; None where there is none."""
        found = self._connection.execute("SELECT hash FROM usage_revisions WHERE position = ?", (position,)).fetchone()
        return None if found is None else str(found[0])

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
            f"instr(metadata, '_accepted') OR ({_TELLS_ITS_START}) IS NOT 1, {_LINE}, {BEYOND}, {_IS_CUT} "
            f"FROM usage_records WHERE usage_state <> 'pending' AND {condition}",
            values,
        ).fetchall()
        if end is None:
            if not found:
                return None
            end = "first_rows", json.dumps([found[-1][1], found[-1][0]])
        rows = {row[0]: row[3].replace("\\", "\\\\") for row in found}
        odd = [row[0] for row in found if row[5] or not _is_whole(row[3])]
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

    def _count_batch(self) -> None:
        self.check_books()
        self._set_state("batches", str(self.pushes.batches + 1))
        run = self.state("run")
        if run is not None:
            self._set_state("stored_run", run)

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
