"""The tables of the books: a partition for each month, one schema wherever it is, and whose rights they take."""

import os
from pathlib import Path

import psycopg
import pytest

from scripts.real_postgres import query
from tests.fleet.conftest import Run, fill, record, stored


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


def test_a_schema_of_books_may_be_renamed(ledger: Path, dsn: str, run: Run) -> None:
    query(dsn, "CREATE SCHEMA books")
    fill(ledger, record(1))
    run("push", psycopg.conninfo.make_conninfo(dsn, options="-csearch_path=books"), "--db", ledger)
    query(dsn, "ALTER SCHEMA books RENAME TO old")
    query(dsn, "UPDATE old.usage_records SET tag = 'x'")
    assert query(dsn, "SELECT edited_by IS NOT NULL FROM old.usage_records") == [(True,)]
