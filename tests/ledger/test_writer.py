"""The writer: True means on disk, False means kept, nothing is lost, and trouble is told once."""

import asyncio
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from usage_ledger.ledger import presence
from usage_ledger.ledger.presence import is_alive, writers_folder
from usage_ledger.ledger.record import Entry, IterationRow, Record
from usage_ledger.ledger.store import Store
from usage_ledger.ledger.writer import RETRY_SECONDS, Writer

LONG = 20  # seconds after which a test that waits for an event gives up


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "books" / "usage.db"


def started(path: Path, durability: str = "full") -> Writer:
    writer = Writer(path, durability)
    writer.start()
    return writer


@contextmanager
def writing(path: Path, durability: str = "full") -> Iterator[Writer]:
    writer = started(path, durability)
    try:
        yield writer
    finally:
        writer.close()


def entry(id_: str, **fields: Any) -> Entry:
    given = {"occurred_at": "2026-11-01T08:00:00.000Z", "host": "h", "path": "/v1/messages", **fields}
    return Entry(Record(id=id_, **given))


async def outcome_of(future: "asyncio.Future[bool]") -> bool:
    return await asyncio.wait_for(asyncio.shield(future), LONG)


async def flushed(writer: Writer) -> None:
    await asyncio.wait_for(writer.flush(), LONG)


def ids(path: Path) -> list[str]:
    """The rows on disk, as a connection of its own sees them, in the order in which they were added."""
    with closing(sqlite3.connect(path)) as connection:
        return [row[0] for row in connection.execute("SELECT id FROM usage_records ORDER BY rowid")]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another connection in the middle of writing."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield


def lines(caplog: pytest.LogCaptureFixture, words: str) -> list[str]:
    return [line.getMessage() for line in caplog.records if words in line.getMessage()]


# Group commit.


@pytest.mark.parametrize("durability", ["full", "normal"])
def test_a_true_outcome_is_on_disk(ledger: Path, durability: str) -> None:
    async def run(writer: Writer) -> None:
        for number in range(5):
            assert await outcome_of(writer.submit(entry(str(number)))) is True
            assert ids(ledger)[-1] == str(number)

    with writing(ledger, durability) as writer:
        asyncio.run(run(writer))


def test_many_rows_handed_in_together_share_one_outcome_and_one_commit(ledger: Path) -> None:
    """They share one future, and while it is open no other connection sees half of them."""

    async def run(writer: Writer) -> None:
        await flushed(writer)
        with locked(ledger):  # holds up the first commit, so that the others fill the next batch
            first = writer.submit(entry("first"))
            while writer._open is not None:
                await asyncio.sleep(0)
            rest = [writer.submit(entry(f"{number:04}")) for number in range(1000)]
        assert len({id(future) for future in rest}) == 1
        assert [await outcome_of(first), await outcome_of(rest[0])] == [True, True]
        assert ids(ledger) == ["first", *(f"{number:04}" for number in range(1000))]

    with writing(ledger) as writer:
        asyncio.run(run(writer))


def test_rows_from_several_flows_are_all_stored(ledger: Path) -> None:
    async def flow(writer: Writer, name: str) -> list[bool]:
        return [await outcome_of(writer.submit(entry(f"{name}-{number}"))) for number in range(20)]

    async def run(writer: Writer) -> None:
        outcomes = await asyncio.gather(*(flow(writer, f"flow{number}") for number in range(20)))
        assert all(all(one) for one in outcomes)

    with writing(ledger, "normal") as writer:
        asyncio.run(run(writer))
    assert len(set(ids(ledger))) == len(ids(ledger)) == 400


def test_a_row_and_its_settling_in_one_batch_are_one_row(ledger: Path) -> None:
    async def run(writer: Writer) -> None:
        writer.submit(entry("a"))
        assert await outcome_of(writer.submit(entry("a", usage_state="complete")))

    with writing(ledger) as writer:
        asyncio.run(run(writer))
    with closing(sqlite3.connect(ledger)) as connection:
        assert connection.execute("SELECT id, usage_state FROM usage_records").fetchall() == [("a", "complete")]


def test_a_withdrawn_row_is_gone_when_the_outcome_says_so(ledger: Path) -> None:
    async def run(writer: Writer) -> None:
        await outcome_of(writer.submit(entry("a")))
        writer.submit(entry("b"))
        assert await outcome_of(writer.withdraw("a")) is True
        assert ids(ledger) == ["b"]

    with writing(ledger) as writer:
        asyncio.run(run(writer))


def test_iterations_are_stored_with_their_row(ledger: Path) -> None:
    async def run(writer: Writer) -> None:
        told = entry("a", usage_state="complete")
        told.iterations = [IterationRow("a", 0, "message", None, 1, input_tokens=3)]
        assert await outcome_of(writer.submit(told))

    with writing(ledger) as writer:
        asyncio.run(run(writer))
    with closing(sqlite3.connect(ledger)) as connection:
        assert connection.execute("SELECT record_id, input_tokens FROM usage_iterations").fetchall() == [("a", 3)]


def test_rows_are_priced_on_the_writers_thread_before_they_are_written(ledger: Path) -> None:
    threads: set[str] = set()

    def price(one: Entry) -> None:
        threads.add(threading.current_thread().name)
        one.record.total_cost = "0.5"

    async def hand_in() -> None:
        writer.price = price
        assert await outcome_of(writer.submit(entry("a")))

    with writing(ledger) as writer:
        asyncio.run(hand_in())
    with closing(sqlite3.connect(ledger)) as connection:
        assert connection.execute("SELECT total_cost FROM usage_records").fetchall() == [("0.5",)]
    assert threads == {"usage-ledger-writer"}


def test_rows_that_wait_in_a_spill_file_have_their_price(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are priced once, when they are handed in, and not again by whoever takes them back."""

    def price(one: Entry) -> None:
        one.record.total_cost = f"{one.record.total_cost or ''}1"

    async def hand_in() -> None:
        writer.price = price
        with locked(ledger):
            assert not await outcome_of(writer.submit(entry("a")))
            writer.close()

    with closing(Store(ledger, "normal", "other")):
        writer = started(ledger)
        monkeypatch.setattr("usage_ledger.ledger.store.BUSY_MS", 10)
        asyncio.run(hand_in())
    with writing(ledger) as other:
        other.price = price
    with closing(sqlite3.connect(ledger)) as connection:
        assert connection.execute("SELECT total_cost FROM usage_records").fetchall() == [("1",)]


def test_flushing_nothing_returns(ledger: Path) -> None:
    with writing(ledger) as writer:
        asyncio.run(flushed(writer))


def test_two_writers_share_one_ledger(ledger: Path) -> None:
    async def run(one: Writer, two: Writer) -> None:
        for number in range(20):
            futures = [one.submit(entry(f"one-{number}")), two.submit(entry(f"two-{number}"))]
            assert [await outcome_of(future) for future in futures] == [True, True]

    with writing(ledger, "normal") as one, writing(ledger, "normal") as two:
        asyncio.run(run(one, two))
    assert len(ids(ledger)) == 40


# Its life.


def test_a_writer_is_marked_alive_until_it_is_closed(ledger: Path) -> None:
    with writing(ledger) as writer:
        asyncio.run(flushed(writer))
        writer_id = writer.name.split(" ")[1]
        assert is_alive(ledger, writer_id)
    assert not is_alive(ledger, writer_id)
    assert list(writers_folder(ledger).iterdir()) == []


def test_opening_settles_what_dead_writers_left_and_says_how_much(
    ledger: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def leave_pending(writer: Writer) -> None:
        writer.submit(entry("a", writer="0.1.0 dddddddddddd"))
        await outcome_of(writer.submit(entry("b", writer="0.1.0 dddddddddddd")))

    with writing(ledger) as writer:
        asyncio.run(leave_pending(writer))
    with writing(ledger) as writer:
        asyncio.run(flushed(writer))
    assert len(lines(caplog, "2 request(s) of a proxy that is gone")) == 1


def test_closing_writes_what_waits(ledger: Path) -> None:
    async def run(writer: Writer) -> None:
        for number in range(300):
            writer.submit(entry(f"{number:03}"))
        writer.close()

    asyncio.run(run(started(ledger)))
    assert ids(ledger) == [f"{number:03}" for number in range(300)]


def test_what_is_handed_in_before_the_start_is_written_at_the_start(ledger: Path) -> None:
    async def run(writer: Writer) -> None:
        future = writer.submit(entry("a"))
        assert not ledger.exists()
        writer.start()
        writer.start()
        assert await outcome_of(future) is True
        assert ids(ledger) == ["a"]
        writer.close()

    asyncio.run(run(Writer(ledger, "full")))


def test_starting_opens_the_ledger_before_there_is_a_row(ledger: Path) -> None:
    with writing(ledger) as writer:
        asyncio.run(flushed(writer))
        assert ids(ledger) == []


@pytest.mark.parametrize("begin", [started, Writer], ids=["started", "never started"])
def test_closing_twice_does_no_harm(ledger: Path, begin) -> None:
    writer = begin(ledger, "full")
    writer.close()
    writer.close()
    assert not writer._thread.is_alive()


def test_closing_leaves_one_file_that_can_be_copied(ledger: Path) -> None:
    async def run(writer: Writer) -> None:
        await outcome_of(writer.submit(entry("a")))

    with writing(ledger) as writer:
        asyncio.run(run(writer))
    assert sorted(path.name for path in ledger.parent.iterdir()) == ["usage.db", "usage.db-writers"]


# Trouble.


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


# One bad row.


def bad(kind: str) -> Entry:
    return entry("bad", tag="\ud800") if kind == "not Unicode" else entry("bad", input_tokens=kind)


@pytest.mark.parametrize("kind", ["many", "not Unicode"])
def test_a_row_that_cannot_be_stored_is_named_and_the_others_are_stored(
    ledger: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    async def run(writer: Writer) -> None:
        writer.submit(entry("a"))
        writer.submit(bad(kind))
        await outcome_of(writer.submit(entry("b")))
        assert ids(ledger) == ["a", "b"]
        assert await outcome_of(writer.submit(entry("c"))) is True

    with writing(ledger) as writer:
        asyncio.run(run(writer))
    assert ids(ledger) == ["a", "b", "c"]
    assert len(lines(caplog, "row bad cannot be stored")) == 1


@pytest.mark.parametrize("kind", ["many", "not Unicode"])
def test_a_bad_row_in_a_locked_ledger_loses_no_other(ledger: Path, caplog: pytest.LogCaptureFixture, kind: str) -> None:
    """Nothing is lost while the ledger cannot be written, also when two kinds of trouble meet."""

    async def run(writer: Writer) -> None:
        await flushed(writer)
        with locked(ledger):
            writer.submit(entry("a"))
            writer.submit(bad(kind))
            assert await outcome_of(writer.submit(entry("b"))) is False
        while writer.trouble:
            await flushed(writer)
        assert ids(ledger) == ["a", "b"]

    with writing(ledger) as writer:
        asyncio.run(run(writer))
    assert len(lines(caplog, "row bad cannot be stored")) == 1
    assert len(lines(caplog, "cannot be stored")) == 1


def test_a_mark_that_somebody_removed_is_made_again(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it another proxy would take this one for dead."""
    monkeypatch.setattr("usage_ledger.ledger.writer.LOOK_SECONDS", 0.05)
    with writing(ledger) as writer:
        writer_id = writer.name.split(" ")[1]
        asyncio.run(flushed(writer))
        (writers_folder(ledger) / f"{writer_id}.lock").unlink()
        assert not is_alive(ledger, writer_id)
        deadline = time.monotonic() + LONG
        while not is_alive(ledger, writer_id) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert is_alive(ledger, writer_id)
    assert not list(writers_folder(ledger).iterdir())


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
