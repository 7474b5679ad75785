"""List prices: every amount here was worked out by hand from Anthropic's published prices.

Sources, read on 2026-11-24: the tables "Model pricing", "Batch processing", "Fast mode pricing", "Long context pricing"
and "Feature-specific pricing" of platform.claude.com/docs/en/about-claude/pricing, the price boxes of
platform.claude.com/docs/en/models/<model>/overview, "Data residency" (…/docs/en/manage-claude/data-residency) and
"Service tiers" (…/docs/en/api/service-tiers). Prices are USD per million tokens.
"""

import decimal
from contextlib import suppress
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import genai_prices
import pytest
from genai_prices.types import Usage
from hypothesis import given, settings
from hypothesis import strategies as st
from usage_ledger.ledger.money import EXACT, as_text
from usage_ledger.prices import listed
from usage_ledger.prices.parts import Tokens, UnpricedError
from usage_ledger.prices.pricer import Pricer

from tests.prices.rows import MOMENT, entry, iteration

ALL_KINDS = (10_000, 2_000, 4_000, 3_000, 50_000)
"""Input, output, 5-minute and 1-hour cache writes, cache reads: a prompt of 67,000 tokens."""


def cost(model: str, *iterations: Any, **fields: Any) -> str:
    return as_text(Pricer().price(entry(model, *iterations, **fields)).amount)


# model, what ALL_KINDS cost: (10 x input + 2 x output + 4 x write 5m + 3 x write 1h + 50 x read) / 1000
BY_HAND = [
    ("claude-fable-5-2", "0.258"),  # 8, 40, 10, 16, 0.20: 80 + 80 + 40 + 48 + 10
    ("claude-mythos-5-2", "0.258"),  # as Fable 5.2
    ("claude-fable-5-1", "0.3225"),  # 10, 50, 12.50, 20, 0.25: 100 + 100 + 50 + 60 + 12.5
    ("claude-fable-5", "0.36"),  # 10, 50, 12.50, 20, 1: 100 + 100 + 50 + 60 + 50
    ("claude-opus-5-5", "0.134"),  # 4, 20, 5, 8, 0.20: 40 + 40 + 20 + 24 + 10
    ("claude-opus-5", "0.18"),  # 5, 25, 6.25, 10, 0.50: 50 + 50 + 25 + 30 + 25
    ("claude-opus-4-8", "0.18"),
    ("claude-opus-4-7", "0.18"),
    ("claude-opus-4-6", "0.18"),
    ("claude-opus-4-5", "0.18"),
    ("claude-opus-4-5-20251101", "0.18"),
    ("claude-opus-4-1-20250805", "0.54"),  # 15, 75, 18.75, 30, 1.50: 150 + 150 + 75 + 90 + 75
    ("claude-opus-4-20250514", "0.54"),
    ("claude-sonnet-5-5", "0.067"),  # 2, 10, 2.50, 4, 0.10: 20 + 20 + 10 + 12 + 5
    ("claude-sonnet-5", "0.072"),  # 2, 10, 2.50, 4, 0.20: 20 + 20 + 10 + 12 + 10
    ("claude-sonnet-4-6", "0.108"),  # 3, 15, 3.75, 6, 0.30: 30 + 30 + 15 + 18 + 15
    ("claude-sonnet-4-5", "0.108"),
    ("claude-sonnet-4-5-20250929", "0.108"),
    ("claude-sonnet-4-20250514", "0.108"),
    ("claude-3-7-sonnet-20250219", "0.108"),
    ("claude-haiku-5-5", "0.0036"),  # 0.10, 0.50, 0.125, 0.20, 0.01: 1 + 1 + 0.5 + 0.6 + 0.5
    ("claude-haiku-4-5", "0.036"),  # 1, 5, 1.25, 2, 0.10: 10 + 10 + 5 + 6 + 5
    ("claude-haiku-4-5-20251001", "0.036"),
    ("claude-3-5-haiku-20241022", "0.0288"),  # 0.80, 4, 1, 1.60, 0.08: 8 + 8 + 4 + 4.8 + 4
    ("claude-3-haiku-20240307", "0.0092"),  # 0.25, 1.25, 0.30, 0.50, 0.03: 2.5 + 2.5 + 1.2 + 1.5 + 1.5
]


@pytest.mark.parametrize(("model", "expected"), BY_HAND)
def test_each_model_costs_what_anthropic_publishes(model: str, expected: str) -> None:
    assert cost(model, tokens=ALL_KINDS) == expected


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ((1_000, 0, 0, 0, 0), "0.003"),
        ((0, 1_000, 0, 0, 0), "0.015"),
        ((0, 0, 1_000, 0, 0), "0.00375"),
        ((0, 0, 0, 1_000, 0), "0.006"),
        ((0, 0, 0, 0, 1_000), "0.0003"),
        ((1, 0, 0, 0, 0), "0.000003"),
        ((0, 0, 0, 0, 1), "0.0000003"),
        ((0, 0, 0, 0, 0), "0"),
    ],
)
def test_each_kind_of_token_has_its_price(tokens: tuple[int, ...], expected: str) -> None:
    assert cost("claude-sonnet-4-6", tokens=tokens) == expected


def test_thinking_is_part_of_output() -> None:
    """ "You are charged for the full thinking tokens" as output tokens, in which they are counted."""
    assert cost("claude-sonnet-4-6", tokens=(0, 1_000), thinking_tokens=900) == "0.015"


def test_a_web_search_costs_a_cent_and_a_web_fetch_nothing() -> None:
    """Web search: $10 per 1,000 searches. Web fetch: no charge beside the tokens."""
    assert cost("claude-sonnet-4-6", tokens=(1_000,), web_search_requests=3, web_fetch_requests=5) == "0.033"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"cache_creation_input_tokens": 1_000}, "0.00375"),  # no split told
        (
            {"cache_creation_input_tokens": 1_000, "cache_creation_1h_input_tokens": 400},
            "0.00465",
        ),  # 600 x 3.75, 400 x 6
        ({"cache_creation_input_tokens": 1_000, "cache_creation_1h_input_tokens": 9_000}, "0.006"),  # the total stands
    ],
)
def test_cache_writes_of_unknown_duration_are_5_minute_ones(fields: dict[str, int], expected: str) -> None:
    assert cost("claude-sonnet-4-6", **fields) == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "0.128"),  # 0.108 and two searches
        ({"service_tier": "standard", "speed": "standard", "inference_geo": "global"}, "0.128"),
        ({"inference_geo": "not_available"}, "0.128"),
        ({"inference_geo": "us"}, "0.1388"),  # 0.108 x 1.1; searches cost the same everywhere
        ({"service_tier": "batch"}, "0.074"),  # 0.108 / 2; searches are not discounted
        ({"service_tier": "batch", "inference_geo": "us"}, "0.0794"),  # 0.054 x 1.1
    ],
)
def test_multipliers_are_of_token_prices(fields: dict[str, str], expected: str) -> None:
    assert cost("claude-sonnet-4-6", tokens=ALL_KINDS, web_search_requests=2, **fields) == expected


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("claude-fable-5-2", "0.516"),  # 16, 80, 20, 32, 0.40
        ("claude-mythos-5-2", "0.516"),
        ("claude-opus-5-5", "0.268"),  # 8, 40, 10, 16, 0.40
        ("claude-opus-5", "0.36"),  # 10, 50, 12.50, 20, 1
        ("claude-opus-4-8", "0.36"),
    ],
)
def test_fast_mode_has_prices_of_its_own(model: str, expected: str) -> None:
    assert cost(model, tokens=ALL_KINDS, speed="fast") == expected
    assert Decimal(cost(model, tokens=ALL_KINDS, speed="fast", inference_geo="us")) == Decimal(expected) * Decimal(
        "1.1"
    )


@pytest.mark.parametrize(("model", "standard"), BY_HAND)
def test_a_batch_costs_half_for_every_model_and_at_any_time(model: str, standard: str) -> None:
    """The price list has batch prices for the models of its day only; for the others the published rule holds."""
    for moment in (MOMENT, "2026-10-13T00:00:00.000Z"):
        assert Decimal(cost(model, tokens=ALL_KINDS, service_tier="batch", occurred_at=moment)) * 2 == Decimal(standard)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"tokens": (43_000, 2_000, 4_000, 3_000, 50_000)}, "0.0069"),  # 100,000: 4.3 + 1 + 0.5 + 0.6 + 0.5
        ({"tokens": (43_001, 2_000, 4_000, 3_000, 50_000)}, "0.0345005"),  # beyond: 5 times as much, for every token
        ({"tokens": (43_001, 2_000, 4_000, 3_000, 50_000), "service_tier": "batch"}, "0.01725025"),
        ({"tokens": (1_000, 900_000, 0, 0, 0)}, "0.4501"),  # output does not make a prompt long
    ],
)
def test_haiku_5_5_is_priced_by_the_length_of_the_prompt(fields: dict[str, Any], expected: str) -> None:
    assert cost("claude-haiku-5-5", **fields) == expected


@pytest.mark.parametrize(
    ("model", "day", "expected"),
    [
        ("claude-sonnet-4-6", "2026-03-12", "1.8"),  # 300,000 at 6: twice the price beyond 200,000
        ("claude-sonnet-4-6", "2026-03-13", "0.9"),  # at 3: one price for the whole window from this day on
        ("claude-opus-4-6", "2026-03-12", "3"),
        ("claude-opus-4-6", "2026-03-13", "1.5"),
        ("claude-sonnet-4-5", "2026-04-29", "1.8"),  # the last day of its long prompts
        ("claude-sonnet-4-5", "2026-04-30", "0.9"),  # several short ones, then
    ],
)
def test_a_request_costs_what_it_did_on_its_day(model: str, day: str, expected: str) -> None:
    assert cost(model, tokens=(300_000,), occurred_at=f"{day}T23:59:59.999Z") == expected


@pytest.mark.parametrize(
    "name",
    [
        *("claude-opus-4-5@20251101", "claude-opus-4-5-2025-11-01", "claude-3-5-haiku-latest", "claude-opus-4"),
        *(
            "claude-fable-5-2-20261101",
            "claude-opus-5-5-20261001",
            "claude-sonnet-4@20250514",
            "claude-3-opus-20240229",
        ),
    ],
)
def test_dated_names_and_those_of_other_clouds_are_known(name: str) -> None:
    assert listed.knows(name)


@pytest.mark.parametrize(
    ("day", "tier", "expected"),
    [
        ("2026-10-06", "standard", "0.2"),
        ("2026-10-07", "standard", "0.1"),
        ("2026-10-06", "batch", "0.1"),
        ("2026-10-07", "batch", "0.05"),
    ],
)
def test_cache_reads_of_sonnet_5_5_cost_twice_as_much_before_they_were_cut(day: str, tier: str, expected: str) -> None:
    moment = f"{day}T08:00:00.000Z"
    assert cost("claude-sonnet-5-5", tokens=(0, 0, 0, 0, 10**6), occurred_at=moment, service_tier=tier) == expected


def test_each_iteration_is_priced_alone_under_its_own_model() -> None:
    """Two prompts of 60,000 tokens are two short ones; an advisor's tokens cost what the advisor costs."""
    advised = entry(
        "claude-haiku-5-5",
        iteration(None, 60_000, 1_000),  # 60 x 0.10 + 1 x 0.50 = 6.5
        iteration("claude-opus-5-5", 1_000, 1_000),  # 4 + 20 = 24
        iteration("claude-haiku-5-5", 60_000, 0),  # 6
        iteration("claude-opus-9", 5_000, 0, billed=0),
        iteration(None, 7_000, 0, billed=None),
        tokens=(121_000, 2_000),
    )
    price = Pricer().price(advised)
    assert as_text(price.amount) == "0.0365"
    assert price.source == f"genai-prices {genai_prices.__version__}"


LIKE_ONE = [
    "claude-opus-4-10",
    "claude-opus-4-1x",
    "claude-2.5",
    "claude-sonnet-4-50",
    "claude-sonnet-4-6-turbo",
    "claude-sonnet-4-6-20261399",
    "claude-haiku-4-5-mini",
    "claude-3-opus-lite",
    "CLAUDE-sonnet-4-6",
    " claude-sonnet-4-6",
    "claude-sonnet-4-6\n",
    "claude-sonnet-4-5-20250929\n",
    "claude-opus-4-1\nfoo",
    "claude-sonnet-4-6" + "x" * 100,
]
"""Names that the price list's own matching takes for a model it knows, because they begin like it."""


@pytest.mark.parametrize(
    "model", ["claude-mythos-5", "claude-mythos-preview", "claude-opus-9", "unknown", "", "gpt-5", *LIKE_ONE]
)
def test_an_unknown_model_has_no_price(model: str) -> None:
    with pytest.raises(UnpricedError, match="does not know the model"):
        cost(model, tokens=ALL_KINDS)


@pytest.mark.parametrize(
    ("model", "fields", "reason"),
    [
        ("claude-opus-4-7", {"speed": "fast"}, "no price for claude-opus-4-7 in fast mode"),
        ("claude-sonnet-5-5", {"speed": "fast"}, "no price for claude-sonnet-5-5 in fast mode"),
        ("claude-opus-5-5", {"speed": "fast", "service_tier": "batch"}, "no batch price for claude-opus-5-5 in fast"),
        ("claude-opus-5-5", {"speed": "warp"}, "the speed warp"),
        ("claude-opus-5-5", {"service_tier": "priority"}, "bought by contract"),
        ("claude-opus-5-5", {"service_tier": "flex"}, "the service tier flex"),
        ("claude-opus-5-5", {"inference_geo": "eu"}, "inference in eu"),
        ("claude-2", {}, "5-minute cache writes of claude-2"),
        ("claude-3-haiku-20240307", {"web_search_requests": 1}, "web searches of claude-3-haiku"),
        ("claude-opus-5-5", {"tokens": (-1,)}, "below 0"),
    ],
)
def test_nothing_is_priced_by_a_default(model: str, fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnpricedError, match=reason):
        cost(model, **({"tokens": ALL_KINDS} | fields))


@given(
    model=st.sampled_from([model for model, _ in BY_HAND]),
    tokens=st.tuples(*[st.integers(0, 10**15)] * 5),
    searches=st.integers(0, 10**6),
)
@settings(deadline=None)
def test_amounts_are_exact_and_those_of_the_price_list(model: str, tokens: tuple[int, ...], searches: int) -> None:
    """Whatever the counts: nothing is rounded, and the price list's own sum is the same."""
    if model.startswith("claude-3-haiku"):
        searches = 0
    given, output, write_5m, write_1h, read = tokens
    usage = Usage(
        input_tokens=given + write_5m + write_1h + read,
        cache_write_tokens=write_5m + write_1h,
        cache_write_1h_tokens=write_1h,
        cache_read_tokens=read,
        output_tokens=output,
        web_searches=searches,
    )
    # The list's prices for long prompts of Sonnet 4.5 have no end.
    moment = "2026-04-29T08:00:00.000Z" if model.startswith("claude-sonnet-4-5") else MOMENT
    told = genai_prices.calc_price(
        usage, model, provider_id="anthropic", genai_request_timestamp=datetime.fromisoformat(moment)
    )
    assert Decimal(cost(model, tokens=tokens, web_search_requests=searches, occurred_at=moment)) == told.total_price


@pytest.mark.parametrize(
    ("pattern", "known"),
    [
        ("claude-sonnet-4-6", True),
        ("claude-sonnet-4-5-20250929", True),
        ("claude-opus-5-5-20261001", True),
        ("claude-*", True),
        ("*sonnet*", True),
        ("claude-opus-5-5-2026*", True),
        ("claude-sonet-*", False),
        ("*sonet*", False),
        ("claude-opus-9", False),
        ("claude-opus-9*", False),
        ("gpt-*", False),
        ("claude-sonnet-4-6-typo", False),
        ("claude-sonnet-4-6-t*", False),
        ("claude-[s]onnet-4-6*", False),
        ("claude-?onnet-4-6*", False),
        ("claude-opus-4-5@20251101", True),
    ],
)
def test_a_pattern_is_known_where_it_can_mean_a_listed_model(pattern: str, known: bool) -> None:
    assert listed.knows(pattern) is known


COUNTS = st.integers(0, 10**7)


@given(
    st.sampled_from(sorted(model.id for model in listed._anthropic.models)),
    st.builds(Tokens, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS),
    st.dates(date(2025, 1, 1), date(2027, 1, 1)),
)
@settings(max_examples=400, deadline=None)
def test_what_tokens_cost_is_what_the_library_says(model: str, tokens: Tokens, day: date) -> None:
    """Where it has a price for each kind of them; the library takes another kind's where it has none."""
    with suppress(UnpricedError), decimal.localcontext(EXACT):
        prices = listed.list_rates(model, datetime(day.year, day.month, day.day, tzinfo=UTC), "", "").prices
        cost = listed.tokens_cost(prices, tokens, model)
        written = tokens.cache_write_5m + tokens.cache_write_1h
        usage = Usage(
            input_tokens=tokens.input + written + tokens.cache_read,
            cache_write_tokens=written,
            cache_write_5m_tokens=tokens.cache_write_5m,
            cache_write_1h_tokens=tokens.cache_write_1h,
            cache_read_tokens=tokens.cache_read,
            output_tokens=tokens.output,
        )
        assert cost == prices.calc_price(usage)["total_price"]
