"""A redacted flow keeps its verdict, and what a reader needs."""

import contextlib
import json
from pathlib import Path
from uuid import UUID

import pytest
from usage_ledger.flows.redacting import RedactionError, redact

from scripts.fake_console import START_USAGE, STOP, delta, start
from scripts.make_samples import SAMPLES
from tests.flows.redacted import judged, sample, saved

NAMES = sorted(path.stem for path in SAMPLES.glob("*.mitm"))
CORPUS = Path(__file__).parents[3] / "shared" / "corpus"


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_keeps_its_verdict_its_events_and_their_sizes(name: str) -> None:
    flow = sample(name)
    before = judged(flow)
    redact(flow)
    assert judged(flow) == before


@pytest.mark.parametrize("name", NAMES)
def test_redacting_again_changes_nothing(name: str) -> None:
    flow = sample(name)
    redact(flow)
    once = flow.get_state()
    redact(flow)
    assert flow.get_state() == once


def test_what_a_reader_needs_is_kept() -> None:
    flow = sample()
    redact(flow)
    assert flow.response is not None
    content = flow.response.content or b""
    assert json.dumps(START_USAGE, separators=(",", ":")).encode() in content
    assert b'"model":"claude-sonnet-4-6"' in content
    assert flow.response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert flow.response.headers["request-id"] == sample().response.headers["request-id"]  # type: ignore[union-attr]
    assert flow.request.headers["x-api-key"].startswith("sk-ant-api03-xxxx")
    assert len(flow.request.headers["x-api-key"]) == len(sample().request.headers["x-api-key"])
    assert flow.request.path == "/v1/messages?beta=true"
    assert flow.request.timestamp_start == sample().request.timestamp_start
    assert flow.id == sample().id


@pytest.mark.parametrize(
    "name", ["Jane Doe, ticket 4711", "E23E5DA1F2AD46F699EEFB0EE6C90902", "e23e5da1-F2AD46f699eefb0ee6c90902", ""]
)
def test_an_id_that_is_no_uuid_becomes_one_under_which_its_row_is_found(name: str) -> None:
    flow = sample()
    flow.id = name
    row = judged(flow)["id"]
    redact(flow)
    assert UUID(flow.id).hex != name
    assert flow.id == str(UUID(flow.id))
    assert judged(flow)["id"] == row
    assert not name or name.encode() not in saved(flow)


def test_a_verdict_that_would_change_is_refused() -> None:
    """Ids that are not plain are filled, so that two messages become one."""
    flow = sample()
    assert flow.response is not None
    flow.response.raw_content = b"".join(
        [
            *(start(START_USAGE, "a b"), delta({"output_tokens": 1}), STOP),
            *(start(START_USAGE, "c d"), delta({"output_tokens": 1}), STOP),
        ]
    )
    with pytest.raises(RedactionError, match="review_reason multiple_messages became None"):
        redact(flow)


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*.sse")) or [None], ids=lambda path: path.stem if path else "none")
def test_recorded_streams_keep_their_verdict(path: Path | None) -> None:
    if path is None:
        pytest.skip("the folder of recorded streams is missing")
    flow = sample()
    assert flow.response is not None
    flow.response.raw_content = path.read_bytes()
    before = judged(flow)
    redact(flow)
    assert judged(flow) == before


@pytest.mark.parametrize(
    "body",
    [
        [start({**START_USAGE, "service_tier": {"name": "gold"}}), delta({"output_tokens": 3}), STOP],
        [start({**START_USAGE, "speed": ["fast"]}), delta({"output_tokens": 3}), STOP],
        [start(START_USAGE), b'data: {"us\\u0061ge": 1, "x": "error"}\n\n', delta({"output_tokens": 3}), STOP],
        [start(START_USAGE), b'event: message_delta\ndata: {"usage": "\xff\xfe"}\n\n', STOP],
        [start(START_USAGE), b'event: error\ndata: {"error": {"type": NaN}}\n\n'],
        [start(START_USAGE), b'event: error\ndata: {"error": {"type": "overl\xff"}}\n\n'],
        [start(START_USAGE).replace(b'"claude-sonnet-4-6"', b"NaN"), delta({"output_tokens": 3}), STOP],
    ],
)
def test_odd_answers_keep_their_verdict_or_are_refused(body: list[bytes]) -> None:
    flow = sample()
    assert flow.response is not None
    flow.response.raw_content = b"".join(body)
    before = judged(flow)
    with contextlib.suppress(RedactionError):
        redact(flow)
        after = judged(flow)
        for name in ("usage_state", "review_reason", "total_tokens"):
            assert after[name] == before[name]
