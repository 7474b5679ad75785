"""Metered: which flows belong in the books.

Room: flows. Imports mitmproxy. A flow is chosen by its request alone, so that a capture is chosen from as the live
traffic was.
"""

from copy import copy

from mitmproxy import flow, flowfilter, http

from usage_ledger.flows.notes import is_noted

DEFAULT_FILTER = '~m ^POST$ & ~u "^[^?]*/v1/messages([?]|$)"'
"""The Messages API; not its token counts, nor its batches. (An unquoted bar would be the filter's OR.)"""

type RequestFilter = flowfilter.TFilter
"""Says of a flow whether it is metered, by its request alone."""

_NEED_A_RESPONSE = (
    flowfilter.FAsset,
    flowfilter.FBodResponse,
    flowfilter.FCode,
    flowfilter.FContentTypeResponse,
    flowfilter.FErr,
    flowfilter.FHeadResponse,
    flowfilter.FResp,
    flowfilter.FWebSocket,
)

_default = flowfilter.parse(DEFAULT_FILTER)


def parsed_filter(expression: str) -> RequestFilter:
    """Parse a filter expression; raise ValueError where it is none, or asks about more than the request."""
    parsed = flowfilter.parse(expression)
    if _needs_response(parsed):
        raise ValueError(f"{expression!r} asks about the response, but a flow is chosen by its request")
    return parsed


def _needs_response(part: object) -> bool:
    if isinstance(part, flowfilter.FAnd | flowfilter.FOr):
        return any(_needs_response(each) for each in part.lst)
    if isinstance(part, flowfilter.FNot):
        return _needs_response(part.itm)
    return isinstance(part, _NEED_A_RESPONSE)


def is_chosen(flow_filter: RequestFilter, http_flow: http.HTTPFlow) -> bool:
    """Ask a filter about the request alone, whatever is known of the answer by now."""
    asked = http_flow
    if http_flow.response is not None or http_flow.error is not None:
        asked = copy(http_flow)
        asked.response = asked.error = asked.websocket = None
    return bool(flow_filter(asked))


def metered(saved: flow.Flow, flow_filter: RequestFilter | None = None) -> http.HTTPFlow | None:
    """Return a saved flow if the books count it: by a filter (the default one), or because a proxy has noted it."""
    if isinstance(saved, http.HTTPFlow) and (is_noted(saved) or is_chosen(flow_filter or _default, saved)):
        return saved
    return None
