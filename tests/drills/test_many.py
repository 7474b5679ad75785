"""Many requests, many streams, long streams, slow clients: no row is lost, and nothing grows with them."""

import socket
import threading
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from scripts import traffic
from scripts.fake_console import SSE, STOP, FakeConsole, Reply, Request, delta, event, start
from scripts.real_proxy import Proxy, rows_of, settled_rows, wait_until

MB = 1024 * 1024


@pytest.mark.parametrize("durability", ["full", "normal"])
def test_under_load_with_clients_that_leave_and_upstreams_that_break_each_request_has_its_row(
    console: FakeConsole,
    start_proxy: Callable[..., Proxy],
    sized: Callable[[int, int], int],
    books_match: Callable[..., int],
    ledger: Path,
    durability: str,
) -> None:
    count = sized(600, 10_000)
    proxy = start_proxy("--set", f"usage_durability={durability}")
    traffic.send(console, proxy.port, count=count, at_once=48, seed=1)
    assert books_match(console, ledger) == count
    proxy.stop()
    assert "Traceback" not in proxy.log
    assert "please report" not in proxy.log


def test_four_proxies_on_one_ledger_lose_and_double_nothing(
    console: FakeConsole,
    start_proxy: Callable[..., Proxy],
    sized: Callable[[int, int], int],
    books_match: Callable[..., int],
    ledger: Path,
) -> None:
    count = sized(100, 2500)
    proxies = [start_proxy() for _ in range(4)]
    threads = [
        threading.Thread(target=traffic.send, args=(console, proxy.port, count, 12, seed))
        for seed, proxy in enumerate(proxies)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert books_match(console, ledger) == 4 * count


def test_short_requests_leave_memory_and_open_files_as_they_were(
    console: FakeConsole,
    start_proxy: Callable[..., Proxy],
    sized: Callable[[int, int], int],
    books_match: Callable[..., int],
    ledger: Path,
) -> None:
    proxy = start_proxy()
    traffic.send(console, proxy.port, 300, 16, 1, ("json",))
    books_match(console, ledger)
    wait_until(lambda: proxy.open_files < 40)
    memory, files = proxy.memory, proxy.open_files
    count = sized(1000, 20_000)
    traffic.send(console, proxy.port, count, 16, 2, ("json",))
    assert books_match(console, ledger) == 300 + count
    wait_until(lambda: proxy.open_files <= files)
    assert proxy.memory - memory < 12 * MB


def test_300_streams_at_once(
    console: FakeConsole, start_proxy: Callable[..., Proxy], books_match: Callable[..., int], ledger: Path
) -> None:
    streams = traffic.SlowStreams(console)
    proxy = start_proxy()
    traffic.send(console, proxy.port, 20, 4, 1, ("normal",))
    wait_until(lambda: proxy.open_files < 40)
    files = proxy.open_files
    with traffic.open_streams(proxy.port, 300) as clients:
        wait_until(lambda: sum(row["usage_state"] == "pending" for row in rows_of(ledger)) == 300)
        streams.let_end()
        for client in clients:
            traffic.read_until(client, b"message_stop")
    assert books_match(console, ledger) == 320
    assert [row["usage_state"] for row in rows_of(ledger)] == ["complete"] * 320
    wait_until(lambda: proxy.open_files <= files)


def flood(size: int) -> Callable[[Request, Reply], object]:
    """A scenario that streams so many bytes of text as fast as it can."""
    piece = event("content_block_delta", index=0, delta={"type": "text_delta", "text": "and on " * 100}) * 64

    async def scenario(request: Request, reply: Reply) -> None:
        await reply.start(200, SSE)
        await reply.send(start({"input_tokens": 5, "output_tokens": 1}))
        for _ in range(size // len(piece)):
            await reply.send(piece)
        await reply.send(delta({"output_tokens": 7}) + STOP)
        await reply.end()

    return scenario


def test_a_long_stream_takes_no_memory(
    console: FakeConsole, start_proxy: Callable[..., Proxy], sized: Callable[[int, int], int]
) -> None:
    console.scenarios |= {"short": flood(2 * MB), "long": flood(sized(48, 200) * MB)}  # type: ignore[dict-item]
    proxy = start_proxy()
    before = 0
    for scenario in ("short", "long"):
        with httpx.stream(
            "POST", f"{proxy.address}/v1/messages", headers={"x-scenario": scenario}, json={}, timeout=120
        ) as answer:
            for _ in answer.iter_raw():
                pass
        before = before or proxy.memory
    assert [row["output_tokens"] for row in settled_rows(proxy.ledger, 2)] == [7, 7]
    assert proxy.memory - before < 6 * MB


def test_a_client_that_does_not_read_holds_up_nobody_else(
    console: FakeConsole,
    start_proxy: Callable[..., Proxy],
    ask: Callable[..., httpx.Response],
    sized: Callable[[int, int], int],
) -> None:
    """What upstream sends meanwhile waits there, not in the proxy; the client that leaves has its row."""
    console.scenarios["long"] = flood(sized(48, 200) * MB)  # type: ignore[assignment]
    proxy = start_proxy()
    ask(proxy, "normal")
    before = proxy.memory
    with socket.create_connection(("127.0.0.1", proxy.port)) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(b"POST /v1/messages HTTP/1.1\r\nhost: x\r\nx-scenario: long\r\ncontent-length: 2\r\n\r\n{}")
        traffic.read_until(client, b"message_start")
        for _ in range(30):
            assert ask(proxy, "normal").status_code == 200
        assert proxy.memory - before < 12 * MB
    rows = settled_rows(proxy.ledger, 32)
    assert sorted(str(row["review_reason"]) for row in rows) == ["None"] * 31 + ["client_disconnected"]


def test_a_client_that_reads_slowly_gets_all_of_it(console: FakeConsole, start_proxy: Callable[..., Proxy]) -> None:
    console.scenarios["short"] = flood(MB // 5)  # type: ignore[assignment]
    proxy = start_proxy()
    size = 0
    with socket.create_connection(("127.0.0.1", proxy.port)) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(b"POST /v1/messages HTTP/1.1\r\nhost: x\r\nx-scenario: short\r\ncontent-length: 2\r\n\r\n{}")
        tail = b""
        while b"message_stop" not in tail:
            data = client.recv(1000)
            size += len(data)
            tail = tail[-32:] + data
    (row,) = settled_rows(proxy.ledger, 1)
    assert (row["usage_state"], row["output_tokens"]) == ("complete", 7)
    assert size >= row["response_bytes"] > MB // 10
