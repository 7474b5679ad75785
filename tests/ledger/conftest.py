"""What the tests of the ledger share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ledger.books import Books


@pytest.fixture
def books(tmp_path: Path) -> Iterator[Books]:
    opened = Books(tmp_path / "usage.db")
    yield opened
    opened.store.close()
