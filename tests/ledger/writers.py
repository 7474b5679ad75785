"""Writers under test, rows to hand in, and what comes of them."""

import asyncio
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from usage_ledger.ledger.record import Entry, Record
from usage_ledger.ledger.writer import Writer

LONG = 20  # seconds after which a test that waits for an event gives up


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


_HOLD = """
import sys
from pathlib import Path
from usage_ledger.ledger.presence import Presence
presence = Presence(Path(sys.argv[1]), sys.argv[2])
print("here", flush=True)
sys.stdin.read()
presence.leave()
"""


@contextmanager
def living_writer(ledger: Path, writer_id: str = "theirs") -> Iterator["subprocess.Popen[bytes]"]:
    """Another process with a writer's mark, which it leaves when its stdin is closed."""
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(ledger), writer_id], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"here\n"
        try:
            yield process
        finally:
            process.kill()
