"""The view: usage and verdict first, then the text block by block, and never so much that the program stands still."""

import pytest
from mitmproxy import contentviews, http
from usage_ledger.flows.files import saved_flows
from usage_ledger.messages import assembling
from usage_ledger.proxy import view

from scripts.fake_console import NORMAL, START_USAGE, STOP, delta, event, start, text
from scripts.make_samples import SAMPLES


def shown(body: bytes) -> list[str]:
    (flow,) = saved_flows(SAMPLES / "normal-stream.mitm")
    assert isinstance(flow, http.HTTPFlow)
    assert flow.response is not None
    flow.response.raw_content = body
    metadata = contentviews.Metadata(flow=flow, http_message=flow.response)
    return view.UsageView().prettify(body, metadata).splitlines()


def said(words: str) -> bytes:
    return b"".join([start(START_USAGE), *text(words), delta({"output_tokens": 3}), STOP])


def test_the_verdict_comes_first_and_the_text_last() -> None:
    lines = shown(said("hello there"))
    assert lines[0] == "  verdict  complete"
    assert lines[-1].strip() == "hello there"
    assert "  block 1: text" in lines


def test_text_is_shown_as_what_it_is() -> None:
    """Nothing in it moves the cursor, or turns the direction of a line."""
    lines = shown(said("a\tb \u202eevil\x1b[2J \x9b"))
    assert all(line.isprintable() for line in lines)


def test_more_text_than_is_put_together_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "  there is more text" not in shown(said("hello there"))
    monkeypatch.setattr(assembling, "TEXT_LIMIT", 5)
    assert shown(said("hello there"))[-1] == "  there is more text"


def test_of_very_many_events_the_first_are_looked_at_and_all_are_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view, "EVENTS_LIMIT", 10)
    lines = shown(b"".join([start(START_USAGE), *[event("ping")] * 30, *NORMAL[1:]]))
    assert lines[0] == "  verdict  complete"
    assert any("more events than are looked at here" in line for line in lines)
    assert lines[-1] == "  there is more text"
