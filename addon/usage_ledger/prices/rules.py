"""Anthropic's price rules that no price list holds: what multiplies the price of a request's tokens.

Room: prices. Imports the standard library only. Each rule names its page in the API documentation and the day it was
read. The prices themselves are the business of `listed`.
"""

from datetime import date
from decimal import Decimal

BATCH = Decimal("0.5")
"""Batches cost half the standard token prices ("Batch processing", platform.claude.com/docs, 2026-11-24). For models
and days for which the price list has batch prices of its own, those hold."""

GEOGRAPHIES = {
    "": Decimal(1),
    "global": Decimal(1),
    "not_available": Decimal(1),  # said by models that cannot be told where to run
    "us": Decimal("1.1"),
}
"""What `inference_geo` multiplies all token prices with ("Data residency", platform.claude.com/docs, 2026-11-24). It
does not touch the price of web searches. Models before Opus 4.6 refuse the parameter, so none of them says `us`."""

SPEEDS = frozenset({"", "standard", "fast"})
"""Fast mode has no multiplier: each model that has it has fast prices of its own ("Fast mode", ibid.)."""

TIERS = frozenset({"", "standard", "batch", "priority"})
"""Priority capacity is bought by contract and has no list price ("Service tiers", ibid.)."""

CACHE_READS_BEFORE = {"claude-sonnet-5-5": (date(2026, 10, 7), Decimal(2))}
"""Until which day a model's cache reads cost how many times what the price list, which has no history of it, says: they
were cut from $0.20 to $0.10 ("Pricing", platform.claude.com/docs, as public trackers of that page noted it)."""

LONG_CONTEXT_ENDED = {"claude-sonnet-4-5": date(2026, 4, 30)}
"""From which day on a model takes no long prompts any more, for which the price list has prices without an end ("the 1M
context window beta is retired", release notes of the Claude API). A later total beyond the limit is that of several
prompts, each of them short."""
