"""Lines: rows as lines of a table in text, put together by SQLite where no cell holds anything special.

Room: ledger. Imports its neighbours in this room. Promises that a line is what Python's csv module makes of the row: a
row that has anything special is written by that.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import batched, groupby
from typing import Any, NamedTuple

from usage_ledger.ledger.columns import JSON_COLUMNS, NUMBER_COLUMNS
from usage_ledger.ledger.filters import Filters
from usage_ledger.ledger.marks import LedgerError
from usage_ledger.ledger.reading import Reader, as_utf8

AT_ONCE = 128
"""Rows that are looked at together: to look at each by itself takes longer than to read it."""


class Form(NamedTuple):
    """What stands between cells; how text begins that is special as well; and how to write rows that have any such."""

    delimiter: str
    odd: Sequence[str]
    write: Callable[[Iterable[tuple[Any, ...]]], str]


def lines(reader: Reader, filters: Filters, columns: Sequence[str], form: Form) -> Iterator[tuple[str, int]]:
    """Return lines of the rows that match, oldest first, and how many they are, some at a time.

    To be read within a `snapshot` of the reader. What cannot be read at all fails here, and not at the first line.
    Raises `LedgerError` where the ledger is damaged.
    """
    if len(columns) == 1 or not reader.is_typed():  # an empty line is special, as is a number in a column of text
        return ((form.write(some), len(some)) for some in batched(reader.rows(filters, columns), AT_ONCE))
    runs = [(is_json, list(run)) for is_json, run in groupby(columns, JSON_COLUMNS.__contains__)]
    parts = [part for is_json, run in runs for part in (map(_json, run) if is_json else [_run(run, form.delimiter)])]
    widths = [width for is_json, run in runs for width in ([0] * len(run) if is_json else [len(run)])]
    join = form.delimiter.encode().join

    def told(rows: Sequence[tuple[bytes, ...]]) -> str:
        if _are_plain(rows, widths, form):
            return as_utf8(b"".join([join(row[1:]) + b"\r\n" for row in rows]))
        special = [row[0] for row in rows if not _are_plain([row], widths, form)]
        cells = reader.having_id(special, columns)
        if len(cells) < len(special):
            raise LedgerError("cannot find rows by their ids: the ledger is damaged; see verify, and restore a backup")
        return "".join([form.write([cells[row[0]]]) if row[0] in cells else told([row]) for row in rows])

    return ((told(rows), len(rows)) for rows in reader.select(filters, ("id", *parts), AT_ONCE))


def _run(names: Sequence[str], delimiter: str) -> str:
    """SQL for cells with nothing special in them, side by side; NULL where there is a NUL, at which printf() stops."""
    nuls = " OR ".join(f"instr({name}, char(0))" for name in names if name not in NUMBER_COLUMNS) or "false"
    return f"CASE WHEN {nuls} THEN NULL ELSE printf('{delimiter.join(['%s'] * len(names))}', {', '.join(names)}) END"


def _json(name: str) -> str:
    """SQL for a cell with an object, whose quotes are doubled; NULL where it is another thing."""
    quoted = f"""'"' || replace({name}, '"', '""') || '"'"""
    others = f"WHEN {name} = '{{}}' THEN {name} WHEN {name} IS NULL THEN ''"
    return f"""CASE WHEN {name} GLOB '{{*"*' THEN {quoted} {others} END"""


def _are_plain(rows: Sequence[tuple[bytes, ...]], widths: Sequence[int], form: Form) -> bool:
    """Whether no cell of these rows (an id, then parts of so many cells each; 0 for JSON) has anything special."""
    mark = form.delimiter.encode()
    _, *columns = zip(*rows, strict=True)
    for width, parts in zip(widths, columns, strict=True):
        if None in parts:
            return False
        if width:
            cells = mark + mark.join(parts)  # so that each cell begins with a mark
            if cells.count(mark) != width * len(rows) or any(each in cells for each in (b'"', b"\r", b"\n")):
                return False
            # To look for one byte takes a tenth of the time.
            if any(odd[:1] in cells and mark + odd in cells for odd in map(str.encode, form.odd) if odd != mark):
                return False
    return True
