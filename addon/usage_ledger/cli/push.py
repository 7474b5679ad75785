"""`usage-ledger push`: what is new in a ledger, to the fleet's books in PostgreSQL.

Room: cli. Imports click, the ledger, and the fleet (which loads psycopg) where it runs. Promises that whatever goes
wrong, nothing is lost: what was not acknowledged is pushed again.
"""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import click

from usage_ledger.cli.options import Span, Words, with_ledger
from usage_ledger.cli.output import for_people, on_one_line

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
def push(dsn: str, db: Path, follow: bool, interval: timedelta, source: str | None) -> int:
    """Push what is new in the ledger to the fleet's books: a PostgreSQL database, named by DSN.

    Rows that are settled, their iterations, the trail and adjustments are sent, and sent again until the server has
    acknowledged them; they are stored once. A better row is never replaced by a worse one, and none that somebody has
    corrected there. The first push makes the tables. The password is that of the DSN, of PGPASSWORD or of ~/.pgpass;
    give "" as DSN where the environment (PGHOST, PGSERVICE, ...) says it all.

    Exit code 0: all is in the books; 1: all but some rows, which are named; 2: it could not be done.

    \b
    Examples:
      usage-ledger push postgresql://books@db.example.com/usage
      usage-ledger push service=usage --follow --interval 10s --source web-1
    """
    with fleet_extra():
        from usage_ledger.fleet.server import FleetError, FullError, GoneError
    name = source or socket.gethostname()
    if not name.isprintable() or len(name) > NAME_LIMIT:
        raise click.UsageError(f"--source {name!r} is no name")
    run = _Run(dsn, db, name)
    away_since: float | None = None
    pause = 1.0
    while True:
        try:
            run.once()
        except FleetError as error:
            raise click.ClickException(f"{error}; what was not pushed waits in {db}") from error
        except GoneError as error:
            patience = 0.0 if isinstance(error, FullError) else PATIENCE_SECONDS
            if away_since is None:
                away_since = time.monotonic()
                if follow or patience:
                    click.echo(f"usage-ledger: the server takes nothing ({error}); trying again", err=True)
            if not follow and time.monotonic() - away_since >= patience:
                raise click.ClickException(f"{error}; what was not pushed waits in {db}") from error
            time.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
            continue
        if away_since is not None:
            click.echo("usage-ledger: the server takes rows again", err=True)
            away_since, pause = None, 1.0
        run.tell()
        if not follow:
            return 1 if run.left else 0
        time.sleep(interval.total_seconds())


@contextmanager
def fleet_extra() -> Iterator[None]:
    """Say what to install where the extra is not there."""
    try:
        yield
    except ImportError as error:
        raise click.ClickException(
            f"this needs the extra `fleet` ({error}): pip install 'claude-usage-ledger[fleet]'"
        ) from error


class _Run:
    """The pushes of one command."""

    def __init__(self, dsn: str, db: Path, source: str) -> None:
        self._dsn = dsn
        self._db = db
        self._source = source
        self._stored = 0
        self._told = False
        self.left: set[str] = set()

    def once(self) -> None:
        """Push what waits."""
        from usage_ledger.fleet.pushing import Pusher
        from usage_ledger.fleet.server import open_books, telling
        from usage_ledger.ledger.outbox import open_outbox

        conflicts, refused, archived = set[str](), set[str](), 0
        with open_outbox(self._db) as outbox, open_books(self._dsn) as (connection, books), telling():
            for pushed in Pusher(outbox, connection, books, self._source).push():
                self._stored += pushed.stored
                conflicts.update(pushed.conflicts)
                refused.update(pushed.refused)
                archived += pushed.archived
        for row_id in sorted(refused - self.left):
            self._warn(f"row {row_id} holds what PostgreSQL does not take, and is left out")
        for row_id in sorted(conflicts - self.left):
            self._warn(f"row {row_id} was changed here and in the books; see pull --prefer")
        if archived:
            self._warn(f"{archived:,} row(s) were archived before they were pushed; push the archive as well")
        self.left = conflicts | refused

    @staticmethod
    def _warn(what: str) -> None:
        click.echo(f"usage-ledger: {on_one_line(what)}", err=True)

    def tell(self) -> None:
        """Say what was stored since the last time."""
        if self._stored or not self._told:
            out = for_people()
            out.write(f"{self._stored:,} row(s) pushed as {on_one_line(self._source, out.encoding)}\n")
            out.flush()
        self._told, self._stored = True, 0
