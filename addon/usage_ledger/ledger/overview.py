"""Overview: what a span of time came to, hour by hour, day by day or month by month, for drawing.

Room: ledger. Imports the standard library and its neighbours in this room. Sums of money are binary fractions here, so
that a million rows are added up in a second; exact ones are those of `summary`. Promises one pass over the rows for all
figures, that halves of a span can be added up by themselves, and that tokens and cost stand under the model they were
spent on.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import NamedTuple

from usage_ledger.ledger.filters import FINAL, Filters, format_moment
from usage_ledger.ledger.reading import Reader
from usage_ledger.ledger.summary import summarize

STEPS = {"hour": len("2026-11-25T08"), "day": len("2026-11-25"), "month": len("2026-11")}
"""Steps of a span, each with how much of a moment names one."""

WAIT_MS = 50
"""Waits are told to so many milliseconds."""


class Group(NamedTuple):
    """Requests of one step, model, account and tag: how many, how many of them are flagged, failed (HTTP 400 and more)
    or final without a price, their tokens by kind, and their cost in USD, where it is billed by tokens.
    """

    step: str
    model: str
    account: str
    tag: str | None
    requests: int
    flagged: int
    failed: int
    unpriced: int
    input: int
    output: int
    cache_write: int
    cache_read: int
    cost: float

    @property
    def tokens(self) -> int:
        return self.input + self.output + self.cache_write + self.cache_read


class Spent(NamedTuple):
    """Tokens and cost of a step, under the model they were spent on; less than 0 where they were not spent on it."""

    step: str
    model: str
    tokens: int
    cost: float


class Waits(NamedTuple):
    """Times to the first token in milliseconds: half and 95 % of the requests of a step waited no longer."""

    half: float
    most: float


def step_of(since: datetime, until: datetime) -> str:
    """Choose the step that a span is shown by."""
    days = (until - since).days
    return "hour" if days <= 2 else "day" if days <= 92 else "month"


def steps(since: datetime, until: datetime, step: str) -> list[str]:
    """Name all steps of a span, also those in which nothing happened."""
    names, moment = dict[str, None](), since
    while moment < until:
        names[format_moment(moment)[: STEPS[step]]] = None
        moment += timedelta(hours=1) if step == "hour" else timedelta(days=1)
    return list(names)


def middle(since: datetime, until: datetime, step: str) -> datetime:
    """Return a moment within a span at which it can be cut into two, between two steps."""
    half = since + (until - since) / 2
    cut = half.replace(minute=0, second=0, microsecond=0)
    if step != "hour":
        cut = cut.replace(hour=0)
    return max(since, cut.replace(day=1) if step == "month" else cut)


def groups(reader: Reader, since: str, until: str, step: str) -> list[Group]:
    """Add up the rows of a span (moments as in the ledger)."""
    found = reader.connection.execute(
        f"""
        SELECT substr(occurred_at, 1, {STEPS[step]}), model, account_id, tag, count(*), sum(requires_manual_review),
            total(http_status >= 400), total(CASE WHEN total_cost IS NULL THEN {FINAL} END),
            sum(input_tokens), sum(output_tokens), sum(cache_creation_input_tokens), sum(cache_read_input_tokens),
            total(CASE WHEN credential_kind IS NOT 'oauth' THEN CAST(total_cost AS REAL) END)
        FROM {reader.table()} WHERE occurred_at >= ? AND occurred_at < ? GROUP BY 1, 2, 3, 4
        """,
        (since, until),
    )
    return [Group._make((*row[:6], int(row[6]), int(row[7]), *row[8:])) for row in found]


def spent(reader: Reader, since: str, until: str, step: str, found: Iterable[Group]) -> list[Spent]:
    """Return what was spent on each model, of groups that were added up by the model that answered."""
    result = [Spent(each.step, each.model, each.tokens, each.cost) for each in found]
    iterations = reader.table("usage_iterations", ("total_cost",))
    filters, condition = Filters(since=since, until=until), f"id IN (SELECT record_id FROM {iterations})"
    if reader.connection.execute(f"SELECT 1 FROM {iterations} LIMIT 1").fetchone() is None:
        return result
    by = "hour" if step == "hour" else "day"
    # Rows with iterations are taken out of where they answered, and put where they were spent.
    taken = reader.connection.execute(
        f"""
        SELECT substr(occurred_at, 1, {STEPS[step]}), model,
            -sum(input_tokens + output_tokens + cache_creation_input_tokens + cache_read_input_tokens),
            -total(CASE WHEN credential_kind IS NOT 'oauth' THEN CAST(total_cost AS REAL) END)
        FROM {reader.table()} WHERE occurred_at >= ? AND occurred_at < ? AND {condition} GROUP BY 1, 2
        """,
        (since, until),
    )
    result += [Spent(*row) for row in taken]
    for each in summarize(reader, filters, (by, "model"), condition=condition):
        name = str(each.keys[0]).replace(" ", "T")[: STEPS[step]]
        result.append(Spent(name, str(each.keys[1]), each.total_tokens, float(each.books.billed)))
    return result


def waits(reader: Reader, since: str, until: str, step: str) -> dict[str, Waits]:
    """Return how long requests waited for their first token, for each step that has any."""
    found = reader.connection.execute(
        f"""
        SELECT substr(occurred_at, 1, {STEPS[step]}), time_to_first_token_ms / {WAIT_MS}, count(*)
        FROM {reader.table()} WHERE occurred_at >= ? AND occurred_at < ? AND time_to_first_token_ms IS NOT NULL
        GROUP BY 1, 2 ORDER BY 1, 2
        """,
        (since, until),
    )
    told: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for name, place, count in found:
        told[name].append((place, count))
    return {name: Waits(_within(buckets, 0.5), _within(buckets, 0.95)) for name, buckets in told.items()}


def _within(buckets: Sequence[tuple[int, int]], share: float) -> float:
    """Return the end of the bucket up to which so large a share of all is."""
    wanted, seen = share * sum(count for _, count in buckets), 0
    for place, count in buckets:
        seen += count
        if seen >= wanted:
            return float((place + 1) * WAIT_MS)
    return 0.0


class Now(NamedTuple):
    """What an operator asks first: rows that want a person, requests in flight, what today (UTC) costs so far (USD)."""

    flagged: int
    in_flight: int
    today: Decimal
    unpriced_today: int


def now(reader: Reader) -> Now:
    table = reader.table()
    flagged = reader.connection.execute(f"SELECT count(*) FROM {table} WHERE requires_manual_review = 1").fetchone()[0]
    in_flight = reader.connection.execute(f"SELECT count(*) FROM {table} WHERE usage_state = 'pending'").fetchone()[0]
    today = format_moment(datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0))
    (sums,) = summarize(reader, Filters(since=today), ())
    return Now(flagged, in_flight, sums.books.billed, sums.books.unpriced)
