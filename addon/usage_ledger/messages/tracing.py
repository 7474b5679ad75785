"""Tracing: what each event of a body said of usage, and what that changed.

Room: messages. Imports the standard library, `msgspec` and its neighbours in this room. For looking at a body that is
there, not for live streams. Promises that a trace and a row tell the same story: the reader that judges live streams
reads here too, one event at a time, and is looked at between them.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from usage_ledger.messages import lenient
from usage_ledger.messages.reader import MessageReader
from usage_ledger.messages.sse import EVENT_LIMIT, Event, parse_event
from usage_ledger.messages.text import text_or_none

JSON_ANSWER = "JSON answer"
COMMENT = "comment"
NOT_VALID = "not valid"
OUTPUT_BEGINS = "output begins"
_LINE_ENDS = b"\r\n"
_BLANK_LINE = re.compile(rb"(?>\r\n|\n|\r){2,}")
_BLANK_LINE_BEGINS = 3  # the most bytes of a blank line whose end has not come

_MAY_TELL = (b"message_", b"usage", b"error")
"""Bytes without which an event changes nothing that a trace shows but whether output has begun."""


class TracedEvent(msgspec.Struct):
    """One event. `offset` and `size` are bytes of the decoded body, the blank line that ends the event included.

    `kind` is its type, or the name that the stream gave it. `usage` is what it carried, as upstream sent it, which may
    be null (`has_usage`); `changed` has what became of the message's usage by it: field, before, after. `notes` are
    what else it meant to the reader.
    """

    offset: int
    size: int
    kind: str
    has_usage: bool = False
    usage: Any = None
    changed: list[tuple[str, Any, Any]] = msgspec.field(default_factory=list)
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

    usage: list[dict[str, Any]]
    malformed: bool
    stream_error: str | None
    output_begun: bool
    stop_reason: str | None
    final: bool


class Tracer(MessageReader):
    """A reader that tells a listener of each event it has read."""

    __slots__ = ("_before", "_event_head", "_event_size", "_events_in", "_listener", "_offset", "decoded_bytes")

    def __init__(self, content_encoding: str, listener: Listener) -> None:
        super().__init__(content_encoding)
        self._listener = listener
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

    def _read_events(self, data: bytes) -> None:
        self.decoded_bytes += len(data)
        for block, ends in self._events_in.feed(data):
            self._read_block(block, ends)

    def _read_block(self, block: bytes, ends: bool) -> None:
        """Read an event, or a part of one that is very long."""
        if not self._event_size:
            self._event_head = block[:EVENT_LIMIT]
            if not block.strip(_LINE_ENDS):  # more blank lines between events
                super()._read_events(block)
                self._offset += len(block)
                return
        self._event_size += len(block)
        super()._read_events(block)
        if ends:
            self._end_event(None)

    def _end_event(self, note: str | None) -> None:
        size, self._event_size = self._event_size, 0
        event = parse_event(_with_lf(self._event_head)) or Event(b"", b"")
        self._tell(_kind_of(event), event.data, size, note)
        self._offset += size

    def _tell(self, kind: str, data: bytes, size: int, note: str | None = None) -> None:
        traced = TracedEvent(self._offset, size, kind, notes=[note] if note else [])
        if not self._before.output_begun or any(data.find(each) >= 0 for each in _MAY_TELL) or size > EVENT_LIMIT:
            after = self._state()
            fields = lenient.decode(_decoder, data)
            if fields is not None:
                traced.has_usage, traced.usage = _usage_of(fields)
            traced.changed = list(_changes(self._before.usage, after.usage))
            traced.notes += _news(self._before, after)
            if kind == JSON_ANSWER and OUTPUT_BEGINS in traced.notes:
                traced.notes.remove(OUTPUT_BEGINS)  # all of it came at once
            self._before = after
        self._listener(traced, data)

    def _state(self) -> _State:
        evidence, messages = self._evidence, self._messages
        return _State(
            usage=[dict(_flat(message.usage or {})) for message in messages],
            malformed=evidence.malformed or any(message.malformed for message in messages),
            stream_error=evidence.stream_error,
            output_begun=evidence.output_begun,
            stop_reason=next((message.stop_reason for message in reversed(messages) if message.stop_reason), None),
            final=bool(messages) and all(message.final for message in messages),
        )


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
    return block.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _kind_of(event: Event) -> str:
    """Tell what an event is called: by its data, as the SDK does, else by its name."""
    fields = lenient.decode(_decoder, event.data)
    told = text_or_none(fields.type, 64) if fields is not None else None
    return told or text_or_none(event.name.decode("utf-8", "replace"), 64) or ("event" if event.data else COMMENT)


def _usage_of(fields: _Told) -> tuple[bool, Any]:
    """Return whether an event has usage, wherever a relay has put it, and that usage."""
    own = {} if fields.usage is msgspec.UNSET else {"usage": fields.usage}
    for place in (fields.message, own, fields.delta):
        if isinstance(place, dict) and "usage" in place:
            return True, place["usage"]
    return False, None


def _flat(usage: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Turn a usage object into fields with dotted names; of iterations only how many there are."""
    for name, value in usage.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            yield f"{prefix}{name}", f"{len(value)} entries"
        elif value is not None:
            yield f"{prefix}{name}", value


def _changes(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> Iterator[tuple[str, Any, Any]]:
    """Yield the fields that differ, each with what it was (None: not told) and what it is."""
    for place, fields in enumerate(after):
        known = before[place] if place < len(before) else {}
        which = f"message {place + 1}: " if place else ""
        for name in dict.fromkeys([*known, *fields]):
            if known.get(name) != fields.get(name):
                yield which + name, known.get(name), fields.get(name)


def _news(before: _State, after: _State) -> Iterator[str]:
    if len(after.usage) > len(before.usage) > 0:
        yield "another message begins"
    if after.output_begun and not before.output_begun:
        yield OUTPUT_BEGINS
    if after.malformed and not before.malformed:
        yield NOT_VALID
    if after.stream_error and not before.stream_error:
        yield f"error {after.stream_error}"
    if after.stop_reason and after.stop_reason != before.stop_reason:
        yield f"stop_reason {after.stop_reason}"
    if after.final and not before.final:
        yield "the usage is final"
