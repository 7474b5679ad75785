"""Metered: which flows belong in the books.

Room: flows. Imports mitmproxy. A flow is chosen by its request alone, so that a capture is chosen from as the live
traffic was.
"""

from copy import copy

from mitmproxy import flow, flowfilter, http

from usage_ledger.flows.notes import is_noted

DEFAULT_FILTER = '~m ^POST$ & ~u "^[^?]*/v1/messages([?]|$)"'
"""The Messages API; not its token counts, nor its batches. (An unquoted bar would be the filter's OR.)"""

_default = flowfilter.parse(DEFAULT_FILTER)


def is_chosen(flow_filter: flowfilter.TFilter, http_flow: http.HTTPFlow) -> bool:
    """Ask a filter about the request alone, whatever is known of the answer by now."""
    asked = http_flow
    if http_flow.response is not None or http_flow.error is not None:
        asked = copy(http_flow)
        asked.response = asked.error = asked.websocket = None
    return bool(flow_filter(asked))


def metered(saved: flow.Flow) -> http.HTTPFlow | None:
    """Return a saved flow if the books count it: by the filter's default, or because the live proxy has noted it."""
    if isinstance(saved, http.HTTPFlow) and (is_noted(saved) or is_chosen(_default, saved)):
        return saved
    return None
