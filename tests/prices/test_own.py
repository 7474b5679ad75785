"""Own prices: which of them holds, and files that cannot be meant so."""

import os
import re
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from usage_ledger.prices import listed
from usage_ledger.prices.own import OwnPrices, PriceFileError, matches, price_file, read_prices

FULL = "input = 3\noutput = 15\ncache_write_5m = 3.75\ncache_write_1h = 6\ncache_read = 0.30\n"


def price(model: str = "claude-*", **fields: str) -> str:
    """One `[[price]]`, its values as they stand in the file."""
    return "[[price]]\n" + "".join(f"{name} = {value}\n" for name, value in {"model": f'"{model}"', **fields}.items())


def read(folder: Path, *tables: str) -> OwnPrices:
    path = folder / "prices.toml"
    path.write_text("\n".join(tables), encoding="utf-8")
    return read_prices(path)


def test_numbers_are_taken_as_they_are_written(tmp_path: Path) -> None:
    """0.1 as a binary fraction would be 0.1000000000000000055511151231257827."""
    [entry] = read(tmp_path, price() + FULL.replace("0.30", "0.1") + "web_search = 7.000000001").entries
    assert entry.prices == {
        "input": Decimal(3),
        "output": Decimal(15),
        "cache_write_5m": Decimal("3.75"),
        "cache_write_1h": Decimal(6),
        "cache_read": Decimal("0.1"),
        "web_search": Decimal("7.000000001"),
    }


def chosen(prices: OwnPrices, model: str, account: str = "acme", day: str = "2026-11-24") -> str | None:
    found = prices.find(model, account, day)
    return None if found is None else str(found.multiplier)


def test_the_closest_entry_holds(tmp_path: Path) -> None:
    """An account before none, then the pattern that says more; the order in the file decides where both say as much."""
    prices = read(
        tmp_path,
        price("claude-*", multiplier="1"),
        price("claude-sonnet-*", multiplier="2"),
        price("claude-sonnet-4-6", multiplier="3"),
        price("*", account='"acme-*"', multiplier="4"),
        price("claude-opus-*", account='"acme-eu"', multiplier="5"),
        price("claude-*-5-5", multiplier="7"),
    )
    assert chosen(prices, "claude-haiku-4-5") == "1"
    assert chosen(prices, "claude-sonnet-4-5") == "2"
    assert chosen(prices, "claude-sonnet-4-6") == "3"
    assert chosen(prices, "claude-sonnet-4-6", "acme-us") == "4"
    assert chosen(prices, "claude-opus-5-5", "acme-eu") == "5"
    assert chosen(prices, "claude-opus-5-5") == "7"
    assert chosen(prices, "claude-sonnet-5-5") == "2"
    assert chosen(prices, "other") is None
    prices = read(
        tmp_path,
        price("claude-*", account='"acme-eu-1"', multiplier="1"),
        price("claude-sonnet-4-6*", account='"acme-*"', multiplier="2"),
        price("claude-sonnet-4-6*", account='"acme-eu-*"', multiplier="3"),
    )
    assert chosen(prices, "claude-sonnet-4-6", "acme-eu-1") == "3"
    assert chosen(prices, "claude-sonnet-4-6", "acme-us-1") == "2"
    assert chosen(prices, "claude-opus-5-5", "acme-eu-1") == "1"


def test_of_two_patterns_that_say_as_much_the_first_in_the_file_holds(tmp_path: Path) -> None:
    one, other = price("claude-opus*", multiplier="1"), price("*claude-opus", multiplier="2")
    assert chosen(read(tmp_path, one, other), "claude-opus") == "1"
    assert chosen(read(tmp_path, other, one), "claude-opus") == "2"


def test_an_entry_holds_from_its_first_day_until_the_day_before_its_last(tmp_path: Path) -> None:
    prices = read(
        tmp_path,
        price("a", until="2026-02-01", multiplier="1"),
        price("a", since="2026-02-01", until="2026-03-01", multiplier="2"),
        price("a", since="2026-03-02", multiplier="3"),
    )
    days = ["0001-01-01", "2026-01-31", "2026-02-01", "2026-02-28", "2026-03-01", "2026-03-02", "9999-12-31"]
    assert [chosen(prices, "a", day=day) for day in days] == ["1", "1", "2", "2", None, "3", "3"]


def test_a_pattern_means_its_other_characters_literally(tmp_path: Path) -> None:
    prices = read(tmp_path, price("claude.[5]?*", multiplier="1"))
    assert chosen(prices, "claude.[5]?-anything\n") == "1"
    assert chosen(prices, "claude-5x") is None


def test_the_source_names_the_file_and_what_it_said(tmp_path: Path) -> None:
    one = read(tmp_path, price(multiplier="1")).entries[0].source
    assert one == read(tmp_path, price(multiplier="1")).entries[0].source
    assert one.startswith("prices.toml ")
    assert one != read(tmp_path, price(multiplier="2")).entries[0].source


BAD = {
    "no TOML": ("[[price]]\nmodel = @", "line 2"),
    "nothing": ("", "no [[price]]"),
    "a table instead of a list": ("[price]\nmodel = 'a'", "no [[price]]"),
    "an empty list": ("price = []", "no [[price]]"),
    "a list of numbers": ("price = [1]", "no [[price]]"),
    "an unknown table": (price(multiplier="1") + "[[prices]]\nmodel = 'a'", "unknown field 'prices'"),
    "an unknown field": (price(multiplier="1", cache_reads="1"), "price 1: unknown field 'cache_reads'"),
    "no model": ("[[price]]\nmultiplier = 1", "price 1: model is missing"),
    "an empty pattern": (price("", multiplier="1"), "price 1: model is a name"),
    "a number for a model": ("[[price]]\nmodel = 5\nmultiplier = 1", "price 1: model is a name"),
    "an account that is none": (price(multiplier="1", account="[]"), "price 1: account is a name"),
    "a negative price": (price() + FULL.replace("15", "-15"), "price 1: output is -15"),
    "a negative multiplier": (price(multiplier="-0.5"), "price 1: multiplier is -0.5"),
    "no number": (price(multiplier="nan"), "price 1: multiplier is"),
    "an infinite price": (price() + FULL.replace("15", "inf"), "price 1: output is"),
    "a price in quotes": (price(multiplier='"0.85"'), "price 1: multiplier is a number"),
    "a price that is true": (price(multiplier="true"), "price 1: multiplier is a number"),
    "too many digits": (price(multiplier="0.1234567890"), "price 1: multiplier has more than 9 digits"),
    "too large": (price(multiplier="1e9"), "price 1: multiplier has more than 9 digits"),
    "a huge number": (price(multiplier="9" * 5000), "prices.toml"),
    "a huge exponent": (price(multiplier="1e-99999999999999999999"), "a number that is none or too large"),
    "a day in quotes": (price(multiplier="1", since='"2026-01-01"'), "price 1: since is a day"),
    "a moment": (price(multiplier="1", until="2026-01-01T00:00:00Z"), "price 1: until is a day"),
    "no day": (price(multiplier="1", since="2026-02-30"), "prices.toml"),
    "days the wrong way round": (
        price(multiplier="1", since="2026-02-01", until="2026-02-01"),
        "price 1: until (2026-02-01) must be after since (2026-02-01)",
    ),
    "a price that is missing": (price() + "input = 3\noutput = 15", "price 1: cache_write_5m is missing"),
    "no price at all": (price(), "price 1: input is missing"),
    "both kinds of price": (price(multiplier="1", input="3"), "price 1: input cannot stand beside multiplier"),
    "a factor of a discount": (price(multiplier="1", fast="2"), "price 1: fast cannot stand beside multiplier"),
    "unlisted that is neither": (price(multiplier="1", unlisted="1"), "price 1: unlisted is true or false"),
    "the same twice": (price(multiplier="1") * 2, "price 2: its dates overlap those of price 1"),
    "dates that overlap": (
        price("a", multiplier="1", until="2026-03-01")
        + price("b", multiplier="1")
        + price("a", multiplier="2", since="2026-02-28"),
        "price 3: its dates overlap those of price 1, which is for the same model 'a'",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_a_file_that_cannot_be_meant_so_is_refused_with_the_place(tmp_path: Path, what: str) -> None:
    content, says = BAD[what]
    with pytest.raises(PriceFileError) as caught:
        read(tmp_path, content)
    assert says in str(caught.value)
    assert str(tmp_path / "prices.toml") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PriceFileError, match="No such file"):
        read_prices(tmp_path / "none.toml")
    with pytest.raises(PriceFileError, match=r"not a file|Is a directory"):
        read_prices(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    for other in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(PriceFileError, match="it is not a file"):
            read_prices(other)
    (tmp_path / "large.toml").write_bytes(b"#" * 2_000_000)
    with pytest.raises(PriceFileError, match="more than 1,048,576 bytes"):
        read_prices(tmp_path / "large.toml")
    (tmp_path / "latin.toml").write_bytes(b'[[price]]\nmodel = "\xe9"')
    with pytest.raises(PriceFileError, match="utf-8"):
        read_prices(tmp_path / "latin.toml")
    (tmp_path / "deep.toml").write_text("a = " + "[" * 100_000)
    with pytest.raises(PriceFileError, match="deep"):
        read_prices(tmp_path / "deep.toml")


def test_a_byte_order_mark_is_no_harm(tmp_path: Path) -> None:
    (tmp_path / "prices.toml").write_bytes(b"\xef\xbb\xbf" + price(multiplier="1").encode())
    assert len(read_prices(tmp_path / "prices.toml").entries) == 1


def test_a_message_is_one_line_whatever_is_in_the_file(tmp_path: Path) -> None:
    prices = read(tmp_path, '[[price]]\nmodel = "x\\ny\\u001b[31m' + "z" * 100_000 + '"\nmultiplier = 1')
    with pytest.raises(PriceFileError) as caught:
        prices.check_models(lambda _: False)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1_000


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("", "", True),
        ("a", "a", True),
        ("a", "ab", False),
        ("*", "", True),
        ("a*", "a", True),
        ("a*a", "a", False),
        ("a*a", "aa", True),
        ("*b*", "abc", True),
        ("a*b*c", "a-b-c", True),
        ("a*bc*c", "abc", False),
        ("a*b*b*c", "abc", False),
        ("*a*b", "aab", True),
        ("[a]?", "[a]?", True),
        ("[a]?", "ab", False),
        ("a*", "a\n", True),
    ],
)
def test_a_star_stands_for_any_characters(pattern: str, text: str, expected: bool) -> None:
    assert matches(pattern, text) is expected


@given(st.text("ab*", max_size=8), st.text("ab", max_size=12))
def test_a_pattern_means_what_its_regular_expression_would(pattern: str, text: str) -> None:
    expression = ".*".join(map(re.escape, pattern.split("*")))
    assert matches(pattern, text) is bool(re.fullmatch(expression, text, re.DOTALL))


def test_no_pattern_takes_long() -> None:
    """As a regular expression this one would take longer than anybody waits."""
    assert not matches("*a" * 30 + "*b", "a" * 10_000)


def test_thousands_of_entries_are_read_at_once(tmp_path: Path) -> None:
    prices = read(tmp_path, *(price(f"claude-{number}*", multiplier="1") for number in range(10_000)))
    assert prices.find("claude-9999-x", "any", "2026-11-24") is not None


def test_other_patterns_and_other_accounts_may_overlap(tmp_path: Path) -> None:
    read(tmp_path, price("a", multiplier="1"), price("a", account='"x"', multiplier="1"), price("a*", multiplier="1"))


def test_a_model_that_nobody_knows_is_a_typing_error_unless_it_says_that_it_is_none(tmp_path: Path) -> None:
    known = {"claude-*", "claude-opus-5-5"}.__contains__
    read(tmp_path, price("claude-*", multiplier="1"), price("mine", multiplier="1", unlisted="true")).check_models(
        known
    )
    with pytest.raises(PriceFileError, match=r"price 2: model = 'claude-opsu-\*' matches no model .* unlisted = true"):
        read(tmp_path, price("claude-*", multiplier="1"), price("claude-opsu-*", multiplier="1")).check_models(known)


def test_the_file_is_the_given_one_then_the_environments_then_the_one_beside_the_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = tmp_path / "usage.db"
    monkeypatch.delenv("USAGE_LEDGER_PRICES", raising=False)
    assert price_file("", ledger) is None
    (tmp_path / "prices.toml").touch()
    assert price_file(None, ledger) == tmp_path / "prices.toml"
    monkeypatch.setenv("USAGE_LEDGER_PRICES", str(tmp_path / "env.toml"))
    assert price_file("", ledger) == tmp_path / "env.toml"
    assert price_file(tmp_path / "given.toml", ledger) == tmp_path / "given.toml"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert price_file("~/home.toml", ledger) == tmp_path / "home.toml"
    with pytest.raises(PriceFileError, match="no home folder"):
        price_file("~nobody-has-this-name/x", ledger)
    with pytest.raises(PriceFileError, match="not UTF-8"):
        price_file(os.fsdecode(b"/tmp/pr\xff.toml"), ledger)


def test_a_link_beside_the_ledger_that_leads_nowhere_is_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "prices.toml").symlink_to(tmp_path / "gone.toml")
    path = price_file("", tmp_path / "usage.db")
    assert path is not None
    with pytest.raises(PriceFileError, match="No such file"):
        read_prices(path)


def test_the_example_is_a_price_file() -> None:
    prices = read_prices(Path(__file__).parents[2] / "data" / "prices.example.toml")
    prices.check_models(listed.knows)
    account = "3f1c9a52-0000-4000-8000-000000000000"
    assert chosen(prices, "claude-opus-5-5", account) == "0.88"
    assert chosen(prices, "claude-opus-5-5", "another") is None
    contract = prices.find("claude-sonnet-5-5", account, "2026-11-24")
    assert contract is not None
    assert (contract.prices["cache_read"], contract.factors["fast"]) == (Decimal("0.09"), 2)
    assert prices.find("relay-claude-large", "any", "2026-11-24") is not None
