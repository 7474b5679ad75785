"""FOCUS: rows as charges, in the form that FinOps tools read (FinOps Open Cost and Usage Specification 1.2).

Room: cli. Imports the prices room and the ledger. One charge for each kind of tokens (and for web searches) of each
request that has a cost. Promises that the charges of a request add up to its cost to the last digit: where its price
data are not at hand any more, it is one charge as a whole.
"""

import contextlib
from collections.abc import Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec

from usage_ledger.ledger.corrections import is_corrected
from usage_ledger.ledger.entries import entries
from usage_ledger.ledger.filters import CHARGED, Filters
from usage_ledger.ledger.money import as_amount, as_text
from usage_ledger.ledger.reading import Reader
from usage_ledger.ledger.record import Entry, Record
from usage_ledger.prices.parts import UnpricedError
from usage_ledger.prices.pricer import Charge, Pricer

COLUMNS = (
    *("BilledCost", "BillingAccountId", "BillingAccountName", "BillingCurrency", "BillingPeriodEnd"),
    *("BillingPeriodStart", "ChargeCategory", "ChargeClass", "ChargeDescription", "ChargeFrequency"),
    *("ChargePeriodEnd", "ChargePeriodStart", "ConsumedQuantity", "ConsumedUnit", "ContractedCost", "EffectiveCost"),
    *("InvoiceId", "InvoiceIssuerName", "ListCost", "PricingQuantity", "PricingUnit", "ProviderName", "PublisherName"),
    *("ServiceCategory", "ServiceName", "ServiceSubcategory", "SubAccountId", "SubAccountName", "Tags"),
    *("x_Model", "x_TokenKind", "x_RequestId", "x_RowId", "x_ApiKeyHint", "x_PriceSource"),
)
"""The columns in their order: the mandatory ones of FOCUS 1.2, those that say more, and `x_` ones of our own."""

_WORDS = {
    "input": "input tokens",
    "output": "output tokens",
    "cache_write_5m": "5-minute cache write tokens",
    "cache_write_1h": "1-hour cache write tokens",
    "cache_read": "cache read tokens",
    "web_search": "web searches",
    "request": "tokens of all kinds",
}


def charges(reader: Reader, filters: Filters, pricer: Pricer) -> Iterator[tuple[Any, ...]]:
    """Return the charges of the rows that match, oldest first, in the order of `COLUMNS`."""
    list_prices = Pricer()
    for page in entries(reader, filters, CHARGED):
        for entry in page:
            for charge, list_cost in _told_apart(entry, pricer, list_prices):
                fields = _fields(entry.record, charge, list_cost)
                yield tuple(fields[name] for name in COLUMNS)


def _told_apart(entry: Entry, pricer: Pricer, list_prices: Pricer) -> list[tuple[Charge, Decimal]]:
    """Return a row's charges, each with what it would be by Anthropic's list; the same where that has no price."""
    record = entry.record
    cost = as_amount(record.total_cost)
    assert cost is not None
    by_list: dict[tuple[str, str], Decimal] = {}
    with contextlib.suppress(UnpricedError):
        by_list = {(each.model, each.kind): each.cost for each in list_prices.charges(entry)}
    for each in (pricer, list_prices):
        try:
            found = each.charges(entry)
        except UnpricedError:
            continue
        if sum((charge.cost for charge in found), Decimal(0)) == cost:
            return [(charge, by_list.get((charge.model, charge.kind), charge.cost)) for charge in found]
    whole = Charge(record.model, "request", record.total_tokens, cost, record.price_source or "")
    return [(whole, sum(by_list.values(), Decimal(0)) or cost)]


def _fields(record: Record, charge: Charge, list_cost: Decimal) -> dict[str, Any]:
    start = datetime.fromisoformat(record.occurred_at).replace(microsecond=0)
    end = datetime.fromisoformat(record.completed_at or record.occurred_at).replace(microsecond=0)
    month = start.replace(day=1, hour=0, minute=0, second=0)
    cost = as_text(charge.cost)
    unit, priced_by = ("Requests", 1_000) if charge.kind == "web_search" else ("Tokens", 1_000_000)
    tags = {"tag": record.tag, "service_tier": record.service_tier, "session_id": record.session_id}
    return {
        "BilledCost": cost,
        "BillingAccountId": record.organization_id or record.account_id,
        "BillingAccountName": record.account_id,
        "BillingCurrency": "USD",
        "BillingPeriodStart": _time(month),
        "BillingPeriodEnd": _time((month + timedelta(days=32)).replace(day=1)),
        "ChargeCategory": "Usage",
        "ChargeClass": "Correction" if is_corrected(record) else None,
        "ChargeDescription": f"{charge.model}: {_WORDS[charge.kind]}",
        "ChargeFrequency": "Usage-Based",
        "ChargePeriodStart": _time(start),
        "ChargePeriodEnd": _time(max(start, end) + timedelta(seconds=1)),  # it is not part of the period
        "ConsumedQuantity": charge.quantity,
        "ConsumedUnit": unit,
        "ContractedCost": cost,
        "EffectiveCost": cost,
        "InvoiceId": None,  # a row does not know on which one it is
        "InvoiceIssuerName": "Anthropic",
        "ListCost": as_text(list_cost),
        "PricingQuantity": as_text(Decimal(charge.quantity) / priced_by),
        "PricingUnit": f"{priced_by} {unit}",
        "ProviderName": "Anthropic",
        "PublisherName": "Anthropic",
        "ServiceCategory": "AI and Machine Learning",
        "ServiceName": "Claude API",
        "ServiceSubcategory": "Generative AI",
        "SubAccountId": record.workspace_id,
        "SubAccountName": record.workspace_id,
        "Tags": msgspec.json.encode({name: value for name, value in tags.items() if value}).decode(),
        "x_Model": charge.model,
        "x_TokenKind": charge.kind,
        "x_RequestId": record.request_id,
        "x_RowId": record.id,
        "x_ApiKeyHint": record.api_key_hint,
        "x_PriceSource": charge.source,
    }


def _time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
