"""`usage-ledger summary`: what was used and what it cost, by day, model, key and the like.

Room: cli. Imports click and the ledger's reading side. Promises exact sums, and that every total says what it leaves
out.
"""

import csv
import json
from collections.abc import Iterable
from datetime import tzinfo
from decimal import Decimal
from pathlib import Path
from typing import Any, TextIO

import click

from usage_ledger.cli.options import Names, filters_from, named, with_filters, with_ledgers
from usage_ledger.cli.output import for_people, for_programs, on_one_line
from usage_ledger.cli.spreadsheets import safe
from usage_ledger.cli.table import Column, terminal_width, write_table
from usage_ledger.ledger.money import as_text
from usage_ledger.ledger.reading import open_for_reading
from usage_ledger.ledger.summary import COUNTS, GROUPS, Sums, summarize

LONGEST_LABEL = 40
"""Cells of a group's name in a plot."""

SHORTEST_BAR = 10
"""Cells that a name leaves the longest bar, where the terminal has them."""


class _Zone(click.ParamType[tzinfo]):
    """A time zone by its name."""

    name = "zone"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tzinfo:
        from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

        try:
            return ZoneInfo(str(value))
        except (ZoneInfoNotFoundError, ValueError, OSError):
            self.fail(f"{value!r} is no time zone; say UTC, Europe/Berlin or America/New_York", param, ctx)


@click.command()
@with_ledgers
@with_filters
@click.option(
    "--by",
    type=Names("group", GROUPS),
    default="day",
    show_default=True,
    metavar="GROUP[,GROUP]...",
    help=f"What to add up by: {', '.join(GROUPS)}.",
)
@click.option(
    "--tz",
    "zone",
    type=_Zone(),
    help="Whose days and hours, like Europe/Berlin. Default: UTC. An hour that comes twice has its offset.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(("table", "csv", "json")),
    default="table",
    show_default=True,
    help="The form.",
)
@click.option(
    "--plot",
    "plots",
    is_flag=True,
    help="Draw a bar for each group instead: what it cost, else its tokens.",
)
def summary(
    dbs: tuple[Path, ...], by: tuple[str, ...], zone: tzinfo | None, form: str, plots: bool, **filters: Any
) -> None:
    """Add up requests, tokens and cost.

    By model, tokens and cost stand under the model they were spent on: an advisor's under the advisor's, so a request
    may be among those of several models. Costs are what is billed; list prices of subscriptions stand apart. The client
    is the program that the user agent names.

    \b
    Examples:
      usage-ledger summary
      usage-ledger summary --by model --since 2026-11-01 --until 2026-12-01
      usage-ledger summary --by day,key --tz Europe/Berlin --format csv > november.csv
      usage-ledger summary --by account --since 30d --plot
    """
    if plots and form != "table":
        raise click.UsageError("--plot draws for a person; leave --format out")
    chosen = filters_from(filters)
    with open_for_reading(*dbs) as ledger:
        found = summarize(ledger, chosen, by, zone)
        if form == "csv":
            _write_csv(found, by, for_programs())
        elif form == "json":
            _write_json(found, by, for_programs())
        else:
            groups = list(found)
            (total,) = summarize(ledger, chosen, ())
            out = for_people()
            if plots:
                _write_plot(groups, total, out)
            else:
                _write_table(groups, total, by, out)
            if not total.requests:
                click.echo(f"no rows match in {on_one_line(named(dbs))}", err=True)
            if total.books.unsettled:
                click.echo(
                    f"{total.books.unsettled:,} request(s) without final usage are in no cost; "
                    "see usage-ledger rows --flagged",
                    err=True,
                )


_FIELDS = (
    *("requests", *COUNTS, "total_tokens"),
    *("billed_cost", "subscription_list_price", "flagged", "flagged_share", "unpriced", "unsettled"),
)


def _fields(sums: Sums, by: tuple[str, ...]) -> dict[str, Any]:
    """What programs get of a group, in a stable order."""
    fields = sums.fields() | {"flagged_share": round(sums.flagged / sums.requests, 6)}
    return dict(zip(by, sums.keys, strict=True)) | {name: fields[name] for name in _FIELDS}


def _write_csv(found: Iterable[Sums], by: tuple[str, ...], out: TextIO) -> None:
    lines = csv.writer(out, lineterminator="\r\n")
    lines.writerow((*by, *_FIELDS))
    lines.writerows([safe(value) for value in _fields(sums, by).values()] for sums in found)


def _write_json(found: Iterable[Sums], by: tuple[str, ...], out: TextIO) -> None:
    before = "[\n"
    for sums in found:
        out.write(before + json.dumps(_fields(sums, by), ensure_ascii=False))
        before = ",\n"
    out.write("[]\n" if before == "[\n" else "\n]\n")


def _write_plot(found: list[Sums], total: Sums, out: TextIO) -> None:
    """Draw a bar for each group; the longest is as wide as the terminal has room. What has no bar is said."""
    from usage_ledger.cli.cells import fitted, width_of

    is_priced = bool(total.books.billed)
    amounts = [sums.books.billed if is_priced else Decimal(sums.total_tokens) for sums in found]
    if any(amounts):
        labels = [on_one_line(" ".join(_shown(key) for key in sums.keys), out.encoding) for sums in found]
        values = [f"{amount:,.{_places(amounts)}f} USD" if is_priced else f"{amount:,.0f} tokens" for amount in amounts]
        room = terminal_width() - max(map(len, values)) - len(":  ")
        name = min(max(map(width_of, labels)), LONGEST_LABEL, max(room - SHORTEST_BAR, 1))
        for label, bar, value in zip(labels, _bars(amounts, max(room - name, 1)), values, strict=True):
            line = " ".join(filter(None, (f"{fitted(label, name)}:", bar, value)))
            out.write(line.encode(out.encoding, "replace").decode(out.encoding) + "\n")
    elif total.requests:
        click.echo("there is nothing to draw: no costs, and no tokens", err=True)
    if is_priced and total.books.unpriced:
        click.echo(
            f"{total.books.unpriced:,} request(s) without a price are in no bar; see usage-ledger price", err=True
        )
    if is_priced and total.books.subscription:
        listed = as_text(total.books.subscription)
        click.echo(f"subscriptions are in no bar; their list price is {listed} USD", err=True)


def _places(amounts: list[Decimal]) -> int:
    """Return how many digits behind the point tell the smallest of these amounts (USD) from nothing."""
    smallest = min(amount for amount in amounts if amount)
    return max(2, min(1 - smallest.adjusted(), 8))


def _bars(amounts: list[Decimal], width: int) -> list[str]:
    """Draw amounts as bars, the largest so wide."""
    import io
    from contextlib import redirect_stdout

    from termgraph import Args, BarChart, Data

    lengths = [[float(amount / max(amounts)) * width] for amount in amounts]
    arguments = Args(width=width, no_labels=True, no_values=True)
    with redirect_stdout(io.StringIO()) as drawn:
        BarChart(Data(lengths, ["" for _ in lengths]), arguments).draw()
    return [line.replace("\x1b[0m", "").strip() for line in drawn.getvalue().splitlines()]


def _shown(key: str | None) -> str:
    return "(none)" if key is None else key


def _write_table(found: list[Sums], total: Sums, by: tuple[str, ...], out: TextIO) -> None:
    columns = [
        *(Column(name, to_the_right=False) for name in by),
        Column("requests", rank=1),
        Column("in", rank=4),
        Column("out", rank=4),
        Column("cache w", rank=6),
        Column("cache r", rank=6),
        Column("cost USD", rank=2),
        *([Column("list USD", rank=3)] if total.books.subscription else []),
        Column("flagged", rank=3),
        Column("share", rank=5),
        Column("unpriced", rank=3),
    ]

    def cells(sums: Sums, keys: list[str]) -> list[str]:
        return [
            *keys,
            f"{sums.requests:,}",
            *(f"{sums.counts[name]:,}" for name in ("input_tokens", "output_tokens")),
            *(f"{sums.counts[name]:,}" for name in ("cache_creation_input_tokens", "cache_read_input_tokens")),
            as_text(sums.books.billed),
            *([as_text(sums.books.subscription)] if total.books.subscription else []),
            f"{sums.flagged:,}",
            f"{100 * sums.flagged / sums.requests:.1f} %" if sums.requests else "",
            f"{sums.books.unpriced:,}",
        ]

    lines = [cells(sums, [_shown(key) for key in sums.keys]) for sums in found]
    lines.append(cells(total, ["total", *("" for _ in by[1:])]))
    dropped = write_table(
        columns, lines, out, is_marked=lambda number: number < len(found) and found[number].flagged > 0
    )
    if dropped:
        click.echo(f"no room for: {', '.join(dropped)}; --format csv has all", err=True)
