"""`inspect` and what is damaged, no capture, or cannot be: what can be read is shown, and one line says the rest."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mitmproxy.io import FlowReader, FlowWriter

from scripts.real_proxy import replay, rows_of
from tests.cli.inspecting import DEMO, NORMAL, run


@pytest.fixture(scope="module")
def demo_har(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The demo's capture as a HAR."""
    folder = tmp_path_factory.mktemp("har")
    replay(DEMO, folder / "usage.db", "--set", f"hardump={folder / 'demo.har'}")
    return (folder / "demo.har").read_text()


def test_of_a_damaged_capture_what_can_be_read_is_shown_and_then_the_damage(tmp_path: Path) -> None:
    capture = tmp_path / "cut.mitm"
    capture.write_bytes(DEMO.read_bytes()[:-100])
    for form in ("text", "json"):
        done = run(capture, "--format", form, NORMAL, home=tmp_path)
        assert done.returncode == 1
        *_, last = done.stderr.splitlines()
        assert last.startswith(f"usage-ledger: {capture}: it breaks off at byte")
        if form == "json":
            assert len(json.loads(done.stdout)) == 8
        else:
            assert done.stdout.count("  verdict  ") == 8


def test_of_many_captures_that_cannot_be_read_some_are_told(tmp_path: Path) -> None:
    done = run(*(tmp_path / f"{number}.mitm" for number in range(8)))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("No such file or directory") == 5
    assert done.stderr.endswith("; and 3 more\n")


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
    done = run(capture, "--format", "json", home=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")


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
    assert done.returncode == 1
    assert done.stdout.count("  verdict  ") == 1
    assert "is damaged (" in done.stderr
    assert "Traceback" not in done.stderr
    shared_ = subprocess.run(
        [sys.executable, "-m", "usage_ledger", "redact", str(capture), str(shared)], capture_output=True, text=True
    )
    assert (shared_.returncode, shared_.stdout) == (1, f"{shared}: 1 flow(s)\n")
    assert "is damaged" in replay(capture, tmp_path / "usage.db")
    assert len(rows_of(tmp_path / "usage.db")) == 1


ODD = {
    "a start": lambda flow, odd: setattr(flow.request, "timestamp_start", odd),
    "an end of the request": lambda flow, odd: setattr(flow.request, "timestamp_end", odd),
    "a start of the answer": lambda flow, odd: setattr(flow.response, "timestamp_start", odd),
    "an end": lambda flow, odd: setattr(flow.response, "timestamp_end", odd),
}


@pytest.mark.parametrize("field", ODD)
def test_times_that_cannot_be_are_no_traceback(tmp_path: Path, field: str) -> None:
    capture = tmp_path / "odd.mitm"
    with NORMAL.open("rb") as file, capture.open("wb") as out:
        (flow,) = FlowReader(file).stream()
        whole = flow.copy()
        whole.request.timestamp_start -= 1  # a request of its own
        for odd in (1e300, float("nan"), float("inf"), -1e12, -1.0, 0.0):
            changed = flow.copy()
            ODD[field](changed, odd)
            FlowWriter(out).add(changed)
        FlowWriter(out).add(whole)
    for more in ((), ("--flow", whole.id), ("--format", "json")):
        done = run(capture, *more, home=tmp_path)
        assert done.returncode in (0, 1)
        assert "Traceback" not in done.stderr
    assert f"flow {whole.id}" in run(capture, home=tmp_path).stdout
    assert "Traceback" not in replay(capture, tmp_path / "usage.db")
    assert whole.id.replace("-", "")[:12] in {row["id"][-12:] for row in rows_of(tmp_path / "usage.db")}


@pytest.mark.parametrize(
    "odd",
    [
        {"time": 1e300},
        {"time": -1e12},
        {"time": "x"},
        {"startedDateTime": "9999-12-31T23:59:59.999Z", "time": 1e15},
        {"serverIPAddress": 5},
        {"timings": {"send": 1e300, "receive": 1e300, "wait": -1e300}},
    ],
    ids=str,
)
def test_a_har_with_values_that_cannot_be_is_no_traceback(tmp_path: Path, demo_har: str, odd: dict[str, Any]) -> None:
    har = tmp_path / "odd.har"
    fields = json.loads(demo_har)
    fields["log"]["entries"][0] |= odd
    har.write_text(json.dumps(fields))
    done = run(har, home=tmp_path)
    assert done.returncode in (0, 1)
    assert "Traceback" not in done.stderr
    assert done.stdout.count("  verdict  ") >= len(fields["log"]["entries"]) - 1
    if odd != {"time": "x"}:  # of which mitmproxy itself makes nothing
        assert "Traceback" not in replay(har, tmp_path / "usage.db")
