"""What the tests of the fleet share: a real PostgreSQL, a database for each test, ledgers with rows."""

import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from usage_ledger.cli import main
from usage_ledger.ledger.record import Entry, IterationRow, Record
from usage_ledger.ledger.store import Store

from scripts.real_postgres import Postgres, query
from scripts.real_proxy import rows_of

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


def timely(number: int, **more: Any) -> Record:
    """A row with an id as the addon gives one, which begins with its start; such rows are stored the short way."""
    given = record(number)
    start = round(datetime.fromisoformat(given.occurred_at).timestamp() * 1_000_000)
    return record(number, **{"id": f"{start:013x}-{number:012x}", **more})


def fill(path: Path, *records: Record, iterations: tuple[IterationRow, ...] = ()) -> Path:
    with closing(Store(path, "normal", "abc")) as store:
        store.write([Entry(each, [one for one in iterations if one.record_id == each.id]) for each in records], [])
    return path


@click.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command_line(arguments: Sequence[str]) -> None:
    """The tool as it is run from a shell, with its exit codes."""
    main.run(arguments)


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "usage_ledger", *map(str, arguments)]


@pytest.fixture
def run() -> Run:
    """Run a command of the tool to its end, in a process of its own where it is to have an environment of its own."""

    def run_(
        *arguments: object, code: int | None = 0, env: dict[str, str] | None = None
    ) -> "subprocess.CompletedProcess[str]":
        if env is not None:
            done = subprocess.run(
                command(*arguments), capture_output=True, text=True, encoding="utf-8", timeout=120, env=env
            )
        else:
            given = [str(each) for each in arguments]
            result = CliRunner().invoke(command_line, given)
            done = subprocess.CompletedProcess(given, result.exit_code, result.stdout, result.stderr)
        assert code is None or done.returncode == code, done
        return done

    return run_


FLAGGED: dict[str, Any] = {
    "usage_state": "missing",
    "requires_manual_review": 1,
    "review_reason": "no_usage_data",
    "total_tokens": 0,
    "input_tokens": 0,
    "output_tokens": 0,
    "usage_raw": None,
    "stop_reason": None,
    "metadata": '{"_no_usage_data":true,"_requires_manual_review":true}',
}
"""What a row without usage is."""


def sql(path: Path, statement: str, *values: object) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as connection, connection:
        return connection.execute(statement, values).fetchall()


def stored(dsn: str, *columns: str) -> list[tuple[Any, ...]]:
    return query(dsn, f"SELECT {', '.join(columns)} FROM usage_records ORDER BY id")


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "usage.db"


BY_SQL = (
    "UPDATE usage_records SET input_tokens = 1200, output_tokens = 340, total_tokens = 1540, "
    """metadata = metadata || '{"_manually_updated": true}'::jsonb WHERE id = '%s'"""
)


@pytest.fixture
def proxy(tmp_path: Path) -> Path:
    return tmp_path / "proxy.db"


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    return tmp_path / "desk" / "fleet.db"


def comparable(path: Path) -> list[dict[str, Any]]:
    """Rows with their JSON as what it means: PostgreSQL writes it its own way."""
    return [
        {
            name: json.loads(value) if name in ("usage_raw", "metadata") and value else value
            for name, value in row.items()
        }
        for row in rows_of(path)
    ]


def backfill(run: Run, path: Path, number: int, tokens: int) -> None:
    counts = ("--input-tokens", tokens, "--output-tokens", tokens)
    run("backfill", "--id", record(number).id, *counts, "--note", "the invoice", "--db", path)


def shown(path: Path, number: int, *columns: str) -> tuple[Any, ...]:
    return sql(path, f"SELECT {', '.join(columns)} FROM usage_records WHERE id = ?", record(number).id)[0]
