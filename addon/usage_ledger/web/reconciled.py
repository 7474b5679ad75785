"""Reconciled: a result of `usage-ledger reconcile` as tables.

Room: web. Imports the upstream room's words for it. Takes a result as it is kept in the ledger, so also one of an
earlier version, that says less.
"""

from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from usage_ledger.upstream import kinds
from usage_ledger.upstream.verdicts import MEANING, SETTLED, Verdict

type Table = list[list[Any]]
"""Lines of cells, the headings first."""


def summed_up(result: dict[str, Any], by: Sequence[str]) -> Table:
    """Return what a person looks at: a bucket that matches in one line, of others the kinds that differ."""
    table: Table = [[*by, "requests", "flagged", "kind", "ours", "upstream's", "difference", "verdict"]]
    for bucket in result["buckets"]:
        found, verdict = bucket["kinds"], bucket.get("verdict")
        told = [each for each in found if each["difference"] or verdict in (Verdict.BATCH, Verdict.UNKNOWN)]
        if verdict == Verdict.MATCHES or not told:
            sums = {name: sum(each[name] for each in found) for name in ("ours", "theirs", "difference")}
            told = [{"kind": "all", **sums}]
        for each in told:
            difference = f"{each['difference']:+,}" if each["difference"] else "0"
            numbers = [kinds.short(each["kind"]), each["ours"], each["theirs"], difference]
            table.append(
                [*(bucket.get(name) for name in by), bucket.get("requests"), bucket.get("flagged"), *numbers, verdict]
            )
    return table


def prices(result: dict[str, Any]) -> Table:
    """Return the amounts (USD) that differ although the tokens agree."""
    table: Table = [["day", "model", "by our prices, USD", "billed, USD", "difference"]]
    for each in result.get("money", []):
        if each["verdict"] not in SETTLED:
            difference = Decimal(each["theirs"]) - Decimal(each["ours"])
            table.append([each["day"], each["model"], each["ours"], each["theirs"], f"{difference:+f}"])
    return table


def verdicts(result: dict[str, Any]) -> list[tuple[int, str, str, str]]:
    """Return how often each verdict was given of tokens or of money, and what it means."""
    counts = Counter(
        (each.get("verdict"), what)
        for what, found in (("tokens", result["buckets"]), ("amounts", result.get("money", [])))
        for each in found
    )
    meaning = {str(verdict): text for verdict, text in MEANING.items()}
    return [(count, what, verdict, meaning.get(verdict, "")) for (verdict, what), count in counts.most_common()]
