"""`inspect`: what captures tell of each request, and whether the ledger says the same."""

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mitmproxy.io import FlowReader, FlowWriter

from scripts.make_samples import SAMPLES
from scripts.real_proxy import replay, rows_of

DATA = Path(__file__).parents[2] / "data"
DEMO = DATA / "demo.mitm"
LEFT = SAMPLES / "client-left-mid-stream.mitm"
NORMAL = SAMPLES / "normal-stream.mitm"


def run(*arguments: object, home: Path | None = None) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if name != "USAGE_LEDGER_DB"}
    if home is not None:
        environment |= {"HOME": str(home), "XDG_DATA_HOME": str(home)}
    return subprocess.run(
        [sys.executable, "-m", "usage_ledger", "inspect", *map(str, arguments)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
        env={**environment, "COLUMNS": "100", "PYTHONUTF8": "1"},
    )


def inspected(*arguments: object) -> list[dict[str, Any]]:
    done = run(*arguments, "--format", "json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def demo_ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger with the rows of the demo's capture."""
    ledger = tmp_path_factory.mktemp("demo") / "usage.db"
    replay(DEMO, ledger)
    return ledger


@pytest.fixture
def ledger(demo_ledger: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    path = tmp_path / "usage.db"
    path.write_bytes(demo_ledger.read_bytes())
    return path


def change(ledger: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(ledger)) as connection, connection:
        connection.execute(statement, values)


def states(found: list[dict[str, Any]]) -> list[str]:
    return [each["ledger"]["state"] for each in found]


def test_every_metered_flow_is_shown_with_its_verdict_and_why(tmp_path: Path) -> None:
    done = run(LEFT, home=tmp_path)
    assert done.returncode == 0
    assert "verdict  partial, flagged client_disconnected\n" in done.stdout
    assert "`message_delta` never came: the client left after" in done.stdout
    assert "message_start" in done.stdout
    assert done.stderr.startswith("there is no ledger at ")


def test_flows_of_several_captures_are_shown_in_their_order() -> None:
    found = inspected(LEFT, NORMAL)
    assert [each["row"]["review_reason"] for each in found] == ["client_disconnected", None]


def test_the_ledger_that_the_capture_made_says_the_same(demo_ledger: Path) -> None:
    found = inspected(DEMO, "--db", demo_ledger)
    assert states(found) == ["same"] * len(rows_of(demo_ledger))
    assert [each["ledger"]["row"] for each in found] == [row["id"] for row in rows_of(demo_ledger)]


def test_a_row_that_differs_is_told_column_by_column_with_both_values(ledger: Path) -> None:
    row = rows_of(ledger)[0]
    change(ledger, "UPDATE usage_records SET output_tokens = 7, stop_reason = NULL WHERE id = ?", row["id"])
    found = inspected(DEMO, "--db", ledger)
    assert states(found)[0] == "differs"
    assert found[0]["ledger"]["differences"] == {
        "stop_reason": {"ledger": None, "capture": "end_turn"},
        "output_tokens": {"ledger": 7, "capture": 42},
    }
    assert "           output_tokens: 7 there, 42 here\n" in run(DEMO, "--db", ledger).stdout


def test_a_row_that_is_not_there_is_told_as_absent(ledger: Path) -> None:
    change(ledger, "DELETE FROM usage_records WHERE id = ?", rows_of(ledger)[1]["id"])
    assert states(inspected(DEMO, "--db", ledger))[:3] == ["same", "absent", "same"]


@pytest.mark.parametrize(("flag", "mark"), [("_manually_updated", "corrected"), ("_accepted", "accepted")])
def test_a_row_that_a_person_has_changed_says_so(ledger: Path, flag: str, mark: str) -> None:
    row = rows_of(ledger)[1]
    change(ledger, "UPDATE usage_records SET metadata = ? WHERE id = ?", json.dumps({flag: True}), row["id"])
    assert inspected(DEMO, "--db", ledger)[1]["ledger"]["mark"] == mark
    assert f"  ledger   same ({mark})\n" in run(DEMO, "--db", ledger).stdout


def test_one_flow_is_found_by_any_of_its_ids(demo_ledger: Path) -> None:
    for each in inspected(DEMO):
        for name in filter(None, (each["flow"], each["row"]["id"], each["row"]["request_id"])):
            found = inspected(DEMO, "--flow", name)
            assert [one["flow"] for one in found] == [each["flow"]]


def test_all_events_are_shown_where_that_is_asked_for() -> None:
    few, every = inspected(NORMAL), inspected(NORMAL, "--events")
    assert len(every[0]["events"]) == sum(every[0]["events_by_kind"].values()) > len(few[0]["events"])
    assert "content_block_stop" in run(NORMAL, "--events").stdout


def test_a_har_finds_the_rows_of_its_flows(tmp_path: Path) -> None:
    """Its flows have new ids at each read; what upstream called the request lasts."""
    names = ("normal-stream", "gzipped-stream", "json-answer", "stream-without-usage", "rate-limited")
    capture, har = tmp_path / "some.mitm", tmp_path / "some.har"
    capture.write_bytes(b"".join((SAMPLES / f"{name}.mitm").read_bytes() for name in names))
    ledger, other = tmp_path / "usage.db", tmp_path / "other.db"
    replay(capture, ledger, "--set", f"hardump={har}")
    found = inspected(har, "--db", ledger)
    assert states(found) == ["same"] * len(names)
    assert {each["ledger"]["row"] for each in found} == {row["id"] for row in rows_of(ledger)}
    replay(har, other)
    again = inspected(capture, "--db", other)
    assert states(again) == ["same"] * len(names)
    assert all(each["ledger"]["row"] != each["row"]["id"] for each in again)
    row = found[0]["row"]["id"]
    assert [each["row"]["id"] for each in inspected(har, "--flow", row)] == [row]


def test_nothing_that_was_said_is_shown() -> None:
    for form in ("text", "json"):
        done = run(DEMO, "--events", "--format", form)
        assert "to the last token" not in done.stdout
        assert "Do the books match" not in done.stdout
        assert "no-value-whatsoever" not in done.stdout


def test_reading_leaves_the_ledger_alone(ledger: Path) -> None:
    before = ledger.read_bytes()
    run(DEMO, "--db", ledger)
    assert ledger.read_bytes() == before
    assert sorted(path.name for path in ledger.parent.iterdir()) == ["usage.db"]


def test_what_is_not_metered_is_counted_and_not_shown(tmp_path: Path) -> None:
    capture = tmp_path / "other.mitm"
    with NORMAL.open("rb") as file, capture.open("wb") as out:
        (flow,) = FlowReader(file).stream()
        FlowWriter(out).add(flow)
        flow.metadata.clear()
        flow.request.path = "/v1/messages/count_tokens"  # type: ignore[attr-defined]
        FlowWriter(out).add(flow)
    done = run(capture)
    assert done.stdout.count("verdict") == 1
    assert "1 other flow(s) are not metered\n" in done.stderr


def test_of_a_damaged_capture_what_can_be_read_is_shown_and_then_the_damage(tmp_path: Path) -> None:
    capture = tmp_path / "cut.mitm"
    capture.write_bytes(DEMO.read_bytes()[:-100])
    for form in ("text", "json"):
        done = run(capture, "--format", form, NORMAL, home=tmp_path)
        assert done.returncode == 2
        *_, last = done.stderr.splitlines()
        assert last.startswith(f"usage-ledger: {capture}: it breaks off at byte")
        if form == "json":
            assert len(json.loads(done.stdout)) == 8
        else:
            assert done.stdout.count("  verdict  ") == 8


def test_a_flow_that_is_not_there_is_told() -> None:
    done = run(NORMAL, "--flow", "nonsense")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"usage-ledger: there is no metered flow 'nonsense' in {NORMAL}\n" in done.stderr


def test_a_ledger_that_is_named_has_to_be_there(tmp_path: Path) -> None:
    done = run(NORMAL, "--db", tmp_path / "none.db")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("content", [b"", b"Dear diary,\n" * 50, b"{}", b"{"])
def test_what_is_no_capture_is_told_in_one_line(tmp_path: Path, content: bytes) -> None:
    capture = tmp_path / "capture.mitm"
    capture.write_bytes(content)
    done = run(capture, home=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"usage-ledger: {capture}")
    assert json.loads(run(capture, "--format", "json", home=tmp_path).stdout) == []


def test_a_flow_whose_fields_cannot_be_is_told_and_others_are_shown(tmp_path: Path) -> None:
    """mitmproxy reads a start in the year 56,901,688."""
    capture, shared = tmp_path / "odd.mitm", tmp_path / "shared.mitm"
    with NORMAL.open("rb") as file, capture.open("wb") as out:
        (flow,) = FlowReader(file).stream()
        start, flow.request.timestamp_start = flow.request.timestamp_start, 1.8e15  # type: ignore[attr-defined]
        FlowWriter(out).add(flow)
        flow.request.timestamp_start = start  # type: ignore[attr-defined]
        FlowWriter(out).add(flow)
    done = run(capture, home=tmp_path)
    assert done.returncode == 2
    assert done.stdout.count("  verdict  ") == 1
    assert "is damaged (" in done.stderr
    assert "Traceback" not in done.stderr
    shared_ = subprocess.run(
        [sys.executable, "-m", "usage_ledger", "redact", str(capture), str(shared)], capture_output=True, text=True
    )
    assert (shared_.returncode, shared_.stdout) == (1, f"{shared}: 1 flow(s)\n")
    assert "is damaged" in replay(capture, tmp_path / "usage.db")
    assert len(rows_of(tmp_path / "usage.db")) == 1
