"""`usage-ledger rows`: the newest rows as a table that fits the terminal.

Room: cli. Imports click and the ledger's reading side.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click

from usage_ledger.cli.options import filters_from, with_filters, with_ledger
from usage_ledger.ledger.reading import open_for_reading

WIDTH_LIMIT = 200


class _Column(NamedTuple):
    """A column of the table. `need`: the terminal width (characters) from which it is shown."""

    heading: str
    name: str
    width: int
    show: Callable[[Any], str]
    need: int = 0


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _time(value: str) -> str:
    return value[:19].replace("T", " ")


_COLUMNS = (
    _Column("time (UTC)", "occurred_at", 19, _time),
    _Column("model", "model", 20, _text),
    _Column("in", "input_tokens", 8, _text),
    _Column("out", "output_tokens", 7, _text),
    _Column("cache w", "cache_creation_input_tokens", 8, _text, 104),
    _Column("cache r", "cache_read_input_tokens", 8, _text, 104),
    _Column("total", "total_tokens", 9, _text, 114),
    _Column("state", "usage_state", 8, _text),
    _Column("review", "review_reason", 19, _text, 96),
    _Column("http", "http_status", 4, _text, 125),
    _Column("account", "account_id", 20, _text, 150),
    _Column("id", "id", 26, _text, 178),
)
_RIGHT = {"input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens", "total_tokens"}


@click.command()
@with_ledger
@with_filters
@click.option("-n", "--limit", type=click.IntRange(min=0), default=20, show_default=True, help="How many; 0: all.")
def rows(db: Path, limit: int, **filters: Any) -> None:
    """Show the newest rows, oldest of them first.

    \b
    Examples:
      usage-ledger rows
      usage-ledger rows --since 24h --flagged
      usage-ledger rows --model 'claude-opus-*' -n 0
    """
    width = min(shutil.get_terminal_size((120, 24)).columns, WIDTH_LIMIT)
    columns = [column for column in _COLUMNS if column.need <= width]
    # A narrow terminal has no room for the reason, so a flagged row is marked instead.
    names = [*(column.name for column in columns), "requires_manual_review"]
    with open_for_reading(db) as ledger:
        click.echo(click.style(_line([column.heading for column in columns], columns), bold=True))
        count = 0
        for row in ledger.rows(filters_from(filters), names, last=limit or None):
            count += 1
            shown = [column.show(value) for column, value in zip(columns, row, strict=False)]
            line = _line(shown, columns)
            click.echo(click.style(line, fg="yellow") if row[-1] else line)
    if not count:
        click.echo(f"no rows match in {db}", err=True)


def _line(cells: list[str], columns: list[_Column]) -> str:
    parts = []
    for cell, column in zip(cells, columns, strict=True):
        shown = cell if len(cell) <= column.width else cell[: column.width - 1] + "…"
        parts.append(shown.rjust(column.width) if column.name in _RIGHT else shown.ljust(column.width))
    return " ".join(parts).rstrip()
