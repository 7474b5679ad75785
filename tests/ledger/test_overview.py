"""The overview's figures: what summary says, step by step, also where a span is added up in halves."""

import random
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from usage_ledger.ledger.filters import Filters, format_moment
from usage_ledger.ledger.overview import WAIT_MS, groups, middle, now, spent, step_of, steps, waits
from usage_ledger.ledger.reading import open_for_reading
from usage_ledger.ledger.record import Entry, IterationRow, Record
from usage_ledger.ledger.store import Store
from usage_ledger.ledger.summary import summarize

FIRST = datetime(2026, 11, 1, tzinfo=UTC)
LAST = datetime(2026, 11, 11, tzinfo=UTC)
CACHED = "cache_read_input_tokens"
SPAN = (format_moment(FIRST), format_moment(LAST))


def record(number: int, moment: datetime, **more: Any) -> Record:
    given = {"host": "h", "path": "/v1/messages", "usage_state": "complete", "http_status": 200, "total_cost": "0.1"}
    return Record(id=f"{number:04}", occurred_at=format_moment(moment), **(given | more))


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """Rows by chance, some of them with iterations that were spent on other models."""
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
            one.total_cost = "3"
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


@pytest.mark.parametrize("step", ["hour", "day", "month"])
def test_figures_are_those_of_the_summary(ledger: Path, step: str) -> None:
    with open_for_reading(ledger) as reader:
        found = groups(reader, *SPAN, step)
        costs = defaultdict[tuple[str, str], float](float)
        tokens = defaultdict[tuple[str, str], int](int)
        for each in spent(reader, *SPAN, step, found):
            costs[each.step, each.model] += each.cost
            tokens[each.step, each.model] += each.tokens
        wanted = defaultdict[tuple[str, str], list[float]](lambda: [0, 0])
        for sums in summarize(reader, Filters(), ("hour", "model")):
            key = (str(sums.keys[0]).replace(" ", "T")[: {"hour": 13, "day": 10, "month": 7}[step]], str(sums.keys[1]))
            wanted[key][0] += float(sums.books.billed)
            wanted[key][1] += sums.total_tokens
        assert {key for key, value in tokens.items() if value} == {key for key, value in wanted.items() if value[1]}
        for key, (cost, count) in wanted.items():
            assert costs[key] == pytest.approx(cost)
            assert tokens[key] == count
        (total,) = summarize(reader, Filters(), ())
    assert sum(each.requests for each in found) == total.requests
    assert sum(each.flagged for each in found) == total.flagged
    assert sum(each.unpriced for each in found) == total.books.unpriced
    assert sum(each.tokens for each in found) == total.total_tokens


@pytest.mark.parametrize("step", ["hour", "day"])
def test_halves_of_a_span_make_the_whole(ledger: Path, step: str) -> None:
    cut = format_moment(middle(FIRST, LAST, step))
    with open_for_reading(ledger) as reader:
        halves = groups(reader, SPAN[0], cut, step) + groups(reader, cut, SPAN[1], step)
        whole = groups(reader, *SPAN, step)
    assert len(halves) > 0
    assert {each[:5] for each in halves} == {each[:5] for each in whole}
    assert len(halves) == len(whole)


def test_a_span_has_its_steps_also_where_nothing_happened() -> None:
    assert steps(FIRST, FIRST + timedelta(days=2), "day") == ["2026-11-01", "2026-11-02"]
    assert steps(FIRST, FIRST + timedelta(hours=3), "hour") == ["2026-11-01T00", "2026-11-01T01", "2026-11-01T02"]
    assert steps(FIRST, datetime(2027, 1, 2, tzinfo=UTC), "month") == ["2026-11", "2026-12", "2027-01"]
    assert [step_of(FIRST, FIRST + timedelta(days=days)) for days in (1, 2, 3, 92, 93)] == [
        *("hour", "hour", "day", "day", "month")
    ]


@pytest.mark.parametrize("days", [1, 2, 3, 30, 100, 400])
def test_a_span_is_cut_between_two_steps(days: int) -> None:
    until = FIRST + timedelta(days=days)
    step = step_of(FIRST, until)
    cut = middle(FIRST, until, step)
    assert FIRST <= cut < until
    assert not set(steps(FIRST, cut, step)) & set(steps(cut, until, step))


def test_waits_are_told_by_their_half_and_their_most(tmp_path: Path) -> None:
    store = Store(tmp_path / "usage.db", "normal", "abc")
    times = [*range(100, 2100, 20), None]
    store.write([Entry(record(n, FIRST, time_to_first_token_ms=ms)) for n, ms in enumerate(times)], [])
    store.close()
    with open_for_reading(tmp_path / "usage.db") as reader:
        (told,) = waits(reader, *SPAN, "day").values()
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
    assert (told.flagged, told.in_flight, str(told.today), told.unpriced_today) == (1, 1, "0.3", 1)
