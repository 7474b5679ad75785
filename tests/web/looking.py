"""Ledgers to look at: made-up requests, some as hostile as traffic can make them, and the tool that corrects them."""

import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from usage_ledger.ledger.record import Entry, IterationRow, Record
from usage_ledger.ledger.store import Store

NOW = datetime.now(UTC)
HOSTILE = '<img src="http://198.51.100.7/x" onerror="document.title=\'owned\'"><script>document.title="owned"</script>'
LINK = "https://198.51.100.7/evil"


def record(number: int, **more: Any) -> Record:
    """A request of today, or of so many days ago."""
    moment = NOW - timedelta(days=more.pop("days", 0), seconds=number)
    given: dict[str, Any] = {
        "id": f"{number:013x}-aaaaaaaaaaaa",
        "occurred_at": f"{moment:%Y-%m-%dT%H:%M:%S.000Z}",
        "host": "api.anthropic.com",
        "path": "/v1/messages",
        "account_id": "acme",
        "api_key_hint": "sk-ant-api03-R2D...igAA",
        "credential_kind": "api_key",
        "model": "claude-sonnet-4-6",
        "usage_state": "complete",
        "stop_reason": "end_turn",
        "request_id": f"req_{number}",
        "input_tokens": 1000,
        "output_tokens": 500,
        "cache_read_input_tokens": 3000,
        "total_tokens": 4500,
        "total_cost": "1.25",
        "time_to_first_token_ms": 420,
        "http_status": 200,
        **more,
    }
    return Record(**given)


FLAGGED: dict[str, Any] = {
    "usage_state": "partial",
    "requires_manual_review": 1,
    "review_reason": "client_disconnected",
    "total_cost": None,
    "usage_raw": '{"input_tokens":1000}',
    "metadata": '{"_partial_usage":true,"_requires_manual_review":true}',
}


def fill(path: Path, *records: Record, iterations: tuple[IterationRow, ...] = ()) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(Store(path, "normal", "abc")) as store:
        store.write([Entry(each, [one for one in iterations if one.record_id == each.id]) for each in records], [])
    return path


def tool(*arguments: object, code: int = 0) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(
        [sys.executable, "-m", "usage_ledger", *map(str, arguments)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == code, done
    return done
