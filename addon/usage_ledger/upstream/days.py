"""Days: what both sides say of the UTC days of a span.

Room: upstream. Imports the standard library, the ledger and its neighbours in this room. A day's bill may be there in
several sources and widths; one that covers all of the day is chosen, and none is mixed with another.
"""

from collections.abc import Iterable
from datetime import date, datetime, timedelta
from typing import NamedTuple

from usage_ledger.ledger.bill import BucketSpan, UsageLine, bucket_spans, lines_of, was_loaded_late, whole_covers
from usage_ledger.ledger.filters import ON_THE_BILL, Filters
from usage_ledger.ledger.moments import start_of
from usage_ledger.ledger.reading import Reader
from usage_ledger.ledger.summary import Sums, summarize
from usage_ledger.upstream.answers import BillError


class Bill(NamedTuple):
    """The days of a span that can be compared, each with its lines and where they are from; and those that cannot."""

    days: dict[str, list[UsageLine]]
    from_names: set[str]
    open_days: list[str]
    missing: list[str]


def whole_days(since: str, until: str) -> tuple[date, date]:
    """Return the days that a span has any part of, and the day after the last."""
    first = datetime.fromisoformat(since).date()
    last = (datetime.fromisoformat(until) - timedelta(milliseconds=1)).date() + timedelta(1)
    if first >= last:
        raise BillError("the span ends before it begins")
    return first, last


def bill_of(reader: Reader, first: date, last: date, takes_open: bool) -> Bill:
    """Return what upstream billed on each day: by days of the API, else its hours or minutes, else a Console's CSV.

    With `takes_open`, also days that are still open.
    """
    spans: dict[str, list[BucketSpan]] = {}
    for each in bucket_spans(reader, "usage", start_of(first), start_of(last)):
        spans.setdefault(each.since[:10], []).append(each)
    bill = Bill({}, set(), [], [])
    for number in range((last - first).days):
        day = (first + timedelta(number)).isoformat()
        chosen = _covering(spans.get(day, []))
        if not chosen:
            bill.missing.append(day)
        elif not takes_open and not all(was_loaded_late(each.until, each.loaded_at) for each in chosen):
            bill.open_days.append(day)
        else:
            bill.days[day] = [line for each in chosen for line in lines_of(reader, "usage", each.number)]
            if chosen[0].origin == "csv":
                bill.from_names.add(day)
    return bill


def _covering(spans: Iterable[BucketSpan]) -> list[BucketSpan]:
    """Return the buckets of one source that make up a whole day; none where no source has all of it."""
    covers = whole_covers(spans)
    days, hours, minutes = (timedelta(**span) for span in ({"days": 1}, {"hours": 1}, {"minutes": 1}))
    for source in (("api", days), ("api", hours), ("api", minutes), ("csv", days)):
        if source in covers:
            return covers[source]
    return []


def finest(reader: Reader, first: date, last: date, takes_open: bool) -> list[BucketSpan]:
    """Return the buckets of each day, by the source that tells most: minutes, hours, days, a Console's days."""
    days: dict[str, list[BucketSpan]] = {}
    for each in bucket_spans(reader, "usage", start_of(first), start_of(last)):
        if takes_open or was_loaded_late(each.until, each.loaded_at):
            days.setdefault(each.since[:10], []).append(each)
    found: list[BucketSpan] = []
    for day in sorted(days):
        covers = whole_covers(days[day])
        if covers:
            found += covers[min(covers)]  # `api` comes before `csv`, and what is short before what is long
    return found


def our_sums(reader: Reader, first: date, last: date) -> Iterable[Sums]:
    """Add up our rows that the bill is about, by day, model, key, workspace and tier."""
    by = ("day", "model", "key", "workspace", "tier")
    return summarize(reader, Filters(since=start_of(first), until=start_of(last)), by, condition=ON_THE_BILL)
