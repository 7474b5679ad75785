"""A row that cannot be stored is named, and keeps no other from being stored."""

import asyncio
from pathlib import Path

import pytest
from usage_ledger.ledger.record import Entry
from usage_ledger.ledger.writer import Writer

from tests.ledger.writers import entry, flushed, ids, lines, locked, outcome_of, writing


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
