"""Corrections: what a person says of a row, and what of its history stays."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from usage_ledger.ledger.columns import COUNT_COLUMNS
from usage_ledger.ledger.corrections import acceptance, correction, is_corrected, with_counts
from usage_ledger.ledger.record import Entry, IterationRow, Record


def record(**fields: Any) -> Record:
    given = {
        "usage_state": "missing",
        "review_reason": "no_usage_data",
        "requires_manual_review": 1,
        "metadata": '{"_no_usage_data":true,"_requires_manual_review":true,"user_agent":"x"}',
        **fields,
    }
    return Record(id="a", occurred_at="2026-11-01T08:00:00.000Z", host="h", path="/", **given)


def no_price(_entry: Entry) -> None:
    pass


def corrected(one: Record | Entry, price: Any = no_price, **counts: int) -> Mapping[str, Any]:
    entry = one if isinstance(one, Entry) else Entry(one)
    return correction(entry, with_counts(entry.record, counts), "why", price).after


def test_a_correction_sets_counts_and_total_and_clears_the_flag() -> None:
    after = corrected(record(), input_tokens=5, output_tokens=7, cache_read_input_tokens=11)
    assert after["total_tokens"] == 23
    assert after["requires_manual_review"] == 0
    metadata = json.loads(after["metadata"])
    assert metadata.pop("_manually_updated_at").endswith("Z")
    assert metadata == {"_no_usage_data": True, "user_agent": "x", "_manually_updated": True}
    assert (after["usage_state"], "review_reason" in after) == ("missing", False)
    assert set(COUNT_COLUMNS) <= after.keys()


def test_a_correction_is_priced_as_what_it_is_then() -> None:
    def price(entry: Entry) -> None:
        assert is_corrected(entry.record)
        assert (entry.record.input_tokens, entry.record.total_cost) == (5, None)
        assert [each.total_cost for each in entry.iterations] == [None]
        entry.record.total_cost, entry.record.price_source = "0.5", "made up"

    one = Entry(record(total_cost="9", price_source="old"), [IterationRow("a", 4, None, None, 1, total_cost="9")])
    change = correction(one, with_counts(one.record, {"input_tokens": 5}), "why", price)
    assert (change.after["total_cost"], change.after["price_source"]) == ("0.5", "made up")
    assert change.iteration_costs == [(4, None)]
    assert change.expected["total_cost"] == "9"


def test_a_correction_without_a_price_leaves_no_cost_of_what_it_was() -> None:
    after = corrected(record(total_cost="9", price_source="old"), input_tokens=5)
    assert (after["total_cost"], after["price_source"]) == (None, None)


@pytest.mark.parametrize(
    ("given", "total", "five", "hour"),
    [
        ({"cache_creation_input_tokens": 9}, 9, 0, 0),
        ({"cache_creation_5m_input_tokens": 9}, 11, 9, 2),
        ({"cache_creation_1h_input_tokens": 9}, 10, 1, 9),
        ({"cache_creation_input_tokens": 9, "cache_creation_1h_input_tokens": 4}, 9, 1, 4),
        ({"input_tokens": 9}, 3, 1, 2),
    ],
)
def test_cache_writes_are_a_total_or_its_durations(given: dict[str, int], total: int, five: int, hour: int) -> None:
    """A row of 1 for 5 minutes and 2 for an hour."""
    row = record(cache_creation_input_tokens=3, cache_creation_5m_input_tokens=1, cache_creation_1h_input_tokens=2)
    counts = with_counts(row, given)
    names = ("cache_creation_input_tokens", "cache_creation_5m_input_tokens", "cache_creation_1h_input_tokens")
    assert tuple(counts[name] for name in names) == (total, five, hour)
    assert ("_cache_split_unknown" in json.loads(corrected(row, **given)["metadata"])) is (total != five + hour)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"input_tokens": -1}, "is no count"),
        ({"input_tokens": 10**15 + 1}, "is no count"),
        ({"cache_creation_input_tokens": 1, "cache_creation_1h_input_tokens": 2}, "is less than its"),
        ({"thinking_tokens": 1}, "part of output_tokens"),
    ],
)
def test_what_cannot_be_so_is_refused(given: dict[str, int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        with_counts(record(), given)


def test_an_acceptance_only_clears_the_flag() -> None:
    change = acceptance(record(), "why")
    assert change.after["requires_manual_review"] == 0
    assert json.loads(change.after["metadata"]) == {"_no_usage_data": True, "user_agent": "x", "_accepted": True}
    assert change.after.keys() == {"requires_manual_review", "metadata", "usage_state"}


@pytest.mark.parametrize("metadata", ["{bad", "[1]", ""])
def test_metadata_that_another_program_broke_is_begun_anew(metadata: str) -> None:
    begun = json.loads(corrected(record(metadata=metadata), input_tokens=1)["metadata"])
    assert begun.keys() == {"_manually_updated", "_manually_updated_at"}
