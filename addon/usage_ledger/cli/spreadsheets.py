"""Spreadsheets: CSV whose text nothing takes for a formula, and back.

Room: cli. Imports the standard library only.
"""

from typing import Any

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What a cell begins with that a spreadsheet takes for a formula, full-width forms included (OWASP, CSV injection)."""

_GUARDED = tuple(f"'{start}" for start in FORMULA_STARTS)


def safe(value: Any) -> Any:
    """Return what a CSV cell holds: text that a spreadsheet would take for a formula gets an apostrophe before it."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA_STARTS) else value


def unguarded(cell: str) -> str:
    """Take the apostrophe away that `safe` has put before a text."""
    return cell[1:] if cell.startswith(_GUARDED) else cell
