"""Money: US dollars, exact, as text in the ledger and as `Decimal` in the program, also in sums.

Room: ledger. Imports the standard library only. Promises that no amount is ever rounded: what cannot be held exactly
raises `decimal.Inexact`.
"""

import decimal
import re
import sqlite3
from decimal import Decimal
from typing import NamedTuple

EXACT = decimal.Context(
    prec=100, traps=[decimal.Inexact, decimal.InvalidOperation, decimal.DivisionByZero, decimal.Overflow]
)
"""Enough for the sum of a billion of the largest amounts that `as_amount` takes."""

_AMOUNT = re.compile(rb"[0-9]{1,30}(\.[0-9]{1,60})?")


def as_text(amount: Decimal) -> str:
    """Write an amount in USD the one way it stands in a ledger: no exponent, no trailing zeros."""
    return format(amount.normalize(EXACT), "f") if amount else "0"


def as_amount(text: object) -> Decimal | None:
    """Read an amount in USD; None for NULL, and for what another program may have put in its place."""
    raw = text.encode("utf-8", "replace") if isinstance(text, str) else text
    if not isinstance(raw, bytes) or not _AMOUNT.fullmatch(raw):
        return None
    return Decimal(raw.decode())


def difference(whole: object, part: object) -> str | None:
    """Subtract one amount from another, both as text; None where the first one is none. No second one is 0."""
    amount = as_amount(whole)
    return None if amount is None else as_text(EXACT.subtract(amount, as_amount(part) or Decimal(0)))


UNITS = 10
"""Decimals of a dollar in which SQLite adds up short amounts, as whole numbers."""


def units(cost: str) -> str:
    """Return SQL for a column's amount in `UNITS`; NULL where it is not a short one, and left to Python.

    Short ones have a digit before the point and up to `UNITS` after it, so that SQLite's integers hold the sum of 92
    million of them. GLOB cannot repeat, so each length has a pattern; that of the BLOB counts what stands behind a NUL.
    A binary fraction of so few digits is off by far less than a half.
    """
    digit = "[0-9]"
    lengths = " ".join(f"WHEN {2 + n} THEN {cost} GLOB '{digit}.{digit * n}'" for n in range(1, UNITS + 1))
    is_short = f"CASE length(CAST({cost} AS BLOB)) {lengths} END"
    return f"CASE WHEN {is_short} THEN CAST({cost} * 1e{UNITS} + 0.5 AS INTEGER) END"


BOOKS = """
    sum(units) FILTER (WHERE NOT subscription), sum(units) FILTER (WHERE subscription),
    books(subscription, CAST(cost AS BLOB), final) FILTER (WHERE units IS NULL)
"""
"""SQL: the three columns that `books` reads, of rows that have `cost`, its `units`, `subscription` and `final`.

A call into Python is what takes the time, so only those rows make one whose cost SQLite cannot add up.
"""


class Books(NamedTuple):
    """What rows cost in USD, and how many of them that leaves out.

    `billed` is what is billed by tokens; `subscription` is the list price of what subscriptions (`oauth`) pay for
    otherwise. `unpriced` rows have final usage and no price; `unsettled` ones have no final usage.
    """

    billed: Decimal = Decimal(0)
    subscription: Decimal = Decimal(0)
    unpriced: int = 0
    unsettled: int = 0

    def plus(self, other: "Books") -> "Books":
        """Add up what two parts of the rows cost."""
        billed, subscription = (EXACT.add(self.billed, other.billed), EXACT.add(self.subscription, other.subscription))
        return Books(billed, subscription, self.unpriced + other.unpriced, self.unsettled + other.unsettled)


def books(billed: int | None, subscription: int | None, others: str | None) -> Books:
    """Read what `BOOKS` gives (NULL for no rows)."""
    more_billed, more_subscription, unpriced, unsettled = (others or "0 0 0 0").split(" ")
    return Books(_plus(billed, more_billed), _plus(subscription, more_subscription), int(unpriced), int(unsettled))


def _plus(told: int | None, more: str) -> Decimal:
    """Add up an amount in `units` (None for 0) and one in USD."""
    return Decimal(as_text(EXACT.add(EXACT.scaleb(Decimal(told or 0), -UNITS), Decimal(more))))


def register(connection: sqlite3.Connection) -> None:
    """Give a connection its functions of money.

    `money(cost)` is NULL where the text is no amount, `money_difference(whole, part)` is `difference`, and the
    aggregates are `money_sum(cost)` and `books(subscription, cost, final)`, where `subscription` tells whether a
    subscription pays for it and `final` is NULL for a part of a row that is counted otherwise. All take text as BLOB
    (`CAST(total_cost AS BLOB)`): SQLite hands on no text that is not UTF-8.
    """
    connection.create_function("money", 1, lambda cost: None if as_amount(cost) is None else cost, deterministic=True)
    connection.create_function("money_difference", 2, difference, deterministic=True)
    connection.create_aggregate("money_sum", 1, _MoneySum)  # type: ignore[arg-type]  # typeshed wants an int from it
    connection.create_aggregate("books", 3, _Books)  # type: ignore[arg-type]


class _MoneySum:
    """SQLite's own sum() would make a binary fraction of it."""

    def __init__(self) -> None:
        self._sum = Decimal(0)

    def step(self, text: object) -> None:
        amount = as_amount(text)
        if amount is not None:
            self._sum = EXACT.add(self._sum, amount)

    def finalize(self) -> str:
        return as_text(self._sum)


class _Books:
    """All in one, so that a row makes one call from SQLite into Python."""

    def __init__(self) -> None:
        self._billed = self._subscription = Decimal(0)
        self._unpriced = self._unsettled = 0

    def step(self, subscription: int, cost: object, final: int | None) -> None:
        amount = as_amount(cost)
        if amount is not None:
            if subscription:
                self._subscription = EXACT.add(self._subscription, amount)
            else:
                self._billed = EXACT.add(self._billed, amount)
        elif final:
            self._unpriced += 1
        elif final is not None:
            self._unsettled += 1

    def finalize(self) -> str:
        return f"{as_text(self._billed)} {as_text(self._subscription)} {self._unpriced} {self._unsettled}"
