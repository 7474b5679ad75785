"""What one PostgreSQL takes: N pushers at once, each with a ledger of its own, against the test server.

Prints rows a second, bytes a row, and what `psql \\copy` of the same rows takes in the same run. `./scripts/simulate
--pushers 4 --rows 100000`. It takes about a minute a million rows.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path

import click
import psycopg
from usage_ledger.ledger.record import Entry, Record
from usage_ledger.ledger.store import Store

from scripts.many_rows import RAW
from scripts.real_postgres import Postgres, psql, query

MODELS = ("claude-sonnet-4-6", "claude-opus-4-7", "claude-haiku-4-5")


def records(pusher: int, count: int) -> Iterator[Record]:
    """Rows as they are in a proxy's ledger: two months of them, of a hundred accounts."""
    for number in range(count):
        date, second = f"2026-{10 + number % 2:02}-{1 + number % 28:02}", number % 86_400
        start = int(datetime.fromisoformat(f"{date}T00:00Z").timestamp() + second) * 1_000_000 + number % 1000 * 1000
        yield Record(
            id=f"{start:013x}-{pusher:06x}{number:06x}",
            occurred_at=f"{date}T{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}.{number % 1000:03}Z",
            completed_at=f"{date}T23:59:59.000Z",
            account_id=f"key:{number % 100:012x}",
            api_key_hint="sk-ant-api03-R2D...igAA",
            credential_kind="api_key",
            request_id=f"req_{pusher:02}{number:018}",
            host="api.anthropic.com",
            path="/v1/messages",
            requested_model=MODELS[number % 3],
            model=MODELS[number % 3],
            message_id=f"msg_{pusher:02}{number:018}",
            stop_reason="end_turn",
            stream=1,
            http_status=200,
            input_tokens=12,
            output_tokens=42,
            cache_creation_input_tokens=100,
            cache_creation_5m_input_tokens=100,
            cache_read_input_tokens=2000,
            total_tokens=2154,
            usage_state="complete",
            total_cost="0.001641",
            price_source="genai-prices 0.2.3",
            duration_ms=2_500,
            time_to_first_token_ms=400,
            response_bytes=24_000,
            usage_raw=RAW,
            metadata='{"user_agent":"claude-cli/2.1.0 (external, cli)"}',
            writer="0.1.0 abcdef",
        )


def fill(path: Path, pusher: int, count: int) -> None:
    with closing(Store(path, "normal", "abc")) as store:
        entries: list[Entry] = []
        for each in records(pusher, count):
            entries.append(Entry(each))
            if len(entries) == 5_000:
                store.write(entries, [])
                entries.clear()
        store.write(entries, [])


def push(dsn: str, ledger: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "usage_ledger", "push", dsn, "--db", str(ledger), "--source", ledger.stem]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


@click.command()
@click.option("--pushers", default=3, show_default=True, type=click.IntRange(1, 99), help="How many push at once.")
@click.option("--rows", default=100_000, show_default=True, type=click.IntRange(1), help="Rows of each.")
def simulate(pushers: int, rows: int) -> None:
    """Push from many ledgers at once into one PostgreSQL, and say what that took."""
    with tempfile.TemporaryDirectory(prefix="usage-ledger-simulation-") as name, Postgres() as postgres:
        dsn = postgres.new_database()
        ledgers = [Path(name) / f"proxy-{number}.db" for number in range(pushers)]
        click.echo(f"making {pushers} ledgers of {rows:,} rows", err=True)
        for number, ledger in enumerate(ledgers):
            fill(ledger, number, rows)
        began = time.perf_counter()
        if any(process.wait() for process in [push(dsn, ledger) for ledger in ledgers]):
            raise click.ClickException("a push failed")
        pushed = time.perf_counter() - began
        ((count, tokens),) = query(dsn, "SELECT count(*), sum(total_tokens) FROM usage_records")
        if (count, tokens) != (pushers * rows, pushers * rows * 2154):
            raise click.ClickException(f"{count:,} rows with {tokens:,} tokens are there, of {pushers * rows:,}")
        ((table, indexes),) = query(
            dsn,
            "SELECT sum(pg_table_size(relid)), sum(pg_indexes_size(relid)) FROM pg_partition_tree('usage_records')",
        )
        copied = copy(dsn, Path(name) / "rows.copy")
        version = query(dsn, "SHOW server_version")[0][0].split()[0]
        click.echo(f"PostgreSQL {version}, {pushers} pushers at once, {count:,} rows, each with all its columns")
        click.echo(f"push         {pushed:6.1f} s  {count / pushed:8,.0f} rows/s, from starting to the last commit")
        click.echo(f"psql \\copy   {copied:6.1f} s  {count / copied:8,.0f} rows/s, one session, as many indexes")
        click.echo(f"bytes a row  {table / count:6.0f} in the table, {indexes / count:.0f} in its indexes")


def copy(dsn: str, file: Path) -> float:
    """Copy the rows out and into a table like theirs, and return the seconds of the latter."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE copied (LIKE usage_records INCLUDING ALL) PARTITION BY RANGE (occurred_at)")
        for month in (10, 11):
            connection.execute(
                f"CREATE TABLE copied_{month} PARTITION OF copied "
                f"FOR VALUES FROM ('2026-{month}-01 00:00+00') TO ('2026-{month + 1}-01 00:00+00')"
            )
    subprocess.run([psql(), dsn, "-qc", f"\\copy (SELECT * FROM usage_records) TO '{file}'"], check=True)
    began = time.perf_counter()
    subprocess.run([psql(), dsn, "-qc", f"\\copy copied FROM '{file}'"], check=True)
    return time.perf_counter() - began


if __name__ == "__main__":
    simulate()
