"""What README shows is what happens: its shell blocks run word for word in a fresh clone, in their order.

Two things are not word for word: the port, which has to be free, and where upstream is, which is a fake Console here.
The blocks that are run are those marked `sh`, and the one that asks for the bill, a month earlier; the others show
output, or need what a test has not, such as Claude Code.
"""

import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from usage_ledger.ledger.moments import format_moment
from usage_ledger.ledger.record import Entry, Record
from usage_ledger.ledger.store import Store

from scripts.fake_admin import ADMIN_KEY, FakeAdmin
from scripts.fake_console import ApiKey, FakeConsole, Part, Served
from scripts.real_pages import serving
from scripts.real_proxy import settled_rows

HERE = Path(__file__).parent.parent
PORT = "8080"
WITHOUT_USAGE = "-H 'x-scenario: without_usage' -d '"
"""How the fake Console is asked for a stream that carries none."""


def blocks(document: str) -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```$", (HERE / document).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Reader:
    """Somebody who types what stands there, in a clone of their own, one block after another."""

    def __init__(self, folder: Path, console: FakeConsole) -> None:
        self.clone = folder / "clone"
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=HERE,
            capture_output=True,
            check=True,
        )
        for name in filter(None, listed.stdout.decode().split("\0")):
            (self.clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(HERE / name, self.clone / name)
        (self.clone / ".venv").symlink_to(HERE / ".venv")  # as setup.sh would make it, minutes later
        self.port = free_port()
        self.ledger = folder / "usage.db"
        self.environment = {
            **os.environ,
            "HOME": str(folder),
            "PATH": f"{HERE / '.venv/bin'}:{os.environ['PATH']}",
            "USAGE_LEDGER_UPSTREAM": console.address,
            "USAGE_LEDGER_DB": str(self.ledger),
            "ANTHROPIC_API_KEY": "sk-ant-api03-R2D2-not-a-key-igAA",
            "COLUMNS": "120",
        }

    def typed(self, block: str) -> str:
        return block.replace(f":{PORT}", f":{self.port}")

    def run(self, block: str, code: int = 0) -> str:
        """Run a block to its end; return what it says."""
        done = subprocess.run(
            ["bash", "-ec", self.typed(block)],
            cwd=self.clone,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        assert done.returncode == code, done.stdout
        return done.stdout

    def start(self, block: str) -> "subprocess.Popen[str]":
        """Run a block that goes on until somebody ends it; mitmdump takes the last port it is given."""
        command = f"exec {block.strip()} -p {self.port}"
        return subprocess.Popen(
            ["bash", "-c", command],
            cwd=self.clone,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


@pytest.fixture
def console() -> Iterator[FakeConsole]:
    with FakeConsole() as running:
        yield running


@pytest.fixture
def reader(tmp_path: Path, console: FakeConsole) -> Reader:
    return Reader(tmp_path, console)


@pytest.fixture
def log(reader: Reader) -> Iterator[Callable[[str], str]]:
    """The proxy as README starts it; gives the next line of its log that holds some words."""
    (start,) = [block for block in blocks("README.md") if block == "./scripts/proxy\n"]
    process = reader.start(start)
    assert process.stdout is not None
    told = process.stdout

    def line_with(words: str) -> str:
        for line in told:
            if words in line:
                return line
        raise AssertionError(f"the proxy ended without {words!r}")

    try:
        line_with("listening at")
        yield line_with
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)


def sql(path: Path, statement: str) -> list[dict[str, Any]]:
    with closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(statement)]


def test_what_the_original_note_verifies_from_curl_to_the_page(reader: Reader, log: Callable[[str], str]) -> None:
    """A stream without usage through curl; the log's line; the row by SQL; the row in a browser's page."""
    (curl,) = [block for block in blocks("README.md") if block.startswith("curl ")]
    assert "event: message_stop" in reader.run(curl.replace("-d '", WITHOUT_USAGE))
    assert "Stream completed without usage data - recording basic request for billing consistency" in log(
        "without usage"
    )
    (query,) = re.findall(r"^```sql\n(.*?)^```$", (HERE / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    (row,) = sql(reader.ledger, query)
    assert (row["model"], row["total_tokens"]) == ("claude-sonnet-4-6", 0)
    assert json.loads(row["metadata"])["_no_usage_data"] is True
    with serving(reader.ledger) as pages:
        status, page = pages.get("/review")
    assert (status, "no_usage_data" in page) == (200, True)


def test_the_readme_is_what_happens(reader: Reader, log: Callable[[str], str]) -> None:
    """Each block that is marked as one for a shell, in order; the demo and the proxy have tests of their own."""
    (curl,) = [block for block in blocks("README.md") if block.startswith("curl ")]
    reader.run(curl.replace("-d '", WITHOUT_USAGE))  # so that there is a row to fill in
    for block in blocks("README.md"):
        if block.startswith("./scripts/"):
            continue
        said = reader.run(block)
        if block.startswith("curl "):
            assert "event: message_stop" in said
            assert "usage recorded: claude-sonnet-4-6 in=12 out=42" in log("usage recorded")
            settled_rows(reader.ledger, 2)
    assert (reader.clone / "to-share.mitm").exists()
    assert (reader.clone / "usage.csv.gz").exists()


def test_a_month_is_closed_by_its_bill(reader: Reader) -> None:
    """A request without usage is what the bill has beyond the rows: it gets it, and the month is closed."""
    (block,) = re.findall(
        r"^```\n(export ANTHROPIC_ADMIN_KEY=.*?)^```$", (HERE / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    key = ApiKey("apikey_1", "team one", "sk-ant-api03-AAA...1111")
    counts = {"uncached_input_tokens": 10, "output_tokens": 20}
    days = [datetime(2026, 10, day, 8, tzinfo=UTC) for day in (5, 6)]
    served = [Served(key, day, day + timedelta(seconds=5), [Part("claude-sonnet-4-6", counts)]) for day in days]
    told = [
        {"usage_state": "complete", "stop_reason": "end_turn", "input_tokens": 10, "output_tokens": 20},
        {"usage_state": "missing", "review_reason": "no_usage_data", "requires_manual_review": 1},
    ]
    store = Store(reader.ledger, "normal", "aaaaaaaaaaaa")
    for day, more in zip(days, told, strict=True):
        given = {
            "id": f"{day:%d}-aaaaaaaaaaaa",
            "occurred_at": format_moment(day),
            "completed_at": format_moment(day + timedelta(seconds=5)),
            "host": "api.anthropic.com",
            "path": "/v1/messages",
            "api_key_hint": key.hint,
            "credential_kind": "api_key",
            "model": "claude-sonnet-4-6",
        }
        store.write([Entry(Record(**given, **more))], [])
    store.close()
    with FakeAdmin(lambda: served) as admin:
        block = re.sub(r"(?<=ANTHROPIC_ADMIN_KEY=)\S+", ADMIN_KEY, block)
        block = block.replace("usage-ledger fetch ", f"usage-ledger fetch --base-url {admin.address} ")
        block = block.replace("2026-11", "2026-10").replace("2026-12", "2026-11")
        said = reader.run(f"set +e\n{block}")  # the first comparison says that something is left
    assert "ours short, 1 flagged" in said
    assert "filled in 1 row(s)" in said
    rows = sql(reader.ledger, "SELECT input_tokens, output_tokens, requires_manual_review FROM usage_records")
    assert [tuple(row.values()) for row in rows] == [(10, 20, 0)] * 2
    assert sql(reader.ledger, "SELECT until FROM usage_closings") == [{"until": "2026-11-01T00:00:00.000Z"}]


@pytest.mark.usefixtures("log")
def test_the_chinese_readme_is_what_happens(reader: Reader) -> None:
    (curl,) = [block for block in blocks("README.md") if block.startswith("curl ")]
    reader.run(curl.replace("-d '", WITHOUT_USAGE))
    settled_rows(reader.ledger, 1)
    for block in blocks("README.zh-CN.md"):
        if not block.startswith("./scripts/"):
            reader.run(block)


def test_contributing_is_what_happens(reader: Reader) -> None:
    """Its first block; what else it names are scripts that are there."""
    told = (HERE / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (block,) = blocks("CONTRIBUTING.md")
    assert "passed" in reader.run(block)
    named = re.findall(r"`\./scripts/(\w+)", told)
    assert named
    assert all(os.access(HERE / "scripts" / name, os.X_OK) for name in named)
    for path in re.findall(r"`((?:messages|ledger|fleet|prices)/\w+\.py|(?:tests|scripts)/\w+\.py)`", told):
        assert (HERE / path).exists() or (HERE / "addon" / "usage_ledger" / path).exists(), path


def test_the_chinese_readme_shows_nothing_that_the_english_one_does_not() -> None:
    """Its blocks for a shell hold commands of the English ones, but for the remarks behind them."""

    def commands(document: str) -> set[str]:
        lines = (line.partition(" #")[0].strip() for block in blocks(document) for line in block.splitlines())
        return set(filter(None, lines))

    assert commands("README.zh-CN.md") <= commands("README.md")
