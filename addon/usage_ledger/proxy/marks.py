"""Marks: what a person sees on a flow in mitmproxy, mitmweb and saved captures.

Room: proxy. Imports mitmproxy and the messages room. Promises that marks and comments of others stay as they are.
"""

from mitmproxy import http

from usage_ledger.messages import Verdict
from usage_ledger.messages.words import in_words

MARK = ":warning:"

_OURS = "usage ledger: "
_FLAGGED = f"{_OURS}flagged "

FLAGGED_FILTER = f'~comment "{_FLAGGED}"'
"""The filter expression that finds flagged flows."""


def mark(flow: http.HTTPFlow, verdict: Verdict, seconds: float | None, remark: str = "") -> None:
    """Mark a flow whose row is flagged, and say why in its comment; take back what was said of it before.

    `seconds`: from the request's start to its end. `remark` is for the comment in any case.
    """
    others, said_before, _ = flow.comment.partition(_OURS)
    status = None if flow.response is None else flow.response.status_code
    said = [f"flagged {verdict.reason}: {in_words(verdict, status, seconds)}"] if verdict.reason else []
    said += [remark] if remark else []
    flow.comment = f"{others.rstrip()} {_OURS}{'; '.join(said)}".lstrip() if said else others.rstrip()
    if verdict.reason:
        flow.marked = flow.marked or MARK
    elif said_before and flow.marked == MARK:
        flow.marked = ""
