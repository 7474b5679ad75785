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


class Books(NamedTuple):
    """What rows cost in USD, and how many of them that leaves out.

    `billed` is what is billed by tokens; `subscription` is the list price of what subscriptions (`oauth`) pay for
    otherwise. `unpriced` rows have final usage and no price; `unsettled` ones have no final usage.
    """

    billed: Decimal
    subscription: Decimal
    unpriced: int
    unsettled: int


def books(text: str | None) -> Books:
    """Read what the aggregate `books` gives (NULL for no rows)."""
    billed, subscription, unpriced, unsettled = (text or "0 0 0 0").split(" ")
    return Books(Decimal(billed), Decimal(subscription), int(unpriced), int(unsettled))


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
    """All in one, because a call from SQLite into Python is what takes the time."""

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
