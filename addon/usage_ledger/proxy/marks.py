"""Marks: what a person sees on a flow in mitmproxy, mitmweb and saved captures.

Room: proxy. Imports mitmproxy, the flows and the messages room. Promises that marks and comments of others stay as they
are: what was said and marked here is noted on the flow, and nothing else is ever replaced.
"""

from mitmproxy import http

from usage_ledger.flows.notes import note, noted
from usage_ledger.messages import Verdict
from usage_ledger.messages.words import in_words

MARK = ":warning:"

_FLAGGED = "usage ledger: flagged "
_OVER_LIMIT = "the body was longer than usage_capture_limit and was not kept"

FLAGGED_FILTER = f'~comment "{_FLAGGED}"'
"""The filter expression that finds flagged flows."""


def mark(flow: http.HTTPFlow, verdict: Verdict, seconds: float | None, is_end_told: bool = True) -> None:
    """Mark a flow whose row is flagged, and say why in its comment, in place of what was said of it before.

    `seconds`: from the request's start to its end. `is_end_told`: it is known how that was. Where the flow's notes say
    that its body was longer than is kept (`over_limit`), the comment tells that in any case.
    """
    status = None if flow.response is None else flow.response.status_code
    over_limit = noted(flow).get("over_limit") is True
    if verdict.reason:
        why = in_words(verdict, status, seconds, is_end_told=is_end_told)
        _say(flow, f"{_FLAGGED}{verdict.reason}: {why}{f'; {_OVER_LIMIT}' if over_limit else ''}")
        if not flow.marked:
            flow.marked = MARK
            note(flow, marked=True)
    else:
        _say(flow, f"usage ledger: {_OVER_LIMIT}" if over_limit else "")
        _take_mark_off(flow)


def unmark(flow: http.HTTPFlow) -> None:
    """Take back what was said of a flow, and its mark: it goes upstream once more."""
    _say(flow, "")
    _take_mark_off(flow)


def _say(flow: http.HTTPFlow, sentence: str) -> None:
    """Put a sentence into the comment where the one before stands, if it does; else behind all that is there."""
    former = noted(flow).get("said")
    before, after = flow.comment, ""
    if isinstance(former, str) and former and former in flow.comment:
        before, _, after = flow.comment.rpartition(former)
    said = f" {sentence}" if sentence and before and not before[-1].isspace() else sentence
    flow.comment = before + said + after
    if said or former:
        note(flow, said=said)


def _take_mark_off(flow: http.HTTPFlow) -> None:
    if noted(flow).get("marked") is True:
        note(flow, marked=False)
        if flow.marked == MARK:
            flow.marked = ""
