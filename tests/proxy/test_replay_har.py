"""HAR files that are replayed: flows have new ids at each read, and still one row each."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from mitmproxy.io import FlowReader

from scripts.fake_console import NORMAL
from scripts.real_proxy import Proxy, replay, rows_of
from tests.hars import har_entry, write_har
from tests.proxy.test_replay_redacted import redacted

DEMO = Path(__file__).parents[2] / "data" / "demo.mitm"
BODY = "".join(piece.decode() for piece in NORMAL)


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
    entries = [har_entry(start, BODY, {"request-id": "req_1"}) for start in starts]
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


NOT_UPSTREAM = [
    har_entry("2026-11-01T08:00:00.000001+00:00", BODY),
    har_entry("2026-11-01T08:00:01.000001+00:00", BODY, server=None),
    har_entry("2026-11-01T08:00:02.000001+00:00", status=0, server=None),
]


def said(saved: Path, *arguments: str) -> list[str]:
    """What `inspect` says of each flow."""
    command = [sys.executable, "-m", "usage_ledger", "inspect", str(saved), "--format", "json", *arguments]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return [each["row"] and each["row"]["usage_state"] for each in found]


def test_what_never_went_upstream_is_not_billed_where_a_har_tells(tmp_path: Path) -> None:
    """mitmproxy names the server wherever there was one: an answer without is its own, as of a server replay."""
    har, ledger = write_har(tmp_path / "flows.har", *NOT_UPSTREAM), tmp_path / "usage.db"
    replay(har, ledger)
    assert [row["usage_state"] for row in rows_of(ledger)] == ["complete", "none"]
    readable = tmp_path / "readable.mitm"
    assert said(har, "--save", str(readable)) == ["complete", None, "none"]
    assert said(readable) == ["complete", None, "none"]
    replay(readable, tmp_path / "other.db")
    assert [row["usage_state"] for row in rows_of(tmp_path / "other.db")] == ["complete", "none"]
    assert said(redacted(har)) == ["complete", None, "none"]


def test_where_a_har_is_of_another_programs_which_may_not_name_servers_each_request_has_a_row(tmp_path: Path) -> None:
    har, ledger = write_har(tmp_path / "flows.har", *NOT_UPSTREAM, creator="Insomnia"), tmp_path / "usage.db"
    replay(har, ledger)
    assert [row["usage_state"] for row in rows_of(ledger)] == ["complete", "complete", "missing"]
    assert said(har) == ["complete", "complete", "missing"]


def test_a_har_that_mitmproxy_made_of_another_one_may_not_name_servers_either(tmp_path: Path) -> None:
    first, second = write_har(tmp_path / "first.har", har_entry(body=BODY), creator="Firefox"), tmp_path / "second.har"
    replay(first, tmp_path / "first.db", "--set", f"hardump={second}")
    assert "serverIPAddress" not in second.read_text()
    replay(second, tmp_path / "second.db")
    assert [row["usage_state"] for row in rows_of(tmp_path / "second.db")] == ["complete"]
    assert said(second) == ["complete"]


def test_a_har_that_holds_no_body_touches_no_row_and_takes_its_word_for_it(
    tmp_path: Path, start_proxy: Callable[..., Proxy], ask: Callable[..., httpx.Response]
) -> None:
    """So is one that mitmproxy makes of streams without this addon, and one of Firefox's."""
    whole, har = tmp_path / "whole.har", tmp_path / "flows.har"
    proxy = start_proxy("--set", f"hardump={whole}")
    ask(proxy, "normal")
    proxy.stop()
    before = rows_of(proxy.ledger)
    fields = json.loads(whole.read_text())
    (entry,) = fields["log"]["entries"]
    for content in ({"text": ""}, {}):
        entry["response"]["content"] = content
        har.write_text(json.dumps(fields))
        assert "flagged" not in replay(har, proxy.ledger).replace("0 flagged", "")
        assert rows_of(proxy.ledger) == before
        assert said(har) == ["missing"]
        replay(har, tmp_path / "other.db")
        (row,) = rows_of(tmp_path / "other.db")
        assert (row["usage_state"], row["review_reason"]) == ("missing", "body_not_captured")


def test_no_comment_says_how_a_response_ended_that_a_har_does_not_tell(tmp_path: Path) -> None:
    half, saved = "".join(piece.decode() for piece in NORMAL[:3]), tmp_path / "saved.mitm"
    replay(write_har(tmp_path / "half.har", har_entry(body=half)), tmp_path / "usage.db", "-w", str(saved))
    with saved.open("rb") as file:
        (flow,) = FlowReader(file).stream()
    assert "a HAR does not tell why" in flow.comment
    assert "normally" not in flow.comment


def test_of_a_har_with_an_upload_that_broke_off_inspect_makes_a_capture_that_can_be_replayed(tmp_path: Path) -> None:
    """mitmproxy, which wrote it, cannot read it."""
    aborted = har_entry("2026-11-01T07:00:00.000001+00:00", status=0, server=None)
    aborted["request"]["postData"]["text"] = None
    har, readable = write_har(tmp_path / "flows.har", aborted, har_entry(body=BODY)), tmp_path / "readable.mitm"
    command = [sys.executable, "-m", "usage_ledger", "inspect", str(har), "--save", str(readable)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, "1 of 2 entries cannot be read" in done.stderr) == (1, True)
    replay(readable, tmp_path / "usage.db")
    assert [row["usage_state"] for row in rows_of(tmp_path / "usage.db")] == ["complete"]
