"""The file of `usage-ledger backfill`: which row each of its lines is about, and which counts it has.

Room: cli. Imports click and the names of the ledger's columns. Promises that every bad line is told with its number.
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import click

from usage_ledger.cli.spreadsheets import unguarded
from usage_ledger.ledger.columns import COLUMNS, COUNT_COLUMNS

KEYS = ("id", "request_id", "message_id")
"""What a line finds its row by: the first of these that it has."""

_COMPARED = (
    *("occurred_at", "completed_at", "usage_state", "requires_manual_review", "review_reason", "metadata"),
    *("total_cost", "usage_raw", "response_bytes"),
)
"""Columns of an export in which a row may not have changed since; the counts are for the person to change."""


@dataclass
class Line:
    """One line of a file, or what the options say: which row, and which counts.

    `keys` are the names that it calls its row by, the one that finds it first; `exported` is what an export said of the
    row. What `confirms` is said of this one row as it is now: it settles it also where the counts are those it has.
    """

    place: str
    keys: dict[str, str]
    counts: dict[str, int]
    note: str
    exported: dict[str, str]
    confirms: bool = False


class LineError(Exception):
    """A line that cannot be used."""


def read(path: Path, note: str) -> tuple[list[Line], list[str]]:
    """Read a CSV file; return its lines, and what is wrong with those that cannot be read."""
    lines: list[Line] = []
    bad: list[str] = []
    csv.field_size_limit(16 * 1024 * 1024)  # an export has upstream's usage as it came
    with _opened(path) as file:
        rows = csv.DictReader(file, strict=True)
        try:
            _check_header(path, rows.fieldnames or [])
            for row in rows:
                if not any(row.values()):
                    continue  # what spreadsheets leave at the end
                place = f"{path}:{rows.line_num}"
                try:
                    lines.append(_line(place, row, note))
                except LineError as error:
                    bad.append(f"{place}: {error}")
        except UnicodeDecodeError as error:
            bad.append(f"{path}: after line {rows.line_num}: it is not UTF-8 text: {error}")
        except csv.Error as error:
            bad.append(f"{path}: after line {rows.line_num}: it is not CSV: {error}")
    return lines, bad


def _opened(path: Path) -> TextIO:
    try:
        return path.open(encoding="utf-8-sig", newline="")
    except OSError as error:
        raise click.ClickException(f"cannot read {path}: {error.strerror}") from error


def _check_header(path: Path, names: Any) -> None:
    known = {*COLUMNS, "note"}
    for name in names:
        if name not in known and ";" in name:
            raise click.ClickException(f"{path}: its cells are separated by semicolons; save it with commas")
        if name not in known:
            raise click.ClickException(f"{path}: unknown column {name!r}; there are those of an export, and note")
    if len(set(names)) < len(names):
        raise click.ClickException(f"{path}: a column is there twice")
    if not set(names) & set(KEYS) or not set(names) & set(COUNT_COLUMNS):
        raise click.ClickException(
            f"{path}: it has no column of {', '.join(KEYS)}, or none of counts like input_tokens"
        )


def _line(place: str, row: Mapping[str | None, Any], note: str) -> Line:
    if None in row or None in row.values():
        raise LineError("it has more or fewer cells than the header")
    keys = {name: unguarded(row[name]) for name in KEYS if row.get(name)}
    if not keys:
        raise LineError(f"it says no row; give its {', '.join(KEYS[:-1])} or {KEYS[-1]}")
    return Line(
        place,
        keys,
        {name: _count(name, row[name]) for name in COUNT_COLUMNS if row.get(name, "").strip()},
        unguarded(row.get("note") or "") or note,
        {name: unguarded(row[name]) for name in _COMPARED if name in row},
    )


def _count(name: str, cell: str) -> int:
    text = cell.strip()
    if not text.isascii() or not text.isdigit():
        raise LineError(f"{name} is {text!r}, which is no whole number from 0 on")
    if len(text.lstrip("0")) > 18:
        raise LineError(f"{name} is {text[:30]}, which is no count")
    return int(text)
