"""`usage-ledger archive`: old rows moved into a ledger of their own.

Room: cli. Imports click and the ledger.
"""

from pathlib import Path

import click

from usage_ledger.cli.options import Moment, with_ledger, with_note
from usage_ledger.cli.output import for_people, progress, say
from usage_ledger.ledger.filters import Filters
from usage_ledger.ledger.moments import short


@click.command()
@with_ledger
@click.option("--before", type=Moment(past=True), required=True, metavar="WHEN", help="Rows before this time (UTC).")
@with_note
@click.argument("target", metavar="PATH", type=click.Path(path_type=Path))
def archive(db: Path, before: str, note: str, target: Path) -> None:
    """Move old rows, with their iterations and their trail, into a new ledger at PATH.

    The copy is made and checked before anything is removed. Requests in flight and rows that want a person stay. The
    ledger keeps its own trail, with an entry of what was archived, and the ids, so that replaying an old capture brings
    nothing back. Should it be interrupted, run the same command again: it goes on where it was.

    Reading commands take --db several times, so that archives are read with the ledger.

    \b
    Examples:
      usage-ledger archive --before 2026-01-01 /archive/usage-2025.db
      usage-ledger summary --by model --db ~/.local/share/usage-ledger/usage.db --db /archive/usage-2025.db
    """
    from usage_ledger.ledger.archive import ARCHIVABLE
    from usage_ledger.ledger.archive import archive as move
    from usage_ledger.ledger.editing import open_for_editing

    with (
        open_for_editing(db) as ledger,
        progress("archiving", lambda: 2 * ledger.count(Filters(until=before), ARCHIVABLE)) as bar,
    ):
        moved = move(ledger, before, target.absolute(), note, bar)
    out = for_people()
    if moved is None:
        click.echo(f"no rows before {short(before)} to archive", err=True)
        return
    totals = moved.totals
    say(
        out,
        f"archived: {totals['requests']:,} row(s) before {short(before)}, {totals['total_tokens']:,} tokens, "
        f"{totals['billed_cost']} USD billed, into {target}",
    )
    for count, why in (
        (moved.pending, "in flight"),
        (moved.flagged, "that want a person (see review)"),
        (moved.changed, "that changed while they were archived"),
    ):
        if count:
            out.write(f"stay: {count:,} row(s) {why}\n")
