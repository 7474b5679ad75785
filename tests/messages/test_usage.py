"""Usage objects: which values are counts, how the reports of one message merge, and what of them is billed."""

import math
from typing import Any

import pytest
from usage_ledger.messages import COUNT_NAMES, Counts
from usage_ledger.messages.usage import as_count, billed_by, counts_of, merge, says_anything, says_output, sift

FULL = {
    "input_tokens": 1,
    "output_tokens": 2,
    "cache_creation_input_tokens": 7,
    "cache_creation": {"ephemeral_5m_input_tokens": 3, "ephemeral_1h_input_tokens": 4},
    "cache_read_input_tokens": 5,
    "output_tokens_details": {"thinking_tokens": 1},
    "server_tool_use": {"web_search_requests": 8, "web_fetch_requests": 9},
}


@pytest.mark.parametrize(
    ("value", "count"),
    [
        (0, 0),
        (7, 7),
        (500.0, 500),
        (0.0, 0),
        (-0.0, 0),
        (10**15, 10**15),
        (10**15 + 1, None),
        (10**10_000, None),
        (1e30, None),
        (-1, None),
        (-1.0, None),
        (1.5, None),
        (math.nan, None),
        (math.inf, None),
        (-math.inf, None),
        (True, None),
        (False, None),
        ("12", None),
        ("", None),
        (None, None),
        ([], None),
        ([1], None),
        ({}, None),
    ],
    ids=lambda value: repr(value)[:20] if not isinstance(value, int) or value < 10**16 else "huge",
)
def test_a_count_is_a_whole_number_from_0(value: object, count: int | None) -> None:
    assert as_count(value) == count
    assert type(as_count(value)) in (int, type(None))


@pytest.mark.parametrize("nothing", [None, {}])
def test_null_and_an_empty_object_are_no_usage(nothing: object) -> None:
    assert sift(nothing) == (None, False)


@pytest.mark.parametrize("invalid", [[], [1], "", "text", 0, 12, 1.5, True, False])
def test_what_is_no_object_is_malformed(invalid: object) -> None:
    assert sift(invalid) == (None, True)


@pytest.mark.parametrize(
    ("usage", "good"),
    [
        ({"input_tokens": "12", "output_tokens": 3}, {"output_tokens": 3}),
        ({"input_tokens": -1}, {}),
        ({"cache_creation": 5}, {}),
        ({"cache_creation": []}, {}),
        ({"cache_creation": {"ephemeral_5m_input_tokens": "x"}}, {"cache_creation": {}}),
        ({"server_tool_use": {"web_search_requests": -1}}, {"server_tool_use": {}}),
        ({"output_tokens_details": {"thinking_tokens": True}}, {"output_tokens_details": {}}),
        ({"iterations": 5}, {}),
        ({"iterations": {}}, {}),
        ({"iterations": ["a", {"input_tokens": 1}]}, {"iterations": [{"input_tokens": 1}]}),
        ({"iterations": [{"input_tokens": 1.5, "type": "message"}]}, {"iterations": [{"type": "message"}]}),
    ],
)
def test_invalid_counts_are_left_out_and_reported(usage: dict[str, Any], good: dict[str, Any]) -> None:
    assert sift(usage) == (good, True)


@pytest.mark.parametrize(
    "usage",
    [
        FULL,
        {"input_tokens": 500.0},
        {"input_tokens": None, "cache_creation": None, "server_tool_use": None, "iterations": None},
        {"iterations": []},
        {"iterations": [FULL, {"type": "message"}]},
        {"service_tier": "standard", "something_new": "text", "other": [1, {"a": -1}]},
    ],
)
def test_valid_usage_is_kept_as_it_is(usage: dict[str, Any]) -> None:
    assert sift(usage) == (usage, False)


def test_sifting_leaves_the_given_object_alone() -> None:
    usage = {"cache_creation": {"ephemeral_5m_input_tokens": "x"}, "iterations": [{"input_tokens": "y"}]}
    sift(usage)
    assert usage == {"cache_creation": {"ephemeral_5m_input_tokens": "x"}, "iterations": [{"input_tokens": "y"}]}


@pytest.mark.parametrize(
    ("reports", "merged"),
    [
        ([{"a": 1}, {"a": 2}], {"a": 2}),
        ([{"a": 5}, {"a": 2}], {"a": 2}),
        ([{"a": 5}, {"a": 0}], {"a": 5}),
        ([{"a": 5}, {"a": None}], {"a": 5}),
        ([{"a": 5}, {}], {"a": 5}),
        ([{"a": 5}, {"a": 0}, {"a": 7}, {"a": None}], {"a": 7}),
        ([{"a": None}, {"a": 0}], {"a": None}),
        ([{"a": None}, {"a": 3}], {"a": 3}),
        ([{"a": 0}, {"a": 3}], {"a": 3}),
        ([{"a": "x"}, {"a": ""}], {"a": "x"}),
        ([{"a": "x"}, {"a": "y"}], {"a": "y"}),
        ([{"a": {"b": 1, "c": 2}}, {"a": {"b": 0, "c": 3}}], {"a": {"b": 1, "c": 3}}),
        ([{"a": {"b": 1}}, {"a": None}], {"a": {"b": 1}}),
        ([{"a": None}, {"a": {"b": 1}}], {"a": {"b": 1}}),
        ([{"a": [1]}, {"a": []}], {"a": [1]}),
        ([{"a": [1]}, {"a": [1, 2]}], {"a": [1, 2]}),
    ],
)
def test_the_last_positive_value_of_a_field_wins_and_nothing_is_added_up(
    reports: list[dict[str, Any]], merged: dict[str, Any]
) -> None:
    known: dict[str, Any] = {}
    for report in reports:
        merge(known, report)
    if merged == {"a": None}:
        assert not known["a"]
    else:
        assert known == merged


def test_many_unknown_fields_do_not_push_counts_out() -> None:
    known: dict[str, Any] = {}
    merge(known, {**{f"new_{number}": number for number in range(100)}, **FULL})
    assert counts_of(known) == counts_of(FULL)


def test_each_count_is_found_where_the_api_keeps_it() -> None:
    assert counts_of(FULL) == Counts(1, 2, 7, 3, 4, 5, 1, 8, 9)
    assert counts_of(FULL).total_tokens == 1 + 2 + 7 + 5
    assert counts_of({}) == Counts()
    assert not Counts().any()
    assert all(Counts(**{name: 1}).any() for name in COUNT_NAMES)


@pytest.mark.parametrize(
    ("usage", "total", "split", "unknown"),
    [
        ({"cache_creation_input_tokens": 7}, 7, (0, 0), True),
        (
            {"cache_creation_input_tokens": 7, "cache_creation": {"ephemeral_5m_input_tokens": 3}},
            7,
            (3, 0),
            True,
        ),
        (FULL, 7, (3, 4), False),
        ({"cache_creation": {"ephemeral_5m_input_tokens": 3, "ephemeral_1h_input_tokens": 4}}, 7, (3, 4), False),
        ({}, 0, (0, 0), False),
    ],
)
def test_a_cache_creation_total_above_its_split_is_kept_and_known_to_be_unsplit(
    usage: dict[str, Any], total: int, split: tuple[int, int], unknown: bool
) -> None:
    counts = counts_of(usage)
    assert counts.cache_creation_input_tokens == total
    assert (counts.cache_creation_5m_input_tokens, counts.cache_creation_1h_input_tokens) == split
    assert counts.cache_split_unknown is unknown


MESSAGE = {"type": "message", "input_tokens": 600, "output_tokens": 30}
COMPACTION = {"type": "compaction", "input_tokens": 60_000, "output_tokens": 500}
ADVISOR = {"type": "advisor_message", "model": "claude-opus-4-7", "input_tokens": 700, "output_tokens": 90}
DECLINED = {"type": "message", "model": "claude-fable-5", "input_tokens": 400, "output_tokens": 0}
BEGUN = {"type": "message", "model": "claude-fable-5", "input_tokens": 400, "output_tokens": 5}
SERVED = {"type": "fallback_message", "model": "claude-opus-4-8", "input_tokens": 412, "output_tokens": 264}


@pytest.mark.parametrize(
    ("entries", "tokens", "billed"),
    [
        ([], (12, 42), []),
        ([MESSAGE], (600, 30), [True]),
        ([COMPACTION, MESSAGE, ADVISOR], (61_300, 620), [True, True, True]),
        ([COMPACTION], (60_000, 500), [True]),
        ([{"type": "something_new", "input_tokens": 5, "output_tokens": 6}], (5, 6), [True]),
        ([DECLINED, SERVED], (412, 264), [None, True]),
        ([DECLINED, DECLINED, SERVED], (412, 264), [None, None, True]),
        ([BEGUN, SERVED], (812, 269), [True, True]),
        ([COMPACTION, DECLINED, ADVISOR, SERVED], (61_112, 854), [True, None, True, True]),
        ([DECLINED], (400, 0), [True]),  # nothing fell back: this is the answer's own entry
        ([{"type": "message"}], (12, 42), [True]),
    ],
)
def test_the_billed_entries_are_added_up_where_there_are_any_else_the_top_level_stands(
    entries: list[dict[str, Any]], tokens: tuple[int, int], billed: list[bool | None]
) -> None:
    counts, iterations = billed_by({"input_tokens": 12, "output_tokens": 42, "iterations": entries})
    assert (counts.input_tokens, counts.output_tokens) == tokens
    assert [iteration.billed for iteration in iterations] == billed
    assert [iteration.model for iteration in iterations] == [entry.get("model") for entry in entries]


def test_web_tools_and_thinking_come_from_the_top_level_where_entries_do_not_tell_them() -> None:
    counts, _ = billed_by({**FULL, "iterations": [MESSAGE]})
    assert (counts.thinking_tokens, counts.web_search_requests, counts.web_fetch_requests) == (1, 8, 9)


@pytest.mark.parametrize(
    ("usage", "output", "anything"),
    [
        ({"output_tokens": 0}, True, True),
        ({"output_tokens": None}, False, False),
        ({"input_tokens": 0}, False, True),
        ({"service_tier": "standard"}, False, False),
        ({"iterations": [{"output_tokens": 0}]}, True, True),
        ({"iterations": [{"type": "message"}]}, False, False),
        ({"server_tool_use": {"web_search_requests": 0}}, False, True),
        ({"server_tool_use": None}, False, False),
        ({}, False, False),
    ],
)
def test_whether_usage_says_its_output_and_whether_it_says_anything(
    usage: dict[str, Any], output: bool, anything: bool
) -> None:
    assert says_output(usage) is output
    assert says_anything(usage) is anything
