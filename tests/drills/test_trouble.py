"""A ledger in trouble: traffic passes, or is refused and not sent; no flow waits; every row is there afterwards."""

import json
import os
import sqlite3
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import httpx
import pytest

from scripts import traffic
from scripts.fake_console import FakeConsole
from scripts.real_proxy import Proxy, rows_of, settled_rows, wait_until

ENDING_BY_THEMSELVES = ("normal", "json", "without_usage", "rate_limited", "gzipped")
BEGINS, ENDS = "cannot write", "can be written again"


@contextmanager
def locked(ledger: Path) -> Iterator[None]:
    """Another program is in the middle of writing."""
    with closing(sqlite3.connect(ledger, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


@contextmanager
def disk_full(ledger: Path) -> Iterator[None]:
    ballast = ledger.with_name("ballast")
    with ballast.open("wb", buffering=0) as file:
        for size in (65536, 4096, 512, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                pass
    yield
    ballast.unlink()


@contextmanager
def damaged(ledger: Path) -> Iterator[None]:
    """Its pages are overwritten; then somebody puts a backup in its place."""
    backup = ledger.with_name("backup.db")
    with closing(sqlite3.connect(ledger)) as now, closing(sqlite3.connect(backup)) as then:
        now.backup(then)
        now.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with ledger.open("r+b") as file:
        file.write(os.urandom(ledger.stat().st_size))
    yield
    backup.replace(ledger)


@contextmanager
def moved_away(ledger: Path) -> Iterator[None]:
    kept = ledger.with_name("kept.db")
    with closing(sqlite3.connect(ledger)) as now:
        now.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    ledger.rename(kept)
    yield
    kept.replace(ledger)


@contextmanager
def replaced_by_garbage(ledger: Path) -> Iterator[None]:
    with moved_away(ledger):
        ledger.write_bytes(b"no database at all " * 1000)
        yield


@contextmanager
def replaced_by_a_newer_major(ledger: Path) -> Iterator[None]:
    with moved_away(ledger):
        with closing(sqlite3.connect(ledger)) as newer:
            newer.execute("CREATE TABLE t (x)")
            newer.execute(f"PRAGMA application_id = {0x434C554C}")
            newer.execute("PRAGMA user_version = 99")
        yield


@contextmanager
def folder_in_the_way(ledger: Path) -> Iterator[None]:
    with moved_away(ledger):
        ledger.mkdir()
        yield
        ledger.rmdir()


type Fault = Callable[[Path], AbstractContextManager[None]]
FAULTS: list[Fault] = [
    locked,
    disk_full,
    damaged,
    replaced_by_garbage,
    replaced_by_a_newer_major,
    folder_in_the_way,
]


@pytest.fixture
def place(request: pytest.FixtureRequest, fault: Fault, ledger: Path) -> Path:
    """Where the ledger is: on a small disk of its own where that is to be filled."""
    return request.getfixturevalue("small_disk") / "usage.db" if fault is disk_full else ledger


def sessions(ledger: Path) -> set[str]:
    return {row["session_id"] for row in rows_of(ledger)}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_traffic_passes_and_every_row_is_there_once_the_trouble_is_over(
    console: FakeConsole,
    start_proxy: Callable[..., Proxy],
    sized: Callable[[int, int], int],
    books_match: Callable[..., int],
    fault: Fault,
    place: Path,
) -> None:
    proxy = start_proxy(ledger=place)
    traffic.send(console, proxy.port, 20, 4, 1, ENDING_BY_THEMSELVES)
    settled_rows(place, 20)
    count = sized(60, 1500)
    with fault(place):
        traffic.send(console, proxy.port, count, 16, 2, ENDING_BY_THEMSELVES)
        assert console.received.total() == 20 + count
        proxy.wait_for_line(BEGINS)
    proxy.wait_for_line(ENDS)
    traffic.send(console, proxy.port, 20, 4, 3, ENDING_BY_THEMSELVES)
    assert books_match(console, place) == 40 + count
    proxy.stop()
    for line in (BEGINS, ENDS):
        assert sum(line in each for each in proxy.lines) == 1
    assert "Traceback" not in proxy.log


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_or_it_is_refused_and_nothing_goes_upstream(
    console: FakeConsole,
    start_proxy: Callable[..., Proxy],
    ask: Callable[..., httpx.Response],
    fault: Fault,
    place: Path,
) -> None:
    proxy = start_proxy("--set", "usage_on_ledger_error=block", ledger=place)
    ask(proxy, "normal")
    settled_rows(place, 1)
    with fault(place):
        answers = [ask(proxy, "json") for _ in range(30)]
        refused = [answer for answer in answers if answer.status_code == 503]
        for answer in refused:
            assert json.loads(answer.extensions["raw"])["error"]["type"] == "overloaded_error"
        # A full disk has room for a row now and then, in space that its journal has already.
        assert refused if fault is disk_full else len(refused) == 30
        received = console.received.total()
        assert received == 31 - len(refused)
    proxy.wait_for_line(ENDS)
    wait_until(lambda: ask(proxy, "json").status_code == 200)
    rows = settled_rows(place, received + 1)
    assert [row["usage_state"] for row in rows] == ["complete"] * (received + 1)


@pytest.mark.parametrize("durability", ["full", "normal"])
def test_a_lock_of_half_a_minute_holds_nobody_up(
    console: FakeConsole,
    start_proxy: Callable[..., Proxy],
    sized: Callable[[int, int], int],
    books_match: Callable[..., int],
    ledger: Path,
    durability: str,
) -> None:
    """All that is sent in that time is answered in that time; waiting rows are spilled and come back."""
    proxy = start_proxy("--set", f"usage_durability={durability}")
    traffic.send(console, proxy.port, 10, 4, 1, ENDING_BY_THEMSELVES)
    over = threading.Event()
    with locked(ledger):
        waiting = threading.Timer(sized(6, 30), over.set)
        waiting.start()
        seed = 2
        while not (over.is_set() and list(ledger.parent.glob("usage.db-spill-*"))) and seed < 1000:
            traffic.send(console, proxy.port, 20, 8, seed, ENDING_BY_THEMSELVES)
            seed += 1
        received = console.received.total()
        assert len(rows_of(ledger)) == 10
        (spilled,) = ledger.parent.glob("usage.db-spill-*")
        assert stat.S_IMODE(spilled.stat().st_mode) == 0o600
    proxy.wait_for_line(ENDS)
    assert books_match(console, ledger) == received
    wait_until(lambda: not list(ledger.parent.glob("usage.db-spill-*")))


def test_rows_beyond_what_memory_holds_go_to_a_private_file_and_come_back(
    console: FakeConsole,
    start_proxy: Callable[..., Proxy],
    patched_script: Callable[[str], Path],
    books_match: Callable[..., int],
    ledger: Path,
) -> None:
    proxy = start_proxy(script=patched_script("from usage_ledger.ledger import writer\nwriter.MEMORY_ROWS = 40"))
    traffic.send(console, proxy.port, 5, 4, 1, ENDING_BY_THEMSELVES)
    with locked(ledger):
        traffic.send(console, proxy.port, 100, 8, 2, ENDING_BY_THEMSELVES)
        wait_until(lambda: list(ledger.parent.glob("usage.db-spill-*")))
        (spilled,) = ledger.parent.glob("usage.db-spill-*")
        assert stat.S_IMODE(spilled.stat().st_mode) == 0o600
    assert books_match(console, ledger) == 105


@pytest.mark.parametrize("ending", ["stopped", "killed"])
def test_what_waits_when_the_proxy_ends_is_there_after_the_next_start(
    console: FakeConsole,
    start_proxy: Callable[..., Proxy],
    books_match: Callable[..., int],
    ledger: Path,
    ending: str,
) -> None:
    """Also where it is killed, once the trouble has lasted for longer than rows wait in memory alone."""
    proxy = start_proxy()
    traffic.send(console, proxy.port, 5, 4, 1, ENDING_BY_THEMSELVES)
    with locked(ledger):
        traffic.send(console, proxy.port, 40, 8, 2, ENDING_BY_THEMSELVES)
        if ending == "killed":
            wait_until(lambda: list(ledger.parent.glob("usage.db-spill-*")))
            wait_until(
                lambda: sum(path.read_bytes().count(b'"entry"') for path in ledger.parent.glob("*-spill-*")) == 80
            )
            proxy.process.kill()
        proxy.stop()
        assert len(rows_of(ledger)) == 5
    start_proxy()
    assert books_match(console, ledger) == 45


def test_a_read_only_ledger_is_trouble_that_ends_when_it_can_be_written(
    console: FakeConsole,
    start_proxy: Callable[..., Proxy],
    books_match: Callable[..., int],
    small_disk: Path,
) -> None:
    ledger = small_disk / "usage.db"
    first = start_proxy(ledger=ledger)
    traffic.send(console, first.port, 5, 4, 1, ENDING_BY_THEMSELVES)
    first.stop()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    proxy = start_proxy(ledger=ledger)
    traffic.send(console, proxy.port, 40, 8, 2, ENDING_BY_THEMSELVES)
    proxy.wait_for_line(BEGINS)
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    proxy.wait_for_line(ENDS)
    assert books_match(console, ledger) == 45
    proxy.stop()


@pytest.mark.parametrize("removed", ["the ledger", "its folder"])
def test_a_ledger_removed_under_traffic_is_made_again_by_all_its_proxies(
    console: FakeConsole,
    start_proxy: Callable[..., Proxy],
    ledger: Path,
    removed: str,
) -> None:
    """Rows that were in it are gone with it; every request that comes after has its row in the new one."""
    proxies = [start_proxy(), start_proxy()]
    for seed, proxy in enumerate(proxies):
        traffic.send(console, proxy.port, 10, 4, seed, ENDING_BY_THEMSELVES)
    before = {request.headers[traffic.SESSION] for request in console.requests}
    for path in ledger.parent.glob("usage.db*"):
        if path.is_file():
            path.unlink()
        elif removed == "its folder":
            for mark in path.iterdir():
                mark.unlink()
            path.rmdir()
    if removed == "its folder":
        ledger.parent.rmdir()
    for seed, proxy in enumerate(proxies * 2):
        traffic.send(console, proxy.port, 20, 4, 10 + seed, ENDING_BY_THEMSELVES)
    after = {request.headers[traffic.SESSION] for request in console.requests} - before
    settled_rows(ledger, len(after))
    assert len(after) == 80
    assert sorted(row["session_id"] for row in rows_of(ledger)) == sorted(after)


def test_a_folder_that_does_not_exist_is_made_private(
    console: FakeConsole, start_proxy: Callable[..., Proxy], tmp_path: Path, books_match: Callable[..., int]
) -> None:
    ledger = tmp_path / "no" / "such" / "folder" / "usage.db"
    proxy = start_proxy(ledger=ledger)
    traffic.send(console, proxy.port, 5, 4, 1, ENDING_BY_THEMSELVES)
    assert books_match(console, ledger) == 5
    assert stat.S_IMODE(ledger.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(ledger.stat().st_mode) == 0o600
