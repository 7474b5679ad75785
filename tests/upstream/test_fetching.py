"""Fetching from an Admin API: what is stored, what is asked for again, and what is refused."""

import json
import os
import pty
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from scripts import preloaded
from scripts.fake_admin import ADMIN_KEY, FakeAdmin, refusal
from scripts.fake_console import ApiKey, Served
from tests.upstream.conftest import FIRST, KEYS, Month, served


def run(path: Path, *arguments: str, command: str) -> "subprocess.CompletedProcess[str]":
    return preloaded.run(command, "--db", path, *arguments, timeout=120)


def fetch(ledger: Path, admin: FakeAdmin, *arguments: str) -> str:
    done = run(ledger, *arguments, "--base-url", admin.address, command="fetch")
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


def refused(ledger: Path, command: str, *arguments: str) -> str:
    before = dump(ledger)
    done = run(ledger, *arguments, command=command)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done
    assert dump(ledger) == before
    assert ADMIN_KEY not in done.stderr
    return done.stderr


def dump(ledger: Path) -> list[str]:
    with closing(sqlite3.connect(ledger)) as connection:
        return [line for line in connection.iterdump() if "bill_" in line]


def query(ledger: Path, statement: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(ledger)) as connection:
        return connection.execute(statement).fetchall()


SPAN = ("--since", "2026-11-01", "--until", "2026-11-20")


def test_usage_is_stored_by_day_with_all_that_it_is_grouped_by(ledger: Path, admin: FakeAdmin) -> None:
    assert fetch(ledger, admin, "usage", *SPAN) == "usage: 19 new, 0 changed, 0 known buckets\n"
    assert query(ledger, "SELECT DISTINCT kind, origin FROM bill_buckets") == [("usage", "api")]
    rows = query(
        ledger,
        "SELECT since, model, api_key, workspace, service_tier, bill_usage.input_tokens, output_tokens, "
        "cache_creation_5m_input_tokens, cache_creation_1h_input_tokens, cache_read_input_tokens "
        "FROM bill_usage JOIN bill_buckets ON number = bucket ORDER BY since LIMIT 2",
    )
    assert rows == [
        ("2026-11-01T00:00:00.000Z", "claude-sonnet-4-6", "apikey_1", None, "standard", 20, 40, 6, 8, 10),
        ("2026-11-02T00:00:00.000Z", "claude-sonnet-4-6", "apikey_2", "wrkspc_2", "standard", 20, 40, 6, 8, 10),
    ]
    ((body,),) = query(ledger, "SELECT body FROM bill_answers")
    assert json.loads(body)["data"][0]["results"][0]["output_tokens"] == 40  # as it came


def test_what_is_final_is_not_asked_for_again(ledger: Path, admin: FakeAdmin) -> None:
    fetch(ledger, admin, "usage", "--since", "2026-11-05", "--until", "2026-11-10")
    before = dump(ledger)
    admin.requests.clear()
    assert fetch(ledger, admin, "usage", "--since", "2026-11-05", "--until", "2026-11-10").startswith("usage: 0 new")
    assert admin.requests == []
    assert dump(ledger) == before
    assert "14 new, 0 changed, 5 known" in fetch(ledger, admin, "usage", *SPAN)
    asked = [(one["starting_at"][0][:10], one["ending_at"][0][:10]) for _, one in admin.requests]
    assert asked == [("2026-11-01", "2026-11-05"), ("2026-11-10", "2026-11-20")]


def test_what_was_open_is_fetched_anew_and_takes_the_place_of_the_former(
    ledger: Path, admin: FakeAdmin, month: Month
) -> None:
    now = datetime.now(UTC)
    month.served[:] = [served(now)]
    fetch(ledger, admin, "usage", "--since", "1m")
    month.served.append(served(now, output_tokens=1_000))
    assert "1 changed" in fetch(ledger, admin, "usage", "--since", "1m")
    today = f"{now:%Y-%m-%d}T00:00:00.000Z"
    assert query(
        ledger,
        f"SELECT sum(output_tokens) FROM bill_usage JOIN bill_buckets ON number = bucket WHERE since = '{today}'",
    ) == [(1_020,)]
    assert query(ledger, "SELECT count(*) FROM bill_answers WHERE number NOT IN (SELECT answer FROM bill_buckets)") == [
        (0,)
    ]


@pytest.mark.parametrize(("width", "span", "pages", "buckets"), [("1h", 20, 3, 480), ("1m", 2, 2, 2_880)])
def test_long_spans_come_page_by_page(
    ledger: Path, admin: FakeAdmin, width: str, span: int, pages: int, buckets: int
) -> None:
    until = f"2026-11-{1 + span:02d}"
    told = fetch(ledger, admin, "usage", "--since", "2026-11-01", "--until", until, "--width", width)
    assert told == f"usage: {buckets:,} new, 0 changed, 0 known buckets\n"
    assert len(admin.requests) == pages
    assert query(ledger, "SELECT sum(output_tokens) FROM bill_usage") == [(span * 40,)]


def test_costs_come_in_cents_and_are_stored_in_dollars(ledger: Path, admin: FakeAdmin) -> None:
    fetch(ledger, admin, "costs", "--since", "2026-11-01", "--until", "2026-11-02")
    found = query(ledger, "SELECT token_type, amount, model, cost_type FROM bill_costs ORDER BY token_type")
    assert ("output_tokens", "0.0006", "claude-sonnet-4-6", "tokens") in found
    assert ("cache_1h", "0.000048", "claude-sonnet-4-6", "tokens") in found


def test_keys_come_page_by_page_and_a_changed_one_is_changed(ledger: Path, admin: FakeAdmin, month: Month) -> None:
    month.served += [
        Served(ApiKey(f"apikey_n{number:03d}", "n", f"hint {number}"), FIRST, FIRST, []) for number in range(250)
    ]
    assert fetch(ledger, admin, "keys") == "keys: 252 new, 0 changed, 0 known keys\n"
    assert len(admin.requests) == 3
    month.served = [Served(ApiKey("apikey_1", "renamed", KEYS[0].hint, "wrkspc_9"), FIRST, FIRST, [])]
    assert fetch(ledger, admin, "keys") == "keys: 0 new, 1 changed, 0 known keys\n"
    assert query(ledger, "SELECT name, hint, workspace FROM bill_keys WHERE id = 'apikey_1'") == [
        ("renamed", KEYS[0].hint, "wrkspc_9")
    ]


def test_an_api_that_is_busy_is_asked_again(ledger: Path, admin: FakeAdmin) -> None:
    admin.faults = [
        (429, {"retry-after": "1"}, b"{}"),
        (500, {}, b"oops"),
        (529, {}, b"{}"),
    ]
    assert "19 new" in fetch(ledger, admin, "usage", *SPAN)
    assert len(admin.requests) == 4


def test_a_fetch_that_broke_off_goes_on_where_it_was(ledger: Path, admin: FakeAdmin) -> None:
    span = ("--since", "2026-11-01", "--until", "2026-11-20", "--width", "1h")
    answer = admin.answer
    pages = iter([0, 0, 1])

    def breaks_off(path: str, asked: dict[str, list[str]], key: str) -> Any:
        return refusal(403, "permission_error", "not any more") if next(pages) else answer(path, asked, key)

    admin.answer = breaks_off  # type: ignore[method-assign]
    done = run(ledger, "usage", *span, "--base-url", admin.address, command="fetch")
    assert done.returncode == 2
    assert query(ledger, "SELECT count(*) FROM bill_buckets") == [(336,)]
    admin.answer = answer  # type: ignore[method-assign]
    admin.requests.clear()
    assert "120 new, 0 changed, 336 known" in fetch(ledger, admin, "usage", *span)
    assert admin.requests[0][1]["starting_at"] == ["2026-11-15T00:00:00Z"]


def report(*tokens: int) -> Any:
    """An answer that has the first of November as often as there are numbers of tokens."""
    day = {"starting_at": "2026-11-01T00:00:00Z", "ending_at": "2026-11-02T00:00:00Z"}
    data = [{**day, "results": [{"uncached_input_tokens": count, "output_tokens": 0}]} for count in tokens]
    return 200, {}, json.dumps({"data": data}).encode()


HTML = (200, {"content-type": "text/html"}, b"<html>Welcome</html>")
ANSWERS = {
    "a wrong key": (refusal(401, "authentication_error", "invalid x-api-key"), "must be an Admin API key"),
    "an individual account": (refusal(403, "permission_error", "not for you"), "individual accounts do not have"),
    "HTML": (HTML, "does not answer as an Admin API does"),
    "HTML as an error": ((502, {"content-type": "text/html", "retry-after": "1"}, b"<html>Bad"), "again and again"),
    "not found": (refusal(404, "not_found_error", "Not found"), "has no Admin API"),
    "a redirect": ((302, {"location": "http://127.0.0.1:9/"}, b""), "is --base-url right?"),
    "another JSON": ((200, {}, b'{"hello": 1}'), "is not what the Admin API answers"),
    "JSON that is cut": ((200, {}, b'{"data": [{"starting_at": "2026'), "is not what the Admin API answers"),
    "a count that is none": (
        (200, {}, json.dumps({"data": [{"starting_at": "2026-11-01T00:00:00Z", "ending_at": "2026-11-02T00:00:00Z",
            "results": [{"uncached_input_tokens": -1, "output_tokens": 1}]}]}).encode()),
        "-1 is no count",
    ),
    "a bucket of another time": (
        (200, {}, json.dumps({"data": [{"starting_at": "2025-11-01T00:00:00Z", "ending_at": "2025-11-02T00:00:00Z",
            "results": []}]}).encode()),
        "which was not asked for",
    ),
    "a bucket twice": (report(5, 7), "has a bucket twice"),
    "what is not UTF-8": ((200, {}, b'{"data": [], "x": "\xff"}'), "is not UTF-8 text"),
    "more without a page": ((200, {}, b'{"data": [], "has_more": true}'), "there is more, and not where"),
    "pages for ever": ((200, {}, b'{"data": [], "has_more": true, "next_page": "x"}'), "goes on for ever"),
}  # fmt: skip


@pytest.mark.parametrize("what", ANSWERS)
def test_what_is_no_report_is_one_line_and_stores_nothing(ledger: Path, admin: FakeAdmin, what: str) -> None:
    answer, says = ANSWERS[what]
    admin.faults = [answer] * 12
    assert says in refused(ledger, "fetch", "usage", *SPAN, "--base-url", admin.address)


@pytest.mark.parametrize("currency", ["EUR", "eur"])
def test_another_currency_is_refused(ledger: Path, admin: FakeAdmin, currency: str) -> None:
    bucket = {"starting_at": "2026-11-01T00:00:00Z", "ending_at": "2026-11-02T00:00:00Z"}
    results = [{"amount": "1", "currency": "USD"}, {"amount": "1", "currency": currency}]
    admin.faults = [(200, {}, json.dumps({"data": [{**bucket, "results": results}]}).encode())]
    told = refused(ledger, "fetch", "costs", *SPAN, "--base-url", admin.address)
    assert f"it is in {currency}, and the ledger is in USD" in told


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("usage",), "--since says from when on"),
        (("keys", "--since", "2026-11-01"), "keys have no span"),
        (("usage", "--since", "2999-01-01"), "is in the future"),
        (("usage", "--since", "2026-11-02", "--until", "2026-11-01"), "ends before it begins"),
        (("usage", *SPAN, "--base-url", "api.example.com"), "is no address"),
        (("usage", *SPAN, "--base-url", "http://api.example.com"), "would carry the key unencrypted"),
        (("usage", *SPAN, "--base-url", "http://[::1"), "is no address"),
        (("usage", *SPAN, "--base-url", "https://example.com:99999"), "is no address"),
        (("usage", *SPAN, "--base-url", "https://me:secret@example.com"), "an address has no password"),
        (("usage", *SPAN, "--width", "1w"), "1w"),
        (("invoices",), "invoices"),
    ],
)
def test_what_cannot_be_fetched_so_is_one_line(
    ledger: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], says: str
) -> None:
    monkeypatch.setenv("ANTHROPIC_ADMIN_KEY", ADMIN_KEY)
    assert says in refused(ledger, "fetch", *arguments)


@pytest.mark.parametrize("key", ["", " ", "sk-ant\n-x", "ключ"])
def test_without_a_key_it_says_which(ledger: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("ANTHROPIC_ADMIN_KEY", key)
    assert "ANTHROPIC_ADMIN_KEY" in refused(ledger, "fetch", "keys")


def test_progress_is_shown_on_a_terminal_alone(ledger: Path, admin: FakeAdmin) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "usage_ledger", "fetch", "usage", "--db", str(ledger), *SPAN, "--width", "1h"]
    with subprocess.Popen([*command, "--base-url", admin.address], stdout=subprocess.PIPE, stderr=theirs) as process:
        os.close(theirs)
        process.communicate(timeout=60)
    assert process.returncode == 0
    seen = os.read(ours, 65536)
    os.close(ours)
    assert b"fetching" in seen
    assert b"100%" in seen


def test_the_key_is_nowhere_in_the_ledger(ledger: Path, admin: FakeAdmin) -> None:
    fetch(ledger, admin, "keys")
    fetch(ledger, admin, "usage", *SPAN)
    with closing(sqlite3.connect(ledger)) as connection:
        assert not [line for line in connection.iterdump() if ADMIN_KEY in line]


def test_a_key_that_upstream_sends_back_goes_nowhere(ledger: Path, admin: FakeAdmin) -> None:
    echo = {"uncached_input_tokens": 1, "output_tokens": 1, "model": ADMIN_KEY, "else": ADMIN_KEY}
    day = {"starting_at": "2026-11-01T00:00:00Z", "ending_at": "2026-11-02T00:00:00Z"}
    admin.faults = [(200, {}, json.dumps({"data": [{**day, "results": [echo]}]}).encode())]
    fetch(ledger, admin, "usage", "--since", "2026-11-01", "--until", "2026-11-02")
    admin.faults = [refusal(401, "authentication_error", f"invalid key {ADMIN_KEY}")]
    assert "invalid key (the key)" in refused(ledger, "fetch", "usage", *SPAN, "--base-url", admin.address)
    with closing(sqlite3.connect(ledger)) as connection:
        assert not [line for line in connection.iterdump() if ADMIN_KEY in line]


@pytest.mark.parametrize("what", ["keys", "usage"])
def test_pages_that_bring_nothing_new_come_to_an_end(ledger: Path, admin: FakeAdmin, what: str) -> None:
    key = {"id": "apikey_1", "name": "n", "partial_key_hint": "h"}
    data = [key] if what == "keys" else json.loads(report(5)[2])["data"]
    page = {"data": data, "has_more": True, "last_id": "apikey_1", "next_page": "again"}
    admin.faults = [(200, {}, json.dumps(page).encode())] * 20
    arguments = () if what == "keys" else SPAN
    done = run(ledger, what, *arguments, "--base-url", admin.address, command="fetch")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert len(admin.requests) <= 3
