"""Editing: a change is made whole, leaves its entry, and never overrules what it was not made for."""

import os
import sqlite3
import tempfile
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from usage_ledger.ledger.editing import Change, Editor, open_for_editing
from usage_ledger.ledger.entries import PAGE, entries, entries_by
from usage_ledger.ledger.filters import FINAL, UNPRICED, Filters
from usage_ledger.ledger.marks import LedgerError
from usage_ledger.ledger.reading import open_for_reading
from usage_ledger.ledger.record import Entry, IterationRow, Record
from usage_ledger.ledger.store import Store


def record(id_: str, **fields: Any) -> Record:
    given = {"occurred_at": "2026-11-01T08:00:00.000Z", "host": "h", "path": "/v1/messages", **fields}
    return Record(id=id_, **({"usage_state": "complete"} | given))


def fill(path: Path, *given: Record | Entry) -> Path:
    with closing(Store(path, "normal", "abc")) as store:
        store.write([each if isinstance(each, Entry) else Entry(each) for each in given], [])
    return path


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return fill(tmp_path / "usage.db", record("a"), record("b", total_cost="0.5"))


def change(id_: str, before: str | None, after: str | None, **expected: Any) -> Change:
    return Change(id_, "why", {"total_cost": before, **expected}, {"total_cost": after})


def rows(path: Path, statement: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(statement).fetchall()


def costs(path: Path) -> list[str | None]:
    return [row[0] for row in rows(path, "SELECT total_cost FROM usage_records ORDER BY id")]


def trail(path: Path) -> list[tuple[Any, ...]]:
    return rows(path, "SELECT source, reason, record_id, before, after FROM usage_revisions ORDER BY position")


def test_a_change_is_made_and_leaves_its_entry(ledger: Path) -> None:
    with open_for_editing(ledger) as editor:
        assert editor.change("price", [change("a", None, "1"), change("b", "0.5", "2")]) == {"a", "b"}
    assert costs(ledger) == ["1", "2"]
    assert trail(ledger) == [
        ("price", "why", "a", '{"total_cost":null}', '{"total_cost":"1"}'),
        ("price", "why", "b", '{"total_cost":"0.5"}', '{"total_cost":"2"}'),
    ]


def test_a_row_that_is_not_what_the_change_was_made_for_is_left_alone(ledger: Path) -> None:
    changes = [change("a", "0.1", "1"), change("b", "0.5", "2", input_tokens=7), change("c", None, "3")]
    with open_for_editing(ledger) as editor:
        assert editor.change("price", changes) == set()
    assert costs(ledger) == [None, "0.5"]
    assert trail(ledger) == []


def test_all_of_the_changes_or_none(ledger: Path) -> None:
    """The second one cannot be stored: the first is not made either, and has no entry."""
    bad = Change("b", "why", {"input_tokens": 0}, {"input_tokens": "many"})
    with pytest.raises(LedgerError, match="cannot write"), open_for_editing(ledger) as editor:
        editor.change("price", [change("a", None, "1"), bad])
    assert costs(ledger) == [None, "0.5"]
    assert trail(ledger) == []


def test_a_trail_goes_on_where_it_ended(ledger: Path) -> None:
    for before, after in ((None, "1"), ("1", "2"), ("2", None)):
        with open_for_editing(ledger) as editor:
            editor.change("price", [change("a", before, after)])
    assert [row[3:] for row in trail(ledger)] == [
        ('{"total_cost":null}', '{"total_cost":"1"}'),
        ('{"total_cost":"1"}', '{"total_cost":"2"}'),
        ('{"total_cost":"2"}', '{"total_cost":null}'),
    ]


def test_two_editors_at_once_make_one_trail(ledger: Path) -> None:
    """Each waits for the other's turn; of two changes of one row, one is made."""
    made: list[set[str]] = []

    def edit(editor: Editor, value: str) -> None:
        for number in range(50):
            made.append(editor.change("price", [change("b", "0.5", value), change("a", None, f"{value}{number}")]))

    with open_for_editing(ledger) as one, open_for_editing(ledger) as other:
        other.connection.execute("PRAGMA busy_timeout = 10000")
        threads = [threading.Thread(target=edit, args=(each, value)) for each, value in ((one, "1"), (other, "2"))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(map(sorted, filter(None, made))) in ([["a", "b"]], [["a"], ["b"]])
    assert [position for (position,) in rows(ledger, "SELECT position FROM usage_revisions")] == [1, 2]


def test_an_older_ledger_gets_its_trail(ledger: Path) -> None:
    with closing(sqlite3.connect(ledger)) as connection:
        made = connection.execute(
            "SELECT type, name FROM sqlite_master WHERE type IN ('table', 'trigger') AND name NOT LIKE 'sqlite_%' "
            "AND name NOT IN ('usage_records', 'usage_iterations', '_sqlite_migrations', 'usage_iterations_follow') "
            "ORDER BY type DESC"
        )
        for kind, name in made.fetchall():
            connection.execute(f"DROP {kind} IF EXISTS {name}")
        connection.execute("ALTER TABLE usage_iterations DROP COLUMN total_cost")
        connection.execute("DELETE FROM _sqlite_migrations WHERE name <> 'create_usage_records'")
        connection.commit()
    with open_for_reading(ledger) as reader:
        assert sum(map(len, entries(reader, Filters(), FINAL))) == 2
    with open_for_editing(ledger) as editor:
        assert editor.change("price", [change("a", None, "1")]) == {"a"}
    assert len(trail(ledger)) == 1


def test_what_is_no_ledger_is_not_made_one(tmp_path: Path) -> None:
    (tmp_path / "empty.db").touch()
    for name, says in (("none.db", "there is no ledger"), ("empty.db", "is empty and not a usage ledger")):
        with pytest.raises(LedgerError, match=says), open_for_editing(tmp_path / name):
            pass
    assert (tmp_path / "empty.db").stat().st_size == 0
    assert not (tmp_path / "none.db").exists()


def test_a_ledger_that_somebody_else_keeps_locked_is_said_in_one_line(
    ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("usage_ledger.ledger.editing.BUSY_MS", 10)
    with open_for_editing(ledger) as editor, closing(sqlite3.connect(ledger, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            editor.change("price", [change("a", None, "1")])
        other.execute("ROLLBACK")
        assert editor.change("price", [change("a", None, "1")]) == {"a"}


@pytest.mark.parametrize(("file", "folder"), [(0o444, 0o777), (0o666, 0o555), (0o444, 0o555)])
def test_a_ledger_that_may_not_be_written_is_said_in_one_line(file: int, folder: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        ledger = fill(Path(name, "usage.db"), record("a"))
        ledger.chmod(file)
        ledger.parent.chmod(folder)
        mine = os.geteuid()
        if mine == 0:
            os.seteuid(65534)  # nobody, for whom the modes mean what they say
        try:
            with pytest.raises(LedgerError, match="cannot write") as caught, open_for_editing(ledger) as editor:
                editor.change("price", [change("a", None, "1")])
        finally:
            os.seteuid(mine)
        assert "\n" not in str(caught.value)
        ledger.parent.chmod(0o755)
        assert (costs(ledger), trail(ledger)) == ([None], [])


def test_a_ledger_that_is_replaced_meanwhile_is_said(ledger: Path) -> None:
    def edit() -> None:
        with open_for_editing(ledger) as editor:
            ledger.rename(ledger.with_name("moved.db"))
            editor.change("price", [change("a", None, "1")])

    with pytest.raises(LedgerError, match="removed or replaced"):
        edit()


def test_a_change_survives_power_loss_and_waits_for_its_turn(ledger: Path) -> None:
    with open_for_editing(ledger) as editor:
        assert editor.connection.execute("PRAGMA synchronous").fetchone() == (2,)
        assert editor.connection.execute("PRAGMA busy_timeout").fetchone() == (10_000,)


def test_editing_leaves_nothing_behind(ledger: Path) -> None:
    with open_for_editing(ledger) as editor:
        editor.change("price", [change("a", None, "1")])
    assert [path.name for path in ledger.parent.iterdir()] == ["usage.db"]


def test_rows_are_read_back_as_they_were_handed_in(tmp_path: Path) -> None:
    iterations = [
        IterationRow("b", 0, "message", None, 1, 1, 2, 5, 2, 3, 4),
        IterationRow("b", 1, "advisor_message", "claude-opus-5-5", None),
    ]
    one, other = record("a", tag="t", total_cost="1"), record("b", input_tokens=5, usage_raw='{"input_tokens": 5}')
    ledger = fill(tmp_path / "usage.db", one, Entry(other, iterations), record("c", usage_state="partial"))
    with open_for_reading(ledger) as reader:
        assert list(entries(reader, Filters(), FINAL)) == [[Entry(one), Entry(other, iterations)]]
        assert list(entries(reader, Filters(), UNPRICED)) == [[Entry(other, iterations)]]
        assert (reader.count(Filters(), FINAL), reader.count(Filters(), UNPRICED)) == (2, 1)


def test_pages_have_every_row_once_in_order(tmp_path: Path) -> None:
    """Many rows of one moment, over the ends of pages."""
    moments = [f"2026-11-01T08:00:00.{number // (PAGE + 7):03}Z" for number in range(3 * PAGE)]
    given = [record(f"{number:05}", occurred_at=moment) for number, moment in enumerate(moments)]
    ledger = fill(tmp_path / "usage.db", *reversed(given))
    with open_for_reading(ledger) as reader:
        pages = list(entries(reader, Filters(), FINAL))
    assert [entry.record for page in pages for entry in page] == given
    assert [len(page) for page in pages] == [PAGE] * 3


def test_corrected_rows_are_final(tmp_path: Path) -> None:
    corrected = record("a", usage_state="missing", metadata='{"_manually_updated": true}')
    other = record("b", usage_state="missing", metadata='{"_manually_updated": false}')
    ledger = fill(tmp_path / "usage.db", corrected, other)
    with closing(sqlite3.connect(ledger)) as connection:
        connection.execute("UPDATE usage_records SET metadata = 'no json' WHERE id = 'b'")
        connection.commit()
    with open_for_reading(ledger) as reader:
        assert [entry.record.id for page in entries(reader, Filters(), FINAL) for entry in page] == ["a"]


def test_rows_are_found_by_what_upstream_calls_them(tmp_path: Path) -> None:
    given = [record("a", request_id="r1", message_id="m"), record("b", request_id="r2", message_id="m"), record("c")]
    ledger = fill(tmp_path / "usage.db", *given)
    with open_for_reading(ledger) as reader:
        for column, values, ids in (
            ("id", ["c", "a", "x"], "ac"),
            ("request_id", ["r2"], "b"),
            ("message_id", ["m"], "ab"),
        ):
            assert "".join(each.record.id for each in entries_by(reader, column, values)) == ids
