"""Three proxies with traffic push into one PostgreSQL; the server crashes, pushers are killed: all is there, once."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from scripts.fake_console import FakeConsole
from scripts.real_postgres import Postgres, query
from scripts.real_proxy import Proxy, rows_of, wait_until
from scripts.traffic import send


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    if "DATABASE_URL" in os.environ:
        pytest.skip("a server that somebody else uses is not to be killed")
    with Postgres() as running:
        yield running


def push(dsn: str, ledger: Path, *more: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "usage_ledger", "push", dsn, "--db", str(ledger), "--source", ledger.stem, *more]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def end(pushers: "dict[Path, subprocess.Popen[bytes]]") -> None:
    for process in pushers.values():
        process.kill()
        process.wait()


def books(dsn: str) -> list[tuple[object, ...]]:
    """The rows there; none while the server is away or the tables are not made."""
    try:
        return query(dsn, "SELECT id, total_tokens, usage_state FROM usage_records ORDER BY id")
    except psycopg.Error:
        return []


def ledgers_rows(ledgers: list[Path]) -> list[tuple[object, ...]]:
    rows = [row for ledger in ledgers for row in rows_of(ledger)]
    return sorted(
        (row["id"], row["total_tokens"], row["usage_state"]) for row in rows if row["usage_state"] != "pending"
    )


def test_three_proxies_a_crash_of_the_server_and_a_killed_pusher(
    tmp_path: Path, postgres: Postgres, sized: Callable[[int, int], int]
) -> None:
    count = sized(150, 3_000)
    dsn = postgres.new_database()
    ledgers = [tmp_path / f"proxy-{number}.db" for number in range(3)]
    with FakeConsole() as console, ExitStack() as stack:
        proxies = [stack.enter_context(Proxy(console.address, ledger)) for ledger in ledgers]
        pushers: dict[Path, subprocess.Popen[bytes]] = {}
        stack.callback(end, pushers)
        with ThreadPoolExecutor(3) as pool:
            sent = [
                pool.submit(send, console, proxy.port, count, 8, number, ("normal", "json", "breaks", "without_usage"))
                for number, proxy in enumerate(proxies)
            ]
            wait_until(lambda: all(ledger.exists() for ledger in ledgers))
            pushers.update({ledger: push(dsn, ledger, "--follow", "--interval", "1s") for ledger in ledgers})
            wait_until(lambda: len(books(dsn)) > count // 10, 60)
            postgres.kill()
            pushers[ledgers[0]].send_signal(signal.SIGKILL)
            pushers[ledgers[0]].wait()
            postgres.start()
            pushers[ledgers[0]] = push(dsn, ledgers[0], "--follow", "--interval", "1s")
            for each in sent:
                each.result()
        received = console.received.total()
        wait_until(lambda: len(ledgers_rows(ledgers)) == received)
        wait_until(lambda: books(dsn) == ledgers_rows(ledgers), 60)
    assert len(books(dsn)) == received == 3 * count
    assert query(dsn, "SELECT source, count(*) FROM usage_records GROUP BY 1 ORDER BY 1") == [
        (ledger.stem, count) for ledger in ledgers
    ]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_pusher_that_is_killed_again_and_again(
    tmp_path: Path, postgres: Postgres, sized: Callable[[int, int], int], how: signal.Signals
) -> None:
    from tests.fleet.conftest import fill, record

    count = sized(20_000, 300_000)
    dsn = postgres.new_database()
    ledger = fill(tmp_path / "proxy.db", *map(record, range(count)))
    for _ in range(sized(3, 20)):
        before, process = len(books(dsn)), push(dsn, ledger)
        wait_until(lambda before=before, process=process: len(books(dsn)) > before or process.poll() is not None, 60)
        process.send_signal(how)
        process.wait(20)
    assert push(dsn, ledger).wait(120) == 0
    assert query(dsn, "SELECT count(*), sum(total_tokens) FROM usage_records") == [(count, count * 54)]


def test_a_server_whose_disk_is_full(tmp_path: Path, postgres: Postgres, small_disk: Path) -> None:
    from tests.fleet.conftest import fill, record

    small_disk.chmod(0o777)
    subprocess.run(["mount", "-o", "remount,mode=777", small_disk], check=True)
    folder = small_disk / "space"
    folder.mkdir()
    shutil.chown(folder, "embedded_postgres")
    dsn = postgres.new_database()
    query(dsn, f"CREATE TABLESPACE small LOCATION '{folder}'")
    query(dsn, f"ALTER DATABASE {psycopg.conninfo.conninfo_to_dict(dsn)['dbname']} SET default_tablespace = small")
    ledger = fill(tmp_path / "proxy.db", *map(record, range(30_000)))
    process = subprocess.run(
        [sys.executable, "-m", "usage_ledger", "push", dsn, "--db", str(ledger)], capture_output=True, text=True
    )
    assert process.returncode == 2
    assert "No space left on device" in process.stderr
    assert "Traceback" not in process.stderr
    assert "what was not pushed waits in" in process.stderr
    subprocess.run(["mount", "-o", "remount,size=256m", small_disk], check=True)
    again = subprocess.run(process.args, capture_output=True, text=True)
    assert (again.returncode, again.stderr[:2000]) == (0, "")
    assert query(dsn, "SELECT count(*), sum(total_tokens) FROM usage_records") == [(30_000, 30_000 * 54)]
    postgres.kill()
