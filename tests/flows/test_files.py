"""Every flow of a capture that can be read is read, in its order and in flat memory; what cannot is told at the end."""

import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import pytest
from mitmproxy import http
from mitmproxy.io import FlowReader, tnetstring
from usage_ledger.flows import files
from usage_ledger.flows.files import CaptureError, as_saved, saved_flows

DATA = Path(__file__).parents[2] / "data"
DEMO = DATA / "demo.mitm"


def ids(path: Path) -> list[str]:
    return [each.id for each in saved_flows(path)]


def read(path: Path) -> tuple[list[str], str]:
    """The ids of the flows that can be read, and what is told at the end."""
    found: list[str] = []
    try:
        found.extend(each.id for each in saved_flows(path))
    except CaptureError as error:
        told = str(error)
    else:
        return found, ""
    assert "\n" not in told
    return found, told


def frames() -> list[bytes]:
    """The demo's flows, each as it is in the file."""
    with DEMO.open("rb") as file:
        return [tnetstring.dumps(each.get_state()) for each in FlowReader(file).stream()]


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    return tmp_path / "capture.mitm"


def test_the_flows_of_a_capture_come_in_its_order() -> None:
    with DEMO.open("rb") as file:
        assert ids(DEMO) == [each.id for each in FlowReader(file).stream()]


def test_a_capture_that_breaks_off_yields_what_came_before(capture: Path) -> None:
    whole = frames()
    capture.write_bytes(b"".join(whole)[:-100])
    found, told = read(capture)
    assert found == ids(DEMO)[:-1]
    assert f"it breaks off at byte {sum(map(len, whole[:-1])):,}; {len(whole) - 1} flow(s) could be read" in told


@pytest.mark.parametrize("missing", range(1, 60, 7))
def test_a_capture_that_is_cut_anywhere_never_raises_anything_else(capture: Path, missing: int) -> None:
    content = DEMO.read_bytes()
    for place in range(missing, len(content), 1_500):
        capture.write_bytes(content[:place])
        found, told = read(capture)
        assert told or len(found) < len(ids(DEMO))


def test_what_follows_a_flow_that_broke_off_is_read(capture: Path) -> None:
    """As after a proxy that was killed and started again with `-w +capture.mitm`."""
    first, second, third, *_ = frames()
    capture.write_bytes(first + second[:700] + third + first)
    found, told = read(capture)
    assert [found[0], found[1], found[2]] == [ids(DEMO)[place] for place in (0, 2, 0)]
    assert "2 of them behind that place" in told


@pytest.mark.parametrize("damage", ["cut", "gap", "shift"])
def test_flows_within_a_body_are_taken_for_none_behind_a_break(capture: Path, damage: str) -> None:
    """As of a capture that somebody has sent to Claude: they are of another day, and may be of another's."""
    first, second, third, *_ = frames()
    (outer,) = islice(saved_flows(DEMO), 1)
    assert isinstance(outer, http.HTTPFlow)
    outer.request.raw_content = b"--part\r\n\r\n" + second + third + b"\r\n--part--"
    outer.id = "outer"
    whole = as_saved(outer)
    before, mark, after = whole.rpartition(b"\r\n--part--")
    broken = {"cut": before + mark, "gap": before + after[50:], "shift": before + mark + b"\x00" + after}[damage]
    capture.write_bytes(first + broken + third)
    found, told = read(capture)
    assert found == [ids(DEMO)[0], ids(DEMO)[2]]
    assert "1 of them behind that place; 2 more may stand within a body, and are left out" in told


def test_a_flow_whose_fields_are_damaged_is_left_out_and_no_other(capture: Path) -> None:
    first, second, third, *_ = frames()
    damaged = second.replace(b"11:status_code;3:200#", b"11:status_code;3:2x0#")
    assert damaged != second
    capture.write_bytes(first + damaged + third)
    found, told = read(capture)
    assert found == [ids(DEMO)[0], ids(DEMO)[2]]
    assert f"there is a flow that cannot be read at byte {len(first):,}" in told


@pytest.mark.parametrize("seed", range(40))
def test_bytes_that_are_flipped_cost_no_more_than_their_flow(capture: Path, seed: int) -> None:
    import random

    generator = random.Random(seed)
    first, second, third, *_ = frames()
    second_ = bytearray(second)
    for _ in range(generator.randint(1, 20)):
        second_[generator.randrange(len(second_))] = generator.randrange(256)
    capture.write_bytes(first + bytes(second_) + third)
    found, _ = read(capture)
    assert found[0] == ids(DEMO)[0]
    assert found[-1] == ids(DEMO)[2]


def test_a_capture_of_a_newer_mitmproxy_is_told_as_such(capture: Path) -> None:
    with DEMO.open("rb") as file:
        state = next(iter(FlowReader(file).stream())).get_state()
    capture.write_bytes(tnetstring.dumps({**state, "version": 99}))
    found, told = read(capture)
    assert not found
    assert "it is of a newer mitmproxy (flow format 99; mitmproxy 12." in told


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty: there is no flow in it"),
        (b"Dear diary,\n" * 400, "neither a flow of mitmproxy's nor a HAR"),
        (b"\x00" * 3_000_000, "neither a flow of mitmproxy's nor a HAR"),
        (b"SQLite format 3\x00" * 100, "neither a flow of mitmproxy's nor a HAR"),
        (b"999999999999:" + b"x" * 100, "neither a flow of mitmproxy's nor a HAR"),
        (b"12:hello world!}", "neither a flow of mitmproxy's nor a HAR"),
        (b"5:hello;", "neither a flow of mitmproxy's nor a HAR"),
        (b"{", "no whole JSON"),
        (b"{}", "JSON, but no HAR"),
        (b'{"log": {"entries": 5}}', "JSON, but no HAR"),
        (b'{"log": {"entries": []}}', "is empty: there is no flow in it"),
        (b'{"log": ' + b"[" * 200_000, "no whole JSON"),
    ],
)
def test_what_is_no_capture_is_told_as_such(capture: Path, content: bytes, words: str) -> None:
    capture.write_bytes(content)
    found, told = read(capture)
    assert not found
    assert told.startswith(str(capture))
    assert words in told


def test_a_folder_a_pipe_and_nothing_at_all_are_no_captures(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert read(tmp_path)[1] == f"{tmp_path} is not a file"
    assert read(tmp_path / "pipe")[1] == f"{tmp_path / 'pipe'} is not a file"
    assert read(tmp_path / "none")[1] == f"cannot read {tmp_path / 'none'}: No such file or directory"


def test_a_capture_that_may_not_be_read_is_told(capture: Path) -> None:
    capture.write_bytes(DEMO.read_bytes())
    capture.chmod(0)
    mine = os.geteuid()
    if mine == 0:
        os.seteuid(65534)  # nobody, for whom the modes mean what they say
    try:
        with pytest.raises(CaptureError, match="Permission denied"):
            list(saved_flows(capture))
    finally:
        os.seteuid(mine)


def test_a_har_yields_its_entries_and_tells_of_those_it_cannot_read(tmp_path: Path) -> None:
    har = tmp_path / "flows.har"
    script = [str(Path(sys.executable).with_name("mitmdump")), "-q", "-nr", str(DEMO), "--set", f"hardump={har}"]
    subprocess.run([*script, "--set", f"confdir={tmp_path}"], check=True, timeout=60)
    whole = list(saved_flows(har))
    assert len(whole) >= len(ids(DEMO))  # mitmproxy's HAR has flows that broke off twice
    tree = json.loads(har.read_text())
    del tree["log"]["entries"][1]["request"]["postData"]["text"]
    har.write_text("\ufeff" + json.dumps(tree))
    found, told = read(har)
    assert len(found) == len(whole) - 1
    assert f"1 of {len(whole)} entries cannot be read" in told


def test_memory_does_not_grow_with_the_capture(capture: Path) -> None:
    frame = frames()[0]

    def peak(count: int) -> int:
        with capture.open("wb") as file:
            for _ in range(count):
                file.write(frame)
        with traced():
            assert sum(1 for _ in saved_flows(capture)) == count
            return tracemalloc.get_traced_memory()[1]

    assert peak(2_000) < 1_000 * len(frame)


@contextmanager
def traced() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


def test_progress_is_told_in_bytes() -> None:
    read_: list[int] = []
    list(saved_flows(DEMO, read_.append))
    assert sum(read_) == DEMO.stat().st_size
    assert len(read_) == len(ids(DEMO))


def test_a_flow_that_is_saved_is_read_again(capture: Path) -> None:
    flows = [each for each in islice(saved_flows(DEMO), 3) if isinstance(each, http.HTTPFlow)]
    with capture.open("wb") as file:
        for each in flows:
            file.write(as_saved(each))
    assert ids(capture) == [each.id for each in flows]
    with capture.open("rb") as file:
        assert [each.get_state() for each in FlowReader(file).stream()] == [each.get_state() for each in flows]


@pytest.mark.parametrize("before", [1, 8, 40, 63])
def test_a_flow_that_begins_where_a_piece_of_the_file_ends_is_found(tmp_path: Path, before: int) -> None:
    """What is searched for the next flow is read in pieces, and a beginning may lie across two."""
    capture = tmp_path / "capture.mitm"
    capture.write_bytes(DEMO.read_bytes() + b"\xff" * (1 + files._CHUNK - before) + DEMO.read_bytes())
    found: list[str] = []

    def read() -> None:
        found.extend(each.id for each in saved_flows(capture))

    with pytest.raises(CaptureError, match="it is damaged"):
        read()
    assert len(found) == 2 * 8
