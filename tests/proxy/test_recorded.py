"""The log's lines for settled rows: those of one turn of the event loop share a log record, and none is lost."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import closing

import pytest
from usage_ledger.ledger.record import Record
from usage_ledger.proxy import recorded


class Kept(logging.Handler):
    """A log that keeps its records."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def records(caplog: pytest.LogCaptureFixture) -> Iterator[list[logging.LogRecord]]:
    log, kept = logging.getLogger("usage_ledger"), Kept()
    caplog.set_level(logging.INFO, log.name)
    log.addHandler(kept)
    yield kept.records
    log.removeHandler(kept)
    assert recorded._lines == []


def row(number: int, reason: str | None = None) -> Record:
    return Record(
        id=str(number),
        occurred_at="2026-11-01T08:00:00.000Z",
        host="h",
        path="/v1/messages",
        model=f"model-{number}",
        usage_state="partial" if reason else "complete",
        requires_manual_review=int(reason is not None),
        review_reason=reason,
    )


def models(record: logging.LogRecord) -> list[str]:
    """Which rows a log record tells of."""
    return [word for line in record.getMessage().split("\n") for word in line.split() if word.startswith("model-")]


def test_rows_that_settle_in_one_turn_share_a_log_record_a_line_each(records: list[logging.LogRecord]) -> None:
    async def run() -> None:
        for number in range(3):
            recorded.tell(row(number))
        assert records == []  # the turn goes on
        await asyncio.sleep(0)

    asyncio.run(run())
    (record,) = records
    assert record.levelno == logging.INFO
    assert models(record) == ["model-0", "model-1", "model-2"]
    assert all(line.startswith("📊 usage recorded: ") for line in record.getMessage().split("\n"))


def test_a_row_that_settles_in_a_turn_of_its_own_has_a_log_record_of_its_own(records: list[logging.LogRecord]) -> None:
    async def run() -> None:
        for number in range(3):
            recorded.tell(row(number))
            await asyncio.sleep(0)

    asyncio.run(run())
    assert [models(record) for record in records] == [["model-0"], ["model-1"], ["model-2"]]


def test_a_warning_is_a_log_record_of_its_own_behind_the_lines_before_it(records: list[logging.LogRecord]) -> None:
    async def run() -> None:
        recorded.tell(row(0))
        recorded.tell(row(1, "client_disconnected"))
        assert [record.levelno for record in records] == [logging.INFO, logging.WARNING]
        recorded.tell(row(2))
        await asyncio.sleep(0)

    asyncio.run(run())
    assert [models(record) for record in records] == [["model-0"], ["model-1"], ["model-2"]]


def test_a_turn_of_very_many_rows_waits_with_no_more_than_some_lines(records: list[logging.LogRecord]) -> None:
    async def run() -> None:
        for number in range(recorded.LINES * 2 + 1):
            recorded.tell(row(number))
        assert len(records) == 2
        await asyncio.sleep(0)

    asyncio.run(run())
    assert [len(models(record)) for record in records] == [recorded.LINES, recorded.LINES, 1]


def test_what_waits_can_be_told_before_the_turn_is_over(records: list[logging.LogRecord]) -> None:
    async def run() -> None:
        recorded.tell(row(0))
        recorded.tell_all()
        assert [models(record) for record in records] == [["model-0"]]

    asyncio.run(run())
    assert len(records) == 1


def test_a_log_that_fails_costs_no_more_than_the_lines_it_failed_at(records: list[logging.LogRecord]) -> None:
    class Failing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:  # noqa: ARG002 - a handler's
            log.removeHandler(self)
            raise RuntimeError("Event loop is closed")  # as that of a mitmproxy that is over does

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        for number in range(3):
            recorded.tell(row(number))
            await asyncio.sleep(0)

    log = logging.getLogger("usage_ledger")
    log.handlers.insert(0, Failing())
    asyncio.run(run())
    assert [models(record) for record in records] == [["model-1"], ["model-2"]]


def test_a_warning_is_told_where_the_lines_before_it_cannot_be(records: list[logging.LogRecord]) -> None:
    class Failing(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:  # noqa: ARG002 - a filter's
            log.removeFilter(self)
            raise RuntimeError

    async def run() -> None:
        recorded.tell(row(0))
        log.addFilter(failing)
        with pytest.raises(RuntimeError):
            recorded.tell(row(1, "client_disconnected"))

    log, failing = logging.getLogger("usage_ledger"), Failing()
    asyncio.run(run())
    assert [models(record) for record in records] == [["model-1"]]


def test_lines_of_a_loop_that_was_stopped_are_told_by_the_next_one(records: list[logging.LogRecord]) -> None:
    async def run(number: int) -> None:
        recorded.tell(row(number))

    with closing(asyncio.new_event_loop()) as stopped:
        stopped.call_soon(lambda: stopped.create_task(run(0)))
        stopped.call_soon(stopped.stop)
        stopped.run_forever()
        stopped.stop()
        stopped.run_forever()
    asyncio.run(run(1))
    assert [name for record in records for name in models(record)] == ["model-0", "model-1"]


def test_a_replayed_row_is_told_at_once_behind_the_lines_before_it(records: list[logging.LogRecord]) -> None:
    async def run() -> None:
        recorded.tell(row(0))
        recorded.tell_at_once(row(1))
        recorded.tell_at_once(row(2, "upstream_closed"))
        assert [models(record) for record in records] == [["model-0"], ["model-1"], ["model-2"]]

    asyncio.run(run())
    assert [record.levelno for record in records] == [logging.INFO, logging.INFO, logging.WARNING]
