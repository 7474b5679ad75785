"""`usage-ledger backfill`: all or nothing, every bad line with its number, and twice is once."""

import csv
import io
import json
import os
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from usage_ledger.ledger.record import Entry, Record
from usage_ledger.ledger.store import Store

from scripts import preloaded

FLAGGED = {
    "usage_state": "missing",
    "review_reason": "no_usage_data",
    "requires_manual_review": 1,
    "metadata": '{"_no_usage_data":true,"_requires_manual_review":true}',
}
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "USAGE_LEDGER_PRICES"} | {"PYTHONUTF8": "1"}


def record(id_: str, **fields: Any) -> Record:
    given = {
        "occurred_at": "2026-11-01T08:00:00.000Z",
        "host": "h",
        "path": "/v1/messages",
        "model": "claude-sonnet-4-6",
        "request_id": f"req_{id_}",
        "message_id": f"msg_{id_}",
        **fields,
    }
    return Record(id=id_, **given)


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    path = tmp_path / "usage.db"
    rows = [
        record("a", **FLAGGED, tag="=1+1"),
        record("b", **FLAGGED | {"usage_state": "partial", "input_tokens": 10, "total_tokens": 10}),
        record("c", usage_state="complete", input_tokens=1_000, total_tokens=1_000, total_cost="0.003"),
        record("d", usage_state="pending"),
        record("e", usage_state="none", total_cost="0"),
        record("f", **FLAGGED, model="claude-opus-9"),
        record("g", **FLAGGED | {"request_id": "req_a", "message_id": None}),
        record("h", **FLAGGED | {"usage_state": "complete", "review_reason": "zero_usage"}),
    ]
    with closing(Store(path, "normal", "abc")) as store:
        store.write([Entry(each) for each in rows], [])
    return path


def run(path: Path, *arguments: str, command: str = "backfill") -> "subprocess.CompletedProcess[str]":
    return preloaded.run(command, "--db", path, *arguments, env=ENVIRONMENT)


def done(path: Path, *arguments: str) -> list[str]:
    result = run(path, *arguments)
    assert (result.returncode, result.stderr) == (0, ""), result
    return result.stdout.splitlines()


def refused(path: Path, *arguments: str) -> list[str]:
    before = state(path)
    result = run(path, *arguments)
    assert (result.returncode, result.stdout) == (2, ""), result
    assert state(path) == before
    return result.stderr.splitlines()


def state(path: Path) -> tuple[list[Any], list[Any]]:
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT * FROM usage_records ORDER BY id").fetchall()
        return rows, connection.execute("SELECT * FROM usage_revisions ORDER BY position").fetchall()


def row(path: Path, id_: str) -> dict[str, Any]:
    with closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        return dict(connection.execute("SELECT * FROM usage_records WHERE id = ?", (id_,)).fetchone())


def trail(path: Path) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT record_id, source, reason FROM usage_revisions ORDER BY position").fetchall()


def sheet(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("key", [("--id", "b"), ("--request-id", "req_b"), ("--message-id", "msg_b")])
def test_one_row_by_options(ledger: Path, key: tuple[str, str]) -> None:
    told = done(ledger, *key, "--input-tokens", "1000", "--output-tokens", "200", "--note", "invoice 7")
    assert told == [
        "b: input_tokens 10 → 1000, output_tokens 0 → 200, total_tokens 10 → 1200, total_cost None → 0.006",
        "changed 1 of 1 row(s), which cost 0.006 USD now; 0 without a price",
    ]
    found = row(ledger, "b")
    assert (found["total_tokens"], found["total_cost"], found["requires_manual_review"]) == (1200, "0.006", 0)
    assert (found["usage_state"], found["review_reason"]) == ("partial", "no_usage_data")
    assert json.loads(found["metadata"]).keys() == {"_no_usage_data", "_manually_updated", "_manually_updated_at"}
    assert trail(ledger) == [("b", "backfill", "invoice 7")]


def test_an_export_that_is_filled_in(ledger: Path, tmp_path: Path) -> None:
    """What is known is filled in, the rest is left as it was; then the same file again."""
    rows = list(csv.DictReader(io.StringIO(run(ledger, "--flagged", command="export").stdout, newline="")))
    for each in rows:
        if each["id"] in ("a", "f"):
            each |= {
                "input_tokens": "2000",
                "cache_creation_1h_input_tokens": "10",
                "cache_creation_input_tokens": "10",
            }
    path = tmp_path / "flagged.csv"
    with path.open("w", newline="") as file:
        lines = csv.DictWriter(file, rows[0])
        lines.writeheader()
        lines.writerows(rows)
    would = done(ledger, str(path), "--dry-run")
    assert trail(ledger) == []
    told = done(ledger, str(path))
    assert [line.replace("would change", "changed") for line in would] == told
    assert told[-1] == "changed 2 of 5 row(s), which cost 0.00606 USD now; 1 without a price"
    assert row(ledger, "a")["total_tokens"] == 2010
    assert row(ledger, "f")["total_cost"] is None
    before = state(ledger)
    assert done(ledger, str(path))[-1].startswith("changed 0 of 5 row(s)")
    assert state(ledger) == before


def test_lines_find_their_rows_by_whatever_they_have(ledger: Path, tmp_path: Path) -> None:
    text = "request_id,message_id,id,output_tokens,note\n,msg_a,,1,\nreq_b,,,2,seen\n,,f,3,\n"
    done(ledger, sheet(tmp_path / "x.csv", text), "--note", "all")
    assert [row(ledger, id_)["output_tokens"] for id_ in "abf"] == [1, 2, 3]
    assert trail(ledger) == [("a", "backfill", "all"), ("b", "backfill", "seen"), ("f", "backfill", "all")]


def test_a_corrected_row_can_be_corrected_again(ledger: Path) -> None:
    done(ledger, "--id", "a", "--input-tokens", "1")
    done(ledger, "--id", "a", "--input-tokens", "2")
    assert row(ledger, "a")["total_tokens"] == 2
    assert len(trail(ledger)) == 2


def test_rows_that_upstream_told_are_refused_without_force(ledger: Path) -> None:
    for id_, kind in (("c", "complete"), ("e", "none")):
        [line] = refused(ledger, "--id", id_, "--input-tokens", "5")
        assert f"the row is {kind} as upstream told it" in line
        done(ledger, "--id", id_, "--input-tokens", "5", "--force")
    assert done(ledger, "--id", "h", "--input-tokens", "5")[-1].startswith("changed 1")
    [line] = refused(ledger, "--id", "d", "--input-tokens", "5", "--force")
    assert "still in flight" in line


def test_options_settle_a_flagged_row_whose_counts_are_right(ledger: Path) -> None:
    assert done(ledger, "--id", "b", "--input-tokens", "10")[-1].startswith("changed 1 of 1")
    assert row(ledger, "b")["requires_manual_review"] == 0
    assert done(ledger, "--id", "b", "--input-tokens", "10")[-1].startswith("changed 0 of 1")


def test_an_old_export_does_not_undo_what_came_since(ledger: Path, tmp_path: Path) -> None:
    """What upstream told meanwhile, and what another filled in (of a model without a price, so no cost tells)."""
    sheets = []
    for id_ in "bf":
        done(ledger, "--id", "f", "--input-tokens", "5") if id_ == "f" else None
        exported = run(ledger, "--state", "partial" if id_ == "b" else "missing", command="export").stdout
        (one,) = [each for each in csv.DictReader(io.StringIO(exported, newline="")) if each["id"] == id_]
        path = tmp_path / f"{id_}.csv"
        with path.open("w", newline="") as file:
            lines = csv.DictWriter(file, one)
            lines.writeheader()
            lines.writerow(one | {"output_tokens": "300"})
        sheets.append(str(path))
    better = FLAGGED | {"usage_state": "partial", "input_tokens": 2_000, "total_tokens": 2_000, "usage_raw": "{}"}
    with closing(Store(ledger, "normal", "abc")) as store:
        store.write([Entry(record("b", **better))], [])
    done(ledger, "--id", "f", "--input-tokens", "999")
    for sheet_path in sheets:
        [line] = refused(ledger, sheet_path)
        assert "has changed since it was exported" in line


def test_a_sheet_that_is_no_export_does_not_reset_what_was_corrected_since(ledger: Path, tmp_path: Path) -> None:
    path = sheet(tmp_path / "x.csv", "id,input_tokens\nf,5\n")
    done(ledger, path)
    done(ledger, path)  # which says what is so already
    done(ledger, "--id", "f", "--input-tokens", "999")
    [line] = refused(ledger, path)
    assert "was corrected by hand before" in line
    done(ledger, path, "--force")
    assert row(ledger, "f")["input_tokens"] == 5


@pytest.mark.parametrize(("cell", "is_same"), [("3E-03", True), ("0.0030", True), ("0.004", False), ("x", False)])
def test_an_amount_that_a_spreadsheet_wrote_in_its_own_way_is_the_same(
    ledger: Path, tmp_path: Path, cell: str, is_same: bool
) -> None:
    path = sheet(tmp_path / "x.csv", f"id,total_cost,input_tokens\nc,{cell},5\n")
    if is_same:
        done(ledger, path, "--force")
    else:
        assert "has changed since it was exported" in refused(ledger, path, "--force")[0]


BAD = {
    "a count that is no number": ("id,input_tokens\na,many\n", 2, "input_tokens is 'many'"),
    "a negative count": ("id,input_tokens\na,-5\n", 2, "input_tokens is '-5'"),
    "a fraction": ("id,input_tokens\na,1.5\n", 2, "input_tokens is '1.5'"),
    "a thousands separator": ('id,input_tokens\na,"1,000"\n', 2, "'1,000'"),
    "other digits": ("id,input_tokens\na,١\n", 2, "is no whole number"),
    "a huge count": (f"id,input_tokens\na,{'9' * 400}\n", 2, "which is no count"),
    "parts beyond their total": (
        "id,cache_creation_input_tokens,cache_creation_1h_input_tokens\na,1,2\n",
        2,
        "is less than its",
    ),
    "an unknown id": ("id,input_tokens\nb,1\nnobody,1\n", 3, "no row with the id nobody"),
    "no row at all": ("id,request_id,input_tokens\n,,5\n", 2, "it says no row"),
    "two rows for one request": ("request_id,input_tokens\nreq_a,5\n", 2, "2 rows have the request_id req_a"),
    "a row twice": ("id,request_id,input_tokens\nb,,5\n,req_b,6\n", 3, "an earlier line is about the same row"),
    "a row that is not the request": (
        "id,request_id,input_tokens\nb,req_c,5\n",
        2,
        "does not have the request_id req_c",
    ),
    "a row twice with what it has": ("id,input_tokens\nb,10\nb,50\n", 3, "an earlier line is about the same row"),
    "zeros before a count beyond all": (f"id,input_tokens\na,{'0' * 9}{'7' * 19}\n", 2, "which is no count"),
    "too few cells": ("id,input_tokens\na\n", 2, "more or fewer cells"),
    "too many cells": ("id,input_tokens\na,1,2\n", 2, "more or fewer cells"),
    "a row of another time": ("id,occurred_at,input_tokens\na,2027-01-01T00:00:00.000Z,5\n", 2, "occurred_at is 2026"),
    "a row that has changed": ("id,usage_state,input_tokens\nb,missing,5\n", 2, "usage_state is partial now"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_line_is_told_with_its_number_and_nothing_is_changed(ledger: Path, tmp_path: Path, what: str) -> None:
    text, number, says = BAD[what]
    for arguments in ((), ("--dry-run",)):
        [line] = refused(ledger, sheet(tmp_path / "x.csv", text), *arguments)
        assert line.startswith(f"usage-ledger: {tmp_path / 'x.csv'}:{number}: ")
        assert says in line


def test_all_bad_lines_are_told(ledger: Path, tmp_path: Path) -> None:
    text = "id,input_tokens\n" + "".join(
        f"{id_},{count}\n" for id_, count in (("a", "x"), ("b", "1"), ("zz", "1")) * 12
    )
    lines = refused(ledger, sheet(tmp_path / "x.csv", text))
    assert lines[0].startswith(f"{tmp_path / 'x.csv'}:2: ")
    assert lines[-2] == "and 15 more"
    assert lines[-1] == "usage-ledger: 35 lines cannot be used, so no row is changed"


def test_bad_lines_are_told_also_where_the_file_breaks_further_down(ledger: Path, tmp_path: Path) -> None:
    lines = refused(ledger, sheet(tmp_path / "x.csv", 'id,input_tokens\na,x\nb,5\nzz,1\nc,"5"x\n'))
    assert [line.partition(": ")[2] for line in lines[:3]] == [
        "input_tokens is 'x', which is no whole number from 0 on",
        "after line 4: it is not CSV: ',' expected after '\"'",
        "there is no row with the id zz",
    ]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no column of id"),
        (b"id\na\n", "none of counts"),
        (b"input_tokens\n5\n", "no column of id"),
        (b"id,tokens\na,5\n", "unknown column 'tokens'"),
        (b"id,id,input_tokens\na,a,5\n", "a column is there twice"),
        (b"id,input_tokens\na,\xff\n", "not UTF-8"),
        (b'id,input_tokens\na,"5\n', "it is not CSV"),
        (b"id;input_tokens\na;5\n", "separated by semicolons"),
        (b'id,input_tokens\na,"5"x\n', "it is not CSV"),
        (None, "No such file"),
    ],
)
def test_a_file_that_is_none_is_one_line(ledger: Path, tmp_path: Path, content: bytes | None, says: str) -> None:
    path = tmp_path / "x.csv"
    if content is not None:
        path.write_bytes(content)
    [line] = refused(ledger, str(path))
    assert says in line


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--id", "a"),
        ("--input-tokens", "5"),
        ("--id", "a", "--request-id", "req_a", "--input-tokens", "5"),
        ("x.csv", "--id", "a"),
        ("x.csv", "--input-tokens", "5"),
        ("--id", "a", "--input-tokens", "-5"),
        ("--id", "a", "--input-tokens", "1.5"),
        ("--id", "nobody", "--input-tokens", "5"),
    ],
)
def test_options_that_cannot_be_meant_so_are_one_line(ledger: Path, arguments: tuple[str, ...]) -> None:
    assert len(refused(ledger, *arguments)) == 1


def test_a_replay_does_not_undo_a_correction(ledger: Path) -> None:
    done(ledger, "--id", "a", "--input-tokens", "5")
    before = row(ledger, "a")
    with closing(Store(ledger, "normal", "abc")) as store:
        store.write([Entry(record("a", usage_state="complete", input_tokens=99, total_tokens=99))], [])
    assert row(ledger, "a") == before


def test_a_row_that_changes_meanwhile_keeps_all_rows_from_being_changed(ledger: Path) -> None:
    from usage_ledger.ledger.editing import Change, open_for_editing
    from usage_ledger.ledger.marks import LedgerError

    changes = [Change(id_, "", {"input_tokens": 0}, {"input_tokens": 1}) for id_ in "ab"]
    before = state(ledger)
    with pytest.raises(LedgerError, match="row b changed meanwhile"), open_for_editing(ledger) as editor:
        editor.change("backfill", changes, all_or_none=True)
    assert state(ledger) == before
