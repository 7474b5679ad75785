"""Changes on both sides that are no corrections: prices, lower bounds, what somebody has written by SQL."""

import json
from pathlib import Path

import pytest

from scripts.real_postgres import query
from tests.fleet.conftest import Run, fill, record, shown, sql, stored


def priced(run: Run, path: Path, amount: str) -> None:
    """Give each row that is priced by our own list this price a million tokens."""
    prices = path.with_suffix(".toml")
    names = ("input", "output", "cache_read", "cache_write_5m", "cache_write_1h")
    prices.write_text('[[price]]\nmodel = "claude-sonnet-4-6"\n' + "".join(f"{name} = {amount}\n" for name in names))
    run("price", "--db", path, "--prices", prices, "--since", "2026-01-01")


@pytest.fixture
def priced_on_both_sides(proxy: Path, desk: Path, dsn: str, run: Run) -> None:
    """At the desk for 54 and at the proxy for 108 millionths; the desk was first."""
    fill(proxy, record(1))
    run("push", dsn, "--db", proxy, "--source", "web-1")
    run("pull", dsn, "--db", desk)
    priced(run, desk, "1")
    run("push", dsn, "--db", desk, "--source", "desk")
    priced(run, proxy, "2")


def costs(dsn: str) -> list[tuple[str]]:
    return stored(dsn, "total_cost::text")


@pytest.mark.usefixtures("priced_on_both_sides")
def test_a_new_price_on_both_sides_is_a_conflict_that_is_told(proxy: Path, dsn: str, run: Run) -> None:
    for _ in range(2):
        done = run("push", dsn, "--db", proxy, "--source", "web-1", code=1)
        assert f"row {record(1).id} was changed here and in the books" in done.stderr
        done = run("pull", dsn, "--db", proxy, code=1)
        assert "1 conflict(s); --prefer ours or theirs settles them" in done.stderr
        assert (shown(proxy, 1, "total_cost"), costs(dsn)) == (("0.000108",), [("0.000054",)])


@pytest.mark.usefixtures("priced_on_both_sides")
@pytest.mark.parametrize(("preferred", "cost"), [("ours", "0.000108"), ("theirs", "0.000054")])
def test_it_is_settled_by_whose_price_is_preferred(
    proxy: Path, desk: Path, dsn: str, run: Run, preferred: str, cost: str
) -> None:
    run("pull", dsn, "--db", proxy, "--prefer", preferred)
    run("push", dsn, "--db", proxy, "--source", "web-1")
    run("pull", dsn, "--db", desk)
    assert (shown(proxy, 1, "total_cost"), costs(dsn), shown(desk, 1, "total_cost")) == ((cost,), [(cost,)], (cost,))
    assert run("pull", dsn, "--db", proxy).stderr == ""


def test_a_new_price_for_a_row_that_the_desk_has_pushed_reaches_the_books(
    proxy: Path, desk: Path, dsn: str, run: Run
) -> None:
    """Once the proxy has pulled what the desk did."""
    fill(proxy, record(1))
    run("push", dsn, "--db", proxy, "--source", "web-1")
    run("pull", dsn, "--db", desk)
    priced(run, desk, "1")
    run("push", dsn, "--db", desk, "--source", "desk")
    run("pull", dsn, "--db", proxy)
    priced(run, proxy, "2")
    run("push", dsn, "--db", proxy, "--source", "web-1")
    assert costs(dsn) == [("0.000108",)]


def test_a_new_price_for_a_row_that_another_ledger_has_as_well_reaches_the_books(
    proxy: Path, desk: Path, dsn: str, run: Run
) -> None:
    """Such as one that a replay has made: it is the same there, and so it was made from what is there."""
    run("push", dsn, "--db", fill(proxy, record(1)), "--source", "web-1")
    run("push", dsn, "--db", fill(desk, record(1)), "--source", "web-2")
    priced(run, desk, "1")
    run("push", dsn, "--db", desk, "--source", "web-2")
    assert costs(dsn) == [("0.000054",)]


def test_a_new_price_that_was_not_pushed_yet_is_no_conflict_with_what_was_pushed_from_here(
    proxy: Path, dsn: str, run: Run
) -> None:
    fill(proxy, record(1))
    run("push", dsn, "--db", proxy)
    priced(run, proxy, "2")
    assert run("pull", dsn, "--db", proxy).stderr == ""
    run("push", dsn, "--db", proxy)
    assert costs(dsn) == [("0.000108",)]


def test_a_price_beside_an_edit_by_sql_is_a_conflict(proxy: Path, dsn: str, run: Run) -> None:
    fill(proxy, record(1))
    run("push", dsn, "--db", proxy)
    query(dsn, "UPDATE usage_records SET tag = 'x'")
    priced(run, proxy, "1")
    run("push", dsn, "--db", proxy, code=1)
    run("pull", dsn, "--db", proxy, code=1)
    run("pull", dsn, "--db", proxy, "--prefer", "theirs")
    assert shown(proxy, 1, "tag", "total_cost") == ("x", None)


def test_a_lower_bound_that_grows_replaces_what_was_pushed_and_one_that_shrinks_does_not(
    proxy: Path, dsn: str, run: Run
) -> None:
    for tokens, there in ((5, 5), (9, 9), (7, 9)):
        sql(proxy, "DELETE FROM usage_records") if proxy.exists() else None
        fill(proxy, record(1, usage_state="partial", input_tokens=tokens, output_tokens=0, total_tokens=tokens))
        run("push", dsn, "--db", proxy)
        assert stored(dsn, "total_tokens") == [(there,)]


def test_an_edit_from_true_to_1_is_an_edit(proxy: Path, desk: Path, dsn: str, run: Run) -> None:
    """To Python they are the same, and to PostgreSQL they are not."""
    fill(proxy, record(1, metadata='{"odd":true}'))
    run("push", dsn, "--db", proxy)
    run("pull", dsn, "--db", desk)
    query(dsn, """UPDATE usage_records SET metadata = '{"odd": 1}'""")
    run("pull", dsn, "--db", desk)
    ((metadata,),) = sql(desk, "SELECT metadata FROM usage_records")
    assert json.loads(metadata)["odd"] is not True
