"""A ledger's files are removed, moved or replaced while proxies have them open: no row is lost, no file is mixed up."""

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from usage_ledger.ledger import presence, spill
from usage_ledger.ledger.record import Entry, Record
from usage_ledger.ledger.store import Store
from usage_ledger.ledger.writer import Writer


def entry(id_: str) -> Entry:
    return Entry(Record(id=id_, occurred_at="2026-11-01T08:00:00.000Z", host="h", path="/v1/messages"))


def ids(path: Path) -> set[str]:
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return {row[0] for row in connection.execute("SELECT id FROM usage_records")}


def remove_the_file(ledger: Path) -> None:
    ledger.unlink()


def remove_all(ledger: Path) -> None:
    for path in ledger.parent.glob("usage.db*"):
        if path.is_file():
            path.unlink()


def move_it_away(ledger: Path) -> None:
    ledger.rename(ledger.with_name("moved.db"))


def put_a_backup_in_its_place(ledger: Path) -> None:
    backup = ledger.with_name("backup.db")
    with closing(sqlite3.connect(ledger)) as now, closing(sqlite3.connect(backup)) as then:
        now.backup(then)
        then.execute("DELETE FROM usage_records WHERE id = 'before'")
        then.commit()
    backup.replace(ledger)


def remove_its_sidecars(ledger: Path) -> None:
    for ending in ("-wal", "-shm"):
        ledger.with_name(ledger.name + ending).unlink()


CHANGES: list[tuple[Callable[[Path], None], set[str]]] = [
    (remove_the_file, set()),
    (remove_all, set()),
    (move_it_away, set()),
    (put_a_backup_in_its_place, {"busy before", "idle before"}),
    (remove_its_sidecars, {"before", "busy before", "idle before"}),
]


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "usage.db"


@pytest.fixture
def writers(ledger: Path) -> Iterator[list[Writer]]:
    both = [Writer(ledger, "full"), Writer(ledger, "full")]
    for writer in both:
        writer.start()
    yield both
    for writer in both:
        writer.close()


async def write(writer: Writer, id_: str) -> None:
    assert await asyncio.shield(writer.submit(entry(id_)))


@pytest.mark.parametrize(("change", "kept"), CHANGES, ids=lambda value: getattr(value, "__name__", ""))
def test_of_two_proxies_neither_loses_a_row_or_spoils_the_others(
    ledger: Path, writers: list[Writer], change: Callable[[Path], None], kept: set[str]
) -> None:
    """One notices at once; the other is idle meanwhile and still holds the old files when it writes again."""
    busy, idle = writers

    async def run() -> None:
        await write(busy, "before")
        await write(busy, "busy before")
        await write(idle, "idle before")
        change(ledger)
        await write(busy, "busy after")
        await write(idle, "idle after")
        await write(busy, "busy later")

    asyncio.run(run())
    after = kept | {"busy after", "idle after", "busy later"}
    assert ids(ledger) == after
    for writer in writers:
        writer.close()
    assert ids(ledger) == after


def test_a_ledger_that_is_moved_away_takes_its_rows_along(ledger: Path, writers: list[Writer]) -> None:
    async def run() -> None:
        await write(writers[0], "before")
        move_it_away(ledger)
        await write(writers[0], "after")

    asyncio.run(run())
    alone = ledger.with_name("alone") / "moved.db"
    alone.parent.mkdir()
    ledger.with_name("moved.db").rename(alone)
    assert ids(alone) == {"before"}


def test_an_idle_proxy_that_ends_takes_no_file_of_the_new_ledger_away(ledger: Path, writers: list[Writer]) -> None:
    busy, idle = writers

    async def run() -> None:
        await write(idle, "before")
        remove_all(ledger)
        await write(busy, "after")
        idle.close()
        await write(busy, "later")

    asyncio.run(run())
    assert ledger.with_name("usage.db-wal").exists()
    assert ids(ledger) == {"after", "later"}


def test_a_ledger_removed_while_a_batch_is_written_gets_the_batch_again(
    ledger: Path, writers: list[Writer], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Store.write
    removed = []

    def write_and_lose(self: Store, entries: list[Entry], withdrawn: list[str]) -> None:
        real(self, entries, withdrawn)
        if not removed:
            removed.append(True)
            remove_all(ledger)

    monkeypatch.setattr(Store, "write", write_and_lose)
    asyncio.run(write(writers[0], "once"))
    assert removed
    assert ids(ledger) == {"once"}


def test_a_ledger_removed_while_spilled_rows_are_stored_gets_them_again(
    ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The spill file goes only once its rows are in the file that stays."""
    real = Store.write
    removed = []

    def write_and_lose(self: Store, entries: list[Entry], withdrawn: list[str]) -> None:
        real(self, entries, withdrawn)
        if not removed:
            removed.append(True)
            remove_all(ledger)

    spilled = spill.spill_path(ledger, "0a1b2c3d4e5f")
    spill.append(spilled, [entry("spilled")], [])
    aside = spilled.rename(ledger.with_name("aside"))  # `remove_all` takes what begins like the ledger
    monkeypatch.setattr(spill, "left_behind", lambda *_: [aside] if aside.exists() else [])
    monkeypatch.setattr(Store, "write", write_and_lose)
    writer = Writer(ledger, "full")
    writer.start()

    async def run() -> None:
        while not await asyncio.shield(writer.submit(entry("later"))):
            await asyncio.sleep(0.01)

    asyncio.run(run())
    writer.close()
    assert removed
    assert not aside.exists()
    assert ids(ledger) == {"spilled", "later"}


def test_files_that_change_at_every_look_are_trouble_and_keep_the_rows(
    ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a network file system may show them; the writer must not try for ever."""
    monkeypatch.setattr(Store, "is_current", lambda _self: False)
    writer = Writer(ledger, "full")
    writer.start()

    async def run() -> None:
        assert await asyncio.shield(writer.submit(entry("kept"))) is False
        assert "network file system" in str(writer.trouble)

    asyncio.run(run())
    monkeypatch.undo()
    writer.close()
    assert ids(ledger) == {"kept"}


def test_a_writer_that_is_stuck_while_it_opens_the_ledger_does_not_stall_the_others(
    ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "ALONE_SECONDS", 0.05)
    with presence.alone(ledger), pytest.raises(OSError, match="another proxy is opening it"):
        Store(ledger, "full", "aaaaaaaaaaaa")
    Store(ledger, "full", "aaaaaaaaaaaa").close()


def test_a_changed_durability_is_taken_over_with_the_next_batch(ledger: Path, writers: list[Writer]) -> None:
    async def run() -> None:
        await write(writers[0], "a")
        writers[0].durability = "normal"
        await write(writers[0], "b")

    asyncio.run(run())
    assert writers[0]._store is not None
    assert writers[0]._store.durability == "normal"
