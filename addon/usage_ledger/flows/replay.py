"""Replay: rows from flows that were captured before (`mitmdump -nr`), which are billed no more.

Room: flows. Imports mitmproxy, the messages room, the ledger's record and what it finds. Promises that a replayed flow
finds the row it had when it was live, and says of its response what the live proxy said, as far as the capture tells.
"""

from collections.abc import Callable
from copy import copy
from typing import NamedTuple

import msgspec
from mitmproxy import flow, http

from usage_ledger.flows import rows
from usage_ledger.flows.notes import REFUSED_HEADER, is_not_connected, noted
from usage_ledger.ledger.columns import COUNT_LIMIT
from usage_ledger.ledger.finding import Row
from usage_ledger.ledger.record import Entry
from usage_ledger.messages import Ending, MessageReader, Reason, State, Verdict, body_not_captured, read_request

_ANY_ENCODING = "br"
"""Stands for an encoding that is not told: what is neither text nor known by its beginning is tried as each."""


class Judged(NamedTuple):
    """A captured flow: what the ledger is handed for it, and why.

    `captured`: the capture holds what it takes. `is_end_told`: it tells how the response ended; a HAR tells no more
    than what came.
    """

    entry: Entry
    ending: Ending
    verdict: Verdict
    captured: bool
    is_end_told: bool


def judge(
    http_flow: http.HTTPFlow,
    account: str = "",
    tag_header: str = "",
    writer: str = "",
    reader_for: Callable[[str], MessageReader] = MessageReader,
) -> Judged | None:
    """Judge a captured flow; None where the flow left no row when it was live.

    `account` and `tag_header` are the options of the same names, `writer` is who writes the row, where it is written.
    `reader_for` makes the reader of its body, by the body's encoding.
    """
    facts = noted(http_flow)
    from_har = is_from_har(http_flow)
    ending = _ending(http_flow, facts, from_har)
    if ending is None:
        return None
    request, response = http_flow.request, _response(http_flow)
    noted_tag = facts.get("tag")
    tag = noted_tag if isinstance(noted_tag, str) and noted_tag else None
    if tag is None and tag_header:
        tag = request.headers.get(tag_header)
    record = rows.pending_record(http_flow, account, tag, writer)
    if request.raw_content:
        fields = read_request(request.raw_content, request.headers.get("content-encoding", ""))
        rows.add_request_fields(record, fields)
    verdict, captured = _verdict(http_flow, ending, facts.get("captured"), reader_for)
    entry = rows.settled_entry(record, response, verdict, account, _completed_at(http_flow))
    record.origin = "replay"
    if response is not None and response.raw_content is not None:
        size = facts.get("response_bytes")
        is_size = type(size) is int and 0 <= size <= COUNT_LIMIT
        record.response_bytes = size if is_size else len(response.raw_content)
    entry.only_new = not captured or not has_ended(http_flow)
    entry.redacted = facts.get("redacted") is True
    if entry.redacted:
        rows.add_flag(record, "_redacted")
    if from_har:
        entry.identify = True
        record.id = rows.lasting_id(http_flow, record)
        for iteration in entry.iterations:
            iteration.record_id = record.id
    else:
        entry.alias = rows.lasting_id(http_flow, record)
    return Judged(entry, ending, verdict, captured, is_end_told=not from_har or ending is not Ending.FINISHED)


def as_stored(judged: Judged, row: Row) -> Judged:
    """Return what the row of a flow says, of which the capture holds no body, or no end."""
    columns = row.columns
    try:
        reason = Reason(columns["review_reason"]) if columns["requires_manual_review"] else None
        verdict = Verdict(State(columns["usage_state"]), reason, metadata=row.metadata)
    except ValueError:  # a row of a version to come, or of another program
        return judged
    record = copy(judged.entry.record)
    record.id = row.id
    for name, value in columns.items():
        setattr(record, name, value)
    return judged._replace(entry=msgspec.structs.replace(judged.entry, record=record), verdict=verdict)


def _verdict(
    http_flow: http.HTTPFlow, ending: Ending, captured: object, reader_for: Callable[[str], MessageReader]
) -> tuple[Verdict, bool]:
    """Return the verdict on a captured flow, and whether the capture holds what a verdict needs.

    `captured` is what the live addon noted of that, if it was there.
    """
    response = _response(http_flow)
    if response is None or response.status_code >= 400:
        status = None if response is None else response.status_code
        return MessageReader().verdict(ending, status, rows.day(http_flow)), True
    from_har = is_from_har(http_flow)
    if not isinstance(captured, bool):
        # `-w` without this addon saves streamed flows without their body: whatever went by is not known here. In a HAR
        # a body that is not there and one that is empty look the same.
        is_empty = response.raw_content == b"" and ending is Ending.FINISHED and not from_har
        captured = bool(response.raw_content) or is_empty
    if not captured:
        return body_not_captured(), False
    reader = reader_for(encoding_of(response, from_har))
    reader.feed(response.raw_content or b"")
    reader.finish(clean=ending is Ending.FINISHED)
    return reader.verdict(ending, response.status_code, rows.day(http_flow)), True


def encoding_of(response: http.Response, from_har: bool) -> str:
    """Return the encoding of a captured body. Reading a HAR drops the header also where it could not be decoded."""
    return response.headers.get("content-encoding", "") or (_ANY_ENCODING if from_har else "")


def _response(http_flow: http.HTTPFlow) -> http.Response | None:
    """Return a flow's response. A HAR of a request without one has a response of status 0 instead."""
    response = http_flow.response
    return None if response is None or response.status_code == 0 else response


def _ending(http_flow: http.HTTPFlow, facts: dict[str, object], from_har: bool) -> Ending | None:
    """Tell how a captured flow ended: by what the live addon noted, else by what mitmproxy saved."""
    request, response, error = http_flow.request, _response(http_flow), http_flow.error
    if facts.get("answered_by_proxy") or http_flow.is_replay == "response":
        return None
    if response is not None and response.headers.get(REFUSED_HEADER) == "blocked":
        return None
    told = facts.get("ending")
    if isinstance(told, str) and told in Ending.__members__:
        return Ending[told]
    if request.timestamp_end is None and error is not None:
        return None  # the client aborted its upload: nothing went upstream
    if from_har and is_not_connected(http_flow):
        return Ending.NOT_SENT if response is None else None
    server = http_flow.server_conn
    connected = server.timestamp_tcp_setup is not None or server.timestamp_start is not None
    if response is None:
        if from_har:
            return Ending.NO_RESPONSE
        if not connected or (error is not None and error.msg == flow.Error.KILLED_MESSAGE):
            return Ending.NOT_SENT if error is not None else Ending.NO_RESPONSE
        return Ending.NO_RESPONSE
    if not connected and not from_har:
        return None  # an answer without a connection to upstream is the proxy's own
    if error is not None:
        return Ending.CLIENT_DISCONNECTED if client_left(error.msg) else Ending.UPSTREAM_CLOSED
    return Ending.FINISHED


def has_ended(http_flow: http.HTTPFlow) -> bool:
    """Whether a capture tells that the exchange is over. What was saved in flight may have come to any end since."""
    response = _response(http_flow)
    is_over = response is not None and response.timestamp_end is not None
    return is_over or isinstance(noted(http_flow).get("ending"), str) or http_flow.error is not None


def client_left(message: str) -> bool:
    """Whether an error text tells that the client left; where it is ambiguous, it does not."""
    return "client disconnect" in message.lower()


def is_from_har(http_flow: http.HTTPFlow) -> bool:
    """Whether mitmproxy made the flow from a HAR entry: it then has no client port and never a server connection."""
    return http_flow.client_conn.peername == ("127.0.0.1", 0) and http_flow.server_conn.timestamp_start is None


def _completed_at(http_flow: http.HTTPFlow) -> float:
    """Return when a captured flow ended (Unix time, seconds): the last that is told of it and can be."""
    error, response, request = http_flow.error, http_flow.response, http_flow.request
    told = [None if error is None else error.timestamp]
    told += [] if response is None else [response.timestamp_end, response.timestamp_start]
    told += [request.timestamp_end, request.timestamp_start]
    return next((each for each in told if each and rows.is_moment(each)), request.timestamp_start)
