"""Words: why a row is what it is, in a sentence for a person.

Room: messages. Imports the standard library and its neighbours in this room. What is said follows from the verdict, and
where somebody has traced the body, from what its events were.
"""

from collections import Counter
from collections.abc import Iterable

import msgspec

from usage_ledger.messages.tracing import JSON_ANSWER, NOT_VALID, TracedEvent
from usage_ledger.messages.verdict import Reason, State, Verdict


class Seen(msgspec.Struct):
    """What a traced body held: events by kind, those of them that carried usage, and where usage was not valid."""

    kinds: Counter[str] = msgspec.field(default_factory=Counter)
    with_usage: Counter[str] = msgspec.field(default_factory=Counter)
    invalid_at: int | None = None

    def add(self, event: TracedEvent) -> None:
        self.kinds[event.kind] += 1
        if event.usage not in (None, {}):
            self.with_usage[event.kind] += 1
        if self.invalid_at is None and NOT_VALID in event.notes:
            self.invalid_at = event.offset

    @property
    def events(self) -> int:
        return self.kinds.total() - self.kinds[JSON_ANSWER]


def in_words(verdict: Verdict, status: int | None, seconds: float | None, seen: Seen | None = None) -> str:
    """Say why a verdict is what it is. `seconds` from the request's start to its end; None where nobody knows."""
    if verdict.reason is None:
        return _unflagged(verdict, status)
    return _join(": ", [_lacking(verdict, seen), _join(", ", [_cause(verdict, seconds, seen), _count(seen)])])


def _unflagged(verdict: Verdict, status: int | None) -> str:
    if verdict.state is State.COMPLETE:
        return "the final usage came"
    if verdict.metadata.get("_not_sent"):
        return "the request never went upstream, so nothing is billed"
    if status is not None and status >= 400:
        return f"HTTP {status}: failed requests are not billed"
    return "upstream refused before any output, in a category that is not billed"


def _lacking(verdict: Verdict, seen: Seen | None) -> str:
    """Say what did not come that would have told the final usage."""
    if verdict.state not in (State.MISSING, State.PARTIAL) or verdict.reason in (
        Reason.NO_RESPONSE,
        Reason.BODY_NOT_CAPTURED,
        Reason.MALFORMED_USAGE,
    ):
        return ""
    if seen is None:
        return "only a part of the usage came" if verdict.state is State.PARTIAL else "no usage came"
    if seen.kinds[JSON_ANSWER]:
        return "the JSON answer carries no usage"
    if not seen.events:
        return "no event came"
    if not seen.kinds["message_delta"]:
        return "`message_delta` never came"
    if not seen.with_usage["message_delta"]:
        return "`message_delta` carried no usage"
    return "`message_delta` came without a stop_reason, and `message_stop` never"


def _cause(verdict: Verdict, seconds: float | None, seen: Seen | None) -> str:
    after = "" if seconds is None else f" after {span(seconds)}"
    place = "" if seen is None or seen.invalid_at is None else f" in the event at byte {seen.invalid_at:,}"
    error = verdict.metadata.get("stream_error")
    said = {
        Reason.NO_USAGE_DATA: f"the response ended normally{after}",
        Reason.CLIENT_DISCONNECTED: f"the client left{after}",
        Reason.UPSTREAM_CLOSED: f"upstream broke off{after}",
        Reason.STREAM_ERROR: f"upstream sent an error event ({error})",
        Reason.NO_RESPONSE: f"the request was sent, and no response had come{after}",
        Reason.PROXY_STOPPED: f"the proxy was stopped{after}",
        Reason.ZERO_USAGE: "the final usage came, and every count in it is 0",
        Reason.UNREADABLE_BODY: "the body could not be decoded to its end",
        Reason.MALFORMED_USAGE: f"usage that is not valid came{place}",
        Reason.MULTIPLE_MESSAGES: "several messages came in one body, whose usage is added up",
        Reason.DECLINED_ATTEMPT: "an attempt was declined without output; whether it is billed is not told",
        Reason.BODY_NOT_CAPTURED: "the capture does not hold the body",
    }
    assert verdict.reason is not None
    return said[verdict.reason]


def _count(seen: Seen | None) -> str:
    if seen is None or not seen.events:
        return ""
    return "1 event" if seen.events == 1 else f"{seen.events:,} events"


def span(seconds: float) -> str:
    """Write a span of time for a person."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:,.1f} s"


def _join(between: str, parts: Iterable[str]) -> str:
    return between.join(part for part in parts if part)
