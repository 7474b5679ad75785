"""Summary: rows added up by day, model, key and the like.

Room: ledger. Imports the standard library and its neighbours in this room. Promises exact sums of money, memory that
grows with the groups and not with the rows, and that tokens and cost stand under the model they were spent on.
"""

import re
import sqlite3
from collections.abc import Iterator, Sequence
from datetime import datetime, tzinfo
from decimal import Decimal
from typing import Any, NamedTuple

from usage_ledger.ledger.filters import CORRECTED, FINAL, Filters
from usage_ledger.ledger.money import EXACT, Books, as_text, books
from usage_ledger.ledger.reading import Reader

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

_TOTAL = ("input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")

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


class Sums(NamedTuple):
    """One group: its keys (as `by` names them), its requests, how many are flagged, its counts, and what they cost.

    `requests` are those that the group has any part of: by model, one with an advisor is among those of both models.
    """

    keys: tuple[str | None, ...]
    requests: int
    flagged: int
    counts: dict[str, int]
    books: Books

    @property
    def total_tokens(self) -> int:
        return sum(self.counts[name] for name in _TOTAL)

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
    connection = reader.connection
    _register(connection, zone)
    where, values = filters.where()
    where = f"{where} AND {condition}"
    iterations = reader.table("usage_iterations", ("total_cost",))
    source = _parts(reader.table(), iterations, where) if "model" in by else _rows(reader.table(), where)
    counts = ", ".join(f"sum({name})" for name in COUNTS)
    told = GROUPS if zone is not None else GROUPS | _OF_UTC
    keys = ", ".join(f"{told[name]} AS key_{place}" for place, name in enumerate(by))
    order = ", ".join(f"key_{place}" for place, _ in enumerate(by))
    found = connection.execute(
        f"""
        WITH {source}
        SELECT {keys}{", " if by else ""}{"count(DISTINCT id)" if "model" in by else "count(*)"},
            coalesce(sum(requires_manual_review), 0),
            books(credential_kind IS 'oauth', CAST(cost AS BLOB), final), {counts}
        FROM parts {f"GROUP BY {order} ORDER BY {order}" if by else ""}
        """,
        values,
    )
    return (_sums(row, len(by)) for row in found)


def _sums(row: tuple[Any, ...], keys: int) -> Sums:
    requests, flagged, told, *counts = row[keys:]
    counted = dict(zip(COUNTS, (count or 0 for count in counts), strict=True))
    return Sums(row[:keys], requests, flagged, counted, books(told))


_FROM_ROWS = (
    *("id", "occurred_at", "account_id", "api_key_hint", "tag", "session_id", "workspace_id", "service_tier", "host"),
    "metadata",
)
_SAID = f"credential_kind, requires_manual_review, {FINAL} AS final"


def _rows(table: str, where: str) -> str:
    """SQL for rows as they are."""
    names = ", ".join((*_FROM_ROWS, "model", *_OF_ITERATIONS, *_OF_ROWS))
    return f"parts AS (SELECT {names}, total_cost AS cost, {_SAID} FROM {table} WHERE {where})"


def _parts(table: str, iterations: str, where: str) -> str:
    """SQL for rows, of which those whose iterations are what is billed are told apart into these.

    What such a row has beside its iterations (web searches, its flag, its place among the requests) stays with the row.
    """
    row, counts = ", ".join(_FROM_ROWS), ", ".join(_OF_ITERATIONS)
    own = ", ".join(f"chosen.{name}" for name in _FROM_ROWS)
    return f"""
        chosen AS (
            SELECT {row}, model, {counts}, {", ".join(_OF_ROWS)}, total_cost, {_SAID} FROM {table} WHERE {where}
        ),
        counted AS (
            SELECT record_id, money_sum(CAST(total_cost AS BLOB)) AS cost,
                {", ".join(f"sum({name}) AS {name}" for name in _TOTAL)}
            FROM {iterations} WHERE billed = 1 GROUP BY record_id
        ),
        split AS (
            SELECT id, cost FROM chosen JOIN counted ON counted.record_id = chosen.id
            WHERE {" AND ".join(f"chosen.{name} = counted.{name}" for name in _TOTAL)}
                AND {" + ".join(f"counted.{name}" for name in _TOTAL)} > 0 AND NOT {CORRECTED}
        ),
        parts AS (
            SELECT {row}, model, {counts}, {", ".join(_OF_ROWS)}, total_cost AS cost,
                credential_kind, requires_manual_review, final
            FROM chosen WHERE id NOT IN (SELECT id FROM split)
            UNION ALL
            SELECT {own}, chosen.model, {", ".join("0" for _ in _OF_ITERATIONS)}, {", ".join(_OF_ROWS)},
                money_difference(CAST(total_cost AS BLOB), split.cost), credential_kind, requires_manual_review, final
            FROM chosen JOIN split USING (id)
            UNION ALL
            SELECT {own}, coalesce(i.model, chosen.model), {", ".join(f"i.{name}" for name in _OF_ITERATIONS)},
                {", ".join("0" for _ in _OF_ROWS)}, i.total_cost, credential_kind, 0, NULL
            FROM chosen JOIN split USING (id) JOIN {iterations} AS i ON i.record_id = chosen.id AND i.billed = 1
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
