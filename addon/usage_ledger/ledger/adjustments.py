"""Adjustments: what closes the differences between rows and bill that no row explains.

Room: ledger. Imports the standard library and its neighbours in this room. Promises that an adjustment is no request,
is never a row, and has its entry in the trail.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from usage_ledger.ledger import closing, revisions
from usage_ledger.ledger.bill import KINDS
from usage_ledger.ledger.marks import LedgerError
from usage_ledger.ledger.reading import Reader

if TYPE_CHECKING:
    from usage_ledger.ledger.editing import Editor


class Adjustment(NamedTuple):
    """What closes a bucket that no row explains: what upstream billed beyond the rows (less than 0: less than them).

    `day` is a day of UTC, `model` a name without its date; `api_key` and `workspace` are "" where they are not told.
    """

    day: str
    model: str
    api_key: str
    workspace: str
    counts: tuple[int, ...]
    """In the order of `KINDS`."""


def last_adjustment(reader: Reader) -> int:
    """Return the number of the last adjustment."""
    if not reader.has_table("bill_adjustments"):
        return 0
    return int(reader.connection.execute("SELECT coalesce(max(number), 0) FROM bill_adjustments").fetchone()[0])


def adjust(editor: "Editor", adjustments: Sequence[Adjustment], after: int, note: str, reopen: bool = False) -> None:
    """Store adjustments in one transaction, each with its entry in the trail. They are no requests, and never rows.

    They were worked out when `after` was the last one; others since then are a `LedgerError`, and so is one of a closed
    period, but with `reopen`.
    """
    with editor.transaction():
        if last_adjustment(editor) != after:
            raise LedgerError("somebody else has adjusted to the bill meanwhile, so nothing is adjusted; run it again")
        until = None if reopen else closing.closed_until(editor)
        for each in adjustments:
            if until is not None and each.day < until[:10]:
                raise LedgerError(f"{each.day} is of {closing.describe(until)}; --reopen adjusts it all the same")
            told = {**each._asdict(), "counts": dict(zip(KINDS, each.counts, strict=True))}
            position, _ = revisions.append(editor.connection, "adjust", [revisions.Revision(None, note, {}, told)])
            names = ("position", "day", "model", "api_key", "workspace", *KINDS)
            editor.connection.execute(
                f"INSERT INTO bill_adjustments ({', '.join(names)}) VALUES ({', '.join('?' for _ in names)})",
                (position, *each[:4], *each.counts),
            )
    editor.check_current()


def adjustments(reader: Reader, since: str, until: str) -> list[Adjustment]:
    """Return the adjustments of a span of days (`until` is not in it)."""
    if not reader.has_table("bill_adjustments"):
        return []
    found = reader.connection.execute(
        f"SELECT day, model, api_key, workspace, {', '.join(KINDS)} FROM bill_adjustments "
        "WHERE day >= ? AND day < ? ORDER BY number",
        (since, until),
    )
    return [Adjustment(row[0], row[1], row[2], row[3], tuple(row[4:])) for row in found]
