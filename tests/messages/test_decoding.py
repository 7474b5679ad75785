"""Bodies are decoded by what their bytes are, in small pieces, and a bomb or a break stops them early."""

import gzip
import json
import random
import zlib
from collections.abc import Callable, Iterable, Iterator

import brotli
import pytest
import zstandard
from usage_ledger.messages import Ending, MessageReader, Reason, State, Verdict
from usage_ledger.messages.decoding import BOMB_FREE, BOMB_RATIO, DecodingError, decoder_for

from scripts.fake_console import NORMAL

STREAM = b"".join(NORMAL)
UTF8_STREAM = STREAM.replace(b"token.", "Grüße, 模型 😀".encode())
JSON_BODY = {"id": "m", "type": "message", "usage": {"input_tokens": 9, "output_tokens": 7}, "stop_reason": "end_turn"}
BOM = b"\xef\xbb\xbf"


def raw_deflate(data: bytes) -> bytes:
    engine = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return engine.compress(data) + engine.flush()


def two_members(data: bytes) -> bytes:
    return gzip.compress(data[:500]) + gzip.compress(b"") + gzip.compress(data[500:])


def two_frames(data: bytes) -> bytes:
    return zstandard.compress(data[:500]) + zstandard.compress(data[500:])


def skippable_frame_first(data: bytes) -> bytes:
    return b"\x50\x2a\x4d\x18\x04\x00\x00\x00skip" + zstandard.compress(data)


def flushed(data: bytes) -> bytes:
    """Return gzip as a server sends a live stream: flushed after each event."""
    engine = zlib.compressobj(wbits=zlib.MAX_WBITS + 16)
    parts = [
        engine.compress(event + b"\n\n") + engine.flush(zlib.Z_SYNC_FLUSH)
        for event in data.removesuffix(b"\n\n").split(b"\n\n")
    ]
    return b"".join(parts) + engine.flush()


def decode(label: str, chunks: Iterable[bytes]) -> tuple[bytes, bool]:
    """Return what was decoded, and whether it could be read to the end. The first chunk needs 6 bytes."""
    decoder, decoded = None, b""
    for number, chunk in enumerate(chunks):
        if number == 0:
            decoder = decoder_for(label, chunk)
        if decoder is None:
            decoded += chunk
            continue
        try:
            for piece in decoder.feed(chunk):
                decoded += piece
        except DecodingError:
            return decoded, False
    return decoded, True


def cut(data: bytes, size: int, first: int = 6) -> Iterator[bytes]:
    yield data[:first]
    for at in range(first, len(data), size):
        yield data[at : at + size]


def judge(label: str, chunks: Iterable[bytes], ending: Ending = Ending.FINISHED) -> Verdict:
    reader = MessageReader(label)
    for chunk in chunks:
        reader.feed(chunk)
    reader.finish(clean=ending is Ending.FINISHED)
    return reader.verdict(ending, 200)


def splits(data: bytes) -> Iterator[list[bytes]]:
    yield [data]
    yield [data[at : at + 1] for at in range(len(data))]
    generator = random.Random(7)
    for _ in range(5):
        marks = sorted(generator.randrange(len(data) + 1) for _ in range(4))
        yield [data[a:b] for a, b in zip([0, *marks], [*marks, len(data)], strict=True)]


BODIES: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "gzip in capitals": ("GZIP", gzip.compress),
    "x-gzip": ("x-gzip", gzip.compress),
    "gzip flushed after each event": ("gzip", flushed),
    "gzip unlabelled": ("", gzip.compress),
    "gzip labelled identity": ("identity", gzip.compress),
    "gzip of several members": ("gzip", two_members),
    "gzip without its trailer": ("gzip", lambda data: gzip.compress(data)[:-8]),
    "gzip with half a trailer": ("gzip", lambda data: gzip.compress(data)[:-3]),
    "gzip with padding after it": ("gzip", lambda data: gzip.compress(data) + bytes(50)),
    "deflate as zlib": ("deflate", zlib.compress),
    "deflate raw": ("deflate", raw_deflate),
    "br": ("br", brotli.compress),
    "zstd": ("zstd", zstandard.compress),
    "zstd unlabelled": ("", zstandard.compress),
    "zstd of several frames": ("zstd", two_frames),
    "zstd with a skippable frame first": ("zstd", skippable_frame_first),
    "gzip, br": ("gzip, br", lambda data: brotli.compress(gzip.compress(data))),
    "br, gzip": ("br,gzip", lambda data: gzip.compress(brotli.compress(data))),
    "zstd, deflate": ("zstd ,  deflate", lambda data: zlib.compress(zstandard.compress(data))),
    "gzip, identity": ("gzip, identity", gzip.compress),
    "gzip, gzip": ("gzip, gzip", lambda data: gzip.compress(gzip.compress(data))),
    "plain": ("", bytes),
    "plain under an unknown label": ("rot13", bytes),
}


@pytest.mark.parametrize("stream", [STREAM, UTF8_STREAM], ids=["ASCII", "UTF-8"])
@pytest.mark.parametrize("name", BODIES)
def test_a_body_is_decoded_in_any_pieces(name: str, stream: bytes) -> None:
    label, encode = BODIES[name]
    for chunks in splits(encode(stream)):
        verdict = judge(label, chunks)
        assert (verdict.state, verdict.reason, verdict.counts.output_tokens) == (State.COMPLETE, None, 42)


CODECS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "zlib": zlib.compress,
    "br": brotli.compress,
    "zstd": zstandard.compress,
}
LABELS = ["gzip", "deflate", "br", "zstd"]


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("codec", CODECS)
def test_a_body_that_is_not_what_its_label_says_is_read_as_what_it_is(codec: str, label: str) -> None:
    for chunks in splits(CODECS[codec](STREAM)):
        assert judge(label, chunks).state is State.COMPLETE


PLAIN = {
    "events": STREAM,
    "events with text that is not ASCII": UTF8_STREAM,
    "events after a byte order mark": BOM + STREAM,
    "events after blank lines": b"\n\n" + STREAM,
    "events after CRLF blank lines": b"\r\n\r\n\r\n\r\n" + STREAM,
    "events after a comment": b": keep-alive\n\n" + STREAM,
    "events after an empty comment": b":\n\n" + STREAM,
    "events without names": b"".join(line + b"\n" for line in STREAM.split(b"\n") if not line.startswith(b"event")),
    "events after an id": b"id: 1\n" + STREAM,
    "JSON": json.dumps(JSON_BODY).encode(),
    "JSON indented by 2": json.dumps(JSON_BODY, indent=2).encode(),
    "JSON indented by 8": json.dumps(JSON_BODY, indent=8).encode(),
    "JSON with text that is not ASCII": json.dumps({**JSON_BODY, "content": ["é"]}, ensure_ascii=False).encode(),
    "JSON after line ends": b"\r\n\r\n\r\n" + json.dumps(JSON_BODY).encode(),
}


@pytest.mark.parametrize("label", [*LABELS, "gzip, br"])
@pytest.mark.parametrize("name", PLAIN)
def test_plain_text_under_a_label_is_read_as_text_in_any_pieces(name: str, label: str) -> None:
    for chunks in splits(PLAIN[name]):
        assert judge(label, chunks).state is State.COMPLETE


def test_a_chain_whose_middle_is_missing_is_read() -> None:
    assert judge("gzip, br", [gzip.compress(STREAM)]).state is State.COMPLETE
    assert judge("gzip, br", [brotli.compress(STREAM)]).state is State.COMPLETE


SIZE = 60_000_000
BOMBS = {
    "gzip": ("gzip", lambda: gzip.compress(bytes(SIZE))),
    "gzip unlabelled": ("", lambda: gzip.compress(bytes(SIZE))),
    "zlib": ("deflate", lambda: zlib.compress(bytes(SIZE))),
    "raw deflate": ("deflate", lambda: raw_deflate(bytes(SIZE))),
    "br": ("br", lambda: brotli.compress(bytes(SIZE), quality=3)),
    "zstd": ("zstd", lambda: zstandard.compress(bytes(SIZE))),
    "gzip in gzip": ("gzip, gzip", lambda: gzip.compress(gzip.compress(bytes(SIZE)))),
    "zstd in br": ("zstd, br", lambda: brotli.compress(zstandard.compress(bytes(SIZE)))),
    "many members": ("gzip", lambda: gzip.compress(bytes(1_000_000)) * 60),
    "many frames": ("zstd", lambda: zstandard.compress(bytes(1_000_000)) * 60),
}


@pytest.mark.parametrize("size", [1 << 30, 1000], ids=["whole", "in pieces"])
@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_stops_early_and_is_unreadable(name: str, size: int) -> None:
    label, build = BOMBS[name]
    bomb = build()
    decoded, readable = decode(label, cut(bomb, size))
    assert not readable
    assert len(decoded) <= BOMB_FREE + BOMB_RATIO * len(bomb) + 5_000_000
    verdict = judge(label, cut(bomb, size))
    assert (verdict.state, verdict.reason) == (State.MISSING, Reason.UNREADABLE_BODY)


@pytest.mark.parametrize("codec", CODECS)
def test_pieces_are_small(codec: str) -> None:
    decoder = decoder_for(codec, CODECS[codec](bytes(3_000_000))[:6])
    assert decoder is not None
    with_sizes = [len(piece) for piece in _until_bomb(decoder.feed(CODECS[codec](bytes(3_000_000))))]
    assert max(with_sizes, default=0) <= 8 * 1024 * 1024


def _until_bomb(pieces: Iterator[bytes]) -> Iterator[bytes]:
    try:
        yield from pieces
    except DecodingError:
        return


def broken_tail(codec: str) -> bytes:
    """Return an encoded stream, flushed after the last event, whose rest is garbage."""
    if codec == "br":
        engine = brotli.Compressor()
        encoded = engine.process(STREAM) + engine.flush()
    elif codec == "zstd":
        frame = zstandard.ZstdCompressor().compressobj()
        encoded = frame.compress(STREAM) + frame.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    else:
        deflate = zlib.compressobj(wbits=zlib.MAX_WBITS + (16 if codec == "gzip" else 0))
        encoded = deflate.compress(STREAM) + deflate.flush(zlib.Z_SYNC_FLUSH)
    return encoded + b"\xff" * 40


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("size", [1 << 30, 100, 1], ids=["whole", "100 bytes", "byte by byte"])
def test_everything_before_a_broken_tail_is_handed_on(codec: str, size: int) -> None:
    decoded, readable = decode(codec, cut(broken_tail(codec), size))
    assert decoded == STREAM
    assert not readable


@pytest.mark.parametrize("codec", CODECS)
def test_a_broken_tail_after_the_final_usage_is_complete_in_any_pieces(codec: str) -> None:
    for chunks in splits(broken_tail(codec)):
        assert judge(codec, chunks).state is State.COMPLETE


@pytest.mark.parametrize(("codec", "trailer"), [("gzip", 8), ("zlib", 4)])
def test_a_wrong_checksum_after_the_final_usage_is_complete_in_any_pieces(codec: str, trailer: int) -> None:
    encoded = CODECS[codec](STREAM)
    for chunks in splits(encoded[:-trailer] + bytes(byte ^ 0x55 for byte in encoded[-trailer:])):
        assert judge(codec, chunks).state is State.COMPLETE


def test_a_body_that_breaks_after_the_usage_of_the_start_is_partial() -> None:
    engine = zlib.compressobj(wbits=zlib.MAX_WBITS + 16)
    broken = engine.compress(NORMAL[0]) + engine.flush(zlib.Z_SYNC_FLUSH) + b"\xff" * 40
    for chunks in splits(broken):
        verdict = judge("gzip", chunks)
        assert (verdict.state, verdict.reason) == (State.PARTIAL, Reason.UNREADABLE_BODY)
        assert verdict.counts.input_tokens == 12


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize(
    "garbage", [b"\xff" * 100, b"\x1f\x8b\x08" + b"\xff" * 100, b"\x28\xb5\x2f\xfd" + b"\xff" * 100]
)
def test_garbage_under_a_label_is_unreadable(label: str, garbage: bytes) -> None:
    for chunks in splits(garbage):
        verdict = judge(label, chunks)
        assert (verdict.state, verdict.reason) == (State.MISSING, Reason.UNREADABLE_BODY)


@pytest.mark.parametrize("codec", CODECS)
def test_an_encoded_body_that_was_cut_keeps_what_was_flushed(codec: str) -> None:
    whole = CODECS[codec](STREAM)
    for kept in range(0, len(whole), 7):
        verdict = judge(codec, [whole[:kept]], Ending.UPSTREAM_CLOSED)
        assert verdict.reason in (None, Reason.UPSTREAM_CLOSED)


@pytest.mark.parametrize("size", [1 << 30, 5000, 300], ids=["whole", "5 kB", "300 bytes"])
@pytest.mark.parametrize("codec", CODECS)
def test_a_long_body_is_decoded_to_its_end_whatever_the_pieces(codec: str, size: int) -> None:
    """A few kilobytes that stand for several pieces of output, all in one chunk, lose nothing."""
    generator = random.Random(3)
    words = [bytes(generator.choices(b"abcdefghijklmnop", k=30)) for _ in range(50)]
    body = STREAM + b"".join(b": %b\n\n" % b" ".join(generator.choices(words, k=20)) for _ in range(1000)) + STREAM
    assert decode(codec, cut(CODECS[codec](body), size, first=size)) == (body, True)
