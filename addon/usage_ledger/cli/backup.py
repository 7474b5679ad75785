"""`usage-ledger backup`: a whole copy of the ledger, while proxies write to it.

Room: cli. Imports click and the ledger.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from usage_ledger.cli.options import with_ledger
from usage_ledger.cli.output import for_people, say


@click.command()
@with_ledger
@click.argument("target", metavar="PATH", type=click.Path(path_type=Path))
def backup(db: Path, target: Path) -> None:
    """Copy the ledger to a new file at PATH, as it is at one moment.

    Proxies may go on writing. The copy is checked before it takes its name, and opens like any ledger.

    \b
    Examples:
      usage-ledger backup /backups/usage-2026-11-25.db
      usage-ledger verify --db /backups/usage-2026-11-25.db
    """
    from usage_ledger.ledger.backup import back_up

    with _pages_bar() as progress:
        rows, entries = back_up(db, target, progress)
    out = for_people()
    say(out, f"{target}: {rows:,} row(s) and {entries:,} entries of the trail")


@contextmanager
def _pages_bar() -> Iterator[Callable[[int, int], None]]:
    """Show on a terminal how much of the file is copied."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield lambda _left, _count: None
        return
    with click.progressbar(length=1, label="copying", file=sys.stderr) as bar:

        def show(left: int, count: int) -> None:
            bar.length = count
            bar.update(count - left - bar.pos)

        yield show
