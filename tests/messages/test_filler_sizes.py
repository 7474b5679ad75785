"""Bodies of any size and any depth are filled, in linear time."""

from collections.abc import Callable

import pytest

from tests.messages.filling import FILLERS, filled

MANY = 5_000_000
LARGE = {
    "image": b'{"messages":[{"content":[{"source":{"data":"' + b"A" * 30_000_000 + b'"}}]}]}',
    "image, cut": b'data: {"type":"x","data":"' + b"A" * 30_000_000,
    "escapes": b'{"text":"' + b"\\n" * MANY + b'"}',
    "bad escapes": b'data: "' + b"\\q" * MANY,
    "backslashes": b'data: "' + b"\\" * (MANY + 1),
    "blanks": b"data:" + b" " * MANY,
    "digits": b"data: " + b"9" * MANY,
    "junk": b"A" * MANY,
    "lines": b'data: "\n' * (MANY // 20),
    "blank lines": b"\n" * (MANY // 10),
    "quotes": b'data: "' + b'"' * (MANY // 10),
    "brackets": b"data: " + b"[" * (MANY // 10) + b"}]" * (MANY // 20),
}


@pytest.mark.parametrize("name", LARGE)
def test_a_large_body_is_filled_in_linear_time(name: str) -> None:
    """What is quadratic does not end here."""
    for fill in FILLERS:
        assert len(fill(LARGE[name])) == len(LARGE[name])


@pytest.mark.parametrize("fill", FILLERS)
@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"content":', b"}"), (b'{"input":', b"}")])
def test_json_of_any_depth_is_filled(fill: Callable[[bytes], bytes], opening: bytes, closing: bytes) -> None:
    body = b'{"source":' + opening * 100_000 + b'"secret"' + closing * 100_000 + b"}"
    out = filled(body, fill)
    assert out.count(b'"xxxxxx"') == 1
    assert out.startswith(b'{"source":' + opening)
    assert out.endswith(closing + b"}")
