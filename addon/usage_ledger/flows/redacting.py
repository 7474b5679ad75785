"""Redacting: a captured flow that can be shown to others.

Room: flows. Imports mitmproxy, the messages room and its neighbours. Promises, by an allowlist: what is kept of a flow
is the structure of its events, sizes, times, usage, the names of models and the headers of `_KEPT`; all else becomes
filler of the same length, or goes. And that its verdict stays what it was, which is found out by judging it again.
"""

import re
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import brotli
import zstandard
from mitmproxy import flow, http
from mitmproxy.net.http import status_codes
from mitmproxy.proxy.mode_specs import ProxyMode

from usage_ledger.flows.identity import without_keys
from usage_ledger.flows.notes import noted, replace_notes
from usage_ledger.flows.replay import ANY_ENCODING, Judged, client_left, is_from_har, judge
from usage_ledger.messages import COUNT_NAMES
from usage_ledger.messages.decoding import DecodingError, decoder_for
from usage_ledger.messages.filler import fill_key, fill_request, fill_response

_KEPT = re.compile(
    r"accept|accept-encoding|anthropic-(?:beta|version|organization-id|workspace-id|ratelimit-[a-z0-9-]+)|cache-control"
    r"|connection|content-encoding|content-length|content-type|date|host|request-id|retry-after(?:-ms)?|server"
    r"|transfer-encoding|user-agent|x-app|x-should-retry|x-stainless-[a-z-]+|x-usage-ledger"
)
"""The headers that matter for usage, or for how a body is read. Of credentials the kind is kept."""

_CREDENTIALS = ("x-api-key", "authorization")
_A_KEY = re.compile(rb"sk-ant-[A-Za-z0-9_-]+")
_SAFE_QUERY = re.compile(r"(?:true|false)?")
_KEPT_NOTES = ("ending", "captured", "answered_by_proxy", "response_bytes")
_NOWHERE = "192.0.2.1"  # an address of nobody's (RFC 5737)
_GZIP, _ZSTD = b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd"
_JUNK = b"\xff"
"""What stands for bytes that no decoder can read: no decoder can read it either."""


class RedactionError(Exception):
    """A flow whose verdict would not stay the same: one line for a person."""


def redact(http_flow: http.HTTPFlow) -> None:
    """Redact a flow in place; raise `RedactionError` where that would change its verdict."""
    before = _judged(http_flow)
    from_har = is_from_har(http_flow)
    _redact_bodies(http_flow, from_har)
    _redact_heads(http_flow)
    _redact_surroundings(http_flow, from_har)
    after = _judged(http_flow)
    differ = list(_differences(before, after))
    if differ:
        raise RedactionError(f"flow {http_flow.id} cannot be redacted so that its verdict stays: {', '.join(differ)}")


def _judged(http_flow: http.HTTPFlow) -> Judged | None:
    return judge(http_flow, account="", tag_header="", writer="")


# Bodies.


def _redact_bodies(http_flow: http.HTTPFlow, from_har: bool) -> None:
    request, response = http_flow.request, http_flow.response
    if request.raw_content:
        encoding = request.headers.get("content-encoding", "")
        _replace(request, _redacted(request.raw_content, encoding, fill_request, sniffs=False))
    if response is not None and response.raw_content:
        size = len(response.raw_content)
        encoding = response.headers.get("content-encoding", "") or (ANY_ENCODING if from_har else "")
        _replace(response, _redacted(response.raw_content, encoding, fill_response, sniffs=True))
        if len(response.raw_content) != size and "response_bytes" not in noted(http_flow):
            replace_notes(http_flow, {**noted(http_flow), "response_bytes": size})


def _replace(message: http.Message, body: bytes) -> None:
    message.raw_content = body
    if "content-length" in message.headers:
        message.headers["content-length"] = str(len(body))


def _redacted(body: bytes, encoding: str, fill: Callable[[bytes], bytes], sniffs: bool) -> bytes:
    """Fill a body, and encode it again as it was; where its encoding broke off, so does the new one's."""
    decoder = decoder_for(encoding, body) if sniffs or encoding else None
    if decoder is None:
        return fill(body)
    decoded = bytearray()
    complete = True
    try:
        for piece in decoder.feed(body):
            decoded += piece
    except DecodingError:
        complete = False
    complete = complete and decoder.complete
    if not decoded and not complete:
        return _JUNK * len(body)
    filled = fill(bytes(decoded))
    names = [name.strip() for name in encoding.lower().split(",") if name.strip() not in ("", "identity")]
    for place, name in enumerate(names or [_sniffed(body)], 1):
        filled = _encoded(filled, name, complete or place < len(names))
    return filled


def _sniffed(body: bytes) -> str:
    return "gzip" if body.startswith(_GZIP) else "zstd"


def _encoded(data: bytes, name: str, complete: bool) -> bytes:
    """Compress; without `complete` all of the data is there and the end of the encoding is not."""
    if name == "br":
        br = brotli.Compressor()
        return bytes(br.process(data) + (br.finish() if complete else br.flush()))
    if name == "zstd":
        zstd = zstandard.ZstdCompressor().compressobj()
        end = zstandard.COMPRESSOBJ_FLUSH_FINISH if complete else zstandard.COMPRESSOBJ_FLUSH_BLOCK
        return bytes(zstd.compress(data) + zstd.flush(end))
    deflate = zlib.compressobj(wbits=zlib.MAX_WBITS if name == "deflate" else zlib.MAX_WBITS + 16)
    return deflate.compress(data) + deflate.flush(zlib.Z_FINISH if complete else zlib.Z_SYNC_FLUSH)


# Heads.


def _redact_heads(http_flow: http.HTTPFlow) -> None:
    request, response = http_flow.request, http_flow.response
    path, mark, query = request.path.partition("?")
    request.path = without_keys(path) + mark + "&".join(map(_redacted_parameter, query.split("&")))
    request.headers = _redacted_headers(request.headers)
    request.trailers = request.trailers and _redacted_headers(request.trailers)
    if response is not None:
        response.headers = _redacted_headers(response.headers)
        response.trailers = response.trailers and _redacted_headers(response.trailers)
        response.reason = status_codes.RESPONSES.get(response.status_code, "")


def _redacted_parameter(parameter: str) -> str:
    name, equals, value = parameter.partition("=")
    if not equals:
        return "x" * len(name)
    return f"{name}={value if _SAFE_QUERY.fullmatch(value) else 'x' * len(value)}"


def _redacted_headers(headers: http.Headers) -> http.Headers:
    return http.Headers([(name, _redacted_header(name, value)) for name, value in headers.fields])


def _redacted_header(raw_name: bytes, raw_value: bytes) -> bytes:
    name = raw_name.decode("latin-1").lower()
    if _KEPT.fullmatch(name):
        return _A_KEY.sub(lambda found: b"x" * len(found[0]), raw_value)
    if name in _CREDENTIALS:
        value = raw_value.decode("latin-1")
        scheme, space, token = value.partition(" ")
        if space and scheme.lower() in ("bearer", "basic"):
            return f"{scheme} {fill_key(token)}".encode("latin-1")
        return fill_key(value).encode("latin-1")
    return b"x" * len(raw_value)


# What mitmproxy keeps beside them.


def _redact_surroundings(http_flow: http.HTTPFlow, from_har: bool) -> None:
    notes = {name: value for name, value in noted(http_flow).items() if name in _KEPT_NOTES}
    tag = noted(http_flow).get("tag")
    http_flow.metadata.clear()
    replace_notes(http_flow, {**notes, "tag": "x" * len(tag)} if isinstance(tag, str) else notes)
    http_flow.comment = http_flow.marked = ""
    http_flow.websocket = None
    http_flow._backup = None  # the flow as it was before somebody edited it
    if http_flow.error is not None and http_flow.error.msg != flow.Error.KILLED_MESSAGE:
        http_flow.error.msg = "Client disconnected." if client_left(http_flow.error.msg) else "Connection lost."
    client, server = http_flow.client_conn, http_flow.server_conn
    client.proxy_mode = ProxyMode.parse("regular")
    client.mitmcert = None
    server.via = None
    for connection in (client, server):
        connection.certificate_list = []
        connection.error = None
        if connection.peername is not None and not from_har:
            connection.peername = (_NOWHERE, connection.peername[1])
        if connection.sockname is not None:
            connection.sockname = (_NOWHERE, connection.sockname[1])


# Whether the verdict stays.


def _differences(before: Judged | None, after: Judged | None) -> Iterator[str]:
    if before is None or after is None:
        if before is not after:
            yield "whether it leaves a row"
        return
    told, now = _facts_of(before), _facts_of(after)
    for name, value in told.items():
        if not _is_same(value, now[name]):
            yield f"{name} {value} became {now[name]}"


def _facts_of(judged: Judged) -> dict[str, Any]:
    record, verdict = judged.entry.record, judged.verdict
    facts: dict[str, Any] = {
        "row": record.id,
        "ending": judged.ending.name,
        "captured": judged.captured,
        "usage_state": record.usage_state,
        "review_reason": record.review_reason,
        "http_status": record.http_status,
        "stream": record.stream,
        "response_bytes": record.response_bytes,
        "metadata": verdict.metadata,
        **{name: getattr(verdict.counts, name) for name in COUNT_NAMES},
        **{name: getattr(verdict, name) for name in ("model", "message_id", "stop_reason", *_PRICED_BY)},
        "iterations": len(verdict.iterations),
    }
    for number, iteration in enumerate(judged.entry.iterations):
        for name in ("type", "model", "billed", *(each for each in COUNT_NAMES if hasattr(iteration, each))):
            facts[f"iteration {number + 1} {name}"] = getattr(iteration, name)
    return facts


_PRICED_BY = ("service_tier", "inference_geo", "speed")


def _is_same(before: Any, after: Any) -> bool:
    """Whether a fact is what it was, or a text of which nothing but its length was kept."""
    if isinstance(before, dict) and isinstance(after, dict):
        return before.keys() == after.keys() and all(_is_same(before[name], after[name]) for name in before)
    return bool(before == after) or (isinstance(before, str) and isinstance(after, str) and not after.strip("x"))
