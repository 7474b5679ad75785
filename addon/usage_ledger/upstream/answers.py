"""Answers: the Admin API's JSON, read strictly.

Room: upstream. Imports the standard library, `msgspec` and the ledger's money and bill. A field that means money or
tokens and is not what the API documents is a `BillError`: a bill that is read wrong is worse than none.
Source: Anthropic's API docs, usage and cost API, and "List API keys".
"""

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec

from usage_ledger.ledger.bill import Bucket, CostLine, KeyLine, UsageLine
from usage_ledger.ledger.columns import COUNT_LIMIT
from usage_ledger.ledger.moments import format_moment
from usage_ledger.ledger.money import EXACT, as_text


class BillError(Exception):
    """A bill that cannot be fetched or read; the message is one line that says what to do."""


_WIDTHS = (timedelta(days=1), timedelta(hours=1), timedelta(minutes=1))
"""How long the API's buckets are."""

_AMOUNT = re.compile(r"-?[0-9]{1,15}(\.[0-9]{1,40})?")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
"""Buckets begin at whole multiples of their width from here."""

type _Count = int | None


class _CacheCreation(msgspec.Struct):
    ephemeral_5m_input_tokens: _Count = None
    ephemeral_1h_input_tokens: _Count = None


class _ServerTools(msgspec.Struct):
    web_search_requests: _Count = None


class _Usage(msgspec.Struct):
    """One result of a usage bucket."""

    uncached_input_tokens: int
    output_tokens: int
    cache_read_input_tokens: _Count = None
    cache_creation: _CacheCreation | None = None
    server_tool_use: _ServerTools | None = None
    model: str | None = None
    api_key_id: str | None = None
    workspace_id: str | None = None
    service_tier: str | None = None
    context_window: str | None = None
    inference_geo: str | None = None
    speed: str | None = None


class _Cost(msgspec.Struct):
    """One result of a cost bucket; `amount` is in cents."""

    amount: str
    currency: str
    description: str | None = None
    model: str | None = None
    workspace_id: str | None = None
    service_tier: str | None = None
    context_window: str | None = None
    inference_geo: str | None = None
    token_type: str | None = None
    cost_type: str | None = None


class _Bucket[T](msgspec.Struct):
    starting_at: str
    ending_at: str
    results: list[T]


class _Page[T](msgspec.Struct):
    data: list[T]
    has_more: bool = False
    next_page: str | None = None


class _Key(msgspec.Struct):
    id: str
    name: str | None = None
    partial_key_hint: str | None = None
    workspace_id: str | None = None
    status: str | None = None


class _Keys(msgspec.Struct):
    data: list[_Key]
    has_more: bool = False
    last_id: str | None = None


def usage_page(body: bytes) -> tuple[list[Bucket], str | None]:
    """Read an answer of the usage report: its buckets, and the name of the next page if there is one."""
    page = _decoded(body, _Page[_Bucket[_Usage]])
    buckets = [_bucket(each, [_usage_line(line) for line in each.results]) for each in page.data]
    return _none_twice(buckets), _next(page.has_more, page.next_page)


def cost_page(body: bytes) -> tuple[list[Bucket], str | None]:
    """Read an answer of the cost report."""
    page = _decoded(body, _Page[_Bucket[_Cost]])
    buckets = [_bucket(each, [_cost_line(line) for line in each.results]) for each in page.data]
    return _none_twice(buckets), _next(page.has_more, page.next_page)


def key_page(body: bytes) -> tuple[list[KeyLine], str | None]:
    """Read an answer of the list of API keys: its keys, and the id after which the next page begins."""
    page = _decoded(body, _Keys)
    keys = [KeyLine(key.id, key.name, key.partial_key_hint, key.workspace_id, key.status) for key in page.data]
    return keys, _next(page.has_more, page.last_id)


def kind_of(body: bytes) -> str | None:
    """Tell what a saved answer is: `usage`, `costs`, `keys`, or None for something else or an empty report."""
    try:
        told: Any = msgspec.json.decode(body)
        first = told["data"][0]
        if "partial_key_hint" in first:
            return "keys"
        results = [result for bucket in told["data"] for result in bucket["results"]]
        return None if not results else "usage" if "uncached_input_tokens" in results[0] else "costs"
    except (msgspec.DecodeError, RecursionError, TypeError, LookupError, AttributeError):
        return None


def moment(text: str) -> str:
    """Read a time of the API (RFC 3339) as a ledger time."""
    try:
        told = datetime.fromisoformat(text)
        if told.tzinfo is None:
            raise BillError(f"{text!r} does not say its time zone")
        return format_moment(told.astimezone(UTC))
    except (ValueError, OverflowError) as error:
        raise BillError(f"{text!r} is no time") from error


def _decoded[T](body: bytes, type_: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=type_)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise BillError(f"it is not what the Admin API answers: {error}") from error


def _next(has_more: bool, where: str | None) -> str | None:
    """Return where the next page begins; None where this is the last one."""
    if has_more and not where:
        raise BillError("the answer says that there is more, and not where")
    return where if has_more else None


def _bucket(told: _Bucket[Any], lines: list[UsageLine] | list[CostLine]) -> Bucket:
    since, until = moment(told.starting_at), moment(told.ending_at)
    start = datetime.fromisoformat(since)
    width = datetime.fromisoformat(until) - start
    if width not in _WIDTHS or (start - EPOCH) % width:
        raise BillError(f"a bucket goes from {told.starting_at} to {told.ending_at}, which is no day, hour or minute")
    return Bucket(since, until, tuple(lines))


def _none_twice(buckets: list[Bucket]) -> list[Bucket]:
    """Return buckets as they are; raise `BillError` where one comes twice."""
    if len({each.since for each in buckets}) < len(buckets):
        raise BillError("the answer has a bucket twice")
    return buckets


def _usage_line(told: _Usage) -> UsageLine:
    cache, tools = told.cache_creation or _CacheCreation(), told.server_tool_use or _ServerTools()
    return UsageLine(
        *(told.model, told.api_key_id, told.workspace_id, told.service_tier),
        *(told.context_window, told.inference_geo, told.speed),
        input_tokens=_count(told.uncached_input_tokens),
        output_tokens=_count(told.output_tokens),
        cache_creation_5m_input_tokens=_count(cache.ephemeral_5m_input_tokens),
        cache_creation_1h_input_tokens=_count(cache.ephemeral_1h_input_tokens),
        cache_read_input_tokens=_count(told.cache_read_input_tokens),
        web_search_requests=_count(tools.web_search_requests),
    )


def _count(value: int | None) -> int:
    if value is not None and not 0 <= value <= COUNT_LIMIT:
        raise BillError(f"{value} is no count")
    return value or 0


def _cost_line(told: _Cost) -> CostLine:
    return CostLine(
        amount=usd(told.amount, told.currency, cents=True),
        description=told.description,
        model=told.model,
        workspace=told.workspace_id,
        service_tier=told.service_tier,
        context_window=told.context_window,
        inference_geo=told.inference_geo,
        token_type=told.token_type,
        cost_type=told.cost_type,
    )


def usd(amount: str, currency: str = "USD", cents: bool = False) -> str:
    """Return an amount as exact USD; a negative one is a credit."""
    if currency.upper() != "USD":
        raise BillError(f"it is in {currency}, and the ledger is in USD")
    if not _AMOUNT.fullmatch(amount):
        raise BillError(f"{amount[:60]!r} is no amount")
    told = Decimal(amount)
    return as_text(EXACT.divide(told, Decimal(100)) if cents else told)
