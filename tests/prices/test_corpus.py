"""Streams recorded from the real API are priced, each to the last digit of what was worked out apart from our code."""

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from usage_ledger.flows import rows
from usage_ledger.ledger.record import Entry, Record
from usage_ledger.messages import Ending, MessageReader, Verdict
from usage_ledger.prices.parts import UnpricedError
from usage_ledger.prices.pricer import Pricer

CORPUS = Path(__file__).parents[3] / "shared" / "corpus"
STREAMS = sorted(CORPUS.glob("*.sse"))

PUBLISHED = {
    # USD per million: input, output, 5-minute and 1-hour cache writes, cache reads (sources: test_listed)
    "claude-3-haiku": "0.25 1.25 0.30 0.50 0.03",
    "claude-3-opus": "15 75 18.75 30 1.50",
    "claude-3-5-sonnet": "3 15 3.75 6 0.30",
    "claude-3-7-sonnet": "3 15 3.75 6 0.30",
    "claude-sonnet-4": "3 15 3.75 6 0.30",
    "claude-opus-4-20250514": "15 75 18.75 30 1.50",
    "claude-opus-4-1": "15 75 18.75 30 1.50",
    "claude-opus-4": "5 25 6.25 10 0.50",
    "claude-opus-5-5": "4 20 5 8 0.20",
    "claude-opus-5": "5 25 6.25 10 0.50",
    "claude-haiku-4-5": "1 5 1.25 2 0.10",
    "claude-sonnet-5": "2 10 2.50 4 0.20",
    "claude-fable-5": "10 50 12.50 20 1",
}


def verdict_on(stream: bytes) -> Verdict:
    reader = MessageReader()
    reader.feed(stream)
    reader.finish(clean=True)
    return reader.verdict(Ending.FINISHED, 200)


def entry_of(verdict: Verdict) -> Entry:
    record = Record(id="a", occurred_at="2026-11-24T08:00:00.000Z", host="h", path="/v1/messages")
    rows.describe(record, verdict)
    record.metadata = json.dumps(verdict.metadata)
    return Entry(record, rows.iteration_rows("a", verdict))


def published(model: str) -> list[Decimal] | None:
    names = sorted((name for name in PUBLISHED if model.startswith(name)), key=len)
    return [Decimal(each) for each in PUBLISHED[names[-1]].split()] if names else None


def worked_out(usage: dict[str, Any], model: str) -> Decimal:
    """What one usage object costs, read straight from what upstream said."""
    prices = published(model)
    assert prices is not None, model
    split = usage.get("cache_creation") or {}
    hour = split.get("ephemeral_1h_input_tokens") or 0
    written = usage.get("cache_creation_input_tokens") or 0
    counts = (
        *(usage.get("input_tokens") or 0, usage.get("output_tokens") or 0),
        *(written - hour, hour, usage.get("cache_read_input_tokens") or 0),
    )
    return sum((count * price for count, price in zip(counts, prices, strict=True)), Decimal(0)) / 10**6


@pytest.mark.skipif(not STREAMS, reason="the recorded streams are not there")
@pytest.mark.parametrize("path", STREAMS, ids=lambda path: path.stem)
def test_a_recorded_stream_is_priced(path: Path) -> None:
    verdict = verdict_on(path.read_bytes())
    entry = entry_of(verdict)
    if verdict.state != "complete":
        Pricer().fill(entry)
        assert (entry.record.total_cost, entry.record.price_source) == ("0" if verdict.state == "none" else None, None)
        return
    if published(entry.record.model) is None or "models" in verdict.metadata:
        with pytest.raises(UnpricedError):
            Pricer().price(entry)
        return
    told = json.loads(verdict.usage_raw or "{}")
    expected = Decimal(0)
    for usage in told if isinstance(told, list) else [told]:
        entries = usage.get("iterations") or []
        fell_back = any(each["type"] == "fallback_message" for each in entries)
        billed = [each for each in entries if each["output_tokens"] or not (fell_back and each["type"] == "message")]
        for each in billed if any(each["output_tokens"] for each in billed) else [usage]:
            expected += worked_out(each, each.get("model") or entry.record.model)
        expected += Decimal("0.01") * ((usage.get("server_tool_use") or {}).get("web_search_requests") or 0)
    assert Pricer().price(entry).amount == expected


@pytest.mark.skipif(not STREAMS, reason="the recorded streams are not there")
def test_only_what_is_not_complete_has_no_price() -> None:
    entries = [entry_of(verdict_on(path.read_bytes())) for path in STREAMS]
    for entry in entries:
        Pricer().fill(entry)
    assert {each.record.usage_state for each in entries if each.record.total_cost is None} == {"partial"}
    assert sum(each.record.total_cost is not None for each in entries) >= 56
