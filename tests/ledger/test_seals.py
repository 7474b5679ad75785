"""Seals: what was done to an archive, or to what its ledger says of it, is named; what is legal is not."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from usage_ledger.ledger import archive as archiving
from usage_ledger.ledger.closing import broken as broken_closings
from usage_ledger.ledger.editing import Change, open_for_editing
from usage_ledger.ledger.marks import LedgerError
from usage_ledger.ledger.reading import open_for_reading
from usage_ledger.ledger.seals import broken, differ

from tests.ledger.test_archive import archivable, ids, is_well, move
from tests.ledger.test_closing import NOVEMBER, close, sql


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return archivable(tmp_path / "usage.db")


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
