"""Traffic that is captured, and its rows as a replay can tell them."""

from collections.abc import Callable
from pathlib import Path

import httpx

from scripts.real_proxy import Proxy, rows_of

SCENARIOS = ("normal", "without_usage", "iterations", "breaks", "gzipped", "json", "rate_limited")


def traffic(proxy: Proxy, ask: Callable[..., httpx.Response], scenarios: tuple[str, ...] = SCENARIOS) -> None:
    for scenario in scenarios:
        try:
            ask(proxy, scenario)
        except httpx.TransportError:
            assert scenario == "breaks"


def comparable(ledger: Path) -> list[dict[str, object]]:
    """Rows without what only the live proxy can know, or what names the process."""
    apart = ("origin", "writer", "time_to_first_token_ms", "completed_at", "duration_ms")
    return [{name: value for name, value in row.items() if name not in apart} for row in rows_of(ledger)]
