"""Results: what a comparison came to, as plain values: for programs, for the ledger that keeps it, and as a table.

Room: upstream. Imports the ledger's money. A result that a ledger has kept may be of an earlier version, which said
less.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from usage_ledger.ledger.money import as_text

if TYPE_CHECKING:
    from usage_ledger.upstream.reconcile import Bucket, Result


def as_json(result: "Result") -> dict[str, Any]:
    """Return a result as JSON values. Money is text, because it is exact."""
    return {
        "since": result.since,
        "until": result.until,
        "left": result.left,
        "buckets": [
            dict(zip(result.by, bucket.keys, strict=True))
            | {"requests": bucket.requests, "flagged": bucket.flagged, "verdict": str(bucket.verdict)}
            | {"kinds": list(kinds_of(bucket))}
            for bucket in result.buckets
        ],
        "money": [
            {
                "day": each.day,
                "model": each.model,
                "ours": as_text(each.ours),
                "theirs": as_text(each.theirs),
                "verdict": str(each.verdict),
            }
            for each in result.money
        ],
        "open_days": result.open_days,
        "days_without_bill": result.days_without_bill,
        "days_not_billed": result.days_not_billed,
    }


def kinds_of(bucket: "Bucket") -> Iterator[dict[str, Any]]:
    """Yield what a bucket says of each kind of tokens that either side has."""
    for name, difference in bucket.differences().items():
        ours, theirs = bucket.ours[name], bucket.theirs[name]
        if ours or theirs or difference:
            yield {"kind": name, "ours": ours, "theirs": theirs, "difference": difference}


def lines(told: dict[str, Any], by: Sequence[str]) -> Iterator[list[Any]]:
    """Yield a result (`as_json`) as a table, its headings first: a line for each kind of tokens in each bucket."""
    yield [*by, "kind", "ours", "theirs", "difference", "requests", "flagged", "verdict"]
    for bucket in told["buckets"]:
        around = [bucket.get("requests"), bucket.get("flagged"), bucket.get("verdict")]
        for kind in bucket["kinds"]:
            counts = [kind["kind"], kind["ours"], kind["theirs"], kind["difference"]]
            yield [*(bucket.get(name) for name in by), *counts, *around]
