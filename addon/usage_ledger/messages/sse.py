"""Server-sent events: from bytes to the few events that matter.

Room: messages. Imports the standard library and `text`. Follows the WHATWG rules for event streams
(https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream) with one difference that the
books need: an event that lacks its final blank line counts when the stream ended cleanly.

Most of a Claude stream is text that carries no usage. `EventReader` therefore looks for the bytes that an interesting
event must contain (`markers`) and takes apart only the events that contain one of them; all others are passed over
without being split, decoded or copied. Where nothing is pending, two searches (for `hints`) find that out. It keeps at
most one unfinished event, and of that never more than twice `EVENT_LIMIT` bytes.

Bytes are searched with `find` and not with `in`, which first tries its operand as a number and so takes 200 ns longer.
"""

from collections.abc import Callable, Iterable

from usage_ledger.messages.text import BOM

EVENT_LIMIT = 256 * 1024
"""Bytes kept of one event. Recorded usage events have a few hundred; a longer event is reported as cut short."""

_OVERLAP = 16
"""Bytes of a long event's tail that are kept, in which a marker or the blank line at its end may begin."""


class Event:
    """One event: its name (empty where the stream named none), its data, and whether it was cut at `EVENT_LIMIT`."""

    __slots__ = ("data", "name", "truncated")

    def __init__(self, name: bytes, data: bytes, truncated: bool = False) -> None:
        self.name = name
        self.data = data
        self.truncated = truncated


class EventReader:
    """Reads an event stream piece by piece, and tells `take` of each wanted event, in order.

    `markers` are the byte strings one of which a wanted event must contain (shorter than `_OVERLAP`). `once` is for
    something that is looked for until it is found: `is_it` is asked about each event that contains `once`, until it
    says yes. `hints` are fewer and shorter: each marker contains one of them.
    """

    __slots__ = (
        "_after_cr",
        "_bom",
        "_carry",
        "_head",
        "_hint",
        "_is_it",
        "_is_settled",
        "_markers",
        "_once",
        "_other_hint",
        "_skipping",
        "_take",
    )

    def __init__(
        self,
        take: Callable[[Event], None],
        markers: tuple[bytes, ...],
        hints: tuple[bytes, bytes],
        once: bytes,
        is_it: Callable[[Event], bool],
    ) -> None:
        self._take = take
        self._markers = markers
        self._hint, self._other_hint = hints
        self._is_settled = False  # nothing is unfinished, and nothing is looked for but markers
        self._once: bytes | None = once
        self._is_it = is_it
        self._bom: bytes | None = b""
        self._carry = bytearray()
        self._after_cr = False
        self._skipping = False
        self._head: Event | None = None  # what is known of the event being skipped, while no marker was in it

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the stream, and tell of the wanted events that they complete."""
        if (
            self._is_settled
            and data.endswith(b"\n\n")
            and data.find(self._hint) < 0
            and data.find(self._other_hint) < 0
        ):
            return  # whole events, none of which is wanted, however their lines end
        for event in self._completed_by(data):
            self._take(event)
        is_pending = self._carry or self._after_cr or self._skipping or self._bom is not None
        self._is_settled = not is_pending and self._once is None

    def _completed_by(self, data: bytes) -> Iterable[Event]:
        if self._bom is not None:
            data = self._without_bom(data)
        if self._after_cr or data.find(b"\r") >= 0:
            data = self._with_lf(data)
        carry = self._carry
        if carry or not data.endswith(b"\n\n"):
            known = len(carry)
            carry += data
            # The blank line may straddle the old end, so look one byte back; never rescan what was searched before.
            end = carry.rfind(b"\n\n", max(known - 1, 0)) + 2
            if end == 1:
                return self._shorten()
            data = bytes(carry[:end])
            del carry[:end]
        skipped: Iterable[Event] = ()
        if self._skipping:
            self._skipping = False
            rest = data.find(b"\n\n") + 2
            skipped = self._skip(data[:rest])
            self._head = None
            data = data[rest:]
        cut_short = self._shorten()
        if self._once is not None:
            return [*skipped, *self._wanted(data), *cut_short]
        for marker in self._markers:
            if data.find(marker) >= 0:
                return [*skipped, *self._wanted(data), *cut_short]
        return [*skipped, *cut_short] if skipped or cut_short else ()

    def finish(self) -> None:
        """The stream ended cleanly: tell of its last event if that lacked the blank line."""
        if self._bom:
            self._carry += self._bom
        data = bytes(self._carry)
        self._carry.clear()
        for event in self._skip(data) if self._skipping else self._wanted(data):
            self._take(event)

    def _wanted(self, block: bytes) -> list[Event]:
        """Take apart those events of a block of whole events that contain a marker."""
        events = {}
        for marker in self._markers:
            place = block.find(marker)
            while place >= 0:
                start, end = _around(block, place)
                if start not in events:
                    events[start] = parse_event(block[start : min(end, start + EVENT_LIMIT)], end - start > EVENT_LIMIT)
                place = block.find(marker, end)
        if self._once is not None:
            self._look_for_once(block)
        return [event for _, event in sorted(events.items()) if event is not None]

    def _look_for_once(self, block: bytes) -> None:
        assert self._once is not None
        place = block.find(self._once)
        while place >= 0:
            start, end = _around(block, place)
            event = parse_event(block[start : min(end, start + EVENT_LIMIT)])
            if event is not None and self._is_it(event):
                self._once = None
                return
            place = block.find(self._once, end)

    def _shorten(self) -> Iterable[Event]:
        """Give up an unfinished event that has grown past the limit, and skip to its end."""
        carry = self._carry
        if len(carry) <= EVENT_LIMIT + 1:  # one more, for the first half of the blank line
            return ()
        events: Iterable[Event] = ()
        if not self._skipping:
            self._skipping = True
            head = bytes(carry[:EVENT_LIMIT])
            events = self._wanted(head)
            for event in events:
                event.truncated = True
            if not events:
                self._head = parse_event(head, truncated=True)
        events = events or self._skip(bytes(carry))
        del carry[:-_OVERLAP]
        return events

    def _skip(self, tail: bytes) -> Iterable[Event]:
        """Look for a marker in what follows of an event that was given up: it is then wanted, cut as it is."""
        head = self._head
        if head is None or all(tail.find(marker) < 0 for marker in self._markers):
            return ()
        self._head = None
        return [head]

    def _without_bom(self, data: bytes) -> bytes:
        """Drop one leading byte order mark, which may arrive in pieces."""
        head = (self._bom or b"") + data
        if len(head) < len(BOM) and BOM.startswith(head):
            self._bom = head
            return b""
        self._bom = None
        return head.removeprefix(BOM)

    def _with_lf(self, data: bytes) -> bytes:
        """Turn CRLF and CR line ends into LF; a CRLF may be split between two pieces."""
        if self._after_cr and data:
            data = data.removeprefix(b"\n")
            self._after_cr = False
        if data.endswith(b"\r"):
            self._after_cr = True
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _around(block: bytes, place: int) -> tuple[int, int]:
    """Return where the event around `place` starts and ends."""
    start = block.rfind(b"\n\n", 0, place)
    end = block.find(b"\n\n", place)
    return (0 if start < 0 else start + 2), (len(block) if end < 0 else end)


def parse_event(raw: bytes, truncated: bool = False) -> Event | None:
    """Read the fields of one event (its lines end in LF); None when it has no data, which is no event at all.

    An event that was cut may have its data behind the cut.
    """
    name = b""
    data: bytes | None = None
    for line in raw.split(b"\n"):
        field, colon, value = line.partition(b":")
        if colon and value[:1] == b" ":
            value = value[1:]
        if field == b"data":
            data = value if data is None else data + b"\n" + value
        elif field == b"event":
            name = value
    if data is None:
        return Event(name, b"", truncated) if truncated else None
    return Event(name, data, truncated)
