"""`inspect --save`: a capture of what can be read, or of one flow."""

from pathlib import Path

import pytest
from mitmproxy.exceptions import FlowReadException
from mitmproxy.io import FlowReader

from scripts.real_proxy import replay, rows_of
from tests.cli.inspecting import DEMO, LEFT, NORMAL, inspected, run, states


def damaged(capture: Path) -> Path:
    """A capture of eight flows, of which the second cannot be read."""
    content = DEMO.read_bytes()
    begin = content.index(b"8:response;", 5_000)
    capture.write_bytes(content[:begin] + b"#" + content[begin + 1 :])
    return capture


def test_what_can_be_read_of_a_damaged_capture_is_saved_as_one_that_mitmproxy_replays(tmp_path: Path) -> None:
    capture, readable, ledger = damaged(tmp_path / "damaged.mitm"), tmp_path / "readable.mitm", tmp_path / "usage.db"
    with capture.open("rb") as file, pytest.raises(FlowReadException):
        list(FlowReader(file).stream())  # should it read on one day, help and README need not say so any more
    assert run(capture, home=tmp_path).stderr.endswith("; --save OUT makes a capture of what can be\n")
    done = run(capture, "--save", readable, home=tmp_path)
    assert done.returncode == 1
    assert "OUT" not in done.stderr
    assert f"{readable}: 7 flow(s), with their keys and prompts\n" in done.stderr
    assert readable.stat().st_mode & 0o777 == 0o600
    replay(readable, ledger)
    assert len(rows_of(ledger)) == 7
    assert states(inspected(readable, "--db", ledger)) == ["same"] * 7


def states_in(capture: Path) -> list[object]:
    with capture.open("rb") as file:
        return [flow.get_state() for flow in FlowReader(file).stream()]


def test_one_flow_is_saved_as_it_is(tmp_path: Path) -> None:
    copy = tmp_path / "copy.mitm"
    flow = inspected(NORMAL)[0]["flow"]
    assert run(LEFT, NORMAL, "--flow", flow, "--save", copy, "--format", "json", home=tmp_path).returncode == 0
    assert states_in(copy) == states_in(NORMAL)


def test_nothing_is_saved_where_nothing_is_shown_and_nothing_is_replaced(tmp_path: Path) -> None:
    copy, mine = tmp_path / "copy.mitm", tmp_path / "mine"
    mine.write_text("mine")
    for arguments in ((NORMAL, "--flow", "nonsense"), (tmp_path / "none.mitm",), (NORMAL, "--save", mine)):
        done = run("--save", copy, *arguments, home=tmp_path)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert not copy.exists()
        assert mine.read_text() == "mine"
