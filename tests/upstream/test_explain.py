"""Filling in from the bill: only what a flagged row alone explains, whichever instant upstream bills by."""

import random
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from usage_ledger.ledger.adjustments import Adjustment, adjust
from usage_ledger.ledger.archive import archive
from usage_ledger.ledger.bill import (
    Answer,
    Bucket,
    KeyLine,
    UsageLine,
    store_buckets,
    store_keys,
)
from usage_ledger.ledger.editing import open_for_editing
from usage_ledger.ledger.marks import LedgerError
from usage_ledger.ledger.moments import format_moment
from usage_ledger.ledger.reading import open_for_reading
from usage_ledger.ledger.record import Entry, IterationRow, Record
from usage_ledger.ledger.store import Store
from usage_ledger.upstream import answers
from usage_ledger.upstream.answers import BillError
from usage_ledger.upstream.explain import Explained, Open, explain

from scripts.fake_admin import ADMIN_KEY, FakeAdmin
from scripts.fake_console import ApiKey, Part, Served

KEYS = [ApiKey("apikey_1", "one", "sk-ant-api03-AAA...1111"), ApiKey("apikey_2", "two", "sk-ant-api03-BBB...2222")]
MODELS = {"claude-sonnet-4-5": "claude-sonnet-4-5-20250929", "claude-haiku-4-5": "claude-haiku-4-5-20251001"}
DAY = datetime(2026, 11, 3, tzinfo=UTC)
NAMES = {
    "uncached_input_tokens": "input_tokens",
    "output_tokens": "output_tokens",
    "cache_5m": "cache_creation_5m_input_tokens",
    "cache_1h": "cache_creation_1h_input_tokens",
    "cache_read_input_tokens": "cache_read_input_tokens",
}


@dataclass
class Request:
    """One request as it really was, and how much of its usage the proxy saw: `complete`, `partial` or `missing`."""

    id: str
    start: datetime
    seconds: float = 5
    model: str = "claude-sonnet-4-5"
    key: int = 0
    state: str = "complete"
    counts: tuple[int, ...] = (100, 20, 3, 4, 50)
    tier: str = "standard"

    @property
    def end(self) -> datetime:
        return self.start + timedelta(seconds=self.seconds)

    def served(self) -> Served:
        part = Part(MODELS.get(self.model, self.model), dict(zip(NAMES, self.counts, strict=True)), self.tier)
        return Served(KEYS[self.key], self.start, self.end, [part])

    def entry(self, **more: Any) -> Entry:
        counts = dict.fromkeys(NAMES.values(), 0)
        if self.state != "missing":
            counts = dict(zip(NAMES.values(), self.counts, strict=True))
        if self.state == "partial":
            counts["output_tokens"] = 1
        cache = counts["cache_creation_5m_input_tokens"] + counts["cache_creation_1h_input_tokens"]
        is_flagged = self.state != "complete"
        given = {
            "occurred_at": format_moment(self.start),
            "completed_at": format_moment(self.end),
            "host": "h",
            "path": "/v1/messages",
            "model": self.model,
            "api_key_hint": KEYS[self.key].hint,
            "credential_kind": "api_key",
            "usage_state": self.state,
            "requires_manual_review": int(is_flagged),
            "review_reason": "no_usage_data" if is_flagged else None,
            "cache_creation_input_tokens": cache,
            **counts,
            **more,
        }
        return Entry(Record(id=self.id, **given))


AS_OF = format_moment(datetime.now(UTC))


class Books:
    """A ledger, and an upstream that bills what was served by an instant of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with open_for_editing(self._made()) as editor:
            keys = [KeyLine(key.id, key.name, key.hint, key.workspace, "active") for key in KEYS]
            store_keys(editor, Answer("keys", "api", "test", "{}", AS_OF), keys)

    def _made(self) -> Path:
        self.write()
        return self.path

    def write(self, *entries: Entry) -> None:
        with closing(Store(self.path, "normal", "abc")) as store:
            store.write(list(entries), [])

    def serve(self, *requests: Request) -> None:
        self.write(*(each.entry() for each in requests))

    def bill(self, served: list[Served], width: str = "1d", days: int = 3, by: str = "start", skew: int = 0) -> None:
        admin = FakeAdmin(lambda: served, by, timedelta(seconds=skew))
        asked = {
            "bucket_width": [width],
            "starting_at": [f"{DAY - timedelta(days=1):%Y-%m-%dT%H:%M:%SZ}"],
            "ending_at": [f"{DAY + timedelta(days=days - 1):%Y-%m-%dT%H:%M:%SZ}"],
            "group_by[]": ["api_key_id", "workspace_id", "model", "service_tier"],
            "limit": [str({"1d": 31, "1h": 168, "1m": 1440}[width])],
        }
        with open_for_editing(self.path) as editor:
            while True:
                _, _, body = admin.answer("/v1/organizations/usage_report/messages", asked, ADMIN_KEY)
                buckets, page = answers.usage_page(body)
                store_buckets(editor, Answer("usage", "api", "test", body.decode(), AS_OF), buckets)
                if page is None:
                    break
                asked["page"] = [page]
        admin._server.server_close()

    def explain(self, **more: Any) -> tuple[list[Explained], list[Open]]:
        span = (format_moment(DAY - timedelta(days=1)), format_moment(DAY + timedelta(days=2)))
        with open_for_reading(self.path) as reader:
            return explain(reader, *span, **more)

    def filled(self, **more: Any) -> dict[str, tuple[int, ...]]:
        return {
            each.entry.record.id: tuple(each.counts[name] for name in NAMES.values())
            for each in self.explain(**more)[0]
        }

    def why(self, **more: Any) -> list[str]:
        return [each.why for each in self.explain(**more)[1]]


@pytest.fixture
def books(tmp_path: Path) -> Books:
    return Books(tmp_path / "usage.db")


def at(hour: float) -> datetime:
    return DAY + timedelta(hours=hour)


@pytest.mark.parametrize("state", ["missing", "partial"])
@pytest.mark.parametrize("width", ["1d", "1h", "1m"])
def test_a_row_that_alone_explains_a_difference_gets_it(books: Books, state: str, width: str) -> None:
    requests = [Request("a", at(8)), Request("f", at(9), state=state), Request("b", at(10))]
    books.serve(*requests)
    books.bill([each.served() for each in requests], width)
    assert books.filled() == {"f": (100, 20, 3, 4, 50)}
    assert books.why() == []


def test_cache_writes_of_unknown_duration_get_theirs(books: Books) -> None:
    one = Request("f", at(9), state="partial", counts=(100, 20, 0, 7, 50))
    books.write(one.entry(cache_creation_1h_input_tokens=0))
    books.bill([one.served()])
    assert books.filled() == {"f": (100, 20, 0, 7, 50)}


def test_cache_writes_of_unknown_duration_of_another_row_are_not_guessed(books: Books) -> None:
    other = Request("a", at(8), counts=(100, 20, 0, 7, 50))
    one = Request("f", at(9), state="missing", counts=(100, 20, 5, 0, 50))
    books.write(other.entry(cache_creation_1h_input_tokens=0), one.entry())
    books.bill([other.served(), one.served()])
    assert books.filled() == {}
    assert books.why() == ["cache writes of other rows are of unknown duration"]


def test_of_two_flagged_rows_none_is_filled_in(books: Books) -> None:
    requests = [Request("f", at(9), state="missing"), Request("g", at(15), state="missing")]
    books.serve(*requests)
    books.bill([each.served() for each in requests])
    assert books.filled() == {}
    (left,) = books.explain()[1]
    assert (left.why, [each.id for each in left.candidates]) == ("2 flagged rows could be it", ["f", "g"])


def test_hours_tell_two_rows_apart_that_a_day_does_not(books: Books) -> None:
    requests = [Request("f", at(9), state="missing"), Request("g", at(15), state="missing", counts=(1, 2, 0, 0, 0))]
    books.serve(*requests)
    books.bill([each.served() for each in requests])
    books.bill([each.served() for each in requests], "1h")
    assert books.filled() == {"f": (100, 20, 3, 4, 50), "g": (1, 2, 0, 0, 0)}


def test_keys_and_models_tell_rows_apart(books: Books) -> None:
    requests = [
        Request("f", at(9), state="missing"),
        Request("g", at(9), state="missing", key=1, counts=(1, 2, 0, 0, 0)),
        Request("h", at(9), state="missing", model="claude-haiku-4-5", counts=(5, 6, 0, 0, 0)),
    ]
    books.serve(*requests)
    books.bill([each.served() for each in requests])
    assert books.filled() == {"f": (100, 20, 3, 4, 50), "g": (1, 2, 0, 0, 0), "h": (5, 6, 0, 0, 0)}


@pytest.mark.parametrize("by", ["start", "end"])
@pytest.mark.parametrize("skew", [-30, 0, 30])
def test_streams_across_midnight_tie_their_days_together(books: Books, by: str, skew: int) -> None:
    """The bill may have the long complete stream on either day, and the flagged row is right all the same."""
    requests = [
        Request("long", DAY - timedelta(minutes=5), seconds=600, counts=(1_000, 2_000, 0, 0, 0)),
        Request("f", at(9), state="missing"),
        Request("near", DAY + timedelta(days=1, seconds=-20), seconds=5, counts=(7, 7, 7, 7, 7)),
    ]
    books.serve(*requests)
    books.bill([each.served() for each in requests], by=by, skew=skew)
    assert books.filled() == {"f": (100, 20, 3, 4, 50)}


def test_a_flagged_stream_across_midnight_is_filled_in_from_both_days(books: Books) -> None:
    one = Request("f", DAY - timedelta(minutes=5), seconds=600, state="missing")
    books.serve(one, Request("a", at(9)))
    books.bill([one.served(), Request("a", at(9)).served()], by="end")
    assert books.filled() == {"f": (100, 20, 3, 4, 50)}


def test_another_flagged_row_across_midnight_could_be_it(books: Books) -> None:
    requests = [
        Request("f", at(9), state="missing"),
        Request("g", DAY + timedelta(days=1, seconds=-30), seconds=60, state="missing", counts=(0, 0, 0, 0, 0)),
    ]
    books.serve(*requests)
    books.bill([each.served() for each in requests])
    assert books.filled() == {}


def test_a_row_at_the_edge_of_what_is_billed_stays_open(books: Books) -> None:
    edge = Request("edge", DAY - timedelta(days=1, seconds=30), seconds=5, counts=(9, 9, 9, 9, 9))
    requests = [edge, Request("f", DAY - timedelta(hours=20), state="missing")]
    books.serve(*requests)
    books.bill([each.served() for each in requests], skew=45)
    assert books.filled() == {}
    assert books.why() == ["row edge may be of a time without a bill"]


@pytest.mark.parametrize(
    "blocking",
    [
        {"model": "unknown"},
        {"model": "claude-sonnet-latest-and-greatest"},
        {"api_key_hint": None},
        {"api_key_hint": "sk-ant-api03-ELSE...here"},
        {"usage_state": "complete", "review_reason": "declined_attempt"},
        {"usage_state": "pending", "requires_manual_review": 0, "completed_at": None},
        {"requires_manual_review": 0, "metadata": '{"_accepted":true,"_no_usage_data":true}'},
    ],
)
def test_a_row_of_which_nobody_knows_what_it_used_keeps_others_open(books: Books, blocking: dict[str, Any]) -> None:
    requests = [Request("f", at(9), state="missing"), Request("g", at(9), state="missing")]
    books.write(requests[0].entry(), requests[1].entry(**blocking))
    books.bill([each.served() for each in requests])
    assert books.filled() == {}
    assert books.why() == ["row g may be of this model or key, and nobody knows what it used"]


def test_a_complete_row_that_may_be_of_any_key_keeps_others_open(books: Books) -> None:
    requests = [Request("f", at(9), state="missing"), Request("g", at(10), counts=(900, 900, 0, 0, 0))]
    books.write(requests[0].entry(), requests[1].entry(api_key_hint=None))
    books.bill([each.served() for each in requests])
    assert books.filled() == {}


def test_a_declined_attempt_that_was_accepted_keeps_others_open(books: Books) -> None:
    """Whether it is billed is told by nobody."""
    one, other = Request("f", at(9), state="missing"), Request("g", at(9))
    entry = other.entry(review_reason="declined_attempt", metadata='{"_accepted":true}')
    entry.iterations = [IterationRow("g", 0, "message", None, None, input_tokens=900)]
    books.write(one.entry(), entry)
    books.bill([one.served(), other.served()])
    assert books.filled() == {}


def test_one_that_somebody_has_corrected_does_not(books: Books) -> None:
    one, other = Request("f", at(9), state="missing"), Request("g", at(9))
    entry = other.entry(review_reason="declined_attempt", metadata='{"_manually_updated":true}')
    entry.iterations = [IterationRow("g", 0, "message", None, None, input_tokens=900)]
    books.write(one.entry(), entry)
    books.bill([one.served(), other.served()])
    assert books.filled() == {"f": (100, 20, 3, 4, 50)}


def test_a_complete_row_of_another_organization_does_not_matter(books: Books) -> None:
    one = Request("f", at(9), state="missing")
    books.write(one.entry(), Request("g", at(10)).entry(api_key_hint="sk-ant-api03-ELSE...here"))
    books.bill([one.served()])
    assert books.filled() == {"f": (100, 20, 3, 4, 50)}


def test_a_row_whose_end_nobody_saw_may_be_of_any_hour_after_its_start(books: Books) -> None:
    """A proxy that was killed leaves no end."""
    requests = [
        Request("g", at(8.9), seconds=900, state="missing", counts=(900, 900, 0, 0, 0)),
        Request("f", at(9.5), state="missing"),
    ]
    books.write(requests[0].entry(completed_at=None, review_reason="proxy_stopped"), requests[1].entry())
    books.bill([each.served() for each in requests], "1h", by="end")
    assert books.filled() == {}


def test_web_searches_of_a_row_with_iterations_are_its_own(books: Books) -> None:
    requests = [Request("g", at(8)), Request("f", at(9), state="missing")]
    entry = requests[0].entry(web_search_requests=3)
    counts = {name: getattr(entry.record, name) for name in NAMES.values()}
    entry.iterations = [IterationRow("g", 0, "message", None, 1, **counts, cache_creation_input_tokens=7)]
    books.write(entry, requests[1].entry())
    served = [each.served() for each in requests]
    served[0].billed[0].counts["web_searches"] = 3
    books.bill(served)
    (explained,), left = books.explain()
    assert (explained.counts["web_search_requests"], left) == (0, [])


def test_without_the_list_of_keys_nothing_is_explained(books: Books) -> None:
    one = Request("f", at(9), state="missing")
    books.serve(one)
    books.bill([one.served()])
    with open_for_editing(books.path) as editor:
        editor.connection.execute("DELETE FROM bill_keys")
    with pytest.raises(BillError, match="usage-ledger fetch keys"):
        books.explain()


def test_a_csv_names_keys_by_their_names(books: Books) -> None:
    one = Request("f", at(9), state="missing")
    books.serve(one, Request("other", at(9), key=1, counts=(1, 1, 1, 1, 1)))
    lines = tuple(
        UsageLine(model="claude-sonnet-4-5", api_key=key, **dict(zip(NAMES.values(), counts, strict=True)))
        for key, counts in (("one", one.counts), ("two", (1, 1, 1, 1, 1)))
    )
    bucket = Bucket(format_moment(DAY), format_moment(DAY + timedelta(days=1)), lines)
    with open_for_editing(books.path) as editor:
        store_buckets(editor, Answer("usage", "csv", "test", "", AS_OF), [bucket])
    assert books.filled() == {"f": (100, 20, 3, 4, 50)}


def test_near_what_is_archived_nothing_is_explained(books: Books, tmp_path: Path) -> None:
    requests = [Request("f", at(9), state="missing"), Request("g", at(8))]
    books.serve(*requests)
    books.bill([each.served() for each in requests])
    with open_for_editing(books.path) as editor:
        archive(editor, format_moment(DAY + timedelta(days=1)), tmp_path / "old.db", "", lambda _rows: None)
    with pytest.raises(BillError, match=r"rows before 2026-11-04 are archived.*--since 2026-11-06"):
        books.explain()


def test_what_was_adjusted_without_knowing_the_key_keeps_its_day_open(books: Books) -> None:
    one = Request("f", at(9), state="missing")
    books.serve(one)
    books.bill([one.served()])
    made = Adjustment(f"{DAY:%Y-%m-%d}", "claude-sonnet-4-5", "", "", (100, 20, 3, 4, 50, 0))
    with open_for_editing(books.path) as editor:
        adjust(editor, [made], 0, "early")
    assert books.filled() == {}
    assert books.why() == ["the day was adjusted"]


def test_what_was_adjusted_is_explained(books: Books) -> None:
    one = Request("f", at(9), state="missing")
    books.serve(one)
    books.bill([one.served()])
    made = Adjustment(f"{DAY:%Y-%m-%d}", "claude-sonnet-4-5", "apikey_1", "", (100, 20, 3, 4, 50, 0))
    with open_for_editing(books.path) as editor:
        adjust(editor, [made], 0, "known")
        with pytest.raises(LedgerError, match="somebody else has adjusted"):
            adjust(editor, [made], 0, "again")
    assert (books.filled(), books.why()) == ({}, [])


def test_an_adjustment_for_another_reason_is_not_poured_into_a_row(books: Books) -> None:
    """Adjusted when only the first day's bill was there; the stream across midnight is on the second day's."""
    across = Request("c", DAY - timedelta(minutes=2), seconds=600, counts=(1_000, 200, 30, 40, 500))
    one = Request("f", at(9), state="missing")
    books.serve(across, one)
    books.bill([across.served(), one.served()], by="end")
    day = f"{DAY - timedelta(days=1):%Y-%m-%d}"
    made = Adjustment(day, "claude-sonnet-4-5", "apikey_1", "", (-1_000, -200, -30, -40, -500, 0))
    with open_for_editing(books.path) as editor:
        adjust(editor, [made], 0, "early")
    assert books.filled() == {}


def test_a_complete_row_of_a_model_that_is_not_billed_keeps_others_open(books: Books) -> None:
    one, other = Request("f", at(9), state="missing", counts=(0, 0, 0, 0, 0)), Request("a", at(9))
    books.write(one.entry(), other.entry(model="my-alias"))
    books.bill([one.served(), other.served()])
    assert books.filled() == {}


def test_a_corrected_row_with_iterations_of_other_models_keeps_others_open(books: Books) -> None:
    one = Request("f", at(9), state="missing", model="claude-haiku-4-5", counts=(0, 0, 0, 0, 0))
    both = Request("a", at(9), counts=(100, 20, 0, 0, 0))
    entry = both.entry(input_tokens=150, metadata='{"_manually_updated":true}')
    entry.iterations = [
        IterationRow("a", 0, "message", None, 1, input_tokens=100, output_tokens=19),
        IterationRow("a", 1, "advisor_message", "claude-haiku-4-5", 1, input_tokens=50),
    ]
    books.write(entry, one.entry())
    served = both.served()
    served.billed.append(Part(MODELS["claude-haiku-4-5"], {"uncached_input_tokens": 50}))
    books.bill([served, one.served()])
    assert books.filled() == {}


def test_a_refused_request_without_a_key_does_not_matter(books: Books) -> None:
    one = Request("f", at(9), state="missing")
    nothing = dict.fromkeys((*NAMES.values(), "cache_creation_input_tokens"), 0)
    refused = Request("r", at(9)).entry(usage_state="none", http_status=401, api_key_hint=None, **nothing)
    books.write(one.entry(), refused)
    books.bill([one.served()])
    assert books.filled() == {"f": (100, 20, 3, 4, 50)}


def test_a_flagged_row_with_iterations_is_not_filled_in(books: Books) -> None:
    one = Request("f", at(9), state="partial")
    entry = one.entry()
    entry.iterations = [IterationRow("f", 0, "message", None, 1, input_tokens=100)]
    books.write(entry)
    books.bill([one.served()])
    assert books.filled() == {}


def test_traffic_that_the_proxy_has_not_seen_stays_open(books: Books) -> None:
    books.serve(Request("a", at(9)))
    books.bill([Request("a", at(9)).served(), Request("bypass", at(10)).served()])
    assert books.why() == ["no flagged row is of this time"]


def test_rows_beyond_the_bill_stay_open(books: Books) -> None:
    requests = [Request("a", at(9)), Request("f", at(9), state="missing", counts=(500, 1, 0, 0, 0))]
    books.serve(*requests)
    books.bill([requests[1].served()])
    assert books.why() == ["the rows have more of a kind than was billed"]


def test_batches_and_subscriptions_do_not_matter(books: Books) -> None:
    one = Request("f", at(9), state="missing")
    books.write(one.entry(), Request("sub", at(9), state="missing").entry(credential_kind="oauth"))
    books.bill([one.served(), Request("batch", at(9), tier="batch").served()])
    assert books.filled() == {"f": (100, 20, 3, 4, 50)}


def test_keys_that_are_shown_alike_keep_their_rows_open(books: Books) -> None:
    with open_for_editing(books.path) as editor:
        twin = KeyLine("apikey_9", "twin", KEYS[0].hint, None, "active")
        store_keys(editor, Answer("keys", "api", "test", "{}", AS_OF), [twin])
    one = Request("f", at(9), state="missing")
    books.serve(one)
    books.bill([one.served()])
    assert books.filled() == {}


@pytest.mark.parametrize("seed", range(24))
def test_no_row_is_ever_given_what_it_did_not_use(books: Books, seed: int) -> None:
    """Random traffic of two days, by an upstream with an instant, a clock and a width of its own."""
    dice = random.Random(seed)
    requests = [
        Request(
            id=f"{number:03d}",
            start=DAY - timedelta(hours=23) + timedelta(seconds=dice.uniform(0, 46 * 3_600)),
            seconds=dice.choice([1, 20, 300, 1_200]),
            model=dice.choice(list(MODELS)),
            key=dice.randrange(2),
            state=dice.choices(["complete", "missing", "partial"], [30, 1, 1])[0],
            counts=tuple(dice.randrange(1, 5_000) for _ in NAMES),
        )
        for number in range(dice.choice([20, 120]))
    ]
    odd = [
        {"usage_state": "pending", "requires_manual_review": 0, "completed_at": None},
        {"completed_at": None},
        {"requires_manual_review": 0},
        {"api_key_hint": None},
        {"model": "unknown"},
        {},
    ]
    requests.append(Request("midnight", DAY - timedelta(seconds=dice.uniform(0, 90)), 60, counts=(11, 12, 13, 14, 15)))
    books.serve(*requests)
    other = Request("odd", at(dice.uniform(-20, 20)), 300, state="missing", counts=(21, 22, 23, 24, 25))
    books.write(other.entry(**dice.choice(odd)))
    requests.append(other)
    width = dice.choice(["1m", "1h", "1d"])
    skew = dice.randint(-30, 30)
    books.bill([each.served() for each in requests], width, by=dice.choice(["start", "end"]), skew=skew)
    truth = {each.id: each.counts for each in requests if each.state != "complete"}
    for id_, counts in books.filled().items():
        assert counts == truth[id_]


def test_random_traffic_is_filled_in_at_all(tmp_path: Path) -> None:
    """The test above would pass if nothing ever were."""
    books = Books(tmp_path / "usage.db")
    dice = random.Random(7)
    requests = [
        Request(
            id=f"{number:03d}",
            start=DAY - timedelta(hours=23) + timedelta(minutes=20 * number),
            model=dice.choice(list(MODELS)),
            state="missing" if number % 20 == 0 else "complete",
            counts=tuple(dice.randrange(1, 5_000) for _ in NAMES),
        )
        for number in range(130)
    ]
    books.serve(*requests)
    books.bill([each.served() for each in requests], "1m", by="end", skew=-30)
    assert books.filled() == {each.id: each.counts for each in requests if each.state == "missing"}
