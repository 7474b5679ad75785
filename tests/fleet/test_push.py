"""Pushing: each settled row is in the books once, in PostgreSQL's types, and never replaced by a worse one."""

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import click.testing
import psycopg
import pytest
from usage_ledger.cli import push
from usage_ledger.cli.main import main
from usage_ledger.fleet import server
from usage_ledger.ledger.columns import COLUMNS
from usage_ledger.ledger.record import IterationRow

from scripts.real_postgres import Postgres, query
from scripts.real_proxy import replay, rows_of, wait_until
from tests.fleet.conftest import FLAGGED, Run, command, fill, record, sql, stored, timely

DEMO = Path(__file__).parents[2] / "data" / "demo.mitm"


def test_rows_and_iterations_are_stored_as_they_are(ledger: Path, dsn: str, run: Run) -> None:
    replay(DEMO, ledger)
    done = run("push", dsn, "--db", ledger, "--source", "web-1")
    rows = rows_of(ledger)
    assert done.stdout == f"{len(rows)} row(s) pushed as web-1\n"
    with psycopg.connect(dsn) as connection:
        found = connection.execute(f"SELECT {', '.join(COLUMNS)}, source FROM usage_records ORDER BY occurred_at, id")
        for row, there in zip(rows, found.fetchall(), strict=True):
            told = dict(zip((*COLUMNS, "source"), there, strict=True))
            assert told.pop("source") == "web-1"
            for name in ("occurred_at", "completed_at"):
                moment = told[name].isoformat(timespec="milliseconds").replace("+00:00", "Z")
                assert moment == row[name]
            for name in ("metadata", "usage_raw"):
                assert told[name] == (json.loads(row[name]) if row[name] else None)
            assert str(told["total_cost"]) == str(row["total_cost"])
            apart = ("occurred_at", "completed_at", "metadata", "usage_raw", "total_cost")
            assert {n: v for n, v in told.items() if n not in apart} == {n: row[n] for n in row if n not in apart}
    assert query(dsn, "SELECT type, input_tokens, total_cost::text FROM usage_iterations ORDER BY position") == sql(
        ledger, "SELECT type, input_tokens, total_cost FROM usage_iterations ORDER BY position"
    )


def test_the_queries_of_the_original_note_run_as_they_are(ledger: Path, dsn: str, run: Run) -> None:
    fill(ledger, record(1), record(2, **FLAGGED))
    sql(ledger, "UPDATE usage_records SET occurred_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now')")
    run("push", dsn, "--db", ledger)
    verification = (
        "SELECT occurred_at, account_id, model, total_tokens, metadata FROM usage_records "
        "WHERE occurred_at > NOW() - INTERVAL '1 hour' ORDER BY occurred_at DESC LIMIT 10"
    )
    assert [row[1:4] for row in query(dsn, verification)] == [
        ("acme", "claude-sonnet-4-6", total) for total in (54, 0)
    ] or [row[3] for row in query(dsn, verification)] == [0, 54]
    correction = (
        "UPDATE usage_records SET input_tokens = 1200, output_tokens = 340, total_tokens = 1540, "
        """metadata = metadata || '{"_manually_updated": true}'::jsonb WHERE id = '%s'"""
    )
    query(dsn, correction % record(2).id)
    assert stored(dsn, "total_tokens", "metadata ->> '_manually_updated'")[1] == (1540, "true")


def test_pushing_again_changes_nothing(ledger: Path, dsn: str, run: Run) -> None:
    fill(ledger, *map(record, range(20)))
    run("push", dsn, "--db", ledger)
    before = stored(dsn, "id", "version")
    assert run("push", dsn, "--db", ledger).stdout.startswith("0 row(s)")
    assert stored(dsn, "id", "version") == before


def test_what_changes_afterwards_is_pushed_and_nothing_else(ledger: Path, dsn: str, run: Run) -> None:
    fill(ledger, *map(record, range(10)), record(20, usage_state="pending"))
    run("push", dsn, "--db", ledger)
    assert len(stored(dsn, "id")) == 10
    versions = dict(stored(dsn, "id", "version"))
    fill(ledger, record(20), record(21))
    run("price", "--db", ledger, "--since", "2026-01-01", "--until", "2026-11-01")
    run("push", dsn, "--db", ledger)
    now = dict(stored(dsn, "id", "version"))
    assert set(now) - set(versions) == {record(20).id, record(21).id}
    assert {each for each in versions if now[each] != versions[each]} == {record(each).id for each in range(0, 10, 2)}
    assert [row[0] for row in stored(dsn, "total_cost::text")] == [
        row["total_cost"] for row in sorted(rows_of(ledger), key=lambda row: row["id"])
    ]


def test_better_usage_brings_its_own_iterations(tmp_path: Path, dsn: str, run: Run) -> None:
    def iteration(tokens: int, position: int = 0) -> IterationRow:
        return IterationRow(record(1).id, position, "message", None, 1, tokens)

    worse = fill(tmp_path / "a.db", record(1, usage_state="partial"), iterations=(iteration(1), iteration(2, 1)))
    better = fill(tmp_path / "b.db", record(1, usage_raw='{"output_tokens":9}'), iterations=(iteration(5),))
    run("push", dsn, "--db", worse, "--source", "a")
    run("push", dsn, "--db", better, "--source", "b")
    assert query(dsn, "SELECT position, input_tokens FROM usage_iterations") == [(0, 5)]


def test_the_trail_and_the_adjustments_go_along(ledger: Path, dsn: str, run: Run) -> None:
    fill(ledger, record(1, **FLAGGED))
    run("backfill", "--id", record(1).id, "--input-tokens", "5", "--output-tokens", "6", "--note", "x", "--db", ledger)
    run("push", dsn, "--db", ledger)
    columns = "position, source, reason, record_id, before, after, hash"
    assert query(dsn, f"SELECT {columns} FROM usage_revisions") == sql(ledger, f"SELECT {columns} FROM usage_revisions")
    run("push", dsn, "--db", ledger)
    assert query(dsn, "SELECT count(*) FROM usage_revisions") == [(1,)]
    assert stored(dsn, "input_tokens", "usage_state", "requires_manual_review") == [(5, "missing", 0)]


def test_rows_of_a_month_that_was_detached_wait(ledger: Path, dsn: str, run: Run) -> None:
    fill(ledger, *map(record, range(4)))
    run("push", dsn, "--db", ledger)
    query(dsn, "ALTER TABLE usage_records DETACH PARTITION usage_records_2026_10")
    fill(ledger, *map(record, range(4, 8)))
    for _ in range(2):
        done = run("push", dsn, "--db", ledger, code=1)
        assert f"row {record(4).id} is of 2026-10, whose partition usage_records_2026_10 was detached" in done.stderr
        assert {row[0] for row in stored(dsn, "id")} == {record(each).id for each in (1, 3, 5, 7)}
    query(
        dsn,
        "ALTER TABLE usage_records ATTACH PARTITION usage_records_2026_10 "
        "FOR VALUES FROM ('2026-10-01 00:00+00') TO ('2026-11-01 00:00+00')",
    )
    run("push", dsn, "--db", ledger)
    assert len(stored(dsn, "id")) == 8


def test_a_partition_of_a_year_is_as_good(ledger: Path, dsn: str, run: Run) -> None:
    fill(ledger)
    run("push", dsn, "--db", ledger)
    query(dsn, "CREATE TABLE year PARTITION OF usage_records FOR VALUES FROM ('2026-01-01Z') TO ('2027-01-01Z')")
    fill(ledger, record(1), record(2))
    run("push", dsn, "--db", ledger)
    assert query(dsn, "SELECT count(*) FROM year") == [(2,)]


@pytest.mark.parametrize("holds", ["nothing", "a row of that month"])
def test_a_default_partition_is_as_good(ledger: Path, dsn: str, run: Run, holds: str) -> None:
    fill(ledger)
    run("push", dsn, "--db", ledger)
    query(dsn, "CREATE TABLE others PARTITION OF usage_records DEFAULT")
    if holds != "nothing":
        run("push", dsn, "--db", fill(ledger.with_name("other.db"), record(3)), "--source", "other")
        query(dsn, "CREATE TABLE kept AS SELECT * FROM usage_records_2026_11")
        query(dsn, "DROP TABLE usage_records_2026_11")
        query(dsn, "INSERT INTO usage_records SELECT * FROM kept")
    fill(ledger, record(1), record(2))
    run("push", dsn, "--db", ledger)
    assert {row[0] for row in stored(dsn, "id")} >= {record(1).id, record(2).id}


def test_all_of_the_books_is_in_one_schema_wherever_search_path_leads(ledger: Path, dsn: str, run: Run) -> None:
    query(dsn, "CREATE SCHEMA books")
    query(dsn, "CREATE SCHEMA mine")
    query(dsn, "CREATE TABLE mine.usage_records (id int)")

    def through(path: str) -> str:
        return psycopg.conninfo.make_conninfo(dsn, options=f"-csearch_path={path}")

    fill(ledger, record(1))
    run("push", through("books"), "--db", ledger)
    fill(ledger, record(2))
    run("push", through("mine,books"), "--db", ledger)
    assert query(dsn, "SELECT count(*) FROM books.usage_records") == [(2,)]
    assert query(dsn, "SELECT count(*) FROM pg_tables WHERE schemaname = 'mine'") == [(1,)]
    query(dsn, "UPDATE books.usage_records SET tag = 'x'")  # whose trigger finds what it needs
    assert query(dsn, "SELECT count(*) FROM books.usage_records WHERE edited_at IS NOT NULL") == [(2,)]


def test_an_id_has_one_row(ledger: Path, dsn: str, run: Run) -> None:
    fill(ledger, record(1), record(2))
    run("push", dsn, "--db", ledger)
    with pytest.raises(psycopg.errors.RaiseException, match="id and occurred_at say which request a row is"):
        query(dsn, "UPDATE usage_records SET occurred_at = occurred_at + '1 day'::interval")
    with pytest.raises(psycopg.errors.CheckViolation, match="usage_records_start_in_milliseconds"):
        query(
            dsn,
            "CREATE TEMP TABLE one AS SELECT * FROM usage_records LIMIT 1; "
            "UPDATE one SET occurred_at = occurred_at + '1 microsecond'::interval; "
            "INSERT INTO usage_records SELECT * FROM one",
        )
    sql(ledger, "UPDATE usage_records SET occurred_at = '2026-10-09T00:00:00.000Z' WHERE id = ?", record(1).id)
    done = run("push", dsn, "--db", ledger, code=1)
    assert f"row {record(1).id} has another occurred_at in the books" in done.stderr
    assert len(stored(dsn, "id")) == 2


def test_of_two_ledgers_that_give_an_id_two_starts_the_second_is_told(tmp_path: Path, dsn: str, run: Run) -> None:
    """Also where both are new, and go the short way."""
    moved = {"occurred_at": "2026-11-03T00:00:00.000Z"}
    first, second = fill(tmp_path / "a.db", timely(1)), fill(tmp_path / "b.db", timely(1, **moved), timely(3))
    run("push", dsn, "--db", first, "--source", "a")
    done = run("push", dsn, "--db", second, "--source", "b", code=1)
    assert f"row {timely(1).id} has another occurred_at in the books" in done.stderr
    assert stored(dsn, "id") == [(timely(1).id,), (timely(3).id,)]


# Whose rights it takes.


def role(dsn: str, *statements: str) -> str:
    name = f"role_{os.urandom(4).hex()}"
    query(dsn, f"CREATE ROLE {name} LOGIN PASSWORD 'x'")
    for statement in statements:
        query(dsn, statement.format(name))
    return psycopg.conninfo.make_conninfo(dsn, user=name, password="x")


def test_a_proxys_role_is_a_member_of_the_one_whose_tables_these_are(
    ledger: Path, tmp_path: Path, dsn: str, run: Run
) -> None:
    owner = f"books_{os.urandom(4).hex()}"
    query(dsn, f"CREATE ROLE {owner}")
    query(dsn, f"CREATE SCHEMA books AUTHORIZATION {owner}")
    for number in (1, 2):  # of October and November
        web = role(dsn, f"GRANT {owner} TO {{}}", f"ALTER ROLE {{}} SET role = {owner}")
        web = psycopg.conninfo.make_conninfo(web, options="-csearch_path=books")
        run("push", web, "--db", fill(tmp_path / f"{number}.db", record(number)), "--source", number)
    assert query(dsn, "SELECT count(*) FROM books.usage_records") == [(2,)]
    assert query(dsn, "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'books'") == [(owner,)]


def test_who_corrects_rows_needs_no_rights_beside_those_on_them(ledger: Path, dsn: str, run: Run) -> None:
    fill(ledger, record(1))
    run("push", dsn, "--db", ledger)
    auditor = role(dsn, "GRANT SELECT, UPDATE ON usage_records TO {}")
    query(auditor, "UPDATE usage_records SET tag = 'x'")
    user = psycopg.conninfo.conninfo_to_dict(auditor)["user"]
    assert stored(dsn, "tag", "edited_by") == [("x", user)]


def test_months_have_partitions_of_their_own(ledger: Path, dsn: str, run: Run) -> None:
    fill(ledger, *map(record, range(4)), record(9, occurred_at="2027-01-01T00:00:00.000Z"))
    run("push", dsn, "--db", ledger)
    found = query(dsn, "SELECT tableoid::regclass::text, count(*) FROM usage_records GROUP BY 1 ORDER BY 1")
    assert found == [
        (f"usage_records_{month}", count) for month, count in (("2026_10", 2), ("2026_11", 2), ("2027_01", 1))
    ]


# What goes wrong.


def test_a_killed_push_loses_nothing_and_doubles_nothing(ledger: Path, dsn: str, run: Run) -> None:
    fill(ledger, *map(timely, range(30_000)))
    for _ in range(4):
        process = subprocess.Popen(command("push", dsn, "--db", ledger), stdout=subprocess.DEVNULL)
        before = len(stored(dsn, "id")) if query(dsn, "SELECT to_regclass('usage_records')")[0][0] else 0

        def more(before: int = before, process: "subprocess.Popen[bytes]" = process) -> bool:
            there = query(dsn, "SELECT to_regclass('usage_records')")[0][0]
            return process.poll() is not None or bool(there and len(stored(dsn, "id")) > before)

        wait_until(more)
        process.send_signal(signal.SIGKILL)
        process.wait(20)
    run("push", dsn, "--db", ledger)
    assert query(dsn, "SELECT count(*), sum(total_tokens) FROM usage_records") == [(30_000, 30_000 * 54)]


def test_a_server_that_crashes_meanwhile_is_waited_for(tmp_path: Path, run: Run) -> None:
    ledger = fill(tmp_path / "usage.db", *map(timely, range(40_000)))
    with Postgres() as own:
        dsn = own.new_database()
        process = subprocess.Popen(
            command("push", dsn, "--db", ledger), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        wait_until(lambda: query(dsn, "SELECT to_regclass('usage_records')")[0][0] and stored(dsn, "id"))
        own.kill()
        assert process.stderr is not None
        line = process.stderr.readline()
        own.start()
        told, _ = process.communicate(timeout=60)
        assert "nothing can be pushed now" in line
        assert process.returncode == 0, told
        assert query(dsn, "SELECT count(*), sum(total_tokens) FROM usage_records") == [(40_000, 40_000 * 54)]


def test_who_reads_the_books_keeps_no_month_from_being_made(ledger: Path, dsn: str, run: Run) -> None:
    """Also in a transaction that somebody has forgotten."""
    fill(ledger, record(1))
    run("push", dsn, "--db", ledger)
    with psycopg.connect(dsn) as reader:
        reader.execute("SELECT count(*) FROM usage_records")
        fill(ledger, record(2))
        run("push", dsn, "--db", ledger)
        run("push", dsn, "--db", fill(ledger.with_name("other.db"), record(4)), "--source", "other")
    assert len(stored(dsn, "id")) == 3


def test_a_lock_that_somebody_holds_is_told(ledger: Path, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(ledger, record(1, usage_state="partial"))
    command_ = click.testing.CliRunner()
    assert command_.invoke(main, ["push", dsn, "--db", str(ledger)]).exit_code == 0
    fill(ledger, record(1))
    monkeypatch.setattr(server, "LOCK_SECONDS", 1)
    monkeypatch.setattr(push, "PATIENCE_SECONDS", 0)
    with psycopg.connect(dsn) as other:
        other.execute("UPDATE usage_records SET tag = 'x'")
        done = command_.invoke(main, ["push", dsn, "--db", str(ledger)], standalone_mode=False)
        assert "another session holds a lock, see pg_stat_activity; what was not pushed waits in" in str(done.exception)
        other.rollback()
    assert command_.invoke(main, ["push", dsn, "--db", str(ledger)]).exit_code == 0
    assert stored(dsn, "usage_state", "tag") == [("complete", None)]


def test_follow_outlives_what_passes(ledger: Path, dsn: str) -> None:
    """A ledger that is locked for long, and a server that takes only questions for a while."""
    fill(ledger, record(1))
    process = subprocess.Popen(
        command("push", dsn, "--db", ledger, "--follow", "--interval", "1s"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    name = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
    try:
        wait_until(lambda: query(dsn, "SELECT to_regclass('usage_records')")[0][0] and stored(dsn, "id"))
        query(dsn, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        fill(ledger, record(2))
        assert "nothing can be pushed now (cannot execute" in process.stderr.readline()
        writer = psycopg.conninfo.make_conninfo(dsn, options="-cdefault_transaction_read_only=off")
        query(writer, f"ALTER DATABASE {name} RESET default_transaction_read_only")
        assert "rows are pushed again" in process.stderr.readline()
        assert len(stored(dsn, "id")) == 2
        hidden = ledger.rename(ledger.with_name("hidden.db"))
        assert "nothing can be pushed now (" in process.stderr.readline()
        hidden.rename(ledger)
        fill(ledger, record(3))
        assert "rows are pushed again" in process.stderr.readline()
        assert len(stored(dsn, "id")) == 3
    finally:
        process.terminate()
    process.communicate(timeout=20)
    assert process.returncode == 143


def test_text_is_utf_8_whatever_the_environment_says(ledger: Path, dsn: str, run: Run) -> None:
    fill(ledger, record(1, tag="Zoë \U0001f600"))
    run("push", dsn, "--db", ledger, env={**os.environ, "PGCLIENTENCODING": "LATIN1"})
    assert stored(dsn, "tag") == [("Zoë \U0001f600",)]


def test_how_a_server_isolates_by_default_does_not_matter(tmp_path: Path, dsn: str) -> None:
    name = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
    query(dsn, f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'")
    ledgers = [fill(tmp_path / f"{number}.db", timely(number)) for number in range(4)]
    running = [
        subprocess.Popen(command("push", dsn, "--db", path, "--source", path.stem), stdout=subprocess.DEVNULL)
        for path in ledgers
    ]
    assert [process.wait(60) for process in running] == [0] * 4


def test_a_schema_of_books_may_be_renamed(ledger: Path, dsn: str, run: Run) -> None:
    query(dsn, "CREATE SCHEMA books")
    fill(ledger, record(1))
    run("push", psycopg.conninfo.make_conninfo(dsn, options="-csearch_path=books"), "--db", ledger)
    query(dsn, "ALTER SCHEMA books RENAME TO old")
    query(dsn, "UPDATE old.usage_records SET tag = 'x'")
    assert query(dsn, "SELECT edited_by IS NOT NULL FROM old.usage_records") == [(True,)]


def test_of_two_pushes_of_one_ledger_the_second_waits(ledger: Path, dsn: str, run: Run) -> None:
    """Or the slower one would put what it has read over what has come since."""
    fill(ledger, record(1))
    run("push", dsn, "--db", ledger)
    ((name,),) = sql(ledger, "SELECT value FROM fleet_state WHERE name = 'ledger'")
    fill(ledger, record(2))
    with psycopg.connect(dsn, autocommit=True) as first:
        first.execute("SELECT pg_advisory_lock(hashtextextended(%s, 7305804402131268210))", [name])
        for arguments in (("push", dsn, "--db", ledger), ("pull", dsn, "--db", ledger)):
            second = subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            assert second.stderr is not None
            assert "another push or pull of this ledger is under way; waiting" in second.stderr.readline()
            assert len(stored(dsn, "id")) == 1
            second.kill()
            second.communicate()
    run("push", dsn, "--db", ledger)
    assert len(stored(dsn, "id")) == 2


def test_several_push_at_once(tmp_path: Path, dsn: str) -> None:
    ledgers = [
        fill(tmp_path / f"{number}.db", *(timely(each) for each in range(number, 8_000, 2))) for number in (0, 1)
    ]
    ledgers.append(fill(tmp_path / "both.db", *map(timely, range(0, 8_000, 3))))
    running = [
        subprocess.Popen(command("push", dsn, "--db", path, "--source", path.stem), stdout=subprocess.DEVNULL)
        for path in ledgers
    ]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    assert query(dsn, "SELECT count(*), sum(total_tokens) FROM usage_records") == [(8_000, 8_000 * 54)]


def test_follow_pushes_what_comes(ledger: Path, dsn: str) -> None:
    fill(ledger, record(1))
    process = subprocess.Popen(
        command("push", dsn, "--db", ledger, "--follow", "--interval", "1s"), stdout=subprocess.DEVNULL
    )
    try:
        wait_until(lambda: query(dsn, "SELECT to_regclass('usage_records')")[0][0] and stored(dsn, "id"))
        fill(ledger, record(2))
        wait_until(lambda: len(stored(dsn, "id")) == 2)
    finally:
        process.terminate()
    assert process.wait(20) == 143


def wrong_dsn(dsn: str) -> str:
    return "nonsense"


def no_such_database(dsn: str) -> str:
    return psycopg.conninfo.make_conninfo(dsn, dbname="nowhere")


def no_such_user(dsn: str) -> str:
    return psycopg.conninfo.make_conninfo(dsn, user="nobody", password="hunter2")


def others_table(dsn: str) -> str:
    query(dsn, "CREATE TABLE usage_records (id int)")
    return dsn


def newer(dsn: str) -> str:
    query(dsn, "CREATE TABLE usage_schema (number int, name text, books uuid, applied_at timestamptz)")
    query(dsn, "INSERT INTO usage_schema SELECT n, 'x', gen_random_uuid(), now() FROM generate_series(1, 99) n")
    return dsn


def of_another_encoding(dsn: str) -> str:
    name = f"latin_{os.urandom(4).hex()}"
    query(dsn, f"CREATE DATABASE {name} ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0")
    return psycopg.conninfo.make_conninfo(dsn, dbname=name)


def without_rights(dsn: str) -> str:
    name = f"reader_{os.urandom(4).hex()}"
    query(dsn, f"CREATE ROLE {name} LOGIN PASSWORD 'hunter2'")
    return psycopg.conninfo.make_conninfo(dsn, user=name, password="hunter2")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (wrong_dsn, "the DSN cannot be read"),
        (no_such_database, "does not exist"),
        (no_such_user, "does not exist"),
        (others_table, "a table usage_records that usage-ledger has not made"),
        (newer, "newer version"),
        (of_another_encoding, "this database holds text in SQL_ASCII, and the books need one that was made with"),
        (without_rights, "permission denied"),
    ],
)
def test_what_cannot_be_pushed_to_is_told_in_one_line(
    ledger: Path, dsn: str, run: Run, make: Callable[[str], str], words: str
) -> None:
    fill(ledger, record(1))
    done = run("push", make(dsn), "--db", ledger, code=2)
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert "hunter2" not in done.stderr
    assert len(rows_of(ledger)) == 1


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://u:hunter2%zz@h/db",
        "postgresql://u:hunter 2@h/db",
        "password=first hunter2",
        "postgres:/u:hunter2@h",
        "postgresql://u:first@hunter2@h/db",
        "postgresql://u:first@hunter2/more@localhost:1/db",
        "postgresql://u:hunter2/more@h/db",
        "postgresql://u:hunter2@more@h/db?connect_timeout=2",
    ],
)
def test_a_dsn_that_cannot_be_read_is_not_echoed(ledger: Path, run: Run, dsn: str) -> None:
    fill(ledger, record(1))
    assert "hunter" not in run("push", dsn, "--db", ledger, code=2).stderr


def test_a_name_that_another_ledger_has_is_refused(tmp_path: Path, dsn: str, run: Run) -> None:
    first, second = (fill(tmp_path / f"{name}.db", record(1)) for name in "ab")
    run("push", dsn, "--db", first, "--source", "web")
    done = run("push", dsn, "--db", second, "--source", "web", code=2)
    assert "another ledger is pushed as web; give this one a name of its own with --source" in done.stderr


def test_rows_that_were_archived_before_they_were_pushed_are_told(tmp_path: Path, dsn: str, run: Run) -> None:
    ledger, archive = tmp_path / "usage.db", tmp_path / "old.db"
    fill(ledger, *map(record, range(4)))
    run("push", dsn, "--db", ledger, "--source", "web")
    fill(ledger, record(6), record(7))
    run("archive", "--before", "2026-11-01", archive, "--db", ledger)
    done = run("push", dsn, "--db", ledger, "--source", "web")
    assert "1 row(s) were archived before they were pushed; push the archive as well" in done.stderr
    run("push", dsn, "--db", archive, "--source", "web-old")
    assert len(stored(dsn, "id")) == 6


def test_a_ledger_may_take_another_name(ledger: Path, dsn: str, run: Run) -> None:
    fill(ledger, record(1))
    run("push", dsn, "--db", ledger, "--source", "web")
    fill(ledger, record(2))
    run("push", dsn, "--db", ledger, "--source", "web-1")
    assert query(dsn, "SELECT name FROM usage_sources") == [("web-1",)]
    assert stored(dsn, "source") == [("web",), ("web-1",)]


@pytest.mark.parametrize("name", ["", " ", "a\nb", "x" * 200])
def test_what_is_no_name_is_refused(ledger: Path, dsn: str, run: Run, name: str) -> None:
    fill(ledger, record(1))
    done = run("push", dsn, "--db", ledger, "--source", name, code=2)
    assert "is no name" in done.stderr


def test_without_the_extra_one_line_says_what_to_install(ledger: Path, tmp_path: Path, run: Run) -> None:
    fill(ledger, record(1))
    (tmp_path / "psycopg.py").write_text("raise ImportError('no pq wrapper available')")
    for name in ("push", "pull"):
        done = run(name, "dbname=x", "--db", ledger, code=2, env={**os.environ, "PYTHONPATH": str(tmp_path)})
        assert "pip install 'claude-usage-ledger[fleet]'" in done.stderr
        assert done.stderr.count("\n") == 1


def test_the_password_may_come_from_the_environment_or_a_file(ledger: Path, tmp_path: Path, dsn: str, run: Run) -> None:
    fill(ledger, record(1))
    parts = psycopg.conninfo.conninfo_to_dict(dsn)
    environment = {**os.environ, "PGHOST": str(parts["host"]), "PGDATABASE": str(parts["dbname"]), "PGUSER": "postgres"}
    assert run("push", "", "--db", ledger, env=environment).stdout.startswith("1 row(s)")
    services = tmp_path / "services"
    services.write_text(f"[books]\nhost={parts['host']}\ndbname={parts['dbname']}\nuser=postgres\n")
    done = run("push", "service=books", "--db", ledger, env={**os.environ, "PGSERVICEFILE": str(services)})
    assert done.stdout.startswith("0 row(s)")


def test_a_proxy_that_writes_is_not_disturbed(ledger: Path, dsn: str) -> None:
    """Rows that come while a push runs are in that push or in the next one."""
    fill(ledger, *map(timely, range(20_000)))
    process = subprocess.Popen(
        command("push", dsn, "--db", ledger), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    number = 20_000
    while process.poll() is None:
        fill(ledger, timely(number))
        number += 1
    assert (process.returncode, process.communicate()[1]) == (0, "")
    assert subprocess.run(command("push", dsn, "--db", ledger), stdout=subprocess.DEVNULL).returncode == 0
    assert query(dsn, "SELECT count(*) FROM usage_records") == [(number,)]
