"""`usage-ledger export`: every row and every column, in forms that parse back to what is in the ledger."""

import csv
import gzip
import io
import json
import os
import pty
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from usage_ledger.ledger.columns import COLUMNS, JSON_COLUMNS
from usage_ledger.ledger.record import Entry, Record
from usage_ledger.ledger.store import Store

from scripts import preloaded

ROWS = [
    {"tag": 'say "cheese", please', "session_id": "two\nlines"},
    {"tag": "carriage\r\nreturn", "usage_raw": '{"iterations": [{"type": "message"}], "n": 1}'},
    {"tag": "größe 📊\u2028", "metadata": '{"_no_usage_data": true, "rate_limits": {"a-b": "1"}}'},
    {"input_tokens": 2**60, "total_tokens": 2**60, "total_cost": "0.000001", "http_status": None},
    {"tag": " spaces ", "model": "", "total_cost": "12345678901234567890.123456789"},
]


def record(number: int, **fields: Any) -> Record:
    given = {"occurred_at": f"2026-11-01T08:00:{number:02}.000Z", "host": "h", "path": "/v1/messages", **fields}
    return Record(id=f"{number:06}", **given)


def fill(path: Path, *records: Record) -> Path:
    with closing(Store(path, "normal", "abc")) as store:
        store.write([Entry(one) for one in records], [])
    return path


def command(ledger: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "usage_ledger", "export", "--db", str(ledger), *arguments]


ENVIRONMENT = {**os.environ, "PYTHONUTF8": "1"}


def export(ledger: Path, *arguments: str) -> str:
    done = preloaded.run("export", "--db", ledger, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def cells(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text, newline=""), strict=True))


@pytest.fixture
def records() -> list[Record]:
    return [record(number, **fields) for number, fields in enumerate(ROWS)]


@pytest.fixture
def ledger(tmp_path: Path, records: list[Record]) -> Path:
    return fill(tmp_path / "usage.db", *reversed(records))


def as_object(told: Record) -> dict[str, Any]:
    fields = {name: getattr(told, name) for name in COLUMNS}
    return fields | {name: json.loads(fields[name]) for name in JSON_COLUMNS if fields[name] is not None}


# Forms.


def test_csv_parses_back_to_the_ledgers_text(ledger: Path, records: list[Record]) -> None:
    header, *rows = cells(export(ledger))
    assert header == list(COLUMNS)
    for row, told in zip(rows, records, strict=True):
        values = [getattr(told, name) for name in COLUMNS]
        assert row == ["" if value is None else str(value) for value in values]


def test_csv_lines_end_as_rfc_4180_says(tmp_path: Path) -> None:
    text = export(fill(tmp_path / "usage.db", record(1), record(2)))
    assert text.endswith("\r\n")
    assert text.count("\n") == text.count("\r\n") == text.count("\r") == 3


def test_csv_is_the_default_form(ledger: Path) -> None:
    assert export(ledger) == export(ledger, "--format", "csv")


def test_json_parses_back_to_the_ledgers_values(ledger: Path, records: list[Record]) -> None:
    found = json.loads(export(ledger, "--format", "json"))
    assert found == [as_object(told) for told in records]
    assert [list(row) for row in found] == [list(COLUMNS)] * len(records)


def test_ndjson_is_one_object_a_line(ledger: Path, records: list[Record]) -> None:
    lines = export(ledger, "--format", "ndjson").split("\n")
    assert lines.pop() == ""
    assert [json.loads(line) for line in lines] == [as_object(told) for told in records]


@pytest.mark.parametrize("form", ["json", "ndjson"])
def test_money_stays_exact_text_and_counts_stay_whole(ledger: Path, form: str) -> None:
    text = export(ledger, "--format", form)
    assert '"total_cost": "12345678901234567890.123456789"' in text
    assert f'"total_tokens": {2**60}' in text


@pytest.mark.parametrize(("form", "expected"), [("csv", ",".join(COLUMNS) + "\r\n"), ("json", "[]\n"), ("ndjson", "")])
def test_an_empty_ledger_gives_a_valid_empty_export(tmp_path: Path, form: str, expected: str) -> None:
    assert export(fill(tmp_path / "usage.db"), "--format", form) == expected


@pytest.mark.parametrize("form", ["csv", "json", "ndjson"])
def test_rows_are_exported_whatever_the_terminals_alphabet(ledger: Path, form: str) -> None:
    """A user's locale is nothing a user should see a traceback for; JSON is UTF-8 by its standard."""
    done = subprocess.run(
        command(ledger, "--format", form),
        capture_output=True,
        timeout=60,
        env={**os.environ, "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"},
    )
    assert b"Traceback" not in done.stderr
    assert (done.returncode, done.stdout.decode()) == (0, export(ledger, "--format", form))


# Formulas.


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20"])
@pytest.mark.parametrize("column", ["tag", "model", "account_id", "session_id", "id"])
def test_text_that_a_spreadsheet_takes_for_a_formula_gets_an_apostrophe(
    tmp_path: Path, column: str, start: str
) -> None:
    told = record(1)
    setattr(told, column, f"{start}HYPERLINK(1)")
    header, row = cells(export(fill(tmp_path / "usage.db", told)))
    assert row[header.index(column)] == f"'{start}HYPERLINK(1)"


def test_numbers_and_harmless_text_stay_as_they_are(tmp_path: Path) -> None:
    told = record(1, http_status=-1, input_tokens=12, total_cost="0.5", tag="a=b", model="claude-opus-4-6")
    header, row = cells(export(fill(tmp_path / "usage.db", told)))
    found = dict(zip(header, row, strict=True))
    assert [found[name] for name in ("http_status", "input_tokens", "total_cost", "tag", "model")] == [
        "-1",
        "12",
        "0.5",
        "a=b",
        "claude-opus-4-6",
    ]


@pytest.mark.parametrize("form", ["json", "ndjson"])
def test_programs_get_text_as_it_is(tmp_path: Path, form: str) -> None:
    assert '"tag": "=1+1"' in export(fill(tmp_path / "usage.db", record(1, tag="=1+1")), "--format", form)


# Which rows.


@pytest.mark.parametrize(
    ("filters", "ids"),
    [
        ([], [0, 1, 2, 3, 4]),
        (["--since", "2026-11-01T08:00:02"], [2, 3, 4]),
        (["--since", "2026-11-01T08:00:01", "--until", "2026-11-01T08:00:03"], [1, 2]),
        (["--tag", "say*"], [0]),
        (["--state", "complete"], []),
    ],
)
def test_filters_choose_the_rows_oldest_first(ledger: Path, filters: list[str], ids: list[int]) -> None:
    assert [int(row["id"]) for row in json.loads(export(ledger, "--format", "json", *filters))] == ids


# Size.


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60,000 rows."""
    metadata = json.dumps({"user_agent": "x" * 200})
    records = (record(number % 60, metadata=metadata) for number in range(60_000))
    path = tmp_path_factory.mktemp("large") / "usage.db"
    with closing(Store(path, "normal", "abc")) as store:
        batch = []
        for number, one in enumerate(records):
            one.id = f"{number:06}"
            batch.append(Entry(one))
        store.write(batch, [])
    return path


@pytest.fixture
def small(tmp_path: Path) -> Path:
    metadata = json.dumps({"user_agent": "x" * 200})
    return fill(tmp_path / "usage.db", *(record(number % 60, metadata=metadata) for number in range(60)))


@pytest.mark.parametrize(
    "arguments", [["export"], ["export", "--format", "json"], ["export", "--format", "ndjson"], ["rows", "-n", "0"]]
)
def test_a_reader_that_has_enough_is_no_error(large: Path, arguments: list[str]) -> None:
    """`usage-ledger export | head -1`"""
    name, *rest = arguments
    with subprocess.Popen(
        [sys.executable, "-m", "usage_ledger", name, "--db", str(large), *rest],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    ) as process:
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_a_reader_that_never_read_is_no_error(small: Path) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with subprocess.Popen(command(small), stdout=write_end, stderr=subprocess.PIPE, env=ENVIRONMENT) as process:
        os.close(write_end)
        assert process.stderr.read() == b""
    assert process.returncode == 0


PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def peak_of(ledger: Path, form: str) -> int:
    """The most memory an export takes, in kilobytes."""
    told = subprocess.run(
        [sys.executable, "-c", PEAK, *command(ledger, "--format", form)], capture_output=True, check=True, timeout=120
    )
    return int(told.stdout) // (1024 if sys.platform == "darwin" else 1)


@pytest.mark.parametrize("form", ["csv", "json", "ndjson"])
def test_memory_does_not_grow_with_the_number_of_rows(large: Path, small: Path, form: str) -> None:
    """Held in memory, the 60,000 rows would take far more than 50 MB."""
    assert peak_of(large, form) - peak_of(small, form) < 16_000


def test_tsv_is_the_same_table_with_tabs(ledger: Path) -> None:
    table = export(ledger, "--format", "tsv")
    assert list(csv.reader(io.StringIO(table, newline=""), delimiter="\t", strict=True)) == cells(export(ledger))


@pytest.mark.parametrize("form", ["csv", "tsv", "json", "ndjson"])
def test_columns_are_those_that_are_asked_for_in_their_order(ledger: Path, form: str) -> None:
    text = export(ledger, "--format", form, "--columns", "total_tokens,id")
    if form == "json":
        assert [list(each) for each in json.loads(text)] == [["total_tokens", "id"]] * len(ROWS)
    elif form == "ndjson":
        assert list(json.loads(text.splitlines()[0])) == ["total_tokens", "id"]
    else:
        assert text.splitlines()[0] == ("total_tokens,id" if form == "csv" else "total_tokens\tid")
        assert text.splitlines()[1].split("," if form == "csv" else "\t") == ["0", "000000"]


def test_json_columns_that_are_not_asked_for_are_not_there(ledger: Path) -> None:
    assert all(
        set(each) == {"id", "metadata"}
        for each in json.loads(export(ledger, "--format", "json", "--columns", "id,metadata"))
    )


@pytest.mark.parametrize("name", ["usage.csv", "usage.csv.gz", "größe 📊.csv.gz"])
def test_a_file_has_what_stdout_would_have(ledger: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    assert export(ledger, "--output", str(path)) == ""
    content = gzip.decompress(path.read_bytes()) if name.endswith(".gz") else path.read_bytes()
    assert content.decode() == export(ledger)
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_same_rows_give_the_same_file(ledger: Path, tmp_path: Path) -> None:
    for name in ("one.csv.gz", "other.csv.gz"):
        export(ledger, "--output", str(tmp_path / name))
    one, other = ((tmp_path / name).read_bytes() for name in ("one.csv.gz", "other.csv.gz"))
    assert one.replace(b"one.csv", b"") == other.replace(b"other.csv", b"")


def test_a_file_is_replaced_when_the_new_one_is_whole(ledger: Path, tmp_path: Path) -> None:
    path, link = tmp_path / "usage.csv", tmp_path / "link.csv"
    path.write_text("old")
    link.symlink_to(path)
    export(ledger, "--output", str(link), "--columns", "id")
    assert path.read_text().startswith("id\n")
    assert link.is_symlink()
    assert sorted(each.name for each in tmp_path.iterdir() if "csv" in each.name) == ["link.csv", "usage.csv"]


def test_what_cannot_be_written_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "usage.csv"
    path.write_text("old")
    broken = tmp_path / "broken.db"
    fill(broken, record(1))
    broken.write_bytes(broken.read_bytes()[:8192] + b"\xff" * 8192)
    done = subprocess.run(command(broken, "--output", str(path)), capture_output=True, timeout=60, env=ENVIRONMENT)
    assert done.returncode == 2
    assert path.read_text() == "old"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["broken.db", "usage.csv"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--columns", "id,moon"), "'moon' is no column"),
        (("--columns", ""), "'' is no column"),
        (("--columns", "id,id"), "names a column twice"),
        (("--output", "/nowhere/usage.csv"), "No such file"),
        (("--output", "/"), "directory"),
        (("--output", "/dev/null"), "is not a file"),
        (("--output", "LEDGER"), "is the ledger itself"),
        (("--output", "LEDGER-wal"), "is the ledger itself"),
    ],
)
def test_what_cannot_be_meant_so_is_one_line(ledger: Path, arguments: tuple[str, ...], says: str) -> None:
    arguments = tuple(each.replace("LEDGER", str(ledger)) for each in arguments)
    done = subprocess.run(command(ledger, *arguments), capture_output=True, text=True, timeout=60, env=ENVIRONMENT)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert says in done.stderr


@pytest.mark.parametrize("to_a_file", [True, False])
def test_progress_is_shown_where_a_file_is_written_from_a_terminal(
    ledger: Path, tmp_path: Path, to_a_file: bool
) -> None:
    ours, theirs = pty.openpty()
    arguments = ("--output", str(tmp_path / "usage.csv")) if to_a_file else ()
    with subprocess.Popen(
        command(ledger, *arguments), stdout=subprocess.DEVNULL, stderr=theirs, env=ENVIRONMENT
    ) as process:
        assert process.wait(60) == 0
    os.write(theirs, b".")
    os.close(theirs)
    assert (b"writing" in os.read(ours, 65536)) is to_a_file
    os.close(ours)
