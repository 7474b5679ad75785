"""The proxy under load, beside a mitmdump that lets streams pass and does nothing else.

The upstream is a process of its own, the clients are this one; all of them speak plain HTTP/1.1 over sockets, so that
the proxy is what takes the time.
"""

import asyncio
import multiprocessing
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

from scripts.real_proxy import ADDON, Proxy
from scripts.rounds import ROUNDS, Measured, measure, percentile, ratio

EVENTS = 200
CLIENTS = 16
SECONDS = 1.0
BARE = """
from mitmproxy import http

def responseheaders(flow: http.HTTPFlow) -> None:
    flow.response.stream = True
"""
_START = (
    b'event: message_start\ndata: {"type":"message_start","message":{"id":"msg_01","type":"message","role":"assistant",'
    b'"model":"claude-sonnet-4-6","content":[],"usage":{"input_tokens":12,"output_tokens":1}}}\n\n'
)
_END = (
    b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":'
    b'{"output_tokens":42}}\n\n',
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
)
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_LAST = b"0\r\n\r\n"


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _text(number: int, more: bytes = b"") -> bytes:
    return (
        b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta",'
        b'"text":"token %d%b of an answer"}}\n\n' % (number, more)
    )


# Upstream.


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer as the request's header asks: at once, with pauses, or with very much."""
    plain = [_chunk(_START), *(_chunk(_text(number)) for number in range(EVENTS - 3)), *map(_chunk, _END), _LAST]
    big = _chunk(_text(0, b"x" * 50_000)) * 20
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
            writer.write(_HEAD)
            if b"x-how: slow" in head:
                writer.write(_chunk(_START))
                for number in range(100):
                    await asyncio.sleep(0.005)
                    writer.write(_chunk(_text(number, b" @%d@" % time.monotonic_ns())))
                    await writer.drain()
            elif b"x-how: wait" in head:
                writer.write(_chunk(_START) + _chunk(_text(0)))
                await reader.read(1)  # until the client leaves
                return
            elif b"x-how: big" in head:
                writer.write(_chunk(_START))
                for _ in range(200):
                    writer.write(big)
                    await writer.drain()
            else:
                for chunk in plain[:-3]:
                    writer.write(chunk)
                    await asyncio.sleep(0)
            for chunk in plain[-3:]:
                writer.write(chunk)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


def _serve(told: Connection) -> None:
    async def serving() -> None:
        server = await asyncio.start_server(_answer, "127.0.0.1", 0, backlog=1000)
        told.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(serving())


@contextmanager
def upstream() -> Iterator[str]:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}"
    finally:
        process.kill()
        process.join()


# Clients.


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, how: str = "plain") -> None:
    body = b'{"model":"claude-sonnet-4-6","stream":true,"messages":[]}'
    writer.write(
        b"POST /v1/messages HTTP/1.1\r\nhost: api.anthropic.com\r\nx-api-key: sk-ant-api03-R2D2secretsecretigAA\r\n"
        b"content-type: application/json\r\nx-how: %b\r\ncontent-length: %d\r\n\r\n%b" % (how.encode(), len(body), body)
    )
    await writer.drain()


async def _load(port: int, clients: int = CLIENTS) -> tuple[int, float]:
    """Return how many requests so many clients at once have made, and in how many seconds."""
    end = time.perf_counter() + SECONDS
    done = 0

    async def client() -> None:
        nonlocal done
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024 * 1024)
        while time.perf_counter() < end:
            await _ask(reader, writer)
            await reader.readuntil(b"\r\n" + _LAST)
            done += 1
        writer.close()

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return done, time.perf_counter() - began


async def _first_byte(port: int) -> float:
    """Return the milliseconds from a request to the first byte of its answer (the median of some)."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024 * 1024)
    found = []
    for _ in range(20):
        began = time.perf_counter()
        await _ask(reader, writer)
        await reader.readexactly(1)
        found.append((time.perf_counter() - began) * 1000)
        await reader.readuntil(b"\r\n" + _LAST)
    writer.close()
    return percentile(found, 0.5)


def _fsync(folder: Path) -> float:
    """Return the milliseconds that a commit's pages take to the disk (the median of some), requests apart as above."""
    found = []
    with (folder / "fsync").open("wb", buffering=0) as file:
        for _ in range(20):
            time.sleep(0.005)
            file.write(b"x" * 32 * 1024)
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            found.append((time.perf_counter() - began) * 1000)
    return percentile(found, 0.5)


async def _delays(port: int, streams: int = 8) -> list[float]:
    """Return how many milliseconds each event of slow streams was under way."""
    found: list[float] = []

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await _ask(reader, writer, "slow")
        while line := await reader.readline():
            if b" @" in line:
                found.append((time.monotonic_ns() - int(line.split(b"@")[1])) / 1e6)
            if line == b"0\r\n":
                break
        writer.close()

    await asyncio.gather(*(client() for _ in range(streams)))
    return found


async def _held(proxy: Proxy, streams: int) -> float:
    """Return the bytes of memory that each of so many open streams takes."""
    before = proxy.memory
    opened = []
    for _ in range(streams):
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        await _ask(reader, writer, "wait")
        opened.append((reader, writer))
    for reader, _ in opened:
        await reader.readuntil(b"token 0")
    held = (proxy.memory - before) / streams
    for _, writer in opened:
        writer.close()
    return held


async def _big(proxy: Proxy) -> float:
    """Return the bytes by which memory grows over a stream of 200 MB."""
    before = proxy.memory
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    await _ask(reader, writer, "big")
    tail = b""
    while not tail.endswith(b"\r\n" + _LAST):
        tail = (tail + await reader.read(1024 * 1024))[-16:]
    writer.close()
    return float(proxy.memory - before)


def _cpu(proxy: Proxy) -> float:
    """Return the seconds of CPU that a proxy has used."""
    fields = Path(f"/proc/{proxy.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# The comparison.

type Line = tuple[str, str, str, str, str]


def run(folder: Path) -> Iterator[Line]:
    """Yield lines: what, ours, the reference, the ratio, the target."""
    bare = folder / "bare.py"
    bare.write_text(BARE)
    with ExitStack() as stack:
        address = stack.enter_context(upstream())

        proxies = {
            "bare": _started(stack, address, folder / "none.db", bare),
            "full": _started(stack, address, folder / "full.db", ADDON, "--set", "usage_durability=full"),
            "normal": _started(stack, address, folder / "normal.db", ADDON, "--set", "usage_durability=normal"),
        }
        spent: dict[str, list[float]] = {name: [] for name in proxies}

        def load(name: str) -> float:
            before = _cpu(proxies[name])
            done, seconds = asyncio.run(_load(proxies[name].port))
            spent[name].append((_cpu(proxies[name]) - before) / (done * EVENTS) * 1e6)
            return done / seconds

        loads = measure({name: lambda name=name: load(name) for name in proxies})  # type: ignore[misc]
        for name, target in (("full", ">= 0.92"), ("normal", "")):
            yield (
                f"requests/s, {CLIENTS} clients, {EVENTS} events each, {name}",
                loads[name].told("{:,.0f}"),
                loads["bare"].told("{:,.0f}"),
                ratio(loads[name], loads["bare"]).told(),
                target,
            )
        cpu = {name: Measured(tuple(numbers[1:])) for name, numbers in spent.items()}
        yield (
            "CPU per event, µs, full",
            cpu["full"].told("{:.1f}"),
            cpu["bare"].told("{:.1f}"),
            ratio(cpu["full"], cpu["bare"]).told(),
            "<= 1.12",
        )
        sides = {name: lambda p=p: asyncio.run(_first_byte(p.port)) for name, p in proxies.items()}
        first = measure({**sides, "disk": lambda: _fsync(folder)})
        for name, target in (("full", "+ <= 0.6 ms"), ("normal", "+ <= 0.3 ms")):
            more = first[name].median - first["bare"].median
            yield (
                f"time to first byte, ms, {name}",
                first[name].told(),
                first["bare"].told(),
                f"+ {more:.2f} ms",
                target,
            )
        yield "of which the disk: fsync of 32 KB after a rest of 5 ms, ms", first["disk"].told(), "", "", ""
        delays: dict[str, list[float]] = {name: [] for name in proxies}
        for _ in range(ROUNDS):  # streams that happen to run in step are held up twice as long as others
            for name, each in proxies.items():
                delays[name] += asyncio.run(_delays(each.port))
        for share, target in ((0.5, "<= 1.1"), (0.99, "<= 1.2")):
            ours, theirs = percentile(delays["full"], share), percentile(delays["bare"], share)
            yield (
                f"delay per event, ms, p{share * 100:.0f}",
                f"{ours:.2f}",
                f"{theirs:.2f}",
                f"{ours / theirs:.2f}",
                target,
            )
        big = {name: asyncio.run(_big(proxies[name])) / 1e6 for name in ("bare", "full")}
        more = big["full"] - big["bare"]
        yield (
            "memory of a stream of 200 MB, MB",
            f"{big['full']:.1f}",
            f"{big['bare']:.1f}",
            f"+ {more:.1f}",
            "+ <= 1.5 MB",
        )
        held = {name: asyncio.run(_held(proxies[name], 300)) / 1e3 for name in ("bare", "full")}
        more = held["full"] - held["bare"]
        yield (
            "memory of each of 300 streams, KB",
            f"{held['full']:.0f}",
            f"{held['bare']:.0f}",
            f"+ {more:.0f}",
            "+ <= 40 KB",
        )


def growing(folder: Path) -> Iterator[Line]:
    """Yield how many requests a second pass with more and more streams at once."""
    with ExitStack() as stack:
        address = stack.enter_context(upstream())
        proxy = _started(stack, address, folder / "growing.db", ADDON)

        def load(clients: int) -> float:
            done, seconds = asyncio.run(_load(proxy.port, clients))
            return done / seconds

        for clients in (1, 4, 16, 64, 300):
            found = measure({"ours": lambda clients=clients: load(clients)}, rounds=3)  # type: ignore[misc]
            yield f"{clients} streams at once, requests/s", found["ours"].told("{:,.0f}"), "", "", ""


def _started(stack: ExitStack, address: str, ledger: Path, script: Path, *arguments: str) -> Proxy:
    return stack.enter_context(Proxy(address, ledger, *arguments, script=script))
