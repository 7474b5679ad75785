"""The audit of one row: what it says, against what upstream told and what the trail says of it.

Room: cli. Imports the messages room, the prices room and the ledger's entries; no click. A row that was never revised
follows from `usage_raw`; a revised one is what its last revisions left. Whatever else a row says was written by another
program.
"""

import json
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from msgspec.structs import replace

from usage_ledger.ledger.columns import COLUMNS, COUNT_COLUMNS, TOTALLED
from usage_ledger.ledger.corrections import SAID_OF_ITERATIONS, is_accepted, is_corrected, iterations_of, worth
from usage_ledger.ledger.money import as_amount, as_text
from usage_ledger.ledger.reading import as_object
from usage_ledger.ledger.record import Entry, Record
from usage_ledger.messages import Counts, Reason, State
from usage_ledger.messages.derive import Told, derive
from usage_ledger.prices.listed import SOURCE
from usage_ledger.prices.parts import UnpricedError
from usage_ledger.prices.pricer import Pricer

Fields = Mapping[str, Any]


def folded(afters: Iterable[str]) -> dict[str, Any]:
    """Return what the revisions of one row left in it: the last of their `after` for each column."""
    left: dict[str, Any] = {}
    for after in afters:
        left |= json.loads(after)
    return left


def told_by_upstream(entry: Entry) -> Told | None:
    """Return what upstream told of a row; None where its `usage_raw` is not what this program writes."""
    record = entry.record
    told = derive(record.usage_raw)
    if told is not None and record.stop_reason == "refusal" and (record.http_status or 0) < 400:
        # Whether a refusal is billed follows from the stream; the row says it in its state or in its iterations.
        refused = derive(record.usage_raw, unbilled_refusal=True)
        assert refused is not None
        billed = [each.billed for each in refused.iterations]
        if record.usage_state == State.NONE or (billed and [each.billed for each in entry.iterations] == billed):
            return refused
    if told is not None and record.usage_state == State.NONE:
        return Told(Counts(), [])
    return told


def iterations_told(told: Told) -> list[list[Any]]:
    """Return what the iterations of a row must say, as `iterations_of` does."""
    return [
        [
            *(each.type, each.model, None if each.billed is None else int(each.billed)),
            *(getattr(each.counts, name) for name in SAID_OF_ITERATIONS[3:]),
        ]
        for each in told.iterations
    ]


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
    told = told_by_upstream(entry)
    counts = None if told is None else _by_column(told.counts)
    if told is None or counts is None:
        found += [] if "usage_raw" in left else ["usage_raw is not what upstream told"]
    else:
        found += [
            f"{name} is {getattr(record, name)}, upstream told {count}"
            for name, count in counts.items()
            if name not in left and getattr(record, name) != count
        ]
        found += [] if "iterations" in left else _iterations(entry, told)
    if "usage_state" not in left:
        found += _state(record, counts)
    if "total_tokens" not in left and record.total_tokens != sum(getattr(record, name) for name in TOTALLED):
        found.append(f"total_tokens is {record.total_tokens}, which is not their sum")
    if "metadata" not in left:
        found += _flags(record)
    return found


def edited(entry: Entry, left: Fields) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what a row was before another program changed it, as far as that can be told, and what the trail must note
    of it beside a correction's columns.
    """
    told = told_by_upstream(entry)
    counts = {} if told is None else _by_column(told.counts)
    before = {name: left.get(name, counts.get(name)) for name in COUNT_COLUMNS}
    if told is None:
        return before | {"usage_raw": None}, {"usage_raw": entry.record.usage_raw}
    if "iterations" in left or _iterations(entry, told):
        then = left.get("iterations", iterations_told(told))
        return before | {"iterations": then}, {"iterations": iterations_of(entry)}
    return before, {}


def _iterations(entry: Entry, told: Told) -> list[str]:
    """Return which iterations of a row are not those that upstream told."""
    now, then = iterations_of(entry), iterations_told(told)
    if not now and (entry.record.usage_state == State.PENDING or entry.record.review_reason == Reason.PROXY_STOPPED):
        return []  # they are written with what is final
    if len(now) != len(then):
        return [f"it has {len(now)} iteration(s), upstream told {len(then)}"]
    return [
        f"iteration {number}: {name} is {value!r}, upstream told {said!r}"
        for number, (mine, theirs) in enumerate(zip(now, then, strict=True))
        for name, value, said in zip(SAID_OF_ITERATIONS, mine, theirs, strict=True)
        if value != said
    ]


def _state(record: Record, told: Mapping[str, int] | None) -> list[str]:
    """Return how a row's state does not follow from what upstream told."""
    if record.usage_raw is None and record.usage_state in (State.COMPLETE, State.PARTIAL):
        return [f"it is {record.usage_state}, and upstream told no usage"]
    if record.usage_state == State.MISSING and told is not None and any(told.values()):
        return ["it is missing, and upstream told usage"]
    if record.usage_state == State.COMPLETE and record.stop_reason is None and not _says(record, "_no_stop_reason"):
        return ["it is complete, and upstream told no stop_reason"]
    return []


class CostAudit:
    """Checks costs by the price data at hand: the list, and own prices where there are any.

    `unchecked` counts the costs that other price data gave.
    """

    def __init__(self, pricer: Pricer) -> None:
        self.unchecked = 0
        self._pricers = {SOURCE: Pricer()}
        for each in pricer.own.entries if pricer.own is not None else ():
            self._pricers |= {each.source: pricer, f"{each.source} of {SOURCE}": pricer}

    def difference(self, entry: Entry) -> str | None:
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
        if cost is None:
            return None
        if record.price_source is None:
            return f"total_cost is {record.total_cost}, and nothing says by which prices"
        return self._by_prices(entry, cost)

    def _by_prices(self, entry: Entry, cost: Decimal) -> str | None:
        record = entry.record
        pricer = self._pricers.get(str(record.price_source))
        try:
            price = None if pricer is None else pricer.price(entry)
        except UnpricedError as error:
            return f"total_cost is {record.total_cost}, but {error}"
        if price is None or price.source != record.price_source:
            self.unchecked += 1
            return None
        parts = tuple(as_amount(iteration.total_cost) for iteration in entry.iterations)
        if any(parts) and parts != price.parts:
            return "what its iterations cost is not what their prices say"
        if price.amount != cost:
            return f"total_cost is {record.total_cost}, by its prices it is {as_text(price.amount)}"
        return None


def _is_replaced(record: Record, left: Fields) -> bool:
    """Whether a better row of a proxy has taken the place of the one that was accepted, or that came by pull."""
    if is_corrected(record):
        return False
    then = replace(record, **{name: left[name] for name in COLUMNS if name in left})
    return worth(record) > worth(then) or (is_accepted(then) and not is_accepted(record))


def _now(entry: Entry, name: str) -> Any:
    if name == "iteration_costs":
        return [iteration.total_cost for iteration in entry.iterations]
    if name == "iterations":
        return iterations_of(entry)
    return getattr(entry.record, name, None)


def _by_column(counts: Counts) -> dict[str, int]:
    return {name: getattr(counts, name) for name in COUNT_COLUMNS}


def _says(record: Record, name: str) -> bool:
    return name in (as_object(record.metadata) or {})


def _flags(record: Record) -> list[str]:
    """Return which flags do not follow from a row's state and reason."""
    metadata = as_object(record.metadata)
    if metadata is None:
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
