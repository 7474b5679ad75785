"""Recorded: the lines that mitmproxy's log gets, one for each row that is settled.

Room: proxy. Imports the flows and the ledger's record. mitmproxy takes 140 microseconds for each log record, most of
it to ask its addons about it, which is a fourth of what metering a request takes. So the lines of one turn of the event
loop share a record: on an idle proxy that is one line, and under load a dozen. Promises that lines keep their order,
and that a warning is a record of its own, at once.
"""

import asyncio
import logging

from usage_ledger.flows.telling import log_line
from usage_ledger.ledger.record import Record

LINES = 100
"""So many lines share a log record at most."""

_log = logging.getLogger("usage_ledger")
_lines: list[str] = []


def tell(record: Record) -> None:
    """Tell the log of a settled row."""
    line, warns = log_line(record)
    if warns:
        tell_all()
        _log.warning(line)
        return
    _lines.append(line)
    if len(_lines) == 1:
        asyncio.get_running_loop().call_soon(tell_all)
    elif len(_lines) == LINES:
        tell_all()


def tell_all() -> None:
    """Tell the log the lines that wait for the end of the turn."""
    if _lines:
        _log.info("\n".join(_lines))
        _lines.clear()
