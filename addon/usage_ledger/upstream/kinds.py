"""Kinds: counts as a bill tells them apart, and cache writes of which nobody told the duration.

Room: upstream. Imports the standard library and the ledger's bill.
"""

from collections.abc import Mapping

from usage_ledger.ledger.bill import KINDS
from usage_ledger.ledger.columns import CACHE_DURATIONS


def differences(ours: Mapping[str, int], theirs: Mapping[str, int]) -> dict[str, int]:
    """Return what upstream billed beyond our counts, by kind."""
    return {name: theirs[name] - ours[name] for name in KINDS}


def settled(found: Mapping[str, int], untold: int) -> dict[str, int]:
    """Return differences without those that cache writes of `untold` duration can explain.

    They stand with our 5-minute ones, and may be of either duration.
    """
    five, hour = CACHE_DURATIONS
    moved = max(0, min(untold, -found[five], found[hour]))
    return {**found, five: found[five] + moved, hour: found[hour] - moved}


def short(kind: str) -> str:
    """Return a kind as people read it: `cache_creation_5m_input_tokens` is `cache_write_5m`."""
    name = kind.replace("cache_creation", "cache_write").replace("_input_tokens", "")
    return name.replace("_tokens", "").replace("_requests", "")
