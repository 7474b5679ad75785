"""A generated month against the bill: fetched, reconciled, filled in, adjusted, until it matches to the last token."""

import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from usage_ledger.ledger.moments import format_moment
from usage_ledger.ledger.record import Entry, Record
from usage_ledger.ledger.store import Store

from scripts.fake_admin import ADMIN_KEY, FakeAdmin
from scripts.fake_console import ApiKey, Part, Served
from scripts.real_proxy import rows_of

MONTH = datetime(2026, 10, 1, tzinfo=UTC)
DAYS = 31
SPAN = ("--since", "2026-10-01", "--until", "2026-11-01")
MODELS = ("claude-sonnet-4-6", "claude-haiku-4-5", "claude-opus-4-7")
KEYS = [
    ApiKey(f"apikey_{number}", f"team {number}", f"sk-ant-api03-{number:03d}...{number:04d}", workspace)
    for number, workspace in enumerate((None, "wrkspc_1", None, "wrkspc_1", "wrkspc_2", None))
]
KINDS = ("uncached_input_tokens", "output_tokens", "cache_5m", "cache_1h", "cache_read_input_tokens")
COLUMNS = (
    *("input_tokens", "output_tokens", "cache_creation_5m_input_tokens", "cache_creation_1h_input_tokens"),
    "cache_read_input_tokens",
)


def generate(ledger: Path, count: int) -> tuple[list[Served], dict[str, tuple[int, ...]]]:
    """Make a month of requests in a ledger, one in a hundred without usage; return what was served, and the holes."""
    dice = random.Random(count)
    served: list[Served] = []
    holes: dict[str, tuple[int, ...]] = {}
    with closing(Store(ledger, "normal", "abc")) as store:
        for first in range(0, count, 5_000):
            entries = []
            for number in range(first, min(count, first + 5_000)):
                start = MONTH + timedelta(seconds=dice.uniform(300, DAYS * 86_400 - 300))
                end = start + timedelta(seconds=dice.choice([1, 5, 30, 120]))
                key, model = dice.choice(KEYS), dice.choice(MODELS)
                counts = tuple(dice.randrange(1, 9_000) for _ in KINDS)
                served.append(
                    Served(key, start, end, [Part(f"{model}-20260101", dict(zip(KINDS, counts, strict=True)))])
                )
                is_hole = dice.random() < 0.01
                if is_hole:
                    holes[f"{number:08d}"] = counts
                entries.append(entry(f"{number:08d}", start, end, key, model, None if is_hole else counts))
            store.write(entries, [])
    return served, holes


def entry(id_: str, start: datetime, end: datetime, key: ApiKey, model: str, counts: tuple[int, ...] | None) -> Entry:
    fields: dict[str, Any] = {"usage_state": "complete", "stop_reason": "end_turn"}
    if counts is None:
        metadata = '{"_no_usage_data":true,"_requires_manual_review":true}'
        fields = {"usage_state": "missing", "requires_manual_review": 1, "metadata": metadata}
        fields["review_reason"] = "no_usage_data"
    else:
        told = dict(zip(COLUMNS, counts, strict=True))
        cache = counts[2] + counts[3]
        fields |= told | {"cache_creation_input_tokens": cache, "total_tokens": sum(counts)}
        split = {"ephemeral_5m_input_tokens": counts[2], "ephemeral_1h_input_tokens": counts[3]}
        usage = {"input_tokens": counts[0], "output_tokens": counts[1], "cache_read_input_tokens": counts[4]}
        fields["usage_raw"] = json.dumps(usage | {"cache_creation_input_tokens": cache, "cache_creation": split})
    return Entry(
        Record(
            id=id_,
            occurred_at=format_moment(start),
            completed_at=format_moment(end),
            host="api.anthropic.com",
            path="/v1/messages",
            model=model,
            request_id=f"req_{id_}",
            message_id=f"msg_{id_}",
            api_key_hint=key.hint,
            credential_kind="api_key",
            workspace_id=key.workspace or "wrkspc_default",
            http_status=200,
            writer="test gone",
            **fields,
        )
    )


def test_a_generated_month_matches_the_bill_to_the_last_token(
    tmp_path: Path,
    sized: Callable[[int, int], int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    ledger = tmp_path / "usage.db"
    served, holes = generate(ledger, sized(3_000, 100_000))
    figures: list[str] = []

    def tool(*words: str, code: int = 0) -> str:
        measure = (
            "import pathlib, sys\nfrom usage_ledger.cli.main import run\ntry: run(sys.argv[1:])\n"
            "finally: sys.stderr.write(pathlib.Path('/proc/self/status').read_text())"
        )
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", measure, words[0], "--db", str(ledger), *words[1:]],
            capture_output=True,
            text=True,
            encoding="utf-8",
            env={**os.environ, "ANTHROPIC_ADMIN_KEY": ADMIN_KEY, "PYTHONUTF8": "1"},
        )
        assert done.returncode == code, done
        peak = re.search(r"VmHWM:\s+(\d+)", done.stderr)
        assert peak is not None
        took = time.monotonic() - began
        figures.append(f"{' '.join(words[:2]):<24} {took:6.1f} s {int(peak[1]) // 1024:5} MB")
        return done.stdout + done.stderr

    finest = ("--by", "day,model,key,workspace", "--format", "json")
    with FakeAdmin(lambda: served, "end", timedelta(seconds=20)) as admin:
        tool("fetch", "keys", "--base-url", admin.address)
        tool("fetch", "usage", *SPAN, "--base-url", admin.address)
        tool("reconcile", *SPAN, *finest, code=1)
        tool("fetch", "usage", *SPAN, "--width", "1m", "--base-url", admin.address)
    told = tool("reconcile", *SPAN, "--apply", code=1)
    filled = re.search(r"^filled in ([\d,]+) row", told, re.MULTILINE)
    assert filled is not None
    assert int(filled[1].replace(",", "")) > 0.9 * len(holes)
    for row in rows_of(ledger, "metadata LIKE '%_manually_updated%'"):
        assert tuple(row[name] for name in COLUMNS) == holes[row["id"]]  # never another's
    tool("reconcile", *SPAN, "--adjust")
    result = json.loads(tool("reconcile", *SPAN, *finest).partition("Name:")[0])
    assert {each["verdict"] for each in result["buckets"]} == {"matches"}
    theirs = sum(kind["theirs"] for each in result["buckets"] for kind in each["kinds"])
    assert theirs == sum(sum(part.counts.values()) for each in served for part in each.billed)
    assert "all is well" in tool("verify")
    with capsys.disabled():
        lines = ("", f"{len(served):,} requests, {len(holes):,} without usage", *figures, "")
        sys.stdout.write("\n".join(lines))
