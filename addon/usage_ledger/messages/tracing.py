"""Tracing: what each event of a body said of usage, and what that changed.

Room: messages. Imports the standard library, `msgspec` and its neighbours in this room. For looking at a body that is
there, not for live streams. Promises that a trace and a row tell the same story: the reader that judges live streams
reads here too, one event at a time, and is looked at between them. What an event costs does not depend on those before.
"""

import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from usage_ledger.messages import lenient
from usage_ledger.messages.reader import MessageReader
from usage_ledger.messages.sse import EVENT_LIMIT, Event, parse_event
from usage_ledger.messages.text import BOM, text_or_none
from usage_ledger.messages.usage import sift, value_at

JSON_ANSWER = "JSON answer"
COMMENT = "comment"
"""A block without data, which is no event (WHATWG)."""

FINAL = "the usage is final"
NOT_VALID = "not valid"
OUTPUT_BEGINS = "output begins"
DEPTH_LIMIT = 16
"""Usage is three levels deep; what is deeper than this is not looked into."""

_LINE_ENDS = b"\r\n"
_BLANK_LINE = re.compile(rb"(?>\r\n|\n|\r){2,}")
_BLANK_LINE_BEGINS = 3  # the most bytes of a blank line whose end has not come

_MAY_TELL = (b"message_", b"usage", b"error")
"""Bytes without which an event changes nothing that a trace shows but whether output has begun."""


class TracedEvent(msgspec.Struct):
    """One event. `offset` and `size` are bytes of the decoded body, the blank line that ends the event included.

    `kind` is its type, or the name that the stream gave it. `message` is the number of the message it speaks of; before
    the first it is 0. `usage` is what it carried, as upstream sent it, which may be null (`has_usage`); `changed` has
    what became of the message's usage by it (field, before, after), `invalid` what of it is no usage (field, value).
    `notes` are what else it meant to the reader.
    """

    offset: int
    size: int
    kind: str
    message: int = 0
    has_usage: bool = False
    usage: Any = None
    changed: list[tuple[str, Any, Any]] = msgspec.field(default_factory=list)
    invalid: list[tuple[str, Any]] = msgspec.field(default_factory=list)
    notes: list[str] = msgspec.field(default_factory=list)


type Listener = Callable[[TracedEvent, bytes], None]
"""Is called with each event, and with its data: JSON, where upstream sent that."""


class _Told(msgspec.Struct):
    """The fields of an event that a trace shows."""

    type: Any = None
    message: Any = None
    delta: Any = None
    usage: Any = msgspec.UNSET


_decoder = msgspec.json.Decoder(_Told)


class _State(msgspec.Struct):
    """What a reader knows between two events."""

    messages: int
    malformed: bool
    stream_error: str | None
    output_begun: bool
    stop_reasons: list[str | None]
    final: list[bool]


class Tracer(MessageReader):
    """A reader that tells a listener of each event it has read, or of the first ones up to a limit.

    `is_cut`: there were more. They are read all the same.
    """

    __slots__ = (
        "_before",
        "_event_head",
        "_event_size",
        "_events_in",
        "_known",
        "_left",
        "_listener",
        "_offset",
        "decoded_bytes",
        "is_cut",
    )

    def __init__(self, content_encoding: str, listener: Listener, limit: int = sys.maxsize) -> None:
        super().__init__(content_encoding)
        self._read_events = self._trace_events
        self._listener = listener
        self._left = limit
        self._known: list[dict[str, Any]] = []  # what was told of each message's usage
        self.is_cut = False
        self._events_in = _Cutter()
        self._offset = 0  # where the next event begins
        self._event_head = b""
        self._event_size = 0
        self._before = self._state()
        self.decoded_bytes = 0

    @property
    def is_encoded(self) -> bool:
        """Whether the body came compressed, whatever its headers say."""
        return self._decoder is not None

    def finish(self, clean: bool) -> None:
        if self._head:
            self._choose_decoder(self._head)
        answer = bytes(self._body)
        for block in self._events_in.rest():
            self._read_block(block, ends=False)
        super().finish(clean)
        if answer:
            self._tell(JSON_ANSWER, answer, len(answer))
        elif self._event_size:
            self._end_event(None if clean else "it breaks off")

    def _read_start(self, data: bytes) -> None:
        before = self.decoded_bytes
        super()._read_start(data)
        if self.decoded_bytes == before:  # all of it was blank
            self.decoded_bytes += len(data)
            self._offset += len(data)

    def _read_json(self, data: bytes) -> None:
        self.decoded_bytes += len(data)
        super()._read_json(data)

    def _trace_events(self, data: bytes) -> None:
        self.decoded_bytes += len(data)
        rest = data if self.is_cut else self._read_one_by_one(data)
        if rest:
            self._events.feed(rest)

    def _read_one_by_one(self, data: bytes) -> bytes:
        """Read events up to the limit, and return what is behind it."""
        for block, ends in self._events_in.feed(data):
            self._read_block(block, ends)
            if self.is_cut:
                return b"".join(self._events_in.rest())
        return b""

    def _read_block(self, block: bytes, ends: bool) -> None:
        """Read an event, or a part of one that is very long."""
        if not self._event_size:
            self._event_head = block[:EVENT_LIMIT]
            if not block.strip(_LINE_ENDS):  # more blank lines between events
                self._events.feed(block)
                self._offset += len(block)
                return
        self._event_size += len(block)
        self._events.feed(block)
        if ends:
            self._end_event(None)

    def _end_event(self, note: str | None) -> None:
        size, self._event_size = self._event_size, 0
        if self.is_cut:
            return
        event = parse_event(_with_lf(self._event_head)) or Event(b"", b"")
        self._tell(_kind_of(event), event.data, size, note)
        self._offset += size

    def _tell(self, kind: str, data: bytes, size: int, note: str | None = None) -> None:
        if not self._left:
            self.is_cut = True
            return
        self._left -= 1
        traced = TracedEvent(self._offset, size, kind, notes=[note] if note else [])
        if not self._before.output_begun or any(data.find(each) >= 0 for each in _MAY_TELL) or size > EVENT_LIMIT:
            after = self._state()
            fields = lenient.decode(_decoder, data)
            if fields is not None:
                traced.has_usage, traced.usage = _usage_of(fields)
                traced.changed = list(self._changes(traced.usage))
                traced.invalid = list(_invalid(traced.usage))
            traced.notes += _news(self._before, after)
            if kind == JSON_ANSWER and OUTPUT_BEGINS in traced.notes:
                traced.notes.remove(OUTPUT_BEGINS)  # all of it came at once
            self._before = after
        traced.message = self._place + 1 if self._messages else 0
        self._listener(traced, data)

    def _state(self) -> _State:
        evidence, messages = self._evidence, self._messages
        return _State(
            messages=len(messages),
            malformed=evidence.malformed or any(message.malformed for message in messages),
            stream_error=evidence.stream_error,
            output_begun=evidence.output_begun,
            stop_reasons=[message.stop_reason for message in messages],
            final=[message.final for message in messages],
        )

    def _changes(self, usage: Any) -> Iterator[tuple[str, Any, Any]]:
        """Yield the fields of an event's usage that the message's usage has by now another value of."""
        if not self._messages or not isinstance(usage, dict):
            return
        self._known += [{} for _ in self._messages[len(self._known) :]]
        known, merged = self._known[self._place], self._messages[self._place].usage
        for path, _ in _flat(usage):
            name, after = ".".join(path), _shown_of(value_at(merged, path))
            before = known.get(name)
            if after != before:
                known[name] = after
                yield name, before, after


class _Cutter:
    """Cuts an event stream into its events, whatever pieces it comes in, and very long events into parts."""

    __slots__ = ("_carry", "_searched")

    def __init__(self) -> None:
        self._carry = bytearray()
        self._searched = 0

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bool]]:
        """Yield each event that these bytes complete; yield parts of an unfinished one as (bytes, False)."""
        carry = self._carry
        carry += data
        while found := _BLANK_LINE.search(carry, self._searched):
            block = bytes(carry[: found.end()])
            del carry[: found.end()]
            self._searched = 0
            yield block, True
        self._searched = max(0, len(carry) - _BLANK_LINE_BEGINS)
        if len(carry) > EVENT_LIMIT:
            part = bytes(carry[: self._searched])
            del carry[: self._searched]
            self._searched = 0
            yield part, False

    def rest(self) -> Iterator[bytes]:
        """Yield what is left at the end of the body."""
        if self._carry:
            yield bytes(self._carry)
            self._carry.clear()


def _with_lf(block: bytes) -> bytes:
    return block.removeprefix(BOM).replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _kind_of(event: Event) -> str:
    """Tell what an event is called: by its data, as the SDK does, else by its name."""
    fields = lenient.decode(_decoder, event.data)
    told = text_or_none(fields.type, 64) if fields is not None else None
    return told or text_or_none(event.name.decode("utf-8", "replace"), 64) or ("event" if event.data else COMMENT)


def _usage_of(fields: _Told) -> tuple[bool, Any]:
    """Return whether an event has usage, wherever a relay has put it, and the one of them that the reader takes."""
    own = {} if fields.usage is msgspec.UNSET else {"usage": fields.usage}
    told = [
        place["usage"] for place in (fields.message, own, fields.delta) if isinstance(place, dict) and "usage" in place
    ]
    return bool(told), next((usage for usage in told if usage not in (None, {})), told[0] if told else None)


def _flat(value: Any, path: tuple[str, ...] = (), with_entries: bool = False) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the fields of a usage object, each by its path and with its value; null says nothing."""
    if isinstance(value, dict) and len(path) < DEPTH_LIMIT:
        for name, inner in value.items():
            yield from _flat(inner, (*path, name), with_entries)
    elif isinstance(value, list) and with_entries and len(path) < DEPTH_LIMIT:
        for place, inner in enumerate(value):
            yield from _flat(inner, (*path, str(place)), with_entries)
    elif value is not None:
        yield path, value


def _shown_of(value: Any) -> Any:
    """Return what is shown of a field: of iterations, only how many there are."""
    if isinstance(value, list):
        return "1 entry" if len(value) == 1 else f"{len(value):,} entries"
    return "an object" if isinstance(value, dict) else value


def _invalid(usage: Any) -> Iterator[tuple[str, Any]]:
    """Yield what of an event's usage is no usage, by its name and value."""
    good, malformed = sift(usage)
    if not malformed:
        return
    if good is None:
        yield "usage", usage
        return
    kept = {path for path, _ in _flat(good, with_entries=True)}
    for path, value in _flat(usage, with_entries=True):
        if path not in kept:
            yield ".".join(path), value


def _news(before: _State, after: _State) -> Iterator[str]:
    if after.messages > before.messages > 0:
        yield "another message begins"
    if after.output_begun and not before.output_begun:
        yield OUTPUT_BEGINS
    if after.malformed and not before.malformed:
        yield NOT_VALID
    if after.stream_error and not before.stream_error:
        yield f"error {after.stream_error}"
    known = [*before.stop_reasons, *[None] * after.messages]
    for reason, former in zip(after.stop_reasons, known, strict=False):
        if reason and reason != former:
            yield f"stop_reason {reason}"
    if sum(after.final) > sum(before.final):
        yield FINAL
