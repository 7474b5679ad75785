"""What the tests of redacted flows share: flows to redact, and what is told of them before and after."""

import gzip
import json
import re
import zlib
from collections.abc import Callable

import brotli
import zstandard
from mitmproxy import http
from mitmproxy.io import tnetstring
from usage_ledger.flows.files import saved_flows
from usage_ledger.flows.inspecting import fields_of, inspect

from scripts.make_samples import SAMPLES

KINDS = {*(f"message_{each}" for each in ("start", "delta", "stop")), "error", "ping", "JSON answer", "comment"}


def sample(name: str = "normal-stream") -> http.HTTPFlow:
    (flow,) = saved_flows(SAMPLES / f"{name}.mitm")
    assert isinstance(flow, http.HTTPFlow)
    return flow


def judged(flow: http.HTTPFlow) -> dict[str, object]:
    """What a replay would write, without what names a person, a key or a session."""
    fields = fields_of(inspect(flow, all_events=True))
    row = fields["row"] or {}
    told = {name: value for name, value in row.items() if name not in ("api_key_hint", "session_id", "tag")}
    told.get("metadata", {}).pop("_redacted", None)
    events = [(each["offset"], each["size"], each["kind"] in KINDS, masked(each["usage"])) for each in fields["events"]]
    return {**told, "why": without_texts(fields["why"]), "iterations": fields["iterations"], "events": events}


def masked(usage: object) -> str:
    return without_texts(json.dumps(usage))


def without_texts(told: str) -> str:
    """Usage without the texts in it: where a count should be, they are as good as any other text."""
    return re.sub(r': "[^"]+"', ': "?"', told)


def saved(flow: http.HTTPFlow) -> bytes:
    """The flow as it is written, with its bodies also decoded."""
    parts = [tnetstring.dumps(flow.get_state())]
    for message in (flow.request, flow.response):
        if message is not None and message.raw_content:
            parts.append(message.get_content(strict=False) or b"")
    return b"\n".join(parts)


ENCODERS: dict[str, tuple[str, Callable[[bytes], bytes] | None]] = {
    "plain": ("", None),
    "gzip": ("gzip", gzip.compress),
    "gzip that nobody told of": ("", gzip.compress),
    "deflate": ("deflate", zlib.compress),
    "br": ("br", brotli.compress),
    "zstd": ("zstd", zstandard.compress),
    "gzip within br": ("gzip, br", lambda data: brotli.compress(gzip.compress(data))),
    "plain that says gzip": ("gzip", None),
}
