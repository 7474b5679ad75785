"""What a person can get wrong ends in one line, exit code 2, and nothing made or changed."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from usage_ledger.ledger.record import Entry, Record
from usage_ledger.ledger.store import Store

from scripts import preloaded

COMMANDS = ["rows", "export", "price", "summary", "review", "verify", "check"]
KEEPING = ["close --until 2026-01-01 --note x", "backup copy.db", "archive --before 2026-01-01 old.db"]


def run(*arguments: str, cwd: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    home = {"HOME": str(cwd), "XDG_DATA_HOME": str(cwd / "data"), **environment}
    kept = {name: value for name, value in os.environ.items() if name != "USAGE_LEDGER_DB"}
    return preloaded.run(*arguments, cwd=cwd, env={**kept, **home})


def traces(folder: Path) -> list[tuple[str, bytes | None]]:
    return sorted((str(path), path.read_bytes() if path.is_file() else None) for path in folder.rglob("*"))


def odd(text: str) -> str:
    """An argument that is no UTF-8: the way Python hands on the byte ff."""
    return text.replace("?", "\udcff")


def assert_refused(done: "subprocess.CompletedProcess[str]", *words: str) -> None:
    assert "Traceback" not in done.stderr
    assert done.returncode == 2, done
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("usage-ledger: ")
    assert done.stderr.endswith("\n")
    for word in words:
        assert word in done.stderr


def fill(path: Path) -> Path:
    with closing(Store(path, "normal", "abc")) as store:
        flagged = {"requires_manual_review": 1, "review_reason": "no_usage_data", "usage_state": "missing"}
        metadata = '{"_no_usage_data":true,"_requires_manual_review":true}'
        moment = "2026-11-01T08:00:00.000Z"
        store.write([Entry(Record(id="a", occurred_at=moment, host="h", path="/", metadata=metadata, **flagged))], [])
    return path


def missing(path: Path) -> None:
    pass


def text(path: Path) -> None:
    path.write_text("Dear diary,\n" * 500)


def empty_file(path: Path) -> None:
    path.touch()


def folder(path: Path) -> None:
    path.mkdir()


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def other_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE notes (body TEXT)")


def newer_version(path: Path) -> None:
    with closing(sqlite3.connect(fill(path))) as connection:
        connection.execute("PRAGMA user_version = 99")
        connection.execute("PRAGMA journal_mode = DELETE")


def torn(path: Path) -> None:
    with closing(sqlite3.connect(fill(path))) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
    content = bytearray(path.read_bytes())
    content[100:] = b"\xff" * (len(content) - 100)
    path.write_bytes(content)


@pytest.mark.parametrize("command", COMMANDS + KEEPING)
@pytest.mark.parametrize(
    ("make", "word"),
    [
        (missing, "no ledger"),
        (text, "not a usage ledger"),
        (empty_file, "empty"),
        (folder, "is a folder"),
        (pipe, "is not a file"),
        (device, "is not a file"),
        (other_database, "not a usage ledger"),
        (newer_version, "newer"),
        (torn, ""),
    ],
)
def test_what_is_no_ledger_is_refused_in_one_line(
    tmp_path: Path, command: str, make: Callable[[Path], None], word: str
) -> None:
    path = tmp_path / "usage.db"
    make(path)
    before = traces(tmp_path)
    assert_refused(run(*command.split(), "--db", str(path), cwd=tmp_path), str(path), word)
    assert traces(tmp_path) == before


@pytest.mark.parametrize("command", COMMANDS + KEEPING)
def test_without_a_ledger_in_the_data_folder_none_is_made(tmp_path: Path, command: str) -> None:
    assert_refused(run(*command.split(), cwd=tmp_path), "usage.db", "--db")
    assert traces(tmp_path) == []


@pytest.mark.parametrize("path", ["no/such/folder/usage.db", "file/usage.db", "x" * 300])
def test_paths_that_lead_nowhere_are_refused(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").touch()
    before = traces(tmp_path)
    assert_refused(run("rows", "--db", path, cwd=tmp_path))
    assert_refused(run("rows", cwd=tmp_path, USAGE_LEDGER_DB=path))
    assert traces(tmp_path) == before


@pytest.mark.parametrize("path", ["~nosuchuser/x.db", "~nosuchuser"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_home_that_is_nobodys_is_refused(tmp_path: Path, command: str, path: str) -> None:
    assert_refused(run(command, "--db", path, cwd=tmp_path), path)
    assert_refused(run(command, cwd=tmp_path, USAGE_LEDGER_DB=path), path)
    assert traces(tmp_path) == []


@pytest.mark.parametrize("value", ["?", "?*", "claude-?-*"])
@pytest.mark.parametrize("option", ["--model", "--account", "--key", "--tag", "--state", "--since", "--until"])
@pytest.mark.parametrize("command", COMMANDS)
def test_values_that_are_no_text_are_refused(tmp_path: Path, command: str, option: str, value: str) -> None:
    path = fill(tmp_path / "usage.db")
    assert_refused(run(command, "--db", str(path), option, odd(value), cwd=tmp_path), option)


@pytest.mark.parametrize("command", COMMANDS[:-1])
def test_a_path_may_be_any_bytes(tmp_path: Path, command: str) -> None:
    path = tmp_path / odd("?.db")
    assert_refused(run(command, "--db", str(path), cwd=tmp_path), "no ledger")
    assert run(command, "--db", str(fill(tmp_path / "usage.db").rename(path)), cwd=tmp_path).returncode == 0


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--no-such-option"], "--no-such-option"),
        (["too", "many"], "too"),
        (["--db"], "--db"),
        (["--since", "yesterday"], "yesterday"),
        (["--since", ""], "--since"),
        (["--until", "2026-13-01"], "2026-13-01"),
        (["--until", "7y"], "7y"),
        (["--since", "999999w"], "999999w"),
        (["--since", "0001-01-01T00:00+05:00"], "0001-01-01"),
        (["--since", "two\nlines"], "--since"),
        (["--state", "finished"], "finished"),
        (["--state", "COMPLETE"], "COMPLETE"),
        (["--flagged=yes"], "--flagged"),
    ],
)
def test_wrong_usage_is_refused_in_one_line(tmp_path: Path, command: str, arguments: list[str], word: str) -> None:
    path = fill(tmp_path / "usage.db")
    before = traces(tmp_path)
    assert_refused(run(command, "--db", str(path), *arguments, cwd=tmp_path), word)
    assert traces(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["rows", "--limit", "-1"], "-1"),
        (["rows", "--limit", "many"], "many"),
        (["rows", "-n", "99999999999999999999"], "99999999999999999999"),
        (["rows", "-n", "1000000001"], "1000000001"),
        (["export", "--format", "xlsx"], "xlsx"),
        (["no-such-command"], "no-such-command"),
        (["--no-such-option"], "--no-such-option"),
        (["--db", "usage.db", "rows"], "--db"),
    ],
)
def test_unknown_commands_and_values_are_refused_in_one_line(tmp_path: Path, arguments: list[str], word: str) -> None:
    assert_refused(run(*arguments, cwd=tmp_path), word)
    assert traces(tmp_path) == []


def test_the_highest_limit_means_all(tmp_path: Path) -> None:
    path = fill(tmp_path / "usage.db")
    assert len(run("rows", "--db", str(path), "-n", "1000000000", cwd=tmp_path).stdout.splitlines()) == 2


def test_without_a_command_what_is_said_can_be_read(tmp_path: Path) -> None:
    """One line that says what is wrong, or the help as it is laid out; not the whole help in one line."""
    done = run(cwd=tmp_path)
    assert done.returncode in (0, 2)
    assert max(map(len, (done.stdout + done.stderr).splitlines())) <= 120


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["--version"], *([name, "--help"] for name in COMMANDS)])
def test_asking_for_help_needs_no_ledger(tmp_path: Path, arguments: list[str]) -> None:
    done = run(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout
    assert traces(tmp_path) == []


@pytest.mark.parametrize("command", [*COMMANDS, "close", "backup", "archive", "backfill"])
def test_each_command_has_a_line_of_help_and_an_example(tmp_path: Path, command: str) -> None:
    said = run(command, "--help", cwd=tmp_path).stdout
    assert "Examples:" in said
    assert f"usage-ledger {command}" in said
    assert command in run("--help", cwd=tmp_path).stdout


def test_a_full_disk_is_told_in_one_line(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    path = fill(tmp_path / "usage.db")
    for command in COMMANDS:
        with Path("/dev/full").open("wb") as full:
            done = subprocess.run(
                [sys.executable, "-m", "usage_ledger", command, "--db", str(path)],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                timeout=60,
            )
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
