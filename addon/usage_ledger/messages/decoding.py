"""Content decoding, piece by piece: gzip, deflate, br and zstd, by what the bytes are and not by what the header says.

Room: messages. Imports the standard library, `brotli` and `zstandard`. Promises that each piece it hands on is small,
that a decompression bomb stops early (`DecodingError`), and that everything before a broken place has been handed on.

Seen in the wild and therefore handled: gzip without a `content-encoding`, plain text under one, several gzip members,
a missing gzip trailer, raw deflate streams (RFC 9110 section 8.4.1.2 notes that some servers send them).
"""

import re
import zlib
from collections.abc import Iterator
from typing import Protocol

import brotli
import zstandard

PIECE = 64 * 1024
"""The most bytes decoded in one step (zstd: a few blocks of 128 KiB)."""

BOMB_FREE = 1024 * 1024
BOMB_RATIO = 200
"""A body may decode to `BOMB_FREE` bytes plus `BOMB_RATIO` times its size. Claude's streams shrink 4 to 20 times."""

_HEAD = 6  # bytes needed to tell what a body is
_MAX_STAGES = 4
_ZSTD_WINDOW = 8 * 1024 * 1024  # the most RFC 9659 allows for HTTP
_ZSTD_SLICE = 128  # a zstd block of 4 bytes can stand for 128 KiB, so feed few of them at a time
_TEXT = re.compile(rb'(?:\xef\xbb\xbf)?\s*(?:event|data:|id:|retry|: |:\w|\{\s*["}]|[<\[])')
_PRINTABLE = frozenset(b"\t\n\r" + bytes(range(0x20, 0x7F)) + b"\xef\xbb\xbf")


class DecodingError(ValueError):
    """The body is not what it claims to be, breaks off in a way that cannot be read on, or is a bomb."""


class Decoder(Protocol):
    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the decoded pieces of `data`; raise `DecodingError` where it cannot be read on."""
        ...


def decoder_for(content_encoding: str, head: bytes) -> Decoder | None:
    """Return the decoder for a body that begins with `head`; None where the body is plain.

    `head` should have at least 6 bytes unless the body is shorter. The encodings of a `content-encoding` list were
    applied in order, so they are undone from the last to the first.
    """
    names = [name for part in content_encoding.lower().split(",") if (name := part.strip()) not in ("", "identity")]
    if len(names) > 1:
        return _Chain([*reversed(names)][:_MAX_STAGES])
    return _single(names[0] if names else "", head)


def enough_to_tell(head: bytes) -> bool:
    return len(head) >= _HEAD


def _single(name: str, head: bytes) -> Decoder | None:
    if head.startswith(b"\x1f\x8b\x08"):
        return _Inflate(zlib.MAX_WBITS + 16)
    if head.startswith(zstandard.FRAME_HEADER):
        return _Zstd()
    if not name or _looks_like_text(head):
        return None
    if len(head) >= 2 and head[0] & 0x0F == 8 and (head[0] * 256 + head[1]) % 31 == 0 and name != "br":
        return _Inflate(zlib.MAX_WBITS)
    if name == "deflate":
        return _Inflate(-zlib.MAX_WBITS)
    return _Brotli()  # the one encoding whose bytes cannot be told by their start


def _looks_like_text(head: bytes) -> bool:
    return _TEXT.match(head) is not None and _PRINTABLE.issuperset(head)


class _Budget:
    """Counts what went in and came out, and stops bombs."""

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = BOMB_FREE

    def earn(self, size: int) -> None:
        self._left += size * BOMB_RATIO

    def spend(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise DecodingError("the body grows more than a real answer would when it is decompressed")


class _Inflate:
    """gzip (several members), zlib and raw deflate."""

    __slots__ = ("_budget", "_engine", "_wbits")

    def __init__(self, wbits: int) -> None:
        self._wbits = wbits
        self._engine = zlib.decompressobj(wbits)
        self._budget = _Budget()

    def feed(self, data: bytes) -> Iterator[bytes]:
        self._budget.earn(len(data))
        while data or not self._engine.eof:
            if self._engine.eof:
                # More after the end: another gzip member, or padding that carries nothing.
                if self._wbits <= zlib.MAX_WBITS or not data.startswith(b"\x1f"):
                    return
                self._engine = zlib.decompressobj(self._wbits)
            try:
                piece = self._engine.decompress(data, PIECE)
            except zlib.error as error:
                raise DecodingError(str(error)) from error
            data = self._engine.unused_data if self._engine.eof else self._engine.unconsumed_tail
            if piece:
                self._budget.spend(len(piece))
                yield piece
            if not data and len(piece) < PIECE:  # a full piece may have more behind it, without any input left
                return


class _Brotli:
    __slots__ = ("_budget", "_engine")

    def __init__(self) -> None:
        self._engine = brotli.Decompressor()
        self._budget = _Budget()

    def feed(self, data: bytes) -> Iterator[bytes]:
        self._budget.earn(len(data))
        engine = self._engine
        while not engine.is_finished():
            try:
                piece = engine.process(data, output_buffer_limit=PIECE)
            except brotli.error as error:
                raise DecodingError(str(error)) from error
            if piece:
                self._budget.spend(len(piece))
                yield piece
            if engine.can_accept_more_data():
                return
            data = b""


class _Zstd:
    __slots__ = ("_budget", "_engine")

    def __init__(self) -> None:
        self._engine = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj(read_across_frames=True)
        self._budget = _Budget()

    def feed(self, data: bytes) -> Iterator[bytes]:
        self._budget.earn(len(data))
        for start in range(0, len(data), _ZSTD_SLICE):
            try:
                piece = self._engine.decompress(data[start : start + _ZSTD_SLICE])
            except zstandard.ZstdError as error:
                raise DecodingError(str(error)) from error
            if piece:
                self._budget.spend(len(piece))
                yield piece


class _Chain:
    """Several encodings, one inside the other; each stage looks at its own first bytes."""

    __slots__ = ("_stages",)

    def __init__(self, names: list[str]) -> None:
        self._stages = [_Sniffing(name) for name in names]

    def feed(self, data: bytes) -> Iterator[bytes]:
        return self._through(0, data)

    def _through(self, stage: int, data: bytes) -> Iterator[bytes]:
        if stage == len(self._stages):
            yield data
            return
        for piece in self._stages[stage].feed(data):
            yield from self._through(stage + 1, piece)


class _Sniffing:
    """One stage of a chain, which waits for its first bytes before it decides what they are."""

    __slots__ = ("_decoder", "_head", "_name")

    def __init__(self, name: str) -> None:
        self._name = name
        self._head: bytes | None = b""
        self._decoder: Decoder | None = None

    def feed(self, data: bytes) -> Iterator[bytes]:
        if self._head is not None:
            data = self._head + data
            if not enough_to_tell(data):
                self._head = data
                return
            self._head = None
            self._decoder = _single(self._name, data)
        if self._decoder is None:
            yield data
        else:
            yield from self._decoder.feed(data)
