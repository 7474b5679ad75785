"""The schema: the contract's columns, strict, marked as ours, and safe to bring up to date at any time by anybody."""

import sqlite3
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from sqlite_utils import Database
from usage_ledger.ledger import columns, schema
from usage_ledger.ledger.columns import ITERATION_COLUMNS
from usage_ledger.ledger.marks import APPLICATION_ID, MAJOR, LedgerError
from usage_ledger.ledger.record import Entry, IterationRow, Record
from usage_ledger.ledger.store import Store

CONTRACT = [
    "id",
    "occurred_at",
    "completed_at",
    "account_id",
    "api_key_hint",
    "credential_kind",
    "organization_id",
    "workspace_id",
    "request_id",
    "session_id",
    "tag",
    "host",
    "path",
    "requested_model",
    "model",
    "message_id",
    "stop_reason",
    "service_tier",
    "inference_geo",
    "speed",
    "stream",
    "http_status",
    "input_tokens",
    "output_tokens",
    "cache_creation_input_tokens",
    "cache_creation_5m_input_tokens",
    "cache_creation_1h_input_tokens",
    "cache_read_input_tokens",
    "thinking_tokens",
    "web_search_requests",
    "web_fetch_requests",
    "total_tokens",
    "usage_state",
    "requires_manual_review",
    "review_reason",
    "total_cost",
    "price_source",
    "duration_ms",
    "time_to_first_token_ms",
    "response_bytes",
    "origin",
    "usage_raw",
    "metadata",
    "writer",
]
INTEGERS = {
    "stream",
    "http_status",
    "requires_manual_review",
    "web_search_requests",
    "web_fetch_requests",
    "duration_ms",
    "time_to_first_token_ms",
    "response_bytes",
}
NEVER_NULL = {name for name in CONTRACT if name.endswith("_tokens")} | {"web_search_requests", "web_fetch_requests"}


def connect(path: Path) -> "closing[sqlite3.Connection]":
    return closing(sqlite3.connect(path, isolation_level=None, timeout=30))


def migrated(path: Path) -> Path:
    with connect(path) as connection:
        schema.migrate(connection)
    return path


def described(path: Path, table: str) -> list[tuple[str, str, int]]:
    """Name, type and NOT NULL of each column, in the table's order."""
    with connect(path) as connection:
        return [(row[1], row[2], row[3]) for row in connection.execute(f"PRAGMA table_info({table})")]


def whole_schema(path: Path) -> list[tuple[str, ...]]:
    with connect(path) as connection:
        return connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY name").fetchall()


def marks(path: Path) -> tuple[int, int]:
    with connect(path) as connection:
        return tuple(connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))


def test_the_columns_are_those_of_the_contract_in_its_order(tmp_path: Path) -> None:
    found = described(migrated(tmp_path / "usage.db"), "usage_records")
    assert [name for name, _, _ in found] == CONTRACT


def test_what_builds_and_reads_rows_knows_the_same_columns() -> None:
    assert list(columns.COLUMNS) == CONTRACT
    assert Record.__struct_fields__ == columns.COLUMNS


def test_iterations_are_encoded_in_the_order_of_their_table(tmp_path: Path) -> None:
    found = described(migrated(tmp_path / "usage.db"), "usage_iterations")
    assert tuple(name for name, _, _ in found) == ITERATION_COLUMNS == IterationRow.__struct_fields__


def test_counts_are_integers_and_everything_else_is_text(tmp_path: Path) -> None:
    for name, kind, _ in described(migrated(tmp_path / "usage.db"), "usage_records"):
        assert kind == ("INTEGER" if name.endswith("_tokens") or name in INTEGERS else "TEXT"), name


def test_token_columns_are_never_null(tmp_path: Path) -> None:
    found = {name: not_null for name, _, not_null in described(migrated(tmp_path / "usage.db"), "usage_records")}
    assert all(found[name] for name in NEVER_NULL)


@pytest.mark.parametrize("table", ["usage_records", "usage_iterations", "usage_revisions"])
def test_tables_are_strict(tmp_path: Path, table: str) -> None:
    with connect(migrated(tmp_path / "usage.db")) as connection:
        strict = {row[1]: row[5] for row in connection.execute("PRAGMA table_list")}
    assert strict[table] == 1


def test_a_ledger_is_marked_with_its_application_and_its_major_version(tmp_path: Path) -> None:
    assert marks(migrated(tmp_path / "usage.db")) == (APPLICATION_ID, MAJOR)


def test_pages_are_so_large_that_rows_fill_them(tmp_path: Path) -> None:
    with connect(migrated(tmp_path / "usage.db")) as connection:
        assert connection.execute("PRAGMA page_size").fetchone() == (8192,)


def test_an_empty_file_becomes_a_ledger(tmp_path: Path) -> None:
    path = tmp_path / "usage.db"
    path.touch()
    assert [name for name, _, _ in described(migrated(path), "usage_records")] == CONTRACT


def test_migrating_twice_changes_nothing(tmp_path: Path) -> None:
    path = migrated(tmp_path / "usage.db")
    before, content = whole_schema(path), path.read_bytes()
    migrated(path)
    assert (whole_schema(path), path.read_bytes()) == (before, content)


def test_each_migration_is_applied_once_and_by_name(tmp_path: Path) -> None:
    path = migrated(migrated(tmp_path / "usage.db"))
    with connect(path) as connection:
        applied = [row["name"] for row in Database(connection)["_sqlite_migrations"].rows]
    assert len(applied) == len(set(applied))
    assert "create_usage_records" in applied


MIGRATE_WHEN_TOLD = """
import sqlite3, sys
from contextlib import closing
from usage_ledger.ledger.schema import migrate
print("ready", flush=True)
sys.stdin.read()
with closing(sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)) as connection:
    migrate(connection)
"""


def test_several_processes_may_migrate_at_once(tmp_path: Path) -> None:
    path, pipe = tmp_path / "usage.db", subprocess.PIPE
    command = [sys.executable, "-c", MIGRATE_WHEN_TOLD, str(path)]
    with ExitStack() as stack:
        processes = [
            stack.enter_context(subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe)) for _ in range(6)
        ]
        assert [process.stdout.readline() for process in processes] == [b"ready\n"] * 6
        for process in processes:
            process.stdin.close()
        assert [process.stderr.read() for process in processes] == [b""] * 6
    assert [process.returncode for process in processes] == [0] * 6
    assert whole_schema(path) == whole_schema(migrated(tmp_path / "alone.db"))


def test_an_older_program_writes_to_a_ledger_with_columns_it_does_not_know(tmp_path: Path) -> None:
    """Migrations are additive within a major version, so that old and new proxies share a ledger."""
    path = migrated(tmp_path / "usage.db")
    with connect(path) as connection:
        connection.execute("ALTER TABLE usage_records ADD COLUMN from_the_future TEXT")
    store = Store(path, "normal", "abc")
    with closing(store):
        store.write([Entry(Record(id="a", occurred_at="2026-11-01T00:00:00.000Z", host="h", path="/"))], [])
    with connect(path) as connection:
        assert connection.execute("SELECT id, from_the_future FROM usage_records").fetchall() == [("a", None)]


def newer_major(path: Path) -> None:
    with connect(migrated(path)) as connection:
        connection.execute(f"PRAGMA user_version = {MAJOR + 1}")


def somebody_elses(path: Path) -> None:
    with connect(path) as connection:
        connection.execute("CREATE TABLE notes (body TEXT)")
        connection.execute("INSERT INTO notes VALUES ('mine')")


def another_application(path: Path) -> None:
    with connect(path) as connection:
        connection.execute("PRAGMA application_id = 42")


def not_a_database(path: Path) -> None:
    path.write_text("Dear diary,\n" * 500)


@pytest.mark.parametrize("make", [newer_major, somebody_elses, another_application, not_a_database])
def test_what_is_not_ours_to_write_is_refused_and_left_untouched(tmp_path: Path, make) -> None:
    path = tmp_path / "usage.db"
    make(path)
    before = path.read_bytes()
    with pytest.raises(LedgerError) as refused:
        Store(path, "full", "abc")
    assert "\n" not in str(refused.value)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["usage.db"]


def test_a_newer_major_is_refused_with_the_way_out(tmp_path: Path) -> None:
    newer_major(tmp_path / "usage.db")
    with pytest.raises(LedgerError, match=r"newer major version.*upgrade"):
        Store(tmp_path / "usage.db", "full", "abc")
