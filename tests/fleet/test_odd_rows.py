"""What other programs have put into a ledger or into the books: it holds up no other row, and nothing is guessed."""

import json
from decimal import Decimal
from pathlib import Path

import pytest
from usage_ledger.ledger.outbox import open_outbox
from usage_ledger.ledger.record import IterationRow
from usage_ledger.ledger.wire import line_of

from scripts.real_postgres import query
from scripts.real_proxy import rows_of
from tests.fleet.conftest import FLAGGED, Run, backfill, fill, record, sql, stored, timely


def test_whatever_a_note_says_the_trail_goes_along(ledger: Path, dsn: str, run: Run) -> None:
    fill(ledger, record(1, **FLAGGED))
    note = "invoice 7\nof \x1f May\r\\N \x1e"
    run("backfill", "--id", record(1).id, "--input-tokens", 5, "--output-tokens", 1, "--note", note, "--db", ledger)
    run("push", dsn, "--db", ledger)
    assert query(dsn, "SELECT reason FROM usage_revisions") == [(note,)]


ODD: dict[str, dict[str, object]] = {
    "a NUL in JSON": {"metadata": '{"a":"x\\u0000y"}'},
    "half a surrogate pair": {"metadata": '{"a":"\\ud800"}'},
    "no JSON": {"metadata": "{"},
    "JSON that is no object": {"metadata": "5"},
    "JSON that is NaN": {"usage_raw": '{"a":NaN}'},
    "a tab, a backslash, a line end": {"tag": "a\tb\\c\nd\re\\N"},
    "a cost that is no number": {"total_cost": "much"},
    "a cost below nothing": {"total_cost": "-1"},
    "a cost of a hundred digits": {"total_cost": "9" * 100},
    "a count below nothing": {"output_tokens": -5},
    "an end that never was": {"completed_at": "infinity"},
    "an end that is no time": {"completed_at": "yesterday"},
    "a flag that is none": {"requires_manual_review": 7},
    "a state that is none": {"usage_state": "odd"},
    "the separator": {"tag": "a\x1fb"},
    "JSON that is nested too deep": {"metadata": "[" * 20_000 + "]" * 20_000},
    "an id that is too long to look up": {"request_id": "".join(map(chr, range(0x4E00, 0x4E00 + 9000)))},
    "a start that is no time": {"occurred_at": "yesterday"},
    "a start in the last month there is": {"occurred_at": "9999-12-31T00:00:00.000Z"},
    "a name for nothing": {"tag": "\\N"},
    "no UTF-8": {"tag": b"a\xff"},
}


REASONS = {
    "a cost that is no number": "cannot be: total_cost is much",
    "a cost below nothing": "cannot be: total_cost is -1",
    "a cost of a hundred digits": f"cannot be: total_cost is {'9' * 40}",
    "a count below nothing": "cannot be: output_tokens is -5",
    "an end that never was": "cannot be: completed_at is infinity",
    "an end that is no time": "cannot be: completed_at is yesterday",
    "a flag that is none": "cannot be: requires_manual_review is 7",
    "a state that is none": "cannot be: usage_state is 'odd'",
}


@pytest.mark.parametrize("name", ODD)
def test_what_another_program_has_put_there_holds_up_no_other_row(ledger: Path, dsn: str, run: Run, name: str) -> None:
    fill(ledger, *map(record, range(5)))
    for column, value in ODD[name].items():
        bound = "CAST(? AS TEXT)" if isinstance(value, bytes) else "?"
        sql(ledger, f"UPDATE usage_records SET {column} = {bound} WHERE id = ?", value, record(2).id)
    done = run("push", dsn, "--db", ledger, code=None)
    there = {row[0] for row in stored(dsn, "id")}
    assert there >= {record(each).id for each in (0, 1, 3, 4)}
    if name not in REASONS and record(2).id in there:
        assert done.returncode == 0
        if isinstance(tag := ODD[name].get("tag"), str):
            assert query(dsn, "SELECT tag FROM usage_records WHERE id = %s", [record(2).id]) == [(tag,)]
    else:
        assert done.returncode == 1
        assert f"row {record(2).id} {REASONS.get(name, 'holds what PostgreSQL does not take')}" in done.stderr


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("input_tokens = 9e18::bigint", "input_tokens is 9000000000000000000"),
        ("output_tokens = -1", "output_tokens is -1"),
        ("total_cost = 'NaN'", "total_cost is NaN"),
        ("total_cost = -1", "total_cost is -1"),
        ("total_cost = 10::numeric ^ 1000", "total_cost is 1000000000000000000000000000000000000000\n"),
        ("requires_manual_review = 7", "requires_manual_review is 7"),
        ("total_cost = '-Infinity'", "total_cost is -Infinity"),
        ("usage_state = 'pending'", "usage_state is 'pending'"),
        ("thinking_tokens = 999", "thinking_tokens are part of output_tokens, and cannot be more"),
        ("cache_creation_5m_input_tokens = 9", "cache_creation_input_tokens is less than its 5-minute and 1-hour"),
        ("metadata = '[]'", "metadata is no JSON object"),
        ("http_status = -5", "http_status is -5"),
        ("completed_at = 'infinity'", "completed_at is infinity"),
        ("completed_at = '-infinity'", "completed_at is -infinity"),
        ("completed_at = '20260-01-01'", "completed_at is 20260-01-01T00:00:00.000Z"),
    ],
)
def test_what_cannot_be_stays_in_the_books_and_is_told(
    proxy: Path, desk: Path, dsn: str, run: Run, change: str, why: str
) -> None:
    fill(proxy, record(1), record(2))
    run("push", dsn, "--db", proxy)
    query(dsn, f"UPDATE usage_records SET {change} WHERE id = '{record(1).id}'")
    done = run("pull", dsn, "--db", desk, code=1)
    assert f"row {record(1).id} cannot be: {why}" in done.stderr
    assert "1 row(s) cannot be, and were left in the books; correct them there" in done.stderr
    assert [row["id"] for row in rows_of(desk)] == [record(2).id]
    assert run("summary", "--db", desk).returncode == 0


@pytest.mark.parametrize(
    "usage_raw",
    ['{"a":1e400}', '{"a":0.12345678901234567890123456789}', '{"a":123456789012345678901234567890}', '{"a b":"c  d"}'],
)
def test_numbers_come_back_as_they_are_and_not_as_news(
    proxy: Path, desk: Path, dsn: str, run: Run, usage_raw: str
) -> None:
    fill(proxy, record(1, usage_raw=usage_raw))
    run("push", dsn, "--db", proxy)
    run("pull", dsn, "--db", desk)
    assert json.loads(rows_of(desk)[0]["usage_raw"], parse_float=Decimal) == json.loads(usage_raw, parse_float=Decimal)
    assert " changed" in run("pull", dsn, "--db", proxy).stdout
    assert run("pull", dsn, "--db", proxy).stdout == "1 row(s) match: 0 new, 0 changed here\n"
    run("push", dsn, "--db", desk, "--source", "desk")
    assert query(dsn, "SELECT edited_at FROM usage_records") == [(None,)]


@pytest.mark.parametrize(("flag", "is_corrected"), [("true", True), ("1", True), ('"true"', False), ("2", False)])
def test_both_sides_read_the_mark_of_a_correction_alike(
    proxy: Path, desk: Path, dsn: str, run: Run, flag: str, is_corrected: bool
) -> None:
    """What is none there gives way to better usage; what is one here is in no review queue."""
    fill(proxy, record(1, usage_state="partial", metadata=f'{{"_manually_updated":{flag}}}'))
    run("push", dsn, "--db", proxy, "--source", "web-1")
    run("push", dsn, "--db", fill(desk.with_name("b.db"), record(1)), "--source", "web-2")
    assert query(dsn, "SELECT usage_state FROM usage_records") == [("partial" if is_corrected else "complete",)]


def test_a_text_that_looks_like_a_row_is_none(ledger: Path, dsn: str, run: Run) -> None:
    """A separator and a line end within a text would make two rows of one."""
    fill(ledger, record(1), record(2))
    run("push", dsn, "--db", ledger)
    line = pushing_line(ledger, record(2).id)
    forged = line.replace("acme", "mallory")
    tag = f"x{forged[forged.index(chr(0x1F)) :]}\n{forged}"
    fill(ledger, record(3, tag=tag))
    run("push", dsn, "--db", ledger)
    assert stored(dsn, "account_id") == [("acme",)] * 3
    assert query(dsn, "SELECT tag FROM usage_records WHERE id = %s", [record(3).id]) == [(tag,)]


@pytest.mark.parametrize(
    ("text", "there"), [("\x1e", "\x1e"), ("a\x1eb", "a\x1eb"), ("a\x00b", "a\ufffdb"), ("\x00", "\ufffd")]
)
def test_no_text_is_cut_or_taken_for_none(ledger: Path, dsn: str, run: Run, text: str, there: str) -> None:
    """PostgreSQL has no NUL."""
    fill(ledger, timely(1, tag=text))
    run("push", dsn, "--db", ledger)
    assert stored(dsn, "tag") == [(there,)]


def test_texts_of_iterations_may_hold_anything(ledger: Path, dsn: str, run: Run) -> None:
    """Also what looks like another one of them."""
    row, text = timely(1), "\n\x1ex\x1f\\y\r"
    fill(ledger, row, iterations=(IterationRow(row.id, 0, "\x1e", text, 1, 5),))
    run("push", dsn, "--db", ledger)
    assert query(dsn, "SELECT type, model FROM usage_iterations") == [("\x1e", text)]


def pushing_line(path: Path, row_id: str) -> str:
    """A row as it goes over the wire."""
    with open_outbox(path) as outbox:
        return line_of(outbox.cells([row_id])[0][row_id])


def test_an_entry_of_the_trail_that_cannot_be_stored_holds_up_no_other(ledger: Path, dsn: str, run: Run) -> None:
    fill(ledger, *(record(number, **FLAGGED) for number in range(3)))
    for number in range(3):
        backfill(run, ledger, number, 5)
    sql(ledger, "DROP TRIGGER usage_revisions_stay")
    sql(ledger, "UPDATE usage_revisions SET revised_at = 'whenever' WHERE position = 2")
    done = run("push", dsn, "--db", ledger, code=1)
    assert (
        "row 2 of revisions holds what PostgreSQL does not take, and stays out of the books; see verify" in done.stderr
    )
    assert query(dsn, "SELECT position FROM usage_revisions ORDER BY 1") == [(1,), (3,)]
    assert len(stored(dsn, "id")) == 3


def test_an_iteration_that_cannot_be_keeps_its_row_back(ledger: Path, dsn: str, run: Run) -> None:
    fill(ledger, record(1), record(2), iterations=(IterationRow(record(2).id, 0, "message", None, 1, 5),))
    sql(ledger, "UPDATE usage_iterations SET total_cost = 'nan'")
    done = run("push", dsn, "--db", ledger, code=1)
    assert f"row {record(2).id} cannot be: total_cost is nan" in done.stderr
    assert stored(dsn, "id") == [(record(1).id,)]
    sql(ledger, "UPDATE usage_iterations SET total_cost = '0.5'")
    run("push", dsn, "--db", ledger)
    assert query(dsn, "SELECT total_cost::text FROM usage_iterations") == [("0.5",)]


def test_a_new_row_that_is_kept_back_leaves_none_of_its_iterations_in_the_books(
    ledger: Path, dsn: str, run: Run
) -> None:
    """Those rows are stored the short way, and their iterations with them."""
    rows = timely(1), timely(2)
    fill(ledger, *rows, iterations=tuple(IterationRow(row.id, 0, "message", None, 1, 5) for row in rows))
    sql(ledger, "UPDATE usage_iterations SET input_tokens = -1 WHERE record_id = ?", rows[1].id)
    done = run("push", dsn, "--db", ledger, code=1)
    assert f"row {rows[1].id} cannot be: input_tokens of an iteration is -1" in done.stderr
    assert query(dsn, "SELECT record_id FROM usage_iterations") == [(rows[0].id,)]
