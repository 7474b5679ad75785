"""`redact`: a capture that can be shared is written whole, checked and new, or not at all."""

import json
import resource
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from mitmproxy import http
from mitmproxy.io import FlowReader, FlowWriter

from scripts import preloaded
from scripts.make_samples import SAMPLES
from scripts.real_proxy import replay, rows_of, wait_until
from scripts.run_demo import KEYS

DEMO = Path(__file__).parents[2] / "data" / "demo.mitm"
NAMED = ("api_key_hint", "account_id", "session_id", "writer", "price_source")
"""What names a key or a person; and which versions wrote and priced a row."""


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "usage_ledger", *map(str, arguments)]


def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
    return preloaded.run(*arguments, timeout=120)


def rows_by_replay(capture: Path, folder: Path) -> list[dict[str, object]]:
    ledger = folder / f"{capture.name}.db"
    replay(capture, ledger)
    rows = [{name: value for name, value in row.items() if name not in NAMED} for row in rows_of(ledger)]
    for row in rows:
        row["metadata"] = {name: value for name, value in json.loads(row["metadata"]).items() if name != "_redacted"}
    return rows


@pytest.fixture
def every_sample(tmp_path: Path) -> Path:
    """One capture with all samples in it."""
    capture = tmp_path / "samples.mitm"
    capture.write_bytes(b"".join(path.read_bytes() for path in sorted(SAMPLES.glob("*.mitm"))))
    return capture


def test_a_replay_of_what_is_shared_yields_the_same_rows(tmp_path: Path, every_sample: Path) -> None:
    shared = tmp_path / "shared.mitm"
    done = run("redact", every_sample, shared)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{shared}: {len(list(SAMPLES.glob('*.mitm')))} flow(s)\n"
    assert rows_by_replay(shared, tmp_path) == rows_by_replay(every_sample, tmp_path)
    assert stat.S_IMODE(shared.stat().st_mode) == 0o600


def test_what_is_shared_holds_no_key_no_prompt_and_no_answer(tmp_path: Path) -> None:
    shared = tmp_path / "shared.mitm"
    words = [b"Do the books match", b"to the last token", b"match", *(key.encode() for key in KEYS.values())]
    assert all(word in DEMO.read_bytes() for word in words)
    assert run("redact", DEMO, shared).returncode == 0
    content = shared.read_bytes()
    with shared.open("rb") as file:
        for flow in FlowReader(file).stream():
            assert isinstance(flow, http.HTTPFlow)
            assert flow.response is not None
            content += flow.response.get_content(strict=False) or b""
    assert [word for word in words if word in content] == []
    for key in KEYS.values():
        assert key[13:].encode() not in content


def test_a_har_can_be_shared(tmp_path: Path) -> None:
    har, shared = tmp_path / "demo.har", tmp_path / "shared.mitm"
    replay(DEMO, tmp_path / "unused.db", "--set", f"hardump={har}")
    assert run("redact", har, shared).returncode == 0
    assert b"to the last token" not in shared.read_bytes()
    assert rows_by_replay(shared, tmp_path) == rows_by_replay(har, tmp_path)


def test_what_is_not_metered_is_left_out_and_counted(tmp_path: Path) -> None:
    capture, shared = tmp_path / "capture.mitm", tmp_path / "shared.mitm"
    with (SAMPLES / "normal-stream.mitm").open("rb") as file, capture.open("wb") as out:
        (flow,) = FlowReader(file).stream()
        assert isinstance(flow, http.HTTPFlow)
        FlowWriter(out).add(flow)
        flow.metadata.clear()
        flow.request.path = "/login?password=secret"
        FlowWriter(out).add(flow)
    done = run("redact", capture, shared)
    assert done.stdout == f"{shared}: 1 flow(s); 1 other(s), which are not metered, are left out\n"
    assert b"password" not in shared.read_bytes()


def test_a_part_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    capture, shared = tmp_path / "cut.mitm", tmp_path / "shared.mitm"
    capture.write_bytes(DEMO.read_bytes()[:-50])
    done = run("redact", capture, shared)
    assert done.returncode == 1
    assert done.stdout == f"{shared}: 7 flow(s)\n"
    assert done.stderr.startswith(f"usage-ledger: {capture}: it breaks off at byte")
    assert done.stderr.count("\n") == 1


def two_odd_ids(capture: Path) -> None:
    with (SAMPLES / "two-messages.mitm").open("rb") as file, capture.open("wb") as out:
        (flow,) = FlowReader(file).stream()
        assert isinstance(flow, http.HTTPFlow)
        assert flow.response is not None
        body = flow.response.raw_content or b""
        first, second = sorted({*(part.split(b'"')[0] for part in body.split(b'"id":"')[1:])})
        flow.response.raw_content = body.replace(first, b"a " + b"1" * 6).replace(second, b"b " + b"1" * 6)
        FlowWriter(out).add(flow)


def test_a_flow_whose_verdict_would_change_is_left_out_and_named(tmp_path: Path) -> None:
    capture, shared = tmp_path / "capture.mitm", tmp_path / "shared.mitm"
    two_odd_ids(capture)
    capture.write_bytes(capture.read_bytes() + (SAMPLES / "normal-stream.mitm").read_bytes())
    done = run("redact", capture, shared)
    assert (done.returncode, done.stdout) == (1, f"{shared}: 1 flow(s)\n")
    assert "cannot be redacted so that its verdict stays: review_reason multiple_messages became None" in done.stderr
    assert done.stderr.endswith(f"; the rest is in {shared}\n")
    assert done.stderr.count("\n") == 1
    assert len(rows_by_replay(shared, tmp_path)) == 1


def test_two_keys_and_two_hosts_change_no_row_of_a_har(tmp_path: Path) -> None:
    har, shared = tmp_path / "demo.har", tmp_path / "shared.mitm"
    replay(DEMO, tmp_path / "unused.db", "--set", f"hardump={har}")
    content = har.read_text().replace("/v1/messages", "/sk-ant-api03-abcdefghijklmnopqrstuvwxyz/v1/messages")
    har.write_text(content)
    assert run("redact", har, shared).returncode == 0
    assert b"abcdefghij" not in shared.read_bytes()
    known = [{**row, "path": None} for row in rows_by_replay(har, tmp_path)]
    assert [{**row, "path": None} for row in rows_by_replay(shared, tmp_path)] == known


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    def little_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    shared = tmp_path / "shared.mitm"
    done = subprocess.run(
        command("redact", DEMO, shared), capture_output=True, text=True, preexec_fn=little_room, timeout=60
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"usage-ledger: cannot write {shared}: File too large\n"
    long = tmp_path / ("x" * 300)
    assert run("redact", DEMO, long).stderr == f"usage-ledger: cannot write {long}: File name too long\n"
    assert list(tmp_path.iterdir()) == []


def nothing(capture: Path) -> None:
    pass


def empty(capture: Path) -> None:
    capture.touch()


def diary(capture: Path) -> None:
    capture.write_text("Dear diary,\n" * 100)


def other_traffic(capture: Path) -> None:
    with (SAMPLES / "normal-stream.mitm").open("rb") as file, capture.open("wb") as out:
        (flow,) = FlowReader(file).stream()
        flow.metadata.clear()
        flow.request.path = "/login"  # type: ignore[attr-defined]
        FlowWriter(out).add(flow)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (nothing, "No such file"),
        (empty, "is empty"),
        (diary, "neither a flow of mitmproxy's nor a HAR"),
        (other_traffic, "no flow of a metered request; nothing is written"),
        (two_odd_ids, "cannot be redacted so that its verdict stays"),
    ],
)
def test_what_cannot_be_shared_leaves_nothing_behind(tmp_path: Path, make: object, words: str) -> None:
    capture, folder = tmp_path / "capture.mitm", tmp_path / "out"
    folder.mkdir()
    make(capture)  # type: ignore[operator]
    done = run("redact", capture, folder / "shared.mitm")
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("name", ["inspect", "redact"])
def test_an_empty_har_is_told_as_an_empty_capture_is(tmp_path: Path, name: str) -> None:
    har = tmp_path / "empty.har"
    har.write_text('{"log": {"entries": []}}')
    done = run(name, har, *([tmp_path / "shared.mitm"] if name == "redact" else []))
    assert (done.returncode, done.stdout, "there is no flow in it" in done.stderr) == (2, "", True)


@pytest.mark.parametrize(
    "arguments", [("redact", DEMO, "-"), ("inspect", DEMO, "--save", "-")], ids=["redact", "inspect"]
)
def test_a_dash_names_no_file(tmp_path: Path, arguments: tuple[object, ...]) -> None:
    done = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_ever_replaced(tmp_path: Path) -> None:
    shared = tmp_path / "shared.mitm"
    shared.write_text("mine")
    for target in (shared, DEMO, tmp_path):
        done = run("redact", DEMO, target)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert shared.read_text() == "mine"
    assert "cannot write" in run("redact", DEMO, tmp_path / "none" / "shared.mitm").stderr


def test_killed_in_its_midst_it_leaves_no_file_of_that_name(tmp_path: Path) -> None:
    capture, shared = tmp_path / "long.mitm", tmp_path / "shared.mitm"
    capture.write_bytes(DEMO.read_bytes() * 5_000)  # which takes it half a minute
    for how in (signal.SIGKILL, signal.SIGTERM):
        process = subprocess.Popen(command("redact", capture, shared), stderr=subprocess.DEVNULL)
        unfinished = tmp_path / f".shared.mitm.{process.pid}.unfinished"
        wait_until(lambda path=unfinished: path.exists() and path.stat().st_size)
        process.send_signal(how)
        process.wait(20)
        assert not shared.exists()
        if how is not signal.SIGKILL:
            assert list(tmp_path.glob(".shared.mitm.*")) == []
    assert run("redact", DEMO, shared).returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["long.mitm", "shared.mitm"]


def test_what_is_shared_can_be_inspected(tmp_path: Path) -> None:
    shared = tmp_path / "shared.mitm"
    run("redact", DEMO, shared)
    told = [
        [each["why"] for each in json.loads(run("inspect", path, "--format", "json").stdout)] for path in (DEMO, shared)
    ]
    assert told[0] == told[1]
