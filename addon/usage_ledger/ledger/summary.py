"""Summary: rows added up by day, model, key and the like.

Room: ledger. Imports the standard library and its neighbours in this room. Promises exact sums of money, memory that
grows with the groups and not with the rows, and that tokens and cost stand under the model they were spent on.
"""

import re
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, tzinfo
from decimal import Decimal
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

from usage_ledger.ledger.columns import TOTALLED
from usage_ledger.ledger.filters import CORRECTED, FINAL, OF_A_SUBSCRIPTION, Filters
from usage_ledger.ledger.halves import halves_of
from usage_ledger.ledger.money import BOOKS, EXACT, Books, as_text, books, units
from usage_ledger.ledger.reading import Reader, as_utf8

_OF_ITERATIONS = (
    "input_tokens",
    "output_tokens",
    "cache_creation_5m_input_tokens",
    "cache_creation_1h_input_tokens",
    "cache_creation_input_tokens",
    "cache_read_input_tokens",
)
"""What iterations count for themselves."""

_OF_ROWS = ("thinking_tokens", "web_search_requests", "web_fetch_requests")
"""What only rows count."""

COUNTS = (*_OF_ITERATIONS, *_OF_ROWS)
"""The counts of a group."""

GROUPS = {
    "day": "day(CAST(occurred_at AS BLOB))",
    "hour": "hour(CAST(occurred_at AS BLOB))",
    "model": "model",
    "account": "account_id",
    "key": "api_key_hint",
    "tag": "tag",
    "session": "session_id",
    "workspace": "workspace_id",
    "tier": "service_tier",
    "client": "client(CAST(CASE WHEN json_valid(metadata) THEN json_extract(metadata, '$.user_agent') END AS BLOB))",
    "host": "host",
}
"""What rows can be added up by, in SQL. Days and hours of UTC are there as they are told (`_OF_UTC`)."""

_OF_UTC = {"day": "substr(occurred_at, 1, 10)", "hour": "replace(substr(occurred_at, 1, 13), 'T', ' ')"}
"""SQL instead of a call into Python for each row."""

_MANY = frozenset({"session", "client"})
"""What rows may have very many of, or what Python tells of each row."""


class Sums(NamedTuple):
    """One group: its keys (as `by` names them), its requests, how many are flagged, its counts, and what they cost.

    `requests` are those that the group has any part of: by model, one with an advisor is among those of both models.
    """

    keys: tuple[str | None, ...]
    requests: int
    flagged: int
    counts: dict[str, int]
    books: Books

    def plus(self, other: "Sums") -> "Sums":
        """Add up what two parts of the rows say of one group."""
        counts = {name: count + other.counts[name] for name, count in self.counts.items()}
        books = self.books.plus(other.books)
        return Sums(self.keys, self.requests + other.requests, self.flagged + other.flagged, counts, books)

    @property
    def total_tokens(self) -> int:
        return sum(self.counts[name] for name in TOTALLED)

    def fields(self) -> dict[str, Any]:
        """Return what programs get of a group. Money is text, because it is exact."""
        billed, subscription, unpriced, unsettled = self.books
        return {
            "requests": self.requests,
            **self.counts,
            "total_tokens": self.total_tokens,
            "billed_cost": as_text(billed),
            "subscription_list_price": as_text(subscription),
            "flagged": self.flagged,
            "unpriced": unpriced,
            "unsettled": unsettled,
        }


def plus(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Add up what two groups say in `Sums.fields`."""
    return {
        name: as_text(EXACT.add(Decimal(value), Decimal(other[name])))
        if isinstance(value, str)
        else value + other[name]
        for name, value in one.items()
    }


def summarize(
    reader: Reader, filters: Filters, by: Sequence[str], zone: tzinfo | None = None, condition: str = "true"
) -> Iterator[Sums]:
    """Add up the rows that match, one `Sums` for each group of `by` (names of `GROUPS`), in the keys' order.

    Days and hours are those of `zone` (None: UTC). Without `by` it is one, of all of them. `condition` is an SQL
    condition of this package.
    """
    if zone is not None or not _MANY.isdisjoint(by):
        return (_sums(row, len(by)) for row in _rows(reader, filters, by, zone, condition))
    # A filter that has an index is left to it: SQLite would take a span of its own numbers of rows for a better one.
    is_narrow = filters.since is not None or filters.until is not None or filters.flagged
    with halves_of(reader, "+rowid" if is_narrow else "rowid") as halves:
        raw = len(halves) > 1
        found = _at_once(
            *(partial(_rows, half, filters, by, None, f"{condition} AND {its_part}", raw) for half, its_part in halves)
        )
    return _merged(found, len(by)) if raw else (_sums(row, len(by)) for row in found[0])


def _at_once[T](here: Callable[[], Iterator[T]], *elsewhere: Callable[[], Iterator[T]]) -> list[list[T]]:
    """Return all that each job gives: the first is done here, and meanwhile the others in a thread of their own."""

    def all_of(job: Callable[[], Iterator[T]]) -> list[T]:
        return list(job())

    if not elsewhere:
        return [all_of(here)]
    from concurrent.futures import ThreadPoolExecutor  # takes 12 ms, which small ledgers need not wait for

    with ThreadPoolExecutor(1) as thread:
        try:
            others = [thread.submit(all_of, job) for job in elsewhere]
        except RuntimeError:  # the system gives no more threads
            return [all_of(job) for job in (here, *elsewhere)]
        return [all_of(here), *(each.result() for each in others)]


def _merged(parts: list[list[tuple[Any, ...]]], keys: int) -> Iterator[Sums]:
    """Add up the groups of several parts of the rows, in the keys' order. Their keys are bytes, as in the file."""
    found: dict[tuple[bytes | None, ...], Sums] = {}
    for row in chain.from_iterable(parts):
        sums, known = _sums(row, keys), found.get(row[:keys])
        found[row[:keys]] = sums if known is None else known.plus(sums)
    return (
        found[raw]._replace(keys=tuple(None if key is None else as_utf8(key) for key in raw))
        for raw in sorted(found, key=_in_order)
    )


def _in_order(keys: tuple[bytes | None, ...]) -> list[tuple[bool, bytes]]:
    """Sort keys as SQLite does: none first, text by its bytes."""
    return [(key is not None, key or b"") for key in keys]


def _rows(
    reader: Reader, filters: Filters, by: Sequence[str], zone: tzinfo | None, condition: str, raw: bool = False
) -> Iterator[tuple[Any, ...]]:
    """Return what `_sums` reads, a row for each group; with `raw`, its keys are bytes."""
    connection = reader.connection
    _register(connection, zone)
    where, values = filters.where()
    told = GROUPS if zone is not None else GROUPS | _OF_UTC
    keys = ", ".join(f"key_{place}" for place, _ in enumerate(by))
    shown = f"{keys}, " if by else ""
    told_keys = "".join(f"CAST(key_{place} AS BLOB), " for place, _ in enumerate(by)) if raw else shown
    parts = _split(reader.table("usage_iterations", ("total_cost",)), by) if "model" in by else _whole(shown)
    return connection.execute(
        f"""
        WITH chosen AS NOT MATERIALIZED (
            SELECT {"".join(f"{told[name]} AS key_{place}, " for place, name in enumerate(by))}
                id, model, requires_manual_review, {", ".join(COUNTS)}, total_cost, {units("total_cost")} AS units,
                {OF_A_SUBSCRIPTION} AS subscription, {FINAL} AS final, {CORRECTED} AS corrected
            FROM {reader.table()} WHERE {where} AND {condition}
        ),
        {parts}
        SELECT {told_keys} coalesce(sum(request), 0), coalesce(sum(requires_manual_review), 0), {BOOKS},
            {", ".join(f"coalesce(sum({name}), 0)" for name in COUNTS)}
        FROM parts {f"GROUP BY {keys} ORDER BY {keys}" if by else ""}
        """,
        values,
    )


def _sums(row: tuple[Any, ...], keys: int) -> Sums:
    requests, flagged, billed, subscription, others, *counts = row[keys:]
    told = books(billed, subscription, others)
    return Sums(row[:keys], requests, flagged, dict(zip(COUNTS, counts, strict=True)), told)


def _whole(keys: str) -> str:
    """SQL for rows as they are. The LIMIT makes SQLite work out each row's values once, and not for each sum."""
    names = f"requires_manual_review, {', '.join(COUNTS)}, total_cost AS cost, units, subscription, final"
    return f"parts AS (SELECT {keys} 1 AS request, {names} FROM chosen LIMIT -1)"


def _split(iterations: str, by: Sequence[str]) -> str:
    """SQL for rows, of which those whose iterations are what is billed are told apart into these.

    What such a row has beside its iterations (web searches, its flag, its place among the requests) stays with the row.
    Among the requests of another model it is counted once, with the first iteration of that model.
    """
    keys = [f"key_{place}" for place, _ in enumerate(by)]
    of_iteration = ["coalesce(i.model, chosen.model)" if name == "model" else keys[n] for n, name in enumerate(by)]
    return f"""
        counted AS (
            SELECT record_id, money_sum(CAST(total_cost AS BLOB)) AS cost,
                {", ".join(f"sum({name}) AS {name}" for name in TOTALLED)}
            FROM {iterations} WHERE billed = 1 GROUP BY record_id
        ),
        split AS MATERIALIZED (
            SELECT id, cost FROM counted JOIN chosen ON chosen.id = counted.record_id
            WHERE {" AND ".join(f"chosen.{name} = counted.{name}" for name in TOTALLED)}
                AND {" + ".join(f"counted.{name}" for name in TOTALLED)} > 0 AND NOT corrected
        ),
        parts AS (
            SELECT {", ".join(keys)}, 1 AS request, requires_manual_review, {", ".join(COUNTS)},
                total_cost AS cost, units, subscription, final
            FROM chosen WHERE id NOT IN (SELECT id FROM split)
            UNION ALL
            SELECT {", ".join(keys)}, 1, requires_manual_review,
                {", ".join("0" for _ in _OF_ITERATIONS)}, {", ".join(_OF_ROWS)},
                money_difference(CAST(total_cost AS BLOB), split.cost), NULL, subscription, final
            FROM split JOIN chosen USING (id)
            UNION ALL
            SELECT {", ".join(of_iteration)}, i.model <> chosen.model AND NOT EXISTS (
                    SELECT 1 FROM {iterations} AS earlier WHERE earlier.record_id = i.record_id
                        AND earlier.position < i.position AND earlier.billed = 1 AND earlier.model = i.model
                ), 0,
                {", ".join(f"i.{name}" for name in _OF_ITERATIONS)}, {", ".join("0" for _ in _OF_ROWS)},
                i.total_cost, {units("i.total_cost")}, subscription, NULL
            FROM split JOIN chosen USING (id) JOIN {iterations} AS i ON i.record_id = chosen.id AND i.billed = 1
        )
    """


def _register(connection: sqlite3.Connection, zone: tzinfo | None) -> None:
    """Give a connection what the groups are told by."""

    def day(raw: bytes | None) -> str | None:
        told = hour(raw)
        return None if told is None else told[:10]

    def hour(raw: bytes | None) -> str | None:
        try:
            moment = datetime.fromisoformat((raw or b"").decode()).astimezone(zone)
        except (ValueError, OverflowError):  # another program wrote it
            return None
        # When summer time ends, a clock shows an hour twice: the second one has its offset.
        shown = moment.isoformat()[:13].replace("T", " ")
        return f"{shown} {moment:%:z}" if moment.fold else shown

    connection.create_function("day", 1, day, deterministic=True)
    connection.create_function("hour", 1, hour, deterministic=True)
    connection.create_function("client", 1, client, deterministic=True)


_VERSION = re.compile(r"/v?\d.*$")


def client(user_agent: bytes | None) -> str | None:
    """Name the program that a user agent tells, without its version: `claude-cli/2.0.1 (…)` is `claude-cli`."""
    words = (user_agent or b"").decode("utf-8", "replace").split()
    return _VERSION.sub("", words[0]) if words else None
