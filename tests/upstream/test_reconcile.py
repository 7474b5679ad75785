"""Reconciling: every bucket gets the verdict that is true of it, and only what is the same is compared."""

from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from usage_ledger.ledger.bill import Answer, Bucket, CostLine, KeyLine, UsageLine, store_buckets, store_keys
from usage_ledger.ledger.editing import open_for_editing
from usage_ledger.ledger.moments import format_moment
from usage_ledger.ledger.reading import open_for_reading
from usage_ledger.ledger.record import Entry, IterationRow
from usage_ledger.ledger.store import Store
from usage_ledger.upstream.answers import BillError
from usage_ledger.upstream.models import plain_name
from usage_ledger.upstream.reconcile import Result, reconcile
from usage_ledger.upstream.verdicts import Verdict

from tests.cli.test_backfill import FLAGGED, record

DAY = "2026-11-01"
NEXT = "2026-11-02"
MODEL = "claude-sonnet-4-6"
HINT = "sk-ant-api03-R2D...igAA"


def row(id_: str, day: str = DAY, **fields: Any) -> Entry:
    counts = {"input_tokens": 100, "output_tokens": 20, "total_tokens": 120}
    given = {"usage_state": "complete", "model": MODEL, "api_key_hint": HINT, "credential_kind": "api_key", **counts}
    return Entry(record(id_, **{"occurred_at": f"{day}T08:00:00.000Z", **given, **fields}))


def flagged(id_: str, day: str = DAY, **fields: Any) -> Entry:
    return row(id_, day, **{**FLAGGED, "input_tokens": 0, "output_tokens": 0, "total_tokens": 0, **fields})


def line(**fields: Any) -> UsageLine:
    given: dict[str, Any] = {"model": MODEL, "api_key": "apikey_1", "input_tokens": 100, "output_tokens": 20, **fields}
    return UsageLine(**given)


AS_OF = format_moment(datetime.now(UTC))


class Books:
    """A ledger, and what upstream says of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.write()

    def write(self, *entries: Entry) -> None:
        with closing(Store(self.path, "normal", "abc")) as store:
            store.write(list(entries), [])

    def bill(self, *lines: UsageLine, day: str = DAY, hours: int = 24, start: int = 0, origin: str = "api") -> None:
        since = datetime.fromisoformat(day) + timedelta(hours=start)
        bucket = Bucket(format_moment(since), format_moment(since + timedelta(hours=hours)), lines)
        with open_for_editing(self.path) as editor:
            store_buckets(editor, Answer("usage", origin, "test", "{}", AS_OF), [bucket], replace=True)

    def cost(self, *lines: CostLine, day: str = DAY) -> None:
        since = datetime.fromisoformat(day)
        bucket = Bucket(format_moment(since), format_moment(since + timedelta(days=1)), lines)
        with open_for_editing(self.path) as editor:
            store_buckets(editor, Answer("costs", "api", "test", "{}", AS_OF), [bucket])

    def keys(self, *keys: KeyLine) -> None:
        with open_for_editing(self.path) as editor:
            store_keys(editor, Answer("keys", "api", "test", "{}", AS_OF), keys)

    def compare(self, *by: str, since: str = DAY, until: str = "2026-11-03", **more: Any) -> Result:
        with open_for_reading(self.path) as reader:
            span = (f"{since}T00:00:00.000Z", f"{until}T00:00:00.000Z")
            return reconcile(reader, *span, by or ("day", "model"), **more)

    def verdicts(self, *by: str, **more: Any) -> list[Verdict]:
        return [each.verdict for each in self.compare(*by, **more).buckets]


@pytest.fixture
def books(tmp_path: Path) -> Books:
    return Books(tmp_path / "usage.db")


KEY = KeyLine("apikey_1", "team one", HINT, None, "active")


VERDICTS: list[tuple[str, Sequence[Entry], Sequence[UsageLine], Verdict]] = [
    ("the same", [row("a"), row("b")], [line(input_tokens=200, output_tokens=40)], Verdict.MATCHES),
    ("in two lines", [row("a"), row("b")], [line(), line(api_key="apikey_2")], Verdict.MATCHES),
    ("a flagged row", [row("a"), flagged("f")], [line(output_tokens=21)], Verdict.FLAGGED),
    ("a lower bound", [row("a"), flagged("f", input_tokens=9)], [line(input_tokens=150)], Verdict.FLAGGED),
    ("bypassed", [row("a")], [line(input_tokens=101)], Verdict.SHORT),
    ("nothing of ours", [], [line()], Verdict.SHORT),
    ("not billed", [row("a"), row("b")], [line()], Verdict.OVER),
    ("nothing billed", [row("a")], [], Verdict.OVER),
    ("more and less", [row("a")], [line(input_tokens=101, output_tokens=19)], Verdict.DIFFERS),
    ("a batch", [], [line(service_tier="batch")], Verdict.BATCH),
    ("an alias", [row("a")], [line(model="claude-sonnet-4-6-20260301")], Verdict.MATCHES),
    ("a display name", [row("a")], [line(model="Claude Sonnet 4.6")], Verdict.MATCHES),
    ("web searches", [row("a", web_search_requests=2)], [line(web_search_requests=3)], Verdict.SHORT),
    (
        "cache writes",
        [row("a", cache_creation_input_tokens=7, cache_creation_1h_input_tokens=7)],
        [line(cache_creation_5m_input_tokens=7)],
        Verdict.DIFFERS,
    ),
    (
        "cache writes of a duration that upstream did not tell",
        [row("a", cache_creation_input_tokens=7, cache_creation_5m_input_tokens=2)],
        [line(cache_creation_5m_input_tokens=4, cache_creation_1h_input_tokens=3)],
        Verdict.MATCHES,
    ),
    (
        "more of a duration than that can be",
        [row("a", cache_creation_input_tokens=7, cache_creation_5m_input_tokens=5)],
        [line(cache_creation_5m_input_tokens=3, cache_creation_1h_input_tokens=4)],
        Verdict.DIFFERS,
    ),
]


@pytest.mark.parametrize(("ours", "theirs", "verdict"), [each[1:] for each in VERDICTS], ids=[e[0] for e in VERDICTS])
def test_a_bucket_gets_the_verdict_that_is_true_of_it(
    books: Books, ours: list[Entry], theirs: list[UsageLine], verdict: Verdict
) -> None:
    books.write(*ours)
    books.bill(*theirs)
    result = books.compare()
    assert [each.verdict for each in result.buckets] == [verdict]
    assert result.left == (verdict not in (Verdict.MATCHES, Verdict.BATCH))


def test_subscriptions_and_requests_in_flight_are_on_no_bill(books: Books) -> None:
    books.write(row("a"), row("sub", credential_kind="oauth"), row("p", usage_state="pending"))
    books.bill(line())
    (bucket,) = books.compare().buckets
    assert (bucket.verdict, bucket.ours["input_tokens"]) == (Verdict.MATCHES, 100)


def test_iterations_count_under_their_own_model(books: Books) -> None:
    one = row("a", input_tokens=110, output_tokens=22, total_tokens=132)
    one.iterations = [
        IterationRow("a", 0, "message", None, 1, input_tokens=100, output_tokens=20),
        IterationRow("a", 1, "advisor_message", "claude-opus-4-7", 1, input_tokens=10, output_tokens=2),
    ]
    books.write(one)
    books.bill(line(), line(model="claude-opus-4-7", input_tokens=10, output_tokens=2))
    assert books.verdicts() == [Verdict.MATCHES, Verdict.MATCHES]


def test_the_day_is_the_days_of_utc(books: Books) -> None:
    books.write(row("a", occurred_at="2026-11-01T23:59:59.999Z"), row("b", occurred_at="2026-11-02T00:00:00.000Z"))
    books.bill(line())
    books.bill(line(), day=NEXT)
    result = books.compare()
    assert [(each.keys, each.verdict) for each in result.buckets] == [
        ((DAY, MODEL), Verdict.MATCHES),
        ((NEXT, MODEL), Verdict.MATCHES),
    ]


def test_a_tolerance_is_of_each_kind(books: Books) -> None:
    books.write(row("a"))
    books.bill(line(input_tokens=110, output_tokens=25))
    assert books.verdicts(tolerance=10) == [Verdict.MATCHES]
    assert books.verdicts(tolerance=9) == [Verdict.SHORT]


# Keys and workspaces.


def test_rows_find_their_key_by_what_the_console_shows_of_it(books: Books) -> None:
    books.write(row("a"), row("b", api_key_hint="sk-ant-api03-XYZ...zzzz"))
    books.keys(KEY, KeyLine("apikey_2", "two", "sk-ant-api03-XYZ...zzzz", "wrkspc_2", "inactive"))
    books.bill(line(), line(api_key="apikey_2", workspace="wrkspc_2", output_tokens=21))
    result = books.compare("key", "workspace")
    assert [(each.keys, each.verdict) for each in result.buckets] == [
        (("apikey_1", "default"), Verdict.MATCHES),
        (("apikey_2", "wrkspc_2"), Verdict.SHORT),
    ]


def test_keys_that_are_shown_alike_are_not_compared(books: Books) -> None:
    books.write(row("a"))
    books.keys(KEY, KeyLine("apikey_2", "two", HINT, None, "active"))
    books.bill(line())
    assert books.verdicts("key") == [Verdict.UNKNOWN, Verdict.UNKNOWN]
    assert books.verdicts("model") == [Verdict.MATCHES]


def test_a_key_that_is_not_in_the_list_is_of_another_organization(books: Books) -> None:
    books.write(row("a"), row("b", api_key_hint="sk-ant-api03-ELSE...here"))
    books.keys(KEY)
    books.bill(line())
    assert books.verdicts("key") == [Verdict.MATCHES, Verdict.OVER]


def test_a_csv_names_keys_by_their_names(books: Books) -> None:
    books.write(row("a"))
    books.keys(KEY)
    books.bill(line(api_key="team one", workspace="Default"), origin="csv")
    assert books.verdicts("key") == [Verdict.MATCHES]
    with pytest.raises(BillError, match="names of workspaces, where rows have ids"):
        books.compare("workspace")


def test_without_the_list_of_keys_they_are_not_compared(books: Books) -> None:
    books.bill(line())
    with pytest.raises(BillError, match="usage-ledger fetch keys"):
        books.compare("key")


def test_the_default_workspace_has_an_id_in_answers_and_none_in_the_bill(books: Books) -> None:
    books.write(row("a", workspace_id="wrkspc_default"), row("b", workspace_id="wrkspc_2"))
    books.bill(line(), line(workspace="wrkspc_2"))
    result = books.compare("workspace")
    assert [(each.keys, each.verdict) for each in result.buckets] == [
        (("default",), Verdict.MATCHES),
        (("wrkspc_2",), Verdict.MATCHES),
    ]


# Which days.


def test_days_without_a_bill_and_open_days_are_left_out_and_said(books: Books) -> None:
    books.write(row("a"), row("b", NEXT))
    books.bill(line())
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    books.bill(line(), day=today)
    result = books.compare(until=f"{datetime.now(UTC) + timedelta(days=1):%Y-%m-%d}")
    assert [each.keys[0] for each in result.buckets] == [DAY]
    assert result.open_days == [today]
    assert NEXT in result.days_without_bill
    assert books.compare(since=today, until=f"{datetime.now(UTC) + timedelta(days=1):%Y-%m-%d}", takes_open=True).left


@pytest.mark.parametrize("has_another_day", [False, True])
def test_where_there_is_nothing_to_compare_with_it_is_said(books: Books, has_another_day: bool) -> None:
    if has_another_day:
        books.bill(line(), day=NEXT)
    with pytest.raises(BillError, match="there is no bill for the days from 2026-11-01 to 2026-11-01: fetch it"):
        books.compare(until=NEXT)


def test_hours_make_a_day_once_all_of_them_are_there(books: Books) -> None:
    books.write(row("a"))
    for hour in range(23):
        books.bill(*([line()] if hour == 8 else []), hours=1, start=hour)
    with pytest.raises(BillError, match="there is no bill"):
        books.compare(until=NEXT)
    books.bill(hours=1, start=23)
    assert books.verdicts(until=NEXT) == [Verdict.MATCHES]


def test_of_several_sources_the_api_comes_before_the_console(books: Books) -> None:
    books.write(row("a"))
    books.bill(line(output_tokens=999), origin="csv")
    books.bill(line())
    assert books.verdicts() == [Verdict.MATCHES]


# Money.


def cost(amount: str, **fields: Any) -> CostLine:
    given: dict[str, Any] = {"model": MODEL, "cost_type": "tokens", "token_type": "output", **fields}
    return CostLine(amount=amount, **given)


@pytest.mark.parametrize(
    ("amount", "verdict"),
    [
        ("0.0006", Verdict.MATCHES),
        ("0.0006004", Verdict.MATCHES),
        ("0.0007", Verdict.PRICE),
    ],
)
def test_money_is_compared_where_the_tokens_agree(books: Books, amount: str, verdict: Verdict) -> None:
    books.write(row("a", total_cost="0.0006", price_source="x"))
    books.bill(line())
    books.cost(cost(amount))
    result = books.compare()
    assert [(each.ours, each.theirs, each.verdict) for each in result.money] == [
        (Decimal("0.0006"), Decimal(amount), verdict)
    ]
    assert result.left == (verdict is Verdict.PRICE)


def test_money_is_not_compared_where_the_tokens_do_not_agree(books: Books) -> None:
    books.write(row("a", total_cost="0.0006", price_source="x"), row("u", model="claude-opus-9"))
    books.bill(line(output_tokens=21), line(model="claude-opus-9"))
    books.cost(cost("0.5"), cost("0.5", model="claude-opus-9"), cost("0.5", model=None, cost_type="web_search"))
    for by in (("day", "model"), ("model",), ("day",)):
        assert books.compare(*by).money == []


def test_money_of_batches_and_adjustments_is_not_compared(books: Books) -> None:
    books.write(row("a", total_cost="0.0006", price_source="x"))
    books.bill(line(), line(service_tier="batch"))
    books.cost(cost("0.9"))
    assert books.compare().money == []


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("claude-sonnet-4-5-20250929", "claude-sonnet-4-5"),
        ("claude-sonnet-4-5", "claude-sonnet-4-5"),
        ("Claude Sonnet 4.5", "claude-sonnet-4-5"),
        ("Claude Opus 4", "claude-opus-4"),
        ("claude-3-5-haiku-20241022", "claude-3-5-haiku"),
        ("Claude Haiku 3.5", "claude-3-5-haiku"),
        ("Claude 3.5 Haiku", "claude-3-5-haiku"),
        ("claude-3-opus-latest", "claude-3-opus"),
        ("claude-opus-4-1@20250805", "claude-opus-4-1"),
        ("anthropic/claude-opus-4-1", "claude-opus-4-1"),
        ("claude-mythos-5-1", "claude-mythos-5-1"),
        ("claude-sonnet-4-0", "claude-sonnet-4"),
        ("claude-sonnet-4-20250514", "claude-sonnet-4"),
        ("claude-x-20250101-20250102", "claude-x"),
        ("claude-opus-4-10", "claude-opus-4-10"),
        ("another model", "another model"),
    ],
)
def test_names_are_compared_without_their_date(name: str, plain: str) -> None:
    assert plain_name(name) == plain == plain_name(plain)
