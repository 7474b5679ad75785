"""Output: stdout made fit for who reads it, and text made fit for a line.

Room: cli. Imports the standard library only. Promises that no character is one that a person's terminal or locale
cannot take, and that programs get UTF-8 whatever the locale says.
"""

import io
import os
import sys
import unicodedata
from typing import TextIO

_UNSHOWN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode categories that move the cursor, reorder or break a line, or are no character: controls and their kin."""


def for_programs() -> TextIO:
    """Return stdout as UTF-8, line ends as they are written."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # JSON may name half a surrogate pair by an escape; as that escape it is written again.
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace", newline="")
    return sys.stdout


def for_people() -> TextIO:
    """Return stdout in the terminal's own alphabet, with a question mark for what that does not have."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    return sys.stdout


def has_colours(stream: TextIO) -> bool:
    """Whether colours are wanted: only on a terminal, and not with `NO_COLOR` (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR")


def on_one_line(text: str, encoding: str = "utf-8") -> str:
    """Return the text with U+FFFD for what does more than be seen, and a question mark for what `encoding` lacks."""
    seen = text if text.isascii() and text.isprintable() else "".join(map(_seen, text))
    return seen.encode(encoding, "replace").decode(encoding)


def _seen(character: str) -> str:
    return "\ufffd" if unicodedata.category(character) in _UNSHOWN else character
