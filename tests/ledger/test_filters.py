"""Filters: values that can only ever be values."""

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from usage_ledger.ledger.filters import Filters
from usage_ledger.ledger.record import Entry, Record
from usage_ledger.ledger.store import Store

ROWS = [
    # id, occurred_at, account, key hint, model, tag, state, flagged
    ("a", "2026-11-01T00:00:00.000Z", "acme", "sk-ant-api03-R2D...igAA", "claude-opus-4-6", "team[1]", "complete", 0),
    ("b", "2026-11-02T00:00:00.000Z", "acme", "sk-ant-api03-R2D...igAA", "claude-opus-4-7", "team1", "partial", 1),
    ("c", "2026-11-03T00:00:00.000Z", "bolt", "sk-ant-api03-C3P...0gAA", "claude-haiku-5", "what?", "missing", 1),
    ("d", "2026-11-04T00:00:00.000Z", "a*me", None, "unknown", None, "none", 0),
    ("e", "2026-11-05T00:00:00.000Z", "o'neil", None, "claude-opus-4-6", "whatx", "pending", 0),
]


@pytest.fixture
def books(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """A ledger with the rows above, open for reading and writing."""
    entries = [
        Entry(
            Record(
                id=id_,
                occurred_at=when,
                account_id=account,
                api_key_hint=key,
                model=model,
                tag=tag,
                usage_state=state,
                requires_manual_review=flagged,
                host="api.anthropic.com",
                path="/v1/messages",
            )
        )
        for id_, when, account, key, model, tag, state, flagged in ROWS
    ]
    with closing(Store(tmp_path / "usage.db", "normal", "abc")) as store:
        store.write(entries, [])
    with closing(sqlite3.connect(tmp_path / "usage.db")) as connection:
        yield connection


def found(books: sqlite3.Connection, filters: Filters) -> str:
    where, values = filters.where()
    return "".join(row[0] for row in books.execute(f"SELECT id FROM usage_records WHERE {where} ORDER BY id", values))


@pytest.mark.parametrize(
    ("filters", "ids"),
    [
        (Filters(), "abcde"),
        (Filters(since="2026-11-02T00:00:00.000Z"), "bcde"),
        (Filters(until="2026-11-02T00:00:00.000Z"), "a"),
        (Filters(since="2026-11-02T00:00:00.000Z", until="2026-11-04T00:00:00.000Z"), "bc"),
        (Filters(accounts=("acme",)), "ab"),
        (Filters(accounts=("acme", "bolt")), "abc"),
        (Filters(keys=("sk-ant-api03-R2D...igAA",)), "ab"),
        (Filters(keys=("sk-*gAA",)), "abc"),
        (Filters(models=("claude-opus-*",)), "abe"),
        (Filters(models=("*",)), "abcde"),
        (Filters(models=("*opus*", "unknown")), "abde"),
        (Filters(models=("claude-opus",)), ""),
        (Filters(models=("CLAUDE-OPUS-*",)), ""),
        (Filters(tags=("*",)), "abce"),
        (Filters(states=("partial", "missing")), "bc"),
        (Filters(flagged=True), "bc"),
        (Filters(flagged=True, models=("claude-opus-*",), accounts=("acme",)), "b"),
    ],
)
def test_several_filters_narrow_and_several_values_of_one_widen(
    books: sqlite3.Connection, filters: Filters, ids: str
) -> None:
    assert found(books, filters) == ids


@pytest.mark.parametrize(
    ("filters", "ids"),
    [
        (Filters(tags=("team[1]",)), "a"),
        (Filters(tags=("team[1]*",)), "a"),
        (Filters(tags=("*[1]",)), "a"),
        (Filters(tags=("[t]*",)), ""),
        (Filters(tags=("what?",)), "c"),
        (Filters(tags=("what?*",)), "c"),
        (Filters(tags=("wha%",)), ""),
        (Filters(tags=("team_",)), ""),
        (Filters(accounts=("o'neil",)), "e"),
        (Filters(accounts=("o'*",)), "e"),
    ],
)
def test_only_the_star_is_special(books: sqlite3.Connection, filters: Filters, ids: str) -> None:
    assert found(books, filters) == ids


@pytest.mark.parametrize(
    "attack", ["' OR '1'='1", "x') OR 1=1 --", "x; DROP TABLE usage_records", '" OR ""="', "' OR '*", "\\' OR 1=1 --"]
)
@pytest.mark.parametrize("field", ["accounts", "keys", "models", "tags", "states"])
def test_sql_in_a_value_matches_nothing_and_harms_nothing(books: sqlite3.Connection, field: str, attack: str) -> None:
    assert found(books, Filters(**{field: (attack,)})) == ""
    assert found(books, Filters()) == "abcde"


@pytest.mark.parametrize("field", ["since", "until"])
def test_sql_in_a_time_is_a_time_that_nothing_lies_between(books: sqlite3.Connection, field: str) -> None:
    """Times come from `as_moment`; even one that does not is bound and cannot reach the statement."""
    attack = "9999' OR 1=1 --" if field == "since" else "0000' OR 1=1 --"
    assert found(books, Filters(**{field: attack})) == ""
    assert found(books, Filters()) == "abcde"


ODD = [
    *("x", "xy", "X", "x'y", "''", '"x"', "x;y", "; DROP TABLE usage_records; --", "' OR '1'='1", "*", "x*", "**", "?"),
    *(
        "x?",
        "[",
        "]",
        "[x]",
        "[^x]",
        "[x-z]",
        "x[",
        "[[]",
        "[?]",
        "[*]",
        "\\",
        "x\\*",
        "%",
        "x%",
        "_",
        "^",
        "-",
        "größe",
    ),
    *(" ", "x ", "two\nlines", "模型📊", "NULL", "1", "?1", ":x", "@x", "$x"),
]
COLUMN_OF = {
    "accounts": "account_id",
    "keys": "api_key_hint",
    "models": "model",
    "tags": "tag",
    "states": "usage_state",
}


@pytest.fixture(scope="module")
def odd_books(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    """A ledger in which every text that a filter asks about is odd; a row's id is the text."""
    path = tmp_path_factory.mktemp("odd") / "usage.db"
    when = "2026-11-01T00:00:00.000Z"
    entries = [
        Entry(Record(id=text, occurred_at=when, host="h", path="/", **dict.fromkeys(COLUMN_OF.values(), text)))
        for text in ODD
    ]
    with closing(Store(path, "normal", "abc")) as store:
        store.write(entries, [])
    with closing(sqlite3.connect(path)) as connection:
        yield connection


def means(wanted: str, text: str) -> bool:
    """Whether a filter means a text: what a star stands for is anything, and all else stands for itself."""
    return re.fullmatch(".*".join(map(re.escape, wanted.split("*"))), text, re.DOTALL) is not None


@pytest.mark.parametrize("field", COLUMN_OF)
def test_every_filter_takes_every_value_for_what_it_says(odd_books: sqlite3.Connection, field: str) -> None:
    for wanted in [*ODD, *(f"{text}*" for text in ODD), *(f"*{text}" for text in ODD), *(f"*{text}*" for text in ODD)]:
        where, values = Filters(**{field: (wanted,)}).where()
        rows = odd_books.execute(f"SELECT id FROM usage_records WHERE {where}", values)
        assert {row[0] for row in rows} == {text for text in ODD if means(wanted, text)}, wanted


@pytest.mark.parametrize("field", COLUMN_OF)
def test_odd_values_together_mean_any_of_them(odd_books: sqlite3.Connection, field: str) -> None:
    wanted = (*ODD[::3], "[x*", "*?")
    where, values = Filters(**{field: wanted}).where()
    rows = odd_books.execute(f"SELECT id FROM usage_records WHERE {where}", values)
    assert {row[0] for row in rows} == {text for text in ODD if any(means(one, text) for one in wanted)}


@pytest.mark.parametrize("text", ODD)
def test_times_are_compared_as_the_text_they_are(odd_books: sqlite3.Connection, text: str) -> None:
    for filters, matches in (
        (Filters(since=text), text <= "2026-11-01T00:00:00.000Z"),
        (Filters(until=text), text > "2026-11-01T00:00:00.000Z"),
    ):
        where, values = filters.where()
        (count,) = odd_books.execute(f"SELECT count(*) FROM usage_records WHERE {where}", values).fetchone()
        assert count == (len(ODD) if matches else 0)
