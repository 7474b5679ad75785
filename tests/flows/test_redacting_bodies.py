"""Bodies of redacted flows are encoded as they were, and break off where they did."""

import pytest
from usage_ledger.flows.notes import noted
from usage_ledger.flows.redacting import redact

from scripts.fake_console import NORMAL
from tests.flows.redacted import ENCODERS, judged, sample


def test_the_size_that_a_compressed_body_had_is_noted() -> None:
    flow = sample("gzipped-stream")
    assert flow.response is not None
    size = len(flow.response.raw_content or b"")
    redact(flow)
    assert len(flow.response.raw_content or b"") != size
    assert noted(flow)["response_bytes"] == size
    assert judged(flow)["response_bytes"] == size


@pytest.mark.parametrize("name", [name for name in ENCODERS if "plain" not in name])
@pytest.mark.parametrize("missing", [1, 20, 200])
def test_an_encoding_that_breaks_off_still_does(name: str, missing: int) -> None:
    encoding, encode = ENCODERS[name]
    assert encode is not None
    flow = sample("upstream-reset-mid-stream")
    assert flow.response is not None
    flow.response.raw_content = encode(b"".join(NORMAL))[:-missing]
    if encoding:
        flow.response.headers["content-encoding"] = encoding
    before = judged(flow)
    redact(flow)
    after = judged(flow)
    for told in (before, after):  # how far a broken encoding can be read differs by some bytes
        del told["events"], told["why"]
    assert after == before


def test_what_is_nested_without_end_takes_no_time_and_no_room() -> None:
    flow = sample()
    assert flow.response is not None
    deep = b'{"secret":' * 200_000
    flow.request.raw_content = deep
    flow.response.raw_content = b"event: message_delta\ndata: " + deep + b"\n\n"
    redact(flow)
    for message in (flow.request, flow.response):
        content = message.raw_content or b""
        assert b"secret" not in content
        assert content.count(b"{") == 200_000
