"""`usage-ledger verify`: whether the books are what upstream told and what the trail says.

Room: cli. Imports click, the audit and the ledger's reading side. Promises that nothing is changed, and that the first
broken link of the trail is named.
"""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from usage_ledger.cli.options import filters_from, own_pricer, with_filters, with_ledgers, with_prices
from usage_ledger.cli.output import FOUND, for_people, progress, say
from usage_ledger.ledger.filters import Filters
from usage_ledger.ledger.reading import Reader, open_for_reading

if TYPE_CHECKING:
    from usage_ledger.cli.audit import CostAudit
    from usage_ledger.ledger.record import Entry

SHOWN = 100
"""So many findings are shown; all are counted."""


@click.command()
@with_ledgers
@with_filters
@with_prices
def verify(dbs: tuple[Path, ...], price_path: str | None, **filters: Any) -> int:
    """Check that the books are what upstream told and what the trail says.

    It checks the file itself, the chain of the trail, closed periods and archives, and each row: an unrevised row
    follows from the usage that upstream told, a revised one is what its revisions left. Costs are checked where the
    price data that they name are at hand. A row that was changed by plain SQL is named; give it its revision with
    `review adopt`. Filters choose among the rows. Nobody can prove from the file alone that no unrevised row of an open
    period, and no end of the trail, was cut off, nor that what upstream told (usage_raw) was not rewritten together
    with all that follows from it. Several ledgers are checked one after the other, and whether an archive among them is
    what the ledger that it came from says of it.

    Exit code 0: all is well; 1: something is not; 2: it could not be checked.

    \b
    Examples:
      usage-ledger verify
      usage-ledger verify --db backup.db
    """
    chosen = filters_from(filters)
    return max([_verify(db, chosen, price_path, [each for each in dbs if each != db]) for db in dbs])


def _verify(db: Path, chosen: Filters, price_path: str | None, others: list[Path]) -> int:
    """Check one ledger, and whether the `others` that are its archives agree; return the exit code."""
    from usage_ledger.cli.audit import CostAudit
    from usage_ledger.ledger import trail

    out = for_people()
    count = 0
    costs = CostAudit(own_pricer(price_path, db))
    if others:
        say(out, f"{db}")
    with open_for_reading(db) as ledger:
        for finding in _findings(ledger, chosen, costs, others):
            count += 1
            click.get_current_context().meta[FOUND] = 1
            if count <= SHOWN:
                say(out, finding)
        rows, entries = ledger.count(chosen), trail.length(ledger)
    if count > SHOWN:
        out.write(f"and {count - SHOWN:,} more\n")
    if costs.unchecked:
        out.write(f"{costs.unchecked:,} cost(s) are by price data that are not at hand, and were not checked\n")
    out.write(
        f"{rows:,} row(s) and {entries:,} entries of the trail: {f'{count:,} finding(s)' if count else 'all is well'}\n"
    )
    return 1 if count else 0


def _findings(ledger: Reader, chosen: Filters, costs: "CostAudit", others: list[Path]) -> Iterator[str]:
    from usage_ledger.ledger import closing, seals, trail

    for problem in ledger.integrity():
        yield f"the file is damaged: {problem}"
    yield from trail.broken(ledger)
    with ledger.snapshot():
        yield from closing.broken(ledger)
        yield from seals.broken(ledger)
    for path in others:
        with open_for_reading(path) as other:
            yield from seals.differ(ledger, other, path)
    yield from _rows(ledger, chosen, costs)


def _rows(ledger: Reader, chosen: Filters, costs: "CostAudit") -> Iterator[str]:
    from usage_ledger.ledger import trail
    from usage_ledger.ledger.entries import entries

    with progress("verifying", lambda: ledger.count(chosen)) as advance:
        pages = entries(ledger, chosen)
        while True:
            with ledger.snapshot():  # rows and their trail as they are at one moment
                page = next(pages, None)
                if page is None:
                    break
                afters = trail.afters(ledger, [each.record.id for each in page])
            revised = {
                record_id: [after for _, after in group] for record_id, group in groupby(afters, lambda row: row[0])
            }
            for entry in page:
                for finding in _of_row(entry, revised.get(entry.record.id, []), costs):
                    yield f"row {entry.record.id}: {finding}"
            advance(len(page))
    for record_id in trail.revised_but_gone(ledger):
        yield f"row {record_id}: it is in the trail, and not in the ledger"


def _of_row(entry: "Entry", afters: list[str], costs: "CostAudit") -> list[str]:
    """Return what is wrong with a row, whose revisions have these `after`."""
    from usage_ledger.cli import audit

    try:
        left = audit.folded(afters)
    except (ValueError, TypeError):
        return ["its entries in the trail cannot be read"]
    cost = costs.difference(entry)
    return [*audit.differences(entry, left), *([cost] if cost else [])]
