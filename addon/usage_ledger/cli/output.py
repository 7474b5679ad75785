"""Output: stdout made fit for who reads it, and text made fit for a line.

Room: cli. Imports click and the ledger's paths. Promises that no character is one that a person's terminal or locale
cannot take, and that programs get UTF-8 whatever the locale says.
"""

import io
import os
import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import click

from usage_ledger.ledger.paths import make_private_file

_UNSHOWN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode categories that move the cursor, reorder or break a line, or are no character: controls and their kin."""


FOUND = "usage_ledger.found"
"""Where a command leaves in its context's `meta` what it will end with, should its reader leave before the end."""


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


def say(out: TextIO, text: str = "") -> None:
    """Write a line for a person, whatever stands in it."""
    out.write(on_one_line(text, out.encoding) + "\n")


def _seen(character: str) -> str:
    return "\ufffd" if unicodedata.category(character) in _UNSHOWN else character


class Problems:
    """What went wrong on the way, of which the first few are told in one line."""

    LIMIT = 5

    def __init__(self) -> None:
        self._told: list[str] = []
        self._more = 0

    def add(self, problem: str) -> None:
        if len(self._told) < self.LIMIT:
            self._told.append(problem)
        else:
            self._more += 1

    @property
    def told(self) -> str:
        """The line; empty where nothing went wrong."""
        return "; ".join(self._told) + (f"; and {self._more:,} more" if self._more else "")


@contextmanager
def whole_file(path: Path) -> Iterator[TextIO]:
    """Write a private file in UTF-8 that takes its name once it is whole; compressed where that ends in .gz."""
    path = path.resolve()  # a link stays, and leads to the new file
    if path.exists() and not path.is_file():
        raise click.ClickException(f"{path} is not a file; without --output it goes to stdout")
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        with _text_file(make_private_file(unfinished, os.O_WRONLY), path.name) as out:
            yield out
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def _text_file(descriptor: int, name: str) -> Iterator[TextIO]:
    with open(descriptor, "wb") as raw:
        if name.endswith(".gz"):
            import gzip  # only where it is asked for

            with gzip.GzipFile(name.removesuffix(".gz"), "wb", fileobj=raw, mtime=0) as packed, _as_text(packed) as out:
                yield out
        else:
            with _as_text(raw) as out:
                yield out


def _as_text(raw: Any) -> TextIO:
    return io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", newline="")


@contextmanager
def progress(label: str, count: Callable[[], int]) -> Iterator[Callable[[int], object]]:
    """Show on a terminal how far it is; what there is to do is only counted there."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield lambda _steps: None
        return
    with click.progressbar(length=count(), label=label, file=sys.stderr) as bar:
        yield bar.update
