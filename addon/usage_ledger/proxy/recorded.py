"""Recorded: the lines that mitmproxy's log gets, one for each row that is settled.

Room: proxy. Imports the flows and the ledger's record. mitmproxy takes 140 microseconds for each log record, most of
it to ask its addons about it, which is a fourth of what metering a request takes. So the lines of one turn of the event
loop share a record: on an idle proxy that is one line, and under load a dozen. Promises that lines keep their order,
that a warning is a record of its own, at once, and that a log that fails costs no more than what it failed at.
"""

import asyncio
import logging

from usage_ledger.flows.telling import log_line
from usage_ledger.ledger.record import Record

LINES = 100
"""So many lines share a log record at most."""

_log = logging.getLogger("usage_ledger")
_lines: list[str] = []
_told_by: asyncio.AbstractEventLoop | None = None
"""The loop at whose next turn the lines are told; one that was stopped before tells none."""


def tell(record: Record) -> None:
    """Tell the log of a settled row, soon."""
    global _told_by
    line, warns = log_line(record)
    if warns:
        _tell(logging.WARNING, line)
        return
    _lines.append(line)
    loop = asyncio.get_running_loop()
    if _told_by is not loop:
        _told_by = loop
        loop.call_soon(tell_all)
    if len(_lines) >= LINES:
        _tell_waiting()


def tell_at_once(record: Record) -> None:
    """Tell the log of a row now: a replay takes no turns, and where it shows flows, a line belongs beside its own."""
    line, warns = log_line(record)
    _tell(logging.WARNING if warns else logging.INFO, line)


def tell_all() -> None:
    """Tell the log the lines that wait for the end of the turn."""
    global _told_by
    _told_by = None
    _tell_waiting()


def _tell(level: int, line: str) -> None:
    try:
        _tell_waiting()
    finally:
        _log.log(level, line)


def _tell_waiting() -> None:
    lines = "\n".join(_lines)
    _lines.clear()  # before, for a log may fail, or ask for more
    if lines:
        _log.info(lines)
