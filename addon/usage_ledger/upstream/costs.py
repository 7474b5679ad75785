"""Costs: what days cost by our prices, against what was billed for them.

Room: upstream. Imports the standard library, the ledger and its neighbours in this room. Money is compared where tokens
agree and nowhere else, so that a price is told from a lost request.
"""

from collections.abc import Container, Mapping
from datetime import date
from decimal import Decimal
from typing import NamedTuple

from usage_ledger.ledger.adjustments import adjustments
from usage_ledger.ledger.bill import KINDS, CostLine, bucket_spans, lines_of, was_loaded_late
from usage_ledger.ledger.moments import start_of
from usage_ledger.ledger.money import EXACT
from usage_ledger.ledger.reading import Reader
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


def compare_costs(reader: Reader, bill: Bill, first: date, last: date, tolerance: int, takes_open: bool) -> list[Money]:
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
