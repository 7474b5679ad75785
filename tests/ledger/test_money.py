"""Money: exact amounts, as text in the ledger and as sums of it."""

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from decimal import Decimal, Inexact
from functools import reduce

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from usage_ledger.ledger.money import BOOKS, EXACT, Books, as_amount, as_text, books, difference, register, units

AMOUNTS = st.decimals(min_value=0, max_value=10**12, allow_nan=False, allow_infinity=False, places=18)


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        ("0", "0"),
        ("0E-9", "0"),
        ("1E+3", "1000"),
        ("0.10", "0.1"),
        ("1E-10", "0.0000000001"),
        ("123456789012.123456789012345678", "123456789012.123456789012345678"),
        ("-0.5", "-0.5"),
    ],
)
def test_an_amount_has_one_way_to_be_written(amount: str, text: str) -> None:
    assert as_text(Decimal(amount)) == text


@given(AMOUNTS)
def test_what_is_written_is_read_again(amount: Decimal) -> None:
    assert as_amount(as_text(amount)) == amount


@pytest.mark.parametrize(
    "other", [None, "", "abc", "NaN", "-Infinity", "1,5", "1e2", "-3", "١٢", "1\n", "9" * 31, "\ud800", 5, 0.5, b"\xff"]
)
def test_what_is_no_amount_is_none(other: object) -> None:
    assert as_amount(other) is None


def test_an_amount_that_would_be_rounded_is_an_error() -> None:
    with pytest.raises(Inexact):
        EXACT.divide(Decimal(1), Decimal(3))


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:")) as opened:
        register(opened)
        opened.execute("CREATE TABLE costs (cost)")
        yield opened


def test_sums_are_exact(connection: sqlite3.Connection) -> None:
    """Binary fractions would give 0.30000000000000004, and would lose the last digit beside a large amount."""
    connection.executemany("INSERT INTO costs VALUES (?)", [("0.1",), ("0.2",), ("123456789012345678",)])
    assert connection.execute("SELECT money_sum(cost) FROM costs").fetchone() == ("123456789012345678.3",)


def test_a_sum_leaves_out_what_is_no_amount(connection: sqlite3.Connection) -> None:
    connection.executemany("INSERT INTO costs VALUES (?)", [("0.1",), (None,), ("abc",), ("inf",), (b"\xff",)])
    assert connection.execute("SELECT money_sum(cost), count(money(cost)) FROM costs").fetchone() == ("0.1", 1)


def test_a_sum_of_no_rows_is_null_as_sqlites_own(connection: sqlite3.Connection) -> None:
    assert connection.execute("SELECT money_sum(cost), sum(cost) FROM costs").fetchone() == (None, None)


def test_the_largest_amounts_can_be_added_a_billion_times() -> None:
    largest = as_amount("9" * 30 + "." + "9" * 60)
    assert largest is not None
    assert EXACT.add(EXACT.multiply(largest, Decimal(10**9)), largest) > largest


def books_of(connection: sqlite3.Connection, rows: Iterable[tuple[int, object, int | None]]) -> Books:
    """Add up rows of `subscription`, `cost` and `final`."""
    connection.execute("CREATE TEMP TABLE rows (subscription, cost, final)")
    connection.executemany("INSERT INTO rows VALUES (?, ?, ?)", rows)
    told = connection.execute(f"SELECT {BOOKS} FROM (SELECT *, {units('cost')} AS units FROM rows)").fetchone()
    connection.execute("DROP TABLE rows")
    return books(*told)


def test_books_tell_apart_what_is_billed_and_what_has_no_cost(connection: sqlite3.Connection) -> None:
    rows = [(0, "0.1", 1), (1, "0.2", 1), (0, None, 1), (0, b"\xff", 1), (1, None, 0), (0, None, None), (0, "1", None)]
    assert books_of(connection, rows) == (Decimal("1.1"), Decimal("0.2"), 2, 1)
    assert books_of(connection, []) == Books() == (0, 0, 0, 0)


def test_a_million_short_amounts_are_added_up_to_the_last_digit(connection: sqlite3.Connection) -> None:
    """What SQLite adds up by itself: a sum of binary fractions would be off from the ninth decimal on."""
    told = connection.execute(
        f"""
        WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 1000000)
        SELECT {BOOKS} FROM (
            SELECT cost, {units("cost")} AS units, 0 AS subscription, 1 AS final
            FROM (SELECT '9.' || printf('%010d', n) AS cost FROM n)
        )
        """
    ).fetchone()
    assert told[2] is None
    assert books(*told).billed == 9_000_000 + Decimal(1_000_000 * 1_000_001 // 2).scaleb(-10)


NEARLY_AMOUNTS = st.one_of(
    AMOUNTS.map(str),
    st.decimals(min_value=0, max_value="9.9999999999", places=10).map(as_text),
    st.text("0123456789.e-+ \0\n\u0661", max_size=16),
    st.builds(lambda number, rest: f"{number:.10g}{rest}", st.floats(0, 11), st.text("0.eE5 \0\n", max_size=3)),
)


@given(st.lists(st.tuples(st.integers(0, 1), st.none() | NEARLY_AMOUNTS | st.binary(), st.sampled_from([0, 1, None]))))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # a table that is made anew
def test_what_sqlite_adds_up_is_what_python_would(
    connection: sqlite3.Connection, rows: list[tuple[int, object, int | None]]
) -> None:
    amounts = [(subscription, as_amount(cost), final) for subscription, cost, final in rows]
    billed = [amount for subscription, amount, _ in amounts if amount is not None and not subscription]
    listed = [amount for subscription, amount, _ in amounts if amount is not None and subscription]
    assert books_of(connection, rows) == Books(
        reduce(EXACT.add, billed, Decimal(0)),
        reduce(EXACT.add, listed, Decimal(0)),
        unpriced=sum(amount is None and final == 1 for _, amount, final in amounts),
        unsettled=sum(amount is None and final == 0 for _, amount, final in amounts),
    )


@pytest.mark.parametrize(
    ("whole", "part", "rest"), [("0.3", "0.1", "0.2"), ("0.3", None, "0.3"), (None, "0.1", None), (b"1", b"1", "0")]
)
def test_a_part_is_taken_from_the_whole(whole: object, part: object, rest: str | None) -> None:
    assert difference(whole, part) == rest
