"""Reconciliations: what comparing the rows with the bill came to, kept for whoever asks later.

Room: ledger. Imports the standard library and its neighbours in this room. Nothing is compared here.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from usage_ledger.ledger.moments import now
from usage_ledger.ledger.reading import Reader
from usage_ledger.ledger.revisions import who

if TYPE_CHECKING:
    from usage_ledger.ledger.editing import Editor

KEPT = 100
"""So many results of comparing are kept."""


def note_reconciliation(editor: "Editor", since: str, until: str, by: Sequence[str], left: int, result: str) -> None:
    """Keep the result of a comparison (JSON), for whoever closes the books or looks at them later."""
    with editor.transaction():
        editor.connection.execute(
            "INSERT INTO bill_reconciliations (run_at, run_by, since, until, dimensions, left, result) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            (now(), who(), since, until, ",".join(by), left, result),
        )
        editor.connection.execute(
            "DELETE FROM bill_reconciliations WHERE number <= (SELECT max(number) FROM bill_reconciliations) - ?",
            (KEPT,),
        )


def reconciliation_of(reader: Reader, since: str, until: str) -> dict[str, Any] | None:
    """Return what the last comparison said that was about all of a span: when, by what, and how much it left."""
    if not reader.has_table("bill_reconciliations"):
        return None
    found = reader.connection.execute(
        "SELECT run_at, since, until, dimensions, left FROM bill_reconciliations "
        "WHERE until >= ? AND (since <= ? OR ? = '') ORDER BY number DESC LIMIT 1",
        (until, since, since),
    ).fetchone()
    return None if found is None else dict(zip(("run_at", "since", "until", "by", "left"), found, strict=True))


def last_reconciliation(reader: Reader) -> dict[str, Any] | None:
    """Return the last comparison that is kept: when, who, what it was by, and its result (JSON)."""
    if not reader.has_table("bill_reconciliations"):
        return None
    found = reader.connection.execute(
        "SELECT run_at, run_by, dimensions, result FROM bill_reconciliations ORDER BY number DESC LIMIT 1"
    ).fetchone()
    if found is None:
        return None
    return {"run_at": found[0], "run_by": found[1], "by": found[2].split(","), "result": found[3]}
