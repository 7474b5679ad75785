"""The writer: one thread a process and ledger, which commits what flows hand it in groups.

Room: ledger. Imports the standard library and its neighbours in this room; knows nothing of mitmproxy. Promises:

- `submit` never blocks the event loop: it appends to the open batch and returns that batch's future, which every flow
  of the batch awaits. While one batch is being committed the next one fills (group commit). A busy event loop fills it
  for one turn more, for in each commit loop and thread take the interpreter from each other some 50 times.
- Nothing is lost while the ledger cannot be written: rows wait, in order, and are tried again every half second.
  Beyond `MEMORY_ROWS` or `MEMORY_SECONDS`, and at the end of the process, they go to a spill file, which is taken back
  when the trouble is over or by the next start. The future then says False at once, so that no flow waits for a broken
  disk. Rows of a replay (`submit_all`), which can wait, go there at once.
- Trouble is told once when it begins and once when it ends.
- Rows are priced here, off the event loop, by what `price` is set to; where that fails, rows are written without.
"""

import asyncio
import atexit
import contextlib
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

from usage_ledger import __version__
from usage_ledger.ledger import spill
from usage_ledger.ledger.marks import LedgerError
from usage_ledger.ledger.paths import make_private_folder
from usage_ledger.ledger.presence import Presence, new_writer_id
from usage_ledger.ledger.record import Entry
from usage_ledger.ledger.store import Store, is_trouble

RETRY_SECONDS = 0.5

LOOK_SECONDS = 30.0
"""How often a writer looks for the rows of proxies that have died meanwhile."""

BUSY_SECONDS = 0.0005
"""A turn of the event loop that takes longer than this is one of a busy loop, whose batch may fill for one more."""

LEAVE_SECONDS = 10.0
"""How long the end of the process waits for a disk that hangs."""

REPLACED_LIMIT = 3
"""How often a batch is written again at once because the ledger's files were replaced under it."""

MEMORY_ROWS = 10_000
MEMORY_SECONDS = 5.0
"""While the ledger is in trouble, so many rows wait in memory, and for so long; then they go to a spill file."""

_log = logging.getLogger("usage_ledger")


class _Batch:
    """What one commit takes, and the future that tells those who handed it in whether it was committed.

    `rid` are the futures that tell when memory is rid of it.
    """

    __slots__ = ("entries", "outcome", "rid", "withdrawn")

    def __init__(self, outcome: "asyncio.Future[bool]") -> None:
        self.entries: list[Entry] = []
        self.withdrawn: list[str] = []
        self.outcome = outcome
        self.rid: list[asyncio.Future[bool]] = []


class Writer:
    """Writes to one ledger for the whole process. Made by `writer_for`, set to work by `start`, closed at exit."""

    def __init__(self, path: Path, durability: str) -> None:
        self.path = path
        self.durability = durability
        self.price: Callable[[Entry], None] = _no_price
        self.trouble: str | None = None
        self._id = new_writer_id()
        self.name = f"{__version__} {self._id}"
        self._lock = threading.Lock()
        self._open: _Batch | None = None
        self._wake: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._store: Store | None = None
        self._presence: Presence | None = None
        self._backlog: list[Entry] = []
        self._backlog_withdrawn: list[str] = []
        self._backlog_rid: list[asyncio.Future[bool]] = []
        self._spilled = 0  # writes that wait in the spill file
        self._thread = threading.Thread(target=self._run, name="usage-ledger-writer", daemon=True)
        self._looked_at = 0.0  # monotonic seconds
        self._trouble_since = 0.0
        self._retry_at = 0.0
        self._spill_failed = False
        self._pricing_failed = False
        self._taken_back = 0
        self._refused = 0  # rows that no file can hold
        self._started = False
        atexit.register(self.close)

    @property
    def spill_file(self) -> Path:
        """Where rows wait that the ledger cannot take."""
        return spill.spill_path(self.path, self._id)

    @property
    def nowhere(self) -> int:
        """How many rows no file holds: those of a replay that wait in memory alone, and those that cannot be stored."""
        return self._refused + (len(self._backlog) if self._backlog_rid else 0)

    def start(self) -> None:
        """Open the ledger and begin to write what was and will be handed in. Starting again does nothing."""
        if not self._started:
            self._started = True
            self._thread.start()
            self._wake.put(True)  # open the ledger now, so that trouble shows and dead writers' rows are settled

    # On the event loop.

    def submit(self, entry: Entry) -> "asyncio.Future[bool]":
        """Hand in a row; the future (shared by the batch: shield it) tells whether it was committed."""
        return self._hand_in([entry], [])

    def submit_all(self, entries: list[Entry]) -> "asyncio.Future[bool]":
        """Hand in rows of a replay, which cost one commit and need not wait in memory.

        The future tells where they are once memory is rid of them: True, in the ledger; False, in the spill file. While
        neither can be written it is not done, so that whoever waits for it fills no memory.
        """
        rid: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._hand_in(entries, [], rid)
        return rid

    def withdraw(self, record_id: str) -> "asyncio.Future[bool]":
        """Remove a row if it is still pending."""
        return self._hand_in([], [record_id])

    def _hand_in(
        self, entries: list[Entry], withdrawn: list[str], rid: "asyncio.Future[bool] | None" = None
    ) -> "asyncio.Future[bool]":
        loop = asyncio.get_running_loop()
        with self._lock:
            batch, is_new = self._batch_for(loop)
            batch.entries += entries
            batch.withdrawn += withdrawn
            if rid is not None:
                batch.rid.append(rid)
        if is_new:
            loop.call_soon(self._hand_over, loop, loop.time(), True)
        if self.trouble is None:
            return batch.outcome
        kept: asyncio.Future[bool] = loop.create_future()
        kept.set_result(False)
        return kept

    def _batch_for(self, loop: asyncio.AbstractEventLoop) -> tuple[_Batch, bool]:
        """Return the open batch, and whether it has yet to be handed over by this loop."""
        if self._open is None:
            self._open = _Batch(loop.create_future())
        elif self._open.outcome.get_loop().is_closed():  # it hands nothing over any more, and nobody waits there
            self._open.outcome = loop.create_future()
        else:
            return self._open, False
        return self._open, True

    def _hand_over(self, loop: asyncio.AbstractEventLoop, turn_began: float, may_wait: bool) -> None:
        """Let the thread write the open batch, at the end of a turn of the loop; a busy one may fill it once more."""
        now = loop.time()
        if may_wait and now - turn_began > BUSY_SECONDS:
            loop.call_soon(self._hand_over, loop, now, False)
        else:
            self._wake.put(True)

    async def flush(self) -> None:
        """Wait until everything handed in so far is committed, or is known to wait for better times."""
        with self._lock:
            batch, _ = self._batch_for(asyncio.get_running_loop())
        self._wake.put(True)
        await asyncio.shield(batch.outcome)

    # On the writer's thread.

    def _run(self) -> None:
        running = True
        while running:
            with contextlib.suppress(queue.Empty):  # nothing new, but there is something to try again or to look for
                running = self._wake.get(timeout=RETRY_SECONDS if self.trouble else LOOK_SECONDS)
            with self._lock:
                batch, self._open = self._open, None
            if batch is not None:
                self._price_all(batch.entries)
                self._backlog += batch.entries
                self._backlog_withdrawn += batch.withdrawn
                self._backlog_rid += batch.rid
            try:
                written = self._write_backlog(at_last=not running)
                if not written and self._backlog_rid:
                    self._spill()
            except Exception as error:  # noqa: BLE001 - nothing may end this thread: every flow waits for it
                self._begin_trouble(error)
                written = False
            if written or not self._backlog:
                for rid in self._backlog_rid:
                    _tell(rid, written)
                self._backlog_rid.clear()
            if batch is not None:
                _tell(batch.outcome, written)
        self._leave()

    def _price_all(self, entries: list[Entry]) -> None:
        """Let rows that are about to be written get their cost. Whatever that does, the rows are written."""
        for entry in entries:
            try:
                self.price(entry)
            except Exception as error:  # noqa: BLE001 - a price is worth less than the row
                if not self._pricing_failed:
                    self._pricing_failed = True
                    _log.error(
                        f"usage ledger: pricing failed, please report this: {error!r}. Rows are written without a "
                        "cost; `usage-ledger price` gives it to them later"
                    )

    def _write_backlog(self, at_last: bool) -> bool:
        """Write all that waits; True when nothing is left waiting. In trouble it is not tried for every batch."""
        if self.trouble and time.monotonic() < self._retry_at and not at_last:
            return False
        count = len(self._backlog)
        try:
            store = self._ready_store()
            if time.monotonic() - self._looked_at > LOOK_SECONDS:
                self._settle_dead_writers(store)
            if self._backlog or self._backlog_withdrawn:
                self._write_to(store)
            elif self.trouble:
                store.probe()
        except Exception as error:  # noqa: BLE001 - whatever it is, rows are kept and the thread lives on
            self._close_store()  # what is repaired or replaced has to be opened anew
            self._begin_trouble(error)
            self._retry_at = time.monotonic() + RETRY_SECONDS
            waits = len(self._backlog) + len(self._backlog_withdrawn)
            if waits > MEMORY_ROWS or (waits and time.monotonic() - self._trouble_since > MEMORY_SECONDS):
                self._spill()
            return False
        self._end_trouble(count)
        return True

    def _write_to(self, store: Store) -> None:
        """Write what waits as one batch.

        A file that was removed or replaced meanwhile took the batch with it, so it is written again to the next one.
        """
        for _ in range(REPLACED_LIMIT):
            refused = _store_all(store, self._backlog, self._backlog_withdrawn)
            if store.is_current():
                self._refused += refused
                self._backlog.clear()
                self._backlog_withdrawn.clear()
                return
            store = self._ready_store()
        raise LedgerError("its files are replaced again and again; is it on a network file system?")

    def _ready_store(self) -> Store:
        """Return the open store; open it (again) where it is not, or where the file was replaced or removed."""
        if self._store is not None and not self._store.is_current():
            self._close_store()
        if self._store is None:
            make_private_folder(self.path.parent)
            self._mark_presence()
            self._store = Store(self.path, self.durability, self._id)
            self._settle_dead_writers(self._store)
        if self._store.durability != self.durability:
            self._store.set_durability(self.durability)
        return self._store

    def _settle_dead_writers(self, store: Store) -> None:
        """Take over from proxies that are gone: first the rows they spilled, then those they left in flight."""
        self._looked_at = time.monotonic()
        self._mark_presence()
        self._take_back(store)
        settled = store.settle_dead_writers()
        if settled:
            _log.warning(
                f"usage ledger: {settled} request(s) of a proxy that is gone were left in flight; "
                "they are flagged proxy_stopped"
            )

    def _mark_presence(self) -> None:
        """Mark this writer as alive; again, where somebody has removed the mark."""
        if self._presence is None or not self._presence.still_marked():
            former, self._presence = self._presence, None
            if former is not None:
                former.leave()
            self._presence = Presence(self.path, self._id)

    def _close_store(self) -> None:
        store, self._store = self._store, None
        if store is not None:
            with contextlib.suppress(OSError, sqlite3.Error):  # what cannot be closed in order is let go
                store.close()

    def _spill(self) -> None:
        """Move what waits from memory to the spill file; where that fails too, it goes on waiting in memory."""
        try:
            refused = spill.append(self.spill_file, self._backlog, self._backlog_withdrawn)
        except OSError as error:
            if not self._spill_failed:
                self._spill_failed = True
                _log.error(f"usage ledger: cannot spill rows beside {self.path}: {error}. They wait in memory alone")
            return
        for entry in refused:
            _log.error(f"usage ledger: row {entry.record.id} cannot be stored, please report this")
        self._spill_failed = False
        self._refused += len(refused)
        self._spilled += len(self._backlog) - len(refused)
        self._backlog.clear()
        self._backlog_withdrawn.clear()

    def _take_back(self, store: Store) -> None:
        """Store the rows of spill files: what this writer could not store, and what dead writers left."""
        for path in spill.left_behind(self.path, self._id):
            count = 0
            unreadable: list[bytes] = []
            with contextlib.suppress(FileNotFoundError):  # another proxy that started at the same time was faster
                for entries, withdrawn in spill.read(path, 500, unreadable):
                    _store_all(store, store.without_archived(entries, lambda _: True), withdrawn)
                    count += len(entries)
                if not store.is_current():
                    raise LedgerError("its files were removed or replaced while spilled rows were stored")
                if unreadable:
                    aside = spill.put_aside(path)
                    _log.error(
                        f"usage ledger: {len(unreadable)} row(s) of {aside} are of a shape that this version does not "
                        "know. Rename it back for the version that wrote it"
                    )
                else:
                    path.unlink()
            if path == self.spill_file:
                self._spilled = 0
            if count and self.trouble is None:
                _log.warning(f"usage ledger: what {path.name} held is stored ({count} writes)")
            self._taken_back += count

    def _begin_trouble(self, error: Exception) -> None:
        if self.trouble is None:
            self.trouble = str(error)
            self._trouble_since = time.monotonic()
            _log.error(
                f"usage ledger: cannot write {self.path}: {error}. Rows are kept and tried again every "
                f"{RETRY_SECONDS} s; at the end of this process they go to a file beside it"
            )

    def _end_trouble(self, count: int) -> None:
        if self.trouble is not None:
            self.trouble = None
            count += self._taken_back
            _log.warning(f"usage ledger: {self.path} can be written again; all that waited is stored ({count} writes)")
        self._taken_back = 0

    def _leave(self) -> None:
        if self._backlog or self._backlog_withdrawn:
            self._spill()
        if self._backlog:
            lost = len(self._backlog)
            _log.error(f"usage ledger: {lost} row(s) could not be stored anywhere before the end, and are lost")
        if self._spilled:
            _log.error(f"usage ledger: {self._spilled} row(s) wait in {self.spill_file} for the next start")
        self._settle_own()
        self._close_store()
        if self._presence is not None:
            self._presence.leave()

    def _settle_own(self) -> None:
        """Settle requests that began as the program ended. Where that cannot be, whoever starts next does it."""
        with contextlib.suppress(OSError, sqlite3.Error):
            settled = self._store.settle_own(self.name) if self._store is not None else 0
            if settled:
                _log.warning(
                    f"usage ledger: {settled} request(s) began as the proxy stopped; they are flagged proxy_stopped"
                )

    def close(self) -> None:
        """Write what waits and end the thread. Called at exit; calling it again does nothing."""
        if self._open is not None:
            self.start()
        if self._thread.is_alive():
            self._wake.put(False)
            self._thread.join(timeout=LEAVE_SECONDS)
            if self._thread.is_alive():
                _log.error(f"usage ledger: {self.path} does not answer; rows of the last seconds may be lost")
        atexit.unregister(self.close)


def _store_all(store: Store, entries: list[Entry], withdrawn: list[str]) -> int:
    """Store a batch; where a row in it cannot be stored, say which, and store the others. Return how many cannot."""
    try:
        store.write(entries, withdrawn)
        return 0
    except Exception as error:  # told apart here, not handled
        if is_trouble(error):
            raise
    refused = 0
    for entry in entries:
        try:
            store.write([entry], [])
        except Exception as error:
            if is_trouble(error):
                raise
            refused += 1
            _log.error(f"usage ledger: row {entry.record.id} cannot be stored, please report this: {error!r}")
    store.write([], withdrawn)
    return refused


def _tell(outcome: "asyncio.Future[bool]", written: bool) -> None:
    """Tell a batch's flows, from the writer's thread, whether their rows are on disk."""

    def set_outcome() -> None:
        if not outcome.done():
            outcome.set_result(written)

    with contextlib.suppress(RuntimeError):  # the loop is closed: the process is ending and nobody waits any more
        outcome.get_loop().call_soon_threadsafe(set_outcome)


def _no_price(entry: Entry) -> None:
    """What prices rows until somebody says how: nothing."""


_writers: dict[Path, Writer] = {}


def writer_for(path: Path, durability: str) -> Writer:
    """Return this process's writer for a ledger; a reload of the script finds the one that is there.

    It takes over a changed `durability` with the next batch.
    """
    path = path.resolve()
    writer = _writers.get(path)
    if writer is None:
        writer = _writers[path] = Writer(path, durability)
    writer.durability = durability
    return writer
