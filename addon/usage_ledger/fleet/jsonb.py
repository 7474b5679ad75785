"""jsonb: JSON of a ledger, which may hold anything, as PostgreSQL takes it.

Room: fleet. Imports the standard library and the ledger's columns. PostgreSQL refuses NUL, halves of surrogate pairs
and NaN, and what is no JSON at all.
"""

import json
from collections.abc import Sequence
from typing import Any

from usage_ledger.ledger.columns import COLUMNS, JSON_COLUMNS


def mended(cells: Sequence[Any]) -> list[Any]:
    """Return a row's cells (`COLUMNS`) as PostgreSQL takes them: JSON that it cannot hold is a text within JSON."""
    result = list(cells)
    for place, name in enumerate(COLUMNS):
        if name in JSON_COLUMNS and result[place] is not None:
            result[place] = _mended_json(str(result[place]))
    return result


def _mended_json(text: str) -> str:
    try:
        value = _mended(json.loads(text))
    except (ValueError, RecursionError):
        value = _mended({"_not_json": text})
    return json.dumps(value).replace(r"\u0000", r"\ufffd")


def _mended(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    if isinstance(value, list):
        return [_mended(each) for each in value]
    if isinstance(value, dict):
        return {_mended(name): _mended(each) for name, each in value.items()}
    return value
