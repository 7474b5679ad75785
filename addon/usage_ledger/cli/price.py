"""`usage-ledger price`: costs for rows that have none, or anew for a span.

Room: cli. Imports click, the prices room and the ledger. Promises that doing it twice changes nothing, that each change
leaves its entry in the trail, and that a row whose price is not known keeps what it has.
"""

from collections import Counter
from dataclasses import dataclass, field
from decimal import Decimal, localcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from usage_ledger.cli.changes import make_changes, open_to_change, refuse_closed, with_reopen
from usage_ledger.cli.options import Words, filters_from, own_pricer, with_filters, with_ledger, with_prices
from usage_ledger.cli.output import for_people, progress, say
from usage_ledger.ledger.columns import COLUMNS
from usage_ledger.ledger.filters import FINAL, MISPRICED, UNPRICED, Filters
from usage_ledger.ledger.money import EXACT, Books, as_amount, as_text
from usage_ledger.ledger.reading import Reader

if TYPE_CHECKING:
    from usage_ledger.ledger.record import Entry, Record
    from usage_ledger.prices.pricer import Pricer

REASONS_LIMIT = 20
"""So many reasons why rows stay unpriced are shown; names of models come from outside."""


@dataclass
class _Tally:
    """What was done: rows changed, by how many USD, by how many that leaves fewer or more rows out, and rows that stay
    without a cost (by reason).
    """

    changed: int = 0
    unpriced: int = 0
    unsettled: int = 0
    billed: Decimal = Decimal(0)
    subscription: Decimal = Decimal(0)
    overtaken: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    def leave(self, reason: str) -> None:
        known = reason in self.reasons or len(self.reasons) < REASONS_LIMIT
        self.reasons[reason if known else "other reasons"] += 1

    def count(self, record: "Record", cost: "_Cost") -> None:
        former, amount = as_amount(record.total_cost), as_amount(cost.amount)
        self.changed += 1
        if cost.is_final:
            self.unpriced -= former is None
        else:
            self.unsettled += (amount is None) - (former is None)
        difference = (amount or Decimal(0)) - (former or Decimal(0))
        if record.credential_kind == "oauth":
            self.subscription += difference
        else:
            self.billed += difference


class _Cost(NamedTuple):
    """What a row is to say of its cost: an amount (USD) by a source, and the parts of its iterations.

    A row whose usage is not final has no source, and no amount but the 0 of what is not billed.
    """

    amount: str | None
    source: str | None
    parts: tuple[str | None, ...]

    @property
    def is_final(self) -> bool:
        return self.source is not None


@click.command()
@with_ledger
@with_filters
@with_prices
@click.option("--unpriced", is_flag=True, help="Of the rows that match, only those without a cost.")
@click.option("--note", type=Words(), default="", metavar="TEXT", help="Why, for the trail. Default: by which prices.")
@with_reopen
@click.option("--dry-run", is_flag=True, help="Only say what would change.")
def price(
    db: Path, price_path: str | None, unpriced: bool, note: str, reopen: bool, dry_run: bool, **filters: Any
) -> None:
    """Give rows without a cost theirs; with filters, price all rows that match anew.

    Own prices come first (data/prices.example.toml shows how to write them), then Anthropic's list. A row whose price
    is not known keeps what it has; a cost where no usage is final, which only another program can have put there, is
    taken away. Each change leaves an entry in the trail.

    \b
    Examples:
      usage-ledger price
      usage-ledger price --since 2026-11-01 --until 2026-12-01 --prices contract.toml --dry-run
      usage-ledger price --model 'claude-opus-*' --unpriced
    """
    from usage_ledger.ledger.entries import entries

    chosen = filters_from(filters)
    with open_to_change(db, dry_run) as ledger, localcontext(EXACT):
        pricer = own_pricer(price_path, db)
        condition = UNPRICED if unpriced else f"({MISPRICED} OR {UNPRICED if chosen == Filters() else FINAL})"
        refuse_closed(ledger, chosen, condition, reopen)
        tally = _Tally()
        with progress("pricing", lambda: ledger.count(chosen, condition)) as advance:
            for page in entries(ledger, chosen, condition):
                proposed = _proposed(page, pricer, tally)
                made = _made(ledger, proposed, note, reopen)
                tally.overtaken += len(proposed) - len(made)
                for entry, new in made:
                    tally.count(entry.record, new)
                advance(len(page))
        _report(tally, ledger.books(chosen), dry_run)


def _proposed(page: "list[Entry]", pricer: "Pricer", tally: _Tally) -> "list[tuple[Entry, _Cost]]":
    """Return the rows of a page that cost something else than they say, and what."""
    from usage_ledger.prices.parts import UnpricedError

    proposed = []
    for entry in page:
        record = entry.record
        try:
            new = _cost(entry, pricer)
        except UnpricedError as error:
            tally.leave(str(error))
            continue
        parts = tuple(as_amount(iteration.total_cost) for iteration in entry.iterations)
        is_so = as_amount(record.total_cost) == as_amount(new.amount) and parts == tuple(map(as_amount, new.parts))
        says_so = record.price_source is not None if new.is_final else record.total_cost == new.amount
        if not (is_so and says_so):
            proposed.append((entry, new))
    return proposed


def _cost(entry: "Entry", pricer: "Pricer") -> _Cost:
    """Return what a row costs; raise `UnpricedError` where that is not known."""
    from usage_ledger.ledger.corrections import is_final

    if not is_final(entry.record):
        nothing = "0" if entry.record.usage_state == "none" else None
        return _Cost(nothing, None, (None,) * len(entry.iterations))
    price = pricer.price(entry)
    parts = tuple(None if part is None else as_text(part) for part in price.parts)
    return _Cost(as_text(price.amount), price.source, parts)


def _made(
    ledger: Reader, proposed: "list[tuple[Entry, _Cost]]", note: str, reopen: bool
) -> "list[tuple[Entry, _Cost]]":
    """Make the changes; return those whose row was still what it was priced for."""
    from usage_ledger.ledger.editing import Change
    from usage_ledger.ledger.record import fields_of

    changes = [
        Change(
            entry.record.id,
            note or (f"priced by {new.source}" if new.is_final else "no usage is final, so it has no cost"),
            expected=fields_of(entry.record, COLUMNS),
            after={"total_cost": new.amount, "price_source": new.source},
            iteration_costs=[
                (iteration.position, part) for iteration, part in zip(entry.iterations, new.parts, strict=True)
            ],
        )
        for entry, new in proposed
    ]
    made = make_changes(ledger, "price", changes, reopen=reopen)
    return [(entry, new) for entry, new in proposed if entry.record.id in made]


def _report(tally: _Tally, books: Books, dry_run: bool) -> None:
    """Say what was done, and what the rows that match cost now (or would cost), and what that leaves out."""
    out = for_people()
    billed, subscription, unpriced, unsettled = books
    if dry_run:
        billed += tally.billed
        subscription += tally.subscription
        unpriced += tally.unpriced
        unsettled += tally.unsettled

    say(out, f"{'would change' if dry_run else 'changed'} {_rows(tally.changed)}")
    say(out, f"billed: {as_text(billed)} USD ({_signed(tally.billed)})")
    if subscription or tally.subscription:
        say(
            out, f"subscriptions: {as_text(subscription)} USD ({_signed(tally.subscription)}) at list price, on no bill"
        )
    say(out, f"left out: {_rows(unpriced)} without a price, {_rows(unsettled)} without final usage")
    for reason, count in tally.reasons.most_common():
        say(out, f"no price for {_rows(count)}: {reason}")
    if tally.overtaken:
        say(out, f"left alone: {_rows(tally.overtaken)} that changed meanwhile or are not UTF-8; run it again")


def _rows(count: int) -> str:
    return f"{count:,} row{'' if count == 1 else 's'}"


def _signed(amount: Decimal) -> str:
    return as_text(amount) if amount < 0 else f"+{as_text(amount)}"
