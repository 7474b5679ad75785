"""The Console's CSV exports: usage and costs by day, with names where the Admin API has ids.

Room: upstream. Imports the standard library, the ledger's bill and its neighbours in this room. Columns are found by
their names, so that older exports, which lack the last few, are read too; one that is not known is refused, because
nobody could say what it does to the numbers.
"""

import csv
import io
from collections.abc import Callable, Iterator, Mapping
from datetime import date, timedelta
from typing import Any

from usage_ledger.ledger.bill import Bucket, CostLine, UsageLine
from usage_ledger.ledger.columns import COUNT_LIMIT
from usage_ledger.ledger.moments import start_of
from usage_ledger.upstream.answers import BillError, usd

_DAY = "usage_date_utc"

_USAGE = {
    "usage_input_tokens_no_cache": "input_tokens",
    "usage_input_tokens_cache_write_5m": "cache_creation_5m_input_tokens",
    "usage_input_tokens_cache_write_1h": "cache_creation_1h_input_tokens",
    "usage_input_tokens_cache_read": "cache_read_input_tokens",
    "usage_output_tokens": "output_tokens",
    "web_search_count": "web_search_requests",
}
_OF_USAGE = {_DAY, "model_version", "api_key", "workspace", "usage_type", "context_window", "inference_geo", "speed"}
_OF_COSTS = {
    *(_DAY, "model", "workspace", "api_key", "usage_type", "context_window", "token_type", "cost_usd"),
    *("list_price_usd", "cost_type", "inference_geo", "speed", "api_key_id", "api_key_status"),
}
_NEEDED = {
    "usage": {_DAY, "model_version", "usage_input_tokens_no_cache", "usage_output_tokens"},
    "costs": {_DAY, "cost_usd"},
}


def kind_of(text: str) -> str | None:
    """Tell what a CSV file is by its header: `usage`, `costs`, or None for something else."""
    try:
        names = set(next(csv.reader(io.StringIO(text, newline="")), []))
    except csv.Error:
        return None
    return next((kind for kind, needed in _NEEDED.items() if needed <= names), None)


def usage_buckets(text: str) -> list[Bucket]:
    """Read a usage export: one bucket for each day from its first to its last."""
    return _buckets(text, _OF_USAGE | _USAGE.keys(), _usage_line)


def cost_buckets(text: str) -> list[Bucket]:
    """Read a cost export, in the same way."""
    return _buckets(text, _OF_COSTS, _cost_line)


def _buckets(text: str, known: set[str], line: Callable[[Mapping[str, str]], Any]) -> list[Bucket]:
    days: dict[date, list[Any]] = {}
    for place, row in _rows(text, known):
        try:
            days.setdefault(_day(row[_DAY]), []).append(line(row))
        except BillError as error:
            raise BillError(f"line {place}: {error}") from error
    if not days:
        raise BillError("it has no lines")
    first, last = min(days), max(days)
    if (last - first).days > 4_000:
        raise BillError(f"it goes from {first} to {last}")
    span = [first + timedelta(number) for number in range((last - first).days + 1)]
    return [Bucket(start_of(day), start_of(day + timedelta(1)), tuple(days.get(day, []))) for day in span]


def _rows(text: str, known: set[str]) -> Iterator[tuple[int, dict[str, str]]]:
    lines = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    for name in lines.fieldnames or []:
        if name not in known:
            raise BillError(f"column {name!r} is not known, so nobody can say what it does to the numbers")
    if len(set(lines.fieldnames or [])) < len(lines.fieldnames or []):
        raise BillError("a column is there twice")
    try:
        for row in lines:
            if None in row or None in row.values():
                raise BillError(f"line {lines.line_num} has more or fewer cells than the header; is the file whole?")
            yield lines.line_num, row
    except csv.Error as error:
        raise BillError(f"after line {lines.line_num}: it is not CSV: {error}") from error


def _day(text: str) -> date:
    try:
        day = date.fromisoformat(text.strip())
        if not 2020 <= day.year <= 2999:
            raise ValueError
    except ValueError as error:
        raise BillError(f"{text[:40]!r} is no day") from error
    return day


def _usage_line(row: Mapping[str, str]) -> UsageLine:
    counts = {name: _count(row[column]) for column, name in _USAGE.items() if column in row}
    return UsageLine(
        model=_text(row, "model_version"),
        api_key=_text(row, "api_key"),
        workspace=_text(row, "workspace"),
        service_tier=_tier(row),
        context_window=_text(row, "context_window"),
        inference_geo=_text(row, "inference_geo"),
        speed=_text(row, "speed"),
        **counts,
    )


def _cost_line(row: Mapping[str, str]) -> CostLine:
    return CostLine(
        amount=usd(row["cost_usd"].strip()),
        model=_text(row, "model"),
        api_key=_text(row, "api_key_id") or _text(row, "api_key"),
        workspace=_text(row, "workspace"),
        service_tier=_tier(row),
        context_window=_text(row, "context_window"),
        inference_geo=_text(row, "inference_geo"),
        speed=_text(row, "speed"),
        token_type=_text(row, "token_type"),
        cost_type=_text(row, "cost_type"),
    )


def _tier(row: Mapping[str, str]) -> str | None:
    """The Console says `batch` or something that is not, where the Admin API has the service tier."""
    told = _text(row, "usage_type")
    return "batch" if told is not None and "batch" in told.lower() else None


def _text(row: Mapping[str, str], name: str) -> str | None:
    return row.get(name, "").strip() or None


def _count(cell: str) -> int:
    text = cell.strip().removesuffix(".0") or "0"
    if not text.isascii() or not text.isdigit() or len(text) > 16 or int(text) > COUNT_LIMIT:
        raise BillError(f"{cell[:40]!r} is no count")
    return int(text)
