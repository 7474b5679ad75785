"""The bill as a story: served, metered with holes, fetched, reconciled, filled in, adjusted, matched to the last token.

Upstream is the fake Console behind the real proxy; what it bills, the fake Admin API computes from what the Console
produced, by its own clock.
"""

import csv
import io
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from scripts import preloaded
from scripts.fake_admin import ADMIN_KEY, FakeAdmin
from scripts.fake_console import FakeConsole
from scripts.real_proxy import Proxy, rows_of, settled_rows

Ask = Callable[..., httpx.Response]
Start = Callable[..., Proxy]
NOW = datetime.now(UTC)
DAYS = ("--since", f"{NOW - timedelta(days=1):%Y-%m-%d}", "--until", f"{NOW + timedelta(days=2):%Y-%m-%d}")
"""Yesterday, today and tomorrow: midnight may come while this runs."""

SPAN = (*DAYS, "--open")


def key(number: int) -> dict[str, str]:
    return {"x-api-key": f"sk-ant-api03-{number:03d}secretsecretsecretsecretsecret{number:04d}"}


@pytest.fixture(params=[("start", 0), ("end", 30), ("end", -30)], ids=["by start", "by end, ahead", "by end, behind"])
def admin(request: pytest.FixtureRequest, console: FakeConsole) -> Iterator[FakeAdmin]:
    by, skew = request.param
    with FakeAdmin(lambda: list(console.served), by, timedelta(seconds=skew)) as running:
        yield running


def tool(ledger: Path, *words: str, code: int = 0) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "ANTHROPIC_ADMIN_KEY": ADMIN_KEY, "COLUMNS": "160"}
    done = preloaded.run(words[0], "--db", ledger, *words[1:], env=environment, timeout=120)
    assert done.returncode == code, done
    return done


def fetch_all(ledger: Path, admin: FakeAdmin) -> None:
    address = ("--base-url", admin.address)
    tool(ledger, "fetch", "keys", *address)
    tool(ledger, "fetch", "usage", "--since", "10m", "--width", "1m", *address)
    for what in ("usage", "costs"):
        tool(ledger, "fetch", what, *DAYS, *address)


def buckets(ledger: Path, *arguments: str, code: int = 0) -> list[dict[str, Any]]:
    told = json.loads(tool(ledger, "reconcile", *SPAN, *arguments, "--format", "json", code=code).stdout)
    assert (told["left"] == 0) is (code == 0)
    found: list[dict[str, Any]] = told["buckets"]
    return found


def state(ledger: Path) -> list[str]:
    """All that is in a ledger, but for what a comparison leaves behind."""
    with closing(sqlite3.connect(ledger)) as connection:
        kept = (
            line for line in connection.iterdump() if "reconciliations" not in line and "sqlite_sequence" not in line
        )
        return list(kept)


def test_holes_are_filled_in_from_the_bill_until_it_matches(
    console: FakeConsole, admin: FakeAdmin, start_proxy: Start, ask: Ask, tmp_path: Path
) -> None:
    proxy = start_proxy()
    ledger = proxy.ledger
    for scenario in ("normal", "iterations", "json", "gzipped", "rate_limited"):
        ask(proxy, scenario, **key(0))
    ask(proxy, "without_usage", **key(1))
    ask(proxy, "normal", **key(1))
    with pytest.raises(httpx.RemoteProtocolError):
        ask(proxy, "breaks", **key(2))
    for _ in range(2):
        ask(proxy, "without_usage", **key(3))  # nobody can tell these two apart
    settled_rows(ledger, 10)
    # And one request passes the proxy by.
    httpx.post(f"{console.address}/v1/messages", headers={"x-scenario": "normal", **key(4)}, json={})

    fetch_all(ledger, admin)
    by_key = buckets(ledger, "--by", "key,model", code=1)
    verdicts = {(each["key"][-1], each["model"]): each["verdict"] for each in by_key}
    assert verdicts == {
        ("1", "claude-sonnet-4-6"): "matches",
        ("1", "claude-opus-4-7"): "matches",
        ("1", "claude-haiku-4-5"): "matches",
        ("2", "claude-sonnet-4-6"): "ours short, flagged",
        ("3", "claude-sonnet-4-6"): "ours short, flagged",
        ("4", "claude-sonnet-4-6"): "ours short, flagged",
        ("5", "claude-sonnet-4-6"): "ours short, unexplained",
    }

    # First only said, then filled in; a second time there is nothing to do.
    before = state(ledger)
    would = tool(ledger, "reconcile", *SPAN, "--apply", "--dry-run", code=1).stderr
    assert "would fill in 2 row(s)" in would
    assert state(ledger) == before
    told = tool(ledger, "reconcile", *SPAN, "--apply", "--note", "invoice 7", code=1).stderr
    assert told.replace("filled in", "would fill in") == would
    assert "1 difference(s) could be of several flagged rows" in told
    filled = rows_of(ledger, "metadata LIKE '%_manually_updated%'")
    assert sorted((row["input_tokens"], row["output_tokens"], row["total_cost"]) for row in filled) == [
        (12, 9, "0.001146"),
        (12, 42, "0.001641"),
    ]
    before = state(ledger)
    assert "filled in 0 row(s)" in tool(ledger, "reconcile", *SPAN, "--apply", code=1).stderr
    assert state(ledger) == before

    # What several rows could be is written down, and closed with adjustments, as is what passed the proxy by.
    sheet = tmp_path / "open.csv"
    tool(ledger, "reconcile", *SPAN, "--proposals", str(sheet), code=1)
    proposals = list(csv.DictReader(io.StringIO(sheet.read_text(), newline="")))
    two = {row["id"] for row in rows_of(ledger, "requires_manual_review = 1")}
    assert {each["id"] for each in proposals if each["id"]} == two
    assert [each["why"] for each in proposals if not each["id"]] == ["no flagged row is of this time"]
    before = state(ledger)
    assert "would adjust 2 bucket(s)" in tool(ledger, "reconcile", *SPAN, "--adjust", "--dry-run", code=1).stderr
    assert state(ledger) == before
    told = tool(ledger, "reconcile", *SPAN, "--adjust", "--note", "invoice 7").stderr
    assert "adjusted 2 bucket(s) by +6,462 tokens" in told
    for by in ("day,model", "key", "workspace", "day,model,key,workspace"):
        assert {each["verdict"] for each in buckets(ledger, "--by", by)} == {"matches"}
        assert all(kind["ours"] == kind["theirs"] for each in buckets(ledger, "--by", by) for kind in each["kinds"])
    before = state(ledger)
    assert "adjusted 0 bucket(s)" in tool(ledger, "reconcile", *SPAN, "--adjust", "--apply").stderr
    assert state(ledger) == before
    assert len(rows_of(ledger)) == 10  # an adjustment is no request

    # The trail has it all, and the closed books say that they are reconciled.
    assert "all is well" in tool(ledger, "verify").stdout
    with closing(sqlite3.connect(ledger)) as connection:
        trail = connection.execute("SELECT source, reason, count(*) FROM usage_revisions GROUP BY 1, 2").fetchall()
    assert sorted(trail) == [("adjust", "invoice 7", 2), ("reconcile", "invoice 7", 2)]
    assert "0 difference(s) left" in tool(ledger, "close", "--until", "0s", "--note", "done").stdout


def test_rows_that_come_later_are_no_guess(
    console: FakeConsole, admin: FakeAdmin, start_proxy: Start, ask: Ask
) -> None:
    """Adjusted first, filled in afterwards: the bucket is over by that, and is adjusted back."""
    proxy = start_proxy()
    for _ in range(2):
        ask(proxy, "without_usage")
    rows = settled_rows(proxy.ledger, 2)
    fetch_all(proxy.ledger, admin)
    tool(proxy.ledger, "reconcile", *SPAN, "--adjust")
    tool(proxy.ledger, "backfill", "--id", rows[0]["id"], "--output-tokens", "42")
    (bucket,) = buckets(proxy.ledger, code=1)
    assert (bucket["verdict"], bucket["kinds"][1]["difference"]) == ("theirs short", -42)
    assert "adjusted 1 bucket(s) by -42 tokens" in tool(proxy.ledger, "reconcile", *SPAN, "--adjust").stderr
    assert "all is well" in tool(proxy.ledger, "verify").stdout


def test_closed_books_are_not_settled_but_where_that_is_asked_for(
    admin: FakeAdmin, start_proxy: Start, ask: Ask
) -> None:
    proxy = start_proxy()
    ask(proxy, "without_usage")
    settled_rows(proxy.ledger, 1)
    fetch_all(proxy.ledger, admin)
    assert "not reconciled" in tool(proxy.ledger, "close", "--until", "0s", "--note", "early").stdout
    before = state(proxy.ledger)
    refused = tool(proxy.ledger, "reconcile", *SPAN, "--apply", code=2).stderr
    assert "--reopen changes it all the same" in refused
    assert state(proxy.ledger) == before
    tool(proxy.ledger, "reconcile", *SPAN, "--apply", "--reopen")
    assert buckets(proxy.ledger)[0]["verdict"] == "matches"


def test_several_that_adjust_at_once_adjust_once(admin: FakeAdmin, start_proxy: Start, ask: Ask) -> None:
    proxy = start_proxy()
    for _ in range(2):
        ask(proxy, "without_usage")
    settled_rows(proxy.ledger, 2)
    fetch_all(proxy.ledger, admin)
    command = [sys.executable, "-m", "usage_ledger", "reconcile", "--db", str(proxy.ledger), *SPAN, "--adjust"]
    running = [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for _ in range(4)
    ]
    for process in running:
        _, told = process.communicate(timeout=120)
        assert process.returncode == 0 or "somebody else has adjusted" in told
    assert buckets(proxy.ledger)[0]["verdict"] == "matches"
    with closing(sqlite3.connect(proxy.ledger)) as connection:
        assert connection.execute("SELECT count(*), sum(output_tokens) FROM bill_adjustments").fetchone() == (1, 84)


def test_a_proposals_file_that_cannot_be_written_changes_nothing(
    admin: FakeAdmin, start_proxy: Start, ask: Ask
) -> None:
    proxy = start_proxy()
    ask(proxy, "without_usage")
    settled_rows(proxy.ledger, 1)
    fetch_all(proxy.ledger, admin)
    before = state(proxy.ledger)
    done = tool(proxy.ledger, "reconcile", *SPAN, "--apply", "--proposals", "/nonexistent/x.csv", code=2)
    assert done.stderr.count("\n") == 1
    assert state(proxy.ledger) == before


def test_days_with_rows_and_without_a_bill_are_left(admin: FakeAdmin, start_proxy: Start, ask: Ask) -> None:
    proxy = start_proxy()
    ask(proxy, "normal")
    settled_rows(proxy.ledger, 1)
    fetch_all(proxy.ledger, admin)
    with closing(sqlite3.connect(proxy.ledger)) as connection:
        connection.execute("UPDATE usage_records SET occurred_at = '2026-11-01T00:00:00.000Z'")
        connection.execute("DELETE FROM bill_usage")
        connection.commit()
    done = tool(proxy.ledger, "reconcile", "--since", "2026-11-01", *SPAN[2:], code=1)
    assert "1 day(s) with rows have no bill; fetch it, or import it" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--since", "7d", "--apply", "--adjust", "--dry-run"), "try them one by one"),
        (("--since", "2026-11-01", "--until", "2026-11-02"), "there is no bill for the days"),
        (("--since", "2999-01-01"), "is in the future"),
        (("--since", "2026-11-02", "--until", "2026-11-01"), "ends before it begins"),
        (("--since", "7d", "--by", "day,colour"), "'colour' is no dimension; there are day"),
        (("--since", "7d", "--by", "day,day"), "names a dimension twice"),
        (("--since", "7d", "--tolerance", "-1"), "-1"),
        (("--since", "7d", "--margin", "soon"), "is not a span of time"),
        ((), "--since"),
    ],
)
def test_what_cannot_be_reconciled_so_is_one_line(tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    from usage_ledger.ledger.store import Store

    with closing(Store(tmp_path / "usage.db", "normal", "abc")):
        pass
    done = tool(tmp_path / "usage.db", "reconcile", *arguments, code=2)
    assert (done.stdout, done.stderr.count("\n")) == ("", 1)
    assert says in done.stderr
