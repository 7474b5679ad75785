"""Overview: what a span of time came to, hour by hour, day by day or month by month, for drawing.

Room: ledger. Imports the standard library and its neighbours in this room. Sums of tokens and money are binary
fractions here, so that a million rows are added up in a second and nothing overflows; exact ones are those of
`summary`. Promises no call into Python for each row, that parts of a span can be added up by themselves, and that
tokens and cost stand under the model they were spent on. What belongs together (`groups` and `spent`) is to be read in
one snapshot.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from usage_ledger.ledger.columns import TOTALLED
from usage_ledger.ledger.filters import CORRECTED, FINAL, FLAGGED, NOT_OF_A_SUBSCRIPTION, PENDING, Filters
from usage_ledger.ledger.moments import format_moment, start_of
from usage_ledger.ledger.reading import Reader

WAIT_MS = 50
"""Waits are told to so many milliseconds."""


def _is_amount(column: str) -> str:
    """SQL: whether a text is an amount in USD, told by how it begins (`money.as_amount` looks at all of it)."""
    return f"({column} >= '0' AND {column} < ':' AND CAST({column} AS REAL) < 1e90)"


_COST = f"CASE WHEN {_is_amount('total_cost')} THEN CAST(total_cost AS REAL) END"


class Group(NamedTuple):
    """Requests of one step, model, account and tag: how many, how many of them are flagged, failed (HTTP 400 and more)
    or final without a price, their tokens by kind, their cost in USD, where it is billed by tokens, and the list price
    of what subscriptions pay for otherwise.
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
    listed: float = 0.0

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


class Step(NamedTuple):
    """A part of a span that is told by itself: an hour, a day or a month (UTC), by its moments as in the ledger.

    Its name is how all moments in it begin.
    """

    name: str
    since: str
    until: str


def steps(since: datetime, until: datetime) -> list[Step]:
    """Cut a span of whole days into steps, so that there are not too many of them."""
    days = (until - since).days
    length = len("2026-11-25T08" if days <= 2 else "2026-11-25" if days <= 92 else "2026-11")
    found, moment = list[Step](), since
    while moment < until:
        after = moment + (timedelta(hours=1) if days <= 2 else timedelta(days=1))
        first, last = format_moment(moment), format_moment(after)
        if found and found[-1].name == first[:length]:
            first = found.pop().since
        found.append(Step(first[:length], first, last))
        moment = after
    return found


def groups(reader: Reader, steps: Iterable[Step]) -> list[Group]:
    """Add up the rows of some steps."""
    query = f"""
        SELECT model, account_id, tag, count(*), total(requires_manual_review), total(http_status >= 400),
            total(CASE WHEN total_cost IS NULL OR NOT {_is_amount("total_cost")} THEN {FINAL} END),
            {", ".join(f"total({name})" for name in TOTALLED)},
            total(CASE WHEN {NOT_OF_A_SUBSCRIPTION} THEN {_COST} END),
            total(CASE WHEN NOT {NOT_OF_A_SUBSCRIPTION} THEN {_COST} END)
        FROM {reader.table()} WHERE occurred_at >= ? AND occurred_at < ? GROUP BY 1, 2, 3
        """
    # Step by step there is less to sort than in all of them at once.
    return [
        Group(step.name, *row[:4], *map(int, row[4:11]), *row[11:])
        for step in steps
        for row in reader.connection.execute(query, step[1:])
    ]


def spent(reader: Reader, steps: Sequence[Step], found: Iterable[Group]) -> list[Spent]:
    """Return what was spent on each model, of these steps' groups, which are by the model that answered."""
    result = [Spent(each.step, each.model, each.tokens, each.cost) for each in found]
    iterations = reader.table("usage_iterations", ("total_cost",))
    cost = f"CASE WHEN {_is_amount('i.total_cost')} THEN CAST(i.total_cost AS REAL) END"
    # Rows whose iterations are what is billed (see `summary`): these are taken out of where they answered, and put
    # where they were spent. There are fewer iterations than rows, so it begins with them.
    moved = reader.connection.execute(
        f"""
        WITH counted AS (
            SELECT record_id, {", ".join(f"sum({name}) AS {name}" for name in TOTALLED)}
            FROM {iterations} WHERE billed = 1 GROUP BY record_id
        ),
        split AS (
            SELECT record_id, substr(occurred_at, 1, {len(steps[0].name)}) AS step, model,
                {NOT_OF_A_SUBSCRIPTION} AS is_billed, {_is_amount("total_cost")} AS is_priced
            FROM counted CROSS JOIN {reader.table()} AS row ON row.id = record_id
            WHERE occurred_at >= ? AND occurred_at < ? AND NOT {CORRECTED}
                AND {" AND ".join(f"row.{name} = counted.{name}" for name in TOTALLED)}
                AND {" + ".join(f"counted.{name}" for name in TOTALLED)} > 0
        )
        SELECT step, split.model, coalesce(i.model, split.model), is_priced,
            {" + ".join(f"total({name})" for name in TOTALLED)}, total(CASE WHEN is_billed THEN {cost} END)
        FROM split CROSS JOIN {iterations} AS i ON i.record_id = split.record_id AND i.billed = 1
        GROUP BY 1, 2, 3, 4
        """,
        (steps[0].since, steps[-1].until),
    )
    for step, answered, own, is_priced, tokens, amount in moved:
        result.append(Spent(step, answered, -int(tokens), -amount if is_priced else 0))
        result.append(Spent(step, own, int(tokens), amount))
    return result


def waits(reader: Reader, steps: Iterable[Step]) -> dict[str, Waits]:
    """Return how long requests waited for their first token, for each step that has any."""
    query = f"""
        SELECT time_to_first_token_ms / {WAIT_MS}, count(*)
        FROM {reader.table()} WHERE occurred_at >= ? AND occurred_at < ? AND time_to_first_token_ms IS NOT NULL
        GROUP BY 1 ORDER BY 1
        """
    told = {step.name: reader.connection.execute(query, step[1:]).fetchall() for step in steps}
    return {name: Waits(_within(buckets, 0.5), _within(buckets, 0.95)) for name, buckets in told.items() if buckets}


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
    today: float


def now(reader: Reader) -> Now:
    table = reader.table()
    flagged, in_flight = reader.count(Filters(), FLAGGED), reader.count(Filters(), PENDING)
    today = start_of(datetime.now(UTC).date())
    cost = reader.connection.execute(
        f"SELECT total({_COST}) FROM {table} WHERE occurred_at >= ? AND {NOT_OF_A_SUBSCRIPTION}", (today,)
    ).fetchone()[0]
    return Now(flagged, in_flight, cost)
