"""Redacting: a captured flow that can be shown to others.

Room: flows. Imports mitmproxy, the messages room and its neighbours. Promises, by an allowlist: what is kept of a flow
is the structure of its events, sizes, times, usage, the names of models, known words in the headers that matter
(`kept`) and Anthropic's own hosts and paths; all else becomes filler of the same length, or goes. And that its verdict
stays what it was, which is found out by judging it again. A flow's notes say that it was redacted, so that a replay
takes filler for nobody's name.
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

from usage_ledger.flows.kept import kept_value
from usage_ledger.flows.notes import is_not_connected, note, note_not_connected, noted
from usage_ledger.flows.replay import Judged, client_left, encoding_of, is_from_har, judge
from usage_ledger.flows.rows import uuid_of
from usage_ledger.messages import COUNT_NAMES, Ending
from usage_ledger.messages.decoding import DecodingError, decoder_for
from usage_ledger.messages.filler import fill_key, fill_request, fill_response, fill_text
from usage_ledger.messages.usage import PRICED_BY

_KNOWN = re.compile(
    r"authorization|cf-ray|content-encoding|content-type|cookie|forwarded|host|location|origin|proxy-authorization"
    r"|referer|server|set-cookie|via|x-api-key|x-claude-code-session-id|x-forwarded-(?:for|host|proto)|x-request-id"
)
"""Headers of which the name is kept."""

_WORD = re.compile(r"[^, ]+")
_ENCODINGS = frozenset({"gzip", "x-gzip", "deflate", "br", "zstd", "identity"})
_CONTENT_TYPE = re.compile(
    r"(?:text/(?:event-stream|html|plain)|application/json)(?:; ?charset=(?:utf-8|us-ascii|iso-8859-1))?", re.IGNORECASE
)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"})
_VERSIONS = frozenset({"HTTP/1.0", "HTTP/1.1", "HTTP/2.0", "HTTP/3"})
_HOSTS = re.compile(r"(?:[a-z0-9-]+\.)?(?:anthropic|claude)\.com|localhost|127\.0\.0\.1|\[?::1\]?")
_PORT = re.compile(r":[0-9]{1,5}\Z")
_SEGMENT = re.compile(r"|v[0-9]+|anthropic|api|messages|batches|complete|count_tokens|model|models|invoke")
"""The parts of a path that are kept."""

_CREDENTIALS = ("x-api-key", "authorization")
_SAFE_QUERY = frozenset({"beta=true", "beta=false", ""})
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NOWHERE = "192.0.2.1"  # an address of nobody's (RFC 5737)
_GZIP, _ZSTD = b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd"
_JUNK = b"\xff"
"""What stands for bytes that no decoder can read: no decoder can read it either."""


class RedactionError(Exception):
    """A flow whose verdict would not stay the same: one line for a person."""


def redact(http_flow: http.HTTPFlow) -> None:
    """Redact a flow in place; raise `RedactionError` where that would change its verdict."""
    name, before = http_flow.id, judge(http_flow)
    from_har = is_from_har(http_flow)
    _redact_bodies(http_flow, from_har)
    _redact_heads(http_flow)
    _redact_surroundings(http_flow, from_har)
    after = judge(http_flow)
    differ = list(_differences(before, after, from_har))
    if differ:
        raise RedactionError(f"flow {name} cannot be redacted so that its verdict stays: {', '.join(differ)}")


# Bodies.


def _redact_bodies(http_flow: http.HTTPFlow, from_har: bool) -> None:
    request, response = http_flow.request, http_flow.response
    if request.raw_content:
        encoding = request.headers.get("content-encoding", "")
        _replace(request, _redacted(request.raw_content, encoding, fill_request, sniffs=False))
    if response is not None and response.raw_content:
        size = len(response.raw_content)
        encoding = encoding_of(response, from_har)
        _replace(response, _redacted(response.raw_content, encoding, fill_response, sniffs=True))
        if len(response.raw_content) != size and type(noted(http_flow).get("response_bytes")) is not int:
            note(http_flow, response_bytes=size)


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
    segments = (each if _SEGMENT.fullmatch(each) else fill_text(each) for each in path.split("/"))
    request.path = "/".join(segments) + mark + "&".join(map(_redacted_parameter, query.split("&")))
    request.data.host = _redacted_host(request.host)  # as it is, without changing the Host header
    request.authority = _redacted_host(request.authority)
    request.scheme = request.scheme if request.scheme in ("http", "https") else fill_text(request.scheme)
    request.method = request.method if request.method in _METHODS else fill_text(request.method)
    request.headers = _redacted_headers(request.headers)
    request.trailers = request.trailers and _redacted_headers(request.trailers)
    if response is not None:
        response.headers = _redacted_headers(response.headers)
        response.trailers = response.trailers and _redacted_headers(response.trailers)
        response.reason = status_codes.RESPONSES.get(response.status_code, "")
    for message in filter(None, (request, response)):
        message.http_version = message.http_version if message.http_version in _VERSIONS else "HTTP/1.1"


def _redacted_parameter(parameter: str) -> str:
    if parameter in _SAFE_QUERY:
        return parameter
    name, equals, value = parameter.partition("=")
    return fill_text(name) + equals + fill_text(value)


def _redacted_host(host: str) -> str:
    """Fill the name of a host, which may come with a port; Anthropic's and this machine's own are kept."""
    port = _PORT.search(host)
    name, rest = (host, "") if port is None else (host[: port.start()], port[0])
    return (name if _HOSTS.fullmatch(name) else re.sub(r"[^.]", "x", name)) + rest


def _redacted_headers(headers: http.Headers) -> http.Headers:
    fields = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers.fields]
    return http.Headers([_redacted_header(*field) for field in fields])


def _redacted_header(name: str, value: str) -> tuple[bytes, bytes]:
    known = name.lower()
    kept = kept_value(known, value)
    if kept is not None:
        value = kept
    elif not _KNOWN.fullmatch(known):
        name, value = fill_text(name), fill_text(value)
    elif known in _CREDENTIALS:
        scheme, space, token = value.partition(" ")
        has_scheme = bool(space) and scheme.lower() in ("bearer", "basic")
        value = f"{scheme} {fill_key(token)}" if has_scheme else fill_key(value)
    elif known == "host":
        value = _redacted_host(value)
    elif known == "content-encoding":
        value = _WORD.sub(lambda found: found[0] if found[0].lower() in _ENCODINGS else fill_text(found[0]), value)
    elif known == "content-type":
        told = _CONTENT_TYPE.match(value)
        plain = told[0] if told else ""
        value = plain + fill_text(value[len(plain) :])
    else:
        value = fill_text(value)
    return name.encode("latin-1"), value.encode("latin-1")


# What mitmproxy keeps beside them.


def _redact_surroundings(http_flow: http.HTTPFlow, from_har: bool) -> None:
    notes, not_connected = _redacted_notes(noted(http_flow)), is_not_connected(http_flow)
    http_flow.metadata.clear()
    if not_connected:
        note_not_connected(http_flow)
    note(http_flow, **notes, redacted=True)
    http_flow.is_replay = http_flow.is_replay if http_flow.is_replay in ("request", "response") else None
    http_flow.comment = http_flow.marked = ""
    http_flow.id = str(uuid_of(http_flow))
    http_flow.websocket = None
    http_flow._backup = None  # the flow as it was before somebody edited it
    if http_flow.error is not None and http_flow.error.msg != flow.Error.KILLED_MESSAGE:
        http_flow.error.msg = "Client disconnected." if client_left(http_flow.error.msg) else "Connection lost."
    client, server = http_flow.client_conn, http_flow.server_conn
    client.proxy_mode = ProxyMode.parse("regular")
    client.mitmcert = None
    server.via = None
    if server.address is not None:
        server.address = (_redacted_host(str(server.address[0])), server.address[1])
    for connection in (client, server):
        connection.certificate_list = []
        connection.cipher_list, connection.alpn_offers = [], []
        connection.cipher = connection.alpn = connection.tls_version = connection.error = None
        connection.sni = connection.sni and _redacted_host(connection.sni)
        connection.id = connection.id if _UUID.fullmatch(connection.id) else ""
        if connection.peername is not None and not from_har:
            connection.peername = (_NOWHERE, connection.peername[1])
        if connection.sockname is not None:
            connection.sockname = (_NOWHERE, connection.sockname[1])


def _redacted_notes(facts: dict[str, Any]) -> dict[str, Any]:
    """Keep those notes that a replay goes by, where they are what they can be."""
    kept: dict[str, Any] = {}
    if facts.get("ending") in Ending.__members__:
        kept["ending"] = facts["ending"]
    if isinstance(facts.get("captured"), bool):
        kept["captured"] = facts["captured"]
    if facts.get("answered_by_proxy"):
        kept["answered_by_proxy"] = True
    if type(facts.get("response_bytes")) is int:
        kept["response_bytes"] = facts["response_bytes"]
    if isinstance(facts.get("tag"), str):
        kept["tag"] = fill_text(facts["tag"])
    return kept


# Whether the verdict stays.


def _differences(before: Judged | None, after: Judged | None, from_har: bool) -> Iterator[str]:
    if before is None or after is None:
        if before is not after:
            yield "whether it leaves a row"
        return
    told, now = _facts_of(before), _facts_of(after)
    if from_har:
        del told["row"]  # which is made of host and path, where upstream has not named the request
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
        **{name: getattr(verdict, name) for name in ("model", "message_id", "stop_reason", *PRICED_BY)},
        "iterations": len(verdict.iterations),
    }
    for number, iteration in enumerate(judged.entry.iterations):
        for name in ("type", "model", "billed", *(each for each in COUNT_NAMES if hasattr(iteration, each))):
            facts[f"iteration {number + 1} {name}"] = getattr(iteration, name)
    return facts


def _is_same(before: Any, after: Any) -> bool:
    """Whether a fact is what it was, or a text of which nothing but its length was kept."""
    if isinstance(before, dict) and isinstance(after, dict):
        return before.keys() == after.keys() and all(_is_same(before[name], after[name]) for name in before)
    return bool(before == after) or (isinstance(before, str) and isinstance(after, str) and not after.strip("x"))
