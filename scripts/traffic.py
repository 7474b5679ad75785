"""Traffic for drills: clients that stay, clients that leave, upstreams that break, many streams at once.

Each request has a session id of its own, which the fake Console receives and the ledger records: so a drill can tell
for every single request whether it has its row (`compare`).
"""

import asyncio
import random
import socket
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from scripts.fake_console import SSE, STOP, FakeConsole, Reply, Request, delta, event, start
from scripts.real_proxy import rows_of

KINDS = ("normal", "json", "breaks", "endless", "without_usage", "rate_limited", "gzipped", "no_answer")
SESSION = "x-claude-code-session-id"


async def no_answer(request: Request, reply: Reply) -> None:
    """Take the request and break the connection off."""
    reply.reset()


def send(console: FakeConsole, port: int, count: int, at_once: int, seed: int, kinds: tuple[str, ...] = KINDS) -> None:
    """Send so many requests through the proxy at `port`, chosen by `seed`; what fails is part of the drill."""
    console.scenarios.setdefault("no_answer", no_answer)
    chance = random.Random(seed)
    plan = [(chance.choice(kinds), chance.choice((3, 20, 10**9))) for _ in range(count)]
    asyncio.run(_send(port, plan, at_once))


async def _send(port: int, plan: list[tuple[str, int]], at_once: int) -> None:
    gate = asyncio.Semaphore(at_once)
    async with httpx.AsyncClient(timeout=20, limits=httpx.Limits(max_connections=at_once)) as client:

        async def one(kind: str, leave_after: int) -> None:
            leave_after = 20 if kind == "endless" else leave_after
            async with gate:
                with suppress(httpx.HTTPError):
                    async with client.stream(
                        "POST",
                        f"http://127.0.0.1:{port}/v1/messages",
                        headers={"x-scenario": kind, SESSION: uuid.uuid4().hex},
                        json={"model": "claude-asked", "stream": True},
                    ) as answer:
                        chunks = 0
                        async for _ in answer.aiter_raw():
                            chunks += 1
                            if chunks >= leave_after:
                                break

        await asyncio.gather(*(one(kind, leave_after) for kind, leave_after in plan))


class SlowStreams:
    """A scenario of streams that each tell their own usage at the start, and go on until they are told to end.

    The request's number, from its session id (`slow-7`), is in its cache reads: so a row shows whose counts it has.
    """

    def __init__(self, console: FakeConsole) -> None:
        self._console = console
        self._may_end = asyncio.Event()
        console.scenarios["slow"] = self._scenario

    def let_end(self) -> None:
        self._console.call(self._may_end.set)

    @staticmethod
    def cache_reads(session: str) -> int:
        return 100_000 + int(session.rpartition("-")[2])

    async def _scenario(self, request: Request, reply: Reply) -> None:
        usage = {
            "input_tokens": 3,
            "cache_creation_input_tokens": 50,
            "cache_read_input_tokens": self.cache_reads(request.headers[SESSION]),
            "output_tokens": 1,
        }
        await reply.start(200, SSE)
        await reply.send(start(usage))
        while not self._may_end.is_set():
            await reply.send(event("content_block_delta", index=0, delta={"type": "text_delta", "text": "and on "}))
            with suppress(TimeoutError):
                await asyncio.wait_for(self._may_end.wait(), 0.2)
        await reply.send(delta({"output_tokens": 9}) + STOP)
        await reply.end()


@contextmanager
def open_streams(port: int, count: int, scenario: str = "slow") -> Iterator[list[socket.socket]]:
    """Open so many streams through the proxy, each read up to its start; leaving the block leaves them all."""
    clients: list[socket.socket] = []
    try:
        for number in range(count):
            client = socket.create_connection(("127.0.0.1", port), timeout=60)
            clients.append(client)
            body = b'{"model":"claude-asked","stream":true}'
            head = (
                f"POST /v1/messages HTTP/1.1\r\nhost: 127.0.0.1\r\nx-scenario: {scenario}\r\n"
                f"{SESSION}: {scenario}-{number}\r\ncontent-length: {len(body)}\r\n\r\n"
            )
            client.sendall(head.encode() + body)
        for client in clients:
            read_until(client, b"message_start")
        yield clients
    finally:
        for client in clients:
            client.close()


def read_until(client: socket.socket, wanted: bytes) -> bytes:
    """Read from a socket until these bytes came; raise ConnectionError where it ends before."""
    seen = b""
    while wanted not in seen:
        data = client.recv(65536)
        if not data:
            raise ConnectionError(f"the stream ended before {wanted!r} came")
        seen = seen[-len(wanted) :] + data
    return seen


def compare(console: FakeConsole, ledger: Path) -> tuple[int, list[str]]:
    """Hold the requests that the Console received against the rows of a ledger, one by one.

    Returns how many were received, and a line for each that has not exactly one row, and for each row without a
    request. A row may stand for a request that was recorded and did not get to leave before its proxy was killed.
    """
    received = Counter(request.headers[SESSION] for request in console.requests)
    rows = Counter(row["session_id"] for row in rows_of(ledger))
    wrong = [
        f"{rows[session]} rows of a request received {count} times"
        for session, count in received.items()
        if rows[session] != count
    ]
    for row in rows_of(ledger):
        if row["session_id"] not in received:
            told = row["review_reason"] == "proxy_stopped" and row["http_status"] is None and not row["total_tokens"]
            if not told and '"_not_sent":true' not in row["metadata"]:
                wrong.append(f"a row without a request: {row['usage_state']} {row['review_reason']}")
        if row["usage_state"] == "pending":
            wrong.append(f"a row is pending: {row['id']} of {row['writer']}")
    return received.total(), wrong
