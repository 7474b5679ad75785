"""Text from outside becomes one printable line of bounded length."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from usage_ledger.messages import clean, text_or_none
from usage_ledger.messages.text import LIMIT


@pytest.mark.parametrize(
    ("given_text", "kept"),
    [
        ("claude-sonnet-4-6", "claude-sonnet-4-6"),
        ("Zoë – 模型 😀", "Zoë – 模型 😀"),
        ("", ""),
        ("two words", "two words"),
        ("a\nb\r\tc", "a\ufffdb\ufffd\ufffdc"),
        ("\x1b[31mred", "\ufffd[31mred"),
        ("nul\0", "nul\ufffd"),
        ("line\u2028separator", "line\ufffdseparator"),
        ("\u202eright to left", "\ufffdright to left"),
        ("lone \ud800 surrogate", "lone \ufffd surrogate"),
        ("x" * 1000, "x" * LIMIT),
    ],
)
def test_what_is_kept_of_a_text(given_text: str, kept: str) -> None:
    assert clean(given_text) == kept


@given(st.text(st.characters(exclude_categories=())), st.integers(1, 600))
def test_any_text_becomes_one_short_printable_line_that_encodes(given_text: str, limit: int) -> None:
    kept = clean(given_text, limit)
    assert kept.isprintable()
    assert len(kept) <= limit
    kept.encode()
    assert clean(kept, limit) == kept


@pytest.mark.parametrize("value", [None, "", 0, 1, 1.5, True, [], ["a"], {}, {"a": 1}, b"bytes"])
def test_what_is_no_text_is_none(value: object) -> None:
    assert text_or_none(value) is None


def test_a_text_is_kept_to_its_limit() -> None:
    assert text_or_none("abcdef", 3) == "abc"
    assert text_or_none("\n") == "\ufffd"
