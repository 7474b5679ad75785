"""The overview's figures: what summary says, step by step, also where a span is added up in halves."""

import random
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from usage_ledger.ledger.filters import Filters
from usage_ledger.ledger.moments import format_moment
from usage_ledger.ledger.overview import WAIT_MS, Step, groups, now, spent, steps, waits
from usage_ledger.ledger.reading import open_for_reading
from usage_ledger.ledger.record import Entry, IterationRow, Record
from usage_ledger.ledger.store import Store
from usage_ledger.ledger.summary import summarize

FIRST = datetime(2026, 11, 1, tzinfo=UTC)
LAST = datetime(2026, 11, 11, tzinfo=UTC)
CACHED = "cache_read_input_tokens"


def record(number: int, moment: datetime, **more: Any) -> Record:
    given = {"host": "h", "path": "/v1/messages", "usage_state": "complete", "http_status": 200, "total_cost": "0.1"}
    return Record(id=f"{number:04}", occurred_at=format_moment(moment), **(given | more))


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """Rows by chance, some of them with iterations that were spent on other models, priced, unpriced or corrected."""
    chance = random.Random(7)
    store = Store(tmp_path / "usage.db", "normal", "abc")
    for number in range(300):
        moment = FIRST + timedelta(seconds=chance.randrange(10 * 86400))
        counts = {name: chance.randrange(1000) for name in ("input_tokens", "output_tokens", "cache_read_input_tokens")}
        more: dict[str, Any] = {
            "model": chance.choice(["opus", "sonnet"]),
            "account_id": chance.choice("abc"),
            "tag": chance.choice([None, "t"]),
            "credential_kind": chance.choice(["api_key", "api_key", "oauth"]),
            "total_cost": chance.choice(["0.25", "1.5", None]),
            "requires_manual_review": chance.choice([0, 0, 1]),
            "http_status": chance.choice([200, 200, 529]),
        }
        one = record(number, moment, **counts, **more, total_tokens=sum(counts.values()))
        iterations = []
        if number % 10 == 0:
            one.total_cost = None if number % 40 == 20 else "3"
            one.metadata = '{"_manually_updated":true}' if number % 40 == 30 else "{}"  # then its iterations are not it
            first = (counts["input_tokens"] // 2, counts["output_tokens"] // 2)
            rest = (counts["input_tokens"] - first[0], counts["output_tokens"] - first[1])
            iterations = [
                IterationRow(
                    one.id, 0, "message", one.model, 1, *first, 0, 0, 0, counts["cache_read_input_tokens"], "1"
                ),
                IterationRow(one.id, 1, "advisor", "haiku", 1, *rest, total_cost="2"),
            ]
        store.write([Entry(one, iterations)], [])
    store.close()
    return tmp_path / "usage.db"


LENGTHS = {"hour": 2, "day": 10, "month": 100}
"""Days that are told by hours, days and months."""


@pytest.mark.parametrize("days", LENGTHS.values(), ids=LENGTHS)
def test_figures_are_those_of_the_summary(ledger: Path, days: int) -> None:
    span = steps(FIRST, FIRST + timedelta(days=days))
    length = len(span[0].name)
    filters = Filters(since=span[0].since, until=span[-1].until)
    with open_for_reading(ledger) as reader:
        found = groups(reader, span)
        costs = defaultdict[tuple[str, str], float](float)
        tokens = defaultdict[tuple[str, str], int](int)
        for each in spent(reader, span, found):
            costs[each.step, each.model] += each.cost
            tokens[each.step, each.model] += each.tokens
        wanted = defaultdict[tuple[str, str], list[float]](lambda: [0, 0])
        for sums in summarize(reader, filters, ("hour", "model")):
            key = (str(sums.keys[0]).replace(" ", "T")[:length], str(sums.keys[1]))
            wanted[key][0] += float(sums.books.billed)
            wanted[key][1] += sums.total_tokens
        assert {key for key, value in tokens.items() if value} == {key for key, value in wanted.items() if value[1]}
        for key, (cost, count) in wanted.items():
            assert costs[key] == pytest.approx(cost)
            assert tokens[key] == count
        (total,) = summarize(reader, filters, ())
    assert sum(each.requests for each in found) == total.requests
    assert sum(each.flagged for each in found) == total.flagged
    assert sum(each.unpriced for each in found) == total.books.unpriced
    assert sum(each.tokens for each in found) == total.total_tokens
    assert sum(each.cost for each in found) == pytest.approx(float(total.books.billed))
    assert sum(each.listed for each in found) == pytest.approx(float(total.books.subscription))


def test_parts_of_a_span_make_the_whole(ledger: Path) -> None:
    span = steps(FIRST, LAST)
    with open_for_reading(ledger) as reader:
        whole = groups(reader, span)
        halves = groups(reader, span[:4]) + groups(reader, span[4:])
        moved = [spent(reader, part, []) for part in (span, span[:4], span[4:])]
    assert len(whole) > 0
    assert halves == whole
    assert len(moved[0]) > 0
    assert sorted(moved[1] + moved[2]) == sorted(moved[0])


def test_a_span_has_its_steps_also_where_nothing_happened() -> None:
    day = timedelta(days=1)
    assert [step.name for step in steps(FIRST, FIRST + 3 * day)] == ["2026-11-01", "2026-11-02", "2026-11-03"]
    assert [step.name for step in steps(FIRST, FIRST + 2 * day)][:2] == ["2026-11-01T00", "2026-11-01T01"]
    assert [len(steps(FIRST, FIRST + days * day)) for days in (1, 2, 3, 92, 93, 400)] == [24, 48, 3, 92, 4, 14]
    assert steps(FIRST + day, FIRST + 100 * day)[0] == (
        Step("2026-11", "2026-11-02T00:00:00.000Z", "2026-12-01T00:00:00.000Z")
    )


@pytest.mark.parametrize("days", [1, 2, 3, 30, 100, 400])
def test_steps_follow_each_other(days: int) -> None:
    span = steps(FIRST, FIRST + timedelta(days=days))
    assert (span[0].since, span[-1].until) == (format_moment(FIRST), format_moment(FIRST + timedelta(days=days)))
    assert all(one.until == other.since for one, other in pairwise(span))
    assert len({step.name for step in span}) == len(span)


@pytest.mark.parametrize("text", ["1e999", "nan", "-5", "abc", "", ".5", "9" * 400])
def test_what_is_no_amount_costs_nothing_and_has_no_price(tmp_path: Path, text: str) -> None:
    """Another program may have put it there; it is what summary makes of it."""
    store = Store(tmp_path / "usage.db", "normal", "abc")
    store.write([Entry(record(1, FIRST, total_cost=text)), Entry(record(2, FIRST, total_cost="2"))], [])
    store.close()
    with open_for_reading(tmp_path / "usage.db") as reader:
        (found,) = groups(reader, steps(FIRST, LAST))
        (total,) = summarize(reader, Filters(), ())
    assert (found.cost, found.unpriced) == (2, 1) == (total.books.billed, total.books.unpriced)


def test_counts_beyond_any_measure_are_added_up(tmp_path: Path) -> None:
    store = Store(tmp_path / "usage.db", "normal", "abc")
    store.write([Entry(record(number, FIRST, input_tokens=2**62)) for number in range(3)], [])
    store.close()
    with open_for_reading(tmp_path / "usage.db") as reader:
        (found,) = groups(reader, steps(FIRST, LAST))
    assert found.input == 3 * 2**62


def test_waits_are_told_by_their_half_and_their_most(tmp_path: Path) -> None:
    store = Store(tmp_path / "usage.db", "normal", "abc")
    times = [*range(100, 2100, 20), None]
    store.write([Entry(record(n, FIRST, time_to_first_token_ms=ms)) for n, ms in enumerate(times)], [])
    store.close()
    with open_for_reading(tmp_path / "usage.db") as reader:
        (told,) = waits(reader, steps(FIRST, LAST)).values()
    assert told.half == pytest.approx(1100, abs=WAIT_MS)
    assert told.most == pytest.approx(2000, abs=WAIT_MS)


def test_what_is_now_is_told(tmp_path: Path) -> None:
    store = Store(tmp_path / "usage.db", "normal", "abc")
    today, before = datetime.now(UTC), datetime.now(UTC) - timedelta(days=2)
    rows = [
        record(1, today, total_cost="0.1"),
        record(2, today, total_cost="0.2"),
        record(3, before, total_cost="5"),
        record(4, before, requires_manual_review=1),
        record(5, today, usage_state="pending", total_cost=None),
        record(6, today, total_cost=None),
        record(7, today, total_cost="9", credential_kind="oauth"),
    ]
    store.write([Entry(each) for each in rows], [])
    store.close()
    with open_for_reading(tmp_path / "usage.db") as reader:
        told = now(reader)
    assert (told.flagged, told.in_flight) == (1, 1)
    assert told.today == pytest.approx(0.3)
