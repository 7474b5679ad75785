"""The pricer: a row goes in, its cost and where that comes from go out.

Room: prices. Imports the standard library, `msgspec`, the ledger's record and its neighbours in this room; the price
list only when something is priced. Promises exact amounts, and NULL where a price is not known: never a default.
"""

import contextlib
import decimal
import logging
from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from usage_ledger.ledger.money import EXACT, as_amount, as_text
from usage_ledger.ledger.record import Entry, Record, metadata_of
from usage_ledger.prices import loading, rules
from usage_ledger.prices.own import OwnPrice, OwnPrices
from usage_ledger.prices.parts import UnpricedError, parts_of

if TYPE_CHECKING:
    from genai_prices.types import ModelPrice

TOLD_LIMIT = 50
"""So many reasons why rows stay unpriced are logged, each once; names of models come from outside."""

_log = logging.getLogger("usage_ledger")


class Price(NamedTuple):
    """What a request costs in USD, by which price data, and the part of each of its iterations (None: it has none)."""

    amount: Decimal
    source: str
    parts: tuple[Decimal | None, ...] = ()

    def give_to(self, entry: Entry) -> None:
        """Write the price into a row and its iterations."""
        entry.record.total_cost, entry.record.price_source = as_text(self.amount), self.source
        for iteration, part in zip(entry.iterations, self.parts, strict=True):
            iteration.total_cost = None if part is None else as_text(part)


class Charge(NamedTuple):
    """What one kind of tokens (or web searches) of one model cost in a request: how many, in USD, by which data."""

    model: str
    kind: str
    quantity: int
    cost: Decimal
    source: str


class _Rates(NamedTuple):
    """What one part costs: `token_factor` and `search_factor` multiply what `prices` give."""

    prices: "ModelPrice"
    token_factor: Decimal
    search_factor: Decimal
    source: str


class _Told(msgspec.Struct):
    """What of `usage_raw` matters here; decoding only that takes no more than a thread's small stack."""

    server_tool_use: dict[str, msgspec.Raw] | None = None


class Pricer:
    """Prices rows by own prices, else by the list. Used by one thread."""

    def __init__(self, own: OwnPrices | None = None) -> None:
        self.own = own
        self._find_own = lru_cache(maxsize=1024)(own.find) if own is not None else lambda *_: None
        self._told: set[str] = set()

    def fill(self, entry: Entry) -> None:
        """Give a complete row that is about to be written its cost; where there is none, say why, once a reason."""
        if entry.record.usage_state != "complete":
            return
        try:
            price = self.price(entry) if loading.is_loaded() else None
        except UnpricedError as error:
            self._tell(f"{error}. Put it into a price file (usage_prices) or update genai-prices")
        else:
            if price is None:
                self._tell("the price list takes long to load")
            else:
                price.give_to(entry)

    def give(self, entry: Entry) -> None:
        """Give a row its cost, or none where that is not known."""
        with contextlib.suppress(UnpricedError):
            self.price(entry).give_to(entry)

    def _tell(self, reason: str) -> None:
        if reason not in self._told and len(self._told) < TOLD_LIMIT:
            self._told.add(reason)
            _log.warning(f"usage ledger: rows stay without a price: {reason}; then run `usage-ledger price`")

    def price(self, entry: Entry) -> Price:
        """Return what a complete or corrected row costs; raise `UnpricedError` where that is not known."""
        metadata = metadata_of(entry.record)
        if "messages_differ" in metadata:
            raise UnpricedError("a body with several messages does not tell which of their tokens are priced how")
        try:
            with decimal.localcontext(EXACT):
                price = self._sum(entry, corrected=metadata.get("_manually_updated") == 1)
        except (ValueError, ArithmeticError) as error:  # counts, times or amounts that another program has put there
            raise UnpricedError("it holds a count or a time that cannot be right") from error
        if as_amount(as_text(price.amount)) is None:
            raise UnpricedError("its cost has too many digits")
        return price

    def charges(self, entry: Entry) -> list[Charge]:
        """Return what each kind of tokens of a row costs; their sum is `price`. Raises `UnpricedError` as that does."""
        from usage_ledger.prices import listed

        record, found = entry.record, []
        amount = self.price(entry).amount
        with decimal.localcontext(EXACT):
            for part in parts_of(record, entry.iterations, metadata_of(record).get("_manually_updated") == 1):
                rates = self._rates(part.model, record)
                for kind, cost in listed.kinds_cost(rates.prices, part.tokens, part.model).items():
                    quantity = getattr(part.tokens, kind)
                    found.append(Charge(part.model, kind, quantity, cost * rates.token_factor, rates.source))
            if record.web_search_requests:
                rates = self._rates(record.model, record)
                searches = listed.searches_cost(rates.prices, record.web_search_requests, record.model)
                cost = searches * rates.search_factor
                found.append(Charge(record.model, "web_search", record.web_search_requests, cost, rates.source))
            if sum(each.cost for each in found) != amount:
                raise UnpricedError("its cost cannot be told apart by kind")
        return found

    def _sum(self, entry: Entry, corrected: bool) -> Price:
        from usage_ledger.prices import listed

        record = entry.record
        total, sources = Decimal(0), dict[str, None]()
        parts: list[Decimal | None] = [None] * len(entry.iterations)
        for part in parts_of(record, entry.iterations, corrected):
            rates = self._rates(part.model, record)
            if listed.goes_by_length(rates.prices, part.tokens) and _holds_several_prompts(record):
                raise UnpricedError(f"{part.model} costs more for long prompts, and a row tells the sum of several")
            cost = listed.tokens_cost(rates.prices, part.tokens, part.model) * rates.token_factor
            total += cost
            sources[rates.source] = None
            if part.place is not None:
                parts[part.place] = cost
        if record.web_search_requests:
            rates = self._rates(record.model, record)
            searches = listed.searches_cost(rates.prices, record.web_search_requests, record.model)
            total += searches * rates.search_factor
            sources[rates.source] = None
        return Price(total, ", ".join(sources), tuple(parts))

    def _rates(self, model: str, record: Record) -> _Rates:
        """Find what a model costs in a request like this one."""
        from usage_ledger.prices import listed

        tier, speed = record.service_tier or "", record.speed or ""
        if tier not in rules.TIERS:
            raise UnpricedError(f"there is no price for the service tier {tier}")
        if speed not in rules.SPEEDS:
            raise UnpricedError(f"there is no price for the speed {speed}")
        geography = rules.GEOGRAPHIES.get(record.inference_geo or "")
        if geography is None:
            raise UnpricedError(f"there is no price for inference in {record.inference_geo}")
        # What a subscription pays for is on no bill, so its rows carry the list price whatever a contract says.
        is_billed = record.credential_kind != "oauth"
        own = self._find_own(model, record.account_id, record.occurred_at[:10]) if is_billed else None
        if own is not None and own.multiplier is None:
            return _own_rates(own, record, geography)
        rates = listed.list_rates(model, datetime.fromisoformat(record.occurred_at), tier, speed)
        if own is None or own.multiplier is None:
            return _Rates(rates.prices, rates.factor * geography, Decimal(1), listed.SOURCE)
        source = f"{own.source} of {listed.SOURCE}"
        return _Rates(rates.prices, rates.factor * geography * own.multiplier, own.multiplier, source)


def _own_rates(own: OwnPrice, record: Record, geography: Decimal) -> _Rates:
    """What an entry with prices of its own says; it may have multipliers of its own as well."""
    from usage_ledger.prices import listed

    factor = own.factors.get("us", geography) if record.inference_geo == "us" else geography
    for kind, applies, default in (
        ("batch", record.service_tier == "batch", rules.BATCH),
        ("priority", record.service_tier == "priority", None),
        ("fast", record.speed == "fast", None),
    ):
        if applies:
            one = own.factors.get(kind, default)
            if one is None:
                raise UnpricedError(f"{own.place} does not say what {kind} multiplies its prices with")
            factor *= one
    return _Rates(listed.own_prices(own.prices), factor, Decimal(1), own.source)


def _holds_several_prompts(record: Record) -> bool:
    """Whether a row's counts are of several prompts, each of them shorter than their sum.

    A request with server tools calls the model again for each of their results, and its counts are the sum; upstream
    then tells `server_tool_use`, with zeros too (recorded: 2,751 tokens at the start and 320,032 at the end).
    """
    if record.review_reason == "multiple_messages":
        return True
    with contextlib.suppress(msgspec.DecodeError, RecursionError):
        return msgspec.json.decode(record.usage_raw or "{}", type=_Told).server_tool_use is not None
    return False
