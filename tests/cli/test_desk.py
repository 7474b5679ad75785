"""The auditor's desk as a story: from a proxy with holes in its books to books that verify, and what breaks them."""

import csv
import io
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from scripts.fake_console import START_USAGE
from scripts.real_proxy import Proxy, settled_rows
from tests.cli.test_backfill import run


def tool(ledger: Path, command: str, *arguments: str, code: int = 0) -> str:
    done = run(ledger, *arguments, command=command)
    assert done.returncode == code, done
    return done.stdout


def test_holes_are_found_filled_and_proved(
    tmp_path: Path, start_proxy: Callable[..., Proxy], ask: Callable[..., httpx.Response]
) -> None:
    # A proxy leaves rows, three of them flagged, and goes on writing while an auditor works.
    proxy = start_proxy()
    for scenario in ("normal", "without_usage", "without_usage", "json", "iterations"):
        ask(proxy, scenario)
    with pytest.raises(httpx.RemoteProtocolError):
        ask(proxy, "breaks")
    ledger = proxy.ledger
    settled_rows(ledger, 6)
    before = tool(ledger, "summary", "--format", "csv")
    assert tool(ledger, "review").count("no_usage_data") == 2 + 1

    # The queue is exported, filled in from what upstream billed, and given back.
    sheet = tmp_path / "flagged.csv"
    tool(ledger, "export", "--flagged", "--output", str(sheet))
    rows = list(csv.DictReader(io.StringIO(sheet.read_text(), newline="")))
    assert len(rows) == 3
    for number, each in enumerate(rows):
        each["output_tokens"] = str(100 + number)
        each["input_tokens"] = str(max(int(each["input_tokens"]), START_USAGE["input_tokens"]))
    with sheet.open("w", newline="") as file:
        lines = csv.DictWriter(file, rows[0])
        lines.writeheader()
        lines.writerows(rows)
    ask(proxy, "normal")
    assert "would change 3 of 3" in tool(ledger, "backfill", str(sheet), "--dry-run")
    assert "changed 3 of 3" in tool(ledger, "backfill", str(sheet), "--note", "bill of November")

    # The queue is empty, every row has its cost, and the books verify.
    assert tool(ledger, "review") == ""
    (total,) = csv.DictReader(io.StringIO(tool(ledger, "summary", "--format", "csv")))
    assert (total["requests"], total["flagged"], total["unpriced"], total["unsettled"]) == ("7", "0", "0", "0")
    assert float(total["billed_cost"]) > float(next(csv.DictReader(io.StringIO(before)))["billed_cost"])
    assert "all is well" in tool(ledger, "verify")

    # A row that is edited by hand is named, and is well again once it is adopted.
    edited = rows[0]["id"]
    with closing(sqlite3.connect(ledger)) as connection:
        connection.execute("UPDATE usage_records SET output_tokens = output_tokens + 1 WHERE id = ?", (edited,))
        connection.commit()
    assert f"row {edited}: output_tokens is 101, the trail says 100" in tool(ledger, "verify", code=1)
    tool(ledger, "review", "adopt", edited, "--note", "a typing error of mine")
    assert "all is well" in tool(ledger, "verify")
    assert "output_tokens: 100 → 101" in tool(ledger, "review", "show", edited)
