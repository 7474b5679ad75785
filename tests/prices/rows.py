"""Rows to price."""

from typing import Any

from usage_ledger.ledger.record import Entry, IterationRow, Record

MOMENT = "2026-11-24T08:00:00.000Z"


def entry(model: str, *iterations: IterationRow, **fields: Any) -> Entry:
    """A complete row of today. `tokens` are input, output, 5-minute and 1-hour cache writes, and cache reads."""
    given: dict[str, Any] = {"occurred_at": MOMENT, "usage_state": "complete", **fields}
    if "tokens" in given:
        given |= counts(*given.pop("tokens"))
    return Entry(Record(id="a", host="h", path="/v1/messages", model=model, **given), list(iterations))


def iteration(model: str | None, *tokens: int, billed: int | None = 1) -> IterationRow:
    return IterationRow(record_id="a", position=0, type="message", model=model, billed=billed, **counts(*tokens))


def counts(given: int = 0, output: int = 0, write_5m: int = 0, write_1h: int = 0, read: int = 0) -> dict[str, int]:
    return {
        "input_tokens": given,
        "output_tokens": output,
        "cache_creation_input_tokens": write_5m + write_1h,
        "cache_creation_5m_input_tokens": write_5m,
        "cache_creation_1h_input_tokens": write_1h,
        "cache_read_input_tokens": read,
    }
