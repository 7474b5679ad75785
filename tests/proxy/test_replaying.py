"""Rows of a replay go to the ledger many at a time, and the log says how far it is and what came of it."""

import asyncio
import logging
from pathlib import Path

import pytest
from mitmproxy.http import HTTPFlow
from mitmproxy.io import FlowReader, FlowWriter
from usage_ledger.ledger.record import Entry, Record
from usage_ledger.proxy import replaying
from usage_ledger.proxy.replaying import Replaying

from scripts.make_samples import SAMPLES
from scripts.real_proxy import replay, rows_of


class Writer:
    """Takes what is handed in; stores it when it is told to."""

    def __init__(self) -> None:
        self.batches: list[list[Entry]] = []
        self.outcomes: list[asyncio.Future[bool]] = []

    def submit_all(self, entries: list[Entry]) -> "asyncio.Future[bool]":
        self.batches.append(entries)
        self.outcomes.append(asyncio.get_running_loop().create_future())
        return self.outcomes[-1]

    @property
    def sizes(self) -> list[int]:
        return [len(batch) for batch in self.batches]


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


def test_rows_are_handed_in_many_at_a_time_and_the_rest_at_the_end() -> None:
    async def run() -> list[int]:
        writer, replay = Writer(), Replaying()
        for number in range(replaying.AT_ONCE + 10):
            await replay.add(entry(number), writer)  # type: ignore[arg-type]
        replay.finish()
        replay.finish()
        return writer.sizes

    assert asyncio.run(run()) == [replaying.AT_ONCE, 10]


def test_a_replay_waits_for_a_ledger_that_cannot_keep_up() -> None:
    async def run() -> tuple[list[int], list[int]]:
        writer, replay = Writer(), Replaying()

        async def all_of_it() -> None:
            for number in range(replaying.AT_ONCE * 4):
                await replay.add(entry(number), writer)  # type: ignore[arg-type]
            replay.finish()

        reading = asyncio.ensure_future(all_of_it())
        await asyncio.sleep(0)
        while len(writer.batches) < 2:
            await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)
        stuck = writer.sizes
        while not reading.done():
            for outcome in writer.outcomes:
                if not outcome.done():
                    outcome.set_result(True)
            await asyncio.sleep(0)
        return stuck, writer.sizes

    stuck, all_ = asyncio.run(run())
    assert stuck == [replaying.AT_ONCE] * 2
    assert all_ == [replaying.AT_ONCE] * 4


def test_after_a_pause_what_is_left_is_handed_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """In mitmweb nothing ends after a capture was loaded."""
    monkeypatch.setattr(replaying, "PAUSE_SECONDS", 0.01)

    async def run() -> list[int]:
        writer, replay = Writer(), Replaying()
        await replay.add(entry(1), writer)  # type: ignore[arg-type]
        while not writer.batches:
            await asyncio.sleep(0.001)
        return writer.sizes

    assert asyncio.run(run()) == [1]


def test_a_ledger_that_is_changed_meanwhile_gets_only_what_came_after() -> None:
    async def run() -> tuple[list[int], list[int]]:
        first, second, replay = Writer(), Writer(), Replaying()
        for number in range(5):
            await replay.add(entry(number), first if number < 3 else second)  # type: ignore[arg-type]
        replay.finish()
        return first.sizes, second.sizes

    assert asyncio.run(run()) == ([3], [2])


def test_the_log_says_how_far_it_is_and_what_came_of_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "usage_ledger")

    async def run() -> None:
        writer, replay = Writer(), Replaying()
        for number in range(2_500):
            await replay.add(entry(number, *(("missing", 1) if number < 3 else ())), writer)  # type: ignore[arg-type]
            for outcome in writer.outcomes:
                if not outcome.done():
                    outcome.set_result(True)
        replay.finish()

    asyncio.run(run())
    assert [record.getMessage() for record in caplog.records] == [
        "usage ledger: 1,000 flows replayed so far",
        "usage ledger: 2,000 flows replayed so far",
        "usage ledger: 2,500 flows replayed: 2,497 complete, 3 missing; 3 flagged",
    ]


def test_a_capture_of_many_flows_leaves_its_rows(tmp_path: Path) -> None:
    capture, ledger = tmp_path / "many.mitm", tmp_path / "usage.db"
    with (SAMPLES / "normal-stream.mitm").open("rb") as file:
        (flow,) = FlowReader(file).stream()
    assert isinstance(flow, HTTPFlow)
    assert flow.response is not None
    with capture.open("wb") as out:
        for number in range(1_300):
            flow.request.timestamp_start += 0.001
            flow.response.headers["request-id"] = f"req_{number}"
            FlowWriter(out).add(flow)
    log = replay(capture, ledger, "-q")
    assert log == ""
    assert len(rows_of(ledger)) == 1_300
    assert "1,300 flows replayed: 1,300 complete; 0 flagged" in replay(capture, ledger)
    assert len(rows_of(ledger)) == 1_300
