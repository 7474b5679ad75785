"""Words: why a row is what it is, in a sentence for a person.

Room: messages. Imports the standard library, `msgspec` and its neighbours in this room. What is said follows from the
verdict, and where somebody has traced the body, from what its events were.
"""

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

import msgspec

from usage_ledger.messages.text import clean
from usage_ledger.messages.tracing import COMMENT, FINAL, JSON_ANSWER, NOT_VALID, TracedEvent
from usage_ledger.messages.verdict import Reason, State, Verdict


class Seen(msgspec.Struct):
    """What a traced body held: events by kind, and by the message that they speak of; where usage was not valid first.

    `with_usage` are the messages' events that carried usage, `final` the messages whose usage became final.
    """

    kinds: Counter[str] = msgspec.field(default_factory=Counter)
    by_message: dict[int, Counter[str]] = msgspec.field(default_factory=dict)
    with_usage: dict[int, Counter[str]] = msgspec.field(default_factory=dict)
    final: set[int] = msgspec.field(default_factory=set)
    invalid: TracedEvent | None = None

    def add(self, event: TracedEvent) -> None:
        self.kinds[event.kind] += 1
        self.by_message.setdefault(event.message, Counter())[event.kind] += 1
        if event.usage not in (None, {}):
            self.with_usage.setdefault(event.message, Counter())[event.kind] += 1
        if FINAL in event.notes:
            self.final.add(event.message)
        if self.invalid is None and (event.invalid or NOT_VALID in event.notes):
            self.invalid = event

    @property
    def events(self) -> int:
        return self.kinds.total() - self.kinds[JSON_ANSWER] - self.kinds[COMMENT]


def in_words(
    verdict: Verdict, status: int | None, seconds: float | None, seen: Seen | None = None, is_end_told: bool = True
) -> str:
    """Say why a verdict is what it is. `seconds` from the request's start to its end; None where nobody knows.

    `is_end_told`: how the response ended is known, and not only that no more of it is there.
    """
    if verdict.reason is None:
        return _unflagged(verdict, status)
    cause = _cause(verdict, seconds, seen, is_end_told)
    count = "" if verdict.reason is Reason.MALFORMED_USAGE else _count(seen)
    return _join(": ", [_lacking(verdict, seen), _join(", ", [cause, count])])


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
    messages = sorted(seen.by_message.keys() - seen.final - {0}) or [0]
    of_which = f"of message {messages[0]} " if len(seen.by_message.keys() - {0}) > 1 else ""
    return of_which + _lacking_of(messages[0], seen)


def _lacking_of(message: int, seen: Seen) -> str:
    if not seen.by_message.get(message, Counter())["message_delta"]:
        return "`message_delta` never came"
    if not seen.with_usage.get(message, Counter())["message_delta"]:
        return "`message_delta` carried no usage"
    return "`message_delta` came without a stop_reason, and `message_stop` never"


def _cause(verdict: Verdict, seconds: float | None, seen: Seen | None, is_end_told: bool) -> str:
    after = "" if seconds is None else f" after {span(seconds)}"
    ended = f"the response ended normally{after}" if is_end_told else "no more is there, and a HAR does not tell why"
    place = "" if seen is None or seen.invalid is None else _place_of(seen.invalid)
    error = verdict.metadata.get("stream_error")
    said = {
        Reason.NO_USAGE_DATA: ended,
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


def _place_of(event: TracedEvent) -> str:
    """Say where usage is not valid, and the first field that is not."""
    what = f" ({clean(event.invalid[0][0], 80)}: {as_shown(event.invalid[0][1])})" if event.invalid else ""
    if event.kind == JSON_ANSWER:
        return f" in the JSON answer{what}"
    return f" in the event at byte {event.offset:,}{what}"


def as_shown(value: Any, limit: int = 80) -> str:
    """Write a value of JSON for a person: whole numbers with separators, texts in quotes, on one line."""
    if isinstance(value, int) and not isinstance(value, bool):
        return clean(f"{value:,}", limit)
    try:
        return clean(json.dumps(value, ensure_ascii=False), limit)
    except RecursionError:
        return "something that is nested without end"


def _count(seen: Seen | None) -> str:
    if seen is None or not seen.events:
        return ""
    return "1 event" if seen.events == 1 else f"{seen.events:,} events"


def span(seconds: float) -> str:
    """Write a span of time for a person."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:,.1f} s"


def _join(between: str, parts: Iterable[str]) -> str:
    return between.join(part for part in parts if part)
