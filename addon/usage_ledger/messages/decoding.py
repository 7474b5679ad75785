"""Content decoding, piece by piece: gzip, deflate, br and zstd, by what the bytes are and not by what the header says.

Room: messages. Imports the standard library, `brotli` and `zstandard`. Promises that each piece it hands on is small,
that a decompression bomb stops early (`DecodingError`), and that everything before a broken place has been handed on.

Seen in the wild and therefore handled: gzip without a `content-encoding`, plain text under one, several gzip members,
a missing gzip trailer, raw deflate streams (RFC 9110 section 8.4.1.2 notes that some servers send them).
"""

import codecs
import re
import zlib
from collections.abc import Callable, Iterator
from typing import Protocol

import brotli
import zstandard

PIECE = 64 * 1024
"""The most bytes decoded in one step (zstd: a few blocks of 128 KiB)."""

BOMB_FREE = 1024 * 1024
BOMB_RATIO = 200
"""A body may decode to `BOMB_FREE` bytes plus `BOMB_RATIO` times its size. Claude's streams shrink 4 to 20 times."""

_HEAD = 16  # bytes that tell what a body is: so many that all read as text are no compressed data
_MAX_STAGES = 4
_STEP = 16 * 1024  # bytes decoded at once, and so the most that a broken place makes decode byte by byte
_ZSTD_WINDOW = 8 * 1024 * 1024  # the most RFC 9659 allows for HTTP
_ZSTD_SLICE = 128  # a zstd block of 4 bytes can stand for 128 KiB, so feed few of them at a time
_SKIPPABLE_ZSTD = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18")
_SHORT_TEXT = re.compile(r"\s*(?:event|data:|id:|retry|:|\{|\[|<|$)")


class DecodingError(ValueError):
    """The body is not what it claims to be, breaks off in a way that cannot be read on, or is a bomb."""


class Decoder(Protocol):
    @property
    def complete(self) -> bool:
        """Whether the encoding's own end has come."""
        ...

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the decoded pieces of `data`; raise `DecodingError` where it cannot be read on."""
        ...


def decoder_for(content_encoding: str, head: bytes) -> Decoder | None:
    """Return the decoder for a body that begins with `head`; None where the body is plain.

    `head` should satisfy `enough_to_tell` unless the body is shorter. The encodings of a `content-encoding` list were
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
        return _Careful(lambda: _Inflate(zlib.MAX_WBITS + 16))
    if _is_zstd(head):
        return _Careful(_Zstd)
    if not name or _looks_like_text(head):
        return None
    candidates: list[Callable[[], Decoder]] = []
    if len(head) >= 2 and head[0] & 0x0F == 8 and (head[0] * 256 + head[1]) % 31 == 0:  # RFC 1950 section 2.2
        candidates.append(lambda: _Inflate(zlib.MAX_WBITS))
    rest: list[Callable[[], Decoder]] = [lambda: _Inflate(-zlib.MAX_WBITS), _Brotli]
    return _FirstThatReads(candidates + (rest[::-1] if name == "br" else rest))


def _looks_like_text(head: bytes) -> bool:
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(head[:_HEAD])  # may end inside a character
    except UnicodeDecodeError:
        return False
    printable = all(character.isprintable() or character in "\t\r\n" for character in text)
    return printable and (len(head) >= _HEAD or _SHORT_TEXT.match(text) is not None)


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


class _Careful:
    """Hands on everything before a broken place, in whatever pieces the body comes.

    A decoder that fails takes the output of the failed call with it, so a second one follows one piece behind: where
    the first fails, the second goes over the failed piece byte by byte. What it can read that way to its end was
    broken by bytes behind that end only, and those say nothing.
    """

    __slots__ = ("_ahead", "_behind", "_ended")

    def __init__(self, make: Callable[[], Decoder]) -> None:
        self._ahead = make()
        self._behind = make()
        self._ended = False

    @property
    def complete(self) -> bool:
        return self._ended or self._ahead.complete

    def feed(self, data: bytes) -> Iterator[bytes]:
        for place in range(0, len(data), _STEP):
            yield from self._feed_step(data[place : place + _STEP])

    def _feed_step(self, data: bytes) -> Iterator[bytes]:
        if self._ended:
            return
        given = 0
        try:
            for piece in self._ahead.feed(data):
                given += len(piece)
                yield piece
        except DecodingError:
            for place in range(len(data)):
                for piece in self._behind.feed(data[place : place + 1]):
                    yield piece[given:]
                    given -= min(given, len(piece))
            self._ended = True
            return
        for _ in self._behind.feed(data):
            pass


class _FirstThatReads:
    """Encodings that cannot be told by their first bytes: tries one after the other until one yields something."""

    __slots__ = ("_candidates", "_decoder", "_seen")

    def __init__(self, candidates: list[Callable[[], Decoder]]) -> None:
        self._candidates = candidates
        self._decoder: Decoder = _Careful(candidates.pop(0))
        self._seen: bytes | None = b""  # what was fed, while another candidate may have to read it again

    @property
    def complete(self) -> bool:
        return self._decoder.complete

    def feed(self, data: bytes) -> Iterator[bytes]:
        if self._seen is not None:
            self._seen += data
            if len(self._seen) > PIECE:
                self._seen = None
        try:
            for piece in self._decoder.feed(data):
                if piece:
                    self._seen = None
                    yield piece
        except DecodingError:
            if not self._candidates or self._seen is None:
                raise
            again, self._seen = self._seen, b""
            self._decoder = _Careful(self._candidates.pop(0))
            yield from self.feed(again)


class _Inflate:
    """gzip (several members), zlib and raw deflate."""

    __slots__ = ("_budget", "_engine", "_wbits")

    def __init__(self, wbits: int) -> None:
        self._wbits = wbits
        self._engine = zlib.decompressobj(wbits)
        self._budget = _Budget()

    @property
    def complete(self) -> bool:
        return self._engine.eof

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
    __slots__ = ("_budget", "_engine", "complete")

    def __init__(self) -> None:
        self._engine = brotli.Decompressor()
        self._budget = _Budget()
        self.complete = False  # kept here, because a decoder that has failed refuses to be asked

    def feed(self, data: bytes) -> Iterator[bytes]:
        self._budget.earn(len(data))
        engine = self._engine
        while not self.complete:
            try:
                piece = engine.process(data, output_buffer_limit=PIECE)
            except brotli.error as error:
                raise DecodingError(str(error)) from error
            self.complete = engine.is_finished()
            if piece:
                self._budget.spend(len(piece))
                yield piece
            elif engine.can_accept_more_data():  # no output and room for input: all is out
                return
            data = b""


class _Zstd:
    """zstd, several frames too."""

    __slots__ = ("_behind", "_budget", "_engine")

    def __init__(self) -> None:
        self._engine = self._new_engine()
        self._behind: bytes | None = b""  # what came behind a frame, until it tells whether it is another one
        self._budget = _Budget()

    @staticmethod
    def _new_engine() -> "zstandard.ZstdDecompressionObj":
        return zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj()

    @property
    def complete(self) -> bool:
        return self._engine.eof

    def feed(self, data: bytes) -> Iterator[bytes]:
        self._budget.earn(len(data))
        while data:
            if self._engine.eof:
                if self._behind is None:
                    return
                self._behind += data
                if len(self._behind) < len(zstandard.FRAME_HEADER):
                    return
                data, self._behind = self._behind, b""
                if not _is_zstd(data):
                    self._behind = None  # nothing that can be read follows any more
                    return
                self._engine = self._new_engine()
            part, data = data[:_ZSTD_SLICE], data[_ZSTD_SLICE:]
            try:
                piece = self._engine.decompress(part)
            except zstandard.ZstdError as error:
                raise DecodingError(str(error)) from error
            data = self._engine.unused_data + data
            if piece:
                self._budget.spend(len(piece))
                yield piece


def _is_zstd(head: bytes) -> bool:
    return head.startswith(zstandard.FRAME_HEADER) or _SKIPPABLE_ZSTD.match(head) is not None


class _Chain:
    """Several encodings, one inside the other; each stage looks at its own first bytes."""

    __slots__ = ("_budget", "_stages")

    def __init__(self, names: list[str]) -> None:
        self._stages = [_Sniffing(name) for name in names]
        self._budget = _Budget()

    @property
    def complete(self) -> bool:
        return all(stage.complete for stage in self._stages)

    def feed(self, data: bytes) -> Iterator[bytes]:
        self._budget.earn(len(data))
        for piece in self._through(0, data):
            self._budget.spend(len(piece))  # each stage has its own budget, and those would multiply
            yield piece

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

    @property
    def complete(self) -> bool:
        return self._decoder is None or self._decoder.complete

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
