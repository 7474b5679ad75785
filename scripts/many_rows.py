"""Ledgers of very many rows, made in seconds: for benchmarks of whatever reads them."""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from usage_ledger.ledger.columns import COLUMNS, ITERATION_COUNTS
from usage_ledger.ledger.store import Store

RAW = (
    '{"input_tokens":12,"cache_creation_input_tokens":100,"cache_read_input_tokens":2000,"cache_creation":'
    '{"ephemeral_5m_input_tokens":100,"ephemeral_1h_input_tokens":0},"output_tokens":42,"service_tier":"standard"}'
)
LIMITS = ",".join(
    f'"anthropic-ratelimit-{what}-{name}":"{value}"'
    for what in ("requests", "tokens", "input-tokens", "output-tokens")
    for name, value in (("limit", "4000000"), ("remaining", "3999000"), ("reset", "2026-11-01T00:00:00Z"))
)
FIRST, DAYS = datetime(2026, 11, 1, tzinfo=UTC), 30


def values(rows: int, with_limits: bool) -> dict[str, str]:
    """Return SQL for each column that is not NULL, of row number n: as real rows are, spread over a month."""
    seconds = f"{int(FIRST.timestamp())} + n * {DAYS * 86400.0 / rows}"
    agent = '"user_agent":"claude-cli/2.1.0 (external, cli)"'
    metadata = f'{{{agent},"rate_limits":{{{LIMITS}}}}}' if with_limits else f"{{{agent}}}"
    state = "CASE WHEN n % 50 = 0 THEN 'none' WHEN n % 97 = 0 THEN 'partial' ELSE 'complete' END"
    return {
        "id": "printf('%013x-%012x', 1793491200000000 + n * 1000, n * 7919)",
        "occurred_at": f"strftime('%Y-%m-%dT%H:%M:%fZ', {seconds}, 'unixepoch')",
        "completed_at": f"strftime('%Y-%m-%dT%H:%M:%fZ', 5 + {seconds}, 'unixepoch')",
        "account_id": "'account-' || (n % 20)",
        "api_key_hint": "'sk-ant-api03-R2D...ig' || (10 + n % 40)",
        "credential_kind": "'api_key'",
        "organization_id": "'1f0d3c5e-7a7a-4d5c-9a59-2b8f3f6f4d11'",
        "request_id": "printf('req_011CT%016x', n * 104729)",
        "session_id": "printf('%08x-7a7a-4d5c-9a59-2b8f3f6f4d11', n / 50)",
        "tag": "'tag-' || (n % 10)",
        "host": "'api.anthropic.com'",
        "path": "'/v1/messages'",
        "requested_model": "'claude-sonnet-4-6'",
        "model": "CASE n % 5 WHEN 0 THEN 'claude-opus-4-6' WHEN 1 THEN 'claude-haiku-4-5' ELSE 'claude-sonnet-4-6' END",
        "message_id": "printf('msg_01%020x', n * 7907)",
        "stop_reason": "'end_turn'",
        "service_tier": "'standard'",
        "stream": "1",
        "http_status": "CASE WHEN n % 50 = 0 THEN 529 ELSE 200 END",
        "input_tokens": "12 + n % 3000",
        "output_tokens": "42 + n % 700",
        "cache_creation_input_tokens": "100",
        "cache_creation_5m_input_tokens": "100",
        "cache_creation_1h_input_tokens": "0",
        "cache_read_input_tokens": "2000",
        **dict.fromkeys(("thinking_tokens", "web_search_requests", "web_fetch_requests"), "0"),
        "total_tokens": "2154 + n % 3000 + n % 700",
        "usage_state": state,
        "requires_manual_review": "n % 50 <> 0 AND n % 97 = 0",
        "review_reason": "CASE WHEN n % 50 <> 0 AND n % 97 = 0 THEN 'client_disconnected' END",
        "total_cost": "printf('0.0%d', 1234 + n % 9000)",
        "price_source": "'genai-prices 0.2.3'",
        "duration_ms": "2000 + n % 9000",
        "time_to_first_token_ms": "300 + (n * 7919) % 2500",
        "response_bytes": "24000",
        "origin": "'live'",
        "usage_raw": f"'{RAW}'",
        "metadata": f"'{metadata}'",
        "writer": "'0.1.0 abcdef'",
    }


def make(path: Path, rows: int, with_limits: bool = False) -> Path:
    """Make a ledger of so many rows, indexes and all; a million take about 20 seconds."""
    Store(path, "normal", "abcdef").close()
    told = values(rows, with_limits)
    names: Sequence[str] = [name for name in COLUMNS if name in told]
    cells = ", ".join(told[name] for name in names)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA synchronous = off")
        with connection:
            connection.execute(
                f"WITH RECURSIVE s(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM s WHERE n < {rows - 1}) "
                f"INSERT INTO usage_records ({', '.join(names)}) SELECT {cells} FROM s"
            )
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path


def advise(path: Path, share: int = 10) -> Path:
    """Give each so many-th row of a ledger two iterations, half of its own model and half of an advisor."""
    names = ", ".join(ITERATION_COUNTS)
    with closing(sqlite3.connect(path)) as connection, connection:
        for place, model in enumerate(("model", "'claude-fable-5'")):
            counts = ", ".join(f"({name} + {place}) / 2" for name in ITERATION_COUNTS)
            connection.execute(
                f"INSERT INTO usage_iterations (record_id, position, model, billed, total_cost, {names}) "
                f"SELECT id, {place}, {model}, 1, '0.001', {counts} FROM usage_records WHERE rowid % {share} = 0"
            )
    return path
