"""Pulling: rows of the fleet's books into a ledger, so that every command works on them.

Room: fleet. Imports psycopg and the ledger. Rows whose version the ledger knows are not fetched again; what no ledger
can hold, or could not add up, is told and left where it is.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from psycopg import sql

from usage_ledger.fleet.schema import Connection
from usage_ledger.ledger.bounds import beyond
from usage_ledger.ledger.columns import COLUMNS, COUNT_COLUMNS, ITERATION_COLUMNS
from usage_ledger.ledger.corrections import with_counts
from usage_ledger.ledger.filters import Filters
from usage_ledger.ledger.merging import Merged, Preference, Theirs, decoded, merge
from usage_ledger.ledger.outbox import Outbox
from usage_ledger.ledger.record import Entry, IterationRow, Record

LOOKED_AT = 5_000
"""Rows whose versions are compared at a time."""

MERGED = 500
"""Rows that are merged in one transaction of the ledger, which keeps proxies waiting meanwhile."""

_TIME = "to_char({0} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"')"
_SHOWN = {
    "occurred_at": _TIME,
    "completed_at": f"CASE WHEN isfinite({{0}}) THEN {_TIME} ELSE {{0}}::text END",
    **dict.fromkeys(("total_cost", "usage_raw", "metadata"), "{0}::text"),
}
_ROW = ", ".join(_SHOWN.get(name, "{0}").format(f"old.{name}") for name in COLUMNS)


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
    outbox: Outbox,
    connection: Connection,
    filters: Filters,
    price: Callable[[Entry], None],
    preference: Preference,
    reopen: bool,
) -> Iterator[Pulled]:
    """Merge the rows that match into a ledger, oldest first; yield what came of it, some rows at a time."""
    where, values = condition(filters)
    page = sql.SQL(
        "SELECT id, occurred_at, version FROM usage_records AS old WHERE {} AND occurred_at >= %(start)s "
        "AND (occurred_at, id) > (%(start)s, %(id)s) ORDER BY occurred_at, id LIMIT {}"
    ).format(sql.SQL(where), sql.Literal(LOOKED_AT))
    values |= {"start": "-infinity", "id": ""}
    # Page by page, and not by a cursor, whose transaction would be open for as long as the ledger takes to be written.
    while found := connection.execute(page, values).fetchall():
        known = outbox.versions([row[0] for row in found])
        news = [row for row in found if known.get(row[0]) != row[2]]
        for place in range(0, len(news), MERGED):
            fetched = _fetched(connection, news[place : place + MERGED])
            told = [(each, _impossibility(each)) for each in fetched]
            theirs = [each for each, why in told if why is None]
            impossible = tuple(Impossible(each.entry.record.id, why) for each, why in told if why is not None)
            yield Pulled(0, merge(outbox, theirs, price, preference, reopen), impossible)
        yield Pulled(len(found))
        values |= {"id": found[-1][0], "start": found[-1][1]}


def _fetched(connection: Connection, rows: Sequence[tuple[Any, ...]]) -> list[Theirs]:
    """Fetch rows whole, by id and start (which tells their partition)."""
    ids, starts = [row[0] for row in rows], [row[1] for row in rows]
    found = connection.execute(
        "SELECT version, coalesce(edited_by, CASE WHEN edited_at IS NOT NULL THEN '?' END), "
        f"{_TIME.format('old.edited_at')}, old.ledger::text, {_ROW} "
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
    for version, edited_by, edited_at, ledger, *values in found:
        fields = dict(zip(COLUMNS, values, strict=True))
        for name in ("usage_raw", "metadata"):
            if fields[name] is not None:
                fields[name] = _compact(fields[name])
        theirs.append(
            Theirs(Entry(Record(**fields), iterations.get(fields["id"], [])), version, edited_by, edited_at, ledger)
        )
    return theirs


def _impossibility(theirs: Theirs) -> str | None:
    """Return why a row cannot be; None where it can."""
    record = theirs.entry.record
    why = beyond(theirs.entry)
    if why is None and record.http_status is not None and not 100 <= record.http_status <= 999:
        why = f"http_status is {record.http_status}"
    if why is None and not _is_object(record.metadata):
        why = "metadata is no JSON object"
    if why is None and theirs.edited_by is not None:
        try:
            with_counts(record, {name: getattr(record, name) for name in COUNT_COLUMNS})
        except ValueError as error:
            why = str(error)
    return why


def _is_object(text: str) -> bool:
    try:
        return isinstance(decoded(text), dict)
    except (ValueError, RecursionError):
        return False


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
