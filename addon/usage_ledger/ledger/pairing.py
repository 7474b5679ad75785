"""Pairing: a ledger and the books that it exchanges rows with, and how the two know each other again.

Room: ledger. Imports its neighbours in this room. Promises that a ledger has an id of its own (and remembers those that
it had), exchanges rows with one set of books at a time, and notes each run of pushes before anything of it is sent.
"""

import json
import uuid
from typing import NamedTuple

from usage_ledger.ledger.editing import Editor
from usage_ledger.ledger.marks import LedgerError
from usage_ledger.ledger.presence import is_alive


class Pushes(NamedTuple):
    """What the other side has of a ledger: so many batches, and the name of the run that pushed the last (a UUID)."""

    batches: int = 0
    run: str | None = None


class Pairing:
    """What a ledger knows of itself and of the books, in its table `fleet_state`."""

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

    def begin_for(self, books: str, there: Pushes, follower: str | None = None) -> None:
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

    def _is_followed(self) -> bool:
        follower = self.state("follower")
        return follower is not None and is_alive(self.editor.path, follower)

    def check_books(self) -> None:
        """Raise `LedgerError` where the ledger exchanges rows with other books by now."""
        if self.state("books") != self._books:
            raise LedgerError("another push or pull of this ledger, with other books, came between; run it again")

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

    def _agree(self, there: Pushes) -> None:
        self._set_state("batches", str(there.batches))
        if there.run is not None:
            self._set_state("stored_run", there.run)

    def _forget(self, *names: str) -> None:
        self._connection.executemany("DELETE FROM fleet_state WHERE name = ?", [(name,) for name in names])

    @property
    def pushes(self) -> Pushes:
        """How many batches the other side has acknowledged, and in which run the last of them."""
        return Pushes(int(self.state("batches") or 0), self.state("stored_run"))

    def recognize(self, there: Pushes) -> None:
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

    def _count_batch(self) -> None:
        self.check_books()
        self._set_state("batches", str(self.pushes.batches + 1))
        run = self.state("run")
        if run is not None:
            self._set_state("stored_run", run)
