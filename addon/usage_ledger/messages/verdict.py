"""The verdict: what one response amounts to in the books.

Room: messages. Imports the standard library, `msgspec` and its neighbours in this room. `judge` is a pure function of
what the events said and how the response ended; it implements the table of states and reasons in the README.
"""

import enum
from collections.abc import Sequence
from datetime import date
from typing import Any

import msgspec

from usage_ledger.messages.message import Message
from usage_ledger.messages.rules import refusal_is_billed
from usage_ledger.messages.text import clean
from usage_ledger.messages.usage import PRICED_BY, Counts, Iteration, billed_beside_refusal, billed_by, says_anything

RAW_LIMIT = 256 * 1024
"""Bytes of `usage_raw` kept; recorded usage objects have a few hundred."""


class State(enum.StrEnum):
    """How much of the truth a row holds."""

    PENDING = "pending"
    COMPLETE = "complete"
    PARTIAL = "partial"
    MISSING = "missing"
    NONE = "none"


class Reason(enum.StrEnum):
    """Why a row wants a person to look at it."""

    NO_USAGE_DATA = "no_usage_data"
    CLIENT_DISCONNECTED = "client_disconnected"
    UPSTREAM_CLOSED = "upstream_closed"
    STREAM_ERROR = "stream_error"
    NO_RESPONSE = "no_response"
    PROXY_STOPPED = "proxy_stopped"
    ZERO_USAGE = "zero_usage"
    UNREADABLE_BODY = "unreadable_body"
    MALFORMED_USAGE = "malformed_usage"
    MULTIPLE_MESSAGES = "multiple_messages"
    DECLINED_ATTEMPT = "declined_attempt"
    BODY_NOT_CAPTURED = "body_not_captured"


class Ending(enum.Enum):
    """How a request ended, as the proxy saw it; the value is the reason it gives where the usage is not final."""

    FINISHED = Reason.NO_USAGE_DATA
    CLIENT_DISCONNECTED = Reason.CLIENT_DISCONNECTED
    UPSTREAM_CLOSED = Reason.UPSTREAM_CLOSED
    PROXY_STOPPED = Reason.PROXY_STOPPED
    NO_RESPONSE = Reason.NO_RESPONSE
    NOT_SENT = None


class Evidence(msgspec.Struct):
    """What reading a body yielded. `output_begun`: a content block delta came, or JSON `content` was not empty."""

    messages: Sequence[Message] = ()
    output_begun: bool = False
    stream_error: str | None = None
    malformed: bool = False
    unreadable: bool = False
    too_many_messages: bool = False


class Verdict(msgspec.Struct):
    """What the ledger records of one response. `usage_raw` is JSON text; `metadata` holds plain JSON values."""

    state: State
    reason: Reason | None = None
    counts: Counts = msgspec.field(default_factory=Counts)
    iterations: list[Iteration] = msgspec.field(default_factory=list)
    message_id: str | None = None
    model: str | None = None
    stop_reason: str | None = None
    service_tier: str | None = None
    inference_geo: str | None = None
    speed: str | None = None
    usage_raw: str | None = None
    metadata: dict[str, Any] = msgspec.field(default_factory=dict)

    @property
    def flagged(self) -> bool:
        return self.reason is not None


def judge(evidence: Evidence, ending: Ending, status: int | None, day: date | None = None) -> Verdict:
    """Judge one response by what it said (`evidence`), how it ended and its HTTP status (None: no response).

    `day` is the UTC day of the request; rules that change with time follow it.
    """
    verdict = _described(evidence)
    if ending is Ending.NOT_SENT:
        verdict.state = State.NONE
        verdict.metadata["_not_sent"] = True
    elif status is not None and status >= 400:
        verdict.state = State.NONE  # "failed requests are not billed" (API docs, errors)
        verdict.counts, verdict.iterations = Counts(), []
    elif _is_unbilled_refusal(evidence, day):
        _settle_refusal(verdict)
    else:
        _settle(verdict, evidence, ending)
    return _flagged(verdict)


def body_not_captured() -> Verdict:
    """The verdict on a replayed flow whose body the capture does not hold."""
    return _flagged(Verdict(state=State.MISSING, reason=Reason.BODY_NOT_CAPTURED))


def _described(evidence: Evidence) -> Verdict:
    """Fill in everything upstream said, before any judgement."""
    verdict = Verdict(state=State.MISSING)
    raw: list[dict[str, Any]] = []
    for message in evidence.messages:
        verdict.message_id = verdict.message_id or message.id
        verdict.model = verdict.model or message.model
        verdict.stop_reason = message.stop_reason or verdict.stop_reason
        if message.category:
            verdict.metadata["refusal_category"] = message.category
        if message.usage is None:
            continue
        raw.append(message.usage)
        counts, iterations = billed_by(message.usage)
        verdict.counts.add(counts)
        verdict.iterations += iterations
        for name in PRICED_BY:
            setattr(verdict, name, _said(message.usage.get(name)) or getattr(verdict, name))
    if len(evidence.messages) > 1:
        differ = [name for name, said in _said_apart(evidence.messages).items() if len(said) > 1]
        if differ:
            verdict.metadata["messages_differ"] = differ
    if raw:
        verdict.usage_raw = _as_json(raw[0] if len(raw) == 1 else raw)
    for iteration in verdict.iterations:
        if iteration.type == "fallback_message" and iteration.model:
            verdict.metadata["fallback_model"] = iteration.model
    if evidence.stream_error:
        verdict.metadata["stream_error"] = evidence.stream_error
    return verdict


def _said(value: object) -> str | None:
    """Return what upstream said of a tier, a speed or a place; where that is no text, it is that as JSON."""
    if value is None or value == "":
        return None
    return clean(value if isinstance(value, str) else _as_json(value) or "?", 64)


def _said_apart(messages: Sequence[Message]) -> dict[str, set[str | None]]:
    """What the messages of one body said of what their tokens cost."""
    return {
        "model": {message.model for message in messages if message.model},
        **{name: {_said((message.usage or {}).get(name)) for message in messages} for name in PRICED_BY},
    }


def _settle(verdict: Verdict, evidence: Evidence, ending: Ending) -> None:
    """Decide state and reason of a response that may be billed; the order of the reasons is the contract's."""
    messages = evidence.messages
    final = bool(messages) and all(message.final for message in messages) and not evidence.too_many_messages
    malformed = evidence.malformed or any(message.malformed for message in messages)
    if final and not malformed:
        verdict.state = State.COMPLETE
        if len(messages) > 1:
            verdict.reason = Reason.MULTIPLE_MESSAGES
        elif any(iteration.billed is None for iteration in verdict.iterations):
            verdict.reason = Reason.DECLINED_ATTEMPT
        elif not verdict.counts.any() and not any(iteration.counts.any() for iteration in verdict.iterations):
            verdict.reason = Reason.ZERO_USAGE
        if verdict.stop_reason is None:
            verdict.metadata["_no_stop_reason"] = True  # tells it from a partial row that was called complete
        return
    told = any(message.usage is not None and says_anything(message.usage) for message in messages)
    verdict.state = State.PARTIAL if told else State.MISSING
    if malformed:
        verdict.reason = Reason.MALFORMED_USAGE
    elif evidence.stream_error:
        verdict.reason = Reason.STREAM_ERROR
    elif ending is not Ending.FINISHED:
        verdict.reason = ending.value
    elif evidence.unreadable:
        verdict.reason = Reason.UNREADABLE_BODY
    elif len(messages) > 1:
        verdict.reason = Reason.MULTIPLE_MESSAGES
    else:
        verdict.reason = Reason.NO_USAGE_DATA


def _is_unbilled_refusal(evidence: Evidence, day: date | None) -> bool:
    return (
        len(evidence.messages) == 1
        and not evidence.malformed  # an event that cannot be read may have been output
        and evidence.messages[0].stop_reason == "refusal"
        and not evidence.output_begun
        and not refusal_is_billed(evidence.messages[0].category, day)
    )


def _settle_refusal(verdict: Verdict) -> None:
    """Nothing is billed for the refused attempt; what came beside it (an advisor, a compaction) is."""
    verdict.counts = billed_beside_refusal(verdict.iterations)
    if any(iteration.billed is None for iteration in verdict.iterations):
        verdict.state, verdict.reason = State.COMPLETE, Reason.DECLINED_ATTEMPT
    else:
        verdict.state = State.COMPLETE if verdict.counts.any() else State.NONE


def _flagged(verdict: Verdict) -> Verdict:
    """Put the flags into the metadata, in the names the relay used."""
    metadata = verdict.metadata
    if verdict.state is State.MISSING:
        metadata["_no_usage_data"] = True
    elif verdict.state is State.PARTIAL:
        metadata["_partial_usage"] = True
    if verdict.counts.cache_split_unknown:
        metadata["_cache_split_unknown"] = True
    if verdict.flagged:
        metadata["_requires_manual_review"] = True
    return verdict


def _as_json(value: object) -> str | None:
    try:
        text = msgspec.json.encode(value)
    except (msgspec.MsgspecError, ValueError, RecursionError, OverflowError):
        return None
    return text.decode() if len(text) <= RAW_LIMIT else None
