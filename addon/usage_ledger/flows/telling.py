"""Telling: an inspected flow, and a row that was settled, as lines for a person.

Room: flows. Imports the messages room, the ledger's record and its neighbours in this room. Used on the terminal, in
mitmproxy's own views and in its log. Promises that each line is one line whatever the traffic holds.
"""

from collections.abc import Iterable, Iterator, Mapping
from textwrap import wrap
from typing import Any

from usage_ledger.flows.inspecting import Inspection
from usage_ledger.ledger.record import Record
from usage_ledger.messages import COUNT_NAMES, Ending, clean
from usage_ledger.messages.tracing import NOT_VALID, TracedEvent
from usage_ledger.messages.words import as_shown, span

WIDTH = 100

ITERATIONS_SHOWN = 50
"""Entries of `usage.iterations` that are told one by one: more than any answer of the API's has."""

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
        are_many = any(event.message > 1 for event in found.events)
        for event in found.events:
            yield from _event_lines(event, width, are_many)


def ledger_lines(
    found: Inspection, state: str, row: str | None, mark: str | None, differences: Mapping[str, tuple[Any, Any]]
) -> Iterator[str]:
    """Yield what a ledger has of a flow: its `row` there and who has marked it, and the columns that differ (what is
    there, and what is here).
    """
    told = f" ({mark})" if mark else ""
    other = "" if found.entry is None or row in (None, found.entry.record.id) else f", as row {row}"
    why = ""
    if differences and not found.captured:
        why = ", for the capture does not hold the body"
    elif differences and found.entry is not None and found.entry.only_new:
        why = ", for the flow was saved in flight"
    elif differences and not found.is_end_told:
        why = ", perhaps for a HAR does not tell how the response ended"
    yield f"  ledger   {state}{told}{other}{why}"
    for name, (there, here) in differences.items():
        yield f"           {name}: {_or_nothing(there)} there, {_or_nothing(here)} here"


def _or_nothing(value: Any) -> str:
    return "nothing" if value is None else as_shown(value, 120)


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
    iterations = found.entry.iterations
    for iteration in iterations[:ITERATIONS_SHOWN]:
        billed = {1: "", 0: ", not billed", None: ", not known whether billed"}[iteration.billed]
        counts = [(name, getattr(iteration, name, 0)) for name in COUNT_NAMES]
        who = f"{iteration.type or 'iteration'} of {iteration.model or record.model}{billed}: "
        yield from _wrapped("           ", who + (_listed(counts) or "nothing"), width, "             ")
    if len(iterations) > ITERATIONS_SHOWN:
        yield f"           and {len(iterations) - ITERATIONS_SHOWN:,} more"


def _flow_lines(found: Inspection) -> Iterator[str]:
    request = found.request
    model = "" if found.entry is None else f" {request.model}"
    yield f"  request  {request.occurred_at} {found.method} {request.host}{request.path}{model}"
    if found.http_status is None:
        yield "  response none"
    else:
        yield f"  response {found.http_status} {found.content_type or 'of no type'}, {_body(found)}"
    if found.ending is not None:
        after = "" if found.seconds is None else f" after {span(found.seconds)}"
        yield f"  ended    {_ENDED[found.ending] if found.is_end_told else 'a HAR does not tell how'}{after}"


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
    if found.seen is None:
        return f"{size}, more events than are looked at here"
    events = found.seen.events
    if not events and "event-stream" not in found.content_type:
        return size
    return f"{size}, {events:,} event{'' if events == 1 else 's'}"


def _event_lines(event: TracedEvent, width: int, are_many: bool) -> Iterator[str]:
    """Yield the lines of an event; where there `are_many` messages, with the one that it speaks of."""
    head = f"  {event.offset:>9,} {event.size:>7,}  {clean(event.kind, 40):<20} "
    parts = [_changed(*change) for change in event.changed]
    notes = [note for note in event.notes if note != NOT_VALID or not event.invalid]
    notes += [f"not valid: {clean(name, 80)} {as_shown(value)}" for name, value in event.invalid]
    if event.has_usage and not parts and not event.invalid:
        parts.append(f"usage {as_shown(event.usage)}" if event.usage in (None, {}) else "usage, nothing new")
    of_which = f"message {event.message}: " if are_many and event.message and (parts or notes) else ""
    yield from _wrapped(head, of_which + ", ".join([*parts, *notes]), width, " " * len(head))


def _changed(name: str, before: Any, after: Any) -> str:
    told = f"{clean(name, 80)} {_plain(after)}"
    return told if before is None else f"{clean(name, 80)} {_plain(before)} -> {_plain(after)}"


def _plain(value: Any) -> str:
    """Write a value of usage, whose texts need no quotes."""
    return clean(value, 80) if isinstance(value, str) else as_shown(value)


def _listed(counts: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts if count)


def _wrapped(first: str, text: str, width: int, rest: str | None = None) -> Iterator[str]:
    """Break a text into lines; a terminal that is too narrow for that gets it in one."""
    indent = first if rest is None else rest
    lines = wrap(text, max(width - len(first), 24), break_long_words=False, break_on_hyphens=False) or [""]
    yield (first + lines[0]).rstrip()
    yield from (indent + line for line in lines[1:])


def log_line(record: Record) -> tuple[str, bool]:
    """Return the line that the log gets for a settled row, and whether it is a warning."""
    if not record.requires_manual_review:
        return (
            f"📊 usage recorded: {record.model} in={record.input_tokens} out={record.output_tokens} "
            f"cache_write={record.cache_creation_input_tokens} cache_read={record.cache_read_input_tokens} "
            f"({record.usage_state})",
            False,
        )
    request = record.request_id or record.id
    if record.review_reason == "no_usage_data":
        return (
            "⚠️ Stream completed without usage data - recording basic request for billing consistency: "
            f"{record.model} {request}",
            True,
        )
    return f"⚠️ usage flagged for review: {record.model} {request} {record.review_reason} ({record.usage_state})", True
