"""Backup: whole, consistent while others write, private, and never over a file that is there."""

import sqlite3
import stat
import threading
from contextlib import closing
from pathlib import Path

import pytest
from usage_ledger.ledger import backup
from usage_ledger.ledger.backup import back_up
from usage_ledger.ledger.marks import LedgerError
from usage_ledger.ledger.reading import open_for_reading
from usage_ledger.ledger.record import Entry
from usage_ledger.ledger.store import Store

from tests.ledger.test_closing import close, record, write


def quiet(_left: int, _count: int) -> None:
    pass


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    path = tmp_path / "usage.db"
    write(path, *(record(f"{number:03d}") for number in range(200)))
    return path


def ids(path: Path) -> list[str]:
    with open_for_reading(path) as reader:
        return [row[0] for row in reader.connection.execute("SELECT id FROM usage_records ORDER BY id")]


def test_a_copy_has_all_of_it_in_one_private_file(ledger: Path, tmp_path: Path) -> None:
    close(ledger, "2026-11-01T00:00:00.000Z")
    target = tmp_path / "copy.db"
    with closing(Store(ledger, "normal", "abd")) as store:
        store.write([Entry(record("in the wal"))], [])
        assert back_up(ledger, target, quiet) == (201, 1)
    assert ids(target) == ids(ledger)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(("copy", ".copy"))) == ["copy.db"]


def test_a_copy_is_of_one_moment_while_a_proxy_writes(
    ledger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that never rests: each batch has two rows, and no copy has one of them alone. And it comes to an end."""
    monkeypatch.setattr(backup, "PAGES", 1)
    is_over = threading.Event()
    written: list[int] = []

    def write_on() -> None:
        with closing(Store(ledger, "normal", "abd")) as store:
            while not is_over.is_set():
                number = len(written)
                store.write([Entry(record(f"{side}{number:06d}")) for side in "xy"], [])
                written.append(number)

    writer = threading.Thread(target=write_on)
    writer.start()
    steps: list[int] = []
    try:
        for turn in range(3):
            back_up(ledger, tmp_path / f"copy{turn}.db", lambda left, _count: steps.append(left))
    finally:
        is_over.set()
        writer.join()
    assert len(steps) > 30
    for turn in range(3):
        found = ids(tmp_path / f"copy{turn}.db")
        assert len(found) >= 200
        assert len([id_ for id_ in found if id_.startswith("x")]) == len([id_ for id_ in found if id_.startswith("y")])


def test_a_file_that_is_there_stays_as_it_is(ledger: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy.db"
    target.write_text("precious")
    with pytest.raises(FileExistsError, match="is there already; name another file"):
        back_up(ledger, target, quiet)
    link = tmp_path / "link.db"
    link.symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError):
        back_up(ledger, link, quiet)
    assert target.read_text() == "precious"


def test_a_file_that_appears_meanwhile_stays_as_it_is(ledger: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy.db"
    with pytest.raises(FileExistsError, match="was made meanwhile"):
        back_up(ledger, target, lambda _left, _count: target.write_text("precious") and None)
    assert target.read_text() == "precious"
    assert [path.name for path in tmp_path.glob(".copy*")] == []


def test_where_it_fails_nothing_is_left(ledger: Path, tmp_path: Path) -> None:
    def fail(_left: int, _count: int) -> None:
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        back_up(ledger, tmp_path / "copy.db", fail)
    with pytest.raises(OSError, match="no/such"):
        back_up(ledger, tmp_path / "no/such" / "copy.db", quiet)
    assert [path.name for path in tmp_path.iterdir() if "copy" in path.name or "such" in path.name] == []


def test_what_a_killed_one_left_is_taken_away(ledger: Path, tmp_path: Path) -> None:
    left = tmp_path / ".copy.db.4194305.unfinished"  # beyond the highest process id there can be
    left.write_text("half")
    back_up(ledger, tmp_path / "copy.db", quiet)
    assert not left.exists()


def test_a_damaged_ledger_gives_no_copy(ledger: Path, tmp_path: Path) -> None:
    with closing(sqlite3.connect(ledger)) as connection:
        connection.execute("PRAGMA writable_schema = 1")
        connection.execute("DELETE FROM sqlite_master WHERE name = 'usage_records_occurred_at'")
        connection.commit()
    with pytest.raises(LedgerError, match="is damaged"):
        back_up(ledger, tmp_path / "copy.db", quiet)
    assert not (tmp_path / "copy.db").exists()
