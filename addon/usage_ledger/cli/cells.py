"""Cells: text cut and padded to so many cells of a terminal.

Room: cli. Imports `wcwidth`, so it is imported only by a command that draws a table. Promises that wide and combining
characters break no alignment: what comes back is as wide as was asked for.
"""

from wcwidth import iter_graphemes, wcswidth


def width_of(text: str) -> int:
    """How many cells a text takes that has no control characters."""
    return max(wcswidth(text), 0)


def fitted(text: str, width: int, to_the_right: bool = False) -> str:
    """Return the text in exactly `width` cells: padded, or cut and ending in an ellipsis."""
    shown = text if width_of(text) <= width else _cut(text, width - 1) + "…"
    padding = " " * (width - width_of(shown))
    return padding + shown if to_the_right else shown + padding


def _cut(text: str, width: int) -> str:
    """Keep as many whole characters, with what combines with them, as there is room for."""
    kept = ""
    for grapheme in iter_graphemes(text):
        if width_of(kept + grapheme) > width:
            break
        kept += grapheme
    return kept
