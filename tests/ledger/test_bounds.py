"""Bounds: what SQL takes a second look at is all that cannot be."""

import sqlite3
from contextlib import closing

import pytest
from usage_ledger.ledger.bounds import BEYOND, ITERATION_BEYOND, beyond
from usage_ledger.ledger.columns import COLUMNS, COUNT_COLUMNS, COUNT_LIMIT, ITERATION_COLUMNS
from usage_ledger.ledger.record import Entry, IterationRow, Record

AMOUNTS = (-1, 0, 1, 2, COUNT_LIMIT, COUNT_LIMIT + 1, 2**50, 2**63 - 1, -(2**63))
COSTS = (None, "", "0", "1.5", "-1", "nan", "much", "1e9", "9" * 31, "0." + "9" * 100)


def record(**more: object) -> Record:
    given = {"id": "a", "occurred_at": "2026-11-01T08:00:00.000Z", "host": "h", "path": "/", "usage_state": "complete"}
    return Record(**{**given, **more})  # type: ignore[arg-type]


def is_suspect(condition: str, columns: tuple[str, ...], values: object) -> bool:
    with closing(sqlite3.connect(":memory:")) as connection:
        told = ", ".join(f"? AS {name}" for name in columns)
        cells = [getattr(values, name) for name in columns]
        return connection.execute(f"SELECT ({condition}) IS NOT 0 FROM (SELECT {told})", cells).fetchone()[0] == 1


@pytest.mark.parametrize(
    ("name", "values"),
    [
        *((name, AMOUNTS) for name in (*COUNT_COLUMNS, "total_tokens", "response_bytes", "duration_ms")),
        ("time_to_first_token_ms", AMOUNTS),
        *((name, AMOUNTS) for name in ("stream", "requires_manual_review")),
        ("total_cost", COSTS),
        ("completed_at", (None, "2026-11-01T08:00:00.000Z", "infinity", "-infinity", "now", "")),
        ("usage_state", ("complete", "none", "partial", "missing", "odd", "")),
    ],
)
def test_a_row_that_cannot_be_is_looked_at(name: str, values: tuple[object, ...]) -> None:
    assert not is_suspect(BEYOND, COLUMNS, record())
    for value in values:
        row = record(**{name: value})
        assert is_suspect(BEYOND, COLUMNS, row) or beyond(Entry(row)) is None, value


@pytest.mark.parametrize(
    ("name", "values"),
    [*((name, AMOUNTS) for name in COUNT_COLUMNS[:6]), ("billed", (None, *AMOUNTS)), ("total_cost", COSTS)],
)
def test_an_iteration_that_cannot_be_is_looked_at(name: str, values: tuple[object, ...]) -> None:
    assert not is_suspect(ITERATION_BEYOND, ITERATION_COLUMNS, IterationRow("a", 0, "message", None, 1))
    for value in values:
        iteration = IterationRow("a", 0, "message", None, 1)
        setattr(iteration, name, value)
        suspect = is_suspect(ITERATION_BEYOND, ITERATION_COLUMNS, iteration)
        assert suspect or beyond(Entry(record(), [iteration])) is None, value
