"""`usage-ledger export`: rows for spreadsheets and programs, streamed.

Room: cli. Imports click and the ledger's reading side. Promises flat memory, UTF-8, RFC 4180 for CSV, JSON that is
valid whatever the ledger holds, a stable order of columns, and text cells that no spreadsheet takes for a formula.
"""

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

import click

from usage_ledger.cli.options import filters_from, with_filters, with_ledger
from usage_ledger.cli.output import for_programs
from usage_ledger.ledger.columns import COLUMNS, JSON_COLUMNS
from usage_ledger.ledger.reading import open_for_reading

_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


@click.command()
@with_ledger
@with_filters
@click.option(
    "--format", "form", type=click.Choice(("csv", "json", "ndjson")), default="csv", show_default=True, help="The form."
)
def export(db: Path, form: str, **filters: Any) -> None:
    """Write rows with all their columns to stdout, oldest first.

    In CSV, text that a spreadsheet would take for a formula gets an apostrophe before it. Money is text in every
    form, because it is exact.

    \b
    Examples:
      usage-ledger export > usage.csv
      usage-ledger export --format ndjson --since 2026-11-01 --until 2026-12-01
      usage-ledger export --flagged --format json
    """
    with open_for_reading(db) as ledger:
        found = ledger.rows(filters_from(filters), COLUMNS)
        out = for_programs()
        if form == "csv":
            _write_csv(found, out)
        elif form == "json":
            _write_json(found, out)
        else:
            out.writelines(f"{line}\n" for line in _objects(found))


def _write_csv(rows: Iterable[tuple[Any, ...]], out: TextIO) -> None:
    lines = csv.writer(out, lineterminator="\r\n")
    lines.writerow(COLUMNS)
    lines.writerows([safe(value) for value in row] for row in rows)


def safe(value: Any) -> Any:
    """Return what a CSV cell holds: text that a spreadsheet would take for a formula gets an apostrophe before it."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA_STARTS) else value


def _write_json(rows: Iterable[tuple[Any, ...]], out: TextIO) -> None:
    before = "[\n"
    for line in _objects(rows):
        out.write(before + line)
        before = ",\n"
    out.write("[]\n" if before == "[\n" else "\n]\n")


def _objects(rows: Iterable[tuple[Any, ...]]) -> Iterator[str]:
    """Turn rows into JSON objects; the JSON columns become part of them, or stay text where they are no JSON."""
    for row in rows:
        fields = dict(zip(COLUMNS, row, strict=True))
        try:
            yield _object(fields, JSON_COLUMNS)
        except (ValueError, TypeError, RecursionError):
            yield _object(fields, [name for name in JSON_COLUMNS if _is_json(fields[name])])


def _object(fields: dict[str, Any], parsed: Iterable[str]) -> str:
    """Write one object. Raises ValueError where a column is no JSON, or has a number (NaN) that JSON does not know."""
    values = {name: json.loads(fields[name]) for name in parsed if fields[name] is not None}
    return json.dumps(fields | values, ensure_ascii=False, allow_nan=False)


def _is_json(text: Any) -> bool:
    try:
        _object({"": text}, [""])
    except (ValueError, TypeError, RecursionError):
        return False
    return True
