"""Entries: settled rows with their iterations, read back as they were handed in.

Room: ledger. Imports `msgspec` (through `record`) and its neighbours in this room, so only commands that change rows
open it. Promises that memory does not grow with the number of rows.
"""

from collections.abc import Iterator
from itertools import groupby

from usage_ledger.ledger.columns import COLUMNS
from usage_ledger.ledger.filters import FINAL, Filters
from usage_ledger.ledger.reading import Reader
from usage_ledger.ledger.record import ITERATION_COLUMNS, Entry, IterationRow, Record

PAGE = 200
"""Rows that are read, and written, at a time: a few milliseconds of other writers' time."""


def final_entries(reader: Reader, filters: Filters, condition: str = FINAL) -> Iterator[list[Entry]]:
    """Return the rows with final usage that match, oldest first, `PAGE` at a time."""
    for page in reader.pages(filters, condition, COLUMNS, PAGE):
        records = [Record(**dict(zip(COLUMNS, row, strict=True))) for row in page]
        found = reader.iterations([record.id for record in records], ITERATION_COLUMNS)
        iterations = {
            record_id: [IterationRow(*row) for row in rows] for record_id, rows in groupby(found, lambda row: row[0])
        }
        yield [Entry(record, iterations.get(record.id, [])) for record in records]
