"""Tables: a few columns and rows on a terminal, as wide as it is and no wider.

Room: cli. Imports click and its neighbours in this room. Promises one line a row, whatever its cells hold.
"""

import shutil
from collections.abc import Callable, Sequence
from typing import NamedTuple, TextIO

import click

from usage_ledger.cli.output import has_colours, on_one_line

WIDTH_LIMIT = 200
"""A very wide terminal is not filled for its own sake."""

_NARROWEST = 18
"""Cells of a column that gives way, at least where there is that much in it."""


class Column(NamedTuple):
    """A column: its heading, on which side its cells stand, and when it goes where there is no room (first: highest).

    A column of rank 0 always stays, and gives way instead.
    """

    heading: str
    to_the_right: bool = True
    rank: int = 0


def terminal_width() -> int:
    return min(shutil.get_terminal_size((120, 24)).columns, WIDTH_LIMIT)


def shown_time(value: object) -> str:
    """Return a ledger time as people read it: to the second, without letters; empty where there is none."""
    return "" if value is None else str(value)[:19].replace("T", " ")


def write_table(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], out: TextIO, is_marked: Callable[[int], bool]
) -> list[str]:
    """Write a table; return the headings of the columns for which there was no room.

    Rows for which `is_marked` (by their number) stand out where colours are wanted.
    """
    from usage_ledger.cli.cells import fitted, width_of  # knows every character's width, which only a table has to

    shown = [[on_one_line(cell, out.encoding) for cell in row] for row in rows]
    widths = [
        max([len(column.heading), *(width_of(row[place]) for row in shown)]) for place, column in enumerate(columns)
    ]
    kept, dropped = _fit(columns, widths, terminal_width())
    colours = has_colours(out)

    def line(cells: Sequence[str]) -> str:
        return " ".join(
            fitted(cells[place], widths[place], to_the_right=columns[place].to_the_right) for place in kept
        ).rstrip()

    heading = line([column.heading for column in columns])
    out.write((click.style(heading, bold=True) if colours else heading) + "\n")
    for number, cells in enumerate(shown):
        text = line(cells)
        out.write((click.style(text, fg="yellow") if colours and is_marked(number) else text) + "\n")
    return [columns[place].heading for place in dropped]


def _fit(columns: Sequence[Column], widths: list[int], terminal: int) -> tuple[list[int], list[int]]:
    """Return the places of the columns that there is room for, and of the others; make those of rank 0 narrower where
    it takes that.
    """
    kept, dropped = list(range(len(columns))), list[int]()

    def needed() -> int:
        fixed = sum(widths[place] if columns[place].rank else min(widths[place], _NARROWEST) for place in kept)
        return fixed + len(kept) - 1

    for place in sorted(kept, key=lambda place: (-columns[place].rank, -place)):
        if needed() <= terminal or not columns[place].rank:
            break
        kept.remove(place)
        dropped.append(place)
    short = sum(widths[place] for place in kept) + len(kept) - 1 - terminal
    for place in reversed(kept):
        if short > 0 and not columns[place].rank:
            given = min(short, max(0, widths[place] - _NARROWEST))
            widths[place] -= given
            short -= given
    return kept, dropped
