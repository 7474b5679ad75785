"""Event sequences of any kind, held against the contract's rules as a model of their own, written down plainly.

The model keeps lists of what was said and looks at them at the end; the reader must say the same, however the bytes are
cut and whatever ends the stream.
"""

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from usage_ledger.messages import Ending, MessageReader, Reason, State

from scripts.fake_console import STOP, delta, event, start, text

COUNT = st.one_of(st.none(), st.integers(0, 50), st.just(7.0))
BAD_COUNT = st.sampled_from([-1, 1.5, "12", True, 10**20])
FIELDS = ("input_tokens", "output_tokens", "cache_read_input_tokens")
USAGE = st.one_of(st.none(), st.just({}), st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS, COUNT)))
ENDING_REASONS = {
    Ending.CLIENT_DISCONNECTED: Reason.CLIENT_DISCONNECTED,
    Ending.UPSTREAM_CLOSED: Reason.UPSTREAM_CLOSED,
    Ending.PROXY_STOPPED: Reason.PROXY_STOPPED,
    Ending.FINISHED: Reason.NO_USAGE_DATA,
}


class Streams(RuleBasedStateMachine):
    @initialize(cuts=st.lists(st.integers(1, 60), min_size=1, max_size=5))
    def begin(self, cuts: list[int]) -> None:
        self.cuts = cuts
        self.reader = MessageReader()
        self.fed = 0
        self.stream = b""
        self.started = False
        self.start_usage: dict[str, Any] = {}
        self.later: list[dict[str, Any]] = []
        self.stop_reason: str | None = None
        self.final = self.malformed = self.error = self.stopped = False

    def send(self, data: bytes) -> None:
        """Feed what has come so far, in pieces of odd sizes, keeping the last bytes for the next time."""
        self.stream += data
        while self.fed + (size := self.cuts[self.fed % len(self.cuts)]) <= len(self.stream) - 40:
            self.reader.feed(self.stream[self.fed : self.fed + size])
            self.fed += size

    def told_output(self) -> bool:
        return any(usage.get("output_tokens") is not None for usage in self.later)

    @rule(usage=USAGE)
    @precondition(lambda self: not self.stopped)
    def message_start(self, usage: dict[str, Any] | None) -> None:
        self.send(start(usage))
        if usage and not self.start_usage:  # a start that tells nothing may be followed by one that does
            self.start_usage = usage

    @rule(usage=USAGE, stop_reason=st.sampled_from([None, "end_turn", "max_tokens"]))
    def message_delta(self, usage: dict[str, Any] | None, stop_reason: str | None) -> None:
        self.send(delta(usage, stop_reason))
        self.later.append(usage or {})
        self.stop_reason = stop_reason or self.stop_reason
        self.final = self.final or (self.told_output() and self.stop_reason is not None)

    @rule(field=st.sampled_from(FIELDS), count=BAD_COUNT)
    def malformed_delta(self, field: str, count: object) -> None:
        self.send(delta({field: count}, None))
        self.malformed = True

    @rule(usage=USAGE)
    def ping(self, usage: dict[str, Any] | None) -> None:
        self.send(event("ping", usage=usage))
        self.later.append(usage or {})

    @rule(words=st.sampled_from(["hello", '"usage" message_delta error', "Grüße 😀"]))
    def content(self, words: str) -> None:
        self.send(b"".join(text(words)))

    @rule(noise=st.sampled_from([b": comment\n\n", b"\n\n", b"event: odd\ndata: {}\n\n", b"id: 7\n\n", b"data\n\n"]))
    def noise(self, noise: bytes) -> None:
        self.send(noise)

    @rule()
    def error_event(self) -> None:
        self.send(event("error", error={"type": "overloaded_error"}))
        self.error = True

    @rule()
    def message_stop(self) -> None:
        self.send(STOP)
        self.stopped = True
        self.final = self.final or self.told_output()

    @invariant()
    def a_verdict_can_be_asked_at_any_moment(self) -> None:
        if hasattr(self, "reader"):
            verdict = self.reader.verdict(Ending.PROXY_STOPPED, 200)
            assert verdict.state in (State.COMPLETE, State.PARTIAL, State.MISSING)

    def count(self, field: str) -> int:
        """What upstream said: the last positive value, where the start's output is only a placeholder."""
        said = [usage.get(field) for usage in self.later]
        if field != "output_tokens" or not any(value is not None for value in said):
            said = [self.start_usage.get(field), *said]
        positive = [int(value) for value in said if value]
        return positive[-1] if positive else 0

    def expected(self, ending: Ending) -> tuple[State, Reason | None]:
        told = [value for usage in (self.start_usage, *self.later) for value in usage.values() if value is not None]
        counts = [self.count(field) for field in FIELDS]
        if self.final and not self.malformed:
            return State.COMPLETE, None if any(counts) else Reason.ZERO_USAGE
        state = State.PARTIAL if told else State.MISSING
        if self.malformed:
            return state, Reason.MALFORMED_USAGE
        return state, Reason.STREAM_ERROR if self.error else ENDING_REASONS[ending]

    def teardown(self) -> None:
        if not hasattr(self, "reader"):
            return
        self.reader.feed(self.stream[self.fed :])
        self.reader.finish(clean=True)
        for ending in ENDING_REASONS:
            verdict = self.reader.verdict(ending, 200)
            assert (verdict.state, verdict.reason) == self.expected(ending)
            counts = verdict.counts
            told = [counts.input_tokens, counts.output_tokens, counts.cache_read_input_tokens]
            assert told == [self.count(field) for field in FIELDS]
            assert counts.total_tokens == sum(told)


Streams.TestCase.settings = settings(max_examples=300, stateful_step_count=15, deadline=None)
TestStreams = Streams.TestCase
