"""`usage-ledger export`: rows for spreadsheets and programs, streamed.

Room: cli. Imports click and the ledger's reading side. Promises flat memory, UTF-8, RFC 4180 for CSV, JSON that is
valid whatever the ledger holds, a stable order of columns, text cells that no spreadsheet takes for a formula, and a
file that is there whole or not at all.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import batched, chain
from pathlib import Path
from typing import Any

import click

from usage_ledger.cli.options import Names, filters_from, own_pricer, with_filters, with_ledgers, with_prices
from usage_ledger.cli.output import for_programs, progress, whole_file
from usage_ledger.cli.spreadsheets import FORMULA_STARTS, safe
from usage_ledger.ledger.columns import COLUMNS, JSON_COLUMNS
from usage_ledger.ledger.filters import Filters
from usage_ledger.ledger.lines import AT_ONCE, Form, lines
from usage_ledger.ledger.paths import sidecars
from usage_ledger.ledger.reading import Reader, open_for_reading

_DELIMITERS = {"csv": ",", "tsv": "\t"}


@click.command()
@with_ledgers
@with_filters
@click.option(
    "--format",
    "form",
    type=click.Choice(("csv", "tsv", "json", "ndjson", "focus")),
    default="csv",
    show_default=True,
    help="The form.",
)
@click.option(
    "--columns",
    type=Names("column", COLUMNS),
    metavar="NAME[,NAME]...",
    help="Which columns, and in which order. Default: all of them, in the ledger's.",
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write to a file instead of stdout, compressed where its name ends in .gz.",
)
@with_prices
def export(
    dbs: tuple[Path, ...],
    form: str,
    columns: tuple[str, ...] | None,
    output: Path | None,
    price_path: str | None,
    **filters: Any,
) -> None:
    """Write rows, oldest first, to stdout or a file.

    In CSV and TSV, text that a spreadsheet would take for a formula gets an apostrophe before it. Money is text in
    every form, because it is exact. A file takes its name when it is whole, and replaces one that has it.

    The form focus has a charge for each kind of tokens of each request that has a cost (FinOps FOCUS 1.2, as CSV); own
    prices, which --prices names, are what contracts make of the list.

    \b
    Examples:
      usage-ledger export > usage.csv
      usage-ledger export --since 2026-11-01 --until 2026-12-01 --output november.csv.gz
      usage-ledger export --flagged --format json --columns id,request_id,review_reason
      usage-ledger export --since 2026-11-01 --until 2026-12-01 --format focus > november-focus.csv
    """
    chosen, names = filters_from(filters), columns or COLUMNS
    if form == "focus":
        if columns:
            raise click.UsageError("the columns of focus are those of its specification")
        from usage_ledger.cli import focus  # which prices, and so takes its time to load

        names, pricer = focus.COLUMNS, own_pricer(price_path, dbs[0])
    with open_for_reading(*dbs) as ledger, ledger.snapshot():
        if form == "focus":
            found = _table(focus.charges(ledger, chosen, pricer), names)
        elif form in _DELIMITERS:
            found = _lines(ledger, chosen, names, _DELIMITERS[form])
        else:
            found = (_as_json if form == "json" else _as_ndjson)(ledger.rows(chosen, names), names)
        if output is None:
            for_programs().writelines(text for text, _ in found)
        elif any(_is_part_of(output, db) for db in dbs):
            raise click.ClickException(f"{output} is the ledger itself; name another file")
        else:
            with whole_file(output) as out, progress("writing", lambda: ledger.count(chosen)) as advance:
                for text, count in found:
                    out.write(text)
                    advance(count)
        left_out = ledger.books(chosen).unpriced if form == "focus" else 0
    if left_out:
        click.echo(f"{left_out:,} row(s) with final usage have no cost, and are left out; see price", err=True)


def _is_part_of(output: Path, db: Path) -> bool:
    """Whether a file is the ledger or one of SQLite's beside it."""
    ledger = db.resolve()
    parts = [ledger, *sidecars(ledger)]
    return output.resolve() in parts or any(
        each.exists() and output.exists() and output.samefile(each) for each in parts
    )


# Each form gives its text in pieces, with how many rows each is of.


def _lines(ledger: Reader, chosen: Filters, names: Sequence[str], delimiter: str) -> Iterator[tuple[str, int]]:
    form = Form(delimiter, FORMULA_STARTS, partial(_cells, delimiter=delimiter))
    return chain([(_cells([names], delimiter), 0)], lines(ledger, chosen, names, form))


def _table(rows: Iterable[tuple[Any, ...]], names: Sequence[str]) -> Iterator[tuple[str, int]]:
    yield _cells([names]), 0
    yield from ((_cells(some), len(some)) for some in batched(rows, AT_ONCE))


def _cells(rows: Iterable[Sequence[Any]], delimiter: str = ",") -> str:
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter, lineterminator="\r\n").writerows([safe(each) for each in row] for row in rows)
    return out.getvalue()


def _as_json(rows: Iterable[tuple[Any, ...]], names: Sequence[str]) -> Iterator[tuple[str, int]]:
    before = "[\n"
    for some in batched(_objects(rows, names), AT_ONCE):
        yield before + ",\n".join(some), len(some)
        before = ",\n"
    yield ("[]\n" if before == "[\n" else "\n]\n"), 0


def _as_ndjson(rows: Iterable[tuple[Any, ...]], names: Sequence[str]) -> Iterator[tuple[str, int]]:
    return (("\n".join([*some, ""]), len(some)) for some in batched(_objects(rows, names), AT_ONCE))


def _objects(rows: Iterable[tuple[Any, ...]], names: Sequence[str]) -> Iterator[str]:
    """Turn rows into JSON objects; the JSON columns become part of them, or stay text where they are no JSON."""
    parsed = [name for name in JSON_COLUMNS if name in names]
    for row in rows:
        fields = dict(zip(names, row, strict=True))
        try:
            yield _object(fields, parsed)
        except (ValueError, TypeError, RecursionError):
            yield _object(fields, [name for name in parsed if _is_json(fields[name])])


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
