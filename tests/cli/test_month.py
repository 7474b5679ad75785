"""A month of whoever runs it for a team, as a story: alert, check, backfill, close, late rows, backup, archive."""

import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from scripts.real_proxy import Proxy, replay, rows_of, settled_rows, wait_until
from tests.cli.test_desk import tool
from tests.proxy.test_alerts import Webhook, options

Ask = Callable[..., httpx.Response]


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    with Webhook() as hook:
        yield hook


def test_a_month_from_the_first_hole_to_the_archive(
    tmp_path: Path, start_proxy: Callable[..., Proxy], ask: Ask, webhook: Webhook
) -> None:
    # A machine that nobody thought of has a capture of its own, with a hole in it.
    elsewhere = start_proxy("-w", str(tmp_path / "forgotten.mitm"), ledger=tmp_path / "elsewhere.db")
    ask(elsewhere, "without_usage")
    elsewhere.stop()

    # Traffic with holes: the alert arrives, and the check fails.
    capture = tmp_path / "capture.mitm"
    proxy = start_proxy("-w", str(capture), *options(webhook.url, rate="0.4"))
    ledger = proxy.ledger
    for scenario in ("normal", "iterations", "without_usage", "json", "without_usage", "without_usage"):
        ask(proxy, scenario)
    rows = settled_rows(ledger, 6)
    wait_until(lambda: len(webhook.received) == 1)
    assert "FAILED  3 of 6 (50.00 %) flagged; at most 0 %" in tool(ledger, "check", code=1)
    assert tool(ledger, "check", "--max-flagged", "0.5").count("ok") == 5

    # The holes are filled from the bill, and the check passes.
    for row in rows:
        if row["requires_manual_review"]:
            tool(ledger, "backfill", "--request-id", row["request_id"], "--input-tokens", "12", "--output-tokens", "42")
    assert "FAILED" not in tool(ledger, "check", "--quiet-after", "1h")

    # The books are closed. Then the forgotten capture is read, and somebody corrects a row after all.
    told = tool(ledger, "close", "--until", "0s", "--note", "the month, invoice 7")
    assert "requests: 6," in told
    end = re.search(r"until (\S+)", told)
    assert end is not None
    replay(tmp_path / "forgotten.mitm", ledger)
    late, edited = rows_of(ledger, "requires_manual_review = 1")[0], rows[2]
    correction = ("--id", edited["id"], "--output-tokens", "43")
    tool(ledger, "backfill", *correction, code=2)
    tool(ledger, "backfill", *correction, "--reopen", "--note", "a typing error on the invoice")
    tool(ledger, "backfill", "--id", late["id"], "--output-tokens", "7", "--reopen")
    assert "FAILED  2 late, of closed periods; at most 0" in tool(ledger, "check", code=1)
    verified = tool(ledger, "verify", code=1)
    assert f"row {late['id']}: it came on " in verified
    assert f"row {edited['id']}: it changed on " in verified
    assert "2 finding(s)" in verified
    assert "taken in: 2 row(s)" in tool(ledger, "close", "--until", end[1], "--note", "with the forgotten one")
    assert "all is well" in tool(ledger, "verify")
    tool(ledger, "check")

    # A backup while the proxy writes opens and verifies.
    is_over = threading.Event()

    def go_on() -> None:
        with httpx.Client() as client:
            while not is_over.is_set():
                headers = {"x-scenario": "normal", "x-api-key": "sk-ant-api03-x"}
                client.post(f"{proxy.address}/v1/messages", headers=headers, json={"stream": True})

    traffic = threading.Thread(target=go_on)
    traffic.start()
    try:
        settled_rows(ledger, 9)
        tool(ledger, "backup", str(tmp_path / "backup.db"))
    finally:
        is_over.set()
        traffic.join()
    assert "all is well" in tool(tmp_path / "backup.db", "verify")
    assert len(rows_of(tmp_path / "backup.db")) >= 8

    # The closed month goes into an archive; a replay of its capture brings nothing back.
    proxy.stop()
    everything = tool(ledger, "summary", "--by", "model", "--format", "csv")
    assert "archived: 7 row(s) before" in tool(ledger, "archive", "--before", end[1], str(tmp_path / "archive.db"))
    left = rows_of(ledger)
    replay(tmp_path / "forgotten.mitm", ledger)
    replay(capture, ledger)
    assert rows_of(ledger) == left
    both = ("--db", str(tmp_path / "archive.db"))
    assert tool(ledger, "summary", *both, "--by", "model", "--format", "csv") == everything
    assert tool(ledger, "verify", *both).count("all is well") == 2
    assert "FAILED" not in tool(ledger, "check", *both)
