"""Notes: what the live proxy knew of a flow and a capture would not tell.

Room: flows. Imports mitmproxy. Notes are plain data in `flow.metadata`, which mitmproxy saves with the flow (`-w`), so
that a replay judges as the live proxy did. Promises that whatever stands there, also of another program, reads as notes
or as none.
"""

from typing import Any

from mitmproxy import http

_KEY = "usage_ledger"

REFUSED_HEADER = "x-usage-ledger"
"""Says `blocked` in the answer of `usage_on_ledger_error=block`, so that a replay of a HAR knows whose it was."""


def note(flow: http.HTTPFlow, **facts: Any) -> None:
    """Add facts (JSON values) to the notes of a flow."""
    flow.metadata[_KEY] = {**noted(flow), **facts}


def noted(flow: http.HTTPFlow) -> dict[str, Any]:
    """Return the notes of a flow; none where it has passed no proxy with this addon."""
    facts = flow.metadata.get(_KEY)
    return facts if isinstance(facts, dict) else {}


def is_noted(flow: http.HTTPFlow) -> bool:
    """Whether a flow has notes, be they empty."""
    return _KEY in flow.metadata


def forget(flow: http.HTTPFlow) -> None:
    """Drop the notes of a flow: it goes upstream once more."""
    flow.metadata.pop(_KEY, None)


_NOT_CONNECTED = "usage_ledger_not_connected"  # apart from the notes, which say that a proxy has metered the flow


def note_not_connected(flow: http.HTTPFlow) -> None:
    """Note of a HAR's flow that it names no server, and is of a HAR that names one wherever there was a connection."""
    flow.metadata[_NOT_CONNECTED] = True


def is_not_connected(flow: http.HTTPFlow) -> bool:
    """Whether a HAR's flow is known to have had no connection to upstream."""
    return flow.metadata.get(_NOT_CONNECTED) is True
