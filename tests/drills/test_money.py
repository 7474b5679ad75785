"""Pricing at size: a million rows in flat memory, while proxies write, on a disk that fills."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path

from usage_ledger.ledger.record import Entry, Record
from usage_ledger.ledger.store import Store

from scripts import traffic
from scripts.fake_console import FakeConsole
from scripts.real_proxy import Proxy, rows_of

MB = 1024 * 1024
MODELS = ("claude-sonnet-4-6", "claude-opus-5-5", "claude-haiku-5-5", "claude-opus-9")


def fill(path: Path, count: int, first: int = 0) -> Path:
    """Make a ledger of settled rows without a cost, or add to it; one in four is of a model that has no price."""
    begin = datetime(2026, 11, 1)  # noqa: DTZ001 - written as UTC below

    def entry(number: int) -> Entry:
        return Entry(
            Record(
                id=f"{number:09}",
                occurred_at=(begin + timedelta(seconds=number)).isoformat(timespec="milliseconds") + "Z",
                host="api.anthropic.com",
                path="/v1/messages",
                model=MODELS[number % len(MODELS)],
                usage_state="complete",
                input_tokens=1 + number % 977,
                output_tokens=number % 1009,
                cache_read_input_tokens=number % 5003,
                writer="test gone",
            )
        )

    with closing(Store(path, "normal", "abc")) as store:
        for start in range(first, count, 5_000):
            store.write([entry(number) for number in range(start, min(count, start + 5_000))], [])
    return path


def command(ledger: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "usage_ledger", "price", "--db", str(ledger), *arguments]


def memory_of(ledger: Path, *arguments: str) -> int:
    """Run the command to its end; return the most memory it had, in bytes.

    As the kernel counts it from the program's own start on (`VmHWM`): what `getrusage` tells begins with the parent's.
    """
    code = (
        "import pathlib, sys\nfrom usage_ledger.cli.main import run\ntry: run(sys.argv[1:])\n"
        "finally: sys.stderr.write(pathlib.Path('/proc/self/status').read_text())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command(ledger, *arguments)[3:]], capture_output=True, text=True, check=True
    )
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def test_memory_does_not_grow_with_the_rows_that_are_priced(tmp_path: Path, sized: Callable[[int, int], int]) -> None:
    few, many = sized(1_000, 10_000), sized(8_000, 1_000_000)
    ledger = fill(tmp_path / "usage.db", few)
    memory = memory_of(ledger)
    fill(ledger, many, first=few)
    assert memory_of(ledger) < memory + 8 * MB
    priced = rows_of(ledger, "total_cost IS NOT NULL AND price_source IS NOT NULL")
    assert len(priced) == many * 3 // 4
    assert memory_of(ledger, "--since", "2020-01-01") < memory + 8 * MB


def test_pricing_disturbs_no_proxy_and_is_disturbed_by_none(
    tmp_path: Path,
    console: FakeConsole,
    start_proxy: Callable[..., Proxy],
    sized: Callable[[int, int], int],
    books_match: Callable[..., int],
) -> None:
    """Rows are priced over and over, by two price lists in turn, while a proxy under load writes to the same ledger."""
    ledger = fill(tmp_path / "usage.db", sized(1_500, 20_000))
    lists = [tmp_path / "one.toml", tmp_path / "other.toml"]
    for place, path in enumerate(lists):
        path.write_text(f'[[price]]\nmodel = "*"\nmultiplier = {place + 2}\n')
    proxy = start_proxy(ledger=ledger)
    over = threading.Event()
    done: list[int] = []

    def reprice() -> None:
        while not over.is_set() or len(done) < 2:
            prices = str(lists[len(done) % 2])
            arguments = command(ledger, "--since", "2020-01-01", "--until", "2026-11-20", "--prices", prices)
            done.append(subprocess.run(arguments, stdout=subprocess.DEVNULL, timeout=600, check=False).returncode)

    pricing = threading.Thread(target=reprice)
    pricing.start()
    try:
        traffic.send(console, proxy.port, count=sized(400, 10_000), at_once=24, seed=5)
    finally:
        over.set()
        pricing.join()
    assert set(done) == {0}
    with closing(Store(ledger, "normal", "abc")) as store:
        store.connection.execute("DELETE FROM usage_records WHERE writer = 'test gone'")
    books_match(console, ledger)
    assert "cannot write" not in proxy.log


def test_on_a_full_disk_pricing_says_so_and_what_it_did_has_its_trail(small_disk: Path) -> None:
    ledger = fill(small_disk / "usage.db", 4_000)
    free = os.statvfs(small_disk)
    filler = small_disk / "filler"
    filler.write_bytes(bytes(free.f_bavail * free.f_bsize - 700_000))
    done = subprocess.run(command(ledger), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done
    assert done.stderr.startswith(f"usage-ledger: cannot write {ledger}: ")
    assert done.stderr.count("\n") == 1
    filler.unlink()
    priced = [row["id"] for row in rows_of(ledger, "total_cost IS NOT NULL")]
    with closing(Store(ledger, "normal", "abc")) as store:
        trail = [row[0] for row in store.connection.execute("SELECT record_id FROM usage_revisions ORDER BY position")]
    assert trail == priced
    assert len(trail) < 3_000
    subprocess.run(command(ledger), stdout=subprocess.DEVNULL, timeout=60, check=True)
    assert len(rows_of(ledger, "total_cost IS NOT NULL")) == 3_000
