"""Verdicts: what a bucket of the comparison, or an amount, can amount to.

Room: upstream. Imports the standard library only.
"""

import enum


class Verdict(enum.StrEnum):
    """What a bucket amounts to."""

    MATCHES = "matches"
    FLAGGED = "ours short, flagged"
    SHORT = "ours short, unexplained"
    OVER = "theirs short"
    DIFFERS = "differs both ways"
    BATCH = "batch, not metered"
    UNKNOWN = "not comparable"
    PRICE = "price differs"


SETTLED = (Verdict.MATCHES, Verdict.BATCH)
"""Verdicts that leave nothing to do."""

MEANING = {
    Verdict.FLAGGED: "rows without usage can explain it: fill them in (review, backfill, reconcile --apply)",
    Verdict.SHORT: "traffic that the proxy has not seen",
    Verdict.OVER: "rows that the bill does not have: late, or of another organization",
    Verdict.DIFFERS: "more of one kind of tokens and less of another",
    Verdict.UNKNOWN: "nobody can say which of several API keys it is",
    Verdict.PRICE: "the tokens are the same, so the prices are not",
}
