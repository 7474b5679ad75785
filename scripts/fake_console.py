"""A fake Claude Console on loopback, for the demo, the tests and the bench: the one place where upstream is played.

It speaks HTTP/1.1 and, over TLS, HTTP/2. What a request gets is decided by its `x-scenario` header: the name of an
async function that writes the answer step by step (`Reply`), so that a test controls every chunk, pause and break.
It counts the requests it received, which is what the ledger is compared with.
"""

import asyncio
import contextlib
import gzip
import json
import socket
import ssl
import struct
import threading
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events

type Scenario = Callable[["Request", "Reply"], Awaitable[None]]

SSE = {"content-type": "text/event-stream; charset=utf-8"}


class Request:
    """What upstream received."""

    def __init__(self, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        self.method = method
        self.path = path
        self.headers = headers
        self.body = body


@dataclass(frozen=True)
class ApiKey:
    """A key as the Console knows it. The default workspace has no id."""

    id: str
    name: str
    hint: str
    workspace: str | None = None


@dataclass
class Part:
    """What a request is billed for one model. `counts` are in the Admin API's words (`cache_5m`: writes)."""

    model: str
    counts: dict[str, int]
    tier: str = "standard"


@dataclass
class Served:
    """A request that the Console served: when, by its own clock, and what it produced, told in a stream or not."""

    key: ApiKey
    start: datetime
    end: datetime
    billed: list[Part]


class Reply:
    """One answer, written step by step. HTTP/1.1; `H2Reply` does the same over HTTP/2.

    `billed` is what a scenario has produced until now, for the bill.
    """

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self.billed: list[Part] = []
        self._chunked = False

    async def start(self, status: int, headers: dict[str, str], length: int | None = None) -> None:
        """Send the status line and the headers; without a length the body is chunked."""
        self._chunked = length is None
        framing = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
        lines = [f"HTTP/1.1 {status} Fake", framing, *(f"{name}: {value}" for name, value in headers.items())]
        self._writer.write("\r\n".join([*lines, "", ""]).encode())
        await self._writer.drain()

    async def send(self, data: bytes) -> None:
        """Send one piece of the body, at once."""
        if data:
            self._writer.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)
            await self._writer.drain()

    async def end(self) -> None:
        """End the body."""
        if self._chunked:
            self._writer.write(b"0\r\n\r\n")
            await self._writer.drain()

    def reset(self) -> None:
        """Break the connection off with a TCP reset."""
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()


class H2Reply(Reply):
    """One answer on an HTTP/2 stream."""

    def __init__(self, writer: asyncio.StreamWriter, h2c: h2.connection.H2Connection, stream: int) -> None:
        super().__init__(writer)
        self._h2 = h2c
        self._stream = stream

    async def _flush(self) -> None:
        self._writer.write(self._h2.data_to_send())
        await self._writer.drain()

    async def start(self, status: int, headers: dict[str, str], length: int | None = None) -> None:
        named = [(":status", str(status)), *headers.items()]
        if length is not None:
            named.append(("content-length", str(length)))
        self._h2.send_headers(self._stream, named)
        await self._flush()

    async def send(self, data: bytes) -> None:
        for start in range(0, max(len(data), 1), 16_000):
            self._h2.send_data(self._stream, data[start : start + 16_000])
            await self._flush()

    async def end(self) -> None:
        self._h2.end_stream(self._stream)
        await self._flush()

    def reset(self) -> None:
        self._h2.reset_stream(self._stream, error_code=2)  # INTERNAL_ERROR
        self._writer.write(self._h2.data_to_send())


class FakeConsole:
    """The server. Runs on a thread of its own, so that tests and the demo can be plain code; use it with `with`."""

    def __init__(self, certificate: Path | None = None) -> None:
        self.scenarios: dict[str, Scenario] = dict(SCENARIOS)
        self.received: Counter[str] = Counter()
        self.requests: list[Request] = []
        self.served: list[Served] = []
        self.keys: dict[str, ApiKey] = {}
        self.port = 0
        self._certificate = certificate
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="fake-console", daemon=True)
        self._ready = threading.Event()

    @property
    def address(self) -> str:
        return f"{'https' if self._certificate else 'http'}://127.0.0.1:{self.port}"

    def __enter__(self) -> "FakeConsole":
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._server.close()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def call(self, function: Callable[..., object], *arguments: object) -> None:
        """Call something on the server's loop, for example to set an `asyncio.Event` that a scenario awaits."""
        self._loop.call_soon_threadsafe(function, *arguments)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._listen())
        self._ready.set()
        self._loop.run_forever()

    async def _listen(self) -> None:
        context = None
        if self._certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self._certificate)
            context.set_alpn_protocols(["h2", "http/1.1"])
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=context, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            tls = writer.get_extra_info("ssl_object")
            if tls is not None and tls.selected_alpn_protocol() == "h2":
                await self._serve_h2(reader, writer)
            else:
                while await self._serve_h1(reader, writer):
                    pass
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass  # the proxy left
        finally:
            writer.close()
            with contextlib.suppress(Exception):
                await writer.wait_closed()

    async def _serve_h1(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")[:-2]
        method, path, _ = first.split(" ", 2)
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int((await reader.readuntil(b"\r\n")), 16):
                body += (await reader.readexactly(size + 2))[:-2]
            await reader.readexactly(2)
        else:
            body = await reader.readexactly(int(headers.get("content-length", 0)))
        await self._answer(Request(method, path, headers, body), Reply(writer))
        return not writer.is_closing()

    async def _serve_h2(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        h2c = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        h2c.initiate_connection()
        writer.write(h2c.data_to_send())
        heads: dict[int, dict[str, str]] = {}
        bodies: dict[int, bytearray] = {}
        running: dict[int, asyncio.Task[None]] = {}
        while data := await reader.read(65536):
            for event in h2c.receive_data(data):
                if isinstance(event, h2.events.RequestReceived):
                    heads[event.stream_id] = {n.decode(): v.decode() for n, v in event.headers}
                    bodies[event.stream_id] = bytearray()
                elif isinstance(event, h2.events.DataReceived):
                    bodies[event.stream_id] += event.data
                    h2c.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                elif isinstance(event, h2.events.StreamReset):
                    if event.stream_id in running:
                        running[event.stream_id].cancel()
                elif isinstance(event, h2.events.StreamEnded):
                    head = heads[event.stream_id]
                    request = Request(head[":method"], head[":path"], head, bytes(bodies[event.stream_id]))
                    reply = H2Reply(writer, h2c, event.stream_id)
                    running[event.stream_id] = asyncio.ensure_future(self._answer(request, reply))
            writer.write(h2c.data_to_send())

    async def _answer(self, request: Request, reply: Reply) -> None:
        scenario = request.headers.get("x-scenario", "normal")
        self.received[scenario] += 1
        self.requests.append(request)
        served = Served(self.key_of(request), datetime.now(UTC), datetime.now(UTC), reply.billed)
        try:
            await self.scenarios[scenario](request, reply)
        finally:
            served.end = datetime.now(UTC)
            self.served.append(served)

    def key_of(self, request: Request) -> ApiKey:
        """Return the key that a request came with; one that is new is a new key of the default workspace."""
        key = request.headers.get("x-api-key") or request.headers.get("authorization", "").removeprefix("Bearer ")
        if key not in self.keys:
            number = len(self.keys) + 1
            self.keys[key] = ApiKey(f"apikey_{number:04}", f"key {number}", f"{key[:16]}...{key[-4:]}")
        return self.keys[key]


# What Claude sends.


def event(kind: str, **fields: Any) -> bytes:
    """Return one event the way the API frames it."""
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields}, separators=(',', ':'))}\n\n".encode()


def start(usage: dict[str, Any] | None = None, message_id: str = "msg_fake", model: str = "claude-sonnet-4-6") -> bytes:
    """Return a `message_start`; usage None leaves it out."""
    message: dict[str, Any] = {"id": message_id, "type": "message", "role": "assistant", "model": model, "content": []}
    if usage is not None:
        message["usage"] = usage
    return event("message_start", message={**message, "stop_reason": None, "stop_sequence": None})


def text(words: str) -> list[bytes]:
    """Return a text block, one delta a word."""
    return [
        event("content_block_start", index=0, content_block={"type": "text", "text": ""}),
        *(
            event("content_block_delta", index=0, delta={"type": "text_delta", "text": word + " "})
            for word in words.split()
        ),
        event("content_block_stop", index=0),
    ]


def delta(usage: dict[str, Any] | None, stop_reason: str | None = "end_turn", **more: Any) -> bytes:
    """Return a `message_delta`; usage None leaves it out."""
    fields: dict[str, Any] = {"delta": {"stop_reason": stop_reason, "stop_sequence": None, **more}}
    if usage is not None:
        fields["usage"] = usage
    return event("message_delta", **fields)


STOP = event("message_stop")
SONNET = "claude-sonnet-4-6"
NORMAL_COUNTS = {"uncached_input_tokens": 12, "cache_5m": 100, "cache_read_input_tokens": 2_000, "output_tokens": 42}
START_USAGE = {
    "input_tokens": 12,
    "cache_creation_input_tokens": 100,
    "cache_read_input_tokens": 2000,
    "cache_creation": {"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 0},
    "output_tokens": 1,
    "service_tier": "standard",
}
WORDS = "The books match to the last token."
NORMAL = [start(START_USAGE), event("ping"), *text(WORDS), delta({"output_tokens": 42}), STOP]
WITHOUT_USAGE = [start(), *text(WORDS), delta(None), STOP]
ITERATIONS = [
    start({"input_tokens": 600, "output_tokens": 1}),
    *text(WORDS),
    delta(
        {
            "output_tokens": 30,
            "iterations": [
                {"type": "compaction", "input_tokens": 60_000, "output_tokens": 500},
                {"type": "message", "input_tokens": 600, "output_tokens": 30},
                {"type": "advisor_message", "model": "claude-opus-4-7", "input_tokens": 700, "output_tokens": 90},
            ],
        }
    ),
    STOP,
]
MESSAGE = {
    "id": "msg_json",
    "type": "message",
    "role": "assistant",
    "model": "claude-haiku-4-5",
    "content": [{"type": "text", "text": WORDS}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 9, "output_tokens": 7},
}
NORMAL_BILL = [Part(SONNET, NORMAL_COUNTS)]
ITERATIONS_BILL = [
    Part(SONNET, {"uncached_input_tokens": 60_600, "output_tokens": 530}),
    Part("claude-opus-4-7", {"uncached_input_tokens": 700, "output_tokens": 90}),
]
JSON_BILL = [Part("claude-haiku-4-5", {"uncached_input_tokens": 9, "output_tokens": 7})]


def new_request_id() -> dict[str, str]:
    """Return the header that names an answer; no two have the same."""
    return {"request-id": f"req_{uuid.uuid4().hex[:20]}"}


def streaming(
    events: Iterable[bytes], headers: dict[str, str] | None = None, ends: bool = True, billed: Sequence[Part] = ()
) -> Scenario:
    """Return a scenario that streams these pieces, each sent by itself; without `ends` the connection is reset.

    `billed` is what it costs whatever the stream tells.
    """
    pieces = list(events)

    async def scenario(request: Request, reply: Reply) -> None:
        reply.billed += billed
        await reply.start(200, {**SSE, **new_request_id(), **(headers or {})})
        for piece in pieces:
            await reply.send(piece)
            await asyncio.sleep(0)
        if ends:
            await reply.end()
        else:
            await asyncio.sleep(0.2)  # the proxy should have read what was sent before the reset discards it
            reply.reset()

    return scenario


def answering(status: int, body: bytes, headers: dict[str, str], billed: Sequence[Part] = ()) -> Scenario:
    """Return a scenario that answers with one body of known length."""

    async def scenario(request: Request, reply: Reply) -> None:
        reply.billed += billed
        await reply.start(status, {**new_request_id(), **headers}, len(body))
        await reply.send(body)
        await reply.end()

    return scenario


async def endless(request: Request, reply: Reply) -> None:
    """Stream text until the client leaves."""
    produced = Part(SONNET, {**NORMAL_COUNTS, "output_tokens": 0})
    reply.billed.append(produced)
    await reply.start(200, SSE)
    await reply.send(start(START_USAGE))
    await reply.send(event("content_block_start", index=0, content_block={"type": "text", "text": ""}))
    while True:
        produced.counts["output_tokens"] += 2
        await reply.send(event("content_block_delta", index=0, delta={"type": "text_delta", "text": "and on "}))
        await asyncio.sleep(0.01)


JSON = {"content-type": "application/json"}
RATE_LIMITED = b'{"type":"error","error":{"type":"rate_limit_error","message":"Slow down."}}'
SCENARIOS: dict[str, Scenario] = {
    "normal": streaming(NORMAL, billed=NORMAL_BILL),
    "without_usage": streaming(WITHOUT_USAGE, billed=NORMAL_BILL),
    "iterations": streaming(ITERATIONS, billed=ITERATIONS_BILL),
    "breaks": streaming(NORMAL[:4], ends=False, billed=[Part(SONNET, {**NORMAL_COUNTS, "output_tokens": 9})]),
    "gzipped": streaming([gzip.compress(b"".join(NORMAL))], {"content-encoding": "gzip"}, billed=NORMAL_BILL),
    "json": answering(200, json.dumps(MESSAGE).encode(), JSON, billed=JSON_BILL),
    "rate_limited": answering(429, RATE_LIMITED, {**JSON, "retry-after": "1", "x-should-retry": "false"}),
    "endless": endless,
}
