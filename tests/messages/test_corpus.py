"""Streams recorded from the real API yield their expected rows, however they are framed, encoded and cut."""

import gzip
import json
import random
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import brotli
import pytest
import zstandard
from usage_ledger.messages import Ending, MessageReader

CORPUS = Path(__file__).parents[3] / "shared" / "corpus"
STREAMS = sorted(CORPUS.glob("*.sse"))
COUNTS = (
    "input_tokens",
    "output_tokens",
    "cache_creation_input_tokens",
    "cache_creation_5m_input_tokens",
    "cache_creation_1h_input_tokens",
    "cache_read_input_tokens",
    "total_tokens",
)


def columns(chunks: Iterator[bytes], encoding: str = "") -> dict[str, Any]:
    reader = MessageReader(encoding)
    for chunk in chunks:
        reader.feed(chunk)
    reader.finish(clean=True)
    verdict = reader.verdict(Ending.FINISHED, 200)
    several = len(json.loads(verdict.usage_raw)) > 1 if (verdict.usage_raw or "").startswith("[") else False
    if several:
        return {"several_messages": True, "flagged": verdict.flagged}
    return {
        **{name: getattr(verdict.counts, name) for name in COUNTS},
        "flagged": verdict.flagged,
        "iterations": [[iteration.type, iteration.model] for iteration in verdict.iterations],
        "message_id": verdict.message_id,
        "model": verdict.model,
        "several_messages": False,
        "usage_state": str(verdict.state),
    }


def pieces(data: bytes, seed: str, longest: int) -> Iterator[bytes]:
    generator = random.Random(seed)
    at = 0
    while at < len(data):
        size = generator.randint(1, longest)
        yield data[at : at + size]
        at += size


@pytest.fixture(params=STREAMS or [None], ids=lambda path: path.stem if path else "none")
def recorded(request: pytest.FixtureRequest) -> tuple[bytes, dict[str, Any]]:
    if request.param is None:
        pytest.skip("the folder of recorded streams is missing")
    expected = json.loads((CORPUS / "expected.json").read_text())
    return request.param.read_bytes(), expected[request.param.stem]


def test_a_recorded_stream_read_whole(recorded: tuple[bytes, dict[str, Any]]) -> None:
    stream, expected = recorded
    assert columns(iter([stream])) == expected


def test_a_recorded_stream_read_byte_by_byte(recorded: tuple[bytes, dict[str, Any]]) -> None:
    stream, expected = recorded
    assert columns(stream[at : at + 1] for at in range(len(stream))) == expected


@pytest.mark.parametrize("longest", [3, 50, 5000])
def test_a_recorded_stream_cut_at_random(recorded: tuple[bytes, dict[str, Any]], longest: int) -> None:
    stream, expected = recorded
    assert columns(pieces(stream, "cut", longest)) == expected


@pytest.mark.parametrize("line_end", [b"\r\n", b"\r"], ids=["CRLF", "CR"])
def test_a_recorded_stream_with_other_line_ends(recorded: tuple[bytes, dict[str, Any]], line_end: bytes) -> None:
    stream, expected = recorded
    stream = stream.replace(b"\r\n", b"\n").replace(b"\n", line_end)
    assert columns(iter([stream])) == expected
    assert columns(pieces(stream, "line ends", 9)) == expected


def test_a_recorded_stream_without_its_last_blank_line(recorded: tuple[bytes, dict[str, Any]]) -> None:
    stream, expected = recorded
    assert columns(iter([stream.rstrip(b"\r\n")])) == expected


ENCODINGS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "gzip unlabelled": ("", gzip.compress),
    "deflate": ("deflate", zlib.compress),
    "br": ("br", lambda data: brotli.compress(data, quality=5)),
    "zstd": ("zstd", zstandard.compress),
    "gzip, br": ("gzip, br", lambda data: brotli.compress(gzip.compress(data), quality=5)),
    "plain under gzip": ("gzip", bytes),
    "plain under br": ("br", bytes),
}


@pytest.mark.parametrize("name", ENCODINGS)
def test_a_recorded_stream_encoded_and_cut_at_random(recorded: tuple[bytes, dict[str, Any]], name: str) -> None:
    stream, expected = recorded
    label, encode = ENCODINGS[name]
    encoded = encode(stream)
    assert columns(iter([encoded]), label) == expected
    assert columns(pieces(encoded, name, 40), label) == expected
