"""The reason of a row in words: what did not come, and why it did not."""

import json

import pytest
from usage_ledger.messages import Ending, MessageReader, Reason, Verdict, body_not_captured
from usage_ledger.messages.tracing import Tracer
from usage_ledger.messages.words import Seen, in_words, span

from scripts.fake_console import MESSAGE, NORMAL, START_USAGE, STOP, delta, event, start, text

ERROR = event("error", error={"type": "overloaded_error", "message": "Overloaded"})


def told(body: bytes, ending: Ending = Ending.FINISHED, status: int | None = 200, traced: bool = True) -> str:
    seen = Seen()
    tracer = Tracer("", lambda traced, _data: seen.add(traced))
    tracer.feed(body)
    tracer.finish(clean=ending is Ending.FINISHED)
    return in_words(tracer.verdict(ending, status), status, 1.234, seen if traced else None)


CASES = {
    "the client left": (
        (b"".join(NORMAL[:5]), Ending.CLIENT_DISCONNECTED),
        "`message_delta` never came: the client left after 1.2 s, 5 events",
    ),
    "no usage": (
        (b"".join([start(), *text("a"), delta(None), STOP]),),
        "`message_delta` carried no usage: the response ended normally after 1.2 s, 6 events",
    ),
    "nothing at all": ((b"",), "no event came: the response ended normally after 1.2 s"),
    "no end": (
        (b"".join([start(START_USAGE), delta({"output_tokens": 3}, None)]),),
        "`message_delta` came without a stop_reason, and `message_stop` never: "
        "the response ended normally after 1.2 s, 2 events",
    ),
    "JSON without usage": (
        (json.dumps({**MESSAGE, "usage": None}).encode(),),
        "the JSON answer carries no usage: the response ended normally after 1.2 s",
    ),
    "an error": (
        (b"".join([start(START_USAGE), ERROR]),),
        "`message_delta` never came: upstream sent an error event (overloaded_error), 2 events",
    ),
    "a count that is none": (
        (b"".join([start(START_USAGE), delta({"output_tokens": "many"}), STOP]),),
        f'usage that is not valid came in the event at byte {len(start(START_USAGE)):,} (output_tokens: "many")',
    ),
    "a count that is none, in JSON": (
        (json.dumps({**MESSAGE, "usage": {"input_tokens": -1234}}).encode(),),
        "usage that is not valid came in the JSON answer (input_tokens: -1,234)",
    ),
    "two messages, the second of which lacks its end": (
        (b"".join([*NORMAL, start(START_USAGE, "msg_2"), event("ping")]), Ending.CLIENT_DISCONNECTED),
        f"of message 2 `message_delta` never came: the client left after 1.2 s, {len(NORMAL) + 2} events",
    ),
    "two messages, the first of which lacks its usage": (
        (b"".join([start(START_USAGE), delta(None), STOP, start(START_USAGE, "msg_2"), *NORMAL[1:]]),),
        "of message 1 `message_delta` carried no usage: several messages came in one body, whose usage is added up, "
        f"{len(NORMAL) + 3} events",
    ),
    "a page": ((b"<html>\n\n<body>\n\n</html>",), "no event came: the response ended normally after 1.2 s"),
    "HTTP 429": ((b"", Ending.FINISHED, 429), "HTTP 429: failed requests are not billed"),
    "never sent": ((b"", Ending.NOT_SENT, None), "the request never went upstream, so nothing is billed"),
    "no response": ((b"", Ending.NO_RESPONSE, None), "the request was sent, and no response had come after 1.2 s"),
    "complete": ((b"".join(NORMAL),), "the final usage came"),
    "a refusal": (
        (b"".join([start(START_USAGE), delta({"output_tokens": 0}, "refusal"), STOP]),),
        "upstream refused before any output, in a category that is not billed",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_reason_is_told_in_words(name: str) -> None:
    arguments, words = CASES[name]
    assert told(*arguments) == words


def test_where_nobody_knows_how_it_ended_nothing_is_said_of_it() -> None:
    reader = MessageReader()
    reader.finish(clean=True)
    verdict = reader.verdict(Ending.FINISHED, 200)
    assert in_words(verdict, 200, 1.0, is_end_told=False) == (
        "no usage came: no more is there, and a HAR does not tell why"
    )


def test_without_a_trace_less_is_told() -> None:
    body = b"".join(NORMAL[:5])
    assert told(body, Ending.CLIENT_DISCONNECTED, traced=False) == (
        "only a part of the usage came: the client left after 1.2 s"
    )
    assert told(b"", Ending.UPSTREAM_CLOSED, traced=False) == "no usage came: upstream broke off after 1.2 s"


def test_a_body_that_was_not_captured_is_told() -> None:
    assert in_words(body_not_captured(), 200, None) == "the capture does not hold the body"


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_has_words(reason: Reason) -> None:
    words = in_words(Verdict(state="missing", reason=reason), 200, 3.0)  # type: ignore[arg-type]
    assert len(words) > 15
    assert reason.value not in words


def test_spans_are_told_in_the_unit_that_fits() -> None:
    assert [span(0), span(0.0456), span(1.25), span(4000)] == ["0 ms", "46 ms", "1.2 s", "4,000.0 s"]
