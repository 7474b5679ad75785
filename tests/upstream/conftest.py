"""What the tests of fetching and importing share: a ledger, and an upstream that bills a month."""

from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from usage_ledger.ledger.store import Store

from scripts.fake_admin import ADMIN_KEY, FakeAdmin
from scripts.fake_console import ApiKey, Part, Served

KEYS = [
    ApiKey("apikey_1", "team one", "sk-ant-api03-AAA...1111"),
    ApiKey("apikey_2", "two", "sk-ant-api03-BBB...2222", "wrkspc_2"),
]
FIRST = datetime(2026, 11, 1, tzinfo=UTC)
COUNTS = {"uncached_input_tokens": 10, "output_tokens": 20, "cache_5m": 3, "cache_1h": 4, "cache_read_input_tokens": 5}


def served(at: datetime, key: int = 0, **counts: int) -> Served:
    return Served(KEYS[key], at, at + timedelta(seconds=5), [Part("claude-sonnet-4-6", {**COUNTS, **counts})])


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    path = tmp_path / "usage.db"
    with closing(Store(path, "normal", "abc")):
        pass
    return path


class Month:
    """What was served in November, which a test may add to."""

    def __init__(self) -> None:
        self.served = [
            served(FIRST + timedelta(days=day, hours=hour), key=day % 2) for day in range(30) for hour in (1, 23)
        ]


@pytest.fixture
def month() -> Month:
    return Month()


@pytest.fixture
def admin(month: Month, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeAdmin]:
    monkeypatch.setenv("ANTHROPIC_ADMIN_KEY", ADMIN_KEY)
    with FakeAdmin(lambda: month.served) as running:
        yield running
