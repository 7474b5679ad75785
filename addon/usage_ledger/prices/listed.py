"""List prices: Anthropic's own, as `genai-prices` holds them, dated and exact.

Room: prices. Imports `genai-prices`, slowly (0.1 s and more, 27 MB), so this module is only imported where something is
priced. Promises that nothing is priced by a default: a model, a kind of token or a mode without a price of its own
raises `UnpricedError`.
"""

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from typing import NamedTuple

import genai_prices
from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import ClauseEquals, ClauseOr, ClauseStartsWith, ModelInfo, ModelPrice, TieredPrices, Usage

from usage_ledger.prices import rules
from usage_ledger.prices.own import matches
from usage_ledger.prices.parts import Tokens, UnpricedError

SOURCE = f"genai-prices {genai_prices.__version__}"

_anthropic = get_snapshot().find_provider(None, "anthropic", None)


class Rates(NamedTuple):
    """What one kind of request to one model costs. `factor` multiplies the price of tokens, not of web searches."""

    prices: ModelPrice
    factor: Decimal


def own_prices(prices: Mapping[str, Decimal]) -> ModelPrice:
    """Make a set of prices of own ones: USD per million tokens, and per 1,000 web searches."""
    return ModelPrice(
        input_mtok=prices["input"],
        output_mtok=prices["output"],
        cache_write_mtok=prices["cache_write_5m"],
        cache_write_1h_mtok=prices["cache_write_1h"],
        cache_read_mtok=prices["cache_read"],
        web_searches_kcount=prices.get("web_search"),
    )


def list_rates(model: str, moment: datetime, tier: str, speed: str) -> Rates:
    """Return what a model costs at a moment (UTC), in a service tier and at a speed."""
    found = _find_model(model)
    if found is None:
        raise UnpricedError(f"{SOURCE} does not know the model {model}")
    standard = _prices_of(found, moment)
    if speed == "fast":
        prices = _prices_of(found, moment, {"speed": "fast"})
        if prices == standard or tier == "batch":
            raise UnpricedError(f"{SOURCE} has no {'batch ' if tier == 'batch' else ''}price for {model} in fast mode")
        return Rates(prices, Decimal(1))
    if tier == "batch":
        prices = _prices_of(found, moment, {"processing": "batch"})
        return Rates(prices, rules.BATCH if prices == standard else Decimal(1))
    if tier == "priority":
        raise UnpricedError("priority capacity is bought by contract and has no list price")
    return Rates(standard, Decimal(1))


def _prices_of(model: ModelInfo, moment: datetime, context: Mapping[str, str] | None = None) -> ModelPrice:
    prices = model.get_prices(moment, context)
    cut, times = rules.CACHE_READS_BEFORE.get(model.id, (moment.date(), Decimal(1)))
    reads = prices.cache_read_mtok
    if moment.date() < cut and isinstance(reads, Decimal):
        prices = ModelPrice(**{**vars(prices), "cache_read_mtok": reads * times})
    ended = rules.LONG_CONTEXT_ENDED.get(model.id)
    if ended is None or moment.date() < ended:
        return prices
    return ModelPrice(**{key: _base(price) for key, price in vars(prices).items()})


def _base(price: Decimal | TieredPrices | None) -> Decimal | None:
    return price.base if isinstance(price, TieredPrices) else price


def tokens_cost(prices: ModelPrice, tokens: Tokens, model: str) -> Decimal:
    """Return what the tokens of one request cost in USD, all its prices by the length of its own prompt.

    It is what the library's own `ModelPrice.calc_price` returns, which a test holds it to, in a fifth of the time: each
    request of a proxy is priced. Left to itself, the library takes the price of another kind of token where one is
    missing, or none.
    """
    prompt = tokens.input + tokens.cache_write_5m + tokens.cache_write_1h + tokens.cache_read
    total = Decimal(0)
    for count, key, words in (
        (tokens.input, "input_mtok", "input"),
        (tokens.output, "output_mtok", "output"),
        (tokens.cache_write_5m, "cache_write_mtok", "5-minute cache writes"),
        (tokens.cache_write_1h, "cache_write_1h_mtok", "1-hour cache writes"),
        (tokens.cache_read, "cache_read_mtok", "cache reads"),
    ):
        if count:
            price = _at_length(getattr(prices, key), prompt)
            if price is None:
                raise UnpricedError(f"there is no price for {words} of {model}")
            total += count * price
    return total / 1_000_000


def kinds_cost(prices: ModelPrice, tokens: Tokens, model: str) -> dict[str, Decimal]:
    """Return what each kind of these tokens (fields of `Tokens`) costs in USD; their sum is `tokens_cost`."""
    prompt = tokens.input + tokens.cache_write_5m + tokens.cache_write_1h + tokens.cache_read
    flat = ModelPrice(**{key: _at_length(price, prompt) for key, price in vars(prices).items()})
    costs = {
        name: tokens_cost(flat, Tokens(0, 0, 0, 0, 0)._replace(**{name: count}), model)
        for name, count in tokens._asdict().items()
        if count
    }
    if sum(costs.values()) != tokens_cost(prices, tokens, model):
        raise UnpricedError(f"what a request to {model} costs cannot be told apart by kind")
    return costs


def _at_length(price: Decimal | TieredPrices | None, prompt: int) -> Decimal | None:
    if not isinstance(price, TieredPrices):
        return price
    return ([price.base] + [tier.price for tier in price.tiers if prompt > tier.start])[-1]


def searches_cost(prices: ModelPrice, searches: int, model: str) -> Decimal:
    """Return what a request's web searches cost in USD."""
    if prices.web_searches_kcount is None:
        raise UnpricedError(f"there is no price for web searches of {model}")
    return prices.calc_price(Usage(web_searches=searches))["total_price"]


def goes_by_length(prices: ModelPrice, tokens: Tokens) -> bool:
    """Whether these tokens cost more as one long prompt than as several short ones."""
    prompt = tokens.input + tokens.cache_write_5m + tokens.cache_write_1h + tokens.cache_read
    tiers = [tier for price in vars(prices).values() if isinstance(price, TieredPrices) for tier in price.tiers]
    return any(prompt > tier.start for tier in tiers)


def knows(pattern: str) -> bool:
    """Whether a name, or a pattern with `*`, can mean a model that has a list price."""
    if "*" not in pattern:
        return _find_model(pattern) is not None
    start = pattern.partition("*")[0]
    # `claude-opus-5-5-2026*` means dated names of a model that is listed without its dates.
    return any(matches(pattern, name) or start.startswith((f"{name}-20", f"{name}@20")) for name in _names)


@lru_cache(maxsize=1024)
def _find_model(model: str) -> ModelInfo | None:
    """Find a model by one of its names, as it is or with a date.

    The library also takes names that only begin like one (`claude-opus-4-10` for Opus 4.1), which would be a guess.
    """
    known = _names.get(_DATE.sub("", model))
    found = _anthropic.find_model(model) if known is not None else None
    return found if found is known else None


_DATE = re.compile(r"[-@]20\d\d-?(0[1-9]|1[0-2])-?(0[1-9]|[12]\d|3[01])\Z")


def _names_in(clause: object) -> Iterator[str]:
    """The names in what a model of the library is matched by."""
    if isinstance(clause, ClauseOr):
        for each in clause.or_:
            yield from _names_in(each)
    elif isinstance(clause, ClauseEquals):
        yield clause.equals
    elif isinstance(clause, ClauseStartsWith):
        yield clause.starts_with.removesuffix("@")


_names = {_DATE.sub("", name): model for model in _anthropic.models for name in (model.id, *_names_in(model.match))}
