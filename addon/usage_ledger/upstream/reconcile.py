"""Reconcile: the rows against the bill, bucket by bucket, with a name for every difference.

Room: upstream. Imports the standard library, the ledger and its neighbours in this room. Tokens are compared first, by
UTC day, model and whatever else is asked for; money only where they agree, so that a price is told from a lost request.
Promises that nothing is compared that is not the same: open days, days without a bill and keys that nobody can tell
apart are named instead.
"""

import enum
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import NamedTuple

from usage_ledger.ledger.bill import (
    KINDS,
    Adjustment,
    BucketSpan,
    CostLine,
    KeyLine,
    UsageLine,
    adjustments,
    api_keys,
    bucket_spans,
    is_final,
    lines_of,
    whole_covers,
)
from usage_ledger.ledger.filters import ON_THE_BILL, Filters, format_moment
from usage_ledger.ledger.money import EXACT
from usage_ledger.ledger.reading import Reader
from usage_ledger.ledger.summary import Sums, summarize
from usage_ledger.upstream.answers import BillError
from usage_ledger.upstream.models import plain_name

DIMENSIONS = ("day", "model", "key", "workspace")

ROUNDED = {"api": Decimal("0.000001"), "csv": Decimal("0.005")}
"""By how many USD an amount of a line may be rounded: a Console's CSV has whole cents."""


class Verdict(enum.StrEnum):
    """What a bucket amounts to."""

    MATCHES = "matches"
    FLAGGED = "ours short, flagged"
    SHORT = "ours short, unexplained"
    OVER = "theirs short"
    DIFFERS = "differs both ways"
    BATCH = "batch, not metered"
    UNKNOWN = "not comparable"
    PRICE = "price differs"


SETTLED = (Verdict.MATCHES, Verdict.BATCH)
"""Verdicts that leave nothing to do."""

MEANING = {
    Verdict.FLAGGED: "rows without usage can explain it: fill them in (review, backfill, reconcile --apply)",
    Verdict.SHORT: "traffic that the proxy has not seen",
    Verdict.OVER: "rows that the bill does not have: late, or of another organization",
    Verdict.DIFFERS: "more of one kind of tokens and less of another",
    Verdict.UNKNOWN: "nobody can say which of several API keys it is",
    Verdict.PRICE: "the tokens are the same, so the prices are not",
}


@dataclass
class Bucket:
    """One bucket of the comparison: what it is about (`keys`, by the dimensions), and both sides by kind of tokens."""

    keys: tuple[str, ...]
    is_batch: bool = False
    is_ambiguous: bool = False
    ours: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    theirs: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    of_unknown_duration: int = 0
    adjustments: int = 0
    requests: int = 0
    flagged: int = 0
    verdict: Verdict = Verdict.UNKNOWN

    def differences(self) -> dict[str, int]:
        """Return what upstream billed beyond our rows, by kind."""
        found = {name: self.theirs[name] - self.ours[name] for name in KINDS}
        # Cache writes of which upstream told no duration stand with the 5-minute ones, and may be of either.
        five, hour = found["cache_creation_5m_input_tokens"], found["cache_creation_1h_input_tokens"]
        moved = min(self.of_unknown_duration, max(-five, 0), max(hour, 0))
        found["cache_creation_5m_input_tokens"] = five + moved
        found["cache_creation_1h_input_tokens"] = hour - moved
        return found

    def judge(self, tolerance: int) -> None:
        found = [value for value in self.differences().values() if abs(value) > tolerance]
        if self.is_ambiguous and found:
            self.verdict = Verdict.UNKNOWN
        elif self.is_batch and not self.requests and not self.adjustments:
            self.verdict = Verdict.BATCH
        elif not found:
            self.verdict = Verdict.MATCHES
        elif all(value > 0 for value in found):
            self.verdict = Verdict.FLAGGED if self.flagged else Verdict.SHORT
        else:
            self.verdict = Verdict.DIFFERS if any(value > 0 for value in found) else Verdict.OVER


class Money(NamedTuple):
    """What a day cost of one model, in USD, where its tokens agree."""

    day: str
    model: str
    ours: Decimal
    theirs: Decimal
    verdict: Verdict


@dataclass
class Result:
    """A comparison: its buckets in order, the money, and the days that were left out."""

    since: str
    until: str
    by: tuple[str, ...]
    buckets: list[Bucket]
    money: list[Money] = field(default_factory=list)
    open_days: list[str] = field(default_factory=list)
    days_without_bill: list[str] = field(default_factory=list)
    days_not_billed: list[str] = field(default_factory=list)
    """Of the days without a bill, those on which we have rows."""

    @property
    def left(self) -> int:
        """How many buckets, amounts, and days with rows and without a bill are not settled."""
        verdicts = [each.verdict for each in self.buckets] + [each.verdict for each in self.money]
        return sum(verdict not in SETTLED for verdict in verdicts) + len(self.days_not_billed)


class Bill(NamedTuple):
    """The days of a span that can be compared, each with its lines and where they are from; and those that cannot."""

    days: dict[str, list[UsageLine]]
    from_names: set[str]
    open_days: list[str]
    missing: list[str]


def reconcile(
    reader: Reader, since: str, until: str, by: Sequence[str], tolerance: int = 0, takes_open: bool = False
) -> Result:
    """Compare a span of whole UTC days; raise `BillError` where there is nothing to compare with.

    Days that are still open are compared with `takes_open` alone.
    """
    first, last = whole_days(since, until)
    bill = bill_of(reader, first, last, takes_open)
    if not bill.days:
        why = "they are all still open" if bill.open_days else "fetch it, or import it"
        raise BillError(f"there is no bill for the days from {first} to {last - timedelta(1)}: {why}")
    names = Names(api_keys(reader), bill, by)
    found: dict[tuple[tuple[str, ...], bool], Bucket] = {}

    def bucket(keys: tuple[str, ...], is_batch: bool) -> Bucket:
        return found.setdefault((keys, is_batch), Bucket(keys, is_batch))

    for day, lines in bill.days.items():
        for line in lines:
            one = bucket(names.theirs(day, line), line.service_tier == "batch")
            one.is_ambiguous = one.is_ambiguous or names.is_ambiguous(line.api_key)
            for name in KINDS:
                one.theirs[name] += getattr(line, name)
    rows_without_bill: set[str] = set()
    for sums in our_sums(reader, first, last):
        our_day, model, our_key, workspace, tier = sums.keys
        if our_day in bill.missing and sums.requests:
            rows_without_bill.add(str(our_day))
        if our_day in bill.days:
            one = bucket(names.ours(str(our_day), model, our_key, workspace), tier == "batch")
            one.is_ambiguous = one.is_ambiguous or names.is_ambiguous(our_key)
            _add(one, sums)
    for made in adjustments(reader, first.isoformat(), last.isoformat()):
        if made.day in bill.days:
            one = bucket(names.adjusted(made), is_batch=False)
            one.adjustments += 1
            for name, count in zip(KINDS, made.counts, strict=True):
                one.ours[name] += count
    for one in found.values():
        one.judge(tolerance)
    buckets = [found[key] for key in sorted(found)]
    buckets = [one for one in buckets if one.flagged or any(one.ours.values()) or any(one.theirs.values())]
    result = Result(_start(first), _start(last), tuple(by), buckets)
    result.open_days, result.days_without_bill = bill.open_days, bill.missing
    result.days_not_billed = sorted(rows_without_bill)
    result.money = _money(reader, bill, first, last, tolerance, takes_open)
    return result


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
    for each in bucket_spans(reader, "usage", _start(first), _start(last)):
        spans.setdefault(each.since[:10], []).append(each)
    bill = Bill({}, set(), [], [])
    for number in range((last - first).days):
        day = (first + timedelta(number)).isoformat()
        chosen = _covering(spans.get(day, []))
        if not chosen:
            bill.missing.append(day)
        elif not takes_open and not all(is_final(each.until, each.loaded_at) for each in chosen):
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


def our_sums(reader: Reader, first: date, last: date) -> Iterable[Sums]:
    """Add up our rows that the bill is about, by day, model, key, workspace and tier."""
    by = ("day", "model", "key", "workspace", "tier")
    return summarize(reader, Filters(since=_start(first), until=_start(last)), by, condition=ON_THE_BILL)


def _add(bucket: Bucket, sums: Sums) -> None:
    for name in KINDS:
        bucket.ours[name] += sums.counts[name]
    durations = ("cache_creation_5m_input_tokens", "cache_creation_1h_input_tokens")
    unknown = sums.counts["cache_creation_input_tokens"] - sum(sums.counts[name] for name in durations)
    bucket.ours["cache_creation_5m_input_tokens"] += unknown
    bucket.of_unknown_duration += unknown
    bucket.requests += sums.requests
    bucket.flagged += sums.flagged


class Names:
    """What both sides call models, keys and workspaces, made the same.

    A row knows a key by what the Console shows of it (`sk-ant-api03-R2D...igAA`), the bill by its id, a CSV by its
    name; the list of keys has all three.
    """

    def __init__(self, keys: Sequence[KeyLine], bill: Bill, by: Sequence[str]) -> None:
        """Raise `BillError` where a dimension cannot be compared at all."""
        if "key" in by and not keys:
            raise BillError("without the list of API keys nobody knows which row is whose: usage-ledger fetch keys")
        if "workspace" in by and bill.from_names:
            raise BillError("a Console's CSV has names of workspaces, where rows have ids: usage-ledger fetch usage")
        self._by = by
        self._keys = {key.id: key for key in keys}
        self._ids: dict[str, list[str]] = {}
        for key in keys:
            names = {key.name} if bill.from_names else set()  # the API says ids
            for said in ({key.id, key.hint} | names) - {None}:
                self._ids.setdefault(str(said), []).append(key.id)
        shared = [ids for ids in self._ids.values() if len(set(ids)) > 1]
        self._shared = {each for ids in shared for each in ids} | {
            said for said, ids in self._ids.items() if ids in shared
        }
        self._workspaces = {line.workspace for lines in bill.days.values() for line in lines} - {None}

    def is_ambiguous(self, key: str | None) -> bool:
        """Whether a key is one of several that are called the same."""
        return "key" in self._by and key in self._shared

    def theirs(self, day: str, line: UsageLine) -> tuple[str, ...]:
        return self._chosen(day, line.model, self._key(line.api_key), line.workspace or "default")

    def ours(self, day: str, model: str | None, key: str | None, workspace: str | None) -> tuple[str, ...]:
        ids = self._ids.get(key or "", [])
        # Responses name the default workspace by an id, which the bill does not have.
        place = workspace if workspace in self._workspaces else None
        if len(ids) == 1:
            place = self._keys[ids[0]].workspace
        return self._chosen(day, model, self._key(key), place or "default")

    def adjusted(self, made: Adjustment) -> tuple[str, ...]:
        return self._chosen(made.day, made.model, made.api_key or "(none)", made.workspace or "default")

    def _key(self, said: str | None) -> str:
        ids = self._ids.get(said or "", [])
        return ids[0] if len(ids) == 1 else said or "(none)"

    def _chosen(self, day: str, model: str | None, key: str, workspace: str) -> tuple[str, ...]:
        told = {"day": day, "model": plain_name(model or "(none)"), "key": key, "workspace": workspace}
        return tuple(told[name] for name in self._by)

    def shown(self, key: str) -> str:
        """Return how people call a key."""
        return (self._keys[key].name or key) if key in self._keys else key


# Money.


def _money(reader: Reader, bill: Bill, first: date, last: date, tolerance: int, takes_open: bool) -> list[Money]:
    """Compare what days cost, by model, where all tokens of that model agree on that day.

    What has a part that the other side tells elsewhere is left out: batches, adjustments, rows without a price, and web
    searches, which stand on a line of their own in the bill.
    """
    left: dict[tuple[str, str], dict[str, int]] = {}
    ours: dict[tuple[str, str], Decimal] = {}
    not_comparable = {(each.day, each.model) for each in adjustments(reader, first.isoformat(), last.isoformat())}

    def count(key: tuple[str, str], told: Mapping[str, int], sign: int) -> None:
        into = left.setdefault(key, dict.fromkeys(KINDS, 0))
        for name in KINDS:
            into[name] += sign * told[name]

    for day, lines in bill.days.items():
        for line in lines:
            key = (day, plain_name(line.model or "(none)"))
            count(key, line._asdict(), 1)
            if line.service_tier == "batch":
                not_comparable.add(key)
    for sums in our_sums(reader, first, last):
        key = (str(sums.keys[0]), plain_name(sums.keys[1] or "(none)"))
        count(key, sums.counts, -1)
        ours[key] = EXACT.add(ours.get(key, Decimal(0)), sums.books.billed)
        if sums.books.unpriced or sums.books.unsettled or sums.counts["web_search_requests"]:
            not_comparable.add(key)
    found = []
    for (day, model), (theirs, lines_) in sorted(_costs_of(reader, first, last, bill.days.keys(), takes_open).items()):
        agrees = all(abs(value) <= tolerance for value in left.get((day, model), {}).values())
        if (day, model) in ours and agrees and (day, model) not in not_comparable:
            mine = ours[day, model]
            is_same = abs(EXACT.subtract(mine, theirs)) <= lines_
            found.append(Money(day, model, mine, theirs, Verdict.MATCHES if is_same else Verdict.PRICE))
    return found


def _costs_of(
    reader: Reader, first: date, last: date, days: Container[str], takes_open: bool
) -> dict[tuple[str, str], tuple[Decimal, Decimal]]:
    """Return what upstream billed in USD for tokens, by day and model, and by how much that may be rounded."""
    found: dict[tuple[str, str], tuple[Decimal, Decimal]] = {}
    origins: dict[str, str] = {}
    for each in bucket_spans(reader, "costs", _start(first), _start(last)):
        day = each.since[:10]
        is_open = not takes_open and not is_final(each.until, each.loaded_at)
        if day not in days or is_open or origins.setdefault(day, each.origin) != each.origin:
            continue  # `api` comes before `csv`
        for line in lines_of(reader, "costs", each.number):
            if _is_for_tokens(line):
                amount, rounded = found.get((day, plain_name(line.model)), (Decimal(0), Decimal(0)))
                amount = EXACT.add(amount, Decimal(line.amount))
                found[day, plain_name(line.model)] = amount, rounded + ROUNDED[each.origin]
    return found


def _is_for_tokens(line: CostLine) -> bool:
    return line.model is not None and line.cost_type in (None, "tokens", "token")


def _start(day: date) -> str:
    return format_moment(datetime(day.year, day.month, day.day))  # noqa: DTZ001 - a day of UTC
