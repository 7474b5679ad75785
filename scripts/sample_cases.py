"""The catalogue of sample captures: for each way a request can end, what upstream does and what the client does.

Data for `scripts.make_samples`, which makes each case happen for real. A case is told apart from the others by its
name: that is the name of its files in `data/flows`, of the fake Console's scenario, and what its session id is made of.
"""

import asyncio
import gzip
import json
import uuid
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from usage_ledger.messages import Reason, State

from scripts.fake_console import (
    ITERATIONS,
    JSON,
    MESSAGE,
    NORMAL,
    RATE_LIMITED,
    SSE,
    START_USAGE,
    STOP,
    WITHOUT_USAGE,
    WORDS,
    Reply,
    Request,
    Scenario,
    answering,
    delta,
    event,
    start,
    streaming,
    text,
)

KEY = "sk-ant-api03-R2D2-sample-key-of-no-value-whatsoever-igAA"
ORGANIZATION = "00000000-aaaa-4bbb-8ccc-0123456789ab"


type Verdict = tuple[State, Reason | None]
"""The state and the reason of a replayed row. A case without a verdict leaves no row."""

COMPLETE: Verdict = State.COMPLETE, None
NOTHING_BILLED: Verdict = State.NONE, None
NO_ROW = None


def doubtful(reason: Reason) -> Verdict:
    return State.COMPLETE, reason


def partial(reason: Reason) -> Verdict:
    return State.PARTIAL, reason


def missing(reason: Reason) -> Verdict:
    return State.MISSING, reason


class Client(Enum):
    """What the client does once it has asked."""

    READS = auto()
    """Reads to the end, whatever that is."""
    LEAVES = auto()
    """Leaves once it has read what the case says (`until`); where that is nothing, once upstream has the request."""
    ABORTS_UPLOAD = auto()
    """Leaves in the middle of its own request."""
    STAYS = auto()
    """Waits for as much, and is still there when the proxy is stopped with SIGTERM."""


@dataclass(frozen=True)
class Setup:
    """How the proxy is started.

    `{folder}` in an option stands for the folder that has `FILES` and the samples made so far.
    """

    options: tuple[str, ...] = ()
    upstream_is_up: bool = True
    ledger_is_writable: bool = True


PLAIN = Setup()
UNREACHABLE = Setup(upstream_is_up=False)
KILLS = Setup(("-s", "{folder}/kill.py"))
MAPS = Setup(("--map-local", "|/v1/messages|{folder}/answer.json"))
SERVES = Setup(("--server-replay", "{folder}/normal-stream.mitm", "--set", "server_replay_ignore_content=true"))
BLOCKS = Setup(("--set", "usage_on_ledger_error=block"), ledger_is_writable=False)
KEEPS_LITTLE = Setup(("--set", "usage_capture_limit=1k"))
KEEPS_NOTHING = Setup(("--set", "usage_capture=never"))
STREAMS_ALL = Setup(("--set", "stream_large_bodies=1"))

FILES = {
    "kill.py": "def request(flow):\n    flow.kill()\n",
    "answer.json": json.dumps(MESSAGE),
}


@dataclass(frozen=True)
class Case:
    """One sample: what happened, and the verdict on it."""

    name: str
    what: str
    verdict: Verdict | None
    scenario: Scenario
    client: Client = Client.READS
    setup: Setup = PLAIN
    asks_for_stream: bool = True
    until: bytes = b""
    """What the client reads before it leaves, or stays."""

    @property
    def session(self) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"session:{self.name}"))

    @property
    def body_is_lost(self) -> bool:
        """Whether the capture was told not to hold the body, so that the live row knows more than a replay can."""
        return self.verdict == missing(Reason.BODY_NOT_CAPTURED)

    def headers(self) -> dict[str, str]:
        """Return the headers that the client sends."""
        return {
            "x-scenario": self.name,
            "x-api-key": KEY,
            "anthropic-version": "2023-06-01",
            "content-type": "application/json",
            "user-agent": "claude-cli/2.1.0 (external, cli)",
            "x-claude-code-session-id": self.session,
        }

    def body(self) -> bytes:
        """Return the request's body, as a client of the Messages API writes it."""
        asked = {
            "model": "claude-sonnet-4-6",
            "max_tokens": 1024,
            "stream": self.asks_for_stream,
            "system": [
                {"type": "text", "text": "You keep the books.", "cache_control": {"type": "ephemeral"}},
            ],
            "messages": [{"role": "user", "content": [{"type": "text", "text": "Do the books match?"}]}],
            "metadata": {"user_id": f"user_{'0' * 64}_account__session_{self.session}"},
        }
        return json.dumps(asked).encode()


# What upstream does.

LIMITS = {
    "anthropic-ratelimit-requests-limit": "4000",
    "anthropic-ratelimit-requests-remaining": "3999",
    "anthropic-ratelimit-requests-reset": "2026-11-25T00:00:01Z",
    "anthropic-ratelimit-input-tokens-limit": "2000000",
    "anthropic-ratelimit-input-tokens-remaining": "1998000",
    "anthropic-ratelimit-output-tokens-limit": "400000",
    "anthropic-ratelimit-output-tokens-remaining": "400000",
}
EXHAUSTED = {**LIMITS, "anthropic-ratelimit-requests-remaining": "0", "retry-after": "1", "x-should-retry": "false"}
ANSWER = json.dumps(MESSAGE).encode()
OVERLOADED = b'{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}'
ERROR = event("error", error={"type": "overloaded_error", "message": "Overloaded"})
NO_COUNTS = {"input_tokens": 0, "output_tokens": 0}
FALLBACK = {
    "output_tokens": 264,
    "iterations": [
        {"type": "message", "model": "claude-fable-5", "input_tokens": 408, "output_tokens": 0},
        {"type": "fallback_message", "model": "claude-opus-4-8", "input_tokens": 412, "output_tokens": 264},
    ],
}


def named(name: str, more: dict[str, str] | None = None) -> dict[str, str]:
    """Return the headers that the Console names its answers with; a case's request id is always the same."""
    request = uuid.uuid5(uuid.NAMESPACE_URL, f"request:{name}").hex[:24]
    return {"request-id": f"req_{request}", "anthropic-organization-id": ORGANIZATION, **(more or {})}


def refusal(category: str | None) -> dict[str, Any]:
    """Return what a `message_delta`, or a JSON message, says of a refusal."""
    return {"stop_details": {"type": "refusal", "category": category}}


async def forever() -> None:
    """Wait until cancelled. By a timer, which the loop holds; what waits for nothing else may be collected."""
    while True:
        await asyncio.sleep(3600)


def waiting(name: str, pieces: Iterable[bytes]) -> Scenario:
    """Return a scenario that streams these pieces and then nothing more, until the other side is gone."""

    async def scenario(request: Request, reply: Reply) -> None:
        await reply.start(200, {**SSE, **named(name)})
        for piece in pieces:
            await reply.send(piece)
        await forever()

    return scenario


async def never_answers(request: Request, reply: Reply) -> None:
    await forever()


async def resets(request: Request, reply: Reply) -> None:
    reply.reset()


async def breaks_an_error_off(request: Request, reply: Reply) -> None:
    await reply.start(500, {**JSON, **named("server-error-that-breaks-off")}, length=1000)
    await reply.send(b'{"type":"error"')
    reply.reset()


def broken_gzip(pieces: Iterable[bytes]) -> list[bytes]:
    """Return a compressed stream that tells these pieces and then is garbage."""
    compressor = zlib.compressobj(wbits=31)
    told = compressor.compress(b"".join(pieces)) + compressor.flush(zlib.Z_FULL_FLUSH)
    return [told, b"\xff" * 100]


def streamed(
    name: str,
    what: str,
    verdict: Verdict | None,
    pieces: Iterable[bytes],
    headers: dict[str, str] | None = None,
    ends: bool = True,
    setup: Setup = PLAIN,
) -> Case:
    """Return a case in which upstream streams these pieces, and breaks off after them unless it `ends`."""
    return Case(name, what, verdict, streaming(pieces, named(name, headers), ends), setup=setup)


def answered(
    name: str,
    what: str,
    verdict: Verdict | None,
    body: bytes,
    headers: dict[str, str] | None = None,
    status: int = 200,
    setup: Setup = PLAIN,
) -> Case:
    """Return a case in which upstream answers in one piece, in JSON unless `headers` say otherwise.

    Only a message in JSON is what the client asked for; all else comes in the place of a stream.
    """
    told = JSON if headers is None else headers
    is_message = status == 200 and told.get("content-type") == JSON["content-type"]
    return Case(
        name, what, verdict, answering(status, body, named(name, told)), setup=setup, asks_for_stream=not is_message
    )


def left_open(name: str, what: str, verdict: Verdict | None, pieces: list[bytes], client: Client) -> Case:
    """Return a case in which upstream streams these pieces and does not go on."""
    return Case(name, what, verdict, waiting(name, pieces), client, until=pieces[-1])


# What happens, in the order of the table of states.

CASES: tuple[Case, ...] = (
    streamed("normal-stream", "the final usage is seen", COMPLETE, NORMAL, LIMITS),
    streamed(
        "gzipped-stream",
        "the stream is compressed",
        COMPLETE,
        [gzip.compress(b"".join(NORMAL), mtime=0)],
        {"content-encoding": "gzip"},
    ),
    streamed("iterations", "a compaction and an advisor are billed beside the message", COMPLETE, ITERATIONS),
    streamed(
        "final-usage-then-upstream-resets",
        "upstream breaks off after the final usage",
        COMPLETE,
        NORMAL[:-1],
        ends=False,
    ),
    left_open(
        "final-usage-then-client-leaves",
        "the client leaves after the final usage",
        COMPLETE,
        NORMAL[:-1],
        Client.LEAVES,
    ),
    streamed(
        "final-usage-then-error-event",
        "an error event comes after the final usage",
        COMPLETE,
        [*NORMAL[:-1], ERROR],
    ),
    answered("json-answer", "an answer in JSON", COMPLETE, ANSWER, {**JSON, **LIMITS}),
    answered(
        "json-answer-passed-on-at-once",
        "an answer in JSON that the proxy does not hold back (stream_large_bodies)",
        COMPLETE,
        ANSWER,
        setup=STREAMS_ALL,
    ),
    answered("json-as-event-stream", "JSON under the content type of a stream", COMPLETE, ANSWER, SSE),
    streamed(
        "refusal-in-a-billed-category",
        "a refusal before any output, in a category that is billed",
        COMPLETE,
        [start(START_USAGE), delta({"output_tokens": 0}, "refusal", **refusal("bio")), STOP],
    ),
    streamed(
        "refusal-after-output-began",
        "a refusal in the midst of the answer",
        COMPLETE,
        [start(START_USAGE), *text("Well"), delta({"output_tokens": 3}, "refusal", **refusal("cyber")), STOP],
    ),
    streamed("stream-without-usage", "no event tells usage", missing(Reason.NO_USAGE_DATA), WITHOUT_USAGE),
    answered(
        "json-without-usage",
        "an answer in JSON tells no usage",
        missing(Reason.NO_USAGE_DATA),
        json.dumps({name: value for name, value in MESSAGE.items() if name != "usage"}).encode(),
    ),
    answered(
        "html-page",
        "upstream answers with a page, as a gateway may",
        missing(Reason.NO_USAGE_DATA),
        b"<html><body>Welcome</body></html>",
        {"content-type": "text/html"},
    ),
    answered("empty-stream", "the stream ends before it began", missing(Reason.NO_USAGE_DATA), b"", SSE),
    answered(
        "redirect", "upstream points elsewhere", missing(Reason.NO_USAGE_DATA), b"", {"location": "/elsewhere"}, 302
    ),
    streamed(
        "start-usage-only",
        "only the start tells usage, and the stream ends normally",
        partial(Reason.NO_USAGE_DATA),
        [start(START_USAGE), *text(WORDS), delta(None), STOP],
    ),
    streamed(
        "usage-without-an-end",
        "a delta tells usage, but neither a stop reason nor the message's end comes",
        partial(Reason.NO_USAGE_DATA),
        [*NORMAL[:-2], delta({"output_tokens": 42}, None)],
    ),
    left_open(
        "client-left-mid-stream",
        "the client leaves in the midst of the answer",
        partial(Reason.CLIENT_DISCONNECTED),
        NORMAL[:4],
        Client.LEAVES,
    ),
    left_open(
        "client-left-before-any-usage",
        "the client leaves a stream that has told no usage",
        missing(Reason.CLIENT_DISCONNECTED),
        WITHOUT_USAGE[:3],
        Client.LEAVES,
    ),
    Case(
        "client-left-before-the-headers",
        "the client does not wait for an answer",
        missing(Reason.CLIENT_DISCONNECTED),
        never_answers,
        Client.LEAVES,
    ),
    streamed(
        "upstream-reset-mid-stream",
        "upstream breaks off in the midst of the answer",
        partial(Reason.UPSTREAM_CLOSED),
        NORMAL[:4],
        ends=False,
    ),
    streamed(
        "upstream-reset-before-any-usage",
        "upstream breaks off a stream that has told no usage",
        missing(Reason.UPSTREAM_CLOSED),
        WITHOUT_USAGE[:3],
        ends=False,
    ),
    streamed(
        "error-event-mid-stream",
        "an error event ends the answer",
        partial(Reason.STREAM_ERROR),
        [*NORMAL[:4], ERROR],
    ),
    streamed("error-event-at-the-start", "an error event is all there is", missing(Reason.STREAM_ERROR), [ERROR]),
    Case("no-response", "upstream takes the request and breaks off", missing(Reason.NO_RESPONSE), resets),
    left_open(
        "proxy-stopped-mid-stream",
        "the proxy is stopped in the midst of the answer",
        partial(Reason.PROXY_STOPPED),
        NORMAL[:4],
        Client.STAYS,
    ),
    left_open(
        "proxy-stopped-before-any-usage",
        "the proxy is stopped while a stream has told no usage",
        missing(Reason.PROXY_STOPPED),
        WITHOUT_USAGE[:3],
        Client.STAYS,
    ),
    Case(
        "proxy-stopped-before-the-headers",
        "the proxy is stopped before any answer came",
        missing(Reason.PROXY_STOPPED),
        never_answers,
        Client.STAYS,
    ),
    streamed(
        "every-count-zero",
        "the final usage is seen, and every count is 0",
        doubtful(Reason.ZERO_USAGE),
        [start(NO_COUNTS), delta({**NO_COUNTS, "iterations": [{"type": "message", **NO_COUNTS}]}), STOP],
    ),
    streamed(
        "garbage-for-gzip",
        "the body is not what its content-encoding says, nor anything else",
        missing(Reason.UNREADABLE_BODY),
        [b"\x00\x01garbage that is no gzip\xff"],
        {"content-encoding": "gzip"},
    ),
    streamed(
        "gzip-that-breaks-mid-stream",
        "the body can be decoded up to the middle",
        partial(Reason.UNREADABLE_BODY),
        broken_gzip(NORMAL[:4]),
        {"content-encoding": "gzip"},
    ),
    streamed(
        "count-that-is-no-number",
        "the final count is a word",
        partial(Reason.MALFORMED_USAGE),
        [*NORMAL[:-2], delta({"output_tokens": "many"}), STOP],
    ),
    streamed(
        "count-below-zero",
        "the only count there is cannot be one",
        missing(Reason.MALFORMED_USAGE),
        [start({"input_tokens": -1}), *text(WORDS), delta(None), STOP],
    ),
    streamed(
        "two-messages",
        "one body has two messages, both with their final usage",
        doubtful(Reason.MULTIPLE_MESSAGES),
        [*NORMAL, start(START_USAGE, "msg_other"), *text(WORDS), delta({"output_tokens": 8}), STOP],
    ),
    streamed(
        "two-messages-one-unfinished",
        "one body has two messages, and the second tells only its start's usage",
        partial(Reason.MULTIPLE_MESSAGES),
        [*NORMAL, start(START_USAGE, "msg_other"), *text(WORDS), delta(None), STOP],
    ),
    streamed(
        "fallback",
        "another model answers after the first has declined without output",
        doubtful(Reason.DECLINED_ATTEMPT),
        [start({"input_tokens": 408, "output_tokens": 1}), *text(WORDS), delta(FALLBACK), STOP],
    ),
    streamed(
        "body-over-the-capture-limit",
        "the body is longer than the capture may hold (usage_capture_limit)",
        missing(Reason.BODY_NOT_CAPTURED),
        NORMAL,
        setup=KEEPS_LITTLE,
    ),
    streamed(
        "body-not-captured",
        "streamed bodies are not to be captured (usage_capture)",
        missing(Reason.BODY_NOT_CAPTURED),
        NORMAL,
        setup=KEEPS_NOTHING,
    ),
    answered("rate-limited", "HTTP 429", NOTHING_BILLED, RATE_LIMITED, {**JSON, **EXHAUSTED}, 429),
    answered("overloaded", "HTTP 529", NOTHING_BILLED, OVERLOADED, JSON, 529),
    Case("server-error-that-breaks-off", "HTTP 500, and not all of it", NOTHING_BILLED, breaks_an_error_off),
    streamed(
        "refusal-that-is-not-billed",
        "a refusal before any output",
        NOTHING_BILLED,
        [start(START_USAGE), delta({"output_tokens": 0}, "refusal", **refusal("cyber")), STOP],
    ),
    answered(
        "json-refusal-without-a-category",
        "a refusal in JSON that does not say what for",
        NOTHING_BILLED,
        json.dumps({**MESSAGE, "content": [], "stop_reason": "refusal", **refusal(None)}).encode(),
    ),
    Case("upstream-unreachable", "nobody listens upstream", NOTHING_BILLED, never_answers, setup=UNREACHABLE),
    Case("killed-before-it-left", "another script kills the request", NOTHING_BILLED, never_answers, setup=KILLS),
    Case("answered-by-map-local", "the proxy answers with a file of its own", NO_ROW, never_answers, setup=MAPS),
    Case("answered-by-server-replay", "the proxy answers from a capture", NO_ROW, never_answers, setup=SERVES),
    Case(
        "refused-by-the-proxy",
        "the ledger cannot be written, and nothing may pass unrecorded (usage_on_ledger_error)",
        NO_ROW,
        never_answers,
        setup=BLOCKS,
    ),
    Case(
        "upload-aborted-by-the-client",
        "the client leaves in the midst of its request, which never goes upstream",
        NO_ROW,
        never_answers,
        Client.ABORTS_UPLOAD,
    ),
)
