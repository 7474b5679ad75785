"""Derive: what a row's counts must be, from the usage as upstream gave it.

Room: messages. Imports `msgspec` and its neighbours in this room. The way back from `usage_raw`, by which an auditor
checks a ledger.
"""

from typing import Any

import msgspec

from usage_ledger.messages.usage import Counts, billed_by, sift


def derived_counts(usage_raw: str | None) -> Counts | None:
    """Return the counts that a row's `usage_raw` bills; None where it is no usage as this program writes it."""
    total = Counts()
    if usage_raw is None:
        return total
    try:
        told: Any = msgspec.json.decode(usage_raw)
    except (msgspec.DecodeError, RecursionError):
        return None
    for usage in told if isinstance(told, list) else [told]:
        sifted, malformed = sift(usage)
        if malformed:
            return None
        if sifted is not None:
            total.add(billed_by(sifted)[0])
    return total
