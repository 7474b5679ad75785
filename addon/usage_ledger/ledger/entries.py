"""Entries: rows with their iterations, read back as they were handed in.

Room: ledger. Imports `msgspec` (through `record`) and its neighbours in this room, so only commands that change rows
open it. Promises that memory does not grow with the number of rows.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from usage_ledger.ledger.columns import COLUMNS, ITERATION_COLUMNS
from usage_ledger.ledger.filters import Filters
from usage_ledger.ledger.reading import Reader
from usage_ledger.ledger.record import Entry, IterationRow, Record

PAGE = 200
"""Rows that are read, and written, at a time: a few milliseconds of other writers' time."""


def entries(reader: Reader, filters: Filters, condition: str = "true") -> Iterator[list[Entry]]:
    """Return the rows that match and fulfil an SQL condition of this package, oldest first, `PAGE` at a time."""
    for page in reader.pages(filters, condition, COLUMNS, PAGE):
        yield _entries(reader, page)


def entries_by(reader: Reader, column: str, values: Sequence[str]) -> list[Entry]:
    """Return the rows that have one of these values in a column (`id`, `request_id` or `message_id`)."""
    return _entries(reader, reader.having(column, values, COLUMNS))


def _entries(reader: Reader, rows: Sequence[tuple[Any, ...]]) -> list[Entry]:
    records = [Record(**dict(zip(COLUMNS, row, strict=True))) for row in rows]
    found = reader.iterations([record.id for record in records], ITERATION_COLUMNS)
    iterations = {
        record_id: [IterationRow(*row) for row in rows] for record_id, rows in groupby(found, lambda row: row[0])
    }
    return [Entry(record, iterations.get(record.id, [])) for record in records]
