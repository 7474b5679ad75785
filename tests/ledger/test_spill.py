"""Rows that a ledger in trouble could not take are kept beside it, and come back."""

import asyncio
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest
from usage_ledger.ledger import spill, writer
from usage_ledger.ledger.record import Entry, IterationRow, Record
from usage_ledger.ledger.writer import Writer


def entry(number: int, state: str = "complete") -> Entry:
    record = Record(
        id=f"row-{number:04}",
        occurred_at="2026-11-24T08:00:00.000Z",
        host="api.anthropic.com",
        path="/v1/messages",
        usage_state=state,
    )
    told = [IterationRow(record.id, 0, "message", None, 1, input_tokens=number)] if state == "complete" else []
    return Entry(record, told)


def states(ledger: Path) -> dict[str, str]:
    with closing(sqlite3.connect(ledger)) as connection:
        return dict(connection.execute("SELECT id, usage_state FROM usage_records"))


async def hand_in(to: Writer, *entries: Entry) -> list[bool]:
    return list(await asyncio.gather(*(asyncio.shield(to.submit(each)) for each in entries)))


def test_what_is_spilled_comes_back_as_it_was(tmp_path: Path) -> None:
    path = spill.spill_path(tmp_path / "usage.db", "0a1b2c3d4e5f")
    entries = [entry(number) for number in range(5)]
    spill.append(path, entries[:2], ["gone"])
    spill.append(path, entries[2:], [])
    read = list(spill.read(path, 2, []))
    assert [each for batch, _ in read for each in batch] == entries
    assert [each for _, batch in read for each in batch] == ["gone"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_line_that_a_crash_cut_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "spill"
    spill.append(path, [entry(1), entry(2)], [])
    path.write_bytes(path.read_bytes()[:-20])
    assert [each.record.id for batch, _ in spill.read(path, 9, []) for each in batch] == ["row-0001"]


def test_what_is_spilled_after_a_line_that_was_cut_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "spill"
    spill.append(path, [entry(1), entry(2)], [])
    path.write_bytes(path.read_bytes()[:-20])
    spill.append(path, [entry(3)], [])
    assert [each.record.id for batch, _ in spill.read(path, 9, []) for each in batch] == ["row-0001", "row-0003"]


def test_a_spilled_row_that_cannot_be_stored_is_named_and_holds_no_other_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = entry(2, "pending")
    bad.record.input_tokens = 2**64 - 1  # more than SQLite can hold as a whole number
    ledger = tmp_path / "usage.db"
    spill.append(spill.spill_path(ledger, "0a1b2c3d4e5f"), [entry(1), bad, entry(3)], [])
    later = Writer(ledger, "full")
    later.start()
    later.close()
    assert states(ledger) == {"row-0001": "complete", "row-0003": "complete"}
    assert not list(tmp_path.glob("*spill*"))
    assert sum("row-0002 cannot be stored" in line.getMessage() for line in caplog.records) == 1


def test_rows_that_wait_for_long_are_spilled_however_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits in memory alone is lost with the process, also when that is killed."""
    monkeypatch.setattr(writer, "MEMORY_SECONDS", 0.05)
    monkeypatch.setattr(writer, "RETRY_SECONDS", 0.01)
    ledger = tmp_path / "usage.db"

    async def in_trouble() -> None:
        busy = Writer(ledger, "full")
        busy.start()
        await busy.flush()
        with closing(sqlite3.connect(ledger, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            assert await hand_in(busy, entry(1)) == [False]
            while not list(tmp_path.glob("*spill*")):
                await asyncio.sleep(0.01)
            other.execute("ROLLBACK")
        await asyncio.to_thread(busy.close)

    asyncio.run(in_trouble())
    assert states(ledger) == {"row-0001": "complete"}
    assert not list(tmp_path.glob("*spill*"))


def test_rows_that_wait_at_the_end_of_the_process_are_stored_at_the_next_start(tmp_path: Path) -> None:
    ledger = tmp_path / "usage.db"

    async def in_trouble() -> None:
        first = Writer(ledger, "full")
        first.start()
        assert await hand_in(first, entry(0, "pending")) == [True]
        with closing(sqlite3.connect(ledger, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            assert await hand_in(first, entry(0), entry(1)) == [False, False]
            await asyncio.to_thread(first.close)
            other.execute("ROLLBACK")

    asyncio.run(in_trouble())
    assert states(ledger) == {"row-0000": "pending"}
    second = Writer(ledger, "full")
    second.start()
    second.close()
    assert states(ledger) == {"row-0000": "complete", "row-0001": "complete"}
    assert not list(tmp_path.glob("*spill*"))


def test_rows_beyond_what_memory_holds_are_spilled_and_stored_once_the_trouble_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "MEMORY_ROWS", 10)
    monkeypatch.setattr(writer, "RETRY_SECONDS", 0.01)
    ledger = tmp_path / "usage.db"

    async def in_trouble() -> None:
        busy = Writer(ledger, "full")
        busy.start()
        await busy.flush()
        with closing(sqlite3.connect(ledger, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            for number in range(0, 60, 20):
                await hand_in(busy, *(entry(each, "pending") for each in range(number, number + 20)))
                await hand_in(busy, *(entry(each) for each in range(number, number + 20)))
            while not list(tmp_path.glob("*spill*")):
                await asyncio.sleep(0.01)
            other.execute("ROLLBACK")
        while busy.trouble:
            await asyncio.sleep(0.01)
        await busy.flush()
        await asyncio.to_thread(busy.close)

    asyncio.run(in_trouble())
    assert states(ledger) == {f"row-{number:04}": "complete" for number in range(60)}
    assert not list(tmp_path.glob("*spill*"))


def test_the_spill_of_a_living_writer_is_left_to_it(tmp_path: Path) -> None:
    ledger = tmp_path / "usage.db"
    living = Writer(ledger, "full")
    living.start()
    asyncio.run(_flushed(living))
    path = spill.spill_path(ledger, living.name.rpartition(" ")[2])
    spill.append(path, [entry(1)], [])
    other = Writer(ledger, "full")
    other.start()
    other.close()
    assert path.exists()
    living.close()


async def _flushed(of: Writer) -> None:
    await of.flush()


def test_a_line_of_another_shape_is_kept_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As a newer version may write it; only what was cut is passed over."""
    ledger = tmp_path / "usage.db"
    path = spill.spill_path(ledger, "0a1b2c3d4e5f")
    spill.append(path, [entry(1), entry(2)], [])
    first, second = path.read_bytes().splitlines()
    path.write_bytes(first + b"\n" + second.replace(b'"row-0002"', b"17") + b"\n")
    later = Writer(ledger, "full")
    later.start()
    later.close()
    assert states(ledger) == {"row-0001": "complete"}
    (aside,) = tmp_path.glob("usage.db-unreadable-*")
    assert second[20:] in aside.read_bytes().replace(b"17", b'"row-0002"')
    assert sum("does not know" in line.getMessage() for line in caplog.records) == 1


def test_what_a_dead_proxy_spilled_comes_before_what_it_left_in_flight(tmp_path: Path) -> None:
    """Its final row knows why; the rule for rows in flight would only say that the proxy stopped."""
    ledger = tmp_path / "usage.db"
    first = Writer(ledger, "full")
    first.start()
    pending, final = entry(1, "pending"), entry(1, "missing")
    pending.record.writer = final.record.writer = "0.1.0 0a1b2c3d4e5f"
    final.record.review_reason = "client_disconnected"
    asyncio.run(hand_in(first, pending))
    first.close()
    spill.append(spill.spill_path(ledger, "0a1b2c3d4e5f"), [final], [])
    second = Writer(ledger, "full")
    second.start()
    second.close()
    with closing(sqlite3.connect(ledger)) as connection:
        assert connection.execute("SELECT review_reason FROM usage_records").fetchall() == [("client_disconnected",)]
