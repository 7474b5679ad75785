"""Taps: what mitmproxy calls with each chunk of a streamed body.

Room: proxy. Imports the messages room. Promises of `ResponseTap`: its `pass_on` returns the very bytes it was given,
whatever happens inside; it takes no lock, does no I/O, and keeps nothing that grows, unless bodies are to be captured,
and then never more than `capture_limit` bytes.
"""

import time
from collections.abc import Callable, Iterable

from usage_ledger.messages import MessageReader

type Transform = Callable[[bytes], bytes | Iterable[bytes]]
"""A stream callable of another addon, which gets the bytes after us."""


class ResponseTap:
    """Its `pass_on` sits on `flow.response.stream`.

    `first_token_at` is a Unix time in seconds, None until the first token came.
    """

    __slots__ = ("_awaiting_token", "_inner", "_kept", "_left", "first_token_at", "reader", "size")

    def __init__(self, reader: MessageReader, capture_limit: int, inner: Transform | None = None) -> None:
        self.reader = reader
        self.size = 0
        self.first_token_at: float | None = None
        self._awaiting_token = True
        self._kept: list[bytes] | None = [] if capture_limit else None
        self._left = capture_limit
        self._inner = inner

    def pass_on(self, data: bytes) -> bytes | Iterable[bytes]:
        """Read a chunk and return it. (A bound method is called in half the time that `__call__` takes.)"""
        try:
            self.size += len(data)
            if self._kept is not None:
                self._keep(data)  # first, so that a body that cannot be read is there to be looked at
            self.reader.feed(data)
            if self._awaiting_token and self.reader.output_begun:
                self._awaiting_token = False
                self.first_token_at = time.time()
        except Exception:  # noqa: BLE001 - no exception of ours may ever reach the client's stream
            self._stop_reading()
        return data if self._inner is None else self._inner(data)

    def _keep(self, data: bytes) -> None:
        self._left -= len(data)
        if self._left < 0:
            self._kept = None
        elif self._kept is not None:
            self._kept.append(data)

    def _stop_reading(self) -> None:
        """A rule of ours failed on this body: let it pass unread, and let its row say so."""
        self.reader = MessageReader()
        self.reader.give_up()

    @property
    def over_limit(self) -> bool:
        """Whether the body was to be kept and grew past the limit."""
        return self._left < 0

    @property
    def is_kept(self) -> bool:
        """Whether all of the body is there, which may be nothing."""
        return self._kept is not None

    def kept(self) -> bytes:
        """Return the captured body, once."""
        kept, self._kept = self._kept or [], []
        return b"".join(kept)


class RequestTap:
    """Its `pass_on` sits on `flow.request.stream` where requests are streamed, and keeps up to `limit` bytes."""

    __slots__ = ("_inner", "_kept", "_left")

    def __init__(self, limit: int, inner: Transform | None = None) -> None:
        self._kept: list[bytes] = []
        self._left = limit
        self._inner = inner

    def pass_on(self, data: bytes) -> bytes | Iterable[bytes]:
        """Keep a chunk and return it."""
        self._left -= len(data)
        if self._left < 0:
            self._kept.clear()
        else:
            self._kept.append(data)
        return data if self._inner is None else self._inner(data)

    @property
    def is_kept(self) -> bool:
        """Whether all that passed is there."""
        return self._left >= 0

    def body(self) -> bytes:
        """Return what was kept, which is nothing where the body was too long."""
        return b"".join(self._kept)

    def clear(self) -> None:
        """Keep nothing any more; the flow this sits on may live for long."""
        self._kept.clear()
