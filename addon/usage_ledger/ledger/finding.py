"""Finding: the row that a replay of a flow would find, and whether the two say the same.

Room: ledger. Imports its neighbours in this room. Changes no row.
"""

from typing import Any, NamedTuple

from usage_ledger.ledger import statements
from usage_ledger.ledger.columns import COUNT_COLUMNS
from usage_ledger.ledger.reading import Reader, as_object
from usage_ledger.ledger.record import Entry

COMPARED = (
    *("http_status", "stream", "request_id", "model", "message_id", "stop_reason"),
    *("service_tier", "inference_geo", "speed"),
    *(*COUNT_COLUMNS, "total_tokens", "usage_state", "requires_manual_review", "review_reason", "usage_raw"),
)
"""The columns that a capture tells; all others are the proxy's, or those of the options it ran with."""

_MARKS = {"_manually_updated": "corrected", "_accepted": "accepted"}


class Row(NamedTuple):
    """A row, in the columns that are compared, and its metadata."""

    id: str
    columns: dict[str, Any]
    metadata: dict[str, Any]

    @property
    def mark(self) -> str | None:
        """What a person has done with it: `corrected`, `accepted`, or None."""
        return next((said for flag, said in _MARKS.items() if self.metadata.get(flag)), None)


def row_of(ledger: Reader, entry: Entry) -> Row | None:
    """Return the row that a replay of a flow would find; None where it would add one."""
    row_id = statements.found_id(ledger.connection, entry)
    found = ledger.having("id", [row_id], ("metadata", *COMPARED)) if row_id is not None else []
    if row_id is None or not found:
        return None
    metadata, *values = found[0]
    return Row(row_id, dict(zip(COMPARED, values, strict=True)), as_object(metadata) or {})


def differences(row: Row, entry: Entry) -> dict[str, tuple[Any, Any]]:
    """Return the columns in which a row and an entry differ: what the ledger has, and what the capture says."""
    told = {name: getattr(entry.record, name) for name in COMPARED}
    return {name: (row.columns[name], told[name]) for name in COMPARED if row.columns[name] != told[name]}
