"""Replaying: rows of captured flows on their way to the ledger.

Room: proxy. Imports mitmproxy's log level, the flows room and the ledger. A replay holds up nobody's traffic and can be
done again, so its rows go to the writer many at a time. Promises that memory does not grow with the capture, that the
log says how far it is, and at the end what came of it.
"""

import asyncio
import logging
from collections import Counter
from pathlib import Path

from mitmproxy.log import ALERT

from usage_ledger.flows.replay import Judged, as_stored
from usage_ledger.ledger.finding import row_of
from usage_ledger.ledger.marks import LedgerError
from usage_ledger.ledger.reading import open_for_reading
from usage_ledger.ledger.record import Entry
from usage_ledger.ledger.writer import Writer

AT_ONCE = 512
"""Rows that are handed to the writer at once. While they are stored, the next ones are read."""

PROGRESS = 1_000
"""After so many flows the log says how far it is."""

PAUSE_SECONDS = 1.0
"""After a pause this long a replay is taken to be over."""

_log = logging.getLogger("usage_ledger")


class Replaying:
    """What was replayed since the last pause."""

    def __init__(self) -> None:
        self._writer: Writer | None = None
        self._waiting: list[Entry] = []
        self._stored: asyncio.Future[bool] | None = None
        self._states: Counter[str] = Counter()
        self._flagged = 0
        self._pause: asyncio.TimerHandle | None = None
        self._counted = 0  # at the last look

    async def add(self, entry: Entry, writer: Writer) -> None:
        """Take the row of a replayed flow; wait where the ledger cannot keep up."""
        if writer is not self._writer:
            self._hand_in()
            self._writer = writer
        self._waiting.append(entry)
        self._states[entry.record.usage_state] += 1
        self._flagged += bool(entry.record.requires_manual_review)
        if self._pause is None:
            self._look_again()
        count = self._states.total()
        if count % PROGRESS == 0:
            _log.log(ALERT, f"usage ledger: {count:,} flows replayed so far")
        if len(self._waiting) >= AT_ONCE:
            before, self._stored = self._stored, self._hand_in()
            if before is not None:
                await asyncio.shield(before)

    def finish(self) -> None:
        """Hand in what is left, and say what came of the replay, if there was one."""
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        self._hand_in()
        count = self._states.total()
        if count:
            states = ", ".join(f"{number:,} {state}" for state, number in sorted(self._states.items()))
            _log.log(ALERT, f"usage ledger: {count:,} flows replayed: {states}; {self._flagged:,} flagged")
        self._stored, self._counted, self._flagged = None, 0, 0
        self._states.clear()

    def _hand_in(self) -> "asyncio.Future[bool] | None":
        waiting, self._waiting = self._waiting, []
        return self._writer.submit_all(waiting) if waiting and self._writer is not None else None

    def _look_again(self) -> None:
        self._pause = asyncio.get_running_loop().call_later(PAUSE_SECONDS, self._look)

    def _look(self) -> None:
        """Find out whether the replay goes on."""
        count = self._states.total()
        if count == self._counted and (self._stored is None or self._stored.done()):
            self.finish()
        else:
            self._counted = count
            self._look_again()


def as_the_ledger_says(judged: Judged, ledger: Path) -> Judged:
    """Return what there is to say of a flow whose body the capture does not hold: what its row says, if it has one."""
    try:
        with open_for_reading(ledger) as reader:
            row = row_of(reader, judged.entry)
    except LedgerError:  # there is none yet
        return judged
    return judged if row is None else as_stored(judged, row)
