"""Pulling: every command works on the fleet's books; corrections travel both ways, and none is lost."""

import json
import sqlite3
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest

from scripts.real_postgres import Postgres, query
from scripts.real_proxy import replay, rows_of
from tests.fleet.conftest import Run, fill, record

DEMO = Path(__file__).parents[2] / "data" / "demo.mitm"
FLAGGED = {
    "usage_state": "missing",
    "requires_manual_review": 1,
    "review_reason": "no_usage_data",
    "total_tokens": 0,
    "input_tokens": 0,
    "output_tokens": 0,
    "usage_raw": None,
    "stop_reason": None,
    "metadata": '{"_no_usage_data":true,"_requires_manual_review":true}',
}
BY_SQL = (
    "UPDATE usage_records SET input_tokens = 1200, output_tokens = 340, total_tokens = 1540, "
    """metadata = metadata || '{"_manually_updated": true}'::jsonb WHERE id = '%s'"""
)


@pytest.fixture
def proxy(tmp_path: Path) -> Path:
    return tmp_path / "proxy.db"


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    return tmp_path / "desk" / "fleet.db"


def sql(path: Path, statement: str, *values: object) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as connection, connection:
        return connection.execute(statement, values).fetchall()


def comparable(path: Path) -> list[dict[str, Any]]:
    """Rows with their JSON as what it means: PostgreSQL writes it its own way."""
    return [
        {
            name: json.loads(value) if name in ("usage_raw", "metadata") and value else value
            for name, value in row.items()
        }
        for row in rows_of(path)
    ]


def backfill(run: Run, path: Path, number: int, tokens: int) -> None:
    counts = ("--input-tokens", tokens, "--output-tokens", tokens)
    run("backfill", "--id", record(number).id, *counts, "--note", "the invoice", "--db", path)


def shown(path: Path, number: int, *columns: str) -> tuple[Any, ...]:
    return sql(path, f"SELECT {', '.join(columns)} FROM usage_records WHERE id = ?", record(number).id)[0]


def test_a_ledger_that_was_pulled_holds_the_fleets_rows(
    tmp_path: Path, proxy: Path, desk: Path, dsn: str, run: Run
) -> None:
    replay(DEMO, proxy)
    other = fill(tmp_path / "other.db", *map(record, range(5)))
    run("push", dsn, "--db", proxy, "--source", "web-1")
    run("push", dsn, "--db", other, "--source", "web-2")
    assert run("pull", dsn, "--db", desk).stdout == "13 row(s) match: 13 new, 0 changed here\n"
    rows = comparable(proxy) + comparable(other)
    assert sorted(comparable(desk), key=lambda row: row["id"]) == sorted(rows, key=lambda row: row["id"])
    iterations = "SELECT * FROM usage_iterations ORDER BY record_id, position"
    assert sql(desk, iterations) == sql(proxy, iterations)
    assert "all is well" in run("verify", "--db", desk).stdout
    assert run("pull", dsn, "--db", desk).stdout == "13 row(s) match: 0 new, 0 changed here\n"
    assert run("push", dsn, "--db", desk, "--source", "desk").stdout == "0 row(s) pushed as desk\n"


def test_filters_choose_what_is_pulled(proxy: Path, desk: Path, dsn: str, run: Run) -> None:
    fill(
        proxy,
        record(1, account_id="a_b", model="claude-opus-5", tag="100%"),
        record(2, account_id="axb", usage_state="partial"),
        record(3, **FLAGGED),
    )
    run("push", dsn, "--db", proxy)
    for filters, count in (
        (("--account", "a_b"), 1),
        (("--account", "a*"), 3),
        (("--model", "claude-opus-*"), 1),
        (("--tag", "100%"), 1),
        (("--tag", "1%"), 0),
        (("--state", "partial", "--state", "missing"), 2),
        (("--flagged",), 1),
        (("--since", "2026-11-01"), 2),
        (("--until", "2026-11-01"), 1),
    ):
        assert run("pull", dsn, "--db", desk, *filters).stdout.startswith(f"{count} row(s) match")
    assert len(rows_of(desk)) == 3


def test_a_correction_by_sql_becomes_one_with_a_revision(proxy: Path, desk: Path, dsn: str, run: Run) -> None:
    fill(proxy, record(1, **FLAGGED))
    run("push", dsn, "--db", proxy)
    run("pull", dsn, "--db", desk)
    query(dsn, BY_SQL % record(1).id)
    run("push", dsn, "--db", proxy)
    assert run("pull", dsn, "--db", desk).stdout == "1 row(s) match: 0 new, 1 changed here\n"
    columns = ("input_tokens", "total_tokens", "usage_state", "requires_manual_review", "total_cost")
    assert shown(desk, 1, *columns) == (1200, 1540, "missing", 0, "0.0087")
    assert [row[0] for row in sql(desk, "SELECT source FROM usage_revisions")] == ["pull", "pull"]
    assert "edited it by SQL" in sql(desk, "SELECT reason FROM usage_revisions")[0][0]
    assert "all is well" in run("verify", "--db", desk).stdout


def test_a_correction_by_sql_of_a_row_that_is_new_here_has_a_revision_too(
    proxy: Path, desk: Path, dsn: str, run: Run
) -> None:
    fill(proxy, record(1, **FLAGGED))
    run("push", dsn, "--db", proxy)
    query(dsn, BY_SQL % record(1).id)
    run("pull", dsn, "--db", desk)
    assert shown(desk, 1, "input_tokens", "requires_manual_review", "total_cost") == (1200, 0, "0.0087")
    assert "all is well" in run("verify", "--db", desk).stdout


def test_what_was_pulled_is_not_pushed_back(proxy: Path, desk: Path, dsn: str, run: Run) -> None:
    """Or a desk that has changed nothing would hold an old row against what its proxy has made of it since."""
    fill(proxy, record(1), record(2))
    run("push", dsn, "--db", proxy, "--source", "web-1")
    run("pull", dsn, "--db", desk)
    sql(proxy, "UPDATE usage_records SET total_cost = '0.5', price_source = 'x'")
    run("push", dsn, "--db", proxy, "--source", "web-1")
    done = run("push", dsn, "--db", desk, "--source", "desk")
    assert (done.stdout, done.stderr) == ("0 row(s) pushed as desk\n", "")
    run("pull", dsn, "--db", desk)
    assert shown(desk, 1, "total_cost") == ("0.5",)


def test_corrections_made_at_the_desk_reach_the_books_and_the_proxy(
    proxy: Path, desk: Path, dsn: str, run: Run
) -> None:
    fill(proxy, record(1, **FLAGGED), record(2))
    run("push", dsn, "--db", proxy, "--source", "web-1")
    run("pull", dsn, "--db", desk)
    backfill(run, desk, 1, 700)
    assert run("push", dsn, "--db", desk, "--source", "desk").stdout == "1 row(s) pushed as desk\n"
    assert query(dsn, "SELECT source, input_tokens FROM usage_records WHERE usage_state = 'missing'") == [
        ("web-1", 700)
    ]
    run("pull", dsn, "--db", proxy)
    assert comparable(proxy) == comparable(desk)
    assert "all is well" in run("verify", "--db", proxy).stdout
    assert run("push", dsn, "--db", proxy, "--source", "web-1").stdout == "0 row(s) pushed as web-1\n"


def test_accepting_and_pricing_at_the_desk_reach_the_books(proxy: Path, desk: Path, dsn: str, run: Run) -> None:
    fill(proxy, record(1, **FLAGGED), record(2, model="claude-of-ours"))
    run("push", dsn, "--db", proxy, "--source", "web-1")
    run("pull", dsn, "--db", desk)
    run("review", "accept", record(1).id, "--note", "known", "--db", desk)
    prices = desk.parent / "own.toml"
    prices.write_text(
        '[[price]]\nmodel = "claude-of-ours"\nunlisted = true\ninput = "1"\noutput = "1"\n'
        'cache_read = "1"\ncache_write_5m = "1"\ncache_write_1h = "1"\n'
    )
    run("price", "--db", desk, "--prices", prices, code=None)
    run("push", dsn, "--db", desk, "--source", "desk")
    assert query(dsn, "SELECT requires_manual_review FROM usage_records ORDER BY id") == [(0,), (0,)]
    run("pull", dsn, "--db", proxy)
    assert comparable(proxy) == comparable(desk)


def two_corrections(proxy: Path, desk: Path, dsn: str, run: Run) -> None:
    fill(proxy, record(1, **FLAGGED))
    run("push", dsn, "--db", proxy, "--source", "web-1")
    run("pull", dsn, "--db", desk)
    backfill(run, desk, 1, 500)
    backfill(run, proxy, 1, 600)
    run("push", dsn, "--db", desk, "--source", "desk")


def test_two_corrections_of_one_row_are_a_conflict_that_nobody_loses(
    proxy: Path, desk: Path, dsn: str, run: Run
) -> None:
    two_corrections(proxy, desk, dsn, run)
    for _ in range(2):  # it is told until it is settled
        done = run("push", dsn, "--db", proxy, "--source", "web-1", code=1)
        assert f"row {record(1).id} was changed here and in the books" in done.stderr
        done = run("pull", dsn, "--db", proxy, code=1)
        assert "1 conflict(s); --prefer ours or theirs settles them" in done.stderr
        assert shown(proxy, 1, "input_tokens") == (600,)
        assert query(dsn, "SELECT input_tokens FROM usage_records") == [(500,)]


def test_a_conflict_is_settled_for_theirs(proxy: Path, desk: Path, dsn: str, run: Run) -> None:
    two_corrections(proxy, desk, dsn, run)
    run("push", dsn, "--db", proxy, "--source", "web-1", code=1)
    run("pull", dsn, "--db", proxy, "--prefer", "theirs")
    run("push", dsn, "--db", proxy, "--source", "web-1")
    assert shown(proxy, 1, "input_tokens") == (500,)
    assert "all is well" in run("verify", "--db", proxy).stdout


def test_a_conflict_is_settled_for_ours(proxy: Path, desk: Path, dsn: str, run: Run) -> None:
    two_corrections(proxy, desk, dsn, run)
    run("push", dsn, "--db", proxy, "--source", "web-1", code=1)
    run("pull", dsn, "--db", proxy, "--prefer", "ours")
    run("push", dsn, "--db", proxy, "--source", "web-1")
    assert query(dsn, "SELECT input_tokens FROM usage_records") == [(600,)]
    run("pull", dsn, "--db", desk)
    assert shown(desk, 1, "input_tokens") == (600,)
    assert "all is well" in run("verify", "--db", desk).stdout


def test_an_edit_by_sql_does_not_undo_better_usage(proxy: Path, desk: Path, dsn: str, run: Run) -> None:
    """Whatever was edited: both sides have changed, and that is told."""
    fill(proxy, record(1, usage_state="partial"))
    run("push", dsn, "--db", proxy, "--source", "web-1")
    query(dsn, "UPDATE usage_records SET tag = 'x'")
    fill(proxy, record(1))
    run("pull", dsn, "--db", proxy, code=1)
    assert shown(proxy, 1, "usage_state", "tag") == ("complete", None)
    run("pull", dsn, "--db", proxy, "--prefer", "ours")
    run("push", dsn, "--db", proxy, "--source", "web-1")
    assert query(dsn, "SELECT usage_state, tag FROM usage_records") == [("complete", None)]


def test_an_acceptance_made_elsewhere_stands(proxy: Path, desk: Path, dsn: str, run: Run) -> None:
    """Also where a pull has kept what was changed here meanwhile, and where the row had never come from the books."""
    fill(proxy, record(1, **FLAGGED))
    run("push", dsn, "--db", proxy, "--source", "web-1")
    run("pull", dsn, "--db", desk)
    run("review", "accept", record(1).id, "--note", "never billed", "--db", desk)
    run("push", dsn, "--db", desk, "--source", "desk")
    sql(proxy, "UPDATE usage_records SET tag = 'x'")
    for _ in range(2):
        run("pull", dsn, "--db", proxy)
        run("push", dsn, "--db", proxy, "--source", "web-1")
    assert query(dsn, "SELECT requires_manual_review FROM usage_records") == [(0,)]
    assert shown(proxy, 1, "requires_manual_review") == (0,)


def test_an_acceptance_of_a_row_that_was_pushed_from_here_is_not_undone(proxy: Path, dsn: str, run: Run) -> None:
    fill(proxy, record(1, **FLAGGED))
    run("push", dsn, "--db", proxy)
    run("review", "accept", record(1).id, "--note", "never billed", "--db", proxy)
    run("pull", dsn, "--db", proxy)
    assert shown(proxy, 1, "requires_manual_review") == (0,)
    run("push", dsn, "--db", proxy)
    run("pull", dsn, "--db", proxy)
    assert query(dsn, "SELECT requires_manual_review FROM usage_records") == [(0,)]
    assert shown(proxy, 1, "requires_manual_review") == (0,)


def test_an_acceptance_from_before_the_first_pull_is_not_undone(proxy: Path, desk: Path, dsn: str, run: Run) -> None:
    """Such as one of a row that a replay has made: nobody has noted then that it changed."""
    fill(desk, record(1, **FLAGGED))
    run("review", "accept", record(1).id, "--note", "never billed", "--db", desk)
    fill(proxy, record(1, **FLAGGED))
    run("push", dsn, "--db", proxy, "--source", "web-1")
    run("pull", dsn, "--db", desk)
    assert shown(desk, 1, "requires_manual_review") == (0,)


def test_a_correction_and_an_acceptance_of_one_row_are_a_conflict(proxy: Path, desk: Path, dsn: str, run: Run) -> None:
    fill(proxy, record(1, **FLAGGED))
    run("push", dsn, "--db", proxy, "--source", "web-1")
    run("pull", dsn, "--db", desk)
    backfill(run, desk, 1, 500)
    run("push", dsn, "--db", desk, "--source", "desk")
    run("review", "accept", record(1).id, "--note", "never billed", "--db", proxy)
    run("pull", dsn, "--db", proxy, code=1)
    run("pull", dsn, "--db", proxy, "--prefer", "theirs")
    assert comparable(proxy) == comparable(desk)


def test_a_correction_by_sql_beside_one_at_the_desk_is_a_conflict(proxy: Path, desk: Path, dsn: str, run: Run) -> None:
    fill(proxy, record(1, **FLAGGED))
    run("push", dsn, "--db", proxy)
    run("pull", dsn, "--db", desk)
    query(dsn, BY_SQL % record(1).id)
    backfill(run, desk, 1, 500)
    run("push", dsn, "--db", desk, "--source", "desk", code=1)
    run("pull", dsn, "--db", desk, code=1)
    assert shown(desk, 1, "input_tokens") == (500,)
    assert query(dsn, "SELECT input_tokens FROM usage_records") == [(1200,)]


def test_a_correction_that_was_never_pushed_is_not_overwritten(proxy: Path, desk: Path, dsn: str, run: Run) -> None:
    fill(proxy, record(1, **FLAGGED))
    run("push", dsn, "--db", proxy)
    run("pull", dsn, "--db", desk)
    backfill(run, desk, 1, 500)
    query(dsn, BY_SQL % record(1).id)
    run("pull", dsn, "--db", desk, code=1)
    assert shown(desk, 1, "input_tokens") == (500,)


def test_a_correction_of_a_correction_is_no_conflict(proxy: Path, desk: Path, dsn: str, run: Run) -> None:
    fill(proxy, record(1, **FLAGGED))
    backfill(run, proxy, 1, 500)
    run("push", dsn, "--db", proxy, "--source", "web-1")
    run("pull", dsn, "--db", desk)
    run("backfill", "--id", record(1).id, "--input-tokens", 7, "--note", "x", "--force", "--db", desk)
    run("push", dsn, "--db", desk, "--source", "desk")
    run("pull", dsn, "--db", proxy)
    assert shown(proxy, 1, "input_tokens") == (7,)
    assert comparable(proxy) == comparable(desk)
    assert "all is well" in run("verify", "--db", proxy).stdout


def test_books_that_were_restored_from_a_backup_take_no_correction_away(
    proxy: Path, desk: Path, dsn: str, run: Run
) -> None:
    fill(proxy, record(1, **FLAGGED))
    run("push", dsn, "--db", proxy, "--source", "web-1")
    run("pull", dsn, "--db", desk)
    query(dsn, "CREATE TABLE backup AS SELECT * FROM usage_records")
    backfill(run, desk, 1, 500)
    run("push", dsn, "--db", desk, "--source", "desk")
    query(dsn, "DELETE FROM usage_records")
    query(dsn, "INSERT INTO usage_records SELECT * FROM backup")
    run("pull", dsn, "--db", desk)
    assert shown(desk, 1, "input_tokens") == (500,)
    run("push", dsn, "--db", desk, "--source", "desk")
    assert query(dsn, "SELECT input_tokens FROM usage_records") == [(500,)]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("input_tokens = 9e18::bigint", "input_tokens is 9000000000000000000"),
        ("output_tokens = -1", "output_tokens is -1"),
        ("total_cost = 'NaN'", "total_cost is NaN"),
        ("total_cost = '-Infinity'", "total_cost is -Infinity"),
        ("usage_state = 'pending'", "usage_state is 'pending'"),
    ],
)
def test_what_cannot_be_stays_in_the_books_and_is_told(
    proxy: Path, desk: Path, dsn: str, run: Run, change: str, why: str
) -> None:
    fill(proxy, record(1), record(2))
    run("push", dsn, "--db", proxy)
    query(dsn, f"UPDATE usage_records SET {change} WHERE id = '{record(1).id}'")
    done = run("pull", dsn, "--db", desk, code=1)
    assert f"row {record(1).id} cannot be: {why}" in done.stderr
    assert "1 row(s) cannot be, and were left in the books; correct them there" in done.stderr
    assert [row["id"] for row in rows_of(desk)] == [record(2).id]
    assert run("summary", "--db", desk).returncode == 0


@pytest.mark.parametrize(
    "usage_raw",
    ['{"a":1e400}', '{"a":0.12345678901234567890123456789}', '{"a":123456789012345678901234567890}', '{"a b":"c  d"}'],
)
def test_numbers_come_back_as_they_are_and_not_as_news(
    proxy: Path, desk: Path, dsn: str, run: Run, usage_raw: str
) -> None:
    fill(proxy, record(1, usage_raw=usage_raw))
    run("push", dsn, "--db", proxy)
    run("pull", dsn, "--db", desk)
    assert json.loads(rows_of(desk)[0]["usage_raw"], parse_float=Decimal) == json.loads(usage_raw, parse_float=Decimal)
    assert " changed" in run("pull", dsn, "--db", proxy).stdout
    assert run("pull", dsn, "--db", proxy).stdout == "1 row(s) match: 0 new, 0 changed here\n"
    run("push", dsn, "--db", desk, "--source", "desk")
    assert query(dsn, "SELECT edited_at FROM usage_records") == [(None,)]


@pytest.mark.parametrize(("flag", "is_corrected"), [("true", True), ("1", True), ('"true"', False), ("2", False)])
def test_both_sides_read_the_mark_of_a_correction_alike(
    proxy: Path, desk: Path, dsn: str, run: Run, flag: str, is_corrected: bool
) -> None:
    """What is none there gives way to better usage; what is one here is in no review queue."""
    fill(proxy, record(1, usage_state="partial", metadata=f'{{"_manually_updated":{flag}}}'))
    run("push", dsn, "--db", proxy, "--source", "web-1")
    run("push", dsn, "--db", fill(desk.with_name("b.db"), record(1)), "--source", "web-2")
    assert query(dsn, "SELECT usage_state FROM usage_records") == [("partial" if is_corrected else "complete",)]


def test_other_books_know_nothing_of_these_versions(
    proxy: Path, desk: Path, postgres: Postgres, dsn: str, run: Run
) -> None:
    fill(proxy, record(1), record(2, usage_state="partial"))
    run("push", dsn, "--db", proxy)
    run("pull", dsn, "--db", desk)
    other = postgres.new_database()
    run("push", other, "--db", proxy)
    query(other, "UPDATE usage_records SET tag = 'edited'")
    run("pull", other, "--db", desk)
    assert [row["tag"] for row in rows_of(desk)] == ["edited", "edited"]


def test_better_rows_of_a_proxy_come_without_a_revision(proxy: Path, desk: Path, dsn: str, run: Run) -> None:
    fill(proxy, record(1, usage_state="partial"))
    run("push", dsn, "--db", proxy)
    run("pull", dsn, "--db", desk)
    fill(proxy, record(1))
    run("push", dsn, "--db", proxy)
    run("pull", dsn, "--db", desk)
    assert shown(desk, 1, "usage_state") == ("complete",)


def test_what_was_pushed_and_is_better_here_stays(proxy: Path, desk: Path, dsn: str, run: Run) -> None:
    fill(proxy, record(1, usage_state="partial"))
    run("push", dsn, "--db", proxy)
    fill(desk, record(1))
    run("pull", dsn, "--db", desk)
    assert shown(desk, 1, "usage_state") == ("complete",)


def test_rows_of_a_closed_period_are_changed_only_where_that_is_asked_for(
    proxy: Path, desk: Path, dsn: str, run: Run
) -> None:
    fill(proxy, record(2, **FLAGGED))
    run("push", dsn, "--db", proxy)
    run("pull", dsn, "--db", desk)
    run("close", "--until", "2026-11-01", "--note", "October", "--db", desk)
    query(dsn, BY_SQL % record(2).id)
    assert "closed" in run("pull", dsn, "--db", desk, code=2).stderr
    assert shown(desk, 2, "input_tokens") == (0,)
    run("pull", dsn, "--db", desk, "--reopen")
    assert shown(desk, 2, "input_tokens") == (1200,)


def test_archived_rows_do_not_come_back(proxy: Path, desk: Path, dsn: str, run: Run) -> None:
    fill(proxy, *map(record, range(6)))
    run("push", dsn, "--db", proxy)
    run("pull", dsn, "--db", desk)
    run("archive", "--before", "2026-11-01", desk.parent / "old.db", "--db", desk)
    query(dsn, "UPDATE usage_records SET tag = 'x'")
    run("pull", dsn, "--db", desk)
    assert len(rows_of(desk)) == 3


def test_a_server_that_cannot_be_reached_is_told_in_one_line(desk: Path, dsn: str, run: Run) -> None:
    done = run("pull", "host=/nowhere dbname=x", "--db", desk, code=2)
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_a_server_may_write_times_its_own_way_and_keep_the_books_in_a_schema_of_their_own(
    proxy: Path, desk: Path, dsn: str, run: Run
) -> None:
    fill(proxy, record(1), record(3, occurred_at="2026-10-31T23:59:59.999Z"))
    name = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
    query(dsn, "CREATE SCHEMA books")
    for setting in ("timezone = 'Asia/Kolkata'", "datestyle = 'German, DMY'", "search_path = books"):
        query(dsn, f"ALTER DATABASE {name} SET {setting}")
    run("push", dsn, "--db", proxy)
    run("pull", dsn, "--db", desk)
    assert comparable(desk) == comparable(proxy)
    found = query(dsn, "SELECT DISTINCT schemaname FROM pg_tables WHERE tablename LIKE 'usage_%'")
    assert found == [("books",)]
