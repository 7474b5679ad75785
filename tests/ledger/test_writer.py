"""The writer: True means on disk, many rows share one commit, and closing it writes what waits."""

import asyncio
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from usage_ledger.ledger.presence import is_alive, writers_folder
from usage_ledger.ledger.record import Entry, IterationRow
from usage_ledger.ledger.store import Store
from usage_ledger.ledger.writer import BUSY_SECONDS, Writer

from tests.ledger.writers import LONG, entry, flushed, ids, lines, locked, outcome_of, started, writing

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


def test_the_batch_of_a_busy_loop_fills_for_one_turn_more(ledger: Path) -> None:
    """Each commit costs a busy loop many waits for the interpreter, so it makes fewer of them."""

    async def run(writer: Writer) -> None:
        first = writer.submit(entry("first"))
        time.sleep(BUSY_SECONDS * 4)
        await asyncio.sleep(0)
        assert writer._wake.empty()  # nothing is handed over yet
        assert writer.submit(entry("of the next turn")) is first
        await asyncio.sleep(0)
        assert not writer._wake.empty()
        writer.start()
        assert await outcome_of(first) is True

    with closing(Writer(ledger, "full")) as writer:
        asyncio.run(run(writer))
    assert ids(ledger) == ["first", "of the next turn"]


def test_a_row_that_is_handed_in_last_is_written_without_another(ledger: Path) -> None:
    """Nothing but the loop's own turns hands a batch over, whether the loop is busy or not."""

    async def run(writer: Writer, seconds: float) -> None:
        outcome = writer.submit(entry(f"{seconds}"))
        time.sleep(seconds)
        assert await outcome_of(outcome) is True

    with writing(ledger) as writer:
        for seconds in (0, BUSY_SECONDS * 4):
            asyncio.run(run(writer, seconds))
    assert ids(ledger) == ["0", f"{BUSY_SECONDS * 4}"]


@pytest.mark.parametrize("then", ["submit", "submit_all", "flush"])
def test_what_a_loop_left_when_it_was_closed_is_written_with_what_the_next_one_hands_in(
    ledger: Path, then: str
) -> None:
    async def left(writer: Writer) -> None:
        writer.submit(entry("left"))

    async def run(writer: Writer) -> None:
        if then == "submit":
            assert await outcome_of(writer.submit(entry("next"))) is True
        elif then == "submit_all":
            assert await outcome_of(writer.submit_all([entry("next")])) is True
        else:
            await flushed(writer)

    with writing(ledger) as writer:
        asyncio.run(flushed(writer))
        with closing(asyncio.new_event_loop()) as loop:
            loop.create_task(left(writer))
            loop.stop()
            loop.run_forever()  # one turn, so that it is closed before the hand-over
        asyncio.run(run(writer))
        assert ids(ledger) == ["left", "next"][: 1 if then == "flush" else 2]


def test_what_is_in_flight_when_the_writer_is_closed_is_settled(ledger: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A request may begin while the program ends. It is flagged now, and not only by whoever starts next."""

    async def run(writer: Writer) -> None:
        writer.submit(entry("begun", writer=writer.name))
        writer.submit(entry("told", writer=writer.name, usage_raw='{"input_tokens":12}', input_tokens=12))
        writer.submit(entry("over", writer=writer.name, usage_state="complete"))
        assert await outcome_of(writer.submit(entry("another's", writer="0.1.0 another"))) is True

    with writing(ledger) as writer:
        asyncio.run(run(writer))
    with closing(sqlite3.connect(ledger)) as connection:
        found = connection.execute("SELECT id, usage_state, review_reason FROM usage_records ORDER BY rowid").fetchall()
    assert found == [
        ("begun", "missing", "proxy_stopped"),
        ("told", "partial", "proxy_stopped"),
        ("over", "complete", None),
        ("another's", "pending", None),
    ]
    assert lines(caplog, "proxy_stopped") == [
        "usage ledger: 2 request(s) began as the proxy stopped; they are flagged proxy_stopped"
    ]


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
