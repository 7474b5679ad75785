"""The server: it may be away, locked, read-only or none at all; whoever pushes waits for it, or says so in one line."""

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

from scripts.real_postgres import Postgres, query
from scripts.real_proxy import rows_of, wait_until
from tests.fleet.conftest import Run, command, fill, record, sql, stored, timely


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


def test_follow_begins_from_the_start_where_its_books_are_made_anew(ledger: Path, dsn: str) -> None:
    """Who follows is not in its own way."""
    query(dsn, "CREATE SCHEMA books")
    books = psycopg.conninfo.make_conninfo(dsn, options="-csearch_path=books")
    fill(ledger, record(1))
    process = subprocess.Popen(
        command("push", books, "--db", ledger, "--follow", "--interval", "1s"), stdout=subprocess.DEVNULL
    )
    try:
        wait_until(lambda: query(books, "SELECT to_regclass('usage_records')")[0][0] and stored(books, "id"))
        query(dsn, "DROP SCHEMA books CASCADE; CREATE SCHEMA books")
        fill(ledger, record(2))
        wait_until(lambda: query(books, "SELECT to_regclass('usage_records')")[0][0] and len(stored(books, "id")) == 2)
    finally:
        process.terminate()
    assert process.wait(20) == 143


def test_a_ledger_that_is_followed_into_one_set_of_books_goes_to_no_other(
    ledger: Path, postgres: Postgres, dsn: str, run: Run
) -> None:
    """Each would begin from the start at every interval; whoever comes second stops."""
    fill(ledger, record(1))
    other = postgres.new_database()
    process = subprocess.Popen(
        command("push", dsn, "--db", ledger, "--follow", "--interval", "1s"), stderr=subprocess.PIPE, text=True
    )
    try:
        wait_until(lambda: query(dsn, "SELECT to_regclass('usage_records')")[0][0] and stored(dsn, "id"))
        for arguments in ((), ("--follow",)):
            done = run("push", other, "--db", ledger, *arguments, code=2)
            assert done.stderr.startswith("usage-ledger: a push --follow of this ledger to other books is running")
            assert done.stderr.count("\n") == 1
        assert stored(other, "id") == []
        run("push", dsn, "--db", ledger)
        fill(ledger, record(2))
        wait_until(lambda: len(stored(dsn, "id")) == 2)
    finally:
        process.kill()
    assert process.communicate(timeout=20)[1] == ""
    run("push", other, "--db", ledger)
    assert len(stored(other, "id")) == 2


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


def test_without_the_extra_one_line_says_what_to_install(ledger: Path, tmp_path: Path, run: Run) -> None:
    fill(ledger, record(1))
    (tmp_path / "psycopg.py").write_text("raise ImportError('no pq wrapper available')")
    for name in ("push", "pull"):
        done = run(name, "dbname=x", "--db", ledger, code=2, env={**os.environ, "PYTHONPATH": str(tmp_path)})
        assert "pip install 'claude-usage-ledger[fleet]'" in done.stderr
        assert done.stderr.count("\n") == 1


def test_a_pause_of_no_time_is_refused(ledger: Path, dsn: str, run: Run) -> None:
    fill(ledger, record(1))
    done = run("push", dsn, "--db", ledger, "--follow", "--interval", "0s", code=2)
    assert "--interval is no time at all" in done.stderr


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
