"""What is said of a captured flow is what a replay of it would write, with the reason in words."""

import gzip
import json
from pathlib import Path
from typing import Any

import brotli
import pytest
from mitmproxy import http
from mitmproxy.test import tflow
from usage_ledger.flows.files import saved_flows
from usage_ledger.flows.inspecting import Inspection, fields_of, ids_of, inspect
from usage_ledger.flows.metered import metered
from usage_ledger.flows.telling import ledger_lines, lines_of

from scripts.fake_console import NORMAL, START_USAGE, STOP, delta, start
from scripts.make_samples import SAMPLES

NAMES = sorted(path.stem for path in SAMPLES.glob("*.mitm"))


def sample(name: str) -> http.HTTPFlow:
    (flow,) = saved_flows(SAMPLES / f"{name}.mitm")
    assert isinstance(flow, http.HTTPFlow)
    return flow


def expected(name: str) -> list[dict[str, Any]]:
    return json.loads((SAMPLES / f"{name}.json").read_text())


def told(name: str, **more: Any) -> Inspection:
    return inspect(sample(name), **more)


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_is_judged_as_a_replay_of_it(name: str) -> None:
    fields = fields_of(told(name))
    if not expected(name):
        assert fields["row"] is None
        return
    (row,) = expected(name)
    for column, value in fields["row"].items():
        known = row[column]
        assert value == (json.loads(known) if column in ("usage_raw", "metadata") and known else known), column
    assert len(fields["iterations"]) == len(row.get("iterations", []))
    json.dumps(fields)


WORDS = {
    "normal-stream": "the final usage came",
    "client-left-mid-stream": "`message_delta` never came: the client left after",
    "client-left-before-the-headers": "no usage came: the client left after",
    "proxy-stopped-mid-stream": "`message_delta` never came: the proxy was stopped after",
    "upstream-reset-mid-stream": "`message_delta` never came: upstream broke off after",
    "no-response": "the request was sent, and no response had come after",
    "rate-limited": "HTTP 429: failed requests are not billed",
    "upstream-unreachable": "the request never went upstream, so nothing is billed",
    "garbage-for-gzip": "no event came: the body could not be decoded to its end",
    "body-not-captured": "the capture does not hold the body",
    "answered-by-server-replay": "the proxy gave this answer itself, which leaves no row",
    "upload-aborted-by-the-client": "the client aborted its upload",
    "json-without-usage": "the JSON answer carries no usage",
    "count-that-is-no-number": "usage that is not valid came in the event at byte",
}


@pytest.mark.parametrize("name", WORDS)
def test_why_a_row_is_what_it_is(name: str) -> None:
    assert told(name).why.startswith(WORDS[name])


def test_only_events_that_say_something_are_kept_unless_all_are_wanted() -> None:
    few, every = told("normal-stream"), told("normal-stream", all_events=True)
    assert [event.kind for event in few.events if event.has_usage] == ["message_start", "message_delta"]
    assert len(every.events) == every.seen.events > len(few.events)


def test_the_size_and_the_encoding_of_a_body_are_told() -> None:
    found = told("gzipped-stream")
    assert found.decoded_bytes == len(b"".join(NORMAL))
    assert found.body_bytes is not None
    assert found.body_bytes < found.decoded_bytes
    assert (found.content_encoding, found.is_encoded) == ("gzip", True)
    assert f"{found.body_bytes:,} bytes of gzip, {found.decoded_bytes:,} decoded" in "\n".join(lines_of(found))


def response_of(body: bytes, **headers: str) -> http.HTTPFlow:
    flow = sample("normal-stream")
    assert flow.response is not None
    flow.response.raw_content = body
    for name, value in headers.items():
        flow.response.headers[name.replace("_", "-")] = value
    return flow


def test_a_body_that_is_not_what_its_header_says_is_told_as_what_it_is() -> None:
    plain = inspect(response_of(b"".join(NORMAL), content_encoding="gzip"))
    assert "plain, though it says gzip" in "\n".join(lines_of(plain))
    packed = inspect(response_of(gzip.compress(b"".join(NORMAL))))
    assert "of an encoding that is not told" in "\n".join(lines_of(packed))
    assert plain.entry is not None
    assert packed.entry is not None
    assert plain.entry.record.usage_state == packed.entry.record.usage_state == "complete"


def test_what_the_merge_did_is_told() -> None:
    lines = "\n".join(lines_of(inspect(response_of(b"".join([start(START_USAGE), delta({"output_tokens": 7}), STOP])))))
    assert "output_tokens 1 -> 7" in lines
    nulls = "\n".join(lines_of(inspect(response_of(start(START_USAGE) + b'data: {"usage": null}\n\n'))))
    assert "usage null" in nulls
    again = "\n".join(lines_of(inspect(response_of(start(START_USAGE) * 2))))
    assert "usage, nothing new" in again


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", [40, 200])
def test_every_sample_is_told_in_lines_that_fit(name: str, width: int) -> None:
    lines = list(lines_of(told(name, all_events=True), width))
    assert lines[0].startswith("  verdict  ")
    assert all("\n" not in line for line in lines)
    words_that_do_not_break = 70
    assert max(map(len, lines)) <= max(width, words_that_do_not_break) + 50


def test_hostile_text_stays_on_its_line() -> None:
    flow = response_of(b'event: \x1b[31m\ndata: {"usage": {"input_tokens\\n\\u001b[0m": "\\u001b]0;x\\u0007"}}\n\n')
    flow.request.method = "PO\x1bST"
    assert flow.response is not None
    flow.response.headers["content-type"] = "text/event-stream\x1b[2J\udcff"
    for line in lines_of(inspect(flow, all_events=True)):
        assert line.isprintable()


def test_a_flow_is_known_by_its_ids() -> None:
    flow = sample("normal-stream")
    (row,) = expected("normal-stream")
    assert {flow.id, row["id"], row["request_id"]} <= ids_of(flow)


def test_what_is_metered_is_what_the_filter_takes_or_the_proxy_has_noted() -> None:
    flow = sample("normal-stream")
    assert metered(flow) is flow
    flow.request.path = "/elsewhere"
    assert metered(flow) is flow
    flow.metadata.clear()
    assert metered(flow) is None
    flow.request.path = "/v1/messages?beta=true"
    assert metered(flow) is flow
    flow.request.path = "/v1/messages/count_tokens"
    assert metered(flow) is None
    assert metered(tflow.ttcpflow()) is None


def test_a_broken_brotli_body_of_a_har_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    """Reading a HAR drops the encoding's name, also where mitmproxy could not decode the body."""
    compressor = brotli.Compressor()
    body = compressor.process(b"".join(NORMAL[:3])) + compressor.flush()
    flow = sample("upstream-reset-mid-stream")
    assert flow.response is not None
    flow.response.raw_content = body
    flow.client_conn.peername = ("127.0.0.1", 0)
    flow.server_conn.timestamp_start = None
    found = inspect(flow)
    assert found.entry is not None
    assert (found.entry.record.usage_state, found.entry.record.input_tokens) == ("partial", 12)


def test_of_very_many_iterations_the_first_are_told() -> None:
    found = told("iterations")
    assert found.entry is not None
    found.entry.iterations *= 5_000
    count = len(found.entry.iterations)
    lines = list(lines_of(found))
    assert len(lines) < 100
    assert f"           and {count - 50:,} more" in lines


def test_where_a_flow_was_saved_in_flight_its_row_may_know_more() -> None:
    flow = sample("normal-stream")
    flow.response = None
    flow.metadata.clear()
    lines = list(ledger_lines(inspect(flow), "differs", None, None, {"usage_state": ("complete", "missing")}))
    assert lines[0] == "  ledger   differs, for the flow was saved in flight"
