"""Pulling: rows of the fleet's books into a ledger, so that every command works on them.

Room: fleet. Imports psycopg and the ledger. Rows whose version the ledger knows are not fetched again.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
from psycopg import sql

from usage_ledger.fleet.schema import Connection
from usage_ledger.ledger.columns import COLUMNS, ITERATION_COLUMNS
from usage_ledger.ledger.editing import Editor
from usage_ledger.ledger.filters import Filters
from usage_ledger.ledger.merging import Merged, Preference, Theirs, merge
from usage_ledger.ledger.record import Entry, IterationRow, Record

LOOKED_AT = 5_000
"""Rows whose versions are compared at a time."""

MERGED = 500
"""Rows that are merged in one transaction of the ledger, which keeps proxies waiting meanwhile."""

_TIME = "to_char({0} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"')"
_SHOWN = {
    **dict.fromkeys(("occurred_at", "completed_at"), _TIME),
    **dict.fromkeys(("total_cost", "usage_raw", "metadata"), "{0}::text"),
}
_ROW = ", ".join(_SHOWN.get(name, "{0}").format(f"old.{name}") for name in COLUMNS)


def pull(
    editor: Editor,
    connection: Connection,
    filters: Filters,
    price: Callable[[Entry], None],
    preference: Preference,
    reopen: bool,
) -> Iterator[tuple[int, Merged]]:
    """Merge the rows that match into a ledger, oldest first; yield how many were looked at, and what came of them."""
    where, values = condition(filters)
    with connection.transaction(), connection.cursor("pulled") as cursor:
        cursor.itersize = LOOKED_AT
        cursor.execute(
            sql.SQL(
                "SELECT id, occurred_at, version FROM usage_records AS old WHERE {} ORDER BY occurred_at, id"
            ).format(sql.SQL(where)),
            values,
        )
        while found := cursor.fetchmany(LOOKED_AT):
            known = _known(editor, [row[0] for row in found])
            news = [row for row in found if known.get(row[0]) != row[2]]
            for place in range(0, len(news), MERGED):
                theirs = _fetched(connection, news[place : place + MERGED])
                yield 0, merge(editor, theirs, price, preference, reopen)
            yield len(found), Merged()


def _known(editor: Editor, ids: Sequence[str]) -> dict[str, int]:
    found = editor.connection.execute(
        "SELECT record_id, version FROM fleet_versions WHERE record_id IN (SELECT value FROM json_each(?))",
        (msgspec.json.encode(ids).decode(),),
    )
    return dict(found)


def _fetched(connection: Connection, rows: Sequence[tuple[Any, ...]]) -> list[Theirs]:
    """Fetch rows whole, by id and start (which tells their partition)."""
    ids, starts = [row[0] for row in rows], [row[1] for row in rows]
    found = connection.execute(
        f"SELECT version, coalesce(edited_by, CASE WHEN edited_at IS NOT NULL THEN '?' END), {_ROW} "
        "FROM usage_records AS old JOIN unnest(%s::text[], %s::timestamptz[]) AS wanted (id, occurred_at) "
        "USING (id, occurred_at) ORDER BY old.occurred_at, old.id",
        (ids, starts),
    ).fetchall()
    iterations: dict[str, list[IterationRow]] = {}
    told = connection.execute(
        f"SELECT {', '.join(ITERATION_COLUMNS[:-1])}, total_cost::text FROM usage_iterations "
        "WHERE record_id = ANY(%s) ORDER BY record_id, position",
        (ids,),
    )
    for row in told:
        iterations.setdefault(row[0], []).append(IterationRow(*row))
    theirs = []
    for version, edited_by, *values in found:
        fields = dict(zip(COLUMNS, values, strict=True))
        for name in ("usage_raw", "metadata"):
            if fields[name] is not None:
                fields[name] = msgspec.json.encode(msgspec.json.decode(fields[name])).decode()
        theirs.append(Theirs(Entry(Record(**fields), iterations.get(fields["id"], [])), version, edited_by))
    return theirs


def condition(filters: Filters) -> tuple[str, dict[str, Any]]:
    """Return the condition of the shared filters in PostgreSQL's SQL, and the values to bind."""
    conditions, values = ["true"], dict[str, Any]()
    for name, operator, moment in (("since", ">=", filters.since), ("until", "<", filters.until)):
        if moment is not None:
            conditions.append(f"old.occurred_at {operator} %({name})s::timestamptz")
            values[name] = moment
    for column, wanted in (
        ("account_id", filters.accounts),
        ("api_key_hint", filters.keys),
        ("model", filters.models),
        ("tag", filters.tags),
        ("usage_state", filters.states),
    ):
        if wanted:
            conditions.append(f"old.{column} LIKE ANY(%({column})s)")
            values[column] = [_pattern(each) for each in wanted]
    if filters.flagged:
        conditions.append("old.requires_manual_review = 1")
    return " AND ".join(conditions), values


def _pattern(wanted: str) -> str:
    """Return a LIKE pattern; `*` stands for any characters, and nothing else does."""
    for special in ("\\", "%", "_"):
        wanted = wanted.replace(special, f"\\{special}")
    return wanted.replace("*", "%")
