"""Pushing: each settled row is in the books once, in PostgreSQL's types, and never replaced by a worse one."""

import json
from pathlib import Path

import psycopg
import pytest
from usage_ledger.ledger.columns import COLUMNS
from usage_ledger.ledger.record import IterationRow

from scripts.real_postgres import query
from scripts.real_proxy import replay, rows_of
from tests.fleet.conftest import FLAGGED, Run, backfill, fill, record, sql, stored, timely

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


def test_a_name_that_another_ledger_has_is_refused(tmp_path: Path, dsn: str, run: Run) -> None:
    first, second = (fill(tmp_path / f"{name}.db", record(1)) for name in "ab")
    run("push", dsn, "--db", first, "--source", "web")
    done = run("push", dsn, "--db", second, "--source", "web", code=2)
    assert "another ledger is pushed as web; give this one a name of its own with --source" in done.stderr


@pytest.mark.parametrize("pushed", [("usage", "old"), ("old", "usage")])
def test_what_the_trail_says_of_archived_rows_is_in_the_books_once(
    tmp_path: Path, dsn: str, run: Run, pushed: tuple[str, str]
) -> None:
    """An archive has it in a chain of its own; whichever is pushed first."""
    ledger, archive = tmp_path / "usage.db", tmp_path / "old.db"
    fill(ledger, record(1, **FLAGGED), record(2, **FLAGGED))
    for number in (1, 2):
        backfill(run, ledger, number, 5)
    run("archive", "--before", "2026-11-01", archive, "--db", ledger)
    for name in pushed:
        run("push", dsn, "--db", tmp_path / f"{name}.db", "--source", name, code=None)
    entries = query(dsn, "SELECT record_id, source FROM usage_revisions WHERE record_id IS NOT NULL ORDER BY 1")
    assert entries == [(record(1).id, "backfill"), (record(2).id, "backfill")]
    assert query(dsn, "SELECT count(*) FROM usage_revisions WHERE source = 'archive'") == [(3,)]
    backfill_again = ("backfill", "--id", record(2).id, "--input-tokens", 7, "--note", "y", "--force", "--db", archive)
    run(*backfill_again)
    run("push", dsn, "--db", archive, "--source", "old")
    run("push", dsn, "--db", ledger, "--source", "usage")
    assert query(dsn, "SELECT count(*) FROM usage_revisions WHERE source = 'backfill'") == [(3,)]


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
