"""Flagged flows are marked and say why, in captures too; marks and comments of others stay."""

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from mitmproxy import http
from mitmproxy.io import FlowReader
from mitmproxy.test import tflow
from usage_ledger.messages import Ending, MessageReader, Verdict
from usage_ledger.proxy.marks import MARK, mark

from scripts.real_proxy import Proxy, replay


def verdict_on(body: bytes, ending: Ending = Ending.FINISHED) -> Verdict:
    reader = MessageReader()
    reader.feed(body)
    reader.finish(clean=ending is Ending.FINISHED)
    return reader.verdict(ending, 200)


FLAGGED = verdict_on(b"", Ending.CLIENT_DISCONNECTED)
FINE = verdict_on(b'{"usage":{"input_tokens":1,"output_tokens":1},"stop_reason":"end_turn"}')
WHY = "usage ledger: flagged client_disconnected: no usage came: the client left after 2.0 s"


@pytest.fixture
def flow() -> http.HTTPFlow:
    return tflow.tflow(resp=True)


def saved(capture: Path) -> list[tuple[str, str]]:
    with capture.open("rb") as file:
        return [(flow.marked, flow.comment.partition(" after ")[0]) for flow in FlowReader(file).stream()]


def test_a_flagged_flow_has_a_mark_and_says_why(flow: http.HTTPFlow) -> None:
    mark(flow, FLAGGED, 2.0)
    assert (flow.marked, flow.comment) == (MARK, WHY)


def test_a_flow_that_is_fine_has_neither(flow: http.HTTPFlow) -> None:
    mark(flow, FINE, 2.0)
    assert (flow.marked, flow.comment) == ("", "")


def test_marks_and_comments_of_others_stay(flow: http.HTTPFlow) -> None:
    flow.marked, flow.comment = ":grapes:", "look at this"
    mark(flow, FLAGGED, 2.0)
    assert (flow.marked, flow.comment) == (":grapes:", f"look at this {WHY}")
    mark(flow, FINE, 2.0)
    assert (flow.marked, flow.comment) == (":grapes:", "look at this")


def test_a_mark_like_ours_that_somebody_else_has_set_stays(flow: http.HTTPFlow) -> None:
    flow.marked = MARK
    mark(flow, FINE, 2.0)
    assert flow.marked == MARK


def test_what_is_said_again_is_said_once(flow: http.HTTPFlow) -> None:
    mark(flow, FLAGGED, 2.0)
    mark(flow, FLAGGED, 2.0)
    assert flow.comment == WHY
    mark(flow, FINE, 2.0)
    assert (flow.marked, flow.comment) == ("", "")


def test_a_remark_is_made_whether_or_not_a_flow_is_flagged(flow: http.HTTPFlow) -> None:
    mark(flow, FINE, 2.0, "the body was not kept")
    assert (flow.marked, flow.comment) == ("", "usage ledger: the body was not kept")
    mark(flow, FLAGGED, 2.0, "the body was not kept")
    assert flow.comment == f"{WHY}; the body was not kept"


def test_captures_have_marks_and_comments_live_and_replayed(
    tmp_path: Path, start_proxy: Callable[..., Proxy], ask: Callable[..., httpx.Response]
) -> None:
    capture, again = tmp_path / "capture.mitm", tmp_path / "again.mitm"
    proxy = start_proxy("-w", str(capture))
    for scenario in ("normal", "without_usage"):
        ask(proxy, scenario)
    proxy.stop()
    told = "usage ledger: flagged no_usage_data: no usage came: the response ended normally"
    assert saved(capture) == [("", ""), (MARK, told)]
    replay(capture, tmp_path / "other.db", "-w", str(again))
    assert saved(again) == saved(capture)
