"""`usage-ledger check`: the exit code tells it all, in every form, and each threshold is its own."""

import json
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from usage_ledger.ledger.moments import format_moment
from usage_ledger.ledger.record import Entry
from usage_ledger.ledger.store import Store

from tests.cli.test_backfill import FLAGGED, record, run

GOOD = {"usage_state": "complete", "total_cost": "0.003", "price_source": "x"}


def ago(**span: float) -> str:
    return format_moment(datetime.now(UTC) - timedelta(**span))


def fill(path: Path, *records: Any) -> Path:
    with closing(Store(path, "normal", "abc")) as store:
        store.write([Entry(each) for each in records], [])
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "usage.db"


def check(path: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    done = run(path, *arguments, "--format", "json", command="check")
    assert done.stderr == ""
    told = json.loads(done.stdout)
    assert told["ok"] is (done.returncode == 0)
    return done.returncode, told


def failed(path: Path, *arguments: str) -> list[str]:
    return [each["name"] for each in check(path, *arguments)[1]["checks"] if not each["ok"]]


def test_books_in_order_pass(path: Path) -> None:
    fill(path, record("a", **GOOD), record("b", usage_state="none", total_cost="0"))
    code, told = check(path)
    assert code == 0
    assert {name: told[name] for name in ("requests", "flagged", "unpriced", "stuck", "late")} == {
        "requests": 2,
        "flagged": 0,
        "unpriced": 0,
        "stuck": 0,
        "late": 0,
    }


def test_an_empty_ledger_passes_but_where_traffic_is_expected(path: Path) -> None:
    fill(path)
    assert failed(path) == []
    assert failed(path, "--quiet-after", "365d") == ["seconds_since_newest"]


def test_the_flagged_share_has_its_threshold(path: Path) -> None:
    fill(path, record("a", **FLAGGED), *(record(id_, **GOOD) for id_ in "bcd"))
    assert failed(path) == ["flagged_share"]
    assert failed(path, "--max-flagged", "0.24") == ["flagged_share"]
    assert failed(path, "--max-flagged", "0.25") == []


def test_rows_without_a_price_have_theirs(path: Path) -> None:
    fill(path, record("a", usage_state="complete"), record("b", usage_state="complete", total_cost="junk"))
    assert failed(path, "--max-unpriced", "1") == ["unpriced"]
    assert failed(path, "--max-unpriced", "2") == []


def test_a_request_is_stuck_once_it_is_in_flight_for_too_long(path: Path) -> None:
    fill(path, record("a", usage_state="pending", occurred_at=ago(minutes=50)))
    assert failed(path) == []
    assert failed(path, "--stuck-after", "45m") == ["stuck"]


def test_traffic_that_stops_is_told_whatever_span_is_looked_at(path: Path) -> None:
    fill(path, record("a", **GOOD, occurred_at=ago(hours=3)))
    assert failed(path, "--quiet-after", "4h") == []
    assert failed(path, "--quiet-after", "2h") == ["seconds_since_newest"]
    assert failed(path, "--quiet-after", "4h", "--since", "1h") == []
    assert failed(path, "--quiet-after", "4h", "--model", "claude-opus-9") == ["seconds_since_newest"]


def test_rows_that_come_late_have_theirs(path: Path) -> None:
    fill(path, record("a", **GOOD))
    assert run(path, "--until", "2026-11-02", "--note", "x", command="close").returncode == 0
    fill(path, record("b", **GOOD))
    assert failed(path) == ["late"]
    assert failed(path, "--max-late", "1") == []


def test_filters_choose_among_the_rows(path: Path) -> None:
    fill(path, record("old", **FLAGGED), record("new", **GOOD, occurred_at=ago(hours=1)))
    assert failed(path, "--since", "24h") == []
    assert check(path, "--since", "24h")[1]["requests"] == 1


def test_the_text_names_what_failed_and_what_is_allowed(path: Path) -> None:
    fill(path, record("a", **FLAGGED), *(record(str(number), **GOOD) for number in range(99)))
    done = run(path, "--max-flagged", "0.005", "--quiet-after", "90m", command="check")
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "FAILED  1 of 100 (1.00 %) flagged; at most 0.5 %",
        "ok      0 without a price",
        "ok      0 in flight for more than 1h",
        "ok      0 late, of closed periods",
        "FAILED  newest request at 2026-11-01T08:00:00.000Z; at most 90m ago",
        "see usage-ledger review, price --dry-run and verify",
    ]


def test_openmetrics_are_what_a_prometheus_takes(path: Path) -> None:
    fill(path, record("a", **FLAGGED), record("b", **GOOD))
    done = run(path, "--format", "openmetrics", command="check")
    assert done.returncode == 1
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(done.stdout)
        for sample in family.samples
    }
    assert samples["usage_ledger_ok",] == 0
    assert samples["usage_ledger_flagged",] == 1
    assert samples["usage_ledger_requests",] == 2
    assert samples["usage_ledger_check_failed", "flagged_share"] == 1
    assert samples["usage_ledger_check_failed", "unpriced"] == 0
    assert samples["usage_ledger_newest_request_age_seconds",] > 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--max-flagged", "2"), "2"),
        (("--max-flagged", "nan"), "nan"),
        (("--max-unpriced", "-1"), "-1"),
        (("--stuck-after", "soon"), "'soon' is not a span of time; say 90m, 24h or 7d"),
        (("--quiet-after", "2026-11-01"), "is not a span of time"),
        (("--stuck-after", "999999w"), "is longer than a hundred years"),
        (("--since", "2999-01-01"), "is in the future"),
        (("--db", "no.db"), "no ledger at"),
    ],
)
def test_what_cannot_be_checked_is_one_line_and_another_code(path: Path, arguments: tuple[str, ...], says: str) -> None:
    fill(path, record("a", **GOOD))
    done = run(path, *arguments, command="check")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert says in done.stderr


def test_several_ledgers_are_checked_as_one(path: Path, tmp_path: Path) -> None:
    fill(path, record("a", **FLAGGED), record("b", **GOOD))
    other = fill(tmp_path / "other.db", record("b", **FLAGGED), record("c", **FLAGGED))
    told = check(path, "--db", str(other))[1]
    assert (told["requests"], told["flagged"]) == (3, 2)  # b is as the first one says it
    assert run(path, "--until", "2026-11-02", "--note", "x", command="close").returncode == 0
    fill(path, record("late", **GOOD))
    for paths in ((path, other), (other, path)):
        assert check(paths[0], "--db", str(paths[1]))[1]["late"] == 1


def test_a_row_of_the_future_does_not_pass_for_traffic(path: Path) -> None:
    fill(path, record("a", **GOOD, occurred_at="2999-01-01T00:00:00.000Z"))
    assert failed(path, "--quiet-after", "365d") == ["seconds_since_newest"]
