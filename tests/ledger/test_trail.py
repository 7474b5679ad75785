"""The trail as it is read: what changed a row, and where the chain breaks."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from usage_ledger.ledger import revisions, trail
from usage_ledger.ledger.reading import Reader, open_for_reading
from usage_ledger.ledger.revisions import Revision
from usage_ledger.ledger.store import Store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A ledger whose trail has three entries, two of them of one row."""
    path = tmp_path / "usage.db"
    with closing(Store(path, "normal", "abc")) as store:
        for row_id, reason in (("a", "first"), ("b", "second"), ("a", "third")):
            revisions.append(store.connection, "backfill", [Revision(row_id, reason, {}, {"output_tokens": 42})])
    return path


def read[T](path: Path, question: Callable[[Reader], T]) -> T:
    with open_for_reading(path) as reader:
        return question(reader)


def change(path: Path, *statements: str) -> None:
    """Do what another program could, which knows of no trail."""
    with closing(sqlite3.connect(path)) as connection, connection:
        for statement in statements:
            connection.execute(statement)


def test_the_history_of_a_row_is_told_oldest_first(path: Path) -> None:
    assert read(path, lambda reader: trail.history(reader, "a", ("reason",))) == [("first",), ("third",)]
    assert read(path, trail.length) == 3


def test_what_revisions_left_is_told_row_by_row(path: Path) -> None:
    told = read(path, lambda reader: trail.afters(reader, ["b", "a"]))
    assert told == [("a", '{"output_tokens":42}')] * 2 + [("b", '{"output_tokens":42}')]


def test_rows_that_the_trail_knows_and_the_ledger_has_not_are_named(path: Path) -> None:
    assert read(path, trail.revised_but_gone) == ["a", "b"]


def test_a_whole_chain_has_no_break(path: Path) -> None:
    assert read(path, lambda reader: list(trail.broken(reader))) == []


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("UPDATE usage_revisions SET reason = 'another' WHERE position = 2", "entry 2 (backfill, row b, "),
        ("DELETE FROM usage_revisions WHERE position = 2", "entry 2 is missing"),
    ],
)
def test_the_first_entry_that_does_not_follow_is_named(path: Path, statement: str, said: str) -> None:
    change(path, *(f"DROP TRIGGER {name}" for name in revisions.TRIGGERS), statement)
    *triggers, found = read(path, lambda reader: list(trail.broken(reader)))
    assert len(triggers) == len(revisions.TRIGGERS)
    assert found.startswith(f"trail: {said}")


def test_a_trail_that_was_taken_away_is_a_break_and_otherwise_empty(path: Path) -> None:
    change(path, "DROP TABLE usage_revisions")
    assert read(path, lambda reader: list(trail.broken(reader))) == ["trail: its table usage_revisions is gone"]
    assert read(path, trail.length) == 0
    assert read(path, lambda reader: trail.history(reader, "a")) == []
    assert read(path, lambda reader: trail.afters(reader, ["a"])) == []
    assert read(path, trail.revised_but_gone) == []
