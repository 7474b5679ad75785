"""Closed books: totals in the trail, nothing changes by command, and what comes late is known."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from usage_ledger.ledger import closing as books
from usage_ledger.ledger.editing import Change, open_for_editing
from usage_ledger.ledger.marks import LedgerError
from usage_ledger.ledger.reading import open_for_reading
from usage_ledger.ledger.record import Entry, Record
from usage_ledger.ledger.store import Store

OCTOBER, NOVEMBER, DECEMBER = (f"2026-{month}-01T00:00:00.000Z" for month in (10, 11, 12))


def record(id_: str, day: str = "2026-10-05", **fields: Any) -> Record:
    given = {
        "occurred_at": f"{day}T08:00:00.000Z",
        "host": "h",
        "path": "/v1/messages",
        "model": "claude-sonnet-4-6",
        "usage_state": "complete",
        "input_tokens": 1_000,
        "total_tokens": 1_000,
        "usage_raw": '{"input_tokens":1000}',
        "total_cost": "0.003",
        "price_source": "x",
        **fields,
    }
    return Record(id=id_, **given)


def write(path: Path, *records: Record) -> None:
    with closing(Store(path, "normal", "abc")) as store:
        store.write([Entry(each) for each in records], [])


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    path = tmp_path / "usage.db"
    write(
        path,
        record("sep", "2026-09-30"),
        record("a"),
        record("b", credential_kind="oauth"),
        record("c", usage_state="partial", total_cost=None, requires_manual_review=1),
        record("nov", "2026-11-05"),
    )
    return path


def close(path: Path, until: str, note: str = "done") -> dict[str, Any]:
    with open_for_editing(path) as editor:
        return books.close_books(editor, until, note)


def findings(path: Path) -> list[str]:
    with open_for_reading(path) as reader:
        return list(books.broken(reader))


def late(path: Path) -> list[tuple[str, str]]:
    with open_for_reading(path) as reader:
        return [(each.record_id, each.what) for each in books.late(reader)]


def sql(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(statement)
        connection.commit()


def change(path: Path, id_: str, reopen: bool = False) -> set[str]:
    with open_for_editing(path) as editor:
        one = Change(id_, "x", {"tag": None}, {"tag": "x"})
        return editor.change("review", [one], reopen=reopen)


def test_a_closing_is_an_entry_with_the_totals_of_its_period(ledger: Path) -> None:
    close(ledger, OCTOBER)
    entry = close(ledger, NOVEMBER, "October")
    with closing(sqlite3.connect(ledger)) as connection:
        source, reason, record_id, after = connection.execute(
            "SELECT source, reason, record_id, after FROM usage_revisions WHERE position = 2"
        ).fetchone()
        (head,) = connection.execute("SELECT hash FROM usage_revisions WHERE position = 1").fetchone()
    assert (source, reason, record_id) == ("close", "October", None)
    told = json.loads(after)
    assert {name: told[name] for name in ("closed_since", "closed_until", "requests", "input_tokens", "flagged")} == {
        "closed_since": OCTOBER,
        "closed_until": NOVEMBER,
        "requests": 3,
        "input_tokens": 3_000,
        "flagged": 1,
    }
    assert (told["billed_cost"], told["subscription_list_price"], told["unsettled"]) == ("0.003", "0.003", 1)
    assert (told["head"], told["reconciliation"]) == (head, None)
    assert entry["position"] == 2
    assert findings(ledger) == []


def test_no_command_changes_a_closed_period_but_where_it_is_told_to(ledger: Path) -> None:
    close(ledger, NOVEMBER)
    with pytest.raises(LedgerError, match=r"row a is of a period that is closed \(until 2026-11-01\); --reopen"):
        change(ledger, "a")
    assert change(ledger, "nov") == {"nov"}
    assert change(ledger, "a", reopen=True) == {"a"}
    assert late(ledger) == [("a", "changed")]


def test_a_proxy_writes_whatever_is_closed_and_it_is_known(ledger: Path) -> None:
    close(ledger, NOVEMBER)
    write(ledger, record("late", "2026-10-31"), record("dec", "2026-11-30"), record("c"))
    assert sorted(late(ledger)) == [("c", "changed"), ("late", "came")]
    assert [finding.partition(" on ")[0] for finding in sorted(findings(ledger))] == [
        "row c: it changed",
        "row late: it came",
    ]


def test_a_period_that_is_closed_again_takes_in_what_came_late(ledger: Path) -> None:
    close(ledger, OCTOBER)
    first = close(ledger, NOVEMBER)
    close(ledger, "2026-11-20T00:00:00.000Z")
    write(ledger, record("late", "2026-10-31"))
    again = close(ledger, NOVEMBER, "with the late one")
    assert (first["requests"], again["requests"], again["late"]) == (3, 4, 1)
    assert again["closed_since"] == OCTOBER
    assert late(ledger) == []
    assert findings(ledger) == []
    with open_for_reading(ledger) as reader:
        assert [each.until for each in books.closings(reader)] == [OCTOBER, NOVEMBER, "2026-11-20T00:00:00.000Z"]
        assert books.closed_until(reader) == "2026-11-20T00:00:00.000Z"


def test_a_time_within_a_closed_period_is_refused(ledger: Path) -> None:
    close(ledger, NOVEMBER)
    with pytest.raises(LedgerError, match="closed until 2026-11-01 already; a period is closed again by its own end"):
        close(ledger, OCTOBER)


def test_requests_in_flight_keep_the_books_open(ledger: Path) -> None:
    write(ledger, record("p", usage_state="pending"))
    with pytest.raises(LedgerError, match=r"1 request\(s\) before 2026-11-01 are still in flight"):
        close(ledger, NOVEMBER)
    assert close(ledger, OCTOBER)["requests"] == 1
    with open_for_reading(ledger) as reader:
        assert books.closed_until(reader) == OCTOBER


def test_a_row_that_comes_while_it_is_added_up_is_in_the_totals(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    added_up = books.summarize
    came: Iterator[str] = iter(["one", "two"])

    def meanwhile(*arguments: Any) -> Any:
        found = list(added_up(*arguments))
        for id_ in came:
            write(ledger, record(id_, "2026-10-31"))
            break
        return found

    monkeypatch.setattr(books, "summarize", meanwhile)
    assert close(ledger, NOVEMBER)["requests"] == 6
    assert late(ledger) == []
    assert findings(ledger) == []


def test_rows_that_keep_coming_are_one_line(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    added_up = books.summarize
    numbers = iter(range(100))

    def meanwhile(*arguments: Any) -> Any:
        found = list(added_up(*arguments))
        write(ledger, record(f"n{next(numbers)}"))
        return found

    monkeypatch.setattr(books, "summarize", meanwhile)
    with pytest.raises(LedgerError, match="keep changing while they are added up"):
        close(ledger, NOVEMBER)
    monkeypatch.undo()
    with open_for_reading(ledger) as reader:
        assert books.closed_until(reader) is None
    assert close(ledger, NOVEMBER)["requests"] == 9


TAMPERED = {
    "DELETE FROM usage_records WHERE id = 'a'": "requests was 4, and is 3",
    "DROP TRIGGER usage_late_came": "trigger usage_late_came is gone",
    "DELETE FROM usage_closings": "entry 1 of the trail and usage_closings do not say the same",
    "UPDATE usage_closings SET until = '2026-10-15T00:00:00.000Z'": "entry 1 of the trail and usage_closings do not",
    "INSERT INTO usage_closings VALUES (9, '', '2026-12-01', 7)": "entry 7 of the trail and usage_closings do not say",
    "DROP TABLE usage_closings": "their table usage_closings is gone",
}


@pytest.mark.parametrize("statement", TAMPERED)
def test_what_was_done_to_closed_books_by_plain_sql_is_named(ledger: Path, statement: str) -> None:
    close(ledger, NOVEMBER)
    sql(ledger, statement)
    assert any(TAMPERED[statement] in finding for finding in findings(ledger))


def test_a_row_that_was_moved_out_of_a_closed_period_is_missed(ledger: Path) -> None:
    close(ledger, NOVEMBER)
    sql(ledger, "UPDATE usage_records SET occurred_at = '2026-11-20T08:00:00.000Z' WHERE id = 'a'")
    assert "books closed until 2026-11-01: requests was 4, and is 3" in findings(ledger)


def test_many_late_rows_are_not_all_told(ledger: Path) -> None:
    close(ledger, NOVEMBER)
    write(ledger, *(record(f"n{number}") for number in range(150)))
    told = findings(ledger)
    assert len(told) == 101
    assert told[-1] == "and 50 more rows of the period until 2026-11-01"


def test_an_older_ledger_has_no_closed_books(ledger: Path) -> None:
    for statement in (
        "DROP TABLE usage_closings",
        "DELETE FROM _sqlite_migrations WHERE name = 'create_closings_and_archive'",
    ):
        sql(ledger, statement)
    assert findings(ledger) == []
    assert late(ledger) == []


def test_what_comes_late_while_a_period_is_closed_again_in_vain_is_still_known(
    ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    close(ledger, NOVEMBER)

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(books, "_end", die)
    with pytest.raises(KeyboardInterrupt):
        close(ledger, NOVEMBER)
    monkeypatch.undo()
    write(ledger, record("late"))
    change(ledger, "a", reopen=True)
    assert sorted(late(ledger)) == [("a", "changed"), ("late", "came")]
    again = close(ledger, NOVEMBER)
    assert (again["requests"], again["late"]) == (5, 2)
    assert late(ledger) == []
    assert findings(ledger) == []


def test_a_late_row_is_written_as_often_as_its_proxy_knows_more(ledger: Path) -> None:
    """In flight, then a lower bound, then complete: each an upsert."""
    close(ledger, NOVEMBER)
    write(ledger, record("late", usage_state="pending", input_tokens=0, total_tokens=0))
    write(ledger, record("late", usage_state="partial", input_tokens=5, total_tokens=5))
    write(ledger, record("late"), record("c"), record("c", input_tokens=2_000))
    write(ledger, record("late"))
    assert sorted(late(ledger)) == [("c", "changed"), ("late", "came")]
    with open_for_reading(ledger) as reader:
        assert reader.having("id", ["late"], ["usage_state", "input_tokens"]) == [("complete", 1_000)]
