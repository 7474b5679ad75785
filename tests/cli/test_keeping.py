"""`close`, `backup` and `archive` at the terminal, closed periods for all that changes rows, and several ledgers."""

import csv
import io
import os
import pty
import resource
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from usage_ledger.ledger.record import Entry
from usage_ledger.ledger.store import Store

from tests.cli.test_backfill import FLAGGED, record, row, run, state

GOOD = {"usage_state": "complete", "input_tokens": 1_000, "total_tokens": 1_000, "stop_reason": "end_turn"}
PRICED = {**GOOD, "usage_raw": '{"input_tokens":1000}'}


def fill(path: Path, *records: Any) -> Path:
    with closing(Store(path, "normal", "abc")) as store:
        store.write([Entry(each) for each in records], [])
    return path


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return fill(
        tmp_path / "usage.db",
        record("a", **FLAGGED, occurred_at="2026-10-05T08:00:00.000Z"),
        record("b", **PRICED, occurred_at="2026-10-06T08:00:00.000Z"),
        record("nov", **FLAGGED, occurred_at="2026-11-05T08:00:00.000Z"),
    )


def tool(ledger: Path, *words: str, code: int = 0) -> str:
    command, *arguments = words
    done = run(ledger, *arguments, command=command)
    assert done.returncode == code, done
    if code == 2:
        assert (done.stdout, done.stderr.count("\n")) == ("", 1)
        return done.stderr
    return done.stdout


def close(ledger: Path, until: str = "2026-11-01") -> str:
    return tool(ledger, "close", "--until", until, "--note", "done")


# Closed periods.


def test_closing_says_what_was_closed_and_left_open(ledger: Path) -> None:
    first, *lines, last = close(ledger).splitlines()
    assert first == "closed: until 2026-11-01"
    assert lines == [
        "requests: 2, tokens: 1,000, billed: 0 USD",
        "left open: 1 flagged, 1 without a price, 1 without final usage",
        "not reconciled with the bill (see reconcile)",
    ]
    with closing(sqlite3.connect(ledger)) as connection:
        (hash_,) = connection.execute("SELECT hash FROM usage_revisions").fetchone()
    assert last == f"entry 1 of the trail: {hash_}"
    assert close(ledger, "2026-11-02").startswith("closed: from 2026-11-01 until 2026-11-02\n")


REFUSED = {
    "backfill": ("backfill", "--id", "a", "--input-tokens", "5"),
    "backfill --dry-run": ("backfill", "--id", "a", "--input-tokens", "5", "--dry-run"),
    "price": ("price",),
    "price --dry-run": ("price", "--dry-run"),
    "price of a span": ("price", "--since", "2026-10-01", "--until", "2026-10-20"),
    "accept": ("review", "accept", "a", "--note", "x"),
    "accept --dry-run": ("review", "accept", "a", "--note", "x", "--dry-run"),
    "accept by filters": ("review", "accept", "--flagged", "--note", "x"),
    "adopt": ("review", "adopt", "b", "--note", "x"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_closed_period_is_changed_only_where_that_is_asked_for(ledger: Path, what: str) -> None:
    if what == "adopt":
        with closing(sqlite3.connect(ledger)) as connection:
            connection.execute("UPDATE usage_records SET output_tokens = 9 WHERE id = 'b'")
            connection.commit()
    close(ledger)
    before = state(ledger)
    command = list(REFUSED[what])
    told = tool(ledger, *command, code=2)
    assert "a period that is closed (until 2026-11-01)" in told
    assert "--reopen" in told
    assert state(ledger) == before
    tool(ledger, *command, "--reopen")
    assert (state(ledger) != before) is ("--dry-run" not in what)


def test_what_is_not_closed_is_changed_as_ever(ledger: Path) -> None:
    close(ledger)
    tool(ledger, "backfill", "--id", "nov", "--input-tokens", "5")
    tool(ledger, "price", "--since", "2026-11-01")
    tool(ledger, "review", "accept", "--flagged", "--since", "2026-11-01", "--note", "x")
    assert "all is well" in tool(ledger, "verify")


def test_a_file_with_one_line_of_a_closed_period_changes_nothing(ledger: Path, tmp_path: Path) -> None:
    close(ledger)
    sheet = tmp_path / "x.csv"
    sheet.write_text("id,input_tokens\nnov,5\na,5\n")
    before = state(ledger)
    assert f"{sheet}:3: the row is of a period that is closed" in tool(ledger, "backfill", str(sheet), code=2)
    assert state(ledger) == before
    tool(ledger, "backfill", str(sheet), "--reopen")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--until", "2999-01-01", "--note", "x"), "is in the future"),
        (("--until", "soon", "--note", "x"), "is not a time"),
        (("--until", "2026-11-01", "--note", " "), "--note says why"),
        (("--until", "2026-11-01"), "--note"),
        (("--note", "x"), "--until"),
        (("--until", "2026-10-01", "--note", "x"), "closed until 2026-11-01 already"),
    ],
)
def test_books_that_cannot_be_closed_so_are_one_line(ledger: Path, arguments: tuple[str, ...], says: str) -> None:
    close(ledger)
    before = state(ledger)
    assert says in tool(ledger, "close", *arguments, code=2)
    assert state(ledger) == before


# Backup and archive.


def test_a_backup_says_what_it_has(ledger: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy.db"
    assert tool(ledger, "backup", str(target)) == f"{target}: 3 row(s) and 0 entries of the trail\n"
    assert tool(target, "export") == tool(ledger, "export")


def test_an_archive_says_what_moved_and_what_stays(ledger: Path, tmp_path: Path) -> None:
    fill(ledger, record("p", occurred_at="2026-10-07T08:00:00.000Z"))
    tool(ledger, "price")
    target = tmp_path / "old.db"
    assert tool(ledger, "archive", "--before", "2026-11-01", "--note", "space", str(target)).splitlines() == [
        f"archived: 1 row(s) before 2026-11-01, 1,000 tokens, 0.003 USD billed, into {target}",
        "stay: 1 row(s) in flight",
        "stay: 1 row(s) that want a person (see review)",
    ]
    done = run(ledger, "--before", "2026-10-01", str(tmp_path / "older.db"), command="archive")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "no rows before 2026-10-01 to archive\n")
    assert not (tmp_path / "older.db").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("backup", "precious.txt"), "is there already; name another file"),
        (("backup", "usage.db"), "is there already"),
        (("backup", "no/such/copy.db"), "No such file or directory"),
        (("backup", "."), "is there already"),
        (("archive", "--before", "2026-11-01", "precious.txt"), "is there already; name another file"),
        (("archive", "--before", "2026-11-01", "usage.db"), "is there already; name another file"),
        (("archive", "--before", "2026-11-01", "no/such/old.db"), "No such file or directory"),
        (("archive", "--before", "2999-01-01", "old.db"), "is in the future"),
        (("archive", "old.db"), "--before"),
        (("backup",), "PATH"),
    ],
)
def test_targets_that_cannot_be_are_one_line(
    ledger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "precious.txt").write_text("precious")
    before = state(ledger)
    files = {*os.listdir(tmp_path), "usage.db-writers"}  # which all that writes leaves beside a ledger
    assert says in tool(ledger, *words, code=2)
    assert state(ledger) == before
    assert files.issuperset(os.listdir(tmp_path))
    assert (tmp_path / "precious.txt").read_text() == "precious"


@pytest.mark.parametrize("words", [("backup", "copy.db"), ("archive", "--before", "2026-11-02", "copy.db")])
def test_a_disk_that_is_full_is_one_line_and_leaves_nothing(ledger: Path, tmp_path: Path, words: list[str]) -> None:
    """A limit on the size of files, which SQLite sees as a disk that takes no more."""
    fill(ledger, *(record(f"n{number}", **PRICED, tag="x" * 500) for number in range(500)))
    before = state(ledger)
    done = subprocess.run(
        [sys.executable, "-m", "usage_ledger", words[0], "--db", str(ledger), *words[1:]],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)),
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "cannot write" in done.stderr
    assert state(ledger) == before
    assert [name for name in os.listdir(tmp_path) if "copy" in name] == []


@pytest.mark.parametrize("words", [("backup", "copy.db"), ("archive", "--before", "2026-11-02", "copy.db")])
def test_progress_is_shown_on_a_terminal_alone(ledger: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    fill(ledger, *(record(f"n{number}", **PRICED) for number in range(2_000)))
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "usage_ledger", words[0], "--db", str(ledger), *words[1:]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, cwd=tmp_path) as process:
        os.close(theirs)
        process.communicate(timeout=60)
    assert process.returncode == 0
    seen = os.read(ours, 65536)
    os.close(ours)
    assert b"100%" in seen


@pytest.mark.parametrize("words", [("backup", "copy.db"), ("archive", "--before", "2026-11-02", "copy.db")])
def test_one_that_is_told_to_stop_leaves_nothing(ledger: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    os.mkfifo(tmp_path / "wait")
    stop_in_the_midst = (
        "import sys; from usage_ledger.cli.main import run; from usage_ledger.ledger.reading import Reader; "
        "Reader.integrity = lambda _: open('wait').read(); run(sys.argv[1:])"
    )
    command = [sys.executable, "-c", stop_in_the_midst, words[0], "--db", str(ledger), *words[1:]]
    with (
        subprocess.Popen(command, cwd=tmp_path) as process,
        open(tmp_path / "wait", "w"),  # which it comes to read, once it is in the midst
    ):
        assert any("unfinished" in name for name in os.listdir(tmp_path))
        process.terminate()
        assert process.wait(20) == 143
    assert [name for name in os.listdir(tmp_path) if "copy" in name] == []
    assert tool(ledger, "check", "--format", "json", code=1).count('"late": 0') == 1
    assert "finding" not in tool(ledger, "verify").replace("0 finding", "")


@pytest.mark.parametrize("command", ["check", "verify"])
def test_a_reader_that_leaves_does_not_change_what_was_found(ledger: Path, command: str) -> None:
    with closing(sqlite3.connect(ledger)) as connection:
        connection.execute("UPDATE usage_records SET input_tokens = 9")
        connection.commit()
    ours, theirs = os.pipe()
    os.close(ours)
    with subprocess.Popen(
        [sys.executable, "-m", "usage_ledger", command, "--db", str(ledger)], stdout=theirs, stderr=subprocess.PIPE
    ) as process:
        os.close(theirs)
        assert process.communicate(timeout=60)[1] == b""
    assert process.returncode == 1


# Several ledgers.


@pytest.fixture
def both(ledger: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A ledger and its archive."""
    tool(ledger, "price")
    tool(ledger, "archive", "--before", "2026-11-01", str(tmp_path / "old.db"))
    return ledger, tmp_path / "old.db"


def test_reading_commands_take_several_ledgers(both: tuple[Path, Path]) -> None:
    ledger, old = both
    more = ("--db", str(old))
    found = list(csv.DictReader(io.StringIO(tool(ledger, "export", *more))))
    assert [each["id"] for each in found] == ["a", "b", "nov"]
    assert tool(ledger, "rows", *more).count("claude-sonnet") == 3
    assert tool(ledger, "summary", *more, "--format", "csv").count("\n") == 4
    assert "2  no_usage_data" in tool(ledger, "review", *more)
    assert "priced by" in tool(ledger, "review", *more, "show", "b")
    assert tool(ledger, "review", *more, "show", "b").count("priced by") == 1
    assert tool(ledger, "review", *more, "report").count("request_id") == 2
    assert tool(ledger, "verify", *more).count("all is well") == 2
    assert [each["id"] for each in csv.DictReader(io.StringIO(tool(old, "export", "--db", str(ledger))))] == [
        "a",
        "b",
        "nov",
    ]


def test_a_row_that_two_have_counts_once_as_the_first_says_it(ledger: Path, tmp_path: Path) -> None:
    tool(ledger, "backup", str(tmp_path / "copy.db"))
    tool(ledger, "backfill", "--id", "a", "--input-tokens", "5")
    first = list(csv.DictReader(io.StringIO(tool(ledger, "export", "--db", str(tmp_path / "copy.db")))))
    assert [(each["id"], each["input_tokens"]) for each in first] == [("a", "5"), ("b", "1000"), ("nov", "0")]
    assert tool(ledger, "review", "--db", str(tmp_path / "copy.db"), "show", "a").count("backfill: ") == 1


def test_filters_and_pages_are_those_of_all_of_them(tmp_path: Path) -> None:
    paths = [
        fill(
            tmp_path / f"{side}.db",
            *(
                record(f"{side}{number:04d}", **PRICED, occurred_at=f"2026-10-01T{number % 24:02d}:00:00.000Z")
                for number in range(700)
            ),
        )
        for side in "xy"
    ]
    found = list(csv.DictReader(io.StringIO(tool(paths[0], "export", "--db", str(paths[1])))))
    assert len(found) == 1_400
    assert [each["occurred_at"] for each in found] == sorted(each["occurred_at"] for each in found)
    chosen = ("--db", str(paths[1]), "--since", "2026-10-01T12:00Z")
    assert tool(paths[0], "export", *chosen).count("\n") == 1 + 2 * len(
        [number for number in range(700) if number % 24 >= 12]
    )
    assert tool(paths[0], "check", *chosen, "--format", "json", code=1).count('"requests": 696') == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("rows", "--db", "usage.db"), "it names a ledger twice"),
        (("rows", "--db", "link.db"), "it names a ledger twice"),
        (("rows", "--db", "none.db"), "there is no ledger at"),
        (("rows", *(word for number in range(11) for word in ("--db", f"{number}.db"))), "11 ledgers can be read"),
    ],
)
def test_ledgers_that_cannot_be_read_together_are_one_line(
    ledger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "other.db")
    (tmp_path / "link.db").symlink_to(ledger)
    assert says in tool(ledger, *arguments, code=2)


def test_what_changes_rows_takes_one_ledger(ledger: Path, tmp_path: Path) -> None:
    other = fill(tmp_path / "other.db", record("b", **PRICED))
    told = tool(ledger, "review", "--db", str(other), "accept", "a", "--note", "x", code=2)
    assert "this command takes one ledger" in told
    assert "takes one ledger" in tool(ledger, "price", "--db", str(other), code=2)
    tool(ledger, "review", "accept", "a", "--note", "x")
    assert row(ledger, "a")["requires_manual_review"] == 0


def test_an_older_ledger_is_read_with_a_newer_one(ledger: Path, tmp_path: Path) -> None:
    older = fill(tmp_path / "older.db", record("old", **PRICED))
    with closing(sqlite3.connect(older)) as connection:
        connection.execute("DROP TABLE usage_revisions")
        connection.execute("ALTER TABLE usage_iterations DROP COLUMN total_cost")
        connection.commit()
    for paths in ((ledger, older), (older, ledger)):
        summed = csv.DictReader(io.StringIO(tool(paths[0], "summary", "--format", "csv", "--db", str(paths[1]))))
        assert sum(int(each["requests"]) for each in summed) == 4
        assert tool(paths[0], "export", "--db", str(paths[1])).count("\n") == 5
