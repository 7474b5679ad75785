"""What a capture tells of a flow, whatever other programs have put into it."""

from collections.abc import Callable

import pytest
from mitmproxy import http
from usage_ledger.flows.notes import note
from usage_ledger.flows.replay import judge
from usage_ledger.ledger.record import Record

from tests.flows.redacted import sample

NO_MOMENTS = (1e300, float("inf"), float("nan"), -1e12)


def row(flow: http.HTTPFlow) -> Record:
    judged = judge(flow, tag_header="x-team")
    assert judged is not None
    return judged.entry.record


@pytest.mark.parametrize("tag", [5, None, ["blue"], ""])
def test_a_note_that_is_no_tag_counts_as_none(tag: object) -> None:
    flow = sample()
    flow.request.headers["x-team"] = "blue"
    note(flow, tag=tag)
    assert row(flow).tag == "blue"


@pytest.mark.parametrize("size", [10**30, -1, "5", 2.5, True])
def test_a_note_that_is_no_size_counts_as_none(size: object) -> None:
    flow = sample()
    note(flow, response_bytes=size)
    assert flow.response is not None
    assert row(flow).response_bytes == len(flow.response.raw_content or b"")


def end(flow: http.HTTPFlow, time: float) -> None:
    assert flow.response is not None
    flow.response.timestamp_end = time


def both(flow: http.HTTPFlow, time: float) -> None:
    end(flow, time)
    assert flow.response is not None
    flow.response.timestamp_start = flow.request.timestamp_end = time


@pytest.mark.parametrize("time", NO_MOMENTS)
@pytest.mark.parametrize("change", [end, both])
def test_an_end_that_cannot_be_costs_no_row(change: Callable[[http.HTTPFlow, float], None], time: float) -> None:
    flow = sample()
    before = row(flow)
    change(flow, time)
    after = row(flow)
    assert (after.usage_state, after.occurred_at) == (before.usage_state, before.occurred_at)
    assert before.occurred_at <= (after.completed_at or "") <= (before.completed_at or "")
