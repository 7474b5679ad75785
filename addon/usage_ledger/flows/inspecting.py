"""Inspecting: everything that a captured flow tells of its usage.

Room: flows. Imports mitmproxy, the messages room and the ledger's record. Promises that what is said of a flow is what
a replay of it would write (`replay.judge`), traced event by event.
"""

import sys
from collections.abc import Callable
from typing import Any

import msgspec
from mitmproxy import http

from usage_ledger.flows import rows
from usage_ledger.flows.notes import noted
from usage_ledger.flows.replay import is_from_har, judge
from usage_ledger.ledger.record import Entry, IterationRow, Record
from usage_ledger.messages import Ending, MessageReader, Verdict, clean
from usage_ledger.messages.tracing import TracedEvent, Tracer
from usage_ledger.messages.words import Seen, in_words

_NOT_CAPTURED = ("account_id", "total_cost", "price_source", "time_to_first_token_ms", "origin", "writer")
"""Columns that a capture alone does not tell."""


class Inspection(msgspec.Struct, kw_only=True):
    """One captured flow of a metered request.

    `entry` is what a replay would hand to the ledger, None where the flow leaves no row. `request` has the columns of
    the request alone. `is_end_told`: the capture tells how the response ended (`Judged`).
    `events` are those that say something of usage, or all of them where that was asked for; `seen` counts them all,
    and is `None` where there were more than were looked at. `body_bytes` are of the body as captured, None where it was
    not; `decoded_bytes` None where it was not read.
    """

    flow_id: str
    method: str
    request: Record
    http_status: int | None
    content_type: str
    content_encoding: str
    entry: Entry | None
    ending: Ending | None = None
    is_end_told: bool = True
    verdict: Verdict | None = None
    why: str
    captured: bool = True
    body_bytes: int | None = None
    decoded_bytes: int | None = None
    is_encoded: bool = False
    seconds: float | None = None
    seen: Seen | None = None
    events: list[TracedEvent] = msgspec.field(default_factory=list)


def ids_of(http_flow: http.HTTPFlow) -> set[str]:
    """Return what a captured flow is known by: mitmproxy's id, the id of its row, the id of the request."""
    ids = {http_flow.id, rows.record_id(http_flow)}
    if http_flow.response is not None:
        ids.add(http_flow.response.headers.get("request-id", ""))
    if is_from_har(http_flow):
        judged = judge(http_flow)
        ids |= {judged.entry.record.id} if judged is not None else set()
    return ids


def inspect(
    http_flow: http.HTTPFlow,
    all_events: bool = False,
    listener: Callable[[TracedEvent, bytes], None] | None = None,
    limit: int = sys.maxsize,
) -> Inspection:
    """Inspect a captured flow; look at so many events of its body at most.

    `listener` is called with each event, and with the event's data.
    """
    seen, events, tracers = Seen(), list[TracedEvent](), list[Tracer]()

    def listen(event: TracedEvent, data: bytes) -> None:
        seen.add(event)
        if all_events or event.has_usage or event.changed or event.notes:
            events.append(event)
        if listener is not None:
            listener(event, data)

    def tracer_for(encoding: str) -> MessageReader:
        tracers.append(Tracer(encoding, listen, limit))
        return tracers[-1]

    judged = judge(http_flow, reader_for=tracer_for)
    response = http_flow.response
    headers = http.Headers() if response is None else response.headers
    found = Inspection(
        flow_id=clean(http_flow.id, 64),
        method=clean(http_flow.request.method, 32),
        request=rows.pending_record(http_flow, "", None, ""),
        http_status=None if response is None else response.status_code or None,
        content_type=clean(headers.get("content-type", ""), 80),
        content_encoding=clean(headers.get("content-encoding", ""), 40),
        entry=None,
        why="the proxy gave this answer itself, which leaves no row",
        body_bytes=None if response is None or response.raw_content is None else len(response.raw_content),
        events=events,
    )
    if tracers:
        found.decoded_bytes, found.is_encoded = tracers[-1].decoded_bytes, tracers[-1].is_encoded
        found.seen = None if tracers[-1].is_cut else seen
    if judged is None:
        if noted(http_flow).get("answered_by_proxy") is None and http_flow.request.timestamp_end is None:
            found.why = "the client aborted its upload, so that nothing went upstream, which leaves no row"
        return found
    found.entry, found.ending, found.request = judged.entry, judged.ending, judged.entry.record
    found.verdict, found.captured, found.is_end_told = judged.verdict, judged.captured, judged.is_end_told
    duration = judged.entry.record.duration_ms
    found.seconds = None if duration is None else duration / 1000
    found.why = in_words(judged.verdict, found.http_status, found.seconds, found.seen, found.is_end_told)
    return found


def fields_of(found: Inspection) -> dict[str, Any]:
    """Return an inspection as plain JSON values. `row` has the columns that a replay would write."""
    return {
        "flow": found.flow_id,
        "why": found.why,
        "ended": found.ending.name.lower() if found.ending is not None and found.is_end_told else None,
        "row": None if found.entry is None else _row_of(found.entry.record),
        "iterations": [] if found.entry is None else [_iteration_of(each) for each in found.entry.iterations],
        "method": found.method,
        "response": None
        if found.http_status is None
        else {
            "content_type": found.content_type,
            "content_encoding": found.content_encoding,
            "is_captured": found.captured and found.body_bytes is not None,
            "bytes": found.body_bytes,
            "is_encoded": found.is_encoded,
            "decoded_bytes": found.decoded_bytes,
        },
        "events_by_kind": {} if found.seen is None else dict(found.seen.kinds),
        "events": [
            {
                **msgspec.structs.asdict(event),
                "changed": {name: change for name, *change in event.changed},
                "invalid": dict(event.invalid),
            }
            for event in found.events
        ],
    }


def _row_of(record: Record) -> dict[str, Any]:
    columns = {name: value for name, value in msgspec.structs.asdict(record).items() if name not in _NOT_CAPTURED}
    for name in ("usage_raw", "metadata"):
        if columns[name] is not None:
            columns[name] = msgspec.json.decode(columns[name])
    return columns


def _iteration_of(iteration: IterationRow) -> dict[str, Any]:
    columns = msgspec.structs.asdict(iteration)
    return {name: value for name, value in columns.items() if name not in ("record_id", "total_cost")}
