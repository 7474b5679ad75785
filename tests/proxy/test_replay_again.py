"""What mitmproxy sends again is billed again, and what it only shows again is not."""

from collections.abc import Callable
from pathlib import Path

import httpx
from mitmproxy.io import FlowReader, FlowWriter

from scripts.fake_console import NORMAL, FakeConsole
from scripts.real_proxy import Proxy, replay, rows_of, settled_rows


def test_a_client_replay_is_billed_again_and_gets_its_own_row(
    tmp_path: Path, console: FakeConsole, start_proxy: Callable[..., Proxy], ask: Callable[..., httpx.Response]
) -> None:
    capture = tmp_path / "capture.mitm"
    proxy = start_proxy("-w", str(capture))
    ask(proxy, "normal")
    proxy.stop()
    start_proxy("--client-replay", str(capture))
    rows = settled_rows(proxy.ledger, 2)
    assert console.received["normal"] == 2
    assert [row["usage_state"] for row in rows] == ["complete", "complete"]


def test_a_server_replay_is_not_billed_and_leaves_no_row_also_when_it_is_replayed(
    tmp_path: Path, console: FakeConsole, start_proxy: Callable[..., Proxy], ask: Callable[..., httpx.Response]
) -> None:
    capture, second = tmp_path / "capture.mitm", tmp_path / "second.mitm"
    proxy = start_proxy("-w", str(capture))
    ask(proxy, "normal")
    proxy.stop()
    serving = start_proxy("--server-replay", str(capture), "-w", str(second))
    assert ask(serving, "normal").extensions["raw"] == b"".join(NORMAL)
    serving.stop()
    assert console.received["normal"] == 1
    assert len(rows_of(proxy.ledger)) == 1
    replay(second, tmp_path / "other.db")
    assert not (tmp_path / "other.db").exists() or rows_of(tmp_path / "other.db") == []


def test_a_capture_that_is_client_replayed_three_times_at_once_leaves_three_rows(
    tmp_path: Path, console: FakeConsole, start_proxy: Callable[..., Proxy], ask: Callable[..., httpx.Response]
) -> None:
    capture = tmp_path / "capture.mitm"
    proxy = start_proxy("-w", str(capture), ledger=tmp_path / "first.db")
    ask(proxy, "normal")
    proxy.stop()
    # Replaying at once, mitmdump does not count what is under way, and would end itself before the answers are there.
    again = start_proxy(*["-C", str(capture)] * 3, "--set", "client_replay_concurrency=-1", "--set", "keepserving=true")
    rows = settled_rows(again.ledger, 3)
    assert console.received["normal"] == 4
    assert [row["usage_state"] for row in rows] == ["complete"] * 3


def test_what_was_noted_of_a_refused_request_does_not_stick_to_its_client_replay(
    tmp_path: Path, console: FakeConsole, start_proxy: Callable[..., Proxy], ask: Callable[..., httpx.Response]
) -> None:
    (tmp_path / "file").write_text("no folder")
    first, second = tmp_path / "first.mitm", tmp_path / "second.mitm"
    blocking = start_proxy(
        "--set", "usage_on_ledger_error=block", "-w", str(first), ledger=tmp_path / "file" / "usage.db"
    )
    assert ask(blocking, "normal").status_code == 503
    blocking.stop()
    again = start_proxy("--client-replay", str(first), "-w", str(second))
    settled_rows(again.ledger, 1)
    again.stop()
    assert console.received["normal"] == 1
    replay(second, tmp_path / "other.db")
    assert [row["usage_state"] for row in rows_of(tmp_path / "other.db")] == ["complete"]


def test_a_flow_that_was_duplicated_in_mitmproxy_is_billed_once(
    tmp_path: Path, start_proxy: Callable[..., Proxy], ask: Callable[..., httpx.Response]
) -> None:
    capture, har = tmp_path / "capture.mitm", tmp_path / "flows.har"
    proxy = start_proxy("-w", str(capture), "--set", f"hardump={har}")
    ask(proxy, "normal")
    proxy.stop()
    before = rows_of(proxy.ledger)
    with capture.open("rb") as file:
        (flow,) = FlowReader(file).stream()
    with capture.open("wb") as file:
        for each in (flow.copy(), flow, flow.copy()):
            FlowWriter(file).add(each)
    replay(capture, proxy.ledger)
    assert rows_of(proxy.ledger) == before
    replay(capture, tmp_path / "other.db")
    replay(har, tmp_path / "other.db")
    assert [row["total_tokens"] for row in rows_of(tmp_path / "other.db")] == [2154]
