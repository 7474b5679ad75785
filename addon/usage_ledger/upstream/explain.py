"""Explain: which flagged row alone accounts for what the bill has beyond the rows.

Room: upstream. Imports the standard library, the ledger and its neighbours in this room. Buckets that rows tie together
(`placing`) make one region; within it the sums are the same whatever upstream does. Where exactly one flagged row lies
in a region, and nothing else could be what is missing, it is given the difference. Where several could, nothing is
forced.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import NamedTuple

from usage_ledger.ledger.adjustments import adjustments
from usage_ledger.ledger.bill import KINDS, BucketSpan, api_keys, lines_of
from usage_ledger.ledger.closing import archived_before
from usage_ledger.ledger.columns import CACHE_DURATIONS
from usage_ledger.ledger.entries import entries
from usage_ledger.ledger.filters import NOT_OF_A_SUBSCRIPTION, Filters
from usage_ledger.ledger.moments import format_moment, start_of
from usage_ledger.ledger.reading import Reader
from usage_ledger.ledger.record import Entry, Record
from usage_ledger.upstream import kinds
from usage_ledger.upstream.answers import BillError
from usage_ledger.upstream.days import finest, whole_days
from usage_ledger.upstream.models import plain_name
from usage_ledger.upstream.names import NO_KEYS, ids_by_name
from usage_ledger.upstream.placing import ANY, LONGEST, Placing, Series, Times, add, kinds_of, untold

MARGIN = timedelta(seconds=60)
"""How far upstream's clock may be from ours."""


class Explained(NamedTuple):
    """A flagged row, and all of its counts as the bill has them; `since` and `until` are the region's."""

    entry: Entry
    counts: dict[str, int]
    since: str
    until: str


class Open(NamedTuple):
    """A difference that no single row explains: where, by kind, and the flagged rows that could (`why` it is open)."""

    since: str
    until: str
    model: str
    key: str
    differences: dict[str, int]
    candidates: list[Record]
    why: str


@dataclass
class _Region:
    """Consecutive buckets of one series (model and key) that rows tie together: both sides, and what may be missing."""

    first: int
    last: int
    ours: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    theirs: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    unknown: int = 0
    candidates: list[Entry] = field(default_factory=list)
    why: str = ""


def explain(
    reader: Reader, since: str, until: str, margin: timedelta = MARGIN, takes_open: bool = False
) -> tuple[list[Explained], list[Open]]:
    """Return the flagged rows that alone explain a difference of a span of days, and the differences that stay open."""
    first, last = whole_days(since, until)
    _refuse_archived(reader, first)
    spans = finest(reader, first, last, takes_open)
    if not spans:
        return [], []
    keys = api_keys(reader)
    if not keys:
        raise BillError(NO_KEYS)
    times = Times(spans, margin)
    series: dict[tuple[str, str], Series] = {}

    def one(model: str | None, key: str) -> Series:
        return series.setdefault((plain_name(model or "(none)"), key), Series())

    names = ids_by_name(keys, by_name=True)
    for number, span in enumerate(spans):
        for line in lines_of(reader, "usage", span.number):
            if line.service_tier != "batch":
                ids = names.get(line.api_key or "", [])
                add(one(line.model, ids[0] if len(ids) == 1 else line.api_key or "").theirs, number, kinds_of(line))
    placing = Placing(one, {model for model, _ in series}, names)
    for entry in _rows(reader, first, last):
        place = times.of(entry.record)
        if place is not None and entry.record.service_tier != "batch":
            placing.place(entry, place)
    for (_, key), each in series.items():
        for blocked, start, end, why in placing.blockers:
            if blocked in (key, ANY):
                each.blocked += [(number, why) for number in range(start, end + 1)]
    _add_adjustments(reader, first, last, series, times)
    return _verdicts(series, spans)


def _refuse_archived(reader: Reader, first: date) -> None:
    """Raise `BillError` where rows of a span, or near it, were archived: they are missing for another reason."""
    until = archived_before(reader)
    before = LONGEST + timedelta(hours=1)  # and whatever the margin is
    start = format_moment(datetime.fromisoformat(start_of(first)) - before)
    if until is not None and start < until:
        day = (datetime.fromisoformat(until) + LONGEST + timedelta(days=1)).date()
        raise BillError(f"rows before {until[:10]} are archived, so nothing near it is explained: --since {day}")


def _rows(reader: Reader, first: date, last: date) -> Iterator[Entry]:
    """Return the rows that may belong to a span."""
    start, end = (datetime.fromisoformat(start_of(day)) for day in (first, last))
    near = Filters(since=format_moment(start - LONGEST), until=format_moment(end + LONGEST))
    for page in entries(reader, near, NOT_OF_A_SUBSCRIPTION):
        yield from page


def _add_adjustments(
    reader: Reader, first: date, last: date, series: dict[tuple[str, str], Series], times: Times
) -> None:
    """What was adjusted is explained, and nothing else of that day: the adjustment may have had another reason.

    One that was made without knowing the key may be of any: it keeps the day's rows of its model open.
    """
    for made in adjustments(reader, first.isoformat(), last.isoformat()):
        start = datetime.fromisoformat(f"{made.day}T00:00:00+00:00")
        place = times.touched(start, start + timedelta(days=1) - timedelta(milliseconds=1))
        if place is None:
            continue
        if made.api_key:
            one = series.setdefault((made.model, made.api_key), Series())
            one.ties.append(place[:2])
            add(one.ours, place[0], dict(zip(KINDS, made.counts, strict=True)))
        for (model, key), each in series.items():
            if model == made.model and made.api_key in ("", key):
                each.blocked += [(number, "the day was adjusted") for number in range(place[0], place[1] + 1)]


def _verdicts(series: dict[tuple[str, str], Series], spans: list[BucketSpan]) -> tuple[list[Explained], list[Open]]:
    explained: list[Explained] = []
    open_: list[Open] = []
    for (model, key), one in sorted(series.items()):
        for region in _regions(one):
            difference = kinds.differences(region.ours, region.theirs)
            settled = kinds.settled(difference, region.unknown)
            if not any(settled.values()):
                continue
            since, until = spans[region.first].since, spans[region.last].until
            why = _why_open(region, difference, settled)
            if why:
                records = [entry.record for entry in region.candidates]
                open_.append(Open(since, until, model, key, settled, records, why))
            else:
                (entry,) = region.candidates
                counts = {name: count + difference[name] for name, count in kinds_of(entry.record).items()}
                explained.append(Explained(entry, counts, since, until))
    return explained, open_


def _why_open(region: _Region, difference: dict[str, int], settled: dict[str, int]) -> str:
    """Return why no single row explains what a region lacks; empty where one does."""
    if min(settled.values()) < 0:
        return "the rows have more of a kind than was billed"
    if region.why:
        return region.why
    own = sum(untold(entry.record) for entry in region.candidates)
    if region.unknown > own and any(difference[name] for name in CACHE_DURATIONS):
        return "cache writes of other rows are of unknown duration"
    if not region.candidates:
        return "no flagged row is of this time"
    return f"{len(region.candidates)} flagged rows could be it" if len(region.candidates) > 1 else ""


def _regions(one: Series) -> Iterable[_Region]:
    """Join the buckets of a series that rows tie together."""
    numbers = sorted({*one.ours, *one.theirs})
    spans = sorted([*one.ties, *((number, number) for number in numbers)])
    regions: list[_Region] = []
    for first, last in spans:
        if regions and first <= regions[-1].last:
            regions[-1].last = max(regions[-1].last, last)
        else:
            regions.append(_Region(first, last))
    by_number = {number: region for region in regions for number in range(region.first, region.last + 1)}
    for side in ("ours", "theirs"):
        for number, counts in getattr(one, side).items():
            into = getattr(by_number[number], side)
            for name in KINDS:
                into[name] += counts[name]
    for number, count in one.unknown.items():
        by_number[number].unknown += count
    for number, entry in one.candidates:
        by_number[number].candidates.append(entry)
    for number, why in one.blocked:
        if number in by_number:
            by_number[number].why = by_number[number].why or why
    return regions
