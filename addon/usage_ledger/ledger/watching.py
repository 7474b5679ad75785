"""Watching: the numbers by which a monitor tells whether the books are in order.

Room: ledger. Imports the standard library and its neighbours in this room.
"""

import dataclasses
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from usage_ledger.ledger.filters import FLAGGED, PENDING, UNPRICED, Filters
from usage_ledger.ledger.moments import format_moment
from usage_ledger.ledger.reading import Reader


class Watched(NamedTuple):
    """Counts of rows that match; `newest` is the ledger time of the newest row whatever its span, None without one."""

    requests: int
    flagged: int
    unpriced: int
    stuck: int
    newest: str | None

    @property
    def flagged_share(self) -> float:
        """0 where there are no requests."""
        return self.flagged / self.requests if self.requests else 0.0


def watch(reader: Reader, filters: Filters, stuck_after: timedelta) -> Watched:
    """Count what a monitor asks for. A pending row is stuck once its request began `stuck_after` ago.

    Rows that a wrong clock put into the future do not pass for traffic.
    """
    now = datetime.now(UTC)
    began = format_moment(now - stuck_after)
    older = dataclasses.replace(filters, until=min(began, filters.until or began))
    where, values = dataclasses.replace(filters, since=None, until=format_moment(now)).where()
    (newest,) = reader.connection.execute(
        f"SELECT max(occurred_at) FROM {reader.table()} WHERE {where}", values
    ).fetchone()
    return Watched(
        requests=reader.count(filters),
        flagged=reader.count(filters, FLAGGED),
        unpriced=reader.count(filters, UNPRICED),
        stuck=reader.count(older, PENDING),
        newest=newest,
    )
