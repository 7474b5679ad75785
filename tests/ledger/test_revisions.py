"""The trail: it only grows, and each entry vouches for all before it."""

import hashlib
import json
import os
import pwd
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from usage_ledger.ledger import revisions
from usage_ledger.ledger.revisions import Revision
from usage_ledger.ledger.store import Store

ONE = Revision("a", "priced", {"total_cost": None}, {"total_cost": "0.5"})
OTHER = Revision("b", "bücher 📊", {"total_cost": "0.5", "input_tokens": 1}, {"total_cost": "1", "input_tokens": 2})


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    with closing(Store(tmp_path / "usage.db", "normal", "abc")) as store:
        yield store.connection


def entries(connection: sqlite3.Connection) -> list[tuple[object, ...]]:
    names = ", ".join(revisions.COLUMNS)
    return connection.execute(f"SELECT {names} FROM usage_revisions ORDER BY position").fetchall()


def test_an_entry_says_who_when_why_and_what(connection: sqlite3.Connection) -> None:
    revisions.append(connection, "price", [ONE])
    [(position, at, by, source, reason, record_id, before, after, _)] = entries(connection)
    assert (position, source, reason, record_id) == (1, "price", "priced", "a")
    assert (before, after) == ('{"total_cost":null}', '{"total_cost":"0.5"}')
    assert by == f"{pwd.getpwuid(os.getuid()).pw_name}@{socket.gethostname()}"
    assert timedelta(0) <= datetime.now(UTC) - datetime.fromisoformat(str(at)) < timedelta(minutes=1)


def test_who_it_was_is_not_what_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "boss")
    monkeypatch.setenv("USER", "boss")
    assert not revisions.who().startswith("boss@")


def test_a_user_without_a_name_is_told_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 123_456)
    assert revisions.who().startswith("123456@")


def test_each_entry_is_chained_to_the_one_before(connection: sqlite3.Connection) -> None:
    """Worked out here as the module's docstring and the README tell an auditor to do it, without its code."""
    revisions.append(connection, "price", [ONE, OTHER])
    revisions.append(connection, "backfill", [ONE])
    link = ""
    for *entry, found in entries(connection):
        told = json.dumps([link, *entry], ensure_ascii=False, separators=(",", ":"))
        link = hashlib.sha256(told.encode()).hexdigest()
        assert found == link
    assert [entry[0] for entry in entries(connection)] == [1, 2, 3]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE usage_revisions SET reason = 'another'",
        "UPDATE usage_revisions SET position = 9 WHERE position = 2",
        "DELETE FROM usage_revisions WHERE position = 2",
        "DELETE FROM usage_revisions",
        "INSERT OR REPLACE INTO usage_revisions SELECT * FROM usage_revisions WHERE position = 2",
        "REPLACE INTO usage_revisions SELECT 1, '', '', '', '', '', '', '', ''",
        "INSERT INTO usage_revisions SELECT 4, '', '', '', '', '', '', '', ''",
        "INSERT INTO usage_revisions SELECT 0, '', '', '', '', '', '', '', ''",
        "INSERT INTO usage_revisions SELECT -1, '', '', '', '', '', '', '', ''",
        "INSERT OR IGNORE INTO usage_revisions SELECT NULL, '', '', '', '', '', '', '', ''",
    ],
)
def test_nothing_in_it_can_be_changed_removed_or_replaced(connection: sqlite3.Connection, statement: str) -> None:
    revisions.append(connection, "price", [ONE, OTHER])
    before = entries(connection)
    with pytest.raises(sqlite3.IntegrityError, match="usage_revisions"):
        connection.execute(statement)
    assert entries(connection) == before


def test_adding_nothing_adds_nothing(connection: sqlite3.Connection) -> None:
    revisions.append(connection, "price", [])
    assert entries(connection) == []
