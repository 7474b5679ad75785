"""Changes: what commands share that change rows, or with `--dry-run` only say so.

Room: cli. Imports the ledger. Promises that a dry run opens the ledger for reading alone.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from usage_ledger.ledger.reading import Reader, open_for_reading

if TYPE_CHECKING:
    from usage_ledger.ledger.editing import Change


def open_to_change(db: Path, dry_run: bool) -> AbstractContextManager[Reader]:
    """Open a ledger to change rows in it; for a dry run, to read them."""
    if dry_run:
        return open_for_reading(db)
    from usage_ledger.ledger.editing import open_for_editing

    return open_for_editing(db)


def make_changes(ledger: Reader, source: str, changes: "Sequence[Change]", all_or_none: bool = False) -> set[str]:
    """Make changes, in a dry run only in name; return the ids of the rows that are changed."""
    from usage_ledger.ledger.editing import Editor

    if not isinstance(ledger, Editor):
        return {change.record_id for change in changes}
    return ledger.change(source, changes, all_or_none)
