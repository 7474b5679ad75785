"""Flagged flows are marked and say why, in captures too; marks and comments of others stay."""

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from mitmproxy import http
from mitmproxy.io import FlowReader
from mitmproxy.test import tflow
from usage_ledger.flows.notes import note
from usage_ledger.messages import Ending, MessageReader, Verdict
from usage_ledger.proxy.marks import MARK, mark, unmark

from scripts.fake_console import NORMAL, FakeConsole, streaming
from scripts.real_proxy import Proxy, replay, settled_rows


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


@pytest.mark.parametrize(
    "others", ["look", "blanks stay  ", "two\nlines\n", "usage ledger: mine", "usage ledger: flagged by me, see above"]
)
def test_what_others_said_before_stays_to_the_letter(flow: http.HTTPFlow, others: str) -> None:
    flow.comment = others
    mark(flow, FINE, 2.0)
    assert flow.comment == others
    mark(flow, FLAGGED, 2.0)
    assert flow.comment in (others + WHY, f"{others} {WHY}")
    mark(flow, FINE, 2.0)
    assert flow.comment == others


def test_what_others_said_around_it_later_stays_to_the_letter(flow: http.HTTPFlow) -> None:
    mark(flow, FLAGGED, 2.0)
    flow.comment = f"I asked: {flow.comment} - it was the laptop's lid. "
    mark(flow, FLAGGED, 3.0)
    assert flow.comment == f"I asked: {WHY.replace('2.0', '3.0')} - it was the laptop's lid. "
    mark(flow, FINE, 2.0)
    assert flow.comment == "I asked:  - it was the laptop's lid. "


def test_a_sentence_that_somebody_has_edited_is_theirs(flow: http.HTTPFlow) -> None:
    mark(flow, FLAGGED, 2.0)
    flow.comment = edited = flow.comment.replace("the client", "my client")
    mark(flow, FINE, 2.0)
    assert flow.comment == edited


def test_a_mark_like_ours_that_somebody_else_has_set_stays(flow: http.HTTPFlow) -> None:
    flow.marked = MARK
    mark(flow, FINE, 2.0)
    assert flow.marked == MARK
    mark(flow, FLAGGED, 2.0)
    mark(flow, FINE, 2.0)
    assert (flow.marked, flow.comment) == (MARK, "")


def test_notes_that_are_damaged_take_nothing_away(flow: http.HTTPFlow) -> None:
    flow.marked, flow.comment = MARK, "look at this"
    note(flow, said=["look"], marked="yes", over_limit="no")
    mark(flow, FINE, 2.0)
    assert (flow.marked, flow.comment) == (MARK, "look at this")


def test_a_flow_that_goes_upstream_once_more_is_as_others_left_it(flow: http.HTTPFlow) -> None:
    flow.comment = "look at this"
    mark(flow, FLAGGED, 2.0)
    unmark(flow)
    assert (flow.marked, flow.comment) == ("", "look at this")


def test_what_is_said_again_is_said_once(flow: http.HTTPFlow) -> None:
    mark(flow, FLAGGED, 2.0)
    mark(flow, FLAGGED, 2.0)
    assert flow.comment == WHY
    mark(flow, FINE, 2.0)
    assert (flow.marked, flow.comment) == ("", "")


def test_that_a_body_was_not_kept_is_told_whether_or_not_a_flow_is_flagged(flow: http.HTTPFlow) -> None:
    note(flow, over_limit=True)
    mark(flow, FINE, 2.0)
    not_kept = "the body was longer than usage_capture_limit and was not kept"
    assert (flow.marked, flow.comment) == ("", f"usage ledger: {not_kept}")
    mark(flow, FLAGGED, 2.0)
    assert flow.comment == f"{WHY}; {not_kept}"


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


def test_what_was_said_of_a_request_does_not_stick_to_its_client_replay(
    tmp_path: Path, console: FakeConsole, start_proxy: Callable[..., Proxy], ask: Callable[..., httpx.Response]
) -> None:
    first, second = tmp_path / "first.mitm", tmp_path / "second.mitm"
    proxy = start_proxy("-w", str(first))
    ask(proxy, "without_usage")
    proxy.stop()
    console.scenarios["without_usage"] = streaming(NORMAL)
    again = start_proxy("--client-replay", str(first), "-w", str(second))
    settled_rows(again.ledger, 2)
    again.stop()
    assert [each for each, _ in saved(first)] == [MARK]
    assert saved(second) == [("", "")]


@pytest.mark.parametrize("kept", ["usage_capture_limit=1k", "usage_capture=never"])
def test_a_flow_whose_body_was_not_captured_says_what_its_row_says(
    tmp_path: Path, start_proxy: Callable[..., Proxy], ask: Callable[..., httpx.Response], kept: str
) -> None:
    """With the ledger it was metered into, replaying it changes neither mark nor comment."""
    capture, again, anew = (tmp_path / f"{name}.mitm" for name in ("capture", "again", "anew"))
    proxy = start_proxy("-w", str(capture), "--set", kept)
    for scenario in ("normal", "without_usage", "iterations"):
        ask(proxy, scenario)
    proxy.stop()
    live = saved(capture)
    assert [each for each, _ in live] == ["", MARK, ""]
    log = replay(capture, proxy.ledger, "-w", str(again))
    assert saved(again) == live
    assert "3 flows replayed: 2 complete, 1 missing; 1 flagged" in log
    assert "body_not_captured" not in log
    replay(capture, tmp_path / "new.db", "-w", str(anew))
    assert [each for each, _ in saved(anew)] == [MARK] * 3
    told = "flagged body_not_captured: the capture does not hold the body"
    remark = "; the body was longer than usage_capture_limit and was not kept" if kept.endswith("1k") else ""
    assert [each for _, each in saved(anew)] == [f"usage ledger: {told}{remark}"] * 3
    replay(anew, proxy.ledger, "-w", str(again))
    assert saved(again) == live
