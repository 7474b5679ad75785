"""Proxies that are killed, stopped and reloaded: every request that was received has its row, and what it was told."""

import random
import shutil
import signal
import sqlite3
import subprocess
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from scripts import traffic
from scripts.fake_console import FakeConsole
from scripts.real_proxy import ADDON, Proxy, rows_of, settled_rows, wait_until

AT_ONCE = 16
UNSHARE = ("unshare", "--pid", "--fork", "--kill-child")


def slow_rows(ledger: Path) -> list[tuple[str, str | None, bool]]:
    """State, reason, and whether the row has exactly the counts that its own stream told at the start."""
    return [
        (
            row["usage_state"],
            row["review_reason"],
            (row["input_tokens"], row["cache_creation_input_tokens"]) == (3, 50)
            and row["cache_read_input_tokens"] == traffic.SlowStreams.cache_reads(row["session_id"]),
        )
        for row in rows_of(ledger)
    ]


@pytest.mark.parametrize("durability", ["full", "normal"])
def test_killed_at_random_moments(
    console: FakeConsole,
    start_proxy: Callable[..., Proxy],
    ledger: Path,
    sized: Callable[[int, int], int],
    books_match: Callable[..., int],
    durability: str,
) -> None:
    chance = random.Random(durability)
    setting = ("--set", f"usage_durability={durability}")
    for round_number in range(sized(3, 30)):
        proxy = start_proxy(*setting)
        sender = threading.Thread(target=traffic.send, args=(console, proxy.port, 48, AT_ONCE, round_number))
        before = console.received.total()
        sender.start()
        if round_number % 3:  # the others are killed before anything has passed, where the machine is slow
            wait_until(lambda before=before: console.received.total() > before)
        threading.Event().wait(chance.uniform(0.05, 0.6))
        proxy.stop(signal.SIGKILL)
        sender.join()
    start_proxy(*setting)
    assert books_match(console, ledger) > 0


def test_killed_after_its_streams_were_open_for_a_while(
    console: FakeConsole, start_proxy: Callable[..., Proxy], ledger: Path, books_match: Callable[..., int]
) -> None:
    """Each row is partial with its own start's counts: the cache reads are most of the money."""
    traffic.SlowStreams(console)
    proxy = start_proxy()
    with traffic.open_streams(proxy.port, AT_ONCE):
        wait_until(lambda: all(row["usage_raw"] for row in rows_of(ledger)))
        assert slow_rows(ledger) == [("pending", None, True)] * AT_ONCE
        proxy.stop(signal.SIGKILL)
    start_proxy()
    assert books_match(console, ledger) == AT_ONCE
    assert slow_rows(ledger) == [("partial", "proxy_stopped", True)] * AT_ONCE


@pytest.mark.parametrize("durability", ["full", "normal"])
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_stopped_with_streams_in_flight(
    console: FakeConsole,
    start_proxy: Callable[..., Proxy],
    ledger: Path,
    books_match: Callable[..., int],
    how: signal.Signals,
    durability: str,
) -> None:
    traffic.SlowStreams(console)
    proxy = start_proxy("--set", f"usage_durability={durability}")
    with traffic.open_streams(proxy.port, AT_ONCE):
        proxy.stop(how)
    assert books_match(console, ledger) == AT_ONCE
    assert slow_rows(ledger) == [("partial", "proxy_stopped", True)] * AT_ONCE


def test_reloaded_with_streams_in_flight(
    console: FakeConsole,
    start_proxy: Callable[..., Proxy],
    patched_script: Callable[[str], Path],
    ledger: Path,
    books_match: Callable[..., int],
) -> None:
    streams = traffic.SlowStreams(console)
    script = patched_script("")
    proxy = start_proxy(script=script)
    with traffic.open_streams(proxy.port, AT_ONCE) as clients:
        script.write_text(script.read_text() + "\n# saved again\n")
        wait_until(lambda: sum("usage ledger: /" in line for line in proxy.lines) == 2)
        streams.let_end()
        for client in clients:
            traffic.read_until(client, b"message_stop")
    assert books_match(console, ledger) == AT_ONCE
    assert slow_rows(ledger) == [("complete", None, True)] * AT_ONCE


@pytest.mark.parametrize("where", ["beside", "in a container"])
def test_the_rows_of_a_living_proxy_are_left_alone(
    console: FakeConsole, start_proxy: Callable[..., Proxy], ledger: Path, where: str
) -> None:
    """In another container process ids mean nothing: the living one may even have the id of the dead one."""
    inside = () if where == "beside" else UNSHARE
    if inside and subprocess.run([*inside, "true"], capture_output=True, check=False).returncode:
        pytest.skip("process namespaces cannot be made here")
    streams = traffic.SlowStreams(console)
    living = start_proxy(inside=inside)
    with traffic.open_streams(living.port, 4) as clients:
        for _ in range(2):
            dying = start_proxy(inside=inside)
            with traffic.open_streams(dying.port, 1):
                dying.stop(signal.SIGKILL)
        other = start_proxy(inside=inside)
        wait_until(lambda: [row for row in rows_of(ledger) if row["review_reason"] == "proxy_stopped"][1:])
        other.stop()
        mine = [row["usage_state"] for row in rows_of(ledger) if row["review_reason"] is None]
        assert mine == ["pending"] * 4
        streams.let_end()
        for client in clients:
            traffic.read_until(client, b"message_stop")
    assert sorted(row["usage_state"] for row in settled_rows(ledger, 6)) == ["complete"] * 4 + ["missing"] * 2


def test_proxies_of_several_users_share_a_folder(
    console: FakeConsole,
    start_proxy: Callable[..., Proxy],
    shared_folder: Path,
    books_match: Callable[..., int],
) -> None:
    """Two users of one group: neither takes the other's living proxy for dead, and each finds a dead one's rows."""
    ledger = shared_folder / "usage.db"
    streams = traffic.SlowStreams(console)
    one = start_proxy(ledger=ledger, user=(60_001, 60_000))
    with traffic.open_streams(one.port, 3) as clients:
        other = start_proxy(ledger=ledger, user=(60_002, 60_000))
        with traffic.open_streams(other.port, 2):
            other.stop(signal.SIGKILL)
        third = start_proxy(ledger=ledger, user=(60_003, 60_000))
        wait_until(lambda: len([row for row in rows_of(ledger) if row["review_reason"] == "proxy_stopped"]) == 2)
        assert [row["usage_state"] for row in rows_of(ledger)].count("pending") == 3
        streams.let_end()
        for client in clients:
            traffic.read_until(client, b"message_stop")
        traffic.send(console, third.port, 8, 4, 1)
    assert books_match(console, ledger) == 13
    for proxy in (one, third):
        proxy.stop()
        assert "cannot write" not in proxy.log
    assert {oct(path.stat().st_mode & 0o777) for path in shared_folder.glob("usage.db*") if path.is_file()} == {"0o660"}


def test_a_new_version_migrates_while_an_old_one_writes(
    console: FakeConsole,
    start_proxy: Callable[..., Proxy],
    tmp_path: Path,
    ledger: Path,
    sized: Callable[[int, int], int],
    books_match: Callable[..., int],
) -> None:
    newer = tmp_path / "newer"
    shutil.copytree(ADDON.parent, newer, ignore=shutil.ignore_patterns("__pycache__"))
    schema = newer / "usage_ledger" / "ledger" / "schema.py"
    addition = (
        "@_migrations()\ndef add_a_note(database: Database) -> None:\n"
        '    database.execute("ALTER TABLE usage_records ADD COLUMN note TEXT")\n'
        '    database.execute("CREATE INDEX usage_records_note ON usage_records(note)")\n\n\ndef migrate('
    )
    schema.write_text(schema.read_text().replace("def migrate(", addition, 1))
    count = sized(150, 2000)
    old = start_proxy()
    sender = threading.Thread(target=traffic.send, args=(console, old.port, count, 12, 1))
    sender.start()
    wait_until(lambda: console.received.total() > 20)
    new = start_proxy(script=newer / "usage.py")
    traffic.send(console, new.port, count, 12, 2)
    sender.join()
    assert books_match(console, ledger) == 2 * count
    with closing(sqlite3.connect(ledger)) as connection:
        assert connection.execute("SELECT count(*) FROM usage_records WHERE note IS NULL").fetchone() == (2 * count,)
    for proxy in (old, new):
        proxy.stop()
        assert "cannot" not in proxy.log


def test_a_proxy_that_lives_on_settles_the_rows_of_one_that_died_beside_it(
    console: FakeConsole,
    start_proxy: Callable[..., Proxy],
    patched_script: Callable[[str], Path],
    ledger: Path,
    books_match: Callable[..., int],
) -> None:
    """Nobody has to start a proxy for that, and it need not have any traffic."""
    traffic.SlowStreams(console)
    start_proxy(script=patched_script("from usage_ledger.ledger import writer\nwriter.LOOK_SECONDS = 0.2"))
    dying = start_proxy()
    with traffic.open_streams(dying.port, AT_ONCE):
        wait_until(lambda: all(row["usage_raw"] for row in rows_of(ledger)))
        dying.stop(signal.SIGKILL)
    assert books_match(console, ledger) == AT_ONCE
    assert slow_rows(ledger) == [("partial", "proxy_stopped", True)] * AT_ONCE


def test_killed_after_a_streamed_upload_the_row_knows_what_the_body_told(
    console: FakeConsole, start_proxy: Callable[..., Proxy], ledger: Path
) -> None:
    traffic.SlowStreams(console)
    proxy = start_proxy("--set", "stream_large_bodies=1")
    with traffic.open_streams(proxy.port, 1):
        wait_until(lambda: rows_of(ledger)[0]["requested_model"])
        proxy.stop(signal.SIGKILL)
    start_proxy()
    (row,) = settled_rows(ledger, 1)
    assert (row["requested_model"], row["review_reason"]) == ("claude-asked", "proxy_stopped")
