"""What the tests of the fleet share: a real PostgreSQL, a database for each test, ledgers with rows."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from usage_ledger.ledger.record import Entry, IterationRow, Record
from usage_ledger.ledger.store import Store

from scripts.real_postgres import Postgres

type Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with Postgres() as running:
        yield running


@pytest.fixture
def dsn(postgres: Postgres) -> str:
    """A database of the test's own."""
    return postgres.new_database()


def record(number: int, **more: Any) -> Record:
    given: dict[str, Any] = {
        "id": f"{number:013x}-aaaaaaaaaaaa",
        "occurred_at": f"2026-{10 + number % 2:02}-{1 + number % 28:02}T08:00:{number % 60:02}.{number % 1000:03}Z",
        "host": "api.anthropic.com",
        "path": "/v1/messages",
        "account_id": "acme",
        "model": "claude-sonnet-4-6",
        "usage_state": "complete",
        "stop_reason": "end_turn",
        "input_tokens": 12,
        "output_tokens": 42,
        "total_tokens": 54,
        "usage_raw": '{"input_tokens":12,"output_tokens":42}',
        "metadata": '{"user_agent":"tests"}',
        "http_status": 200,
        **more,
    }
    return Record(**given)


def fill(path: Path, *records: Record, iterations: tuple[IterationRow, ...] = ()) -> Path:
    with closing(Store(path, "normal", "abc")) as store:
        store.write([Entry(each, [one for one in iterations if one.record_id == each.id]) for each in records], [])
    return path


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "usage_ledger", *map(str, arguments)]


@pytest.fixture
def run() -> Run:
    """Run a command of the tool to its end."""

    def run_(*arguments: object, code: int | None = 0, **more: Any) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(
            command(*arguments), capture_output=True, text=True, encoding="utf-8", timeout=120, **more
        )
        assert code is None or done.returncode == code, done
        return done

    return run_
