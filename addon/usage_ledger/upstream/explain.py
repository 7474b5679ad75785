"""Explain: which flagged row alone accounts for what the bill has beyond the rows.

Room: upstream. Imports the standard library, the ledger and its neighbours in this room. Which instant a bill buckets
by is not documented, so a row may belong to any bucket that its time touches, from its start to its end and a clock
margin around both. Buckets that such rows tie together make one region; within it the sums are the same whatever
upstream does. Where exactly one flagged row lies in a region, and nothing else could be what is missing, it is given
the difference. Where several could, nothing is forced.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import NamedTuple

from usage_ledger.ledger.adjustments import adjustments
from usage_ledger.ledger.bill import (
    KINDS,
    BucketSpan,
    UsageLine,
    api_keys,
    lines_of,
)
from usage_ledger.ledger.closing import archived_before
from usage_ledger.ledger.columns import CACHE_DURATIONS, TOTALLED
from usage_ledger.ledger.corrections import is_corrected, is_final
from usage_ledger.ledger.entries import entries
from usage_ledger.ledger.filters import NOT_OF_A_SUBSCRIPTION, Filters
from usage_ledger.ledger.moments import format_moment, start_of
from usage_ledger.ledger.reading import Reader
from usage_ledger.ledger.record import Entry, IterationRow, Record
from usage_ledger.upstream import kinds
from usage_ledger.upstream.answers import BillError
from usage_ledger.upstream.days import finest, whole_days
from usage_ledger.upstream.models import plain_name
from usage_ledger.upstream.names import ids_by_name

MARGIN = timedelta(seconds=60)
"""How far upstream's clock may be from ours."""

LONGEST = timedelta(days=1)
"""How long before a span a request may have begun that ends in it."""

_ANY = "*"
_FIVE, _HOUR = CACHE_DURATIONS


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


@dataclass
class _Series:
    """What is known of one model and key: counts by bucket, and the spans of buckets (by number) that are tied."""

    ours: dict[int, dict[str, int]] = field(default_factory=dict)
    theirs: dict[int, dict[str, int]] = field(default_factory=dict)
    unknown: dict[int, int] = field(default_factory=dict)
    ties: list[tuple[int, int]] = field(default_factory=list)
    candidates: list[tuple[int, Entry]] = field(default_factory=list)
    blocked: list[tuple[int, str]] = field(default_factory=list)


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
        raise BillError("without the list of API keys nobody knows which row is whose: usage-ledger fetch keys")
    times = _Times(spans, margin)
    series: dict[tuple[str, str], _Series] = {}

    def one(model: str | None, key: str) -> _Series:
        return series.setdefault((plain_name(model or "(none)"), key), _Series())

    names = ids_by_name(keys, by_name=True)
    for number, span in enumerate(spans):
        for line in lines_of(reader, "usage", span.number):
            if line.service_tier != "batch":
                ids = names.get(line.api_key or "", [])
                _add(one(line.model, ids[0] if len(ids) == 1 else line.api_key or "").theirs, number, _kinds_of(line))
    placing = _Placing(one, {model for model, _ in series}, names)
    for entry in _rows(reader, first, last):
        place = times.of(entry.record)
        if place is not None and entry.record.service_tier != "batch":
            placing.place(entry, place)
    for (_, key), each in series.items():
        for blocked, start, end, why in placing.blockers:
            if blocked in (key, _ANY):
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


class _Times:
    """Finds the buckets that a row may belong to."""

    def __init__(self, spans: list[BucketSpan], margin: timedelta) -> None:
        self._starts = [_moment(span.since) for span in spans]
        self._ends = [_moment(span.until) for span in spans]
        self._margin = margin

    def of(self, record: Record) -> tuple[int, int, bool] | None:
        """Return the first and the last bucket that a row touches, and whether it touches what is in none.

        None where it touches no bucket at all.
        """
        try:
            begin = _moment(record.occurred_at) - self._margin
            # A request that is in flight, or whose end nobody saw, may go on for as long as any.
            is_over = record.completed_at is not None and record.usage_state != "pending"
            end = _moment(record.completed_at or "") if is_over else _moment(record.occurred_at) + LONGEST
            end += self._margin
        except (ValueError, OverflowError):  # another program wrote it
            return None
        return self.touched(begin, max(begin, end))

    def touched(self, begin: datetime, end: datetime) -> tuple[int, int, bool] | None:
        first, last = bisect_right(self._ends, begin), bisect_right(self._starts, end) - 1
        if first > last:
            return None
        inside = self._starts[first] <= begin and end < self._ends[last]
        whole = all(self._ends[number] == self._starts[number + 1] for number in range(first, last))
        return first, last, not (inside and whole)


class _Placing:
    """Puts rows into their series, and knows of those that cannot be placed: they keep others from being explained."""

    def __init__(self, one: Callable[[str, str], _Series], models: set[str], names: Mapping[str, list[str]]) -> None:
        self._one = one
        self._models = models
        self._names = names
        self.blockers: list[tuple[str, int, int, str]] = []

    def place(self, entry: Entry, place: tuple[int, int, bool]) -> None:
        """Put a row where it belongs: `place` is what `_Times.of` says of it."""
        record = entry.record
        first, last, is_outside = place
        ids = self._names.get(record.api_key_hint or "", [])
        is_certain = _is_certain(entry)
        if record.api_key_hint is not None and not ids and is_certain:
            return  # of another organization
        if record.usage_state == "none" and not record.total_tokens:
            return  # nothing of it is billed, whoever asked
        key = ids[0] if len(ids) == 1 else None
        may_be_filled_in = self._may_be_filled_in(entry)
        if key is None or not (is_certain or may_be_filled_in) or self._is_of_unclear_model(entry):
            why = f"row {record.id} may be of this model or key, and nobody knows what it used"
            self.blockers.append((key or _ANY, first, last, why))
        if key is None:
            return
        for model, counts, unknown in _parts(entry):
            series = self._one(model, key)
            _add(series.ours, first, counts)
            series.unknown[first] = series.unknown.get(first, 0) + unknown
            series.ties.append((first, last))
            if is_outside:
                series.blocked.append((first, f"row {record.id} may be of a time without a bill"))
        if may_be_filled_in:
            self._one(record.model, key).candidates.append((first, entry))

    def _may_be_filled_in(self, entry: Entry) -> bool:
        """Whether a row waits for its usage, and the bill has what it may be."""
        record = entry.record
        waits = record.requires_manual_review and record.usage_state in ("missing", "partial")
        return bool(waits) and not entry.iterations and plain_name(record.model) in self._models

    def _is_of_unclear_model(self, entry: Entry) -> bool:
        """Whether nobody can say under which of the bill's models a row's tokens are."""
        parts = _parts(entry)
        if any(any(counts.values()) and plain_name(model) not in self._models for model, counts, _ in parts):
            return True
        names = {plain_name(each.model or entry.record.model) for each in entry.iterations}
        is_split = len(parts) > 1 or not names
        return not is_split and names != {plain_name(entry.record.model)}


def _is_certain(entry: Entry) -> bool:
    """Whether what a row says of its usage is all that can be billed for it."""
    record = entry.record
    if is_corrected(record):
        return True
    if any(each.billed is None for each in entry.iterations):
        return False  # upstream does not say whether a declined attempt is billed, nor does who accepts it
    return record.usage_state == "none" or (is_final(record) and not record.requires_manual_review)


def _parts(entry: Entry) -> list[tuple[str, dict[str, int], int]]:
    """Return what a row counts for which model, and how much of it are cache writes of unknown duration.

    Its billed iterations, where they are what it counts; what only rows count (web searches) stays with its own model.
    """
    record = entry.record
    billed = [each for each in entry.iterations if each.billed]
    is_split = all(sum(getattr(each, name) for each in billed) == getattr(record, name) for name in TOTALLED)
    if not billed or not is_split or is_corrected(record):
        return [(record.model, _kinds_of(record), _unknown(record))]
    searches = {**dict.fromkeys(KINDS, 0), "web_search_requests": record.web_search_requests}
    return [(each.model or record.model, _kinds_of(each), _unknown(each)) for each in billed] + [
        (record.model, searches, 0)
    ]


def _kinds_of(told: UsageLine | Record | IterationRow) -> dict[str, int]:
    """Return counts by kind; cache writes of which nobody told the duration stand with the 5-minute ones."""
    counts = {name: getattr(told, name, 0) for name in KINDS}
    counts[_FIVE] += 0 if isinstance(told, UsageLine) else _unknown(told)
    return counts


def _unknown(told: Record | IterationRow) -> int:
    """Return how many cache writes are of unknown duration."""
    split = told.cache_creation_5m_input_tokens + told.cache_creation_1h_input_tokens
    return told.cache_creation_input_tokens - split


def _add(counts: dict[int, dict[str, int]], number: int, told: dict[str, int]) -> None:
    into = counts.setdefault(number, dict.fromkeys(KINDS, 0))
    for name, count in told.items():
        into[name] += count


def _add_adjustments(
    reader: Reader, first: date, last: date, series: dict[tuple[str, str], _Series], times: _Times
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
            one = series.setdefault((made.model, made.api_key), _Series())
            one.ties.append(place[:2])
            _add(one.ours, place[0], dict(zip(KINDS, made.counts, strict=True)))
        for (model, key), each in series.items():
            if model == made.model and made.api_key in ("", key):
                each.blocked += [(number, "the day was adjusted") for number in range(place[0], place[1] + 1)]


def _verdicts(series: dict[tuple[str, str], _Series], spans: list[BucketSpan]) -> tuple[list[Explained], list[Open]]:
    explained: list[Explained] = []
    open_: list[Open] = []
    for (model, key), one in sorted(series.items()):
        for region in _regions(one):
            since, until = spans[region.first].since, spans[region.last].until
            difference = kinds.differences(region.ours, region.theirs)
            settled = kinds.settled(difference, region.unknown)
            if not any(settled.values()):
                continue
            why = region.why
            own = sum(_unknown(entry.record) for entry in region.candidates)
            if not why and region.unknown > own and (difference[_FIVE] or difference[_HOUR]):
                why = "cache writes of other rows are of unknown duration"
            if min(settled.values()) < 0:
                why = "the rows have more of a kind than was billed"
            elif not why and not region.candidates:
                why = "no flagged row is of this time"
            elif not why and len(region.candidates) > 1:
                why = f"{len(region.candidates)} flagged rows could be it"
            if why:
                records = [entry.record for entry in region.candidates]
                open_.append(Open(since, until, model, key, settled, records, why))
            else:
                (entry,) = region.candidates
                counts = {name: count + difference[name] for name, count in _kinds_of(entry.record).items()}
                explained.append(Explained(entry, counts, since, until))
    return explained, open_


def _regions(one: _Series) -> Iterable[_Region]:
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


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
