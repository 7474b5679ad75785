"""One message of a response: what its events said about who answered, how it stopped and what it used.

Room: messages. Imports its neighbours in this room. Promises that each event is merged by the rules of `usage.merge`
and that `final` is true only once upstream has told the final usage.
"""

from typing import Any

from usage_ledger.messages.text import text_or_none
from usage_ledger.messages.usage import bounded, merge, says_output, sift


class Message:
    """The state of one message id within a body."""

    __slots__ = (
        "_begun",
        "_placeholder",
        "_start_told",
        "_stopped",
        "category",
        "final",
        "id",
        "malformed",
        "model",
        "output_known",
        "stop_reason",
        "usage",
    )

    def __init__(self) -> None:
        self.id: str | None = None
        self.model: str | None = None
        self.stop_reason: str | None = None
        self.category: str | None = None
        self.usage: dict[str, Any] | None = None
        self.output_known = False
        self.final = False
        self.malformed = False
        self._begun = False  # a start has come
        self._start_told = False  # a start's usage has been taken
        self._stopped = False
        self._placeholder = False  # the output known so far is the start's

    def start(self, message: object, usage: object) -> None:
        """Take a `message_start`. A repeated start changes nothing of what is known.

        Its `output_tokens` is a placeholder (1 to 35 seen). Where other events came first, what they said stands.
        """
        self._begun = True
        if isinstance(message, dict):
            self._name(message)
        if self._start_told:
            return
        told, malformed = sift(usage)
        self.malformed = self.malformed or malformed
        if told is None:
            return
        self._start_told = True
        if self.output_known:
            told.pop("output_tokens", None)
        self._placeholder = told.get("output_tokens") is not None
        merge(told, self.usage or {})
        self.usage = bounded(told)

    def repeats(self, message: object) -> bool:
        """Whether a further `message_start` speaks of this message again.

        Ids tell; where one is missing, it does as long as this message has not run from a start to its end.
        """
        other = text_or_none(message.get("id"), 128) if isinstance(message, dict) else None
        if other is not None and self.id is not None:
            return other == self.id
        return not (self._begun and (self.final or self._stopped))

    def delta(self, delta: object, usage: object) -> None:
        """Take a `message_delta`: the `delta` with the stop reason, and the cumulative `usage`."""
        if isinstance(delta, dict):
            self._stop(delta)
        self._merge(usage)
        if self.output_known and self.stop_reason is not None:
            self.final = True

    def stop(self, usage: object) -> None:
        """Take a `message_stop`, after which a told output is final."""
        self._merge(usage)
        self._stopped = True
        if self.output_known:
            self.final = True

    def other(self, usage: object) -> None:
        """Take usage from any other event."""
        self._merge(usage)

    def whole(self, message: dict[str, Any]) -> None:
        """Take a JSON answer, which is a message with everything in it."""
        self._name(message)
        self._stop(message)
        self._merge(message.get("usage"))
        self.final = self.output_known

    def _name(self, message: dict[str, Any]) -> None:
        self.id = self.id or text_or_none(message.get("id"), 128)
        self.model = self.model or text_or_none(message.get("model"), 128)

    def _stop(self, delta: dict[str, Any]) -> None:
        self.stop_reason = text_or_none(delta.get("stop_reason"), 64) or self.stop_reason
        details = delta.get("stop_details")
        if isinstance(details, dict):
            self.category = text_or_none(details.get("category"), 64) or self.category

    def _merge(self, usage: object) -> None:
        news, malformed = sift(usage)
        self.malformed = self.malformed or malformed
        if news is None:
            return
        known = self.usage if self.usage is not None else {}
        if self._placeholder and news.get("output_tokens") is not None:
            # Any count replaces the start's placeholder, 0 too.
            known.pop("output_tokens", None)
            self._placeholder = False
        self.output_known = self.output_known or says_output(news)
        merge(known, news)
        self.usage = bounded(known)
