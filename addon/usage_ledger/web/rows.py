"""Rows: what pages tell of single requests – the review queue, and what a row's own page has beside its columns.

Room: web. Imports the ledger's reading side.
"""

import shlex
from pathlib import Path

from usage_ledger.ledger.columns import ITERATION_COLUMNS
from usage_ledger.ledger.filters import FLAGGED
from usage_ledger.ledger.reading import Reader
from usage_ledger.ledger.revisions import COLUMNS as REVISION_COLUMNS
from usage_ledger.ledger.trail import history

QUEUED = ("id", "occurred_at", "account_id", "model", "usage_state", "review_reason", "request_id", "total_tokens")


def reasons(reader: Reader) -> list[tuple[str, int]]:
    """Return the reasons of the review queue, each with how many rows have it."""
    return reader.connection.execute(
        f"SELECT coalesce(review_reason, '?'), count(*) FROM {reader.table()} "
        f"WHERE {FLAGGED} GROUP BY 1 ORDER BY 2 DESC, 1"
    ).fetchall()


def queue(reader: Reader, reason: str, at: str, after: str, count: int) -> list[dict[str, object]]:
    """Return so many rows of the review queue, newest first: those of a reason ("": of any) behind a moment and an id
    ("": from the first one on).
    """
    found = reader.connection.execute(
        f"SELECT {', '.join(QUEUED)} FROM {reader.table()} WHERE {FLAGGED} "
        "AND (?1 = '' OR coalesce(review_reason, '?') = ?1) AND (?2 = '' OR (occurred_at, id) < (?2, ?3)) "
        "ORDER BY occurred_at DESC, id DESC LIMIT ?4",
        (reason, at, after, count),
    )
    return [dict(zip(QUEUED, row, strict=True)) for row in found]


def backfill_line(row_id: str, path: Path) -> str:
    """Return the command that fills a row in, to copy into a shell."""
    return (
        f"usage-ledger backfill --id {shlex.quote(row_id)} --input-tokens N --output-tokens N "
        f'--note "..." --db {shlex.quote(str(path))}'
    )


def beside(reader: Reader, row_id: str) -> dict[str, object]:
    """Return a row's iterations and its trail, each as a table."""
    iterations = reader.iterations([row_id], ITERATION_COLUMNS)
    names = [name for name in REVISION_COLUMNS if name not in ("record_id", "hash")]
    return {
        "iterations": [ITERATION_COLUMNS[1:], *(row[1:] for row in iterations)],
        "trail": [names, *history(reader, row_id, names)],
    }
