"""A ledger in trouble: nothing is lost, nobody waits, it is told once, and it ends by itself."""

import asyncio
import logging
import os
import sqlite3
import threading
import time
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from usage_ledger.ledger import presence
from usage_ledger.ledger.presence import is_alive
from usage_ledger.ledger.store import Store
from usage_ledger.ledger.writer import RETRY_SECONDS, Writer

from tests.ledger.writers import LONG, entry, flushed, ids, lines, locked, outcome_of, started, writing


def test_while_the_ledger_is_locked_rows_are_kept_and_trouble_is_told_once(
    ledger: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def run(writer: Writer) -> None:
        assert await outcome_of(writer.submit(entry("before")))
        with locked(ledger):
            assert await outcome_of(writer.submit(entry("0"))) is False
            assert writer.trouble
            for number in range(1, 10):
                assert await outcome_of(writer.submit(entry(str(number)))) is False
            await flushed(writer)
            assert ids(ledger) == ["before"]
        while writer.trouble:
            await flushed(writer)
        assert ids(ledger) == ["before", *map(str, range(10))]
        assert await outcome_of(writer.submit(entry("after"))) is True

    with writing(ledger) as writer:
        asyncio.run(run(writer))
    assert len(lines(caplog, "cannot write")) == 1
    assert len(lines(caplog, "can be written again")) == 1
    assert len([line for line in caplog.records if line.levelno >= logging.ERROR]) == 1
    assert ids(ledger)[-1] == "after"


def test_trouble_ends_by_itself_when_nothing_new_comes(ledger: Path, caplog: pytest.LogCaptureFixture) -> None:
    over = threading.Event()

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "can be written again" in record.getMessage():
                over.set()

    async def run(writer: Writer) -> None:
        await flushed(writer)
        with locked(ledger):
            assert await outcome_of(writer.submit(entry("a"))) is False

    ear = Ear()
    logging.getLogger("usage_ledger").addHandler(ear)
    try:
        with writing(ledger) as writer:
            asyncio.run(run(writer))
            assert over.wait(LONG)
            assert ids(ledger) == ["a"]
    finally:
        logging.getLogger("usage_ledger").removeHandler(ear)


def test_what_waits_when_the_writer_is_closed_is_tried_once_more(ledger: Path) -> None:
    async def run(writer: Writer) -> None:
        await flushed(writer)
        with locked(ledger):
            assert await outcome_of(writer.submit(entry("a"))) is False
        writer.close()

    asyncio.run(run(started(ledger)))
    assert ids(ledger) == ["a"]


def test_rows_that_could_not_be_stored_before_the_end_are_told(ledger: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def run(writer: Writer) -> None:
        await flushed(writer)
        with locked(ledger):
            assert await outcome_of(writer.submit(entry("a"))) is False
            writer.close()

    asyncio.run(run(started(ledger)))
    assert len(lines(caplog, f"1 row(s) wait in {ledger}-spill-")) == 1


def test_rows_of_a_replay_do_not_wait_in_memory_while_the_ledger_is_locked(
    ledger: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("usage_ledger.ledger.writer.MEMORY_SECONDS", 1_000.0)

    async def run(writer: Writer) -> None:
        await flushed(writer)
        with locked(ledger):
            for number in range(20):
                entries = [entry(f"{number:02}-{each:03}") for each in range(500)]
                assert await outcome_of(writer.submit_all(entries)) is False
                assert not writer._backlog
                assert writer.spill_file.read_bytes().count(b'"entry"') == (number + 1) * 500
            writer.submit(entry("live"))
            writer.close()

    asyncio.run(run(started(ledger)))
    assert len(lines(caplog, f"10001 row(s) wait in {ledger}-spill-")) == 1
    with writing(ledger) as writer:
        asyncio.run(flushed(writer))
    assert len(ids(ledger)) == 10_001


def test_rows_of_a_replay_that_can_go_nowhere_are_not_done_before_they_can(ledger: Path) -> None:
    """Whoever waits for them stops reading the capture meanwhile."""

    async def run(writer: Writer) -> None:
        await flushed(writer)
        with locked(ledger):
            writer.spill_file.mkdir()
            stuck = writer.submit_all([entry("a"), entry("b")])
            await flushed(writer)
            await flushed(writer)
            assert not stuck.done()
            writer.spill_file.rmdir()
            assert await outcome_of(stuck) is False
        assert await outcome_of(writer.submit_all([entry("c")])) in (True, False)
        while writer.trouble:
            await asyncio.sleep(0.01)
        assert ids(ledger) == ["a", "b", "c"]
        assert await outcome_of(writer.submit_all([entry("d")])) is True

    with writing(ledger) as writer:
        asyncio.run(run(writer))


def test_the_line_at_the_end_of_trouble_counts_what_waited(ledger: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def run(writer: Writer) -> None:
        await flushed(writer)
        with locked(ledger):
            for number in range(3):
                await outcome_of(writer.submit(entry(str(number))))
            await flushed(writer)
        while writer.trouble:
            await flushed(writer)

    with writing(ledger) as writer:
        asyncio.run(run(writer))
    assert len(lines(caplog, "all that waited is stored (3 writes)")) == 1


@pytest.mark.parametrize("what", ["the file", "the folder"])
def test_a_ledger_that_is_deleted_is_made_again(ledger: Path, what: str) -> None:
    async def run(writer: Writer) -> None:
        assert await outcome_of(writer.submit(entry("lost")))
        ledger.unlink()
        if what == "the folder":
            for path in sorted(ledger.parent.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            ledger.parent.rmdir()
        assert await outcome_of(writer.submit(entry("later"))) is True
        assert ids(ledger) == ["later"]
        assert is_alive(ledger, writer.name.split(" ")[1])

    with writing(ledger) as writer:
        asyncio.run(run(writer))


def test_a_ledger_that_is_moved_away_keeps_its_rows_and_a_new_one_begins(ledger: Path) -> None:
    async def run(writer: Writer) -> None:
        assert await outcome_of(writer.submit(entry("old")))
        ledger.rename(ledger.with_name("moved.db"))
        assert await outcome_of(writer.submit(entry("new"))) is True

    with writing(ledger) as writer:
        asyncio.run(run(writer))
    assert ids(ledger) == ["new"]


def test_a_folder_that_cannot_be_made_is_trouble_until_it_can(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Permissions would not stop an administrator, so what is in the way is a file where the folder should be."""
    in_the_way = tmp_path / "books"
    in_the_way.write_text("a file")

    async def run(writer: Writer) -> None:
        assert await outcome_of(writer.submit(entry("a"))) is False
        assert await outcome_of(writer.submit(entry("b"))) is False
        assert in_the_way.read_text() == "a file"
        in_the_way.unlink()
        while writer.trouble:
            await flushed(writer)

    with writing(in_the_way / "usage.db") as writer:
        asyncio.run(run(writer))
    assert ids(in_the_way / "usage.db") == ["a", "b"]
    assert len(lines(caplog, "cannot write")) == len(lines(caplog, "can be written again")) == 1


def test_a_database_that_is_not_ours_is_trouble_and_stays_as_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "usage.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE notes (body TEXT)")
    before = path.read_bytes()

    async def run(writer: Writer) -> None:
        assert await outcome_of(writer.submit(entry("a"))) is False

    with writing(path) as writer:
        asyncio.run(run(writer))
    assert path.read_bytes() == before
    assert len(lines(caplog, "not a usage ledger")) == 1


def test_in_trouble_nobody_waits_for_the_ledger(ledger: Path) -> None:
    """The outcome is known when the row is handed in, also while the writer tries again."""

    async def run(writer: Writer) -> None:
        await flushed(writer)
        with locked(ledger):
            assert await outcome_of(writer.submit(entry("first"))) is False
            for number in range(50):
                outcome = writer.submit(entry(str(number)))
                assert outcome.done()
                assert outcome.result() is False

    with writing(ledger) as writer:
        asyncio.run(run(writer))
    assert len(ids(ledger)) == 51


def test_in_trouble_the_ledger_is_not_opened_for_every_row(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger.parent.mkdir()
    ledger.write_bytes(b"no database " * 1000)
    opened: list[float] = []
    real = Store.__init__

    def counts(self: Store, *args: Any) -> None:
        opened.append(time.monotonic())
        real(self, *args)

    monkeypatch.setattr(Store, "__init__", counts)

    async def run(writer: Writer) -> None:
        for number in range(300):
            await outcome_of(writer.submit(entry(str(number))))
            await asyncio.sleep(0.001)

    with writing(ledger) as writer:
        asyncio.run(run(writer))
        during = opened[:]
    assert all(later - earlier >= RETRY_SECONDS for earlier, later in pairwise(during))


def test_a_folder_taken_away_from_its_user_and_given_back_is_trouble_that_ends(
    ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its mark cannot be made meanwhile; no descriptor is closed twice, or left open at each try."""
    refused = [True]
    real = presence.open_private_file

    def open_or_refuse(path: Path, flags: int) -> int:
        if refused[0]:
            raise PermissionError(13, "Permission denied")
        return real(path, flags)

    async def run(writer: Writer) -> None:
        assert await outcome_of(writer.submit(entry("before")))
        for path in sorted(ledger.parent.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        monkeypatch.setattr(presence, "open_private_file", open_or_refuse)
        assert await outcome_of(writer.submit(entry("0"))) is False
        ours = [os.open(os.devnull, os.O_RDONLY) for _ in range(8)]
        before = len(os.listdir("/proc/self/fd"))
        await asyncio.sleep(4 * RETRY_SECONDS)
        assert len(os.listdir("/proc/self/fd")) <= before
        for descriptor in ours:
            os.close(descriptor)  # would fail, had somebody closed it
        refused[0] = False
        while writer.trouble:
            await flushed(writer)
            await asyncio.sleep(0.01)

    with writing(ledger) as writer:
        asyncio.run(run(writer))
    assert ids(ledger) == ["0"]


def test_whatever_fails_the_writer_lives_on(
    ledger: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(_self: Writer) -> None:
        raise RuntimeError("a bug")

    async def run(writer: Writer) -> None:
        await flushed(writer)
        with monkeypatch.context() as patched:
            patched.setattr(Writer, "_ready_store", fails)
            patched.setattr(Writer, "_close_store", fails)
            assert await outcome_of(writer.submit(entry("a"))) is False
            assert writer.trouble
        while writer.trouble:
            await flushed(writer)
            await asyncio.sleep(0.01)

    with writing(ledger) as writer:
        asyncio.run(run(writer))
    assert ids(ledger) == ["a"]


def test_a_withdrawal_that_waits_alone_at_the_end_is_done_at_the_next_start(ledger: Path) -> None:
    async def run(writer: Writer) -> None:
        assert await outcome_of(writer.submit(entry("answered by the proxy", writer=writer.name)))
        with locked(ledger):
            assert await outcome_of(writer.withdraw("answered by the proxy")) is False
            await asyncio.to_thread(writer.close)

    asyncio.run(run(started(ledger)))
    started(ledger).close()
    assert ids(ledger) == []
