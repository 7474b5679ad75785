"""The fuzz target. Invariant: any bytes give one verdict, however they are cut, and never an exception.

Coverage-guided by atheris where that is installed (`./scripts/fuzz` tries), else by Hypothesis. What it finds is kept
in `fuzz-findings/` and becomes a test.
"""

import gzip
import importlib.util
import sys
import tempfile
import time
import zlib
from pathlib import Path

import brotli
import zstandard

if importlib.util.find_spec("atheris"):
    import atheris

    with atheris.instrument_imports(include=["usage_ledger"]):
        import usage_ledger.messages  # noqa: F401 - imported here so that what follows is instrumented
from usage_ledger.messages import Ending, MessageReader, State, Verdict, read_request
from usage_ledger.messages.sse import EVENT_LIMIT

from scripts.fake_console import ITERATIONS, NORMAL, WITHOUT_USAGE

ENCODINGS = ("", "gzip", "deflate", "br", "zstd", "gzip, br", "identity", "?")
ENCODERS = (bytes, gzip.compress, zlib.compress, brotli.compress, zstandard.compress)
ENDINGS = tuple(Ending)
STATUSES = (200, None, 204, 429)
FINDINGS = Path("fuzz-findings")
HEAD = 4


def check(data: bytes) -> None:
    """Check the invariant for one input: a few bytes that choose how the body is read, then the body."""
    head, body = data[:HEAD].ljust(HEAD, b"\0"), data[HEAD:]
    encoding = ENCODINGS[head[0] % len(ENCODINGS)]
    ending = ENDINGS[head[1] % len(ENDINGS)]
    status = STATUSES[head[2] % len(STATUSES)]
    step = head[3] % 64 + 1
    pieces = [body[at : at + step] for at in range(0, len(body), step)]
    whole, cut = judged([body], encoding, ending, status), judged(pieces, encoding, ending, status)
    if whole != cut:
        raise AssertionError(f"whole: {whole}\nin pieces of {step}: {cut}")
    if whole.state is State.PENDING or whole.counts.total_tokens < 0:
        raise AssertionError(f"no verdict: {whole}")
    read_request(body, encoding)


def judged(pieces: list[bytes], encoding: str, ending: Ending, status: int | None) -> Verdict:
    reader = MessageReader(encoding)
    for piece in pieces:
        reader.feed(piece)
        if len(reader._events._carry) > 2 * EVENT_LIMIT + len(piece) * 200 + 1024 * 1024:
            raise AssertionError("more is kept than one event")
    reader.finish(clean=ending is Ending.FINISHED)
    return reader.verdict(ending, status)


def seeds() -> list[bytes]:
    streams = [b"".join(events) for events in (NORMAL, WITHOUT_USAGE, ITERATIONS)]
    streams += [streams[0].replace(b"\n", b"\r\n"), b'{"id":"m","content":[],"usage":{"input_tokens":1}}']
    return [bytes((place, 0, 0, 7)) + encode(stream) for stream in streams for place, encode in enumerate(ENCODERS)]


def with_atheris(seconds: int) -> None:
    FINDINGS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as corpus:
        for number, seed in enumerate(seeds()):
            (Path(corpus) / str(number)).write_bytes(seed)
        options = [
            f"-max_total_time={seconds}",
            "-max_len=8192",
            f"-artifact_prefix={FINDINGS}/",
            "-print_final_stats=1",
        ]
        atheris.Setup([sys.argv[0], *options, corpus], check)
        atheris.Fuzz()


def with_hypothesis(seconds: int) -> None:
    import hypothesis
    from hypothesis import strategies as st

    until = time.monotonic() + seconds
    known = seeds()
    inserted = st.tuples(st.integers(0, 4000), st.integers(0, 40), st.binary(max_size=40))

    def changed(seed: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
        for place, length, new in changes:
            seed = seed[: place % (len(seed) + 1)] + new + seed[place % (len(seed) + 1) + length :]
        return seed

    inputs = st.builds(changed, st.sampled_from(known), st.lists(inserted, max_size=6)) | st.binary(max_size=400)
    rounds = 0

    @hypothesis.settings(max_examples=500, deadline=None, database=None)
    @hypothesis.given(inputs)
    def look(data: bytes) -> None:
        try:
            check(data)
        except BaseException:
            FINDINGS.mkdir(exist_ok=True)
            (FINDINGS / "hypothesis").write_bytes(data)
            raise

    while time.monotonic() < until:
        hypothesis.seed(rounds + int(time.time()))(look)()
        rounds += 1
    print(f"{rounds} rounds of 500 inputs: nothing found")


def main() -> None:
    seconds = int(sys.argv[1])
    if importlib.util.find_spec("atheris"):
        print(f"fuzzing with atheris for {seconds} s")
        with_atheris(seconds)
    else:
        print(f"fuzzing with Hypothesis for {seconds} s")
        with_hypothesis(seconds)


if __name__ == "__main__":
    main()
