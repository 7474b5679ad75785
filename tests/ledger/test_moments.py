"""Moments: times as people write them, and as the ledger holds them."""

from datetime import UTC, datetime

import pytest
from usage_ledger.ledger.moments import as_moment, now

NOW = datetime(2026, 11, 15, 12, 0, 0, 123_999, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-11-01", "2026-11-01T00:00:00.000Z"),
        ("20261101", "2026-11-01T00:00:00.000Z"),
        ("2026-11-01T08:30", "2026-11-01T08:30:00.000Z"),
        ("2026-11-01 08:30", "2026-11-01T08:30:00.000Z"),
        ("2026-11-01T08:30:15.1239Z", "2026-11-01T08:30:15.123Z"),
        ("2026-11-01T08:30+01:00", "2026-11-01T07:30:00.000Z"),
        ("2026-11-01T00:30+05:45", "2026-10-31T18:45:00.000Z"),
        ("2026-12-31T23:30-01:00", "2027-01-01T00:30:00.000Z"),
        ("30s", "2026-11-15T11:59:30.123Z"),
        ("90m", "2026-11-15T10:30:00.123Z"),
        ("24h", "2026-11-14T12:00:00.123Z"),
        ("7d", "2026-11-08T12:00:00.123Z"),
        ("2w", "2026-11-01T12:00:00.123Z"),
        ("0s", "2026-11-15T12:00:00.123Z"),
    ],
)
def test_dates_spans_and_zones_become_ledger_times(text: str, moment: str) -> None:
    assert as_moment(text, NOW) == moment


def test_a_span_counts_from_now() -> None:
    before = now()
    assert before <= as_moment("0s") <= now()


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "yesterday", "7", "d", "-7d", "7 d", "1.5h", "7y", "7D", "1h30m", "1234567d"),
        *("2026-13-01", "2026-11-31", "2026-11-01T25:00", "2026-11-01T08:30+99:00", "01.11.2026", "'; DROP TABLE x"),
        *("999999w", "0001-01-01T00:00+05:00", "9999-12-31T23:00-05:00"),
    ],
)
def test_what_is_no_time_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the command line says it in its own words
        as_moment(text, NOW)


@pytest.mark.parametrize("text", ["0876-01-01", "60000w"])
def test_times_long_ago_still_sort_as_text_before_the_ledgers(text: str) -> None:
    """ISO 8601 has four digits for the year; `876-` would sort after `2026-`, and `--since` would find nothing."""
    assert as_moment(text, NOW).startswith("0876-")
