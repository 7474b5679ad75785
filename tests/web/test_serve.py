"""`usage-ledger serve`: how it starts, what it says, how it ends."""

import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from scripts.real_pages import serving
from tests.web.looking import fill, record, tool


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("pages") / "usage.db", record(1))


def test_a_port_that_is_taken_is_told(ledger: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = tool("serve", "--port", port, "--db", ledger, code=2)
    assert done.stderr.startswith(f"usage-ledger: cannot listen on port {port} (")
    assert (done.stderr.count("\n"), done.stdout) == (1, "")


def test_without_a_ledger_it_says_so(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("Dear diary")
    for path, words in (("none.db", "there is no ledger at"), ("text", "not a usage ledger"), (".", "is a folder")):
        done = tool("serve", "--db", tmp_path / path, code=2)
        assert words in done.stderr
        assert done.stderr.count("\n") == 1


def test_without_the_extra_one_line_says_what_to_install(ledger: Path, tmp_path: Path) -> None:
    (tmp_path / "datasette.py").write_text("raise ImportError('no datasette')")
    done = subprocess.run(
        [sys.executable, "-m", "usage_ledger", "serve", "--db", str(ledger)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        timeout=60,
    )
    assert done.returncode == 2
    assert "pip install 'claude-usage-ledger[web]'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_path_with_anything_in_it_can_be_served(tmp_path: Path) -> None:
    with serving(fill(tmp_path / "50% of #1? yes&no" / "usage.db", record(1))) as pages:
        assert '<dd id="requests">1</dd>' in pages.get()[1]


@contextmanager
def started(ledger: Path, *arguments: str, **env: str) -> Iterator["subprocess.Popen[str]"]:
    with subprocess.Popen(
        [sys.executable, "-m", "usage_ledger", "serve", "--port", "0", "--db", str(ledger), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **env},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_it_ends_when_it_is_told_to(ledger: Path) -> None:
    with started(ledger) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.terminate()
        _, told = process.communicate(timeout=20)
    assert process.returncode in (0, 143)
    assert told == ""


def test_a_browser_that_takes_its_time_holds_nothing_up(ledger: Path, tmp_path: Path) -> None:
    """It is given the address with the token, and whoever asks meanwhile is answered."""
    browser, asked = tmp_path / "browser", tmp_path / "asked"
    browser.write_text(f'#!/bin/sh\nprintf %s "$1" > {shlex.quote(str(asked))}.new; mv {asked}.new {asked}; sleep 60\n')
    browser.chmod(0o755)
    with started(ledger, "--open", BROWSER=f"{browser} %s") as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        host, port = address.split("/")[2].split(":")
        with socket.create_connection((host, int(port)), timeout=10) as client:
            client.sendall(f"GET /review HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
            assert client.recv(100).startswith(b"HTTP/1.1 403")
        for _ in range(100):
            if asked.exists():
                break
            time.sleep(0.1)
        assert asked.read_text() == address


def test_where_no_browser_can_be_opened_it_says_so(ledger: Path) -> None:
    with started(ledger, "--open", BROWSER="no-such-browser", PATH="/nonexistent", DISPLAY="") as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "no browser could be opened; open the address yourself\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_an_address_that_cannot_be_written_is_one_line(ledger: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "usage_ledger", "serve", "--port", "0", "--db", str(ledger)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert (done.returncode, done.stderr) == (2, "usage-ledger: [Errno 28] No space left on device\n")
