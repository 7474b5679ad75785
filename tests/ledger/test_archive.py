"""Archive: every row is in at least one ledger at every moment, and nothing brings an archived one back."""

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from usage_ledger.ledger import archive as archiving
from usage_ledger.ledger.archive import Archived, archive
from usage_ledger.ledger.closing import broken as broken_closings
from usage_ledger.ledger.editing import Change, open_for_editing
from usage_ledger.ledger.filters import Filters
from usage_ledger.ledger.marks import LedgerError
from usage_ledger.ledger.reading import open_for_reading
from usage_ledger.ledger.record import Entry, IterationRow
from usage_ledger.ledger.seals import broken, differ
from usage_ledger.ledger.store import Store
from usage_ledger.ledger.summary import summarize

from tests.ledger.test_closing import NOVEMBER, close, record, sql, write

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    path = tmp_path / "usage.db"
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
        findings = [*reader.broken_links(), *broken_closings(reader), *broken(reader), *reader.integrity()]
        return findings == [] and reader.revised_but_gone() == []


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


def test_what_is_closed_is_closed_in_the_archive_too(ledger: Path, tmp_path: Path) -> None:
    sql(ledger, "DELETE FROM usage_records WHERE id = 'pending'")
    close(ledger, NOVEMBER)
    old = tmp_path / "old.db"
    move(ledger, old)
    assert is_well(old)
    one = Change("b", "x", {"tag": None}, {"tag": "x", "input_tokens": 5})
    one = one._replace(expected={"tag": None, "input_tokens": 1_000})
    with open_for_editing(old) as editor, pytest.raises(LedgerError, match="--reopen changes it all the same"):
        editor.change("review", [one])
    with open_for_reading(ledger) as source, open_for_reading(old) as copy:
        assert list(differ(source, copy, old)) == []
    with open_for_editing(old) as editor:
        editor.change("review", [one], reopen=True)
    assert not is_well(old)
    with open_for_reading(ledger) as source, open_for_reading(old) as copy:
        assert list(differ(source, copy, old)) == []  # the archive itself tells of the change


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


def test_a_row_that_a_spill_brings_again_is_not_back(ledger: Path, tmp_path: Path) -> None:
    move(ledger, tmp_path / "old.db")
    with closing(Store(ledger, "normal", "abc")) as store:
        given = [Entry(record("a")), Entry(record("new"))]
        assert store.without_archived(given, lambda _: True) == given[1:]
        assert store.without_archived(given, lambda _: False) == given


def test_a_row_that_came_back_is_archived_again(ledger: Path, tmp_path: Path) -> None:
    move(ledger, tmp_path / "old.db")
    write(ledger, record("a"))
    moved = move(ledger, tmp_path / "older.db")
    assert moved is not None
    assert (moved.totals["requests"], moved.changed) == (1, 0)
    assert is_well(ledger)


BROKEN = [
    "{",
    "[1]",
    '{"periods":[1]}',
    '{"periods":{"a":1}}',
    '{"periods":[{"since":"","until":"2026","requests":"x"}]}',
]


@pytest.mark.parametrize("after", BROKEN)
def test_an_entry_that_another_program_has_broken_is_no_failure(ledger: Path, tmp_path: Path, after: str) -> None:
    sql(ledger, "DELETE FROM usage_records WHERE id = 'pending'")
    close(ledger, NOVEMBER)
    move(ledger, tmp_path / "old.db")
    sql(ledger, "DROP TRIGGER usage_revisions_stay")
    with closing(sqlite3.connect(ledger)) as connection:
        connection.execute("UPDATE usage_revisions SET after = ? WHERE source = 'archive'", (after,))
        connection.commit()
    assert not is_well(ledger)


def replayed(id_: str, **fields: Any) -> Entry:
    return Entry(record(id_, origin="replay", **fields))


@pytest.mark.parametrize(
    "entry",
    [
        replayed("a"),
        Entry(record("other", origin="replay"), alias="a"),
        Entry(record("other", origin="replay", request_id="req_a"), identify=True),
        Entry(record("other", origin="replay", request_id="req_a", message_id="msg_x"), identify=True),
        Entry(record("other", origin="replay", message_id="msg_b"), identify=True),
        Entry(record("other", origin="replay", message_id="msg_a"), identify=True),
        Entry(record("other", origin="replay", request_id="req_b", message_id="msg_b"), identify=True),
        Entry(record("other", origin="replay"), identify=True),
        Entry(record("other", origin="replay", request_id="req_d"), identify=True),
        Entry(record("other", origin="replay"), identify=True, only_new=True),
    ],
    ids=[
        *("capture", "capture after a HAR", "by request id", "by request id first", "by message id"),
        *("by message id alone", "by message id where the row had no other", "by its start"),
        *("by its start where the row had no ids", "a body that was not captured"),
    ],
)
def test_a_replay_brings_no_archived_row_back(ledger: Path, tmp_path: Path, entry: Entry) -> None:
    move(ledger, tmp_path / "old.db")
    before = rows(ledger)
    with closing(Store(ledger, "normal", "abc")) as store:
        store.write([entry], [])
    assert rows(ledger) == before


@pytest.mark.parametrize(
    "entry",
    [
        Entry(record("live", request_id="req_a", message_id="msg_a")),
        replayed("another", request_id="req_a"),
        Entry(record("other", "2026-10-06", origin="replay", request_id="req_z", message_id="msg_a"), identify=True),
    ],
    ids=["live with the same ids", "another flow of a capture", "a HAR's other request"],
)
def test_what_was_not_archived_gets_its_row(ledger: Path, tmp_path: Path, entry: Entry) -> None:
    move(ledger, tmp_path / "old.db")
    with closing(Store(ledger, "normal", "abc")) as store:
        store.write([replayed("b"), entry, replayed("nov")], [])
    assert ids(ledger) == sorted(["flagged", "nov", "pending", entry.record.id])


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


def test_replays_while_rows_are_removed_bring_none_back(
    ledger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes read the same flows again and again while they are archived, three rows at a time."""
    write(ledger, *(record(f"n{number:03d}", request_id=f"req_{number}") for number in range(300)))
    names = ids(ledger)
    replaying = (
        "import sys; from pathlib import Path; from usage_ledger.ledger.store import Store\n"
        "from usage_ledger.ledger.record import Entry; from tests.ledger.test_closing import record\n"
        "store = Store(Path(sys.argv[1]), 'normal', sys.argv[2], 20_000); har = sys.argv[3] == 'har'\n"
        "print('ready', flush=True)\n"
        "for turn in range(4):\n"
        "    for number in range(300):\n"
        "        id_ = f'h{number:03d}' if har else f'n{number:03d}'\n"
        "        one = record(id_, origin='replay', request_id=f'req_{number}')\n"
        "        store.write([Entry(one, identify=har)], [])\n"
        "store.close()"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'addon'}:{ROOT}"}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", replaying, str(ledger), f"{kind}0", kind], stdout=subprocess.PIPE, env=environment
        )
        for kind in ("har", "capture")
    ]
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
    monkeypatch.setattr(archiving, "PAGE", 3)
    move(ledger, tmp_path / "old.db")
    for process in running:
        process.communicate(timeout=120)
        assert process.returncode == 0
    assert sorted(ids(ledger) + ids(tmp_path / "old.db")) == names
    assert is_well(ledger)


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


@pytest.mark.parametrize(
    "statement", ["DELETE FROM usage_records WHERE id = 'a'", "UPDATE usage_records SET input_tokens = 9"]
)
def test_what_is_done_to_an_archive_by_plain_sql_is_named(ledger: Path, tmp_path: Path, statement: str) -> None:
    old = tmp_path / "old.db"
    move(ledger, old)
    assert is_well(old)
    sql(old, statement)
    with open_for_reading(old) as reader:
        assert any("the seal of this archive says" in finding for finding in broken(reader))
    with open_for_reading(ledger) as source, open_for_reading(old) as copy:
        assert list(differ(source, copy, old)) == []  # its seal is what it was


def test_an_archive_whose_seal_was_cut_off_is_named(ledger: Path, tmp_path: Path) -> None:
    old = tmp_path / "old.db"
    move(ledger, old)
    for statement in (
        "DROP TRIGGER usage_revisions_remain",
        "DELETE FROM usage_revisions WHERE position = (SELECT max(position) FROM usage_revisions)",
        "DELETE FROM usage_records WHERE id = 'c'",
    ):
        sql(old, statement)
    with open_for_reading(ledger) as source, open_for_reading(old) as copy:
        assert "archive: it has no seal: it was not finished, or somebody has taken it away" in list(broken(copy))
        assert [finding.partition(": ")[2] for finding in differ(source, copy, old)] == [
            "entry 3 of the trail names its seal, and it does not have it"
        ]


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


def test_a_row_that_comes_back_while_it_is_archived_stays_in_the_archive(
    ledger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def comes_back(*_: Any) -> None:
        write(ledger, record("a", usage_state="partial", input_tokens=1, total_tokens=1))
        raise KeyboardInterrupt

    for step in ("_seal", "_finish"):
        old = tmp_path / f"{step}.db"
        monkeypatch.setattr(archiving, step, comes_back)
        with pytest.raises(KeyboardInterrupt):
            move(ledger, old)
        monkeypatch.undo()
        assert move(ledger, old) is not None
        assert "a" in ids(old)
        assert is_well(old)
        sql(ledger, "DELETE FROM usage_records WHERE id = 'a'")
        sql(ledger, "DELETE FROM usage_archived")
        write(ledger, record("a"))


def test_closed_books_are_not_said_to_be_wrong_while_their_rows_are_on_their_way(
    ledger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    sql(ledger, "DELETE FROM usage_records WHERE id = 'pending'")
    close(ledger, NOVEMBER)
    for step in ("_seal", "_finish"):
        monkeypatch.setattr(archiving, step, die)
        with pytest.raises(KeyboardInterrupt):
            move(ledger, tmp_path / "old.db")
        monkeypatch.undo()
        with open_for_reading(ledger) as reader:
            assert list(broken_closings(reader)) == []
    move(ledger, tmp_path / "old.db")
    assert is_well(ledger)


def test_an_archive_can_be_corrected_and_archived_in_its_turn(ledger: Path, tmp_path: Path) -> None:
    old = tmp_path / "old.db"
    move(ledger, old)
    with open_for_editing(old) as editor:
        editor.change("review", [Change("b", "x", {"tag": None}, {"tag": "x"})])
    assert is_well(old)
    move(old, tmp_path / "older.db", "2026-10-20T00:00:00.000Z")
    assert ids(old) == []
    assert is_well(old)
    assert is_well(tmp_path / "older.db")


def test_a_name_that_is_no_text_is_refused_before_anything_is_made(ledger: Path, tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="is not UTF-8 text"):
        move(ledger, tmp_path / "\udcff.db")
    assert is_well(ledger)
