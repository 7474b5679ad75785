"""Telling: an inspected flow as lines for a person.

Room: flows. Imports the messages room. Used on the terminal and in mitmproxy's own views. Promises that each line is
one line whatever the traffic holds.
"""

from collections.abc import Iterable, Iterator
from textwrap import wrap
from typing import Any

from usage_ledger.flows.inspecting import Inspection
from usage_ledger.messages import COUNT_NAMES, Ending, clean
from usage_ledger.messages.tracing import TracedEvent
from usage_ledger.messages.words import span

WIDTH = 100

_ENDED = {
    Ending.FINISHED: "normally",
    Ending.CLIENT_DISCONNECTED: "the client left",
    Ending.UPSTREAM_CLOSED: "upstream broke off",
    Ending.PROXY_STOPPED: "the proxy was stopped",
    Ending.NO_RESPONSE: "no response came",
    Ending.NOT_SENT: "the request never went upstream",
}


def lines_of(found: Inspection, width: int = WIDTH) -> Iterator[str]:
    """Yield an inspection line by line, what matters most first; the events that it has come last."""
    yield from _verdict_lines(found, width)
    yield from _flow_lines(found)
    if found.events:
        yield "  events"
        for event in found.events:
            yield from _event_lines(event, width)


def _verdict_lines(found: Inspection, width: int) -> Iterator[str]:
    if found.entry is None:
        yield "  verdict  no row"
    else:
        record = found.entry.record
        flagged = f", flagged {record.review_reason}" if record.review_reason else ""
        yield f"  verdict  {record.usage_state}{flagged}"
    yield from _wrapped("           ", found.why, width)
    if found.entry is None:
        return
    counts = [(name, getattr(record, name)) for name in COUNT_NAMES]
    yield from _wrapped("  usage    ", _listed(counts) or "none", width, "           ")
    for iteration in found.entry.iterations:
        billed = {1: "", 0: ", not billed", None: ", not known whether billed"}[iteration.billed]
        counts = [(name, getattr(iteration, name, 0)) for name in COUNT_NAMES]
        who = f"{iteration.type or 'iteration'} of {iteration.model or record.model}{billed}: "
        yield from _wrapped("           ", who + (_listed(counts) or "nothing"), width, "             ")


def _flow_lines(found: Inspection) -> Iterator[str]:
    if found.entry is not None:
        record = found.entry.record
        yield f"  request  {record.occurred_at} {found.method} {record.host}{record.path} {record.model}"
    if found.http_status is None:
        yield "  response none"
    else:
        yield f"  response {found.http_status} {found.content_type or 'of no type'}, {_body(found)}"
    if found.ending is not None:
        after = "" if found.seconds is None else f" after {span(found.seconds)}"
        yield f"  ended    {_ENDED[found.ending]}{after}"


def _body(found: Inspection) -> str:
    if not found.captured or found.body_bytes is None:
        return "body not captured"
    size = f"{found.body_bytes:,} bytes"
    if found.decoded_bytes is None:
        return size
    said = found.content_encoding
    if found.is_encoded:
        size += f" of {said or 'an encoding that is not told'}, {found.decoded_bytes:,} decoded"
    elif said:
        size += f", plain, though it says {said}"
    events = found.seen.events
    return f"{size}, {events:,} event{'' if events == 1 else 's'}"


def _event_lines(event: TracedEvent, width: int) -> Iterator[str]:
    head = f"  {event.offset:>9,} {event.size:>7,}  {clean(event.kind, 40):<20} "
    parts = [_changed(*change) for change in event.changed]
    if event.has_usage and not parts:
        parts.append(f"usage {_shown(event.usage)}" if event.usage in (None, {}) else "usage, nothing new")
    yield from _wrapped(head, ", ".join([*parts, *event.notes]), width, " " * len(head))


def _changed(name: str, before: Any, after: Any) -> str:
    told = f"{clean(name, 80)} {_shown(after)}"
    return told if before is None else f"{clean(name, 80)} {_shown(before)} -> {_shown(after)}"


def _shown(value: Any) -> str:
    return clean("null" if value is None else str(value), 80)


def _listed(counts: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts if count)


def _wrapped(first: str, text: str, width: int, rest: str | None = None) -> Iterator[str]:
    """Break a text into lines; a terminal that is too narrow for that gets it in one."""
    indent = first if rest is None else rest
    lines = wrap(text, max(width - len(first), 24), break_long_words=False, break_on_hyphens=False) or [""]
    yield (first + lines[0]).rstrip()
    yield from (indent + line for line in lines[1:])
