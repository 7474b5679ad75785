"""The audit of one row: what it says, against what upstream told and what the trail says of it.

Room: cli. Imports the messages room, the prices room and the ledger's entries; no click. A row that was never revised
follows from `usage_raw`; a revised one is what its last revisions left. Whatever else a row says was written by another
program.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from usage_ledger.ledger.columns import COUNT_COLUMNS
from usage_ledger.ledger.corrections import is_corrected
from usage_ledger.ledger.money import as_amount
from usage_ledger.ledger.record import Entry, Record
from usage_ledger.messages import Counts, State
from usage_ledger.messages.derive import derived_counts
from usage_ledger.prices.parts import UnpricedError
from usage_ledger.prices.pricer import Pricer

Fields = Mapping[str, Any]


def folded(afters: Iterable[str]) -> dict[str, Any]:
    """Return what the revisions of one row left in it: the last of their `after` for each column."""
    left: dict[str, Any] = {}
    for after in afters:
        left |= json.loads(after)
    return left


def told_counts(entry: Entry) -> dict[str, int] | None:
    """Return the counts that upstream told of a row; None where its `usage_raw` is not what this program writes."""
    record = entry.record
    if record.usage_state == State.NONE:
        return dict.fromkeys(COUNT_COLUMNS, 0)
    counts = derived_counts(record.usage_raw)
    if counts is None:
        return None
    if record.stop_reason == "refusal" and _fields(counts) != _fields(record):
        # A refusal that is not billed leaves what came beside it (an advisor, a compaction): its billed iterations.
        counts = Counts()
        for each in entry.iterations:
            if each.billed:
                counts.add(Counts(*(getattr(each, name, 0) for name in COUNT_COLUMNS)))
    return _fields(counts)


def differences(entry: Entry, left: Fields) -> list[str]:
    """Return what of a row does not follow from upstream's usage and from what the trail left in it, in words."""
    record = entry.record
    if _is_replaced(record, left):
        left = {}
    found = [
        f"{name} is {_now(entry, name)!r}, the trail says {value!r}"
        for name, value in left.items()
        if _now(entry, name) != value
    ]
    told = told_counts(entry)
    if told is None:
        found.append("usage_raw is not what upstream told")
    else:
        found += [
            f"{name} is {getattr(record, name)}, upstream told {count}"
            for name, count in told.items()
            if name not in left and getattr(record, name) != count
        ]
    total = ("input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    if "usage_state" not in left:
        found += _state(record, told)
    if "total_tokens" not in left and record.total_tokens != sum(getattr(record, name) for name in total):
        found.append(f"total_tokens is {record.total_tokens}, which is not their sum")
    if "metadata" not in left:
        found += _flags(record)
    return found


def _state(record: Record, told: Mapping[str, int] | None) -> list[str]:
    """Return how a row's state does not follow from whether upstream told usage."""
    if record.usage_raw is None and record.usage_state in (State.COMPLETE, State.PARTIAL):
        return [f"it is {record.usage_state}, and upstream told no usage"]
    if record.usage_state == State.MISSING and told is not None and any(told.values()):
        return ["it is missing, and upstream told usage"]
    return []


def cost_differs(entry: Entry, pricer: Pricer, sources: Iterable[str]) -> str | None:
    """Return how a cost is not what its price data say; None where it is, or where these are not at hand."""
    record = entry.record
    cost = as_amount(record.total_cost)
    if record.usage_state == State.NONE and not is_corrected(record):
        return None if record.total_cost == "0" else f"total_cost is {record.total_cost}, and nothing is billed"
    if record.usage_state != State.COMPLETE and not is_corrected(record) and record.total_cost is not None:
        return f"total_cost is {record.total_cost}, and there is no final usage"
    if record.total_cost is None and record.price_source is not None:
        return f"total_cost is gone, which {record.price_source} told"
    if record.total_cost is not None and cost is None:
        return f"total_cost is {record.total_cost!r}, which is no amount"
    if cost is not None and record.price_source is None:
        return f"total_cost is {record.total_cost}, and nothing says by which prices"
    if cost is None or record.price_source is None or record.price_source not in sources:
        return None
    try:
        price = pricer.price(entry)
    except UnpricedError as error:
        return f"total_cost is {record.total_cost}, but {error}"
    parts = tuple(as_amount(iteration.total_cost) for iteration in entry.iterations)
    if price.source == record.price_source and any(parts) and parts != price.parts:
        return "what its iterations cost is not what their prices say"
    if price.source == record.price_source and price.amount != cost:
        return f"total_cost is {record.total_cost}, by its prices it is {price.amount.normalize():f}"
    return None


def _is_replaced(record: Record, left: Fields) -> bool:
    """Whether a better row of a proxy has taken the place of the one that was accepted."""
    accepted = '"_accepted":true' in str(left.get("metadata"))
    return accepted and not is_corrected(record) and '"_accepted"' not in record.metadata


def _now(entry: Entry, name: str) -> Any:
    if name == "iteration_costs":
        return [iteration.total_cost for iteration in entry.iterations]
    return getattr(entry.record, name, None)


def _fields(counted: Counts | Record) -> dict[str, int]:
    return {name: getattr(counted, name) for name in COUNT_COLUMNS}


def _flags(record: Record) -> list[str]:
    """Return which flags do not follow from a row's state and reason."""
    try:
        metadata = json.loads(record.metadata)
    except (ValueError, RecursionError):
        metadata = None
    if not isinstance(metadata, dict):
        return ["metadata is no JSON object"]
    flagged = record.review_reason is not None
    expected = {
        "_requires_manual_review": flagged,
        "_no_usage_data": record.usage_state == State.MISSING,
        "_partial_usage": record.usage_state == State.PARTIAL,
        "_manually_updated": False,
        "_accepted": False,
    }
    found = [
        f"metadata {'has' if name in metadata else 'lacks'} {name}"
        for name, should in expected.items()
        if (name in metadata) is not should
    ]
    if record.usage_state in (State.MISSING, State.PARTIAL) and not flagged:
        found.append(f"it is {record.usage_state}, and has no review_reason")
    nothing_billed = (record.http_status or 0) >= 400 or record.stop_reason == "refusal" or "_not_sent" in metadata
    if record.usage_state == State.NONE and not nothing_billed:
        found.append("it is none, and nothing says why nothing is billed")
    if bool(record.requires_manual_review) is not flagged:
        found.append(f"requires_manual_review is {record.requires_manual_review}, its reason {record.review_reason}")
    return found
