"""Rows: from a flow and a verdict to what the ledger is handed.

Room: flows. Imports mitmproxy, the messages room and the ledger's record. Pure functions; both live traffic and replay
build their rows here, so that a replayed flow finds its row and says the same.
"""

import hashlib
import re
import time
from datetime import UTC, date, datetime, timedelta
from uuid import UUID

import msgspec
from mitmproxy import http

from usage_ledger.flows.bodies import EVENT_STREAM, media_type
from usage_ledger.flows.identity import folded, name_answer, name_requester, rate_limits, without_keys
from usage_ledger.ledger.columns import ITERATION_COUNTS
from usage_ledger.ledger.moments import moment
from usage_ledger.ledger.record import Entry, IterationRow, Record
from usage_ledger.messages import COUNT_NAMES, Ending, MessageReader, RequestFields, State, Verdict, clean, text_or_none

PATH_LIMIT = 512
_UUID = re.compile("[0-9a-f]{32}")
_EPOCH = datetime.fromtimestamp(0, UTC)


def is_moment(timestamp: float) -> bool:
    """Whether a Unix time (seconds) is one that can be written down."""
    try:
        moment(timestamp)
    except (ValueError, OverflowError, OSError):
        return False
    return True


def record_id(flow: http.HTTPFlow) -> str:
    """Return the id of a flow's row: its start in microseconds, then its flow id.

    Ids that begin with the time keep SQLite's index compact. A client replay keeps the flow id and starts anew, so it
    gets a row of its own; a capture that is read again starts when it started, so it finds its row.
    """
    start = int(flow.request.timestamp_start * 1_000_000)
    return f"{start:013x}-{_digits(flow)[:12]}"


def uuid_of(flow: http.HTTPFlow) -> UUID:
    """Return the id of a flow, which is a UUID; where another program has given it none, one that is made of it."""
    return UUID(hex=_digits(flow))


def _digits(flow: http.HTTPFlow) -> str:
    digits = flow.id.replace("-", "").lower()
    if _UUID.fullmatch(digits):
        return digits
    return hashlib.sha256(flow.id.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def lasting_id(flow: http.HTTPFlow, record: Record) -> str:
    """Return the id of a row whose flow has no lasting id (HAR), from what does last.

    Its start is rounded to microseconds as mitmproxy does that in a HAR, so that a capture's flow comes to the same id.
    """
    ids = (record.request_id or "", record.message_id or "")
    key = "\n".join(ids if any(ids) else (record.occurred_at, record.host, record.path))
    start = (datetime.fromtimestamp(flow.request.timestamp_start, UTC) - _EPOCH) // timedelta(microseconds=1)
    return f"{start:013x}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def pending_record(flow: http.HTTPFlow, account: str, tag: str | None, writer: str) -> Record:
    """Return the row of a request that is about to go upstream, by its headers alone.

    Its host is the one of the Host header: in transparent mode mitmproxy's own is an address, loading a capture in
    reverse mode replaces that, and a HAR does not have it.
    """
    request = flow.request
    headers = folded(request.headers)
    record = Record(
        id=record_id(flow),
        occurred_at=moment(request.timestamp_start),
        host=clean(request.pretty_host, 256),
        path=clean(without_keys(request.path.partition("?")[0]), PATH_LIMIT),
        tag=text_or_none(without_keys(tag or "")),
        writer=writer,
    )
    name_requester(record, headers, account)
    user_agent = text_or_none(without_keys(headers.get("user-agent", "")))
    if user_agent:
        record.metadata = _as_json({"user_agent": user_agent})
    return record


def bare_record(flow: http.HTTPFlow, writer: str) -> Record:
    """Return the row of a request of which nothing else can be read."""
    occurred_at = moment(flow.request.timestamp_start)
    return Record(id=record_id(flow), occurred_at=occurred_at, host="unknown", path="", writer=writer)


def add_request_fields(record: Record, fields: RequestFields) -> None:
    """Add what the request's body tells."""
    record.requested_model = fields.model
    record.model = fields.model or record.model
    record.session_id = record.session_id or fields.session_id
    record.stream = int(fields.stream)


def settled_entry(
    record: Record, response: http.Response | None, verdict: Verdict, account: str, completed_at: float
) -> Entry:
    """Fill a record with the verdict on its response and return what the ledger is handed.

    `completed_at` is a Unix time (seconds). Sizes and latencies are the caller's to add.
    """
    metadata = msgspec.json.decode(record.metadata)
    if response is not None:
        headers = folded(response.headers)
        name_answer(record, headers, account)
        record.http_status = response.status_code
        record.stream = int(media_type(headers) == EVENT_STREAM)
        limits = rate_limits(headers)
        if limits:
            metadata["rate_limits"] = limits
    describe(record, verdict)
    record.metadata = _as_json({**metadata, **verdict.metadata})
    record.completed_at = moment(completed_at)
    record.duration_ms = max(0, round((completed_at - _start(record)) * 1000))
    return Entry(record, iteration_rows(record.id, verdict))


def add_flag(record: Record, name: str) -> None:
    """Add a flag to a record's metadata."""
    record.metadata = _as_json({**msgspec.json.decode(record.metadata), name: True})


def unjudged_entry(record: Record, flow: http.HTTPFlow, ending: Ending) -> Entry:
    """Return what the ledger is handed for a request on which a rule of ours failed: flagged, and nothing guessed."""
    reader = MessageReader()
    reader.give_up()
    record.http_status = None if flow.response is None else flow.response.status_code
    verdict = reader.verdict(ending, record.http_status)
    describe(record, verdict)
    record.metadata = _as_json(verdict.metadata)
    record.completed_at = moment(time.time())
    return Entry(record)


def progress_record(record: Record, response: http.Response, verdict: Verdict, account: str) -> Record:
    """Fill a record with what an open stream has told so far; it stays pending."""
    headers = folded(response.headers)
    name_answer(record, headers, account)
    record.http_status = response.status_code
    record.stream = int(media_type(headers) == EVENT_STREAM)
    describe(record, verdict)
    record.usage_state, record.requires_manual_review, record.review_reason = State.PENDING.value, 0, None
    record.total_cost = None  # of a stream that is open nothing is settled, not even that it costs nothing
    return record


def day(flow: http.HTTPFlow) -> date:
    """Return the UTC day on which a request began."""
    return datetime.fromtimestamp(flow.request.timestamp_start, UTC).date()


def describe(record: Record, verdict: Verdict) -> None:
    """Write a verdict into a record's columns (its metadata apart)."""
    record.model = verdict.model or record.model
    record.message_id = verdict.message_id
    record.stop_reason = verdict.stop_reason
    record.service_tier = verdict.service_tier
    record.inference_geo = verdict.inference_geo
    record.speed = verdict.speed
    for name in COUNT_NAMES:
        setattr(record, name, getattr(verdict.counts, name))
    record.total_tokens = verdict.counts.total_tokens
    record.usage_state = verdict.state.value
    record.requires_manual_review = int(verdict.flagged)
    record.review_reason = verdict.reason.value if verdict.reason else None
    record.total_cost = "0" if verdict.state is State.NONE else None
    record.usage_raw = verdict.usage_raw


def iteration_rows(row_id: str, verdict: Verdict) -> list[IterationRow]:
    """Return the rows of `usage_iterations` for a verdict."""
    return [
        IterationRow(
            record_id=row_id,
            position=position,
            type=iteration.type,
            model=iteration.model,
            billed=None if iteration.billed is None else int(iteration.billed),
            **{name: getattr(iteration.counts, name) for name in ITERATION_COUNTS},
        )
        for position, iteration in enumerate(verdict.iterations)
    ]


def _start(record: Record) -> float:
    return datetime.fromisoformat(record.occurred_at).timestamp()


def _as_json(value: object) -> str:
    return msgspec.json.encode(value).decode()
