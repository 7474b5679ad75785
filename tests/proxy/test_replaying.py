"""Rows of a replay go to the ledger many at a time, and the log says how far it is and what came of it."""

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from mitmproxy.http import HTTPFlow
from mitmproxy.io import FlowReader, FlowWriter
from usage_ledger.ledger.record import Entry, Record
from usage_ledger.ledger.store import Store
from usage_ledger.ledger.writer import Writer
from usage_ledger.proxy import replaying
from usage_ledger.proxy.replaying import Replaying

from scripts.make_samples import SAMPLES
from scripts.real_proxy import replay, rows_of


class Watched(Writer):
    """A writer that tells how many rows are handed in at once."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "normal")
        self.sizes: list[int] = []

    def submit_all(self, entries: list[Entry]) -> "asyncio.Future[bool]":
        self.sizes.append(len(entries))
        return super().submit_all(entries)


@pytest.fixture
def make_writer(tmp_path: Path) -> Iterator[Callable[..., Watched]]:
    """Make writers, each to a ledger of its own, which are closed after the test."""
    made: list[Watched] = []

    def make(name: str = "usage.db", starts: bool = True) -> Watched:
        made.append(Watched(tmp_path / name))
        if starts:
            made[-1].start()
        return made[-1]

    yield make
    for writer in made:
        writer.close()


def entry(number: int, state: str = "complete", flagged: int = 0) -> Entry:
    return Entry(
        Record(
            id=str(number),
            occurred_at="2026-11-01T08:00:00.000Z",
            host="h",
            path="/",
            usage_state=state,
            requires_manual_review=flagged,
        )
    )


def test_rows_are_handed_in_many_at_a_time_and_the_rest_at_the_end(make_writer: Callable[..., Watched]) -> None:
    writer = make_writer()

    async def run() -> None:
        replay = Replaying()
        for number in range(replaying.AT_ONCE + 10):
            await replay.add(entry(number), writer)
        await replay.finish()
        await replay.finish()

    asyncio.run(run())
    assert writer.sizes == [replaying.AT_ONCE, 10]
    assert len(rows_of(writer.path)) == replaying.AT_ONCE + 10


def test_a_replay_waits_for_a_ledger_that_cannot_keep_up(make_writer: Callable[..., Watched]) -> None:
    writer = make_writer(starts=False)

    async def run() -> None:
        replay = Replaying()

        async def all_of_it() -> None:
            for number in range(replaying.AT_ONCE * 4):
                await replay.add(entry(number), writer)
            await replay.finish()

        reading = asyncio.ensure_future(all_of_it())
        while len(writer.sizes) < 2:
            await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)
        assert writer.sizes == [replaying.AT_ONCE] * 2
        writer.start()
        await reading

    asyncio.run(run())
    assert writer.sizes == [replaying.AT_ONCE] * 4


def test_after_a_pause_what_is_left_is_handed_in(
    make_writer: Callable[..., Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In mitmweb nothing ends after a capture was loaded."""
    monkeypatch.setattr(replaying, "PAUSE_SECONDS", 0.01)
    writer = make_writer()

    async def run() -> None:
        await Replaying().add(entry(1), writer)
        while not writer.sizes:
            await asyncio.sleep(0.001)

    asyncio.run(run())
    assert writer.sizes == [1]


def test_a_ledger_that_is_changed_meanwhile_gets_only_what_came_after(make_writer: Callable[..., Watched]) -> None:
    first, second = make_writer("first.db"), make_writer("second.db")

    async def run() -> None:
        replay = Replaying()
        for number in range(5):
            await replay.add(entry(number), first if number < 3 else second)
        await replay.finish()

    asyncio.run(run())
    assert [len(rows_of(writer.path)) for writer in (first, second)] == [3, 2]


def test_the_log_says_how_far_it_is_and_what_came_of_it(
    make_writer: Callable[..., Watched], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "usage_ledger")
    writer = make_writer()

    async def run() -> None:
        replay = Replaying()
        for number in range(2_500):
            await replay.add(entry(number, *(("missing", 1) if number < 3 else ())), writer)
        await replay.finish()

    asyncio.run(run())
    assert [record.getMessage() for record in caplog.records] == [
        "usage ledger: 1,000 flows replayed so far",
        "usage ledger: 2,000 flows replayed so far",
        "usage ledger: 2,500 flows replayed: 2,497 complete, 3 missing; 3 flagged",
    ]


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """A capture of 1,300 flows."""
    capture = tmp_path / "many.mitm"
    with (SAMPLES / "normal-stream.mitm").open("rb") as file:
        (flow,) = FlowReader(file).stream()
    assert isinstance(flow, HTTPFlow)
    assert flow.response is not None
    with capture.open("wb") as out:
        for number in range(1_300):
            flow.request.timestamp_start += 0.001
            flow.response.headers["request-id"] = f"req_{number}"
            FlowWriter(out).add(flow)
    return capture


def test_a_capture_of_many_flows_leaves_its_rows(tmp_path: Path, many: Path) -> None:
    ledger = tmp_path / "usage.db"
    log = replay(many, ledger, "-q")
    assert log == ""
    assert len(rows_of(ledger)) == 1_300
    assert "1,300 flows replayed: 1,300 complete; 0 flagged\n" in replay(many, ledger)
    assert len(rows_of(ledger)) == 1_300


def test_a_ledger_that_is_locked_has_no_row_and_the_last_lines_say_where_they_are(tmp_path: Path, many: Path) -> None:
    ledger = tmp_path / "usage.db"
    Store(ledger, "full", "none").close()
    with closing(sqlite3.connect(ledger, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        log = replay(many, ledger).splitlines()
    assert rows_of(ledger) == []
    (spilled,) = tmp_path.glob("usage.db-spill-*")
    told = "1,300 flows replayed: 1,300 complete; 0 flagged. The ledger cannot be written: it has 0 of their rows, "
    assert any(line.endswith(f"{told}1,300 wait in {spilled}") for line in log)
    assert log[-1] == f"usage ledger: 1300 row(s) wait in {spilled} for the next start"
    replay(SAMPLES / "rate-limited.mitm", ledger)
    assert len(rows_of(ledger)) == 1_301


def test_rows_that_no_file_holds_are_told_and_the_replay_fails(tmp_path: Path) -> None:
    """Neither the ledger nor a file beside it can be written. What other addons write at the end is whole."""
    (tmp_path / "file").write_text("no folder")
    copy = tmp_path / "copy.mitm"
    with pytest.raises(RuntimeError, match="ended with 1:") as failed:
        replay(SAMPLES / "normal-stream.mitm", tmp_path / "file" / "usage.db", "-w", str(copy))
    last = str(failed.value).splitlines()[-1]
    assert last == "usage ledger: 1 row(s) could not be stored anywhere before the end, and are lost"
    with copy.open("rb") as file:
        assert len(list(FlowReader(file).stream())) == 1


def test_a_row_that_cannot_be_stored_makes_a_replay_fail(
    make_writer: Callable[..., Watched], caplog: pytest.LogCaptureFixture
) -> None:
    async def run(number: int) -> None:
        replay = Replaying()
        await replay.add(impossible if number == 3 else entry(number), writer)
        await replay.finish()
        replay.end()

    writer, impossible = make_writer(), entry(3)
    impossible.record.total_tokens = 1 << 80
    asyncio.run(run(1))
    with pytest.raises(SystemExit) as failed:
        asyncio.run(run(3))
    assert failed.value.code == 1
    assert "row 3 cannot be stored" in caplog.text
    assert [row["id"] for row in rows_of(writer.path)] == ["1"]
