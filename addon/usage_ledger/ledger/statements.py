"""The statements that write rows. Each takes a whole batch.

Room: ledger. Imports its neighbours in this room. One statement a batch crosses into SQLite once, so the interpreter
lock is given up once and the proxy's event loop is not disturbed per row. Values of records are bound one by one, which
takes a third of the time of one JSON text that SQLite takes apart. Promises that a row is never replaced by a
worse one: corrected > complete > none > partial > missing > pending, and that a row of the same worth changes nothing
(but a partial row takes a larger lower bound, a pending row what its own writer has learnt since, a missing one a
response or a body that was not known of, and one that was made of a redacted capture the real one).
"""

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import batched
from typing import Any

from msgspec.structs import astuple

from usage_ledger.ledger.columns import COLUMNS, ITERATION_COLUMNS, STATES
from usage_ledger.ledger.record import Entry, Record


def _rank(row: str) -> str:
    """SQL for the worth of a row that is in flight or settled by the proxy; corrected rows outrank all of these."""
    ranks = " ".join(f"WHEN '{state}' THEN {rank}" for rank, state in enumerate(STATES))
    return f"CASE {row}.usage_state {ranks} ELSE 0 END"


def _values(columns: tuple[str, ...]) -> str:
    return ", ".join(f"json_extract(value, '$[{place}]')" for place, _ in enumerate(columns))


_OLD = "usage_records"
_NEW = "excluded"

# What a replay cannot see is kept from the row it improves.
_KEPT = frozenset({"tag", "time_to_first_token_ms", "api_key_hint", "session_id", "organization_id", "workspace_id"})

_WHO = frozenset({"account_id", "api_key_hint", "credential_kind", "session_id", "tag", "host", "path"})
"""What a redacted capture has filler for, at least in part."""


def _told(row: str, name: str) -> str:
    """SQL for a field of a row's metadata, which another program may have broken."""
    return f"CASE WHEN json_valid({row}.metadata) THEN json_extract({row}.metadata, '$.{name}') END"


_IS_FILLER = f"({_told(_OLD, '_redacted')} IS 1)"


def _improved(name: str) -> str:
    if name not in _KEPT:
        return f"{_NEW}.{name}"
    known = f"CASE WHEN trim({_OLD}.{name}, 'x') = '' AND {_IS_FILLER} THEN NULL ELSE {_OLD}.{name} END"
    return f"coalesce({_NEW}.{name}, {known})"


def _unless_filler(name: str) -> str:
    return f"CASE WHEN trim({_NEW}.{name}, 'x') = '' THEN {_OLD}.{name} ELSE {_improved(name)} END"


_METADATA_BY_REDACTED = f"""
    CASE WHEN {_IS_FILLER} OR NOT json_valid({_OLD}.metadata) THEN {_NEW}.metadata ELSE json_patch(
        json_remove({_NEW}.metadata, '$._redacted'),
        json_patch('{{}}', json_object(
            'user_agent', json_extract({_OLD}.metadata, '$.user_agent'),
            'rate_limits', json_extract({_OLD}.metadata, '$.rate_limits')
        ))
    ) END
"""

_CHANGING = [name for name in COLUMNS if name not in ("id", "occurred_at")]
_SET = ", ".join(f"{name} = {_improved(name)}" for name in _CHANGING)
_SET_BY_REDACTED = ", ".join(
    f"{name} = {_METADATA_BY_REDACTED if name == 'metadata' else _unless_filler(name)}"
    for name in _CHANGING
    if name not in _WHO
)
_BETTER = f"""
    {_told(_OLD, "_manually_updated")} IS NOT 1 AND (
        {_rank(_NEW)} > {_rank(_OLD)}
        OR ({_NEW}.usage_state = 'partial' AND {_OLD}.usage_state = 'partial'
            AND {_NEW}.total_tokens > {_OLD}.total_tokens)
        OR ({_NEW}.usage_state = 'pending' AND {_OLD}.usage_state = 'pending'
            AND {_OLD}.writer = {_NEW}.writer AND ({_NEW}.usage_raw IS NOT NULL OR {_OLD}.usage_raw IS NULL))
        OR ({_NEW}.usage_state = 'missing' AND {_OLD}.usage_state = 'missing' AND {_told(_OLD, "_accepted")} IS NOT 1
            AND ({_OLD}.http_status IS NULL AND {_NEW}.http_status IS NOT NULL
                OR {_OLD}.review_reason = 'body_not_captured' AND {_NEW}.review_reason <> 'body_not_captured'))
        OR ({_IS_FILLER} AND json_extract({_NEW}.metadata, '$._redacted') IS NOT 1
            AND {_rank(_NEW)} >= {_rank(_OLD)} AND {_NEW}.total_tokens >= {_OLD}.total_tokens
            AND {_told(_OLD, "_accepted")} IS NOT 1)
    )
"""
_ROW = f"({', '.join('?' * len(COLUMNS))})"

AT_ONCE = 16
"""Records that one statement writes; there is one for each number of them."""


def _insert(count: int) -> str:
    return f"INSERT INTO usage_records ({', '.join(COLUMNS)}) VALUES {', '.join([_ROW] * count)}"


@cache
def upsert(count: int) -> str:
    """Write so many records; worse ones than the ledger holds change nothing."""
    return f"{_insert(count)} ON CONFLICT(id) DO UPDATE SET {_SET} WHERE {_BETTER}"


@cache
def upsert_redacted(count: int) -> str:
    """Write so many records of redacted flows, as `upsert`; filler takes the place of nothing that is known."""
    return f"{_insert(count)} ON CONFLICT(id) DO UPDATE SET {_SET_BY_REDACTED} WHERE {_BETTER}"


@cache
def insert_new(count: int) -> str:
    """Write so many records, which may only add rows."""
    return f"{_insert(count)} ON CONFLICT(id) DO NOTHING"


def values(records: Iterable[Record]) -> list[Any]:
    """Return what is bound to a statement for these records."""
    return [value for record in records for value in astuple(record)]


def write(connection: sqlite3.Connection, statement: Callable[[int], str], records: Iterable[Record]) -> None:
    """Write records with `upsert` or `insert_new`; more than `AT_ONCE` of them in a transaction of the caller's."""
    for some in batched(records, AT_ONCE):
        connection.execute(statement(len(some)), values(some))


INSERT_ITERATIONS = (
    f"INSERT INTO usage_iterations ({', '.join(ITERATION_COLUMNS)}) "
    f"SELECT {_values(ITERATION_COLUMNS)} FROM json_each(?1)"
)

WITHDRAW = """
    DELETE FROM usage_records
    WHERE id IN (SELECT value FROM json_each(?1)) AND usage_state = 'pending'
"""
"""Remove the pending rows of requests that turned out to be answered by the proxy itself."""

FIND_BY_ID = "SELECT id FROM usage_records WHERE id = ?1"

START = "occurred_at || ' ' || host || ' ' || path"
"""What a flow is known by that has no ids."""


def _same_start(row_id: str, first: str, last: str) -> str:
    """SQL for whether a row began in the same microsecond as a flow, where its id tells that (`first` to `last`)."""
    return f"(substr({row_id}, 14, 1) <> '-' OR substr({row_id}, 1, 13) BETWEEN {first} AND {last})"


_ASKED_START = _same_start("record_id", "asked.value ->> 8", "asked.value ->> 9")

FIND_ARCHIVED = f"""
    SELECT asked.value ->> 0 FROM json_each(?1) AS asked
    WHERE EXISTS (
        SELECT 1 FROM usage_archived WHERE record_id IN (asked.value ->> 1, asked.value ->> 2)
    ) OR EXISTS (
        SELECT 1 FROM usage_archived WHERE request_id = asked.value ->> 3
        AND (message_id IS NULL OR asked.value ->> 4 IS NULL OR message_id = asked.value ->> 4)
        AND (
            (substr(start, 1, 24) = substr(asked.value ->> 5, 1, 24) AND {_ASKED_START})
            OR (asked.value ->> 7 AND message_id = asked.value ->> 4)
        )
    ) OR EXISTS (
        SELECT 1 FROM usage_archived WHERE message_id = asked.value ->> 4
        AND substr(start, 1, 24) = substr(asked.value ->> 5, 1, 24) AND {_ASKED_START}
        AND (request_id IS NULL OR asked.value ->> 3 IS NULL)
    ) OR (asked.value ->> 7 AND EXISTS (
        SELECT 1 FROM usage_archived
        WHERE start IS NOT NULL  -- always so, but else SQLite does not take the index
        AND start >= iif(asked.value ->> 6, substr(asked.value ->> 5, 1, 24), asked.value ->> 5)
        AND start <= iif(asked.value ->> 6, substr(asked.value ->> 5, 1, 24) || '!', asked.value ->> 5)
        AND length(start) = length(asked.value ->> 5) AND {_ASKED_START}
        AND (request_id IS NULL OR asked.value ->> 3 IS NULL)
        AND (message_id IS NULL OR asked.value ->> 4 IS NULL OR message_id = asked.value ->> 4)
    ))
"""
"""Which of these were archived: each a list of its number, its id, its alias, its request id, its message id, its
start, whether that is redacted, whether its id does not last, and the microseconds of its start. As `FIND_BY_START` and
`FIND_ELSEWHERE` find the rows that were not."""

FIND_LIKELY = """
    SELECT asked.value ->> 0 FROM json_each(?1) AS asked
    WHERE NOT EXISTS (SELECT 1 FROM usage_records WHERE id = asked.value ->> 1) AND (
        EXISTS (SELECT 1 FROM usage_records WHERE id = asked.value ->> 2)
        OR EXISTS (SELECT 1 FROM usage_records WHERE occurred_at = asked.value ->> 3)
        OR EXISTS (SELECT 1 FROM usage_records WHERE request_id = asked.value ->> 4)
    )
"""
"""Which of these may have a row under another id than their own: each a list of its number, its id, its alias, its
start and its request id. Most have none, and one look at all of them tells that."""

FIND_BY_START = f"""
    SELECT id FROM usage_records
    WHERE occurred_at = ?1 AND {_same_start("id", "?2", "?3")}
        AND (request_id IS NULL OR ?4 IS NULL OR request_id = ?4)
        AND (message_id IS NULL OR ?5 IS NULL OR message_id = ?5)
        AND (
            +request_id = ?4 OR +message_id = ?5 OR (
                ?6 AND ((host = ?7 AND path = ?8) OR (?9 AND length(host) = length(?7) AND length(path) = length(?8)))
            )
        )
    ORDER BY request_id IS ?4 DESC, message_id IS ?5 DESC, id LIMIT 1
"""
"""The row of a request that began at the same time and has an id of upstream's in common; of a flow whose own id does
not last, also one that went to the same place, where no id says otherwise."""

_SHARED_BY_MANY = 100  # rows of a relay that calls each request the same; more of them are not looked at

FIND_ELSEWHERE = f"""
    SELECT id FROM (SELECT * FROM usage_records WHERE request_id = ?1 LIMIT {_SHARED_BY_MANY})
    WHERE message_id = ?2 AND occurred_at <> ?3 AND occurred_at <= ?4 AND coalesce(completed_at, ?3) >= ?3
        AND (usage_state <> 'complete' OR ?5 <> 'complete' OR usage_raw IS ?6)
        AND (?7 IS NULL OR substr(id, 14) = ?7)
    ORDER BY usage_raw IS ?6 DESC, occurred_at LIMIT 1
"""
"""The row of a request that was seen at another place, and so at another time, while it was under way here, with the
same usage: some relays call each request and each message the same. A capture knows its own flows apart, so it takes a
row alone that ends as those of a HAR do which told of these ids."""


def ids_told(entry: Entry) -> tuple[str | None, str | None]:
    """Return the request id and the message id of an entry; None where it has none, or filler."""
    request_id, message_id = (
        None if entry.redacted and told is not None and not told.strip("x") else told
        for told in (entry.record.request_id, entry.record.message_id)
    )
    return request_id, message_id


def started(entry: Entry) -> tuple[str, str]:
    """Return between which microseconds a flow began, as they stand in the ids of rows.

    A capture has them as a fraction, which an id cuts off and a HAR rounds.
    """
    told = entry.record.id[:13]
    try:
        start = int(told, 16) if entry.record.id[13:14] == "-" else None
    except ValueError:
        start = None
    return ("", "~") if start is None else (f"{start - 1:013x}", f"{start + 1:013x}")


def finding(entry: Entry) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Yield what finds the row of a flow that is read again, best first: statements with their values.

    Filler is as long as what it stands for.
    """
    record, ids = entry.record, ids_told(entry)
    if not entry.identify:
        yield FIND_BY_ID, (record.id,)
        yield FIND_BY_ID, (entry.alias,)
    if entry.identify or any(ids):
        where = (record.host, record.path, entry.redacted)
        yield FIND_BY_START, (record.occurred_at, *started(entry), *ids, entry.identify, *where)
    if all(ids):
        under_way = record.occurred_at, record.completed_at or record.occurred_at
        of_har = None if entry.alias is None else entry.alias[13:]
        yield FIND_ELSEWHERE, (*ids, *under_way, record.usage_state, record.usage_raw, of_har)
    if entry.identify:
        yield FIND_BY_ID, (record.id,)


def found_id(connection: sqlite3.Connection, entry: Entry) -> str | None:
    """Return the id of the row that a flow which is read again already has; None where it has none."""
    for statement, values in finding(entry):
        found = connection.execute(statement, values).fetchone()
        if found:
            return str(found[0])
    return None


PENDING_WRITERS = "SELECT DISTINCT writer FROM usage_records WHERE usage_state = 'pending'"
SETTLE_DEAD = """
    UPDATE usage_records SET
        usage_state = CASE WHEN usage_raw IS NULL THEN 'missing' ELSE 'partial' END,
        requires_manual_review = 1,
        review_reason = 'proxy_stopped',
        metadata = json_set(
            CASE WHEN json_valid(metadata) THEN metadata ELSE '{}' END,
            CASE WHEN usage_raw IS NULL THEN '$._no_usage_data' ELSE '$._partial_usage' END, json('true'),
            '$._requires_manual_review', json('true')
        )
    WHERE usage_state = 'pending' AND writer = ?1
"""
"""Settle the rows that a writer left in flight as it ended, on what their streams had told so far."""
