"""Server-sent events: from bytes to the few events that matter.

Room: messages. Imports nothing but the standard library. Follows the WHATWG rules for event streams
(https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream) with one difference that the
books need: an event that lacks its final blank line counts when the stream ended cleanly.

Most of a Claude stream is text that carries no usage. `EventReader` therefore looks for the bytes that an interesting
event must contain (`markers`) and takes apart only the events that contain one of them; all others are passed over
without being split, decoded or copied. It keeps at most one unfinished event, and never more than `EVENT_LIMIT` bytes.

Bytes are searched with `find` and not with `in`, which first tries its operand as a number and so takes 200 ns longer.
"""

from collections.abc import Iterable

EVENT_LIMIT = 256 * 1024
"""Bytes kept of one event. Recorded usage events have a few hundred; a longer event is reported as cut short."""

_BOM = b"\xef\xbb\xbf"


class Event:
    """One event: its name (empty where the stream named none), its data, and whether it was cut at `EVENT_LIMIT`."""

    __slots__ = ("data", "name", "truncated")

    def __init__(self, name: bytes, data: bytes, truncated: bool = False) -> None:
        self.name = name
        self.data = data
        self.truncated = truncated


class EventReader:
    """Reads an event stream piece by piece.

    `markers` are the byte strings one of which a wanted event must contain; `once` is the name of a kind of event of
    which only the first is wanted.
    """

    __slots__ = ("_after_cr", "_bom", "_carry", "_markers", "_once", "_skipping")

    def __init__(self, markers: tuple[bytes, ...], once: bytes) -> None:
        self._markers = markers
        self._once: bytes | None = once
        self._bom: bytes | None = b""
        self._carry = bytearray()
        self._after_cr = False
        self._skipping = False

    def feed(self, data: bytes) -> Iterable[Event]:
        """Take the next bytes of the stream; return the wanted events that they complete, in order."""
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
        if self._skipping:
            self._skipping = False
            data = data[data.find(b"\n\n") + 2 :]
        cut_short = self._shorten()
        if self._once is not None:
            return [*self._wanted(data), *cut_short]
        for marker in self._markers:
            if data.find(marker) >= 0:
                return [*self._wanted(data), *cut_short]
        return cut_short

    def finish(self) -> Iterable[Event]:
        """The stream ended cleanly: return its last event if that lacked the blank line."""
        if self._bom:
            self._carry += self._bom
        data, skipping = bytes(self._carry), self._skipping
        self._carry.clear()
        return [] if skipping else self._wanted(data)

    def _wanted(self, block: bytes) -> list[Event]:
        """Take apart those events of a block of whole events that contain a marker."""
        events = {}
        for marker in self._markers:
            place = block.find(marker)
            while place >= 0:
                start, end = _around(block, place)
                if start not in events and place < start + EVENT_LIMIT:
                    events[start] = _parse(block[start : min(end, start + EVENT_LIMIT)], end - start > EVENT_LIMIT)
                place = block.find(marker, end)
        if self._once is not None:
            place = block.find(self._once)
            while place >= 0:
                start, end = _around(block, place)
                event = events.get(start) or _parse(block[start : min(end, start + EVENT_LIMIT)])
                if event is not None and (event.name == self._once or b'"' + self._once + b'"' in event.data):
                    events[start] = event
                    self._once = None
                    break
                place = block.find(self._once, end)
        return [event for _, event in sorted(events.items()) if event is not None]

    def _shorten(self) -> Iterable[Event]:
        """Give up an unfinished event that has grown past the limit, and skip to its end."""
        carry = self._carry
        if len(carry) <= EVENT_LIMIT + 1:  # one more, for the first half of the blank line
            return ()
        first_time = not self._skipping
        head = bytes(carry[:EVENT_LIMIT])
        del carry[:-1]  # the last byte may be the first half of the blank line
        self._skipping = True
        events = self._wanted(head) if first_time else []
        for event in events:
            event.truncated = True
        return events

    def _without_bom(self, data: bytes) -> bytes:
        """Drop one leading byte order mark, which may arrive in pieces."""
        head = (self._bom or b"") + data
        if len(head) < len(_BOM) and _BOM.startswith(head):
            self._bom = head
            return b""
        self._bom = None
        return head.removeprefix(_BOM)

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


def _parse(raw: bytes, truncated: bool = False) -> Event | None:
    """Read the fields of one event (its lines end in LF); None when it has no data, which is no event at all."""
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
    return None if data is None else Event(name, data, truncated)
