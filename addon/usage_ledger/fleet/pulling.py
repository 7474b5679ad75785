"""Pulling: rows of the fleet's books into a ledger, so that every command works on them.

Room: fleet. Imports psycopg and the ledger. Rows whose version the ledger knows are not fetched again; what no ledger
can hold, or could not add up, is told and left where it is.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
from psycopg import sql

from usage_ledger.fleet.schema import Connection
from usage_ledger.ledger.columns import COLUMNS, COUNT_COLUMNS, COUNT_LIMIT, ITERATION_COLUMNS
from usage_ledger.ledger.editing import Editor
from usage_ledger.ledger.filters import Filters
from usage_ledger.ledger.merging import Merged, Preference, Theirs, merge
from usage_ledger.ledger.money import as_amount
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


_FLAGS = ("stream", "requires_manual_review")
_AMOUNTS = (*COUNT_COLUMNS, "total_tokens", "duration_ms", "time_to_first_token_ms", "response_bytes")
_STATES = ("complete", "none", "partial", "missing")


class Impossible(NamedTuple):
    """A row of the books that cannot be, and why; somebody has changed it by SQL."""

    row_id: str
    why: str


class Pulled(NamedTuple):
    """How many rows were looked at, what came of merging them, and those that cannot be."""

    looked_at: int
    merged: Merged = Merged()
    impossible: tuple[Impossible, ...] = ()


def pull(
    editor: Editor,
    connection: Connection,
    filters: Filters,
    price: Callable[[Entry], None],
    preference: Preference,
    reopen: bool,
) -> Iterator[Pulled]:
    """Merge the rows that match into a ledger, oldest first; yield what came of it, some rows at a time."""
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
                fetched = _fetched(connection, news[place : place + MERGED])
                told = [(each, _impossibility(each.entry)) for each in fetched]
                theirs = [each for each, why in told if why is None]
                impossible = tuple(Impossible(each.entry.record.id, why) for each, why in told if why is not None)
                yield Pulled(0, merge(editor, theirs, price, preference, reopen), impossible)
            yield Pulled(len(found))


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
        "SELECT version, coalesce(edited_by, CASE WHEN edited_at IS NOT NULL THEN '?' END), old.ledger::text, "
        f"{_ROW} "
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
    for version, edited_by, ledger, *values in found:
        fields = dict(zip(COLUMNS, values, strict=True))
        for name in ("usage_raw", "metadata"):
            if fields[name] is not None:
                fields[name] = _compact(fields[name])
        theirs.append(Theirs(Entry(Record(**fields), iterations.get(fields["id"], [])), version, edited_by, ledger))
    return theirs


def _impossibility(entry: Entry) -> str | None:
    """Return why a row cannot be; None where it can."""
    record = entry.record
    amounts = [(name, getattr(record, name)) for name in _AMOUNTS]
    amounts += [
        (f"{name} of an iteration", getattr(each, name)) for each in entry.iterations for name in COUNT_COLUMNS[:6]
    ]
    for name, amount in amounts:
        if amount is not None and not 0 <= amount <= COUNT_LIMIT:
            return f"{name} is {amount}"
    for name in _FLAGS:
        if getattr(record, name) not in (0, 1):
            return f"{name} is {getattr(record, name)}"
    for cost in (record.total_cost, *(each.total_cost for each in entry.iterations)):
        if cost is not None and as_amount(cost) is None:  # NaN, less than nothing, a hundred digits
            return f"total_cost is {cost[:40]}"
    if record.usage_state not in _STATES:
        return f"usage_state is {record.usage_state!r}"
    return None


_STRING_OR_BLANKS = re.compile(r'("(?:[^"\\]|\\.)*")|\s+')


def _compact(text: str) -> str:
    """Return JSON as the ledger has it, without blanks between its parts; its numbers stay as they are written."""
    return _STRING_OR_BLANKS.sub(r"\1", text)


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
