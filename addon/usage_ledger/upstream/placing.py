"""Placing: which buckets of the bill a row may belong to, and what it counts there.

Room: upstream. Imports the standard library, the ledger and its neighbours in this room. Which instant a bill buckets
by is not documented, so a row may belong to any bucket that its time touches, from its start to its end and a clock
margin around both.
"""

from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from usage_ledger.ledger.bill import KINDS, BucketSpan, UsageLine
from usage_ledger.ledger.columns import CACHE_DURATIONS, TOTALLED
from usage_ledger.ledger.corrections import is_corrected, is_final
from usage_ledger.ledger.record import Entry, IterationRow, Record
from usage_ledger.upstream.models import plain_name

LONGEST = timedelta(days=1)
"""How long before a span a request may have begun that ends in it."""

ANY = "*"
"""Stands for every key, where nobody knows which one."""


@dataclass
class Series:
    """What is known of one model and key: counts by bucket, and the spans of buckets (by number) that are tied."""

    ours: dict[int, dict[str, int]] = field(default_factory=dict)
    theirs: dict[int, dict[str, int]] = field(default_factory=dict)
    unknown: dict[int, int] = field(default_factory=dict)
    ties: list[tuple[int, int]] = field(default_factory=list)
    candidates: list[tuple[int, Entry]] = field(default_factory=list)
    blocked: list[tuple[int, str]] = field(default_factory=list)


class Times:
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


class Placing:
    """Puts rows into their series, and knows of those that cannot be placed: they keep others from being explained."""

    def __init__(self, one: Callable[[str, str], Series], models: set[str], names: Mapping[str, list[str]]) -> None:
        self._one = one
        self._models = models
        self._names = names
        self.blockers: list[tuple[str, int, int, str]] = []

    def place(self, entry: Entry, place: tuple[int, int, bool]) -> None:
        """Put a row where it belongs: `place` is what `Times.of` says of it."""
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
            self.blockers.append((key or ANY, first, last, why))
        if key is None:
            return
        for model, counts, unknown in _parts(entry):
            series = self._one(model, key)
            add(series.ours, first, counts)
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
        return [(record.model, kinds_of(record), untold(record))]
    searches = {**dict.fromkeys(KINDS, 0), "web_search_requests": record.web_search_requests}
    return [(each.model or record.model, kinds_of(each), untold(each)) for each in billed] + [
        (record.model, searches, 0)
    ]


def kinds_of(told: UsageLine | Record | IterationRow) -> dict[str, int]:
    """Return counts by kind; cache writes of which nobody told the duration stand with the 5-minute ones."""
    counts = {name: getattr(told, name, 0) for name in KINDS}
    counts[CACHE_DURATIONS[0]] += 0 if isinstance(told, UsageLine) else untold(told)
    return counts


def untold(told: Record | IterationRow) -> int:
    """Return how many cache writes are of untold duration."""
    split = told.cache_creation_5m_input_tokens + told.cache_creation_1h_input_tokens
    return told.cache_creation_input_tokens - split


def add(counts: dict[int, dict[str, int]], number: int, told: dict[str, int]) -> None:
    into = counts.setdefault(number, dict.fromkeys(KINDS, 0))
    for name, count in told.items():
        into[name] += count


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
