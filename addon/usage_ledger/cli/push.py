"""`usage-ledger push`: what is new in a ledger, to the fleet's books in PostgreSQL.

Room: cli. Imports click, the ledger, and the fleet (which loads psycopg) where it runs. Promises that whatever goes
wrong, nothing is lost: what was not acknowledged is pushed again.
"""

import socket
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path

import click

from usage_ledger.cli.exchanging import TOLD, fleet_extra, warn
from usage_ledger.cli.options import Span, Words, with_ledger
from usage_ledger.cli.output import for_people, on_one_line
from usage_ledger.ledger.marks import LedgerError
from usage_ledger.ledger.presence import Presence, new_writer_id

PATIENCE_SECONDS = 30.0
"""So long a single push waits for a server that is away."""

LONGEST_PAUSE_SECONDS = 60.0

NAME_LIMIT = 128


@click.command()
@click.argument("dsn", type=Words())
@with_ledger
@click.option("--follow", is_flag=True, help="Go on pushing what comes.")
@click.option("--interval", type=Span(), default="5s", show_default=True, help="How often, with --follow.")
@click.option("--source", type=Words(), metavar="NAME", help="This proxy's name there. Default: the host's name.")
@click.option("--as-new", is_flag=True, help="As a ledger of its own: it is a copy, or was restored from a backup.")
def push(dsn: str, db: Path, follow: bool, interval: timedelta, source: str | None, as_new: bool) -> int:
    """Push what is new in the ledger to the fleet's books: a PostgreSQL database, named by DSN.

    Rows that are settled, their iterations, the trail and adjustments are sent, and sent again until the server has
    acknowledged them; they are stored once. A better row is never replaced by a worse one, and none that somebody has
    changed there. The first push makes the tables. The password is that of the DSN, of PGPASSWORD or of ~/.pgpass;
    give "" as DSN where the environment (PGHOST, PGSERVICE, ...) says it all.

    Exit code 0: all is in the books; 1: all but some rows, which are named; 2: it could not be done.

    \b
    Examples:
      usage-ledger push postgresql://books@db.example.com/usage
      usage-ledger push service=usage --follow --interval 10s --source web-1
    """
    with fleet_extra():
        from usage_ledger.fleet.server import FleetError, FullError, GoneError
    name = socket.gethostname() if source is None else source
    if not name.strip() or not name.isprintable() or len(name) > NAME_LIMIT:
        raise click.UsageError(f"--source {name!r} is no name")
    if not interval:
        raise click.UsageError("--interval is no time at all; give it a second or more")
    run = _Run(dsn, db, name, as_new, replaces=as_new and source is not None, follow=follow)
    away_since: float | None = None
    pause = 1.0
    while True:
        try:
            run.once()
        except FleetError as error:
            raise click.ClickException(f"{error}; what was not pushed waits in {db}") from error
        except (GoneError, LedgerError) as error:
            if isinstance(error, LedgerError) and not (follow and run.has_pushed):
                raise
            patience = 0.0 if isinstance(error, FullError) else PATIENCE_SECONDS
            if away_since is None:
                away_since = time.monotonic()
                if follow or patience:
                    warn(f"nothing can be pushed now ({error}); trying again")
            if not follow and time.monotonic() - away_since >= patience:
                raise click.ClickException(f"{error}; what was not pushed waits in {db}") from error
            time.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
            continue
        if away_since is not None:
            warn("rows are pushed again")
            away_since, pause = None, 1.0
        run.tell()
        if not follow:
            return 1 if run.left else 0
        time.sleep(interval.total_seconds())


class _Run:
    """The pushes of one command."""

    def __init__(self, dsn: str, db: Path, source: str, as_new: bool, replaces: bool, follow: bool) -> None:
        self._dsn = dsn
        self._db = db
        self._source = source
        self._as_new = as_new
        self._replaces = replaces
        self._follow = follow
        self._presence: Presence | None = None
        self._id = new_writer_id()
        self._stored = 0
        self.has_pushed = False
        self._named: set[tuple[str, str]] = set()
        self.left: set[tuple[str, str]] = set()

    def once(self) -> None:
        """Push what waits, and say at once what is left, so that it is said also where the rest fails."""
        from usage_ledger.fleet.exchange import begin
        from usage_ledger.fleet.pushing import Pusher
        from usage_ledger.fleet.server import open_books, telling
        from usage_ledger.ledger.outbox import open_outbox

        self.left = set()
        archived, counts = 0, Counter[str]()
        with open_outbox(self._db) as outbox, open_books(self._dsn, make=True) as (connection, books), telling():
            begin(connection, books, outbox, warn, self._as_new, self._mark() if self._follow else None)
            for pushed in Pusher(outbox, connection, self._source, self._replaces).push():
                self._stored += pushed.stored
                archived += pushed.archived
                self.left.update(pushed.left)
                for each in pushed.left:
                    if each not in self._named:
                        counts[each.why] += 1
                        if counts[each.why] <= TOLD:
                            warn(f"row {each.row_id} {each.why}")
                self._named.update(pushed.left)
        self._as_new = False
        for why, count in counts.items():
            if count > TOLD:
                warn(f"and {count - TOLD:,} more: each {why}")
        if archived:
            warn(f"{archived:,} row(s) were archived before they were pushed; push the archive as well")
        self._named = set(self.left)  # what is settled, and comes up again, is news

    def _mark(self) -> str:
        """Say beside the ledger, as long as this process lives, that it follows; return under which id."""
        if self._presence is None:
            self._presence = Presence(self._db, self._id)
            click.get_current_context().call_on_close(self._presence.leave)
        return self._id

    def tell(self) -> None:
        """Say what was stored since the last time."""
        if self._stored or not self.has_pushed:
            out = for_people()
            out.write(f"{self._stored:,} row(s) pushed as {on_one_line(self._source, out.encoding)}\n")
            out.flush()
        self.has_pushed, self._stored = True, 0
