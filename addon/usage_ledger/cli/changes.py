"""Changes: what commands share that change rows, or with `--dry-run` only say so.

Room: cli. Imports click and the ledger. Promises that a dry run opens the ledger for reading alone, and that rows of a
closed period are changed only where that is asked for.
"""

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from usage_ledger.ledger.filters import Filters
from usage_ledger.ledger.moments import short
from usage_ledger.ledger.reading import Reader, open_for_reading

if TYPE_CHECKING:
    from usage_ledger.ledger.editing import Change


def open_to_change(db: Path, dry_run: bool) -> AbstractContextManager[Reader]:
    """Open a ledger to change rows in it; for a dry run, to read them."""
    if dry_run:
        return open_for_reading(db)
    from usage_ledger.ledger.editing import open_for_editing

    return open_for_editing(db)


def with_reopen[**P, R](command: Callable[P, R]) -> Callable[P, R]:
    """Add `--reopen`, without which no row of a closed period is changed."""
    return click.option("--reopen", is_flag=True, help="Change rows too whose period is closed (see close).")(command)


def make_changes(
    ledger: Reader, source: str, changes: "Sequence[Change]", all_or_none: bool = False, reopen: bool = False
) -> set[str]:
    """Make changes, in a dry run only in name; return the ids of the rows that are changed."""
    from usage_ledger.ledger import closing
    from usage_ledger.ledger.editing import Editor

    if isinstance(ledger, Editor):
        return ledger.change(source, changes, all_or_none, reopen)
    ids = [change.record_id for change in changes]
    if not reopen:
        closing.refuse_closed(ledger, ids)
    return set(ids)


def refuse_closed(ledger: Reader, filters: Filters, condition: str, reopen: bool) -> None:
    """End the command where rows that it would change, one page after the other, are of a closed period."""
    from usage_ledger.ledger import closing

    until = None if reopen else closing.closed_until(ledger)
    if until is None:
        return
    count = ledger.count(dataclasses.replace(filters, until=min(until, filters.until or until)), condition)
    if count:
        raise click.ClickException(
            f"{count:,} of the rows are of {closing.describe(until)}, so no row is changed; "
            f"--since {short(until)} leaves them out, --reopen changes them too"
        )
