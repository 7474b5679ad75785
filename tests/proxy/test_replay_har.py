"""HAR files that are replayed: flows have new ids at each read, and still one row each."""

import json
from pathlib import Path

import pytest

from scripts.fake_console import NORMAL
from scripts.real_proxy import replay, rows_of
from tests.hars import har_entry, write_har

DEMO = Path(__file__).parents[2] / "data" / "demo.mitm"


@pytest.fixture(scope="module")
def har(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's traffic. Its messages share an id, and the client that left has no request id."""
    folder = tmp_path_factory.mktemp("har")
    path = folder / "demo.har"
    replay(DEMO, folder / "demo.db", "--set", f"hardump={path}")
    return path


def without_request_ids(har: Path, other: Path) -> Path:
    """As of a relay that strips them, and calls each message the same."""
    fields = json.loads(har.read_text())
    for entry in fields["log"]["entries"]:
        headers = entry["response"]["headers"]
        entry["response"]["headers"] = [each for each in headers if each["name"].lower() != "request-id"]
    other.write_text(json.dumps(fields))
    return other


def test_requests_whose_messages_share_an_id_have_a_row_each(tmp_path: Path, har: Path) -> None:
    ledger, known = tmp_path / "usage.db", json.loads(DEMO.with_suffix(".json").read_text())
    replay(har, ledger)
    assert [row["occurred_at"] for row in rows_of(ledger)] == [row["occurred_at"] for row in known]


def test_so_have_those_of_a_relay_that_strips_request_ids(tmp_path: Path, har: Path) -> None:
    stripped, ledger = without_request_ids(har, tmp_path / "stripped.har"), tmp_path / "usage.db"
    known = json.loads(DEMO.with_suffix(".json").read_text())
    replay(stripped, ledger)
    before = rows_of(ledger)
    assert [row["occurred_at"] for row in before] == [row["occurred_at"] for row in known]
    replay(stripped, ledger)
    assert rows_of(ledger) == before


def test_so_have_those_of_a_relay_that_calls_each_request_the_same(tmp_path: Path) -> None:
    """Also where they began in one millisecond."""
    starts = [f"2026-11-01T08:00:{second}+00:00" for second in ("00.123456", "00.123459", "09.000000")]
    body = "".join(piece.decode() for piece in NORMAL)
    entries = [har_entry(start, body, {"request-id": "req_1"}) for start in starts]
    har, ledger = write_har(tmp_path / "relay.har", *entries), tmp_path / "usage.db"
    for _ in range(2):
        replay(har, ledger)
        assert [row["total_tokens"] for row in rows_of(ledger)] == [2154] * 3


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["with request ids first", "without first"])
def test_the_same_traffic_with_and_without_request_ids_has_one_row_a_request(
    tmp_path: Path, har: Path, order: tuple[int, int]
) -> None:
    files = (har, without_request_ids(har, tmp_path / "stripped.har"))
    ledger = tmp_path / "usage.db"
    replay(files[order[0]], ledger)
    count = len(rows_of(ledger))
    replay(files[order[1]], ledger)
    assert len(rows_of(ledger)) == count == len(json.loads(DEMO.with_suffix(".json").read_text()))
