"""Drills: requests the fake Console received against rows in the ledger, exactly equal."""

import random
import signal
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing

import httpx
import pytest

from scripts import traffic
from scripts.fake_console import FakeConsole
from scripts.real_proxy import Proxy, rows_of, settled_rows, wait_until


def requests_and_rows(console: FakeConsole, proxy: Proxy) -> tuple[int, int]:
    return console.received.total(), len(settled_rows(proxy.ledger, console.received.total()))


@pytest.mark.parametrize("durability", ["full", "normal"])
def test_under_load_with_clients_that_leave_and_upstreams_that_break_each_request_has_its_row(
    console: FakeConsole, start_proxy: Callable[..., Proxy], durability: str
) -> None:
    proxy = start_proxy("--set", f"usage_durability={durability}")
    traffic.send(console, proxy.port, count=600, at_once=48, seed=1)
    received, rows = requests_and_rows(console, proxy)
    proxy.stop()
    assert rows == received == 600
    assert "Traceback" not in proxy.log
    assert "please report" not in proxy.log


def test_four_proxies_on_one_ledger_lose_and_double_nothing(
    console: FakeConsole, start_proxy: Callable[..., Proxy]
) -> None:
    proxies = [start_proxy() for _ in range(4)]
    threads = [
        threading.Thread(target=traffic.send, args=(console, proxy.port, 100, 12, seed))
        for seed, proxy in enumerate(proxies)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    received, rows = requests_and_rows(console, proxies[0])
    assert rows == received == 400


def test_a_proxy_killed_again_and_again_loses_no_request(
    console: FakeConsole, start_proxy: Callable[..., Proxy]
) -> None:
    """A row may stand for a request that was about to leave; a request that arrived always has its row."""
    chance = random.Random(3)
    for round_number in range(4):
        proxy = start_proxy()
        sender = threading.Thread(target=traffic.send, args=(console, proxy.port, 48, 16, round_number))
        sender.start()
        threading.Event().wait(chance.uniform(0.05, 0.6))
        proxy.stop(signal.SIGKILL)
        sender.join()
    last = start_proxy()
    wait_until(lambda: last.ledger.exists() and all(row["usage_state"] != "pending" for row in rows_of(last.ledger)))
    rows = rows_of(last.ledger)
    about_to_leave = [row for row in rows if row["review_reason"] == "proxy_stopped" and row["http_status"] is None]
    received = console.received.total()
    assert received <= len(rows) <= received + len(about_to_leave)
    assert len({row["id"] for row in rows}) == len(rows)


def test_a_ledger_that_another_program_locks_stalls_nobody_and_gets_every_row(
    console: FakeConsole, start_proxy: Callable[..., Proxy], ask: Callable[..., httpx.Response]
) -> None:
    proxy = start_proxy()
    ask(proxy, "normal")
    with closing(sqlite3.connect(proxy.ledger, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        traffic.send(console, proxy.port, count=100, at_once=16, seed=5)
        assert len(rows_of(proxy.ledger)) == 1
        other.execute("ROLLBACK")
    received, rows = requests_and_rows(console, proxy)
    assert rows == received == 101
    proxy.wait_for_line("can be written again")
    proxy.stop()
    for told_once in ("cannot write", "can be written again"):
        assert sum(told_once in line for line in proxy.lines) == 1


def test_a_ledger_removed_while_running_is_made_again(
    console: FakeConsole, start_proxy: Callable[..., Proxy], ask: Callable[..., httpx.Response]
) -> None:
    proxy = start_proxy()
    ask(proxy, "normal")
    for path in proxy.ledger.parent.glob("usage.db*"):
        if path.is_file():
            path.unlink()
    ask(proxy, "normal")
    assert [row["usage_state"] for row in settled_rows(proxy.ledger, 1)] == ["complete"]


def test_nothing_secret_is_in_any_file_or_in_the_log(
    console: FakeConsole, start_proxy: Callable[..., Proxy], ask: Callable[..., httpx.Response]
) -> None:
    proxy = start_proxy()
    for scenario in ("normal", "json", "rate_limited", "without_usage"):
        ask(proxy, scenario)
    files = [path for path in proxy.ledger.parent.rglob("*") if path.is_file()]
    everything = b"".join(path.read_bytes() for path in files) + proxy.log.encode()
    assert b"claude-sonnet-4-6" in everything
    for secret in (b"secretsecret", b"PROMPT", b"to the last token", b"books"):
        assert secret not in everything.replace(bytes(proxy.ledger.parent), b"")
    assert {oct(path.stat().st_mode & 0o777) for path in files} == {"0o600"}
