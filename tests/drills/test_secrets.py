"""No key, no prompt and no completion is in a file that we write, in the log or an export; files are private."""

import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import httpx
import pytest

from scripts.fake_console import FakeConsole
from scripts.real_proxy import Proxy, rows_of, wait_until

SECRETS = (b"secretsecret", b"PROMPT", b"to the last token", b"books match")
SCENARIOS = ("normal", "json", "rate_limited", "without_usage", "iterations", "gzipped", "breaks")


def files_of(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def assert_clean(data: bytes, folder: Path) -> None:
    shown = data.replace(bytes(folder), b"")
    for secret in SECRETS:
        assert secret not in shown


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
def test_in_ledger_journal_log_and_exports(
    start_proxy: Callable[..., Proxy], ask: Callable[..., httpx.Response], ledger: Path, how: signal.Signals
) -> None:
    proxy = start_proxy("--set", "usage_tag_header=x-team")
    for scenario in SCENARIOS:
        with suppress(httpx.TransportError):
            ask(proxy, scenario, **{"x-team": "blue"})
    proxy.stop(how)
    everything = b"".join(path.read_bytes() for path in files_of(ledger.parent)) + proxy.log.encode()
    assert b"claude-sonnet-4-6" in everything
    assert_clean(everything, ledger.parent)
    for arguments in (["rows"], *(["export", "--format", form] for form in ("csv", "json", "ndjson"))):
        command = [sys.executable, "-m", "usage_ledger", *arguments, "--db", str(ledger)]
        shown = subprocess.run(command, capture_output=True, check=True)
        assert b"claude-sonnet-4-6" in shown.stdout
        assert_clean(shown.stdout + shown.stderr, ledger.parent)


def test_in_the_spill_file(start_proxy: Callable[..., Proxy], ask: Callable[..., httpx.Response], ledger: Path) -> None:
    proxy = start_proxy()
    ask(proxy, "normal")
    with closing(sqlite3.connect(ledger, isolation_level=None)) as locked:
        locked.execute("BEGIN IMMEDIATE")
        for scenario in SCENARIOS:
            with suppress(httpx.TransportError):
                ask(proxy, scenario)
        proxy.stop()
    (spilled,) = ledger.parent.glob("usage.db-spill-*")
    assert b"claude-sonnet-4-6" in spilled.read_bytes()
    assert_clean(spilled.read_bytes() + proxy.log.encode(), ledger.parent)
    assert {oct(path.stat().st_mode & 0o777) for path in files_of(ledger.parent)} == {"0o600"}


def test_files_are_private_from_the_start(
    console: FakeConsole, start_proxy: Callable[..., Proxy], ask: Callable[..., httpx.Response], ledger: Path
) -> None:
    proxy = start_proxy()
    wait_until(ledger.exists)
    ask(proxy, "normal")
    assert len(rows_of(ledger)) == 1
    files = files_of(ledger.parent)
    assert {path.name for path in files} >= {"usage.db", "usage.db-wal", "usage.db-shm"}
    assert {oct(path.stat().st_mode & 0o777) for path in files} == {"0o600"}
    assert {oct(path.stat().st_mode & 0o777) for path in (ledger.parent, ledger.with_name("usage.db-writers"))} == {
        "0o700"
    }
