"""Money: US dollars, exact, as text in the ledger and as `Decimal` in the program, also in sums.

Room: ledger. Imports the standard library only. Promises that no amount is ever rounded: what cannot be held exactly
raises `decimal.Inexact`.
"""

import decimal
import sqlite3
from decimal import Decimal

EXACT = decimal.Context(
    prec=60, traps=[decimal.Inexact, decimal.InvalidOperation, decimal.DivisionByZero, decimal.Overflow]
)
"""Counts have at most 15 digits and prices at most 12 decimals, so 60 digits hold any sum of their products."""


def as_text(amount: Decimal) -> str:
    """Write an amount in USD the one way it stands in a ledger: no exponent, no trailing zeros."""
    return format(amount.normalize(EXACT), "f") if amount else "0"


def as_amount(text: object) -> Decimal | None:
    """Read an amount in USD; None for NULL, and for what another program may have put in its place."""
    try:
        amount = EXACT.create_decimal(text) if isinstance(text, str) else None
    except decimal.DecimalException:
        return None
    return amount if amount is not None and amount.is_finite() and abs(amount.adjusted()) < EXACT.prec // 2 else None


def register(connection: sqlite3.Connection) -> None:
    """Give a connection `money(text)`, which is NULL where the text is no amount, and the aggregate `money_sum`."""
    connection.create_function("money", 1, lambda text: None if as_amount(text) is None else text, deterministic=True)
    connection.create_aggregate("money_sum", 1, _MoneySum)  # type: ignore[arg-type]  # typeshed wants an int from it


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
