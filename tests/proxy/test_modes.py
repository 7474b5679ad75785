"""The ways traffic comes: HTTP/2, CONNECT and TLS, bodies that are streamed both ways, the real SDK."""

import asyncio
import json
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import DataReceived
from mitmproxy.certs import CertStore

from scripts.fake_console import JSON, MESSAGE, NORMAL, FakeConsole, Reply, Request
from scripts.real_proxy import Proxy, rows_of, settled_rows

KEY = "sk-ant-api03-R2D2secretsecretsecretsecretsecretigAA"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1, key and chain in one file."""
    folder = tmp_path_factory.mktemp("certificate")
    CertStore.create_store(folder, "mitmproxy", 2048)
    return folder / "mitmproxy-ca.pem"


@pytest.fixture
def tls_console(certificate: Path) -> Iterator[FakeConsole]:
    with FakeConsole(certificate) as running:
        yield running


def trusting() -> ssl.SSLContext:
    """A client context that accepts the proxy's own authority; what is tested here is not trust."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def post(client: httpx.Client, address: str, scenario: str, body: bytes = b'{"model":"m","stream":true}') -> bytes:
    with client.stream(
        "POST", f"{address}/v1/messages", headers={"x-scenario": scenario, "x-api-key": KEY}, content=body
    ) as answer:
        return b"".join(answer.iter_raw())


# With eager connections mitmproxy knows that upstream speaks HTTP/2 and offers the same to the client.


def test_http_2_on_both_sides(tls_console: FakeConsole, start_proxy: Callable[..., Proxy]) -> None:
    proxy = start_proxy(upstream=tls_console.address, strategy="eager")
    with httpx.Client(http2=True, verify=trusting(), timeout=20) as client:
        address = f"https://127.0.0.1:{proxy.port}"
        assert post(client, address, "normal") == b"".join(NORMAL)
        post(client, address, "json")
        post(client, address, "rate_limited")
    assert [row["usage_state"] for row in settled_rows(proxy.ledger, 3)] == ["complete", "complete", "none"]


def test_http_2_upstream_that_resets_the_stream(tls_console: FakeConsole, start_proxy: Callable[..., Proxy]) -> None:
    proxy = start_proxy(upstream=tls_console.address, strategy="eager")
    with httpx.Client(http2=True, verify=trusting(), timeout=20) as client, pytest.raises(httpx.TransportError):
        post(client, f"https://127.0.0.1:{proxy.port}", "breaks")
    (row,) = settled_rows(proxy.ledger, 1)
    assert (row["usage_state"], row["review_reason"]) == ("partial", "upstream_closed")


def test_http_2_client_that_resets_the_stream(tls_console: FakeConsole, start_proxy: Callable[..., Proxy]) -> None:
    """Both connections stay open; only the code CANCEL tells that it was the client who had enough."""
    proxy = start_proxy(upstream=tls_console.address, strategy="eager")
    context = trusting()
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", proxy.port)) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
    ):
        client = H2Connection()
        client.initiate_connection()
        names = {":method": "POST", ":scheme": "https", ":authority": "127.0.0.1", ":path": "/v1/messages"}
        client.send_headers(1, [*names.items(), ("x-scenario", "endless")], end_stream=True)
        connection.sendall(client.data_to_send())
        received = b""
        while b"and on" not in received:
            for event in client.receive_data(connection.recv(65536)):
                received += event.data if isinstance(event, DataReceived) else b""
        client.reset_stream(1, ErrorCodes.CANCEL)
        connection.sendall(client.data_to_send())
        (row,) = settled_rows(proxy.ledger, 1)
    assert (row["usage_state"], row["review_reason"]) == ("partial", "client_disconnected")


@pytest.mark.parametrize("http2", [False, True], ids=["HTTP/1.1", "HTTP/2"])
def test_regular_mode_with_connect_and_tls(
    tls_console: FakeConsole, start_proxy: Callable[..., Proxy], http2: bool
) -> None:
    proxy = start_proxy(mode="regular")
    with httpx.Client(http2=http2, proxy=proxy.address, verify=trusting(), timeout=20) as client:
        assert post(client, tls_console.address, "normal") == b"".join(NORMAL)
    (row,) = settled_rows(proxy.ledger, 1)
    assert (row["usage_state"], row["host"], row["path"]) == ("complete", "127.0.0.1", "/v1/messages")


@pytest.mark.parametrize("chunked", [False, True], ids=["sized", "chunked"])
@pytest.mark.parametrize("scenario", ["normal", "long_json", "rate_limited"])
def test_bodies_that_are_streamed_both_ways(
    console: FakeConsole, start_proxy: Callable[..., Proxy], chunked: bool, scenario: str
) -> None:
    """`stream_large_bodies` sends requests upstream before the `request` hook and replies past the body buffer."""
    seen: list[str] = []
    reply_body = json.dumps({**MESSAGE, "content": [{"type": "text", "text": "x" * 50_000}]}).encode()

    async def long_json(request: Request, reply: Reply) -> None:
        await reply.start(200, JSON, None if chunked else len(reply_body))
        await reply.send(reply_body)
        await reply.end()

    async def looks(request: Request, reply: Reply) -> None:
        seen.append(rows_of(proxy.ledger)[0]["usage_state"])
        assert len(request.body) > 20_000
        await {**console.scenarios, "long_json": long_json}[scenario](request, reply)

    console.scenarios["looks"] = looks
    proxy = start_proxy("--set", "stream_large_bodies=1k", "--set", "usage_tag_header=x-team")
    body = json.dumps({"model": "claude-asked", "stream": True, "messages": ["x" * 20_000]}).encode()

    def pieces() -> Iterator[bytes]:
        for place in range(0, len(body), 1000):
            yield body[place : place + 1000]

    headers = {"x-scenario": "looks", "x-api-key": KEY, "x-team": "blue"}
    content: Any = pieces() if chunked else body
    answer = httpx.post(f"{proxy.address}/v1/messages", headers=headers, content=content, timeout=20)
    if scenario == "long_json":
        assert answer.content == reply_body
    (row,) = settled_rows(proxy.ledger, 1)
    assert seen == ["pending"]
    assert row["usage_state"] == ("none" if scenario == "rate_limited" else "complete")
    assert (row["requested_model"], row["tag"]) == ("claude-asked", "blue")
    assert "x-team" not in console.requests[0].headers


def test_a_streamed_upload_that_the_client_aborts_keeps_its_row(start_proxy: Callable[..., Proxy]) -> None:
    proxy = start_proxy("--set", "stream_large_bodies=1k")
    with socket.create_connection(("127.0.0.1", proxy.port)) as client:
        client.sendall(b"POST /v1/messages HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n" + b"{" * 5000)
        proxy.wait_for_line("server connect")
    (row,) = settled_rows(proxy.ledger, 1)
    assert (row["usage_state"], row["review_reason"]) == ("missing", "client_disconnected")


def test_the_real_sdk_reads_what_the_ledger_records(console: FakeConsole, start_proxy: Callable[..., Proxy]) -> None:
    import anthropic  # takes two seconds, in each process that collects the tests

    proxy = start_proxy()
    with (
        anthropic.Anthropic(api_key=KEY, base_url=proxy.address, max_retries=0) as client,
        client.messages.stream(
            model="claude-sonnet-4-6",
            max_tokens=10,
            messages=[{"role": "user", "content": "hello"}],
            extra_headers={"x-scenario": "normal"},
        ) as stream,
    ):
        usage = stream.get_final_message().usage
    (row,) = settled_rows(proxy.ledger, 1)
    assert (row["input_tokens"], row["output_tokens"]) == (usage.input_tokens, usage.output_tokens)
    assert row["cache_read_input_tokens"] == usage.cache_read_input_tokens


def test_many_at_once_leave_one_row_each(console: FakeConsole, start_proxy: Callable[..., Proxy]) -> None:
    proxy = start_proxy()

    async def traffic() -> None:
        async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=32)) as client:

            async def one(number: int) -> None:
                scenario = ("normal", "json", "rate_limited", "without_usage")[number % 4]
                await client.post(f"{proxy.address}/v1/messages", headers={"x-scenario": scenario}, json={})

            await asyncio.gather(*(one(number) for number in range(400)))

    asyncio.run(traffic())
    rows = settled_rows(proxy.ledger, 400)
    assert len(rows) == console.received.total() == 400
    assert [sum(row["usage_state"] == state for row in rows) for state in ("complete", "none", "missing")] == [
        200,
        100,
        100,
    ]
