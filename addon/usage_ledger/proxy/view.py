"""The view: how mitmproxy and mitmweb show a Claude response – usage and verdict first, then its text block by block.

Room: proxy. Imports mitmproxy, the flows and the messages room. It is chosen by itself for the event streams of metered
requests, and can be chosen for any other body.
"""

from collections.abc import Iterator

from mitmproxy import contentviews, http

from usage_ledger.flows.bodies import is_event_stream
from usage_ledger.flows.inspecting import inspect
from usage_ledger.flows.metered import metered
from usage_ledger.flows.telling import lines_of
from usage_ledger.messages import clean
from usage_ledger.messages.assembling import Assembler

EVENTS_LIMIT = 20_000
"""Events of a response that are looked at, so that the program stays at hand while it shows one (0.3 s)."""


class UsageView(contentviews.Contentview):
    """Shows the response of a metered request."""

    name = "Claude usage"

    def prettify(self, data: bytes, metadata: contentviews.Metadata) -> str:  # noqa: ARG002 - mitmproxy's signature
        flow = _flow_of_response(metadata)
        if flow is None:
            raise ValueError("this is not the response of a request")
        assembler = Assembler()
        found = inspect(flow, listener=assembler.take, limit=EVENTS_LIMIT)
        is_cut = assembler.is_cut or (found.seen is None and found.decoded_bytes is not None)
        end = ["", "  there is more text"] if is_cut else []
        return "\n".join([*lines_of(found), *_blocks(assembler), *end]) + "\n"

    def render_priority(self, data: bytes, metadata: contentviews.Metadata) -> float:  # noqa: ARG002 - as above
        flow = _flow_of_response(metadata)
        if flow is None or flow.response is None or metered(flow) is None:
            return -1
        return 2 if is_event_stream(flow.response) else -1


def _flow_of_response(metadata: contentviews.Metadata) -> http.HTTPFlow | None:
    """Return the flow whose response is looked at; None where something else is."""
    flow, message = metadata.flow, metadata.http_message
    return flow if isinstance(flow, http.HTTPFlow) and message is not None and message is flow.response else None


def _blocks(assembler: Assembler) -> Iterator[str]:
    for number, block in enumerate(assembler.blocks, 1):
        yield ""
        yield f"  block {number}: {block.type}{f' {block.name}' if block.name else ''}"
        lines = block.text.expandtabs(4).splitlines()
        yield from (f"    {clean(line, len(line))}" for line in lines)
