"""Pulling: every command works on the fleet's books; corrections travel both ways, and none is lost."""

from pathlib import Path

import psycopg

from scripts.real_postgres import query
from scripts.real_proxy import replay, rows_of
from tests.fleet.conftest import BY_SQL, FLAGGED, Run, backfill, comparable, fill, record, shown, sql

DEMO = Path(__file__).parents[2] / "data" / "demo.mitm"


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


def test_counts_that_are_changed_by_sql_are_a_correction_also_without_the_mark(
    proxy: Path, desk: Path, dsn: str, run: Run
) -> None:
    fill(proxy, record(1), record(2), record(3))
    run("push", dsn, "--db", proxy)
    query(dsn, f"UPDATE usage_records SET input_tokens = 100 WHERE id = '{record(1).id}'")
    run("pull", dsn, "--db", desk)  # to which it is new
    query(dsn, f"UPDATE usage_records SET input_tokens = 100, total_tokens = 142 WHERE id = '{record(2).id}'")
    query(dsn, f"UPDATE usage_records SET tag = 'x' WHERE id = '{record(3).id}'")
    run("pull", dsn, "--db", desk)
    for number in (1, 2):
        assert shown(desk, number, "total_tokens", "total_cost", "metadata ->> '_manually_updated'") == (
            *(142, "0.00093"),
            1,
        )
    assert shown(desk, 3, "tag", "metadata ->> '_manually_updated'") == ("x", None)
    assert "all is well" in run("verify", "--db", desk).stdout


def test_iterations_that_come_with_a_row_and_their_costs_are_in_the_trail(
    proxy: Path, desk: Path, dsn: str, run: Run
) -> None:
    """Or verify would take them for another program's."""
    replay(DEMO, proxy)
    run("price", "--since", "2020-01-01", "--db", proxy)
    (row_id, *_) = sql(proxy, "SELECT record_id FROM usage_iterations")[0]
    run("push", dsn, "--db", proxy, "--source", "web-1")
    run("pull", dsn, "--db", desk)
    run("backfill", "--id", row_id, "--input-tokens", 7, "--note", "x", "--force", "--db", desk)
    run("push", dsn, "--db", desk, "--source", "desk")
    run("pull", dsn, "--db", proxy)
    assert "all is well" in run("verify", "--db", proxy).stdout
    assert comparable(proxy) == comparable(desk)
    query(dsn, f"UPDATE usage_iterations SET model = 'claude-haiku-4-5' WHERE record_id = '{row_id}'")
    for path in (proxy, desk):
        run("pull", dsn, "--db", path)
        assert {row[0] for row in sql(path, "SELECT model FROM usage_iterations WHERE record_id = ?", row_id)} == {
            "claude-haiku-4-5"
        }
        assert "all is well" in run("verify", "--db", path).stdout


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
        '[[price]]\nmodel = "claude-of-ours"\nunlisted = true\ninput = 1\noutput = 1\n'
        "cache_read = 1\ncache_write_5m = 1\ncache_write_1h = 1\n"
    )
    run("price", "--db", desk, "--prices", prices)
    run("push", dsn, "--db", desk, "--source", "desk")
    columns = "requires_manual_review, total_cost::text"
    assert query(dsn, f"SELECT {columns} FROM usage_records ORDER BY id") == [(0, None), (0, "0.000054")]
    run("pull", dsn, "--db", proxy)
    assert comparable(proxy) == comparable(desk)


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
    fill(proxy, record(2, **FLAGGED), record(3, **FLAGGED))
    run("push", dsn, "--db", proxy)
    run("pull", dsn, "--db", desk)
    run("close", "--until", "2026-11-01", "--note", "October", "--db", desk)
    for number in (2, 3):
        query(dsn, BY_SQL % record(number).id)
    for _ in range(2):
        done = run("pull", dsn, "--db", desk, code=1)
        assert f"row {record(2).id} has changed in the books, and is of a period that is closed here" in done.stderr
        assert "1 row(s) of closed periods stay as they were; --reopen changes them all the same" in done.stderr
        assert [shown(desk, number, "input_tokens") for number in (2, 3)] == [(0,), (1200,)]
    run("pull", dsn, "--db", desk, "--reopen")
    assert shown(desk, 2, "input_tokens") == (1200,)


def test_a_row_that_comes_late_to_a_closed_period_is_made_whole(proxy: Path, desk: Path, dsn: str, run: Run) -> None:
    fill(proxy, record(1))
    run("push", dsn, "--db", proxy)
    run("pull", dsn, "--db", desk)
    run("close", "--until", "2026-11-01", "--note", "October", "--db", desk)
    fill(proxy, record(2, **FLAGGED))
    run("push", dsn, "--db", proxy)
    query(dsn, BY_SQL % record(2).id)
    run("pull", dsn, "--db", desk)
    assert shown(desk, 2, "input_tokens", "requires_manual_review") == (1200, 0)


def test_archived_rows_do_not_come_back(proxy: Path, desk: Path, dsn: str, run: Run) -> None:
    fill(proxy, *map(record, range(6)))
    run("push", dsn, "--db", proxy)
    run("pull", dsn, "--db", desk)
    run("archive", "--before", "2026-11-01", desk.parent / "old.db", "--db", desk)
    run("pull", dsn, "--db", desk)
    assert len(rows_of(desk)) == 3
    query(dsn, "UPDATE usage_records SET tag = 'x'")
    done = run("pull", dsn, "--db", desk, code=1)
    assert "3 archived row(s) have changed in the books; correct them in their archive too (--db)" in done.stderr
    assert [row["tag"] for row in rows_of(desk)] == ["x"] * 3


def test_a_database_without_books_is_left_as_it_is(desk: Path, dsn: str, run: Run) -> None:
    done = run("pull", dsn, "--db", desk, code=2)
    assert "there are no books in this database; the first push to it makes them" in done.stderr
    assert done.stderr.count("\n") == 1
    assert query(dsn, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [(0,)]
    assert not desk.exists()


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
