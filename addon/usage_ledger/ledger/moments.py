"""Moments: times as the ledger holds them, and how people say them.

Room: ledger. Imports the standard library only. A moment is text: ISO 8601 in UTC, with milliseconds and `Z`, so that
moments are compared as texts are.
"""

import re
from datetime import UTC, date, datetime, timedelta

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_AGO = re.compile(r"(\d{1,6})([smhdw])")


def as_moment(text: str, now: datetime | None = None) -> str:
    """Turn `2026-11-01`, `2026-11-01T08:30+01:00`, `90m`, `24h` or `7d` (ago) into a ledger time.

    A time without a zone is UTC. Raises ValueError for anything else.
    """
    try:
        if _AGO.fullmatch(text):
            return format_moment((now or datetime.now(UTC)) - as_span(text))
        moment = datetime.fromisoformat(text)
        return format_moment(moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC))
    except OverflowError as error:
        raise ValueError(f"{text} is out of reach") from error


def as_span(text: str) -> timedelta:
    """Turn `90m`, `24h` or `7d` into a span of time; raise ValueError for anything else."""
    told = _AGO.fullmatch(text)
    if not told:
        raise ValueError(f"{text} is no span of time")
    return timedelta(**{_UNITS[told[2]]: int(told[1])})


def format_moment(moment: datetime) -> str:
    """Format a UTC time the way the ledger holds it: ISO 8601, milliseconds, `Z`."""
    return moment.replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"


def moment(timestamp: float) -> str:
    """Return a Unix time (seconds) as the ledger holds times."""
    return format_moment(datetime.fromtimestamp(timestamp, UTC))


def start_of(day: date) -> str:
    """Return when a UTC day begins, as the ledger holds times."""
    return f"{day.isoformat()}T00:00:00.000Z"


def short(moment: str) -> str:
    """Write a moment as short as it can be: a day, where it is the beginning of one."""
    return moment.removesuffix("T00:00:00.000Z")


def now() -> str:
    """Return what time it is."""
    return format_moment(datetime.now(UTC))
