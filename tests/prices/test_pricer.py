"""The pricer: own prices before the list, what multiplies them, and rows that are about to be written."""

import logging
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from usage_ledger.ledger.money import as_amount, as_text
from usage_ledger.ledger.record import Entry
from usage_ledger.prices import listed
from usage_ledger.prices.own import read_prices
from usage_ledger.prices.parts import UnpricedError
from usage_ledger.prices.pricer import Price, Pricer

from tests.prices.rows import entry, iteration

OWN = "input = 1\noutput = 2\ncache_write_5m = 3\ncache_write_1h = 4\ncache_read = 5\n"


@pytest.fixture
def pricer_of(tmp_path: Path) -> Any:
    def make(text: str) -> Pricer:
        (tmp_path / "prices.toml").write_text(text)
        return Pricer(read_prices(tmp_path / "prices.toml"))

    return make


def cost(pricer: Pricer, model: str, *iterations: Any, **fields: Any) -> str:
    return as_text(pricer.price(entry(model, *iterations, **fields)).amount)


def test_own_prices_take_precedence_and_say_so(pricer_of: Any) -> None:
    pricer = pricer_of(f'[[price]]\nmodel = "claude-sonnet-*"\n{OWN}')
    price = pricer.price(entry("claude-sonnet-4-6", tokens=(1_000, 100, 10, 10, 10)))
    assert price == Price(Decimal("0.00132"), pricer.own.entries[0].source)  # 1000 + 200 + 30 + 40 + 50 millionths
    other = pricer.price(entry("claude-haiku-4-5", tokens=(1_000,)))
    assert other == Price(Decimal("0.001"), listed.SOURCE)


def test_a_subscription_carries_the_list_price_whatever_a_contract_says(pricer_of: Any) -> None:
    pricer = pricer_of(f'[[price]]\nmodel = "claude-sonnet-*"\n{OWN}')
    price = pricer.price(entry("claude-sonnet-4-6", tokens=(1_000,), credential_kind="oauth"))
    assert price == Price(Decimal("0.003"), listed.SOURCE)


def test_own_prices_know_models_that_the_list_does_not(pricer_of: Any) -> None:
    pricer = pricer_of(f'[[price]]\nmodel = "relay-1"\nunlisted = true\n{OWN}')
    assert cost(pricer, "relay-1", tokens=(1_000,)) == "0.001"
    with pytest.raises(UnpricedError):
        cost(pricer, "relay-2", tokens=(1_000,))


def test_own_prices_go_by_account_and_day(pricer_of: Any) -> None:
    pricer = pricer_of(
        '[[price]]\nmodel = "*"\naccount = "acme"\nsince = 2026-11-01\nuntil = 2026-12-01\nmultiplier = 0.5'
    )
    for account, day, expected in (
        ("acme", "2026-10-31T23:59:59.999Z", "3"),
        ("acme", "2026-11-01T00:00:00.000Z", "1.5"),
        ("acme", "2026-11-30T23:59:59.999Z", "1.5"),
        ("acme", "2026-12-01T00:00:00.000Z", "3"),
        ("other", "2026-11-15T00:00:00.000Z", "3"),
    ):
        assert cost(pricer, "claude-sonnet-4-6", tokens=(10**6,), account_id=account, occurred_at=day) == expected


def test_a_multiplier_is_of_the_list_price_with_all_that_belongs_to_it(pricer_of: Any) -> None:
    pricer = pricer_of('[[price]]\nmodel = "*"\nmultiplier = 0.85')
    fields = {"tokens": (10_000, 2_000, 4_000, 3_000, 50_000), "web_search_requests": 2}
    assert cost(pricer, "claude-sonnet-4-6", **fields) == "0.1088"  # (0.108 + 0.02) x 0.85
    assert cost(pricer, "claude-sonnet-4-6", inference_geo="us", **fields) == "0.11798"  # (0.1188 + 0.02) x 0.85
    assert cost(pricer, "claude-opus-5-5", speed="fast", **fields) == "0.2448"  # (0.268 + 0.02) x 0.85
    source = pricer.price(entry("claude-sonnet-4-6", **fields)).source
    assert source == f"{pricer.own.entries[0].source} of {listed.SOURCE}"
    with pytest.raises(UnpricedError, match="does not know"):
        cost(pricer, "claude-opus-9", **fields)


@pytest.mark.parametrize(
    ("says", "fields", "expected"),
    [
        ("", {"service_tier": "batch"}, "0.5"),
        ("", {"inference_geo": "us"}, "1.1"),
        ("", {"inference_geo": "global"}, "1"),
        ("", {"inference_geo": "us", "service_tier": "batch"}, "0.55"),
        ("us = 1", {"inference_geo": "us"}, "1"),
        ("batch = 0.4", {"service_tier": "batch"}, "0.4"),
        ("fast = 2.5", {"speed": "fast"}, "2.5"),
        ("priority = 0.9", {"service_tier": "priority"}, "0.9"),
        ("fast = 2\nus = 1.2", {"speed": "fast", "inference_geo": "us"}, "2.4"),
        ("", {"speed": "fast"}, None),
        ("", {"service_tier": "priority"}, None),
        ("", {"service_tier": "flex"}, None),
        ("", {"inference_geo": "eu"}, None),
        ("", {"web_search_requests": 1}, None),
        ("web_search = 500", {"web_search_requests": 1, "inference_geo": "us"}, "1.6"),
    ],
)
def test_what_multiplies_own_prices(pricer_of: Any, says: str, fields: dict[str, Any], expected: str | None) -> None:
    """Batch and US-only requests as Anthropic does unless the entry says otherwise; what nobody says stays unpriced."""
    pricer = pricer_of(f'[[price]]\nmodel = "m"\n{OWN}{says}')
    if expected is None:
        with pytest.raises(UnpricedError):
            cost(pricer, "m", tokens=(10**6,), **fields)
    else:
        assert cost(pricer, "m", tokens=(10**6,), **fields) == expected


def test_iterations_are_priced_by_whichever_prices_are_theirs(pricer_of: Any) -> None:
    pricer = pricer_of(f'[[price]]\nmodel = "claude-opus-*"\n{OWN}')
    advised = entry("claude-sonnet-4-6", iteration(None, 1_000), iteration("claude-opus-5-5", 1_000), tokens=(2_000,))
    source = f"{listed.SOURCE}, {pricer.own.entries[0].source}"
    assert pricer.price(advised) == Price(Decimal("0.004"), source, (Decimal("0.003"), Decimal("0.001")))


def test_each_iteration_is_told_what_it_cost_and_the_web_searches_are_the_rows() -> None:
    unbilled = iteration("claude-opus-9", 1_000, billed=None)
    one = entry(
        "claude-sonnet-4-6", unbilled, iteration(None, 1_000), iteration(None), tokens=(1_000,), web_search_requests=1
    )
    Pricer().fill(one)
    assert one.record.total_cost == "0.013"
    assert [each.total_cost for each in one.iterations] == [None, "0.003", "0"]


def test_web_searches_are_priced_under_the_rows_own_model(pricer_of: Any) -> None:
    pricer = pricer_of(f'[[price]]\nmodel = "claude-opus-*"\n{OWN}web_search = 1000')
    advised = (iteration(None, 1_000), iteration("claude-opus-5-5", 1_000))
    assert cost(pricer, "claude-sonnet-4-6", *advised, tokens=(2_000,), web_search_requests=1) == "0.014"


def test_iterations_that_say_nothing_leave_the_columns() -> None:
    assert cost(Pricer(), "claude-sonnet-4-6", iteration("claude-opus-9"), tokens=(1_000,)) == "0.003"


def test_iterations_that_do_not_add_up_have_no_price() -> None:
    with pytest.raises(UnpricedError, match="do not add up"):
        cost(Pricer(), "claude-sonnet-4-6", iteration(None, 1_000), tokens=(1_001,))


def test_a_corrected_row_costs_what_its_columns_say() -> None:
    corrected = {"tokens": (2_000,), "metadata": '{"_manually_updated": true}', "usage_state": "missing"}
    assert cost(Pricer(), "claude-sonnet-4-6", iteration("claude-opus-5-5", 1_000), **corrected) == "0.006"


def test_where_nothing_is_billed_nothing_is_owed() -> None:
    price = Pricer().price(entry("claude-sonnet-4-6", iteration(None, 1_000, billed=None)))
    assert price == Price(Decimal(0), listed.SOURCE, (None,))


SERVER_TOOLS = '{"input_tokens": 1, "server_tool_use": {"web_search_requests": 0}}'


@pytest.mark.parametrize("several", [{"review_reason": "multiple_messages"}, {"usage_raw": SERVER_TOOLS}])
def test_the_sum_of_several_prompts_is_not_one_long_prompt(several: dict[str, str]) -> None:
    """Several messages in one body, and the calls that server tools make within one request."""
    assert cost(Pricer(), "claude-haiku-5-5", tokens=(50_000, 0, 0, 0, 50_000), **several) == "0.0055"
    assert cost(Pricer(), "claude-sonnet-4-6", tokens=(300_000,), **several) == "0.9"
    with pytest.raises(UnpricedError, match="costs more for long prompts"):
        cost(Pricer(), "claude-haiku-5-5", tokens=(50_001, 0, 0, 0, 50_000), **several)


@pytest.mark.parametrize("raw", [None, "null", "[]", "no json", "[" * 9999, '{"server_tool_use": null}'])
def test_one_prompt_is_one_prompt(raw: str | None) -> None:
    assert cost(Pricer(), "claude-haiku-5-5", tokens=(100_001,), usage_raw=raw) == "0.0500005"


def test_several_messages_that_are_priced_differently_have_no_price() -> None:
    with pytest.raises(UnpricedError, match="several messages"):
        cost(Pricer(), "claude-sonnet-4-6", metadata='{"messages_differ": ["speed"]}', tokens=(1,))


def test_what_cannot_be_exact_has_no_price(pricer_of: Any) -> None:
    """Prices have 9 digits on either side of the point and counts 15, which leaves room; an edited row may not."""
    pricer = pricer_of('[[price]]\nmodel = "*"\nmultiplier = 0.123456789')
    largest = cost(pricer, "claude-haiku-4-5", tokens=(10**15 - 1,))
    assert Decimal(largest) == Decimal(10**15 - 1) * Decimal("0.123456789") / 10**6
    for count in (10**40, int("9" * 200)):
        with pytest.raises(UnpricedError, match=r"too many digits|cannot be right"):
            cost(pricer, "claude-haiku-4-5", tokens=(count,))


@pytest.mark.parametrize("fields", [{"occurred_at": "yesterday"}, {"occurred_at": ""}, {"web_search_requests": -1}])
def test_what_another_program_has_made_of_a_row_is_a_reason_and_no_failure(fields: dict[str, Any]) -> None:
    with pytest.raises(UnpricedError, match="cannot be right"):
        cost(Pricer(), "claude-sonnet-4-6", tokens=(1_000,), **fields)


def test_the_smallest_cost_is_an_amount(pricer_of: Any) -> None:
    smallest = "0.000000001"
    own = "\n".join(f"{name} = {smallest}" for name in ("input", "output", "cache_write_5m", "cache_write_1h"))
    factors = "\n".join(f"{name} = {smallest}" for name in ("batch", "us", "fast"))
    pricer = pricer_of(f'[[price]]\nmodel = "m"\ncache_read = 0\n{own}\n{factors}')
    odd = {"service_tier": "batch", "speed": "fast", "inference_geo": "us"}
    assert as_amount(cost(pricer, "m", tokens=(1,), **odd)) == Decimal("1e-42")


def filled(pricer: Pricer, one: Entry) -> tuple[str | None, str | None]:
    pricer.fill(one)
    return one.record.total_cost, one.record.price_source


def test_a_complete_row_gets_its_cost_before_it_is_written() -> None:
    assert filled(Pricer(), entry("claude-sonnet-4-6", tokens=(1_000,))) == ("0.003", listed.SOURCE)


@pytest.mark.parametrize("state", ["pending", "partial", "missing", "none"])
def test_any_other_row_is_left_as_it_is(state: str) -> None:
    one = entry("claude-sonnet-4-6", tokens=(1_000,), usage_state=state)
    assert filled(Pricer(), one) == (None, None)


def test_why_rows_stay_unpriced_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    pricer = Pricer()
    with caplog.at_level(logging.WARNING):
        for model in ("claude-opus-9", "claude-opus-9", "claude-opus-10", "claude-opus-9"):
            assert filled(pricer, entry(model, tokens=(1_000,))) == (None, None)
    assert ["model claude-opus-9." in each.message for each in caplog.records] == [True, False]
    assert all("usage-ledger price" in each.message for each in caplog.records)


def test_names_from_outside_do_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    pricer = Pricer()
    for number in range(1_000):
        pricer.fill(entry(f"model-{number}", tokens=(1,)))
    assert len(caplog.records) == 50
