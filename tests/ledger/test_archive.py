"""Archive: every row is in at least one ledger at every moment, and nothing brings an archived one back."""

import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from usage_ledger.ledger import archive as archiving
from usage_ledger.ledger import trail
from usage_ledger.ledger.archive import Archived, archive
from usage_ledger.ledger.closing import broken as broken_closings
from usage_ledger.ledger.editing import Change, open_for_editing
from usage_ledger.ledger.filters import Filters
from usage_ledger.ledger.marks import LedgerError
from usage_ledger.ledger.reading import open_for_reading
from usage_ledger.ledger.record import Entry, IterationRow
from usage_ledger.ledger.seals import broken
from usage_ledger.ledger.store import Store
from usage_ledger.ledger.summary import summarize

from tests.ledger.test_closing import NOVEMBER, close, record, sql, write

ROOT = Path(__file__).parent.parent.parent


def archivable(path: Path) -> Path:
    """Make a ledger with five rows that can be archived, and three that stay."""
    entries = [
        Entry(record("a", request_id="req_a", message_id="msg_a")),
        Entry(record("b", credential_kind="oauth", message_id="msg_b")),
        Entry(record("c"), [IterationRow("c", place, "message", None, 1, input_tokens=500) for place in (0, 1)]),
        Entry(record("d", total_cost=None)),
        Entry(record("none", usage_state="none", total_cost="0", input_tokens=0, total_tokens=0)),
        Entry(record("flagged", usage_state="missing", total_cost=None, requires_manual_review=1)),
        Entry(record("pending", usage_state="pending", total_cost=None)),
        Entry(record("nov", "2026-11-05")),
    ]
    with closing(Store(path, "normal", "abc")) as store:
        store.write(entries, [])
    with open_for_editing(path) as editor:
        for id_ in ("a", "nov"):
            editor.change("review", [Change(id_, "x", {"tag": None}, {"tag": "team"})])
    return path


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return archivable(tmp_path / "usage.db")


def move(ledger: Path, target: Path, before: str = NOVEMBER) -> Archived | None:
    with open_for_editing(ledger) as editor:
        return archive(editor, before, target, "", lambda _rows: None)


def ids(*paths: Path) -> list[str]:
    with open_for_reading(*paths) as reader:
        return sorted(row[0] for row in reader.rows(Filters(), ["id"]))


def rows(*paths: Path) -> list[tuple[Any, ...]]:
    """All that is in one or more ledgers, and what is said of it."""
    with open_for_reading(*paths) as reader:
        tables = (
            "SELECT * FROM usage_records ORDER BY id",
            "SELECT * FROM usage_iterations ORDER BY record_id, position",
            "SELECT record_id, revised_at, before, after FROM usage_revisions WHERE record_id > '' ORDER BY 1, 2",
        )
        return [row for table in tables for row in reader.connection.execute(table)]


def is_well(path: Path) -> bool:
    with open_for_reading(path) as reader:
        findings = [*trail.broken(reader), *broken_closings(reader), *broken(reader), *reader.integrity()]
        return findings == [] and trail.revised_but_gone(reader) == []


def totals(*paths: Path) -> dict[str, Any]:
    with open_for_reading(*paths) as reader:
        return next(summarize(reader, Filters(), ())).fields()


def test_settled_rows_move_with_all_that_belongs_to_them(ledger: Path, tmp_path: Path) -> None:
    before, sums = rows(ledger), totals(ledger)
    target = tmp_path / "old.db"
    moved = move(ledger, target)
    assert moved is not None
    assert (moved.totals["requests"], moved.pending, moved.flagged, moved.changed) == (5, 1, 1, 0)
    assert ids(target) == ["a", "b", "c", "d", "none"]
    assert ids(ledger) == ["flagged", "nov", "pending"]
    assert rows(ledger, target) == before
    assert totals(ledger, target) == sums
    assert is_well(ledger)
    assert is_well(target)


def test_an_entry_records_count_totals_and_the_copys_last_hash(ledger: Path, tmp_path: Path) -> None:
    move(ledger, tmp_path / "old.db")
    with open_for_reading(tmp_path / "old.db") as copy:
        (hash_,) = copy.connection.execute("SELECT hash FROM usage_revisions ORDER BY position DESC").fetchone()
    with open_for_reading(ledger) as reader:
        source, record_id, after = reader.connection.execute(
            "SELECT source, record_id, after FROM usage_revisions ORDER BY position DESC"
        ).fetchone()
    told = json.loads(after)
    assert (source, record_id, told["archive_hash"], told["archive"]) == ("archive", None, hash_, "old.db")
    wanted = {"requests": 5, "input_tokens": 4_000, "unpriced": 1, "unsettled": 0}
    assert {name: told[name] for name in wanted} == wanted
    assert (told["billed_cost"], told["subscription_list_price"]) == ("0.006", "0.003")


def test_closed_books_still_agree_with_what_was_archived_from_them(ledger: Path, tmp_path: Path) -> None:
    sql(ledger, "DELETE FROM usage_records WHERE id = 'pending'")
    close(ledger, "2026-10-01T00:00:00.000Z")
    close(ledger, NOVEMBER)
    move(ledger, tmp_path / "old.db")
    assert is_well(ledger)
    sql(ledger, "DELETE FROM usage_records WHERE id = 'flagged'")
    assert not is_well(ledger)


def test_rows_of_a_closed_period_are_archived_without_being_late(ledger: Path, tmp_path: Path) -> None:
    sql(ledger, "DELETE FROM usage_records WHERE id = 'pending'")
    close(ledger, NOVEMBER)
    move(ledger, tmp_path / "old.db", "2026-10-20T00:00:00.000Z")
    again = close(ledger, NOVEMBER)
    assert (again["late"], again["requests"]) == (0, 6)  # closed again, it has what was archived as well
    assert is_well(ledger)


def test_a_late_row_of_an_archived_period_is_taken_in_and_archived_in_its_turn(ledger: Path, tmp_path: Path) -> None:
    sql(ledger, "DELETE FROM usage_records WHERE id = 'pending'")
    close(ledger, NOVEMBER)
    move(ledger, tmp_path / "old.db")
    write(ledger, record("late"))
    assert not is_well(ledger)
    move(ledger, tmp_path / "older.db")
    assert close(ledger, NOVEMBER)["requests"] == 7
    assert is_well(ledger)
    assert totals(ledger, tmp_path / "old.db", tmp_path / "older.db")["requests"] == 8


def test_what_was_archived_before_is_part_of_the_first_closing(ledger: Path, tmp_path: Path) -> None:
    sql(ledger, "DELETE FROM usage_records WHERE id = 'pending'")
    move(ledger, tmp_path / "old.db", "2026-10-20T00:00:00.000Z")
    with pytest.raises(LedgerError, match="rows before 2026-10-20 are archived, so the books can be closed until then"):
        close(ledger, "2026-10-10T00:00:00.000Z")
    assert close(ledger, NOVEMBER)["requests"] == 6
    assert is_well(ledger)


def test_books_are_not_closed_while_rows_are_on_their_way(
    ledger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sql(ledger, "DELETE FROM usage_records WHERE id = 'pending'")
    remove = archiving._remove

    def meanwhile(*arguments: Any) -> int:
        with pytest.raises(LedgerError, match="is under way"):
            close(ledger, "2026-12-01T00:00:00.000Z")
        with pytest.raises(LedgerError, match="is under way; wait for its end"):
            move(ledger, tmp_path / "another.db")
        return remove(*arguments)

    monkeypatch.setattr(archiving, "_remove", meanwhile)
    assert move(ledger, tmp_path / "old.db") is not None
    monkeypatch.undo()
    assert close(ledger, "2026-12-01T00:00:00.000Z")["requests"] == 7
    assert is_well(ledger)


def test_an_interrupted_run_goes_on_for_the_time_that_was_said_then(
    ledger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--before 1d` is another time in the second run."""

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    old = tmp_path / "old.db"
    monkeypatch.setattr(archiving, "_seal", die)
    with pytest.raises(KeyboardInterrupt):
        move(ledger, old)
    monkeypatch.undo()
    with open_for_reading(ledger) as reader:
        assert list(broken(reader)) == [
            f"archive: an archive into {old} was interrupted; finish it: usage-ledger archive --before 2026-11-01 {old}"
        ]
    write(ledger, record("more"))
    with pytest.raises(LedgerError, match="was interrupted; finish it"):
        move(ledger, tmp_path / "another.db")
    moved = move(ledger, old, "2026-11-20T00:00:00.000Z")
    assert moved is not None
    assert moved.totals["requests"] == 5
    assert ids(ledger) == ["flagged", "more", "nov", "pending"]
    assert is_well(ledger)
    assert is_well(old)


def test_an_interrupted_run_that_removed_nothing_is_forgotten(
    ledger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(archiving, "_remove", die)
    with pytest.raises(KeyboardInterrupt):
        move(ledger, tmp_path / "old.db")
    monkeypatch.undo()
    (tmp_path / "old.db").unlink()
    assert move(ledger, tmp_path / "another.db") is not None
    assert is_well(ledger)


def test_a_row_that_changes_between_copy_and_removal_stays(
    ledger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = archiving._check

    def changed_meanwhile(path: Path) -> None:
        check(path)
        sql(ledger, "UPDATE usage_records SET tag = 'new' WHERE id = 'b'")
        sql(ledger, "UPDATE usage_iterations SET billed = NULL WHERE record_id = 'c'")

    monkeypatch.setattr(archiving, "_check", changed_meanwhile)
    moved = move(ledger, tmp_path / "old.db")
    assert moved is not None
    assert (moved.totals["requests"], moved.changed) == (3, 2)
    assert ids(ledger) == ["b", "c", "flagged", "nov", "pending"]
    assert ids(tmp_path / "old.db") == ["a", "d", "none"]  # it has no stale version of what stays
    assert is_well(tmp_path / "old.db")
    assert is_well(ledger)


def test_what_cannot_be_the_archive_of_these_rows_stays_as_it_is(ledger: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious.txt"
    precious.write_text("precious")
    with pytest.raises(FileExistsError, match="is there already; name another file"):
        move(ledger, precious)
    other = tmp_path / "other.db"
    write(other, record("x"))
    for target in (other, ledger):
        before = rows(target)
        with pytest.raises(FileExistsError, match="is there already; name another file"):
            move(ledger, target)
        assert rows(target) == before
    move(ledger, tmp_path / "old.db")
    for before_date in (NOVEMBER, "2026-12-01T00:00:00.000Z"):
        with pytest.raises(FileExistsError):
            move(ledger, tmp_path / "old.db", before_date)
    write(other, record("y"))
    move(other, tmp_path / "others.db")
    with pytest.raises(FileExistsError):
        move(ledger, tmp_path / "others.db")
    assert precious.read_text() == "precious"
    assert is_well(ledger)


def test_nothing_to_archive_makes_no_file(ledger: Path, tmp_path: Path) -> None:
    assert move(ledger, tmp_path / "old.db", "2026-01-01T00:00:00.000Z") is None
    assert not (tmp_path / "old.db").exists()


def test_columns_of_a_newer_version_are_not_left_behind(ledger: Path, tmp_path: Path) -> None:
    sql(ledger, "ALTER TABLE usage_records ADD COLUMN novelty TEXT")
    with pytest.raises(LedgerError, match="upgrade usage-ledger"):
        move(ledger, tmp_path / "old.db")
    assert list(tmp_path.glob("*old*")) == []


KILLED = '''
"""Archive a ledger, killed at one statement after the other; then see to it that nothing is lost, and finish."""
import os, shutil, signal, sqlite3, sys
from pathlib import Path

sys.path.insert(0, sys.argv[3])
from usage_ledger.ledger import archive as archiving
from usage_ledger.ledger import trail
from tests.ledger.test_archive import NOVEMBER, ids, is_well, move, rows, totals

archiving.PAGE = 2
source, folder = Path(sys.argv[1]), Path(sys.argv[2])
everything, sums, names = rows(source), totals(source), ids(source)
connect = sqlite3.connect


def archive_killed_at(number):
    """Archive in a child that is killed before its `number`th statement; return whether it was."""
    count = 0

    def look(_statement):
        nonlocal count
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def connected(*arguments, **more):
        connection = connect(*arguments, **more)
        connection.set_trace_callback(look)
        return connection

    child = os.fork()
    if not child:
        sqlite3.connect = connected
        move(ledger, target)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


number, resumed = 0, 0
while True:
    number += 1
    home = folder / str(number)
    home.mkdir()
    ledger, target = home / "usage.db", home / "old.db"
    shutil.copy(source, ledger)
    killed = archive_killed_at(number)
    both = [ledger, target] if target.exists() else [ledger]
    assert ids(*both) == names, number
    assert totals(*both) == sums, number
    if not killed:
        break
    resumed += target.exists()
    try:
        move(ledger, target)
    except FileExistsError as error:
        assert "and complete" in str(error)  # it was killed when all was done
    assert rows(ledger, target) == everything, number
    assert ids(ledger) == ["flagged", "nov", "pending"], number
    assert is_well(ledger) and is_well(target), number
    assert [path.name for path in home.iterdir() if "unfinished" in path.name] == [], number
    shutil.rmtree(home)
print(number, resumed)
'''


def test_killed_at_any_statement_every_row_is_somewhere_and_the_next_run_finishes(ledger: Path, tmp_path: Path) -> None:
    (tmp_path / "killed").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(ledger), str(tmp_path / "killed"), str(ROOT)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'addon'}:{ROOT}"},
    )
    assert done.returncode == 0, done.stderr
    statements, resumed = map(int, done.stdout.split())
    assert statements > 100
    assert resumed > 20


@pytest.mark.parametrize("ending", ["-journal", "-wal", "-shm"])
def test_names_that_sqlite_takes_for_its_own_are_refused(ledger: Path, tmp_path: Path, ending: str) -> None:
    """It would take the archive for the ledger's journal, and remove it."""
    with pytest.raises(FileExistsError, match="name"):
        move(ledger, tmp_path / f"usage.db{ending}")
    assert ids(ledger) == ["a", "b", "c", "d", "flagged", "none", "nov", "pending"]
    assert is_well(ledger)


def test_a_hard_link_of_the_ledger_is_no_target(ledger: Path, tmp_path: Path) -> None:
    (tmp_path / "hard.db").hardlink_to(ledger)
    with pytest.raises(FileExistsError):
        move(ledger, tmp_path / "hard.db")
    assert sorted(path.name for path in tmp_path.glob("hard*")) == ["hard.db"]


@pytest.mark.parametrize("is_renamed", [True, False])
def test_a_copy_that_was_moved_or_is_named_another_way_is_finished(
    ledger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_renamed: bool
) -> None:
    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    for step in ("_remove", "_seal"):
        old, folder = tmp_path / f"{step}.db", tmp_path / step
        folder.mkdir()
        monkeypatch.setattr(archiving, step, die)
        with pytest.raises(KeyboardInterrupt):
            move(ledger, old)
        monkeypatch.undo()
        target = old.rename(tmp_path / f"moved{step}.db") if is_renamed else folder / ".." / old.name
        moved = move(ledger, target)
        assert moved is not None
        assert moved.totals["requests"] == (5 if step == "_remove" else 1)
        assert is_well(ledger)
        assert is_well(target)
        write(ledger, record("more"))


def test_a_name_that_is_no_text_is_refused_before_anything_is_made(ledger: Path, tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="is not UTF-8 text"):
        move(ledger, tmp_path / "\udcff.db")
    assert is_well(ledger)
