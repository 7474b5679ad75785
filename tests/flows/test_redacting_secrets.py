"""A redacted flow holds nothing of what was said, nor who said it, where and with which key."""

import base64
import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st
from mitmproxy import certs, http
from mitmproxy import flow as flows
from usage_ledger.flows.notes import note, noted
from usage_ledger.flows.redacting import redact

from scripts.fake_console import START_USAGE, STOP, delta, event, start
from tests.flows.redacted import ENCODERS, judged, masked, sample, saved


def without_names(told: dict[str, object]) -> dict[str, object]:
    return {
        name: masked(value) if name == "usage_raw" else value
        for name, value in told.items()
        if name not in ("host", "path")
    }


def certificate() -> x509.Certificate:
    """Of somebody whose name nobody else may read."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "machine.example.com")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
    return builder.sign(key, hashes.SHA256())


CERTIFICATE = certificate()


class Secrets:
    """Words that stand for what nobody else may read, each made once and kept to be looked for."""

    def __init__(self) -> None:
        self.made: list[str] = []

    def __call__(self, what: str) -> str:
        self.made.append(f"{what}-Zq{len(self.made):04}Kw")
        return self.made[-1]

    def plain(self) -> str:
        """A word as upstream's own."""
        self.made.append(f"my_word_{len(self.made)}")
        return self.made[-1]

    def number(self) -> int:
        value = 987_650_000 + len(self.made)
        self.made.append(str(value))
        return value


def request_of(secret: Secrets) -> bytes:
    image = base64.b64encode(b"a picture, worth a thousand words" * 5).decode()
    secret.made.append(image)
    return json.dumps(
        {
            "model": "claude-sonnet-4-6",
            "max_tokens": 1024,
            "stream": True,
            "system": [{"type": "text", "text": secret("system"), "cache_control": {"type": "ephemeral", "ttl": "1h"}}],
            "messages": [
                {"role": "user", "content": secret("prompt")},
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": f'quoted \\" {secret("escaped")} \u2028 \ud83d'},
                        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": image}},
                        {"type": "document", "title": secret("title"), "context": secret("context")},
                        {"type": "tool_result", "tool_use_id": secret("call"), "content": secret("result")},
                    ],
                },
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": secret("thought"), "signature": secret("signature")},
                        {"type": "redacted_thinking", "data": secret("hidden")},
                        {
                            "type": "tool_use",
                            "id": secret("use"),
                            "name": secret("tool"),
                            "input": {secret("key"): secret("value"), "model": secret("m"), "n": secret.number()},
                        },
                    ],
                },
            ],
            "tools": [
                {
                    "name": secret("tool"),
                    "description": secret("what"),
                    "input_schema": {"type": "object", "properties": {secret("field"): {"enum": [secret("choice")]}}},
                }
            ],
            "mcp_servers": [{"type": "url", "url": secret("server"), "authorization_token": secret("token")}],
            "metadata": {"user_id": secret("user")},
            "usage": {secret("usage"): secret.number(), "model": secret("model")},
            "id": secret("id"),
            "context_management": {"usage": {secret("usage"): secret.number()}},
            "stop_sequences": [secret("stop")],
            secret("unknown"): {"type": secret("type"), "id": secret.number()},
        }
    ).encode()


def response_of(secret: Secrets) -> bytes:
    def block(index: int, **content: object) -> bytes:
        return event("content_block_start", index=index, content_block=content)

    def piece(index: int, **more: object) -> bytes:
        return event("content_block_delta", index=index, delta=more)

    return b"".join(
        [
            f": {secret('comment')}\n\n".encode(),
            start(START_USAGE),
            block(0, type="text", text=secret("begin")),
            piece(0, type="text_delta", text=secret("answer")),
            piece(0, type="citations_delta", citation={"type": "page", "cited_text": secret("cited")}),
            block(1, type="thinking", thinking="", signature=""),
            piece(1, type="thinking_delta", thinking=secret("thought")),
            piece(1, type="signature_delta", signature=secret("signature")),
            block(2, type="tool_use", id=secret("use"), name=secret("tool"), input={secret("key"): secret.number()}),
            piece(2, type="input_json_delta", partial_json='{"' + secret("half")),
            f"id: {secret('id')}\nevent: {secret('name')}\ndata: {secret('data')}\n\n".encode(),
            f"event: {secret.plain()}\nretry: {secret.number()}\ndata: {{}}\n\n".encode(),
            event("news", id=secret("root"), usage={"note": secret("usage")}, content={"usage": {secret("deep"): 1}}),
            f"{secret('line')}\ndata: {{}}\n\n".encode(),
            event(secret("unknown"), **{secret("field"): secret("value")}),
            delta({"output_tokens": 42}, "stop_sequence", stop_sequence=secret("stop")),
            STOP,
        ]
    )


def secretive(secret: Secrets, encode: Callable[[bytes], bytes] | None = None, encoding: str = "") -> http.HTTPFlow:
    flow = sample()
    request, response = flow.request, flow.response
    assert response is not None
    key = f"sk-ant-api03-{secret('key')}-AA"
    request.headers.update(
        {
            "x-api-key": key,
            "authorization": f"Bearer sk-ant-oat01-{secret('oauth')}",
            "cookie": f"session={secret('cookie')}",
            "proxy-authorization": f"Basic {secret('basic')}",
            "x-claude-code-session-id": secret("session"),
            "x-customer": secret("customer"),
            f"x-{secret('name')}": "1",
            "content-type": f"multipart/form-data; boundary={secret('boundary')}",
            "content-encoding": "identity",
        }
    )
    request.path = (
        f"/{secret('tenant')}/%73k{secret('escaped')}/v1/messages"
        f"?beta=true&key={secret('query')}&{secret('bare')}&{secret('parameter')}=1&{secret('base')}=="
    )
    request.host = f"{secret('machine')}.example.com"
    request.authority = f"{secret('user')}@{secret('authority')}:443"
    request.headers["host"] = f"{secret('user')}:{secret('password')}@{secret('host')}.example.com:8443"
    request.scheme, request.http_version, request.method = secret("scheme"), secret("version"), secret("method")
    response.http_version = secret("version")
    request.raw_content = request_of(secret)
    body = response_of(secret)
    response.headers.update({"set-cookie": secret("set"), "cf-ray": secret("ray"), "location": secret("place")})
    response.reason = secret("reason")
    response.raw_content = encode(body) if encode else body
    if encoding:
        response.headers["content-encoding"] = encoding
    response.trailers = http.Headers(x_trailer=secret("trailer"))
    flow.comment = f"see {secret('remark')} usage ledger: {secret('remark')}"
    flow.marked = secret("mark")
    flow.metadata["other"] = secret("metadata")
    flow.metadata["usage_ledger"] = {**noted(flow), "tag": secret("tag"), "more": secret("more")}
    flow.error = flows.Error(f"connecting to {secret('host')}:443 failed")
    flow.client_conn.peername = ("203.0.113.77", 5000)
    flow.server_conn.sockname = ("203.0.113.78", 5001)
    flow.client_conn.error = secret("error")
    flow.server_conn.via = ("http", (secret("proxy"), 1))
    flow.server_conn.address = (f"{secret('upstream')}.example.com", 443)
    for connection in (flow.client_conn, flow.server_conn):
        connection.sni = f"{secret('sni')}.example.com"
        connection.id = secret("id")
        connection.cipher = secret("cipher")
        connection.cipher_list = [secret("cipher")]
        connection.alpn, connection.alpn_offers = secret("alpn").encode(), [secret("alpn").encode()]
        connection.certificate_list = [certs.Cert(CERTIFICATE)]
    flow.client_conn.mitmcert = certs.Cert(CERTIFICATE)
    flow.is_replay = secret("replay")
    note(flow, ending=noted(flow).get("ending"), captured=True, response_bytes=noted(flow).get("response_bytes"))
    flow.backup()
    return flow


@pytest.mark.parametrize("name", ENCODERS)
def test_nothing_of_what_went_in_comes_out(name: str) -> None:
    encoding, encode = ENCODERS[name]
    secret = Secrets()
    flow = secretive(secret, encode, encoding)
    before = judged(flow)
    assert len(secret.made) > 60
    if name == "plain":
        content = saved(flow)
        assert [each for each in secret.made if each.encode() not in content] == []
    redact(flow)
    content = saved(flow)
    assert [each for each in secret.made if each.encode() in content] == []
    assert not re.search(rb"203\.0\.113", content)
    assert b"BEGIN CERTIFICATE" not in content
    assert without_names(judged(flow)) == without_names(before)


TEXT = st.text(min_size=4, max_size=20).map("Q7".__add__)
TREE = st.recursive(
    TEXT, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=8
)


@given(TREE, st.booleans())
@settings(max_examples=150, deadline=None)
def test_no_text_of_a_request_survives_wherever_it_stands(tree: object, escape: bool) -> None:
    flow = sample()
    flow.request.raw_content = json.dumps(
        {"model": "m", "messages": tree, "metadata": tree, "more": tree}, ensure_ascii=escape
    ).encode("utf-8", "surrogatepass")
    redact(flow)
    content = flow.request.raw_content.decode("utf-8", "replace")
    for text in texts_of(tree):
        assert json.dumps(text, ensure_ascii=escape)[1:-1] not in content


def texts_of(tree: object) -> Iterator[str]:
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, list):
        for each in tree:
            yield from texts_of(each)
    elif isinstance(tree, dict):
        for name, each in tree.items():
            yield name
            yield from texts_of(each)


KEPT_HOSTS = ["api.anthropic.com", "api.anthropic.com:443", "127.0.0.1:8080", "localhost", "[::1]:80"]


@pytest.mark.parametrize("host", [*KEPT_HOSTS, "gateway.example.com", "anthropic.com.example.com", "10.1.2.3:99"])
def test_hosts_are_filled_but_those_that_everybody_has(host: str) -> None:
    flow = sample()
    flow.request.headers["host"] = host
    redact(flow)
    kept = flow.request.headers["host"]
    assert (kept == host) is (host in KEPT_HOSTS)
    assert len(kept) == len(host)


@pytest.mark.parametrize("kind", ["api03", "oat01", "admin01", "secretword", "hunter2", ""])
def test_of_a_key_the_kind_is_kept_where_it_is_one(kind: str) -> None:
    flow = sample()
    flow.request.headers["x-api-key"] = f"sk-ant-{kind}-abcdefghijklmnopqrstuvwxyz0123456789"
    redact(flow)
    kept = flow.request.headers["x-api-key"]
    assert kept.startswith("sk-ant-")
    assert (kind in kept) is (kind not in ("secretword", "hunter2"))


def test_a_key_in_a_place_that_is_kept_is_filled() -> None:
    key = "sk-ant-api03-abcdefghijklmnopqrstuvwxyz0123456789"
    flow = sample()
    for name in ("user-agent", "anthropic-beta", "x-app"):
        flow.request.headers[name] = f"a {key}"
    flow.request.raw_content = json.dumps({"model": key, "id": key, "messages": [{"role": key, "type": key}]}).encode()
    redact(flow)
    assert key.encode() not in saved(flow)


PLAIN = {
    "accept": "application/json, text/event-stream;q=0.9",
    "accept-encoding": "gzip, deflate, br, zstd",
    "anthropic-beta": "claude-code-20250219,oauth-2025-04-20,fine-grained-tool-streaming-2025-05-14",
    "anthropic-organization-id": "00000000-aaaa-4bbb-8ccc-0123456789ab",
    "anthropic-ratelimit-input-tokens-reset": "2026-11-25T00:00:01Z",
    "anthropic-ratelimit-unified-5h-utilization": "0.25",
    "anthropic-ratelimit-unified-status": "allowed_warning",
    "anthropic-version": "2023-06-01",
    "cache-control": "no-cache",
    "date": "Wed, 25 Nov 2026 00:00:01 GMT",
    "request-id": "req_011CQabcDEF",
    "retry-after": "2.5",
    "user-agent": "claude-cli/2.1.0 (external, cli)",
    "x-app": "cli",
    "x-stainless-os": "Linux",
    "x-stainless-package-version": "0.60.0",
    "x-stainless-runtime-version": "v24.3.0",
}
"""Headers as Claude Code, the SDKs and Anthropic send them."""


@pytest.mark.parametrize("name", PLAIN)
def test_a_header_that_matters_keeps_its_known_words_and_no_other(name: str) -> None:
    word = "sk-internal-7Kw" if not name.endswith("-id") else "Jane%Doe"
    flow = sample()
    flow.request.headers = http.Headers(
        [(name.encode(), PLAIN[name].encode()), (name.encode(), f"{PLAIN[name]}, {word}".encode())]
    )
    redact(flow)
    assert flow.request.headers.get_all(name) == [PLAIN[name], f"{PLAIN[name]}, {'x' * len(word)}"]


@pytest.mark.parametrize(
    "agent",
    [
        "Anthropic/Python 2.12.0",
        "Anthropic/JS 0.60.0",
        "AsyncAnthropic/Python 0.34.2",
        "curl/8.5.0",
        "python-httpx/0.27.2",
    ],
)
def test_a_known_client_keeps_its_name(agent: str) -> None:
    flow = sample()
    flow.request.headers["user-agent"] = f"{agent} (Janes-Laptop)"
    redact(flow)
    assert flow.request.headers["user-agent"] == f"{agent} ({'x' * 12})"


def test_an_address_is_no_version() -> None:
    flow = sample()
    flow.request.headers["user-agent"] = "Chrome/120.0.0.1 0.4.9 10.20.30.40"
    redact(flow)
    assert flow.request.headers["user-agent"] == f"Chrome/120.0.0.1 0.4.9 {'x' * 11}"


@pytest.mark.parametrize("name", ["anthropic-ratelimit-jane", "x-stainless-jane", "anthropic-ratelimit-input-janes"])
def test_nor_does_the_name_of_a_header_that_nobody_knows(name: str) -> None:
    flow = sample()
    flow.request.headers[name] = "1"
    redact(flow)
    assert b"jane" not in saved(flow)
