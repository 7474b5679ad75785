"""`usage-ledger review`: the queue, one row in full, settling rows as they are, and the report for upstream."""

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from usage_ledger.ledger.record import Entry, IterationRow
from usage_ledger.ledger.store import Store

from tests.cli.test_backfill import FLAGGED, record, row, run, state, trail


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    path = tmp_path / "usage.db"
    rows = [
        record("b", **FLAGGED, occurred_at="2026-11-02T08:00:00.000Z", response_bytes=1388, http_status=200, stream=1),
        record("a", **FLAGGED, occurred_at="2026-11-01T08:00:00.000Z", api_key_hint="sk-ant-api03-R2D...igAA"),
        record("c", usage_state="complete"),
        record("d", **FLAGGED | {"usage_state": "partial", "review_reason": "client_disconnected"}),
    ]
    iterations = [IterationRow("c", 0, "message", "claude-opus-5-5", 1, input_tokens=7, total_cost="0.5")]
    with closing(Store(path, "normal", "abc")) as store:
        store.write([Entry(each, iterations if each.id == "c" else []) for each in rows], [])
    return path


def review(path: Path, *arguments: str, code: int = 0) -> list[str]:
    done = run(path, *arguments, command="review")
    assert done.returncode == code, done
    assert "Traceback" not in done.stderr
    return (done.stdout if code == 0 else done.stderr).splitlines()


def test_the_queue_is_shown_oldest_first_with_counts_by_reason(ledger: Path) -> None:
    lines = review(ledger)
    assert [line.split()[-1] for line in lines[1:4]] == ["a", "d", "b"]
    assert [line.split() for line in lines[5:]] == [["2", "no_usage_data"], ["1", "client_disconnected"]]


@pytest.mark.parametrize("columns", [50, 80, 100, 120, 200])
def test_the_id_is_always_whole_for_it_is_what_the_next_command_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    path, id_ = tmp_path / "usage.db", "661057e494c57-480f7dc21dd8"
    with closing(Store(path, "normal", "abc")) as store:
        store.write([Entry(record(id_, **FLAGGED, model="claude-sonnet-4-5-20250929"))], [])
    monkeypatch.setattr("tests.cli.test_backfill.ENVIRONMENT", {**os.environ, "COLUMNS": str(columns)})
    lines = review(path)
    assert lines[1].endswith(id_)
    assert max(map(len, lines)) <= columns


def test_filters_and_a_limit_choose_from_the_queue(ledger: Path) -> None:
    assert len(review(ledger, "--since", "2026-11-02")) == 1 + 1 + 1 + 1
    limited = run(ledger, "-n", "1", command="review")
    assert len(limited.stdout.splitlines()) == 1 + 1 + 1 + 2
    assert limited.stderr == "1 of 3 are shown; -n 0 shows all\n"


def test_an_empty_queue_is_said(ledger: Path) -> None:
    done = run(ledger, "--model", "gpt-*", command="review")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", f"nothing to review in {ledger}\n")


def test_one_row_is_shown_with_its_iterations_its_history_and_its_ids(ledger: Path) -> None:
    run(ledger, "--id", "a", "--output-tokens", "5", "--note", "invoice 7")
    text = "\n".join(review(ledger, "show", "a"))
    for told in ("total_tokens", "backfill: invoice 7", "output_tokens: 0 → 5", "request_id req_a", "message_id msg_a"):
        assert told in text
    assert "claude-opus-5-5, billed 1, input_tokens 7, total_cost 0.5" in "\n".join(review(ledger, "show", "c"))
    assert "no row with the id nobody" in review(ledger, "show", "nobody", code=2)[0]


def test_a_ledger_that_is_named_before_the_subcommand_is_the_one(ledger: Path) -> None:
    assert any("req_a" in line for line in review(ledger, "show", "a"))
    done = run(ledger, "show", "--db", str(ledger.with_name("none.db")), "a", command="review")
    assert "there is no ledger" in done.stderr
    assert "filters stand after accept" in review(ledger, "--flagged", "accept", "a", "--note", "x", code=2)[0]


def test_rows_are_accepted_by_their_ids(ledger: Path) -> None:
    before = row(ledger, "a")
    assert review(ledger, "accept", "a", "d", "a", "--note", "never billed") == [
        "a no_usage_data",
        "d client_disconnected",
        "accepted 2 row(s)",
    ]
    after = row(ledger, "a")
    assert json.loads(after.pop("metadata")) == {"_no_usage_data": True, "_accepted": True}
    assert after == {name: value for name, value in before.items() if name != "metadata"} | {
        "requires_manual_review": 0
    }
    assert trail(ledger) == [("a", "review", "never billed"), ("d", "review", "never billed")]
    assert review(ledger, "accept", "a", "--note", "x", code=2) == [
        "usage-ledger: row a is not in the queue; no row is changed"
    ]


def test_rows_are_accepted_by_filters_and_first_only_in_name(ledger: Path) -> None:
    before = state(ledger)
    would = review(ledger, "accept", "--until", "2026-11-02", "--note", "x", "--dry-run")
    assert state(ledger) == before
    assert would == ["a no_usage_data", "d client_disconnected", "would accept 2 row(s)"]
    assert review(ledger, "accept", "--until", "2026-11-02", "--note", "x")[-1] == "accepted 2 row(s)"
    assert review(ledger, "accept", "--until", "2026-11-02", "--note", "x") == ["accepted 0 row(s)"]
    assert row(ledger, "b")["requires_manual_review"] == 1


@pytest.mark.parametrize(
    "arguments",
    [("a",), ("--note", "x"), ("a", "--flagged", "--note", "x"), ("a", "--note", " "), ("a", "nobody", "--note", "x")],
)
def test_what_cannot_be_accepted_is_one_line_and_changes_nothing(ledger: Path, arguments: tuple[str, ...]) -> None:
    before = state(ledger)
    assert len(review(ledger, "accept", *arguments, code=2)) == 1
    assert state(ledger) == before


def test_a_reader_that_leaves_leaves_no_half_undone(tmp_path: Path) -> None:
    path = tmp_path / "usage.db"
    with closing(Store(path, "normal", "abc")) as store:
        store.write([Entry(record(f"{number:05}", **FLAGGED)) for number in range(3_000)], [])
    ours, theirs = os.pipe()
    os.close(ours)
    arguments = [
        sys.executable,
        "-m",
        "usage_ledger",
        "review",
        "accept",
        "--db",
        str(path),
        "--flagged",
        "--note",
        "x",
    ]
    done = subprocess.run(arguments, stdout=theirs, stderr=subprocess.PIPE, timeout=60)
    os.close(theirs)
    assert (done.returncode, done.stderr) == (0, b"")
    assert len(trail(path)) == 3_000


def test_a_better_row_replaces_an_accepted_one(ledger: Path) -> None:
    review(ledger, "accept", "a", "--note", "x")
    with closing(Store(ledger, "normal", "abc")) as store:
        store.write([Entry(record("a", usage_state="complete", input_tokens=9, total_tokens=9))], [])
    assert row(ledger, "a")["total_tokens"] == 9


def test_the_report_lists_requests_without_usage_and_nothing_secret(ledger: Path) -> None:
    text = "\n".join(review(ledger, "report"))
    for told in ("req_a", "req_b", "1388", "ended normally", "2026-11-02T08:00:00.000Z"):
        assert told in text
    for kept in ("sk-ant", "req_c", "req_d", "account", "user_agent"):
        assert kept not in text
    empty = run(ledger, "report", "--model", "gpt-*", command="review")
    assert (empty.stdout, empty.stderr) == ("", f"no request without usage in {ledger}\n")


def test_a_history_that_another_program_broke_is_shown_as_it_is(ledger: Path) -> None:
    with closing(sqlite3.connect(ledger)) as connection:
        connection.execute("INSERT INTO usage_revisions VALUES (1, 'x', 'x', 'x', 'x', 'a', '{', '[]', 'x')")
        connection.commit()
    assert any("it cannot be read: { → []" in line for line in review(ledger, "show", "a"))
