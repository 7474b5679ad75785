"""Costs: what days cost by our prices, against what was billed for them.

Room: upstream. Imports the standard library, the ledger and its neighbours in this room. Money is compared where tokens
agree and nowhere else, so that a price is told from a lost request.
"""

from collections.abc import Container, Iterable, Mapping
from datetime import date
from decimal import Decimal
from typing import NamedTuple

from usage_ledger.ledger.adjustments import Adjustment, adjustments
from usage_ledger.ledger.bill import KINDS, CostLine, bucket_spans, lines_of, was_loaded_late
from usage_ledger.ledger.moments import start_of
from usage_ledger.ledger.money import EXACT
from usage_ledger.ledger.reading import Reader
from usage_ledger.ledger.summary import Sums
from usage_ledger.upstream.days import Bill, our_sums
from usage_ledger.upstream.models import plain_name
from usage_ledger.upstream.verdicts import Verdict

ROUNDED = {"api": Decimal("0.000001"), "csv": Decimal("0.005")}
"""By how many USD an amount of a line may be rounded: a Console's CSV has whole cents."""


class Money(NamedTuple):
    """What a day cost of one model, in USD, where its tokens agree."""

    day: str
    model: str
    ours: Decimal
    theirs: Decimal
    verdict: Verdict


class _Ours:
    """What our rows cost, and where that can be compared, by day and model.

    Left out is what has a part that the other side tells elsewhere: batches, adjustments, rows without a price, and web
    searches, which stand on a line of their own in the bill.
    """

    def __init__(self) -> None:
        self.costs: dict[tuple[str, str], Decimal] = {}
        self._apart: set[tuple[str, str]] = set()
        self._tokens: dict[tuple[str, str], dict[str, int]] = {}  # what upstream billed beyond our rows, by kind

    def _count(self, key: tuple[str, str], told: Mapping[str, int], sign: int) -> None:
        into = self._tokens.setdefault(key, dict.fromkeys(KINDS, 0))
        for name in KINDS:
            into[name] += sign * told[name]

    def add_bill(self, bill: Bill) -> None:
        for day, lines in bill.days.items():
            for line in lines:
                key = (day, plain_name(line.model or "(none)"))
                self._count(key, line._asdict(), 1)
                if line.service_tier == "batch":
                    self._apart.add(key)

    def add_rows(self, found: Iterable[Sums]) -> None:
        for sums in found:
            key = (str(sums.keys[0]), plain_name(sums.keys[1] or "(none)"))
            self._count(key, sums.counts, -1)
            self.costs[key] = EXACT.add(self.costs.get(key, Decimal(0)), sums.books.billed)
            if sums.books.unpriced or sums.books.unsettled or sums.counts["web_search_requests"]:
                self._apart.add(key)

    def add_adjustments(self, found: Iterable[Adjustment]) -> None:
        self._apart |= {(each.day, each.model) for each in found}

    def is_comparable(self, key: tuple[str, str], tolerance: int) -> bool:
        """Whether there are rows of a day and model, whose tokens all agree, and nothing of it stands elsewhere."""
        agrees = all(abs(value) <= tolerance for value in self._tokens.get(key, {}).values())
        return key in self.costs and agrees and key not in self._apart


def compare_costs(reader: Reader, bill: Bill, first: date, last: date, tolerance: int, takes_open: bool) -> list[Money]:
    """Compare what days cost, by model, where all tokens of that model agree on that day."""
    ours = _Ours()
    ours.add_adjustments(adjustments(reader, first.isoformat(), last.isoformat()))
    ours.add_bill(bill)
    ours.add_rows(our_sums(reader, first, last))
    found = []
    for key, (theirs, rounded) in sorted(_costs_of(reader, first, last, bill.days.keys(), takes_open).items()):
        if ours.is_comparable(key, tolerance):
            is_same = abs(EXACT.subtract(ours.costs[key], theirs)) <= rounded
            found.append(Money(*key, ours.costs[key], theirs, Verdict.MATCHES if is_same else Verdict.PRICE))
    return found


def _costs_of(
    reader: Reader, first: date, last: date, days: Container[str], takes_open: bool
) -> dict[tuple[str, str], tuple[Decimal, Decimal]]:
    """Return what upstream billed in USD for tokens, by day and model, and by how much that may be rounded."""
    found: dict[tuple[str, str], tuple[Decimal, Decimal]] = {}
    origins: dict[str, str] = {}
    for each in bucket_spans(reader, "costs", start_of(first), start_of(last)):
        day = each.since[:10]
        is_open = not takes_open and not was_loaded_late(each.until, each.loaded_at)
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
