"""The wire: rows as lines of PostgreSQL's COPY in its text format, with `SEPARATOR` and `NULL`.

Room: ledger. Imports the standard library and its neighbours in this room. Promises that a line says what its cells
hold, whatever that is; SQLite makes those of plain rows itself, which is quicker.
"""

import re
from collections.abc import Iterable

from usage_ledger.ledger.columns import COLUMNS, NUMBER_COLUMNS

SEPARATOR, NULL = "\x1f", "\x1e"

_SPECIAL = re.compile(f"[\\\\\n\r{SEPARATOR}{NULL}]")


def line_of(cells: Iterable[object]) -> str:
    """Return a line that says these cells, whatever they hold; None is NULL, and U+FFFD stands for NUL characters."""
    return SEPARATOR.join([NULL if cell is None else _cell(str(cell)) for cell in cells])


def _cell(text: str) -> str:
    if text.isprintable() and "\\" not in text:
        return text
    return _SPECIAL.sub(r"\\\g<0>", text.replace("\0", "\ufffd"))


_CELLS = ", ".join(f"coalesce({name}, '{NULL}')" for name in COLUMNS)
LINE = f"printf('{SEPARATOR.join(['%s'] * len(COLUMNS))}', {_CELLS})"
"""SQL for a line of what the addon writes, but for its backslashes; quicker than `line_of`.

Where another program has put something special, `is_whole` is false, or `IS_CUT` true.
"""


def is_whole(line: str) -> bool:
    """Whether a line of SQL's is one row: no cell of it holds a separator or a line end."""
    return line.count(SEPARATOR) == len(COLUMNS) - 1 and "\n" not in line and "\r" not in line


_TEXTS = [name for name in COLUMNS if name not in NUMBER_COLUMNS]
IS_CUT = f"'{NULL}' IN ({', '.join(_TEXTS)}) OR {' OR '.join(f'instr({name}, char(0))' for name in _TEXTS)}"
"""SQL for whether a line lacks text of its row: what is nothing but `NULL` would be none, and a NUL ends the others."""
