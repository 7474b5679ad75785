"""What goes wrong with a ledger while it is served: one page says so, and none shows rows of another ledger."""

import http.client
import json
import os
from pathlib import Path

import pytest

from scripts.real_pages import Served, serving
from tests.web.looking import NOW, fill, record

PATHS = [
    *("/", "/review", "/reconciliation", "/overview/cost.csv", "/overview/cost.json"),
    *("/ledger", "/ledger/usage_records", "/ledger/usage_records.csv", "/ledger/usage_records.json"),
    *(f"/ledger/usage_records/{record(1).id}", "/ledger?sql=select+1", "/nothing"),
]


def counts(pages: Served) -> tuple[int, int]:
    """How many requests our own pages and Datasette's see."""
    rows = json.loads(pages.get("/overview/requests.json")[1])
    (told,) = json.loads(pages.get("/ledger.json?sql=select+count(*)+as+n+from+usage_records&_shape=array")[1])
    return sum(row["answered"] for row in rows), told["n"]


def test_a_ledger_that_fails_is_one_line_on_each_page_and_no_traceback(tmp_path: Path) -> None:
    ledger, said = fill(tmp_path / "usage.db", record(1)), tmp_path / "stderr"
    with said.open("w") as stderr, serving(ledger, stderr=stderr) as pages:
        assert counts(pages) == (1, 1)
        ledger.rename(tmp_path / "moved.db")
        for path in PATHS[:-1]:
            status, text = pages.get(path)
            assert (status, f"there is no ledger at {ledger}" in text) == (503, True), path
        assert json.loads(pages.get("/overview/cost.json")[1])["status"] == 503

        fill(ledger, *(record(number) for number in range(1, 4)))
        assert counts(pages) == (3, 3)

        ledger.write_bytes(os.urandom(100_000))
        for path in PATHS[:-1]:
            status, text = pages.get(path)
            assert (status, "is not a usage ledger" in text) == (503, True), path
    assert said.read_text() == ""


def test_damage_within_a_ledger_is_told_as_such(tmp_path: Path) -> None:
    ledger = fill(tmp_path / "usage.db", *(record(number, metadata=f'{{"x":"{"y" * 900}"}}') for number in range(400)))
    whole = ledger.read_bytes()
    leaves = [place for place in range(0, len(whole), 4096) if whole[place] == 13]  # pages with rows
    broken = bytearray(whole)
    for place in leaves[len(leaves) // 2 :][:6]:
        broken[place : place + 64] = b"\xff" * 64
    ledger.write_bytes(broken)
    said = tmp_path / "stderr"
    with said.open("w") as stderr, serving(ledger, stderr=stderr) as pages:
        for path in ("/", "/ledger/usage_records?_sort=model"):
            status, text = pages.get(path)
            assert (status, "database disk image is malformed" in text) == (503, True), path
        for query in ("?sql=select+nothing", "/usage_records?_facet=nothing", "/usage_records?_sort=nothing"):
            assert pages.get(f"/ledger{query}")[0] == 400
        assert said.read_text() == ""
        with pytest.raises(http.client.IncompleteRead):  # half of a CSV is none
            pages.get("/ledger/usage_records.csv?_stream=on&_size=50")
    assert "Traceback" not in said.read_text()


READ_ONLY = (
    "from usage_ledger.ledger import reading\n"
    "from usage_ledger.cli.main import run\n"
    "reading.may_be_written = lambda _: False\n"
    "run()"
)


def test_whoever_may_only_read_sees_what_was_written_since(tmp_path: Path) -> None:
    """Where nobody may write, SQLite is told that the file does not change; so nothing may be kept open."""
    ledger = fill(tmp_path / "usage.db", record(1))
    with serving(ledger, program=("-c", READ_ONLY)) as pages:
        assert [counts(pages) for _ in range(4)] == [(1, 1)] * 4  # in each thread
        fill(ledger, *(record(number) for number in range(2, 400)))
        assert [counts(pages) for _ in range(4)] == [(399, 399)] * 4


WRITES_MEANWHILE = """
import sys
from pathlib import Path
from usage_ledger.cli.main import run
from usage_ledger.ledger import overview
from usage_ledger.ledger.record import IterationRow
from tests.web.looking import NOW, fill, record

spent, ledger = overview.spent, Path(sys.argv[5])

def meanwhile(reader, steps, found):
    late = record(2, model="opus", input_tokens=300, output_tokens=30, cache_read_input_tokens=0, total_cost="3")
    if steps[-1].since <= late.occurred_at < steps[-1].until:
        fill(ledger, late, iterations=(IterationRow(late.id, 0, "advisor", "haiku", 1, 300, 30, total_cost="3"),))
    return spent(reader, steps, found)

overview.spent = meanwhile
run()
"""


def test_what_is_shown_together_is_of_one_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that is written between two reads is not taken out of where it was not yet put in."""
    ledger = fill(tmp_path / "usage.db", record(1, model="opus", total_cost="1"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    with serving(ledger, program=("-c", WRITES_MEANWHILE)) as pages:
        assert json.loads(pages.get("/overview/cost.json")[1])[-1] == {"time (UTC)": f"{NOW:%Y-%m-%d}", "opus": 1}
        last = json.loads(pages.get("/overview/cost.json")[1])[-1]
        assert {name: last[name] for name in ("opus", "haiku")} == {"opus": 1, "haiku": 3}
