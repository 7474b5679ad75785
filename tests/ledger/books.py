"""A ledger under test, for the tests of what the store writes."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from usage_ledger.ledger.record import Entry, IterationRow, Record
from usage_ledger.ledger.store import Store

WORTH = ["pending", "missing", "partial", "none", "complete"]


def record(**fields: Any) -> Record:
    given = {
        "id": "flow-1",
        "occurred_at": "2026-11-01T08:00:00.000Z",
        "host": "api.anthropic.com",
        "path": "/v1/messages",
        "writer": "0.1.0 aaaaaaaaaaaa",
        **fields,
    }
    return Record(**given)


def iteration(position: int, tokens: int = 1, of: str = "flow-1") -> IterationRow:
    return IterationRow(of, position, "message", "claude-opus-4-6", 1, input_tokens=tokens)


class Books:
    """A ledger under test: what is written through a store, and read back by a connection of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = Store(path, "normal", "aaaaaaaaaaaa")

    def write(self, *records: Record, withdrawn: tuple[str, ...] = (), **entry: Any) -> None:
        self.store.write([Entry(record, **entry) for record in records], list(withdrawn))

    def query(self, sql: str, *values: Any) -> list[dict[str, Any]]:
        with closing(sqlite3.connect(self.path)) as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute(sql, values)]

    def change(self, sql: str, *values: Any) -> None:
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute(sql, values)

    def rows(self) -> list[dict[str, Any]]:
        return self.query("SELECT * FROM usage_records ORDER BY id")

    def row(self) -> dict[str, Any]:
        (only,) = self.rows()
        return only

    def iterations(self) -> list[tuple[str, int, int]]:
        found = self.query("SELECT * FROM usage_iterations ORDER BY record_id, position")
        return [(row["record_id"], row["position"], row["input_tokens"]) for row in found]


def settled(state: str, which: str, **fields: Any) -> Record:
    """A row of this state in which every field that may differ between two tellings does differ."""
    return record(
        usage_state=state,
        model=f"model-{which}",
        stop_reason=f"stop-{which}",
        usage_raw=json.dumps({"told": which}),
        metadata=json.dumps({"told": which}),
        completed_at=f"2026-11-01T08:00:0{len(which)}.000Z",
        writer=f"0.1.0 {which}",
        **fields,
    )
