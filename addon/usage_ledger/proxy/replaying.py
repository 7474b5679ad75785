"""Replaying: rows of captured flows on their way to the ledger.

Room: proxy. Imports mitmproxy's log level, the flows room and the ledger. A replay holds up nobody's traffic and can be
done again, so its rows go to the writer many at a time. Promises that memory does not grow with the capture, that the
log says how far it is, and at the end what came of it and where the rows are; and that the program fails where there
are rows that no file holds.
"""

import asyncio
import dataclasses
import logging
import sys
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
"""Rows that are handed to the writer at once. While they are stored, or spilled, the next ones are read."""

PROGRESS = 1_000
"""After so many flows the log says how far it is."""

PAUSE_SECONDS = 1.0
"""After a pause this long a replay is taken to be over."""

_log = logging.getLogger("usage_ledger")


@dataclasses.dataclass
class _Tally:
    """What was replayed: flows by state, how many of them are flagged, and where their rows are."""

    states: Counter[str] = dataclasses.field(default_factory=Counter)
    flagged: int = 0
    in_ledger: int = 0
    spilled: int = 0

    @property
    def count(self) -> int:
        return self.states.total()

    def add(self, entry: Entry) -> None:
        self.states[entry.record.usage_state] += 1
        self.flagged += bool(entry.record.requires_manual_review)

    def have_left(self, count: int, in_ledger: bool) -> None:
        """So many rows are in the ledger, and with them all that was spilled before; or they are spilled."""
        if in_ledger:
            self.in_ledger += self.spilled + count
            self.spilled = 0
        else:
            self.spilled += count

    def line(self, writer: Writer) -> str:
        states = ", ".join(f"{number:,} {state}" for state, number in sorted(self.states.items()))
        line = f"usage ledger: {self.count:,} flows replayed: {states}; {self.flagged:,} flagged"
        if writer.trouble is None:
            return line
        in_memory = self.count - self.in_ledger - self.spilled
        line += f". The ledger cannot be written: it has {self.in_ledger:,} of their rows"
        line += f", {self.spilled:,} wait in {writer.spill_file}" if self.spilled else ""
        return line + (f", {in_memory:,} wait in memory alone" if in_memory else "")


class Replaying:
    """What was replayed since the last pause."""

    def __init__(self) -> None:
        self._writer: Writer | None = None
        self._waiting: list[Entry] = []
        self._handed_in: asyncio.Future[bool] | None = None
        self._tally = _Tally()
        self._pause: asyncio.TimerHandle | None = None
        self._counted = 0  # at the last look
        self._finishing: asyncio.Task[None] | None = None
        self._failing: asyncio.Task[None] | None = None

    async def add(self, entry: Entry, writer: Writer) -> None:
        """Take the row of a replayed flow; wait where the ledger cannot keep up."""
        if writer is not self._writer:
            await self.finish()
            self._writer = writer
        self._waiting.append(entry)
        self._tally.add(entry)
        if self._pause is None:
            self._look_again()
        if self._tally.count % PROGRESS == 0:
            _log.log(ALERT, f"usage ledger: {self._tally.count:,} flows replayed so far")
        if len(self._waiting) >= AT_ONCE:
            before, self._handed_in = self._handed_in, self._hand_in()
            if before is not None:
                await asyncio.shield(before)

    async def finish(self) -> None:
        """Hand in what is left, see where it goes, and say what came of the replay, if there was one."""
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        self._hand_in()
        tally, self._tally = self._tally, _Tally()
        self._handed_in, self._counted = None, 0
        if tally.count and self._writer is not None:
            writer = self._writer
            await writer.flush()
            _log.log(ALERT, tally.line(writer))

    def end(self) -> None:
        """The program ends, after `finish`: let it fail (exit code 1) where a row of a replay is nowhere."""
        if self._writer is not None and self._writer.nowhere:
            self._failing = asyncio.get_running_loop().create_task(_fail_at_the_end())

    def _hand_in(self) -> "asyncio.Future[bool] | None":
        waiting, self._waiting = self._waiting, []
        if not waiting or self._writer is None:
            return None
        tally, count = self._tally, len(waiting)
        left = self._writer.submit_all(waiting)
        left.add_done_callback(lambda left: tally.have_left(count, left.result()))
        return left

    def _look_again(self) -> None:
        self._pause = asyncio.get_running_loop().call_later(PAUSE_SECONDS, self._look)

    def _look(self) -> None:
        """Find out whether the replay goes on."""
        if self._tally.count == self._counted and (self._handed_in is None or self._handed_in.done()):
            self._finishing = asyncio.get_running_loop().create_task(self.finish())
        else:
            self._counted = self._tally.count
            self._look_again()


async def _fail_at_the_end() -> None:
    """Exit when the event loop ends, which cancels what still waits: until then the other addons come to their end."""
    try:
        await asyncio.get_running_loop().create_future()
    except asyncio.CancelledError:
        sys.exit(1)


def as_the_ledger_says(judged: Judged, ledger: Path) -> Judged:
    """Return what there is to say of a flow without a body or an end: what its row says, if it has one."""
    try:
        with open_for_reading(ledger) as reader:
            row = row_of(reader, judged.entry)
    except LedgerError:  # there is none yet
        return judged
    return judged if row is None else as_stored(judged, row)
