"""Cells: what comes back is exactly as wide as was asked for."""

import pytest
from hypothesis import given
from hypothesis import strategies as some
from usage_ledger.cli.cells import fitted, width_of
from usage_ledger.cli.output import on_one_line


@pytest.mark.parametrize(
    ("text", "width", "shown"),
    [
        ("opus", 6, "opus  "),
        ("opus", 4, "opus"),
        ("opus", 3, "op…"),
        ("opus", 1, "…"),
        ("", 2, "  "),
        ("模型", 5, "模型 "),
        ("模型", 4, "模型"),
        ("模型", 3, "模…"),
        ("模型", 2, "… "),  # half a wide character cannot be shown
        ("e\u0301e\u0301e\u0301", 3, "e\u0301e\u0301e\u0301"),
        ("e\u0301e\u0301e\u0301", 2, "e\u0301…"),
        ("📊📊", 3, "📊…"),
    ],
)
def test_text_is_padded_or_cut_by_the_cells_it_takes(text: str, width: int, shown: str) -> None:
    assert fitted(text, width) == shown


def test_numbers_stand_to_the_right() -> None:
    assert fitted("42", 5, to_the_right=True) == "   42"


@given(some.text(), some.integers(1, 30))
def test_any_text_takes_exactly_its_cells(text: str, width: int) -> None:
    assert width_of(fitted(on_one_line(text), width)) == width


@given(some.text(alphabet="ae\u0301模📊\u200d\ufe0f👩🇩🇪\u1100\u1161ก็\x1b\n"), some.integers(1, 30))
def test_characters_that_combine_or_are_wide_take_exactly_theirs(text: str, width: int) -> None:
    assert width_of(fitted(on_one_line(text), width)) == width
