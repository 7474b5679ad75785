"""The reader: feed it a response body as it arrives, ask it for the verdict.

Room: messages. Imports the standard library, `msgspec` and its neighbours in this room; neither mitmproxy nor SQLite.
Promises: any bytes in any pieces give the same verdict as the whole, in bounded memory, and never an exception. JSON is
decoded only of events that can carry usage; a delta of text costs a few searches for bytes.
"""

from collections.abc import Callable
from datetime import date
from typing import Any

import msgspec

from usage_ledger.messages import lenient
from usage_ledger.messages.decoding import Decoder, DecodingError, decoder_for, enough_to_tell
from usage_ledger.messages.message import Message
from usage_ledger.messages.sse import Event, EventReader
from usage_ledger.messages.text import text_or_none
from usage_ledger.messages.verdict import Ending, Evidence, Verdict, judge

JSON_LIMIT = 32 * 1024 * 1024
"""A JSON answer that is longer than this many bytes is not read."""

MESSAGES_LIMIT = 16
"""Messages kept apart in one body; the API sends one."""

_MARKERS = (b"message_", b'"usage"', b"error")
"""What an event must contain to be looked at."""

_HINTS = (b"sage", b"error")
"""Each of the markers contains one of these."""

_USAGE_EVENTS = frozenset({"message_start", "message_delta", "message_stop"})
_CONTENT = frozenset({"content_block_start", "content_block_delta", "content_block_stop"})
_KNOWN = _USAGE_EVENTS | _CONTENT | {"ping", "error"}
_KINDS = {name.encode(): name for name in _KNOWN}
_QUOTED_CONTENT = tuple((f'"{name}"'.encode(), name) for name in sorted(_CONTENT))
_WHITESPACE = b" \t\r\n"
_BLANK = b" \t\r\n\xef\xbb\xbf"


class _Event(msgspec.Struct):
    """The fields of an event that the books need; decoding skips all others. Events have a limit, so these have one."""

    type: Any = None
    message: Any = None
    delta: Any = None
    usage: Any = None
    error: Any = None


class _Answer(msgspec.Struct):
    """A JSON answer. Its fields are kept raw until their size is known; of its content matters only if there is any."""

    id: msgspec.Raw = msgspec.Raw(b"null")
    model: msgspec.Raw = msgspec.Raw(b"null")
    stop_reason: msgspec.Raw = msgspec.Raw(b"null")
    stop_details: msgspec.Raw = msgspec.Raw(b"null")
    usage: msgspec.Raw = msgspec.Raw(b"null")
    content: msgspec.Raw = msgspec.Raw(b"[]")


_event_decoder = msgspec.json.Decoder(_Event)
_answer_decoder = msgspec.json.Decoder(_Answer)


class MessageReader:
    """Reads one response body.

    `output_begun` turns true with the first content block delta, which is how a caller measures time to first token.

    `feed(data)` takes the next bytes of the body, as they came from upstream, still encoded. It is no method but always
    the narrowest step that fits (so do not keep it): with a plain event stream that is the event reader's own.
    """

    __slots__ = (
        "_body",
        "_decoder",
        "_encoding",
        "_events",
        "_evidence",
        "_head",
        "_messages",
        "_place",
        "_read",
        "_read_events",
        "feed",
    )

    def __init__(self, content_encoding: str = "") -> None:
        self._encoding = content_encoding
        self._messages: list[Message] = []
        self._place = 0  # of the message that events speak of
        self._evidence = Evidence(messages=self._messages)
        self._events = EventReader(
            self._apply, _MARKERS, _HINTS, once=b"content_block_delta", is_it=self._begins_output
        )
        self._read_events = self._events.feed
        self._body = bytearray()
        self._head = b""
        self._decoder: Decoder | None = None
        self.feed: Callable[[bytes], None] = self._take_head
        self._read: Callable[[bytes], None] = self._read_start

    @property
    def output_begun(self) -> bool:
        return self._evidence.output_begun

    @property
    def usage_begun(self) -> bool:
        """Whether any usage has been read so far."""
        return any(message.usage is not None for message in self._messages)

    @property
    def unreadable(self) -> bool:
        """Whether reading stopped before the end of the body."""
        return self._evidence.unreadable

    def give_up(self) -> None:
        """Read no further: the body cannot be decoded, or something went wrong that no rule here foresees."""
        self._evidence.unreadable = True
        self.feed = self._read = self._ignore
        self._body.clear()

    def finish(self, clean: bool) -> None:
        """The body ended; `clean` where upstream ended it, not where it was cut."""
        if self._head:
            self._choose_decoder(self._head)
        if self._decoder is not None and not self._decoder.complete:
            self._evidence.unreadable = True  # what is compressed has an end of its own, and that did not come
        if self._body:
            self._read_answer(clean and not self.unreadable)
        elif clean:
            was_malformed = self._evidence.malformed
            self._events.finish()
            if self.unreadable:  # an event that breaks off with its encoding is no more malformed than a cut one
                self._evidence.malformed = was_malformed

    def verdict(self, ending: Ending, status: int | None, day: date | None = None) -> Verdict:
        """Judge what was read so far, as if the response had ended now (see `verdict.judge`)."""
        return judge(self._evidence, ending, status, day)

    # From bytes to events. `feed` gets what came from upstream, `_read` what that decodes to.

    def _take_head(self, data: bytes) -> None:
        self._head += data
        if enough_to_tell(self._head):
            self._choose_decoder(self._head)

    def _choose_decoder(self, head: bytes) -> None:
        self._head = b""
        self._decoder = decoder_for(self._encoding, head)
        self.feed = self._read_start if self._decoder is None else self._decode
        self.feed(head)

    def _decode(self, data: bytes) -> None:
        assert self._decoder is not None
        try:
            for piece in self._decoder.feed(data):
                self._read(piece)
                if self._read == self._ignore:
                    return
        except DecodingError:
            self._evidence.unreadable = True  # what came before the broken place has been read, or is read at the end
            self.feed = self._ignore

    def _read_start(self, data: bytes) -> None:
        first = data.lstrip(_BLANK)[:1]
        if not first:
            self._events.feed(data)
            return
        self._read = self._read_json if first == b"{" else self._read_events
        if self._decoder is None:
            self.feed = self._read
        self._read(data)

    def _read_json(self, data: bytes) -> None:
        self._body += data
        if len(self._body) > JSON_LIMIT:
            self.give_up()

    def _ignore(self, data: bytes) -> None:
        """Nothing more is read of this body."""

    # From events to evidence.

    def _begins_output(self, event: Event) -> bool:
        """Whether an event that names a content block delta is one."""
        fields = lenient.decode(_event_decoder, event.data)
        self._evidence.output_begun = _type_of(fields, _KINDS.get(event.name)) == "content_block_delta"
        return self._evidence.output_begun

    def _apply(self, event: Event) -> None:
        data, kind = event.data, _kind(event)
        if kind in _CONTENT and data.find(b'"usage"') < 0 and data.find(b'"message_') < 0:
            return
        fields = None if event.truncated else lenient.decode(_event_decoder, data)
        if fields is None:
            self._apply_unreadable(event, kind)
            return
        kind, usage = _type_of(fields, kind), _usage_of(fields)
        if kind == "message_start":
            self._start(fields.message, usage)
        elif kind == "message_delta":
            self._current().delta(fields.delta, usage)
        elif kind == "message_stop":
            self._current().stop(usage)
        else:
            if kind == "error":
                name = fields.error.get("type") if isinstance(fields.error, dict) else None
                self._evidence.stream_error = text_or_none(name, 64) or "error"
            if usage is not None:
                self._current().other(usage)

    def _apply_unreadable(self, event: Event, kind: str | None) -> None:
        """Take an event whose data is no JSON object, or longer than any that carries usage."""
        says_usage = event.data.find(b'"usage"') >= 0
        if kind == "error":
            self._evidence.stream_error = "error"
        elif kind == "message_stop" and not event.truncated and not says_usage:
            self._current().stop(None)  # its name says it all
        elif kind not in _CONTENT and (kind in _USAGE_EVENTS or says_usage or event.truncated):
            self._evidence.malformed = True

    def _start(self, message: object, usage: object) -> None:
        known = next((place for place, each in enumerate(self._messages) if each.repeats(message)), None)
        if known is not None:
            self._place = known
        elif len(self._messages) < MESSAGES_LIMIT:
            self._place = len(self._messages)
            self._messages.append(Message())
        else:
            self._evidence.too_many_messages = True
        self._current().start(message, usage)

    def _current(self) -> Message:
        if not self._messages:
            self._messages.append(Message())
        return self._messages[self._place]

    def _read_answer(self, clean: bool) -> None:
        """Read a JSON answer. One that was cut is no evidence of anything; one that is broken may hide its usage."""
        body = bytes(self._body)
        self._body.clear()
        answer = lenient.decode(_answer_decoder, body)
        if answer is None:
            self._evidence.malformed = clean and b'"usage"' in body
            return
        content = bytes(answer.content).translate(None, _WHITESPACE)
        self._evidence.output_begun = content not in (b"[]", b"null", b'""')
        fields = {name: lenient.field(getattr(answer, name)) for name in _Answer.__struct_fields__ if name != "content"}
        if fields["usage"] is None and bytes(answer.usage) != b"null":
            self._evidence.malformed = True  # too long, or too deep, to be what the API sends
        self._current().whole(fields)


def _kind(event: Event) -> str | None:
    """Tell an event's kind without decoding it: its name, or what its data says; None where only decoding can tell."""
    kind = _KINDS.get(event.name)
    if kind is None and event.data.find(b"message_") < 0:
        # Quotes inside JSON text are escaped, so these bytes stand for a value of their own and not for prose.
        for quoted, name in _QUOTED_CONTENT:
            if quoted in event.data:
                return name
    return kind


def _type_of(fields: _Event | None, kind: str | None) -> str | None:
    """Return the kind that an event's data says, where it is a known one, else the one its name says."""
    told = None if fields is None else fields.type
    return told if isinstance(told, str) and told in _KNOWN else kind


def _usage_of(fields: _Event) -> object:
    """Return the usage of an event, wherever a relay has put it."""
    places = (fields.message, fields, fields.delta)
    told = [place.get("usage") if isinstance(place, dict) else getattr(place, "usage", None) for place in places]
    return next((usage for usage in told if usage is not None and usage != {}), None)
