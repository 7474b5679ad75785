"""Ledgers and books that are not what they were: restored from a backup, copied, or others."""

import socket
from pathlib import Path

import pytest
from usage_ledger.fleet.exchange import begin
from usage_ledger.fleet.pushing import Pusher
from usage_ledger.fleet.server import open_books
from usage_ledger.ledger.marks import LedgerError
from usage_ledger.ledger.outbox import open_outbox
from usage_ledger.ledger.pairing import Pushes
from usage_ledger.ledger.record import IterationRow

from scripts.real_postgres import Postgres, query
from scripts.real_proxy import rows_of
from tests.fleet.conftest import FLAGGED, Run, backfill, fill, record, shown, sql, stored


def test_books_that_are_begun_anew_get_everything(ledger: Path, postgres: Postgres, dsn: str, run: Run) -> None:
    fill(ledger, *map(record, range(5)))
    run("push", dsn, "--db", ledger)
    other = postgres.new_database()
    run("push", other, "--db", ledger)
    assert len(stored(other, "id")) == 5


def test_a_copy_of_the_ledger_with_another_trail_is_refused(tmp_path: Path, dsn: str, run: Run) -> None:
    first, second = tmp_path / "a.db", tmp_path / "b.db"
    fill(first, record(1, **FLAGGED))
    run("push", dsn, "--db", first, "--source", "web")
    run("backup", second, "--db", first)
    for path, tokens in ((first, 5), (second, 6)):
        counts = ("--input-tokens", tokens, "--output-tokens", 1)
        run("backfill", "--id", record(1).id, *counts, "--note", "x", "--db", path)
    run("push", dsn, "--db", first, "--source", "web")
    done = run("push", dsn, "--db", second, "--source", "web", code=2)
    assert "entry 1 of this ledger's trail is not the one that was pushed" in done.stderr


def test_a_ledger_that_was_restored_takes_no_correction_back(tmp_path: Path, dsn: str, run: Run) -> None:
    ledger, backup = tmp_path / "usage.db", tmp_path / "backup.db"
    fill(ledger, record(1, **FLAGGED), record(2, **FLAGGED))
    run("push", dsn, "--db", ledger, "--source", "web")
    run("backup", backup, "--db", ledger)
    counts = ("--input-tokens", 5, "--output-tokens", 1, "--note", "x")
    run("backfill", "--id", record(1).id, *counts, "--db", ledger)
    run("push", dsn, "--db", ledger, "--source", "web")
    done = run("push", dsn, "--db", backup, "--source", "web", code=2)
    assert (
        "restored from a backup, or is a copy; push it with --as-new (a copy with a --source of its own)" in done.stderr
    )
    fill(backup, record(3))
    run("push", dsn, "--db", backup, "--source", "web", "--as-new")
    run("pull", dsn, "--db", backup)
    run("backfill", "--id", record(2).id, *counts, "--db", backup)
    run("push", dsn, "--db", backup, "--source", "web")
    assert stored(dsn, "input_tokens") == [(5,), (5,), (12,)]
    assert "all is well" in run("verify", "--db", backup).stdout
    assert query(dsn, "SELECT source, count(*) FROM usage_records GROUP BY source") == [("web", 3)]


def test_a_copy_takes_no_name_from_the_original_unless_somebody_says_so(tmp_path: Path, dsn: str, run: Run) -> None:
    """Both have the host's name. It cannot be told whether the original lives; if it does, it is told what is so."""
    original, copy = fill(tmp_path / "a.db", record(1)), tmp_path / "b.db"
    run("push", dsn, "--db", original)
    run("backup", copy, "--db", original)
    name = socket.gethostname()
    for more in ((), ("--as-new",), ()):
        fill(original, record(2))
        run("push", dsn, "--db", original)
        done = run("push", dsn, "--db", copy, *more, code=2)
    assert (
        f"another ledger is pushed as {name}; where this one is a copy of it, give it a name of its own with --source; "
        f"where it was restored in its place, say --as-new --source {name}" in done.stderr
    )
    assert done.stderr.count("\n") == 1
    run("push", dsn, "--db", copy, "--as-new", "--source", name)
    run("push", dsn, "--db", copy)
    done = run("push", dsn, "--db", original, code=2)
    assert done.stderr.startswith(f"usage-ledger: another ledger is pushed as {name}; give this one a name of its own")
    fill(original, record(3))
    run("push", dsn, "--db", original, "--source", "web-1")
    assert sorted(query(dsn, "SELECT name FROM usage_sources")) == sorted([(name,), ("web-1",)])
    assert len(stored(dsn, "id")) == 3


def test_books_that_were_restored_get_what_they_lack(
    ledger: Path, tmp_path: Path, postgres: Postgres, dsn: str, run: Run
) -> None:
    fill(ledger, record(1, **FLAGGED))
    run("push", dsn, "--db", ledger)
    restored = postgres.copy_of(dsn)
    fill(ledger, record(2))
    run("backfill", "--id", record(1).id, "--input-tokens", 5, "--output-tokens", 1, "--note", "x", "--db", ledger)
    run("push", dsn, "--db", ledger)
    done = run("push", restored, "--db", ledger)
    assert "the books are older than what was pushed to them: everything is pushed once more" in done.stderr
    assert stored(restored, "id", "input_tokens") == stored(dsn, "id", "input_tokens")
    assert query(restored, "SELECT count(*) FROM usage_revisions") == [(1,)]
    assert run("pull", restored, "--db", ledger).stderr == ""
    assert run("push", restored, "--db", ledger).stderr == ""


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


def test_books_that_were_restored_take_no_better_value_away(
    proxy: Path, desk: Path, postgres: Postgres, dsn: str, run: Run
) -> None:
    """Also where what changed since is no correction, and where the next thing is a pull."""
    fill(proxy, record(1), record(2))
    run("push", dsn, "--db", proxy, "--source", "web-1")
    run("pull", dsn, "--db", desk)
    restored = postgres.copy_of(dsn)
    run("price", "--db", proxy)
    run("push", dsn, "--db", proxy, "--source", "web-1")
    run("pull", dsn, "--db", desk)
    sql(desk, "UPDATE usage_records SET tag = 'x' WHERE id = ?", record(2).id)
    run("push", dsn, "--db", desk, "--source", "desk")
    run("pull", dsn, "--db", proxy)
    for path, name in ((proxy, "web-1"), (desk, "desk")):
        done = run("pull", restored, "--db", path, code=None)
        assert [row["total_cost"] for row in rows_of(path)] == ["0.000666", "0.000666"]
        if done.returncode:
            run("pull", restored, "--db", path, "--prefer", "ours")
        run("push", restored, "--db", path, "--source", name)
    columns = ("id", "total_cost::text", "tag")
    assert stored(restored, *columns) == stored(dsn, *columns)


def test_what_was_made_from_anothers_word_gives_way_to_it_only_where_that_is_said(
    proxy: Path, desk: Path, postgres: Postgres, dsn: str, run: Run
) -> None:
    """The books were restored to what the desk had said; what the proxy has made of it since is newer, or it is not."""
    fill(proxy, record(1))
    run("push", dsn, "--db", proxy, "--source", "web-1")
    run("pull", dsn, "--db", desk)
    sql(desk, "UPDATE usage_records SET tag = 'x'")
    run("push", dsn, "--db", desk, "--source", "desk")
    run("pull", dsn, "--db", proxy)
    restored = postgres.copy_of(dsn)
    run("price", "--db", proxy)
    run("push", dsn, "--db", proxy, "--source", "web-1")
    for name in ("push", "pull"):
        done = run(name, restored, "--db", proxy, code=1)
        assert f"row {record(1).id} was changed here and in the books" in done.stderr
    run("pull", restored, "--db", proxy, "--prefer", "ours")
    run("push", restored, "--db", proxy, "--source", "web-1")
    assert stored(restored, "tag", "total_cost::text") == [("x", "0.000666")]


def test_a_desk_that_only_pulls_takes_nothing_back_from_books_that_were_restored(
    proxy: Path, desk: Path, postgres: Postgres, dsn: str, run: Run
) -> None:
    """It knows a later version of the row; once the proxy has pushed once more, both say the same."""
    fill(proxy, record(1))
    run("push", dsn, "--db", proxy, "--source", "web-1")
    restored = postgres.copy_of(dsn)
    run("price", "--db", proxy)
    run("push", dsn, "--db", proxy, "--source", "web-1")
    run("pull", dsn, "--db", desk)
    done = run("pull", restored, "--db", desk, code=1)
    assert f"row {record(1).id} was changed here and in the books" in done.stderr
    assert rows_of(desk)[0]["total_cost"] == "0.000666"
    run("push", restored, "--db", proxy, "--source", "web-1")
    assert run("pull", restored, "--db", desk).stderr == ""
    assert rows_of(desk)[0]["total_cost"] == "0.000666"


def test_what_only_the_trail_says_is_pushed_once_more_too(ledger: Path, postgres: Postgres, dsn: str, run: Run) -> None:
    fill(ledger, record(2))
    run("push", dsn, "--db", ledger)
    restored = postgres.copy_of(dsn)
    run("close", "--until", "2026-11-01", "--note", "October", "--db", ledger)
    run("push", dsn, "--db", ledger)
    run("push", restored, "--db", ledger)
    assert query(restored, "SELECT source FROM usage_revisions") == [("close",)]


def test_a_ledger_without_a_trail_that_was_restored_is_refused(tmp_path: Path, dsn: str, run: Run) -> None:
    ledger, backup = tmp_path / "usage.db", tmp_path / "backup.db"
    fill(ledger, record(1))
    run("push", dsn, "--db", ledger, "--source", "web")
    run("backup", backup, "--db", ledger)
    sql(ledger, "UPDATE usage_records SET total_cost = '0.000666'")
    run("push", dsn, "--db", ledger, "--source", "web")
    for name in ("push", "pull"):
        done = run(name, dsn, "--db", backup, code=2)
        assert "the books have more of this ledger than it has pushed itself: the ledger was restored" in done.stderr
    assert stored(dsn, "total_cost::text") == [("0.000666",)]
    run("push", dsn, "--db", backup, "--source", "web", "--as-new")
    run("pull", dsn, "--db", backup)
    assert rows_of(backup)[0]["total_cost"] == "0.000666"


def test_of_two_copies_that_are_pushed_in_turn_the_second_is_refused(tmp_path: Path, dsn: str, run: Run) -> None:
    first, second = tmp_path / "a.db", tmp_path / "b.db"
    fill(first, record(1))
    run("push", dsn, "--db", first, "--source", "web")
    run("backup", second, "--db", first)
    for path, number in ((first, 2), (second, 3)):
        fill(path, record(number))
    run("push", dsn, "--db", first, "--source", "web")
    done = run("push", dsn, "--db", second, "--source", "web", code=2)
    assert "the ledger was restored from a backup, or is a copy; push it with --as-new" in done.stderr
    run("push", dsn, "--db", second, "--source", "web-2", "--as-new")
    run("push", dsn, "--db", first, "--source", "web")
    assert len(stored(dsn, "id")) == 3


def test_as_new_may_be_asked_for_again_and_doubles_nothing(tmp_path: Path, dsn: str, run: Run) -> None:
    first, second = tmp_path / "a.db", tmp_path / "b.db"
    fill(first, record(1, **FLAGGED), record(2))
    backfill(run, first, 1, 5)
    run("push", dsn, "--db", first, "--source", "web")
    run("backup", second, "--db", first)
    run("push", "nonsense", "--db", second, "--as-new", code=2)
    query(dsn, "INSERT INTO usage_sources (name, ledger) VALUES ('desk', gen_random_uuid())")
    run("push", dsn, "--db", second, "--source", "desk", "--as-new", code=2)  # a name that another one has
    run("push", dsn, "--db", second, "--source", "web", "--as-new")
    assert query(dsn, "SELECT count(*) FROM usage_revisions") == [(1,)]
    run("backfill", "--id", record(1).id, "--input-tokens", 7, "--note", "y", "--force", "--db", second)
    run("push", dsn, "--db", second, "--source", "web")
    assert query(dsn, "SELECT position FROM usage_revisions ORDER BY position") == [(1,), (2,)]
    assert query(dsn, "SELECT count(*) FROM usage_sources WHERE name = 'web'") == [(1,)]
    assert stored(dsn, "input_tokens") == [(7,), (12,)]


def test_books_that_were_restored_to_before_a_ledger_was_pushed_as_new_know_it_by_what_it_was(
    tmp_path: Path, postgres: Postgres, dsn: str, run: Run
) -> None:
    """Also where that was done twice; what it says goes on under its name, and its trail is there once."""
    ledger, backup = tmp_path / "usage.db", tmp_path / "backup.db"
    fill(ledger, record(1, **FLAGGED))
    backfill(run, ledger, 1, 5)
    run("push", dsn, "--db", ledger, "--source", "web")
    run("backup", backup, "--db", ledger)
    restored = postgres.copy_of(dsn)
    for number in (2, 3):
        run("push", dsn, "--db", backup, "--source", "web", "--as-new")
        fill(backup, record(number))
    run("push", dsn, "--db", backup, "--source", "web")
    done = run("push", restored, "--db", backup, "--source", "web")
    assert "the books are older than what was pushed to them" in done.stderr
    assert len(stored(restored, "id")) == 3
    assert query(restored, "SELECT position FROM usage_revisions") == [(1,)]
    assert run("push", restored, "--db", backup, "--source", "web").stderr == ""


def test_what_changes_in_a_ledger_that_was_pushed_as_new_reaches_the_books(tmp_path: Path, dsn: str, run: Run) -> None:
    ledger = fill(tmp_path / "usage.db", record(1))
    run("push", dsn, "--db", ledger, "--source", "web")
    run("push", dsn, "--db", ledger, "--source", "web", "--as-new")
    run("price", "--db", ledger)
    run("push", dsn, "--db", ledger, "--source", "web")
    assert stored(dsn, "total_cost::text") == [("0.000666",)]
    run("pull", dsn, "--db", ledger)
    assert rows_of(ledger)[0]["total_cost"] == "0.000666"


def test_books_that_a_ledger_comes_back_to_are_no_riddle(ledger: Path, postgres: Postgres, dsn: str, run: Run) -> None:
    other = postgres.new_database()
    for number, books in enumerate((dsn, other, dsn, other)):
        fill(ledger, record(number))
        run("push", books, "--db", ledger)
    assert len(stored(dsn, "id")) == 3
    assert len(stored(other, "id")) == 4


def test_a_version_that_was_before_the_books_were_restored_does_not_come_again(
    proxy: Path, desk: Path, postgres: Postgres, dsn: str, run: Run
) -> None:
    """Or an edit made after that would be taken for one that is known."""
    fill(proxy, record(1))
    run("push", dsn, "--db", proxy, "--source", "web-1")
    run("pull", dsn, "--db", desk)
    restored = postgres.copy_of(dsn)
    query(dsn, "UPDATE usage_records SET tag = 'a'")
    run("pull", dsn, "--db", desk)
    query(restored, "UPDATE usage_records SET tag = 'b'")
    run("pull", restored, "--db", desk)
    assert rows_of(desk)[0]["tag"] == "b"
    run("push", restored, "--db", desk, "--source", "desk")
    assert stored(restored, "tag", "edited_at IS NOT NULL") == [("b", True)]


def test_an_edit_of_an_iteration_in_books_that_were_restored_is_heard_of_where_the_row_is_the_same(
    proxy: Path, desk: Path, postgres: Postgres, dsn: str, run: Run
) -> None:
    fill(proxy, record(1), iterations=(IterationRow(record(1).id, 0, "message", None, 1, 12, 42),))
    run("push", dsn, "--db", proxy, "--source", "web-1")
    run("pull", dsn, "--db", desk)
    restored = postgres.copy_of(dsn)
    fill(desk, record(2))
    run("push", dsn, "--db", desk, "--source", "desk")
    query(restored, "UPDATE usage_iterations SET total_cost = 0.5")
    done = run("push", restored, "--db", desk, "--source", "desk", code=1)
    assert f"row {record(1).id} was changed here and in the books" in done.stderr
    run("pull", restored, "--db", desk, "--prefer", "theirs")
    assert sql(desk, "SELECT total_cost FROM usage_iterations") == [("0.5",)]


def test_rows_that_are_in_an_archive_are_told_where_books_want_all_rows(
    tmp_path: Path, ledger: Path, postgres: Postgres, dsn: str, run: Run
) -> None:
    fill(ledger, *map(record, range(4)))
    empty = postgres.new_database()
    run("push", dsn, "--db", ledger)
    run("archive", "--before", "2026-11-01", tmp_path / "old.db", "--db", ledger)
    assert run("push", dsn, "--db", ledger).stderr == ""
    done = run("push", empty, "--db", ledger)
    assert "2 row(s) were archived before they were pushed; push the archive as well" in done.stderr


def test_a_ledger_that_is_pushed_to_two_books_at_once_counts_on_neither(ledger: Path) -> None:
    """It has one place to go on from; whoever comes second takes it, and the first one stops."""
    fill(ledger, record(1), record(2))
    with open_outbox(ledger) as first, open_outbox(ledger) as second:
        first.begin_for("11111111-1111-4111-8111-111111111111", Pushes())
        batch = first.take(10, first.last())
        assert batch is not None
        second.begin_for("22222222-2222-4222-8222-222222222222", Pushes())
        with pytest.raises(LedgerError, match="with other books, came between; run it again"):
            first.acknowledge(batch)
        assert second.take(10, second.last()) == batch


def test_a_ledger_whose_pushes_were_ended_twice_in_a_row_is_no_copy(ledger: Path, dsn: str, run: Run) -> None:
    """Once before it heard that its batch was stored, and once before anything was."""
    fill(ledger, record(1))
    run("push", dsn, "--db", ledger)
    fill(ledger, record(2))
    with open_outbox(ledger) as outbox, open_books(dsn) as (connection, books):
        begin(connection, books, outbox, print)
        pusher = Pusher(outbox, connection, socket.gethostname())
        outbox.acknowledge = broken  # type: ignore[method-assign]
        with pytest.raises(OSError, match="killed"):
            list(pusher.push())
    with open_outbox(ledger) as outbox, open_books(dsn) as (connection, books):
        begin(connection, books, outbox, print)
        outbox.begin_run()
    run("push", dsn, "--db", ledger)
    assert len(stored(dsn, "id")) == 2


def broken(*_: object, **__: object) -> None:
    raise OSError("killed")
