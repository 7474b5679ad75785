"""`usage-ledger pull`: rows of the fleet's books into a ledger, so that every command works on them.

Room: cli. Imports click, the ledger, and the fleet (which loads psycopg) where it runs.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from usage_ledger.cli.changes import with_reopen
from usage_ledger.cli.exchanging import TOLD, fleet_extra, warn
from usage_ledger.cli.options import Words, filters_from, own_pricer, with_filters, with_ledger, with_prices
from usage_ledger.cli.output import for_people

if TYPE_CHECKING:
    from usage_ledger.fleet.pulling import Impossible, Pulled


@click.command()
@click.argument("dsn", type=Words())
@with_ledger
@with_filters
@click.option(
    "--prefer",
    type=click.Choice(("report", "ours", "theirs")),
    default="report",
    show_default=True,
    help="Whose row stands where both sides have changed it.",
)
@with_reopen
@with_prices
def pull(dsn: str, db: Path, prefer: Any, reopen: bool, price_path: str | None, **filters: Any) -> int:
    """Pull rows of the fleet's books (a PostgreSQL database, named by DSN) into the ledger.

    The ledger is made if there is none; every command then works on the whole fleet's rows, and push brings the
    corrections made here back. What somebody has corrected there by SQL becomes a correction with a revision. Rows that
    are here already are left alone unless they have changed; of two changes of one row none is lost: where neither is
    worth more, it is a conflict that is told, until --prefer says whose stands.

    Exit code 0: all is here; 1: all but conflicts, rows of closed periods or archives, and rows that cannot be, which
    are told; 2: it could not be done.

    \b
    Examples:
      usage-ledger pull postgresql://books@db.example.com/usage --db fleet.db
      usage-ledger pull service=usage --db fleet.db --since 2026-11-01 --account acme
      usage-ledger summary --by account --db fleet.db
    """
    with fleet_extra():
        from usage_ledger.fleet.exchange import begin
        from usage_ledger.fleet.pulling import pull as pull_rows
        from usage_ledger.fleet.server import FleetError, GoneError, open_books, telling
    from usage_ledger.ledger.outbox import open_outbox

    pricer = own_pricer(price_path, db)
    tally = _Tally()
    try:
        with open_books(dsn) as (connection, books), telling(), open_outbox(db, make=True) as outbox:
            begin(connection, books, outbox, warn)
            chosen = filters_from(filters)
            for pulled in pull_rows(outbox, connection, chosen, pricer.give, prefer, reopen):
                tally.add(pulled)
    except (FleetError, GoneError) as error:
        so_far = f"; what was pulled so far is in {db}" if tally.looked_at else ""
        raise click.ClickException(f"{error}{so_far}") from error
    tally.warn_of_left()
    out = for_people()
    out.write(f"{tally.looked_at:,} row(s) match: {tally.added:,} new, {tally.changed:,} changed here\n")
    return 1 if tally.has_left else 0


@dataclass
class _Tally:
    """What was pulled: rows looked at, new and changed ones, and those that were left as they were (by their ids)."""

    looked_at: int = 0
    added: int = 0
    changed: int = 0
    archived: int = 0
    conflicts: list[str] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    impossible: "list[Impossible]" = field(default_factory=list)

    def add(self, pulled: "Pulled") -> None:
        merged = pulled.merged
        self.looked_at += pulled.looked_at
        self.added += merged.added
        self.changed += merged.changed
        self.archived += len(merged.archived)
        self.conflicts += merged.conflicts
        self.closed += merged.closed
        self.impossible += pulled.impossible

    @property
    def has_left(self) -> bool:
        return bool(self.conflicts or self.closed or self.archived or self.impossible)

    def warn_of_left(self) -> None:
        """Say which rows were left, the first ones by name, and what to do about them."""
        for row_id in self.conflicts[:TOLD]:
            warn(f"row {row_id} was changed here and in the books")
        if self.conflicts:
            warn(f"{len(self.conflicts):,} conflict(s); --prefer ours or theirs settles them")
        for row_id in self.closed[:TOLD]:
            warn(f"row {row_id} has changed in the books, and is of a period that is closed here")
        if self.closed:
            warn(f"{len(self.closed):,} row(s) of closed periods stay as they were; --reopen changes them all the same")
        if self.archived:
            warn(
                f"{self.archived:,} archived row(s) have changed in the books; correct them in their archive too (--db)"
            )
        for row_id, why in self.impossible[:TOLD]:
            warn(f"row {row_id} cannot be: {why}")
        if self.impossible:
            warn(f"{len(self.impossible):,} row(s) cannot be, and were left in the books; correct them there")
