"""Derive: what a row's counts and iterations must be, from the usage as upstream gave it.

Room: messages. Imports the standard library, `msgspec` and its neighbours in this room. The way back from `usage_raw`,
by which an auditor checks a ledger.
"""

from typing import Any, NamedTuple

import msgspec

from usage_ledger.messages.usage import Counts, Iteration, billed_beside_refusal, billed_by, sift


class Told(NamedTuple):
    """What upstream told of one row."""

    counts: Counts
    iterations: list[Iteration]


def derive(usage_raw: str | None, unbilled_refusal: bool = False) -> Told | None:
    """Return what a row's `usage_raw` bills; None where it is no usage as this program writes it.

    `unbilled_refusal`: the message ended in a refusal that is not billed, which the usage itself does not tell.
    """
    told = Told(Counts(), [])
    if usage_raw is None:
        return told
    try:
        said: Any = msgspec.json.decode(usage_raw)
    except (msgspec.DecodeError, RecursionError):
        return None
    for usage in said if isinstance(said, list) else [said]:
        sifted, malformed = sift(usage)
        if malformed:
            return None
        if sifted is not None:
            counts, iterations = billed_by(sifted)
            told.counts.add(counts)
            told.iterations.extend(iterations)
    return Told(billed_beside_refusal(told.iterations), told.iterations) if unbilled_refusal else told
