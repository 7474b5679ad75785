"""Bounds: what a row can hold at all. What is beyond them another program has written, and no sum could be made of it.

Room: ledger. Imports its neighbours in this room.
"""

import re
from collections.abc import Iterable

from usage_ledger.ledger.columns import COUNT_COLUMNS, COUNT_LIMIT, ITERATION_COUNTS, STATES
from usage_ledger.ledger.money import as_amount
from usage_ledger.ledger.record import Entry

_AMOUNTS = (*COUNT_COLUMNS, "total_tokens", "duration_ms", "time_to_first_token_ms", "response_bytes")
_FLAGS = ("stream", "requires_manual_review")
_YEAR = re.compile(r"[0-9]{4}-")
_SETTLED = STATES[1:]


def _is_no_cost(name: str) -> str:
    return f"{name} IS NOT NULL AND ({name} GLOB '*[^0-9.]*' OR {name} = '' OR length({name}) > 30)"


def _are_amounts(names: Iterable[str]) -> str:
    """SQL for whether none of these is negative or too large, at a look at all of their bits."""
    told = (name if name in COUNT_COLUMNS else f"coalesce({name}, 0)" for name in names)
    return f"({' | '.join(told)}) BETWEEN 0 AND {COUNT_LIMIT}"


BEYOND = (
    f"NOT {_are_amounts(_AMOUNTS)} OR ({' | '.join(_FLAGS)}) NOT IN (0, 1) "
    f"OR usage_state NOT IN ({', '.join(map(repr, _SETTLED))}) OR {_is_no_cost('total_cost')} "
    "OR coalesce(completed_at, '0') NOT BETWEEN '0' AND ':'"
)
"""SQL for whether a settled row may be beyond its bounds, to be looked at by `beyond`."""

ITERATION_BEYOND = (
    f"NOT {_are_amounts(ITERATION_COUNTS)} OR coalesce(billed, 0) NOT IN (0, 1) OR {_is_no_cost('total_cost')}"
)
"""The same of an iteration."""


def beyond(entry: Entry) -> str | None:
    """Return what of a settled row cannot be, in words; None where all can."""
    record = entry.record
    amounts = [(name, getattr(record, name)) for name in _AMOUNTS]
    amounts += [
        (f"{name} of an iteration", getattr(each, name)) for each in entry.iterations for name in ITERATION_COUNTS
    ]
    for name, amount in amounts:
        if amount is not None and not 0 <= amount <= COUNT_LIMIT:
            return f"{name} is {amount}"
    flags = [(name, getattr(record, name)) for name in _FLAGS]
    flags += [("billed of an iteration", each.billed or 0) for each in entry.iterations]
    for name, flag in flags:
        if flag not in (0, 1):
            return f"{name} is {flag}"
    for cost in (record.total_cost, *(each.total_cost for each in entry.iterations)):
        if cost is not None and as_amount(cost) is None:  # NaN, less than nothing, a hundred digits
            return f"total_cost is {cost[:40]}"
    if record.usage_state not in _SETTLED:
        return f"usage_state is {record.usage_state!r}"
    if record.completed_at is not None and not _YEAR.match(record.completed_at):  # infinity, or yesterday
        return f"completed_at is {record.completed_at[:40]}"
    return None
