"""One message of a response: what its events said about who answered, how it stopped and what it used.

Room: messages. Imports its neighbours in this room. Promises that each event is merged by the rules of `usage.merge`
and that `final` is true only once upstream has told the final usage.
"""

from typing import Any

from usage_ledger.messages.text import text_or_none
from usage_ledger.messages.usage import merge, says_output, sift


class Message:
    """The state of one message id within a body."""

    __slots__ = ("category", "final", "id", "malformed", "model", "output_known", "stop_reason", "usage")

    def __init__(self) -> None:
        self.id: str | None = None
        self.model: str | None = None
        self.stop_reason: str | None = None
        self.category: str | None = None
        self.usage: dict[str, Any] | None = None
        self.output_known = False
        self.final = False
        self.malformed = False

    def start(self, message: object, usage: object) -> None:
        """Take a `message_start`: its `message`, and a `usage` beside it as some relays send it.

        A repeated start changes nothing of what is known.
        """
        if isinstance(message, dict):
            self._name(message)
            usage = usage if _says_none(message.get("usage")) else message["usage"]
        if self.usage is None:
            self._merge(usage, placeholder=True)

    def repeats(self, message: object) -> bool:
        """Whether a further `message_start` speaks of this message again (same id, or none)."""
        other = text_or_none(message.get("id"), 128) if isinstance(message, dict) else None
        return other is None or self.id is None or other == self.id

    def delta(self, delta: object, usage: object) -> None:
        """Take a `message_delta`: the `delta` with the stop reason, and the cumulative `usage`."""
        if isinstance(delta, dict):
            self._stop(delta)
            usage = delta.get("usage") if _says_none(usage) else usage
        self._merge(usage)
        if self.output_known and self.stop_reason is not None:
            self.final = True

    def stop(self, usage: object) -> None:
        """Take a `message_stop`, after which a told output is final."""
        self._merge(usage)
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

    def _merge(self, usage: object, placeholder: bool = False) -> None:
        news, malformed = sift(usage)
        self.malformed = self.malformed or malformed
        if news is None:
            return
        if self.usage is None:
            self.usage = {}
        if not placeholder and says_output(news):
            # The start's `output_tokens` is a placeholder (1 to 35 seen) that any later count replaces, 0 too.
            if not self.output_known and news.get("output_tokens") is not None:
                self.usage.pop("output_tokens", None)
            self.output_known = True
        merge(self.usage, news)


def _says_none(usage: object) -> bool:
    """Whether a usage field says nothing: null and `{}`. Anything else is usage, or malformed."""
    return usage is None or usage == {}
