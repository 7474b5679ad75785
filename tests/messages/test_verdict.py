"""The table of states and reasons, row by row, and the rules that stand below it."""

import json
from datetime import date
from typing import Any

import pytest
from usage_ledger.messages import Ending, MessageReader, Reason, State, Verdict, body_not_captured

from scripts.fake_console import (
    ITERATIONS,
    MESSAGE,
    NORMAL,
    START_USAGE,
    STOP,
    WITHOUT_USAGE,
    delta,
    event,
    start,
    text,
)

FINISHED, CLIENT, UPSTREAM = Ending.FINISHED, Ending.CLIENT_DISCONNECTED, Ending.UPSTREAM_CLOSED
STOPPED, NO_RESPONSE, NOT_SENT = Ending.PROXY_STOPPED, Ending.NO_RESPONSE, Ending.NOT_SENT
COMPLETE, PARTIAL, MISSING, NONE = State.COMPLETE, State.PARTIAL, State.MISSING, State.NONE
BEGUN = start(START_USAGE)
DONE = delta({"output_tokens": 42})
ERROR = event("error", error={"type": "overloaded_error", "message": "Overloaded"})
ZERO = {"input_tokens": 0, "output_tokens": 0}
TEXT = text("hello there")
RATE_LIMITED = b'{"type":"error","error":{"type":"rate_limit_error","message":"Slow down."}}'


def judge(pieces: list[bytes], ending: Ending = FINISHED, status: int | None = 200, **more: Any) -> Verdict:
    reader = MessageReader(more.pop("encoding", ""))
    for piece in pieces:
        reader.feed(piece)
    reader.finish(clean=ending is FINISHED)
    return reader.verdict(ending, status, **more)


def answer(**fields: Any) -> list[bytes]:
    return [json.dumps({**MESSAGE, **fields}).encode()]


def refusal(category: str | None, *before: bytes, usage: object = None, **more: Any) -> list[bytes]:
    details = {"stop_details": {"type": "refusal", "category": category}}
    return [BEGUN, *before, delta(usage or {"output_tokens": 7}, "refusal", **{**details, **more}), STOP]


def data_only(kind: str, data: str) -> bytes:
    return f"event: {kind}\ndata: {data}\n\n".encode()


def raw_delta(usage: str) -> bytes:
    return data_only(
        "message_delta", '{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":' + usage + "}"
    )


# Each case: what came, how it ended, the HTTP status; the state, the reason, input and output tokens.
Case = tuple[list[bytes], Ending, int | None, State, Reason | None, int, int]
JUNK = b"\xff" * 50
R = Reason

TABLE: dict[str, Case] = {
    # Final usage seen.
    "a normal stream": (NORMAL, FINISHED, 200, COMPLETE, None, 12, 42),
    "delta with usage and stop reason, clean end": ([BEGUN, DONE], FINISHED, 200, COMPLETE, None, 12, 42),
    "then the client is gone": ([BEGUN, DONE], CLIENT, 200, COMPLETE, None, 12, 42),
    "then upstream is gone": ([BEGUN, DONE], UPSTREAM, 200, COMPLETE, None, 12, 42),
    "then the proxy stops": ([BEGUN, DONE], STOPPED, 200, COMPLETE, None, 12, 42),
    "message_stop after a delta with usage": (
        [BEGUN, delta({"output_tokens": 42}, None), STOP],
        FINISHED,
        200,
        COMPLETE,
        None,
        12,
        42,
    ),
    "an error after the final usage": ([*NORMAL[:-1], ERROR], FINISHED, 200, COMPLETE, None, 12, 42),
    "an error after the end": ([*NORMAL, ERROR], UPSTREAM, 200, COMPLETE, None, 12, 42),
    "output 0 is final too": ([BEGUN, delta({"output_tokens": 0}), STOP], FINISHED, 200, COMPLETE, None, 12, 0),
    "only the delta tells": (
        [start(), delta({"input_tokens": 5, "output_tokens": 6}), STOP],
        FINISHED,
        200,
        COMPLETE,
        None,
        5,
        6,
    ),
    "no message_start at all": ([delta({"input_tokens": 5, "output_tokens": 6})], FINISHED, 200, COMPLETE, None, 5, 6),
    "start 0, the truth in the delta": (
        [start(ZERO), delta({"input_tokens": 5, "output_tokens": 6}), STOP],
        FINISHED,
        200,
        COMPLETE,
        None,
        5,
        6,
    ),
    "usage in message_stop": (
        [start(), delta(None), event("message_stop", usage={"input_tokens": 5, "output_tokens": 6})],
        FINISHED,
        200,
        COMPLETE,
        None,
        5,
        6,
    ),
    "usage in an event of another kind": (
        [start(), event("ping", usage={"input_tokens": 5, "output_tokens": 6}), STOP],
        FINISHED,
        200,
        COMPLETE,
        None,
        5,
        6,
    ),
    "iterations are added up": (ITERATIONS, FINISHED, 200, COMPLETE, None, 61_300, 620),
    "the unterminated last event of a clean end": (
        [BEGUN, DONE.removesuffix(b"\n\n")],
        FINISHED,
        200,
        COMPLETE,
        None,
        12,
        42,
    ),
    "the final usage before garbage": ([*NORMAL, JUNK], FINISHED, 200, COMPLETE, None, 12, 42),
    # Not final.
    "a stream without usage": (WITHOUT_USAGE, FINISHED, 200, MISSING, R.NO_USAGE_DATA, 0, 0),
    "usage null": ([raw_delta("null"), STOP], FINISHED, 200, MISSING, R.NO_USAGE_DATA, 0, 0),
    "usage {}": ([start({}), delta({}), STOP], FINISHED, 200, MISSING, R.NO_USAGE_DATA, 0, 0),
    "usage without any count": (
        [start({"service_tier": "standard"}), delta(None), STOP],
        FINISHED,
        200,
        MISSING,
        R.NO_USAGE_DATA,
        0,
        0,
    ),
    "the start's usage only": ([BEGUN, *TEXT, delta(None), STOP], FINISHED, 200, PARTIAL, R.NO_USAGE_DATA, 12, 1),
    "the start's usage, then a null": (
        [BEGUN, delta({"output_tokens": None}), STOP],
        FINISHED,
        200,
        PARTIAL,
        R.NO_USAGE_DATA,
        12,
        1,
    ),
    "usage without stop reason or message_stop": (
        [BEGUN, delta({"output_tokens": 42}, None)],
        FINISHED,
        200,
        PARTIAL,
        R.NO_USAGE_DATA,
        12,
        42,
    ),
    "the client left after the start": ([BEGUN, *TEXT], CLIENT, 200, PARTIAL, R.CLIENT_DISCONNECTED, 12, 1),
    "the client left before any usage": ([start(), *TEXT], CLIENT, 200, MISSING, R.CLIENT_DISCONNECTED, 0, 0),
    "the client left at once": ([], CLIENT, 200, MISSING, R.CLIENT_DISCONNECTED, 0, 0),
    "the client left before the headers": ([], CLIENT, None, MISSING, R.CLIENT_DISCONNECTED, 0, 0),
    "upstream broke off after the start": ([BEGUN, *TEXT], UPSTREAM, 200, PARTIAL, R.UPSTREAM_CLOSED, 12, 1),
    "upstream broke off before any usage": ([start()], UPSTREAM, 200, MISSING, R.UPSTREAM_CLOSED, 0, 0),
    "the proxy stopped after the start": ([BEGUN], STOPPED, 200, PARTIAL, R.PROXY_STOPPED, 12, 1),
    "the proxy stopped before any usage": ([], STOPPED, 200, MISSING, R.PROXY_STOPPED, 0, 0),
    "the proxy stopped before the headers": ([], STOPPED, None, MISSING, R.PROXY_STOPPED, 0, 0),
    "an error after the start": ([BEGUN, ERROR], FINISHED, 200, PARTIAL, R.STREAM_ERROR, 12, 1),
    "an error before the start": ([ERROR], FINISHED, 200, MISSING, R.STREAM_ERROR, 0, 0),
    "an error event that is not JSON": (
        [BEGUN, data_only("error", "oh no")],
        FINISHED,
        200,
        PARTIAL,
        R.STREAM_ERROR,
        12,
        1,
    ),
    "no response": ([], NO_RESPONSE, None, MISSING, R.NO_RESPONSE, 0, 0),
    # The order of the reasons.
    "malformed, then an error": ([start({"input_tokens": -1}), ERROR], CLIENT, 200, MISSING, R.MALFORMED_USAGE, 0, 0),
    "an error, then the client leaves": ([BEGUN, ERROR], CLIENT, 200, PARTIAL, R.STREAM_ERROR, 12, 1),
    "an error, then upstream resets": ([BEGUN, ERROR], UPSTREAM, 200, PARTIAL, R.STREAM_ERROR, 12, 1),
    "an error, then the proxy stops": ([BEGUN, ERROR], STOPPED, 200, PARTIAL, R.STREAM_ERROR, 12, 1),
    # An event that was cut.
    "the unterminated last event of a cut": (
        [BEGUN, DONE.removesuffix(b"\n\n")],
        UPSTREAM,
        200,
        PARTIAL,
        R.UPSTREAM_CLOSED,
        12,
        1,
    ),
    "half an event of a cut is not malformed": ([BEGUN, DONE[:60]], UPSTREAM, 200, PARTIAL, R.UPSTREAM_CLOSED, 12, 1),
    "half an event at a clean end is malformed": ([BEGUN, DONE[:60]], FINISHED, 200, PARTIAL, R.MALFORMED_USAGE, 12, 1),
    # Merging.
    "null and 0 in a later delta erase nothing": (
        [
            BEGUN,
            delta({"input_tokens": None, "output_tokens": 42}),
            delta({"input_tokens": 0, "output_tokens": 0}),
            delta({"input_tokens": None, "output_tokens": None}),
            STOP,
        ],
        FINISHED,
        200,
        COMPLETE,
        None,
        12,
        42,
    ),
    "deltas are cumulative": (
        [BEGUN, delta({"output_tokens": 10}, None), delta({"input_tokens": 99, "output_tokens": 42}), STOP],
        FINISHED,
        200,
        COMPLETE,
        None,
        99,
        42,
    ),
    "a placeholder above the answer": (
        [start({"input_tokens": 3, "output_tokens": 35}), delta({"output_tokens": 4}), STOP],
        FINISHED,
        200,
        COMPLETE,
        None,
        3,
        4,
    ),
    "a null does not replace the placeholder, a 0 does": (
        [
            start({"input_tokens": 3, "output_tokens": 35}),
            delta({"output_tokens": None}, None),
            delta({"output_tokens": 0}),
            STOP,
        ],
        FINISHED,
        200,
        COMPLETE,
        None,
        3,
        0,
    ),
    "a repeated message_start changes nothing": (
        [BEGUN, BEGUN, *TEXT, start({"input_tokens": 999, "output_tokens": 999}), DONE, BEGUN, STOP],
        FINISHED,
        200,
        COMPLETE,
        None,
        12,
        42,
    ),
    "a second message id": (
        [*NORMAL, start({"input_tokens": 5, "output_tokens": 1}, "msg_2"), delta({"output_tokens": 6}), STOP],
        FINISHED,
        200,
        COMPLETE,
        R.MULTIPLE_MESSAGES,
        17,
        48,
    ),
    "a second message id that is not final": (
        [*NORMAL, start({"input_tokens": 5, "output_tokens": 1}, "msg_2"), STOP],
        FINISHED,
        200,
        PARTIAL,
        R.MULTIPLE_MESSAGES,
        17,
        43,
    ),
    # Zero.
    "every count 0": ([start(ZERO), delta({"output_tokens": 0}), STOP], FINISHED, 200, COMPLETE, R.ZERO_USAGE, 0, 0),
    "every count 0, iterations included": (
        [start(ZERO), delta({"output_tokens": 0, "iterations": [{"type": "message", **ZERO}]}), STOP],
        FINISHED,
        200,
        COMPLETE,
        R.ZERO_USAGE,
        0,
        0,
    ),
    "top level 0, a compaction in the iterations": (
        [
            start(ZERO),
            delta({"output_tokens": 0, "iterations": [{"type": "compaction", "input_tokens": 9, "output_tokens": 8}]}),
            STOP,
        ],
        FINISHED,
        200,
        COMPLETE,
        None,
        9,
        8,
    ),
    "JSON with every count 0": (answer(usage=ZERO), FINISHED, 200, COMPLETE, R.ZERO_USAGE, 0, 0),
    # JSON and other bodies.
    "JSON with usage": (answer(), FINISHED, 200, COMPLETE, None, 9, 7),
    "JSON with usage, the client gone after it": (answer(), CLIENT, 200, COMPLETE, None, 9, 7),
    "JSON with NaN somewhere": (answer(other=float("nan")), FINISHED, 200, COMPLETE, None, 9, 7),
    "JSON after a byte order mark": ([b"\xef\xbb\xbf", *answer()], FINISHED, 200, COMPLETE, None, 9, 7),
    "JSON without usage": (answer(usage=None), FINISHED, 200, MISSING, R.NO_USAGE_DATA, 0, 0),
    "JSON with usage {}": (answer(usage={}), FINISHED, 200, MISSING, R.NO_USAGE_DATA, 0, 0),
    "JSON of something else": ([b'{"hello": "world"}'], FINISHED, 200, MISSING, R.NO_USAGE_DATA, 0, 0),
    "JSON that upstream cut": ([answer()[0][:-30]], UPSTREAM, 200, MISSING, R.UPSTREAM_CLOSED, 0, 0),
    "JSON that the client cut": ([answer()[0][:-5]], CLIENT, 200, MISSING, R.CLIENT_DISCONNECTED, 0, 0),
    "JSON with usage that is broken": ([answer()[0][:-1]], FINISHED, 200, MISSING, R.MALFORMED_USAGE, 0, 0),
    "HTML": ([b"<html>usage</html>"], FINISHED, 200, MISSING, R.NO_USAGE_DATA, 0, 0),
    "an empty body": ([], FINISHED, 200, MISSING, R.NO_USAGE_DATA, 0, 0),
    "empty chunks": ([b"", b""], FINISHED, 204, MISSING, R.NO_USAGE_DATA, 0, 0),
    "a redirect": ([b"moved"], FINISHED, 307, MISSING, R.NO_USAGE_DATA, 0, 0),
    "a body of blanks": ([b"\r\n \r\n"], FINISHED, 200, MISSING, R.NO_USAGE_DATA, 0, 0),
    # Nothing is billed.
    "rate limited": ([RATE_LIMITED], FINISHED, 429, NONE, None, 0, 0),
    "an error whose body broke off": ([RATE_LIMITED[:20]], UPSTREAM, 529, NONE, None, 0, 0),
    "an error the client did not wait for": ([], CLIENT, 400, NONE, None, 0, 0),
    "an error with an error event": ([ERROR], FINISHED, 500, NONE, None, 0, 0),
    "an error with usage": (NORMAL, FINISHED, 500, NONE, None, 0, 0),
    "an error with malformed usage": ([start({"input_tokens": -1})], FINISHED, 400, NONE, None, 0, 0),
    "never sent": ([], NOT_SENT, None, NONE, None, 0, 0),
    # Refusals.
    "refused, no category": (refusal(None), FINISHED, 200, NONE, None, 0, 0),
    "refused, cyber": (refusal("cyber"), FINISHED, 200, NONE, None, 0, 0),
    "refused, general_harms": (refusal("general_harms"), FINISHED, 200, NONE, None, 0, 0),
    "refused, a category of the future": (refusal("something_new"), FINISHED, 200, NONE, None, 0, 0),
    "refused, no details": (refusal(None, stop_details=None), FINISHED, 200, NONE, None, 0, 0),
    "refused, the client gone after it": (refusal("cyber")[:-1], CLIENT, 200, NONE, None, 0, 0),
    "refused, an empty block before it": (
        refusal("cyber", event("content_block_start", index=0), event("content_block_stop", index=0)),
        FINISHED,
        200,
        NONE,
        None,
        0,
        0,
    ),
    "refused, bio": (refusal("bio"), FINISHED, 200, COMPLETE, None, 12, 7),
    "refused, frontier_llm": (refusal("frontier_llm"), FINISHED, 200, COMPLETE, None, 12, 7),
    "refused, reasoning_extraction": (refusal("reasoning_extraction"), FINISHED, 200, COMPLETE, None, 12, 7),
    "refused after output, cyber": (refusal("cyber", *TEXT), FINISHED, 200, COMPLETE, None, 12, 7),
    "refused after output, bio": (refusal("bio", *TEXT), FINISHED, 200, COMPLETE, None, 12, 7),
    "JSON refusal": (answer(stop_reason="refusal", content=[]), FINISHED, 200, NONE, None, 0, 0),
    "JSON refusal, empty content with a blank": (
        [answer(stop_reason="refusal", content=[])[0].replace(b"[]", b"[ ]")],
        FINISHED,
        200,
        NONE,
        None,
        0,
        0,
    ),
    "JSON refusal, empty content over two lines": (
        [answer(stop_reason="refusal", content=[])[0].replace(b"[]", b"[\n  ]")],
        FINISHED,
        200,
        NONE,
        None,
        0,
        0,
    ),
    "JSON refusal, content null": (answer(stop_reason="refusal", content=None), FINISHED, 200, NONE, None, 0, 0),
    "JSON refusal, bio": (
        answer(stop_reason="refusal", content=[], stop_details={"category": "bio"}),
        FINISHED,
        200,
        COMPLETE,
        None,
        9,
        7,
    ),
    "JSON refusal after output": (answer(stop_reason="refusal"), FINISHED, 200, COMPLETE, None, 9, 7),
    # Fallbacks.
    "a declined attempt without output": (
        [
            start({"input_tokens": 412, "output_tokens": 1}),
            *TEXT,
            delta(
                {
                    "output_tokens": 264,
                    "iterations": [
                        {"type": "message", "model": "claude-fable-5", "input_tokens": 400, "output_tokens": 0},
                        {"type": "fallback_message", "model": "claude-b", "input_tokens": 412, "output_tokens": 264},
                    ],
                }
            ),
            STOP,
        ],
        FINISHED,
        200,
        COMPLETE,
        R.DECLINED_ATTEMPT,
        412,
        264,
    ),
    "a fallback after output": (
        [
            start({"input_tokens": 412, "output_tokens": 1}),
            *TEXT,
            delta(
                {
                    "output_tokens": 264,
                    "iterations": [
                        {"type": "message", "input_tokens": 400, "output_tokens": 5},
                        {"type": "fallback_message", "model": "claude-b", "input_tokens": 412, "output_tokens": 264},
                    ],
                }
            ),
            STOP,
        ],
        FINISHED,
        200,
        COMPLETE,
        None,
        812,
        269,
    ),
    # Malformed.
    "a delta that is not JSON": (
        [BEGUN, data_only("message_delta", "{oh"), STOP],
        FINISHED,
        200,
        PARTIAL,
        R.MALFORMED_USAGE,
        12,
        1,
    ),
    "a delta that is a list": (
        [BEGUN, data_only("message_delta", "[]"), STOP],
        FINISHED,
        200,
        PARTIAL,
        R.MALFORMED_USAGE,
        12,
        1,
    ),
    "a start that is not JSON": ([data_only("message_start", "{oh")], FINISHED, 200, MISSING, R.MALFORMED_USAGE, 0, 0),
    "a malformed start with a good delta": (
        [start({"input_tokens": "12", "output_tokens": 1}), DONE, STOP],
        FINISHED,
        200,
        PARTIAL,
        R.MALFORMED_USAGE,
        0,
        42,
    ),
    "a start that is not JSON with a good delta": (
        [data_only("message_start", "{oh"), DONE, STOP],
        FINISHED,
        200,
        PARTIAL,
        R.MALFORMED_USAGE,
        0,
        42,
    ),
    "malformed JSON usage": (answer(usage={"input_tokens": -1}), FINISHED, 200, MISSING, R.MALFORMED_USAGE, 0, 0),
    "JSON usage that is partly malformed": (
        answer(usage={"input_tokens": -1, "output_tokens": 7}),
        FINISHED,
        200,
        PARTIAL,
        R.MALFORMED_USAGE,
        0,
        7,
    ),
    "malformed usage in message_stop": (
        [BEGUN, DONE, event("message_stop", usage={"output_tokens": -1})],
        FINISHED,
        200,
        PARTIAL,
        R.MALFORMED_USAGE,
        12,
        42,
    ),
    "a malformed iteration": (
        [BEGUN, delta({"output_tokens": 42, "iterations": [{"type": "message", "output_tokens": "x"}]}), STOP],
        FINISHED,
        200,
        PARTIAL,
        R.MALFORMED_USAGE,
        12,
        42,
    ),
}


@pytest.mark.parametrize("case", TABLE.values(), ids=TABLE)
def test_each_row_of_the_table_of_states(case: Case) -> None:
    pieces, ending, status, state, reason, input_tokens, output_tokens = case
    verdict = judge(pieces, ending, status)
    assert (verdict.state, verdict.reason) == (state, reason)
    assert (verdict.counts.input_tokens, verdict.counts.output_tokens) == (input_tokens, output_tokens)
    assert verdict.flagged is (reason is not None)
    flags = {name: verdict.metadata.get(name) for name in FLAGS}
    assert flags == {
        "_no_usage_data": True if state is MISSING else flags["_no_usage_data"] if state is PARTIAL else None,
        "_partial_usage": True if state is PARTIAL else None,
        "_requires_manual_review": True if reason else None,
        "_not_sent": True if ending is NOT_SENT else None,
    }


FLAGS = ("_no_usage_data", "_partial_usage", "_requires_manual_review", "_not_sent")


@pytest.mark.parametrize("case", TABLE.values(), ids=TABLE)
def test_each_row_of_the_table_of_states_byte_by_byte(case: Case) -> None:
    pieces, ending, status, *_ = case
    body = b"".join(pieces)
    assert judge([body[at : at + 1] for at in range(len(body))], ending, status) == judge([body], ending, status)


BAD = ['"12"', "-1", "true", "1.5", "1e30", "NaN", "Infinity", "1e999", "9" * 10_000, "[]", "{}", "[1]"]


@pytest.mark.parametrize("count", BAD, ids=lambda text: text[:12])
@pytest.mark.parametrize("field", ["input_tokens", "output_tokens", "cache_read_input_tokens"])
def test_a_count_that_is_not_a_whole_number_from_0_is_malformed(count: str, field: str) -> None:
    verdict = judge([BEGUN, *TEXT, raw_delta(f'{{"{field}":{count}}}'), STOP])
    assert (verdict.state, verdict.reason) == (PARTIAL, R.MALFORMED_USAGE)
    verdict = judge([start(), *TEXT, raw_delta(f'{{"{field}":{count}}}'), STOP])
    assert (verdict.state, verdict.reason) == (MISSING, R.MALFORMED_USAGE)
    assert verdict.counts.total_tokens == 0


@pytest.mark.parametrize("usage", ["[]", "[1]", '""', '"12"', "0", "12", "true", "false"])
def test_usage_that_is_no_object_is_malformed_wherever_it_stands(usage: str) -> None:
    """Only null and {} count as no usage."""
    started = data_only("message_start", '{"type":"message_start","message":{"id":"m","usage":' + usage + "}}")
    assert judge([started, DONE, STOP]).reason is R.MALFORMED_USAGE
    assert judge([BEGUN, raw_delta(usage), STOP]).reason is R.MALFORMED_USAGE
    assert judge([BEGUN, DONE, data_only("message_stop", '{"usage":' + usage + "}")]).reason is R.MALFORMED_USAGE
    assert judge([b'{"type":"message","usage":' + usage.encode() + b"}"]).reason is R.MALFORMED_USAGE


@pytest.mark.parametrize("count", ["500", "500.0", "5e2", "5.0e+2"])
def test_500_as_a_float_is_a_whole_number(count: str) -> None:
    verdict = judge([BEGUN, raw_delta(f'{{"output_tokens":{count}}}'), STOP])
    assert (verdict.state, verdict.counts.output_tokens) == (COMPLETE, 500)
    assert json.loads(verdict.usage_raw or "")["output_tokens"] == 500


def test_a_row_holds_what_upstream_said() -> None:
    usage = {**START_USAGE, "inference_geo": "us", "speed": "fast", "output_tokens_details": {"thinking_tokens": 3}}
    verdict = judge([start(usage), DONE, STOP])
    assert (verdict.message_id, verdict.model, verdict.stop_reason) == ("msg_fake", "claude-sonnet-4-6", "end_turn")
    assert (verdict.service_tier, verdict.inference_geo, verdict.speed) == ("standard", "us", "fast")
    counts = verdict.counts
    assert (counts.cache_creation_input_tokens, counts.cache_read_input_tokens) == (100, 2000)
    assert (counts.cache_creation_5m_input_tokens, counts.cache_creation_1h_input_tokens) == (100, 0)
    assert (counts.thinking_tokens, counts.total_tokens) == (3, 12 + 42 + 100 + 2000)
    assert json.loads(verdict.usage_raw or "") == {**usage, "output_tokens": 42}
    assert verdict.metadata == {}


def test_nothing_said_is_nothing_stored() -> None:
    verdict = judge([])
    assert (verdict.message_id, verdict.model, verdict.stop_reason, verdict.usage_raw) == (None, None, None, None)


@pytest.mark.parametrize(
    ("usage", "unknown"),
    [
        ({"cache_creation_input_tokens": 300}, True),
        ({"cache_creation_input_tokens": 100}, None),
        ({"cache_creation_input_tokens": 0}, None),
    ],
)
def test_a_cache_creation_total_above_its_split_is_marked(usage: dict[str, int], unknown: bool | None) -> None:
    verdict = judge([BEGUN, delta({**usage, "output_tokens": 42}), STOP])
    assert verdict.counts.cache_creation_input_tokens == max(100, usage["cache_creation_input_tokens"])
    assert verdict.counts.cache_creation_5m_input_tokens == 100
    assert verdict.metadata.get("_cache_split_unknown") is unknown


def test_an_unbilled_refusal_keeps_what_was_said_but_counts_nothing() -> None:
    verdict = judge(refusal("cyber"))
    assert verdict.counts.total_tokens == 0
    assert json.loads(verdict.usage_raw or "")["input_tokens"] == 12
    assert verdict.metadata["refusal_category"] == "cyber"
    assert verdict.stop_reason == "refusal"


@pytest.mark.parametrize("day", [None, date(2025, 1, 1), date(2026, 9, 1), date(2030, 1, 1)])
def test_the_refusal_rule_holds_on_every_day_known(day: date | None) -> None:
    assert judge(refusal("cyber"), day=day).state is NONE
    assert judge(refusal("bio"), day=day).state is COMPLETE


def test_a_refused_answer_still_bills_what_came_beside_it() -> None:
    iterations = [
        {"type": "compaction", "input_tokens": 60_000, "output_tokens": 500},
        {"type": "message", "input_tokens": 12, "output_tokens": 7},
    ]
    verdict = judge(refusal("cyber", usage={"output_tokens": 7, "iterations": iterations}))
    assert (verdict.state, verdict.reason, verdict.counts.input_tokens) == (COMPLETE, None, 60_000)
    assert [iteration.billed for iteration in verdict.iterations] == [True, False]


def test_a_declined_attempt_is_listed_but_not_in_the_totals() -> None:
    verdict = judge(TABLE["a declined attempt without output"][0])
    assert [iteration.billed for iteration in verdict.iterations] == [None, True]
    assert [iteration.model for iteration in verdict.iterations] == ["claude-fable-5", "claude-b"]
    assert verdict.counts.total_tokens == 676


def test_iterations_keep_their_own_models_and_counts() -> None:
    iterations = judge(ITERATIONS).iterations
    assert [(entry.type, entry.model, entry.billed) for entry in iterations] == [
        ("compaction", None, True),
        ("message", None, True),
        ("advisor_message", "claude-opus-4-7", True),
    ]
    assert iterations[0].counts.input_tokens == 60_000


def test_several_messages_are_named_by_the_first_and_keep_every_usage() -> None:
    verdict = judge([*NORMAL, start({"input_tokens": 5, "output_tokens": 1}, "msg_2"), DONE, STOP])
    assert verdict.message_id == "msg_fake"
    assert [usage["input_tokens"] for usage in json.loads(verdict.usage_raw or "")] == [12, 5]


def test_very_many_messages_are_flagged_and_never_complete_if_some_were_not_kept() -> None:
    many = [
        piece
        for n in range(40)
        for piece in (start({"input_tokens": 1}, f"msg_{n}"), delta({"output_tokens": 1}), STOP)
    ]
    verdict = judge(many)
    assert verdict.reason is R.MULTIPLE_MESSAGES
    assert verdict.state is PARTIAL


def test_the_kind_of_an_in_stream_error_is_kept() -> None:
    assert judge([BEGUN, ERROR]).metadata["stream_error"] == "overloaded_error"


def test_a_flow_whose_body_was_not_captured_is_missing() -> None:
    verdict = body_not_captured()
    assert (verdict.state, verdict.reason, verdict.counts.total_tokens) == (MISSING, R.BODY_NOT_CAPTURED, 0)
    assert verdict.metadata == {"_no_usage_data": True, "_requires_manual_review": True}


def test_names_from_upstream_are_made_safe() -> None:
    verdict = judge([start(START_USAGE, message_id="a\x1b[31m\n" + "x" * 500, model="m\0"), DONE, STOP])
    assert verdict.model == "m\ufffd"
    assert verdict.message_id is not None
    assert verdict.message_id.isprintable()
    assert len(verdict.message_id) <= 128


def test_in_what_several_messages_of_one_body_differ_is_told() -> None:
    """Whose tokens are priced how is not told by a row, so no price fits."""
    other = [piece.replace(b"msg_fake", b"msg_other") for piece in NORMAL]
    assert "messages_differ" not in judge([*NORMAL, *other]).metadata
    another = [piece.replace(b"claude-sonnet-4-6", b"claude-haiku-4-5") for piece in other]
    verdict = judge([*NORMAL, *another])
    assert (verdict.reason, verdict.metadata["messages_differ"]) == (Reason.MULTIPLE_MESSAGES, ["model"])
    fast = [piece.replace(b'"service_tier":"standard"', b'"service_tier":"batch","speed":"fast"') for piece in other]
    assert judge([*NORMAL, *fast]).metadata["messages_differ"] == ["service_tier", "speed"]


@pytest.mark.parametrize(
    ("told", "expected"),
    [('"fast"', "fast"), ("null", None), ('""', None), ("5", "5"), ('["fast"]', '["fast"]'), ("false", "false")],
)
def test_a_speed_that_is_no_text_is_not_taken_for_none(told: str, expected: str | None) -> None:
    odd = [piece.replace(b'"service_tier":"standard"', f'"speed":{told}'.encode()) for piece in NORMAL]
    assert odd != NORMAL
    assert judge(odd).speed == expected
