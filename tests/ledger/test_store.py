"""The store: a batch is whole or not at all, and the file is the one its path leads to."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from usage_ledger.ledger.marks import MAJOR
from usage_ledger.ledger.store import Store

from tests.ledger.books import Books, iteration, record

# Whole or not at all.


@pytest.mark.parametrize(
    "spoilt",
    [
        {"input_tokens": "many"},
        {"model": None},
        {"total_tokens": 2**70},
        {"tag": "\ud800"},
    ],
    ids=["text for a count", "null for a text", "too large", "not Unicode"],
)
@pytest.mark.parametrize(
    "more", [{}, {"only_new": True}, {"iterations": [iteration(0)]}, {"withdrawn": ("old",)}], ids=str
)
def test_a_failing_batch_writes_nothing(books: Books, more: dict[str, Any], spoilt: dict[str, Any]) -> None:
    books.write(record(id="old"))
    before = books.rows()
    with pytest.raises(Exception):  # noqa: B017, PT011 - which one is the writer's business
        books.write(record(), record(id="flow-2", **spoilt), **more)
    assert (books.rows(), books.iterations()) == (before, [])


def test_after_a_failing_batch_the_next_one_is_written(books: Books) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        books.write(record(input_tokens="many"), withdrawn=("nothing",))
    books.write(record(), withdrawn=("nothing",))
    assert books.row()["id"] == "flow-1"


def test_a_row_with_missing_iteration_counts_writes_neither_half(books: Books) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        books.write(record(), iterations=[iteration(0), iteration(1, "many")])
    assert (books.rows(), books.iterations()) == ([], [])


# The file behind the path.


def test_a_store_knows_when_its_path_leads_elsewhere(books: Books) -> None:
    assert books.store.is_current()
    books.path.unlink()
    assert not books.store.is_current()
    books.path.touch()
    assert not books.store.is_current()


def test_probing_changes_nothing(books: Books) -> None:
    books.write(record())
    before = books.rows()
    books.store.probe()
    assert books.rows() == before
    assert books.query("PRAGMA user_version") == [{"user_version": MAJOR}]


def test_probing_leaves_the_version_of_a_ledger_that_a_newer_program_took_over(books: Books) -> None:
    books.change(f"PRAGMA user_version = {MAJOR + 1}")
    books.store.probe()
    assert books.query("PRAGMA user_version") == [{"user_version": MAJOR + 1}]


@pytest.mark.parametrize(("durability", "synchronous"), [("full", 2), ("normal", 1)])
def test_durability_is_sqlites_synchronous(tmp_path: Path, durability: str, synchronous: int) -> None:
    with closing(Store(tmp_path / "other.db", durability, "aaaaaaaaaaaa")) as store:
        assert store.connection.execute("PRAGMA synchronous").fetchone() == (synchronous,)
        assert store.connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


@pytest.mark.parametrize("metadata", ["{bad", "", "[", "null"])
@pytest.mark.parametrize("state", ["pending", "partial", "complete"])
def test_metadata_that_another_program_broke_keeps_nothing_from_being_written(
    books: Books, metadata: str, state: str
) -> None:
    """Such a row once put the whole ledger into trouble, for every proxy that came after."""
    books.write(record(usage_state=state))
    books.change("UPDATE usage_records SET metadata = ?", metadata)
    books.write(record(usage_state="complete", total_tokens=5), record(id="flow-2"))
    assert [row["id"] for row in books.rows()] == ["flow-1", "flow-2"]
    assert books.rows()[0]["total_tokens"] == (0 if state == "complete" else 5)
