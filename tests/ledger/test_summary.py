"""Summaries: every token and every cent is in exactly one group, under the model it was spent on."""

import random
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from threading import Thread
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from usage_ledger.ledger import halves
from usage_ledger.ledger.columns import TOTALLED
from usage_ledger.ledger.filters import Filters
from usage_ledger.ledger.money import Books
from usage_ledger.ledger.reading import open_for_reading
from usage_ledger.ledger.record import Entry, IterationRow, Record
from usage_ledger.ledger.store import Store
from usage_ledger.ledger.summary import COUNTS, GROUPS, Sums, _at_once, client, summarize


@pytest.fixture(autouse=True, params=["in one", "in halves"])
def _ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large ledger is added up by two threads, half of it by each; here all are, and what comes of it is the same."""
    if request.param == "in halves":
        monkeypatch.setattr(halves, "MANY", 0)


def entry(id_: str, *iterations: IterationRow, **fields: Any) -> Entry:
    given = {"occurred_at": "2026-11-01T08:00:00.000Z", "host": "h", "path": "/v1/messages", **fields}
    return Entry(Record(id=id_, **({"usage_state": "complete"} | given)), list(iterations))


def fill(path: Path, *entries: Entry) -> Path:
    with closing(Store(path, "normal", "abc")) as store:
        store.write(list(entries), [])
    return path


def summary(path: Path, *by: str, zone: str | None = None, **filters: Any) -> list[Sums]:
    with open_for_reading(path) as ledger:
        return list(summarize(ledger, Filters(**filters), by, ZoneInfo(zone) if zone else None))


def told(sums: Sequence[Sums], *names: str) -> list[tuple[Any, ...]]:
    """The keys of each group, and some of its counts."""
    return [(*each.keys, each.requests, *(each.counts[name] for name in names)) for each in sums]


def advised(id_: str = "a", **fields: Any) -> Entry:
    """A request to Sonnet that asked Opus, was searched for, and declined once."""
    return entry(
        id_,
        IterationRow(id_, 0, "message", None, 1, input_tokens=10, output_tokens=1, total_cost="0.1"),
        IterationRow(id_, 1, "advisor_message", "opus", 1, input_tokens=20, output_tokens=2, total_cost="0.5"),
        IterationRow(id_, 2, "message", None, 1, cache_read_input_tokens=5, total_cost="0.01"),
        IterationRow(id_, 3, "message", "fable", None, input_tokens=99),
        **{
            "model": "sonnet",
            "input_tokens": 30,
            "output_tokens": 3,
            "cache_read_input_tokens": 5,
            "web_search_requests": 1,
            "thinking_tokens": 2,
            "total_cost": "0.62",
            **fields,
        },
    )


def test_without_groups_it_is_all_rows(tmp_path: Path) -> None:
    ledger = fill(tmp_path / "usage.db", advised(), entry("b", input_tokens=1, requires_manual_review=1))
    (sums,) = summary(ledger)
    assert (sums.keys, sums.requests, sums.flagged, sums.total_tokens) == ((), 2, 1, 39)
    assert sums.counts == dict.fromkeys(COUNTS, 0) | {
        "input_tokens": 31,
        "output_tokens": 3,
        "cache_read_input_tokens": 5,
        "thinking_tokens": 2,
        "web_search_requests": 1,
    }
    assert sums.books == Books(Decimal("0.62"), Decimal(0), unpriced=1, unsettled=0)


def test_by_model_an_advisors_tokens_and_cost_stand_under_the_advisors_model(tmp_path: Path) -> None:
    ledger = fill(tmp_path / "usage.db", advised(), entry("b", model="opus", input_tokens=7, total_cost="0.02"))
    opus, sonnet = summary(ledger, "model")
    assert told([opus, sonnet], "input_tokens", "output_tokens", "cache_read_input_tokens") == [
        ("opus", 2, 27, 2, 0),
        ("sonnet", 1, 10, 1, 5),
    ]
    assert (opus.books.billed, sonnet.books.billed) == (Decimal("0.52"), Decimal("0.12"))
    assert (opus.counts["web_search_requests"], sonnet.counts["web_search_requests"]) == (0, 1)
    assert (opus.counts["thinking_tokens"], sonnet.counts["thinking_tokens"]) == (0, 2)


def test_a_request_is_one_of_a_models_however_many_iterations_that_model_has(tmp_path: Path) -> None:
    models = [None, "opus", "sonnet", "opus", "haiku"]
    iterations = [IterationRow("a", place, "message", model, 1, input_tokens=1) for place, model in enumerate(models)]
    ledger = fill(
        tmp_path / "usage.db", entry("a", *iterations, model="sonnet", input_tokens=5), entry("b", model="opus")
    )
    assert told(summary(ledger, "model"), "input_tokens") == [("haiku", 1, 1), ("opus", 2, 2), ("sonnet", 1, 2)]


def test_by_anything_else_a_request_is_one(tmp_path: Path) -> None:
    ledger = fill(tmp_path / "usage.db", advised(account_id="x"))
    assert told(summary(ledger, "account"), "input_tokens") == [("x", 1, 30)]


def test_a_corrected_row_is_what_its_columns_say(tmp_path: Path) -> None:
    ledger = fill(tmp_path / "usage.db", advised(metadata='{"_manually_updated":true}'))
    (sums,) = summary(ledger, "model")
    assert told([sums], "input_tokens") == [("sonnet", 1, 30)]
    assert sums.books.billed == Decimal("0.62")


def test_iterations_that_do_not_add_up_leave_the_row_as_it_is(tmp_path: Path) -> None:
    ledger = fill(tmp_path / "usage.db", advised(input_tokens=31))
    assert told(summary(ledger, "model"), "input_tokens") == [("sonnet", 1, 31)]


def test_iterations_without_costs_leave_the_cost_with_the_row(tmp_path: Path) -> None:
    """As an older program wrote them; nothing is added or lost."""
    ledger = fill(tmp_path / "usage.db", advised())
    with closing(sqlite3.connect(ledger)) as connection:
        connection.execute("UPDATE usage_iterations SET total_cost = NULL")
        connection.commit()
    opus, sonnet = summary(ledger, "model")
    assert (opus.books, sonnet.books.billed) == (Books(Decimal(0), Decimal(0), 0, 0), Decimal("0.62"))


def test_subscriptions_stand_apart_and_what_has_no_cost_is_counted(tmp_path: Path) -> None:
    ledger = fill(
        tmp_path / "usage.db",
        advised("a", credential_kind="oauth"),
        entry("b", total_cost="1", model="sonnet"),
        entry("c", model="sonnet"),
        entry("d", model="sonnet", usage_state="partial", requires_manual_review=1),
        entry("e", model="opus", usage_state="pending"),
    )
    opus, sonnet = summary(ledger, "model")
    assert opus.books == Books(Decimal(0), Decimal("0.5"), 0, 1)
    assert sonnet.books == Books(Decimal(1), Decimal("0.12"), 1, 1)
    assert (opus.flagged, sonnet.flagged) == (0, 1)


@pytest.mark.parametrize(
    ("zone", "days", "hours"),
    [
        (None, ["2026-11-01", "2026-11-02"], ["2026-11-01 22", "2026-11-01 23", "2026-11-02 00"]),
        ("Europe/Berlin", ["2026-11-01", "2026-11-02"], ["2026-11-01 23", "2026-11-02 00", "2026-11-02 01"]),
        ("Asia/Kolkata", ["2026-11-02"], ["2026-11-02 04", "2026-11-02 05"]),
        ("America/New_York", ["2026-11-01"], ["2026-11-01 17", "2026-11-01 18", "2026-11-01 19"]),
    ],
)
def test_days_and_hours_are_those_of_the_zone(
    tmp_path: Path, zone: str | None, days: list[str], hours: list[str]
) -> None:
    moments = ["2026-11-01T22:59:59.999Z", "2026-11-01T23:00:00.000Z", "2026-11-02T00:00:00.000Z"]
    ledger = fill(tmp_path / "usage.db", *(entry(moment, occurred_at=moment) for moment in moments))
    assert [each.keys[0] for each in summary(ledger, "day", zone=zone)] == days
    assert [each.keys[0] for each in summary(ledger, "hour", zone=zone)] == hours


def test_an_hour_that_the_clock_shows_twice_is_two_groups(tmp_path: Path) -> None:
    """The end of summer time: 2:30 in Berlin is 0:30 and 1:30 in UTC."""
    moments = ["2026-10-25T00:30:00.000Z", "2026-10-25T01:30:00.000Z"]
    ledger = fill(tmp_path / "usage.db", *(entry(moment, occurred_at=moment) for moment in moments))
    assert told(summary(ledger, "hour", zone="Europe/Berlin")) == [
        ("2026-10-25 02", 1),
        ("2026-10-25 02 +01:00", 1),
    ]


@pytest.mark.parametrize(
    ("user_agent", "name"),
    [
        ("claude-cli/2.0.1 (external, cli)", "claude-cli"),
        ("Anthropic/Python 0.70.0", "Anthropic/Python"),
        ("python-httpx/0.28.1", "python-httpx"),
        ("curl/8.5.0", "curl"),
        ("tool/v1.2", "tool"),
        ("Mozilla", "Mozilla"),
        ("größe/1", "größe"),
        ("  ", None),
        ("", None),
        (None, None),
    ],
)
def test_a_client_is_the_program_without_its_version(user_agent: str | None, name: str | None) -> None:
    assert client(None if user_agent is None else user_agent.encode()) == name


def test_by_client_rows_of_all_versions_are_one_group(tmp_path: Path) -> None:
    agents = ['{"user_agent":"claude-cli/1.0"}', '{"user_agent":"claude-cli/2.0 (x)"}', "{}", "[1]"]
    ledger = fill(tmp_path / "usage.db", *(entry(str(n), metadata=agent) for n, agent in enumerate(agents)))
    assert told(summary(ledger, "client")) == [(None, 2), ("claude-cli", 2)]


def test_filters_choose_the_rows(tmp_path: Path) -> None:
    ledger = fill(tmp_path / "usage.db", advised("a"), entry("b", model="opus", tag="t"))
    assert told(summary(ledger, "tag", tags=("t",))) == [("t", 1)]
    assert told(summary(ledger, "model", models=("sonnet",))) == [("opus", 1), ("sonnet", 1)]
    assert summary(ledger, "model", models=("none",)) == []


def test_what_another_program_made_of_rows_is_no_failure(tmp_path: Path) -> None:
    ledger = fill(tmp_path / "usage.db", *(advised(id_) for id_ in "abcd"))
    with closing(sqlite3.connect(ledger)) as connection:
        connection.execute("UPDATE usage_records SET metadata = '{bad' WHERE id = 'a'")
        connection.execute("UPDATE usage_records SET occurred_at = 'yesterday' WHERE id = 'b'")
        connection.execute("UPDATE usage_records SET total_cost = CAST(x'ff' AS TEXT) WHERE id = 'c'")
        connection.execute("UPDATE usage_iterations SET total_cost = 'much' WHERE record_id = 'd'")
        connection.execute("UPDATE usage_records SET model = CAST(x'ff' AS TEXT), occurred_at = CAST(x'ff' AS TEXT)")
        connection.commit()
    for group in GROUPS:
        for zone in (None, "Europe/Berlin"):
            assert sum(each.requests for each in summary(ledger, group, zone=zone)) >= 4


@pytest.mark.parametrize("by", [[], *([name] for name in GROUPS), ["day", "model"], ["model", "key", "tag"]])
def test_nothing_is_lost_or_counted_twice(tmp_path: Path, by: list[str]) -> None:
    """Whatever they are grouped by, the groups add up to the rows, worked out apart from SQL."""
    chance = random.Random(1)
    entries = []
    for number in range(300):
        fields: dict[str, Any] = {
            "occurred_at": f"2026-11-0{1 + number % 3}T{number % 24:02}:00:00.000Z",
            "tag": chance.choice([None, "x", "y"]),
            "credential_kind": chance.choice(["api_key", "oauth"]),
        }
        if chance.random() < 0.5:
            entries.append(advised(str(number), **fields))
        else:
            cost = chance.choice([None, "0.001", "2"])
            entries.append(
                entry(str(number), input_tokens=chance.randrange(99), total_cost=cost, model="opus", **fields)
            )
    ledger = fill(tmp_path / "usage.db", *entries)
    sums = summary(ledger, *by)
    expected: Counter[str] = Counter()
    for each in entries:
        for name in COUNTS:
            expected[name] += getattr(each.record, name)
    assert {name: sum(each.counts[name] for each in sums) for name in COUNTS} == {
        name: expected[name] for name in COUNTS
    }
    costs = [(each.record.credential_kind, Decimal(each.record.total_cost or 0)) for each in entries]
    assert sum(each.books.billed for each in sums) == sum(cost for kind, cost in costs if kind != "oauth")
    assert sum(each.books.subscription for each in sums) == sum(cost for kind, cost in costs if kind == "oauth")
    assert sum(each.books.unpriced for each in sums) == sum(each.record.total_cost is None for each in entries)
    if "model" not in by:
        assert sum(each.requests for each in sums) == 300


def any_entry(chance: random.Random, id_: str) -> Entry:
    """A row as nobody would think of it, with iterations that may be all that is billed."""

    def counts(most: int = 3) -> dict[str, int]:
        return {name: chance.choice([0, chance.randrange(most)]) for name in TOTALLED}

    def cost() -> str | None:
        return chance.choice([None, "0", "0.1", "0.0000000001", "12", "10.5", "0." + "3" * 30, "9" * 25, "x", "1e3"])

    iterations = [
        IterationRow(id_, place, None, chance.choice([None, "m", "n", ""]), chance.choice([1, 1, 0, None]), **counts())
        for place in range(chance.choice([0, 0, 1, 2, 4]))
    ]
    for each in iterations:
        each.total_cost = cost()
    billed = {name: sum(getattr(each, name) for each in iterations if each.billed) for name in TOTALLED}
    return entry(
        id_,
        *iterations,
        occurred_at=f"2026-11-{chance.randrange(1, 4):02}T{chance.randrange(24):02}:00:00.000Z",
        model=chance.choice("mno"),
        account_id=chance.choice(["a", "b", "bücher"]),
        api_key_hint=chance.choice([None, "k"]),
        tag=chance.choice([None, "", "a", "a\0b", "a\0c", "A", "é", "\uffff", "\U0001f4ca"]),
        service_tier=chance.choice([None, "batch"]),
        usage_state=chance.choice(["complete", "complete", "partial", "missing", "pending", "none"]),
        credential_kind=chance.choice(["api_key", "oauth", "none"]),
        requires_manual_review=chance.randrange(2),
        metadata=chance.choice(["{}", "{}", '{"_manually_updated":true}']),
        web_search_requests=chance.randrange(3),
        total_cost=cost(),
        **chance.choice([billed, counts(10**15)]),
    )


@pytest.mark.parametrize("seed", range(20))
def test_in_halves_it_is_the_same_as_in_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Whatever the rows, how far apart they are, the filters and the groups; also in the groups' order."""
    chance = random.Random(seed)
    ledger = fill(tmp_path / "usage.db", *(any_entry(chance, str(number)) for number in range(chance.choice([1, 80]))))
    with closing(sqlite3.connect(ledger)) as connection, connection:
        for rowid in chance.sample([-(2**63), -7, 0, 1000, 2**62, 2**63 - 1], 3):
            connection.execute("UPDATE OR IGNORE usage_records SET rowid = ? WHERE id = ?", (rowid, str(rowid % 79)))
        for raw in (b"\xff", b"\xfe", b"a\xff") * 5:  # two of them read as the same text
            change = "UPDATE usage_records SET tag = CAST(? AS TEXT) WHERE id = ?"
            connection.execute(change, (raw, str(chance.randrange(80))))
    for _ in range(10):
        by = chance.sample([*GROUPS], chance.randrange(4))
        filters: dict[str, Any] = {
            "since": chance.choice([None, "2026-11-02"]),
            "until": chance.choice([None, "2026-11-03"]),
            "models": chance.choice([(), ("m",), ("*",), ("m", "n*")]),
            "tags": chance.choice([(), (), ("a*",)]),
            "flagged": chance.random() < 0.2,
        }
        found = []
        for many in (2**65, 0):
            monkeypatch.setattr(halves, "MANY", many)
            found.append([(each, each.fields()) for each in summary(ledger, *by, **filters)])
        assert found[0] == found[1], (by, filters)


@pytest.mark.parametrize("filters", [{"since": "2026-11-01"}, {"until": "2026-12-01"}, {"flagged": True}])
def test_a_filter_that_has_an_index_is_left_to_it(tmp_path: Path, filters: dict[str, Any]) -> None:
    """Else each thread would read its half of all that was ever written."""
    ledger = fill(tmp_path / "usage.db", *(advised(f"{number:03}") for number in range(100)))
    statements: list[str] = []
    with open_for_reading(ledger) as reader:
        reader.connection.set_trace_callback(statements.append)
        list(summarize(reader, Filters(**filters), ("day",)))
        reader.connection.set_trace_callback(None)
        (asked,) = [each for each in statements if "WITH chosen" in each]
        plan = [row[3] for row in reader.connection.execute(f"EXPLAIN QUERY PLAN {asked}")]
    assert any("USING INDEX usage_records_" in step for step in plan)
    assert not any(step in ("SCAN usage_records", "SEARCH usage_records USING INTEGER PRIMARY KEY") for step in plan)


def test_a_failure_in_a_thread_is_raised_where_somebody_waits_for_it() -> None:
    def failing() -> Iterator[int]:
        yield 1
        raise sqlite3.DatabaseError("database disk image is malformed")

    with pytest.raises(sqlite3.DatabaseError, match="malformed"):
        _at_once(lambda: iter([1]), failing)
    assert _at_once(lambda: iter([1]), lambda: iter([2, 3])) == [[1], [2, 3]]


def test_where_no_thread_is_to_be_had_all_is_done_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: Thread) -> None:
        raise RuntimeError(f"can't start new thread {thread.name}")

    monkeypatch.setattr(Thread, "start", refuse)
    assert _at_once(lambda: iter([1]), lambda: iter([2, 3])) == [[1], [2, 3]]
