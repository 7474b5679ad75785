"""Output: whatever stdout is (closed, a pipe that nobody reads, in a small alphabet), and whatever the ledger holds."""

import csv
import io
import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from usage_ledger.cli.output import on_one_line
from usage_ledger.ledger.record import Entry, Record
from usage_ledger.ledger.store import Store
from wcwidth import wcswidth

FORMS = [["export", "--format", form] for form in ("csv", "json", "ndjson")]
COMMANDS = [
    *("addon", "archive", "backfill", "backup", "check", "close", "export", "fetch", "import", "inspect", "price"),
    *("pull", "push", "reconcile", "redact", "review", "rows", "serve", "summary", "verify"),
]
HELP = [["--help"], ["-h"], ["--version"], *([name, "--help"] for name in COMMANDS)]
READING = [["rows"], *FORMS]


def record(id_: str = "a", **fields: object) -> Record:
    given = {"occurred_at": "2026-11-01T08:00:00.000Z", "host": "h", "path": "/", **fields}
    return Record(id=id_, **given)  # type: ignore[arg-type]


def fill(path: Path, *records: Record) -> Path:
    with closing(Store(path, "normal", "abc")) as store:
        store.write([Entry(one) for one in records], [])
    return path


def change(path: Path, statement: str, *values: object) -> None:
    """Do to a ledger what a program that is not ours might do, also put anything into any column."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA writable_schema = 1")
        connection.execute("UPDATE sqlite_master SET sql = replace(sql, 'STRICT', '') WHERE name = 'usage_records'")
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement, values)


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return fill(tmp_path / "usage.db", record())


def command(ledger: Path, *arguments: str) -> list[str]:
    db = ["--db", str(ledger)] if arguments[0] in ("rows", "export") else []
    return [sys.executable, "-m", "usage_ledger", *arguments, *db]


def run(ledger: Path, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        command(ledger, *arguments),
        capture_output=True,
        timeout=60,
        env={**os.environ, "COLUMNS": "200", "PYTHONUTF8": "0", **environment},
    )


def data(ledger: Path, *arguments: str, **environment: str) -> bytes:
    done = run(ledger, *arguments, **environment)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


def cells(text: bytes) -> dict[str, str]:
    """The only row of a CSV export."""
    (row,) = csv.DictReader(io.StringIO(text.decode(), newline=""), strict=True)
    return row


def redirected(ledger: Path, redirection: str, *arguments: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {redirection}', "sh", *command(ledger, *arguments)], capture_output=True, timeout=60
    )


# Nobody there.


@pytest.mark.parametrize("arguments", [*HELP, *READING, ["no-such-command"]], ids=" ".join)
def test_a_closed_stdout_is_told_in_one_line(ledger: Path, arguments: list[str]) -> None:
    done = redirected(ledger, ">&-", *arguments)
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1), done.stderr
    assert done.stderr.startswith(b"usage-ledger: ")


@pytest.mark.parametrize("arguments", [["--help"], *READING], ids=" ".join)
def test_a_stdout_that_cannot_be_written_is_told_in_one_line(ledger: Path, arguments: list[str]) -> None:
    done = redirected(ledger, "1</dev/null", *arguments)
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1), done.stderr


@pytest.mark.parametrize("arguments", [*HELP, *READING, ["rows", "--model", "none"]], ids=" ".join)
def test_a_reader_that_has_left_before_we_begin_is_no_error(ledger: Path, arguments: list[str]) -> None:
    """`usage-ledger --help | true`, without the luck of who is faster."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(command(ledger, *arguments), stdout=write_end, stderr=subprocess.PIPE, timeout=60)
    os.close(write_end)
    assert (done.returncode, done.stderr.replace(f"no rows match in {ledger}\n".encode(), b"")) == (0, b"")


@pytest.mark.parametrize("redirection", ["2>&-", "2>&1"])
def test_a_failure_that_nobody_is_told_still_has_its_exit_code(tmp_path: Path, redirection: str) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    arguments = ["sh", "-c", f'exec "$@" {redirection}', "sh", *command(tmp_path / "none.db", "rows")]
    done = subprocess.run(arguments, stdout=write_end, timeout=60)
    os.close(write_end)
    assert done.returncode == 2


# Alphabets.


@pytest.mark.parametrize("alphabet", ["latin-1", "ascii", "cp1252"])
@pytest.mark.parametrize("arguments", FORMS, ids=" ".join)
def test_an_export_is_utf_8_whatever_the_locale(tmp_path: Path, arguments: list[str], alphabet: str) -> None:
    path = fill(tmp_path / "usage.db", record(tag="größe 模型 📊"))
    found = data(path, *arguments, PYTHONIOENCODING=alphabet)
    assert found == data(path, *arguments, PYTHONIOENCODING="utf-8")
    assert "größe 模型 📊".encode() in found


@pytest.mark.parametrize(
    ("alphabet", "shown"), [("latin-1", "größe ?? xx? "), ("ascii", "gr??e ?? xx? "), ("utf-8", "größe 模型 … ")]
)
def test_a_table_shows_what_the_locale_can_and_stays_in_line(tmp_path: Path, alphabet: str, shown: str) -> None:
    path = fill(tmp_path / "usage.db", record(model="größe 模型 xxxxxxxxxxxx"), record("b", model="plain"))
    header, odd, plain = data(path, "rows", COLUMNS="58", PYTHONIOENCODING=alphabet).decode(alphabet).splitlines()
    assert odd[20:].startswith(shown)
    assert {wcswidth(line[: line.index("pending")]) for line in (odd, plain)} == {header.index("state")}


@pytest.mark.parametrize("arguments", HELP, ids=" ".join)
def test_help_needs_no_more_than_ascii(ledger: Path, arguments: list[str]) -> None:
    assert data(ledger, *arguments, PYTHONIOENCODING="ascii:strict").isascii()


# What other programs put into a ledger.


@pytest.mark.parametrize(
    "damaged",
    [
        "no json",
        "",
        '{"input_tokens": 1',
        '{"input_tokens": NaN}',
        "[1e999]",
        "-Infinity",
        "[" * 100_000,
        "9" * 5_000,
    ],
    ids=lambda text: text[:24],
)
@pytest.mark.parametrize("form", ["json", "ndjson"])
def test_json_that_is_none_is_exported_as_text(ledger: Path, form: str, damaged: str) -> None:
    change(ledger, """UPDATE usage_records SET usage_raw = ?, metadata = '{"a": 1}'""", damaged)
    found = json.loads(data(ledger, "export", "--format", form), parse_constant=pytest.fail)
    row = found[0] if form == "json" else found
    assert (row["usage_raw"], row["metadata"]) == (damaged, {"a": 1})


@pytest.mark.parametrize("form", ["json", "ndjson"])
def test_half_a_surrogate_pair_stays_an_escape(ledger: Path, form: str) -> None:
    change(ledger, """UPDATE usage_records SET metadata = '{"a": "\\ud83d"}'""")
    assert b'"metadata": {"a": "\\ud83d"}' in data(ledger, "export", "--format", form)


@pytest.mark.parametrize(("value", "text"), [(b"tea\xffm", "tea\ufffdm"), (b"", ""), (b"x\x00y", "x\0y")])
@pytest.mark.parametrize("column", ["tag", "usage_raw", "model", "total_cost", "occurred_at", "response_bytes"])
def test_a_blob_is_read_as_the_text_it_holds(ledger: Path, column: str, value: bytes, text: str) -> None:
    change(ledger, f"UPDATE usage_records SET {column} = ?", value)
    assert json.loads(data(ledger, "export", "--format", "ndjson"))[column] == text
    assert cells(data(ledger, "export"))[column] == text
    assert len(data(ledger, "rows").splitlines()) == 2


def test_a_formula_in_a_blob_is_none_either(ledger: Path) -> None:
    change(ledger, "UPDATE usage_records SET tag = ?", b"=1+1")
    assert cells(data(ledger, "export"))["tag"] == "'=1+1"


@pytest.mark.parametrize(("value", "as_json"), [(0.5, 0.5), (float("inf"), "inf"), (float("-inf"), "-inf")])
def test_a_fraction_is_no_obstacle(ledger: Path, value: float, as_json: float | str) -> None:
    change(ledger, "UPDATE usage_records SET response_bytes = ?", value)
    row = json.loads(data(ledger, "export", "--format", "ndjson"), parse_constant=pytest.fail)
    assert row["response_bytes"] == as_json
    assert str(value) in cells(data(ledger, "export"))["response_bytes"]


@pytest.mark.parametrize("arguments", READING, ids=" ".join)
def test_text_that_is_not_utf_8_is_read_with_a_mark_in_its_place(ledger: Path, arguments: list[str]) -> None:
    change(ledger, "UPDATE usage_records SET model = CAST(x'61ff62' AS TEXT)")
    assert "a\ufffdb" in data(ledger, *arguments, PYTHONIOENCODING="utf-8").decode()


NASTY = "\x1b[31mred\x1b[0m\r\nnew\tline\x00nul\x7f\x9b1m\u2028\u202eback\u200b"


@pytest.mark.parametrize(
    ("column", "nasty"),
    [
        *(("model", character) for character in "\x1b\r\n\t\0\x7f\x9b\u2028\u202e"),
        *((name, NASTY) for name in ("model", "account_id", "usage_state", "review_reason", "id", "occurred_at")),
    ],
)
def test_a_row_is_one_line_without_control_characters(ledger: Path, column: str, nasty: str) -> None:
    change(ledger, f"UPDATE usage_records SET {column} = ?", nasty)
    text = data(ledger, "rows", COLUMNS="200", PYTHONIOENCODING="utf-8").decode()
    assert text.count("\n") == len(text.splitlines()) == 2
    assert text.replace("\n", "").isprintable()
    assert "\ufffd" in text


def test_each_character_that_does_more_than_be_seen_becomes_one_mark() -> None:
    seen = on_one_line(NASTY + "\ud800")
    assert seen == "\ufffd[31mred\ufffd[0m\ufffd\ufffdnew\ufffdline\ufffdnul\ufffd\ufffd1m\ufffd\ufffdback\ufffd\ufffd"


@pytest.mark.parametrize("column", ["model", "tag", "account_id"])
@pytest.mark.parametrize("text", [f'a{NASTY}", "b', "a\nb", "a\rb", "a\tb", "a\0b", " a ", '"', "'=1+1", "\x1b[31m"])
def test_csv_keeps_every_character(ledger: Path, column: str, text: str) -> None:
    change(ledger, f"UPDATE usage_records SET {column} = ?", text)
    assert cells(data(ledger, "export"))[column] == text


def test_what_a_damaged_ledger_says_reaches_the_terminal_clean(ledger: Path) -> None:
    with closing(sqlite3.connect(ledger)) as connection, connection:
        connection.execute("PRAGMA writable_schema = 1")
        connection.execute("UPDATE sqlite_master SET sql = 'CREATE \x1b[31m', name = '\x1b[32m' WHERE type = 'trigger'")
    done = run(ledger, "rows")
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (2, b"", 1)
    assert b"\x1b" not in done.stderr


# Before the first row.


@pytest.mark.parametrize("arguments", READING, ids=" ".join)
def test_what_fails_at_the_first_row_has_written_nothing(ledger: Path, arguments: list[str]) -> None:
    with closing(sqlite3.connect(ledger)) as connection:
        connection.execute("DROP TABLE usage_iterations")
        connection.execute("DROP TABLE usage_records")
    done = run(ledger, *arguments)
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (2, b"", 1)
    assert done.stderr.startswith(b"usage-ledger: cannot read ")
