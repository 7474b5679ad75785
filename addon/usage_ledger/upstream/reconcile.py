"""Reconcile: the rows against the bill, bucket by bucket, with a name for every difference.

Room: upstream. Imports the standard library, the ledger and its neighbours in this room. Tokens are compared first, by
UTC day, model and whatever else is asked for; money only where they agree, so that a price is told from a lost request.
Promises that nothing is compared that is not the same: open days, days without a bill and keys that nobody can tell
apart are named instead.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from usage_ledger.ledger.adjustments import Adjustment, adjustments
from usage_ledger.ledger.bill import KINDS, api_keys
from usage_ledger.ledger.columns import CACHE_DURATIONS
from usage_ledger.ledger.moments import start_of
from usage_ledger.ledger.reading import Reader
from usage_ledger.ledger.summary import Sums
from usage_ledger.upstream import kinds
from usage_ledger.upstream.answers import BillError
from usage_ledger.upstream.costs import Money, compare_costs
from usage_ledger.upstream.days import Bill, bill_of, our_sums, whole_days
from usage_ledger.upstream.names import Names
from usage_ledger.upstream.verdicts import SETTLED, Verdict

DIMENSIONS = ("day", "model", "key", "workspace")


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

    def add(self, sums: Sums) -> None:
        """Add rows of ours."""
        for name in KINDS:
            self.ours[name] += sums.counts[name]
        untold = sums.counts["cache_creation_input_tokens"] - sum(sums.counts[name] for name in CACHE_DURATIONS)
        self.ours[CACHE_DURATIONS[0]] += untold
        self.of_unknown_duration += untold
        self.requests += sums.requests
        self.flagged += sums.flagged

    def differences(self) -> dict[str, int]:
        """Return what upstream billed beyond our rows, by kind."""
        return kinds.settled(kinds.differences(self.ours, self.theirs), self.of_unknown_duration)

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
    comparison = _Comparison(bill, Names(api_keys(reader), bill, by))
    comparison.add_bill()
    comparison.add_rows(our_sums(reader, first, last))
    comparison.add_adjustments(adjustments(reader, first.isoformat(), last.isoformat()))
    return Result(
        start_of(first),
        start_of(last),
        tuple(by),
        comparison.judged(tolerance),
        compare_costs(reader, bill, first, last, tolerance, takes_open),
        bill.open_days,
        bill.missing,
        sorted(comparison.rows_without_bill),
    )


class _Comparison:
    """Puts both sides into buckets. `rows_without_bill`: days without a bill on which we have rows."""

    def __init__(self, bill: Bill, names: Names) -> None:
        self._bill = bill
        self._names = names
        self._buckets: dict[tuple[tuple[str, ...], bool], Bucket] = {}
        self.rows_without_bill: set[str] = set()

    def _bucket(self, keys: tuple[str, ...], is_batch: bool) -> Bucket:
        return self._buckets.setdefault((keys, is_batch), Bucket(keys, is_batch))

    def add_bill(self) -> None:
        for day, lines in self._bill.days.items():
            for line in lines:
                one = self._bucket(self._names.theirs(day, line), line.service_tier == "batch")
                one.is_ambiguous = one.is_ambiguous or self._names.is_ambiguous(line.api_key)
                for name in KINDS:
                    one.theirs[name] += getattr(line, name)

    def add_rows(self, found: Iterable[Sums]) -> None:
        for sums in found:
            day, model, key, workspace, tier = sums.keys
            if day in self._bill.missing and sums.requests:
                self.rows_without_bill.add(str(day))
            if day in self._bill.days:
                one = self._bucket(self._names.ours(str(day), model, key, workspace), tier == "batch")
                one.is_ambiguous = one.is_ambiguous or self._names.is_ambiguous(key)
                one.add(sums)

    def add_adjustments(self, found: Iterable[Adjustment]) -> None:
        for made in found:
            if made.day in self._bill.days:
                one = self._bucket(self._names.adjusted(made), is_batch=False)
                one.adjustments += 1
                for name, count in zip(KINDS, made.counts, strict=True):
                    one.ours[name] += count

    def judged(self, tolerance: int) -> list[Bucket]:
        """Return the buckets in order, without those in which nothing is."""
        for one in self._buckets.values():
            one.judge(tolerance)
        buckets = [self._buckets[key] for key in sorted(self._buckets)]
        return [one for one in buckets if one.flagged or any(one.ours.values()) or any(one.theirs.values())]
