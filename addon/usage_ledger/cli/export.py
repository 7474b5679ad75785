"""`usage-ledger export`: rows for spreadsheets and programs, streamed.

Room: cli. Imports click and the ledger's reading side. Promises flat memory, RFC 4180 for CSV, a stable order of
columns, and text cells that no spreadsheet takes for a formula.
"""

import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click

from usage_ledger.cli.options import filters_from, with_filters, with_ledger
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
        if form == "csv":
            _write_csv(found)
        elif form == "json":
            _write_json(found)
        else:
            for line in _objects(found):
                click.echo(line)


def _write_csv(rows: Iterable[tuple[Any, ...]]) -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", newline="")  # what is read back elsewhere has one alphabet
    out = csv.writer(sys.stdout, lineterminator="\r\n")
    out.writerow(COLUMNS)
    out.writerows([_safe(value) for value in row] for row in rows)


def _safe(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA_STARTS) else value


def _write_json(rows: Iterable[tuple[Any, ...]]) -> None:
    before = "[\n"
    for line in _objects(rows):
        click.echo(before + line, nl=False)
        before = ",\n"
    click.echo("[]" if before == "[\n" else "\n]")


def _objects(rows: Iterable[tuple[Any, ...]]) -> Iterator[str]:
    """Turn rows into JSON objects; the JSON columns become part of them."""
    for row in rows:
        fields = dict(zip(COLUMNS, row, strict=True))
        for name in JSON_COLUMNS:
            if fields[name] is not None:
                fields[name] = json.loads(fields[name])
        yield json.dumps(fields, ensure_ascii=False)
