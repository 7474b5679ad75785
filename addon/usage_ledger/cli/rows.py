"""`usage-ledger rows`: the newest rows as a table that fits the terminal.

Room: cli. Imports click and the ledger's reading side. Promises that each row is one line, whatever is in the ledger,
and that no line is wider than the terminal (from 40 columns on).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click

from usage_ledger.cli.options import filters_from, named, with_filters, with_ledgers
from usage_ledger.cli.output import for_people, has_colours, on_one_line
from usage_ledger.cli.table import shown_time, terminal_width
from usage_ledger.ledger.columns import TOTALLED
from usage_ledger.ledger.reading import open_for_reading

MOST_ROWS = 1_000_000_000


class _Column(NamedTuple):
    """A column of the table, `width` cells wide. `need`: the terminal width (cells) from which it is shown."""

    heading: str
    name: str
    width: int
    show: Callable[[Any], str]
    need: int = 0


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _as_list_price(cell: str, name: str) -> str:
    """Tell the list price of what a subscription pays for from what is billed."""
    return f"list {cell}" if name == "total_cost" and cell else cell


_COLUMNS = (
    _Column("time (UTC)", "occurred_at", 19, shown_time),
    _Column("model", "model", 20, _text),
    _Column("in", "input_tokens", 8, _text, 57),
    _Column("out", "output_tokens", 7, _text, 57),
    _Column("cache w", "cache_creation_input_tokens", 8, _text, 116),
    _Column("cache r", "cache_read_input_tokens", 8, _text, 116),
    _Column("total", "total_tokens", 9, _text, 126),
    _Column("cost USD", "total_cost", 14, _text, 80),
    _Column("state", "usage_state", 8, _text),
    _Column("review", "review_reason", 19, _text, 99),
    _Column("http", "http_status", 4, _text, 132),
    _Column("account", "account_id", 20, _text, 153),
    _Column("id", "id", 26, _text, 180),
)
_RIGHT = {*TOTALLED, "total_tokens", "total_cost"}


@click.command()
@with_ledgers
@with_filters
@click.option(
    "-n",
    "--limit",
    type=click.IntRange(0, MOST_ROWS),
    default=20,
    show_default=True,
    help="How many; 0: all.",
)
def rows(dbs: tuple[Path, ...], limit: int, **filters: Any) -> None:
    """Show the newest rows, oldest of them first.

    Costs of subscriptions are list prices, which are on no bill, and say so.

    \b
    Examples:
      usage-ledger rows
      usage-ledger rows --since 24h --flagged
      usage-ledger rows --model 'claude-opus-*' -n 0
    """
    columns = _columns_for(terminal_width())
    # A narrow terminal has no room for the reason, so a flagged row is marked instead.
    names = [*(column.name for column in columns), "credential_kind", "requires_manual_review"]
    with open_for_reading(*dbs) as ledger:
        found = ledger.rows(filters_from(filters), names, last=limit or None)
        out = for_people()
        colours = has_colours(out)
        heading = _line([column.heading for column in columns], columns, out.encoding)
        out.write((click.style(heading, bold=True) if colours else heading) + "\n")
        count = 0
        for row in found:
            count += 1
            shown = [column.show(value) for column, value in zip(columns, row, strict=False)]
            if row[-2] == "oauth":
                shown = [_as_list_price(cell, column.name) for cell, column in zip(shown, columns, strict=True)]
            line = _line(shown, columns, out.encoding)
            out.write((click.style(line, fg="yellow") if colours and row[-1] else line) + "\n")
    if not count:
        click.echo(f"no rows match in {on_one_line(named(dbs))}", err=True)


def _columns_for(terminal: int) -> list[_Column]:
    """Choose the columns that there is room for; where it is still too little, the model gives way."""
    columns = [column for column in _COLUMNS if column.need <= terminal]
    short = max(0, sum(column.width + 1 for column in columns) - 1 - terminal)
    return [
        column._replace(width=max(1, column.width - short)) if column.name == "model" else column for column in columns
    ]


def _line(cells: list[str], columns: list[_Column], encoding: str) -> str:
    from usage_ledger.cli.cells import fitted  # knows every character's width, which only a table has to

    return " ".join(
        fitted(on_one_line(cell, encoding), column.width, to_the_right=column.name in _RIGHT)
        for cell, column in zip(cells, columns, strict=True)
    ).rstrip()
