"""Corrections: what a person says of a row, as a change of it.

Room: ledger. Imports `msgspec` and its neighbours in this room. A corrected row has the counts of a person instead of
upstream's; an accepted one is settled as it is. Both keep `usage_state` and `review_reason` as history, and neither is
in the review queue any more. A better row of a proxy still replaces an accepted one, and never a corrected one.
"""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from usage_ledger.ledger.columns import CACHE_DURATIONS, COLUMNS, COUNT_COLUMNS, COUNT_LIMIT, STATES, TOTALLED
from usage_ledger.ledger.editing import Change
from usage_ledger.ledger.moments import now
from usage_ledger.ledger.record import Entry, IterationRow, Record, fields_of, metadata_of

CORRECTED_COLUMNS = (
    *COUNT_COLUMNS,
    *("total_tokens", "usage_state", "requires_manual_review", "metadata", "total_cost", "price_source"),
)
"""What the trail tells of a correction. `usage_state` stays as it was, and is told so that it can be verified."""

CORRECTED_AT = "_manually_updated_at"
"""Where a row's metadata tells when it was corrected, so that an export tells one correction from the next."""

_ACCEPTED = ("requires_manual_review", "metadata", "usage_state")


def with_counts(record: Record, counts: Mapping[str, int]) -> dict[str, int]:
    """Return all counts of a row after some of them are set; raise ValueError where they cannot be so.

    Cache writes are told as a total, or as its two durations, or as all three.
    """
    for name, count in counts.items():
        if not 0 <= count <= COUNT_LIMIT:
            raise ValueError(f"{name} is {count}, which is no count")
    result = {name: counts.get(name, getattr(record, name)) for name in COUNT_COLUMNS}
    if "cache_creation_input_tokens" not in counts and any(name in counts for name in CACHE_DURATIONS):
        result["cache_creation_input_tokens"] = sum(result[name] for name in CACHE_DURATIONS)
    elif "cache_creation_input_tokens" in counts and not any(name in counts for name in CACHE_DURATIONS):
        # Their durations are not told, and the former ones are of another total.
        result |= dict.fromkeys(CACHE_DURATIONS, 0)
    if sum(result[name] for name in CACHE_DURATIONS) > result["cache_creation_input_tokens"]:
        raise ValueError("cache_creation_input_tokens is less than its 5-minute and 1-hour parts")
    if result["thinking_tokens"] > result["output_tokens"]:
        raise ValueError("thinking_tokens are part of output_tokens, and cannot be more")
    return result


def correction(
    entry: Entry, counts: Mapping[str, int], reason: str, price: Callable[[Entry], None], at: str | None = None
) -> Change:
    """Return the change that gives a row all of its counts, and the cost that `price` finds for them.

    `at` is when somebody has corrected it; None: now.
    """
    old = entry.record
    metadata = metadata_of(old)
    metadata.pop("_requires_manual_review", None)
    metadata.pop("_cache_split_unknown", None)
    split = counts["cache_creation_5m_input_tokens"] + counts["cache_creation_1h_input_tokens"]
    if split != counts["cache_creation_input_tokens"]:
        metadata["_cache_split_unknown"] = True
    metadata["_manually_updated"] = True
    metadata[CORRECTED_AT] = at or now()
    new = Entry(
        msgspec.structs.replace(
            old,
            **counts,
            total_tokens=sum(counts[name] for name in TOTALLED),
            requires_manual_review=0,
            metadata=msgspec.json.encode(metadata).decode(),
            total_cost=None,
            price_source=None,
        ),
        [msgspec.structs.replace(iteration, total_cost=None) for iteration in entry.iterations],
    )
    price(new)
    return Change(
        old.id,
        reason,
        expected=fields_of(old, COLUMNS),
        after=fields_of(new.record, CORRECTED_COLUMNS),
        iteration_costs=[(iteration.position, iteration.total_cost) for iteration in new.iterations],
    )


def acceptance(record: Record, reason: str) -> Change:
    """Return the change that settles a flagged row as it is."""
    metadata = metadata_of(record)
    metadata.pop("_requires_manual_review", None)
    metadata["_accepted"] = True
    accepted = msgspec.structs.replace(
        record, requires_manual_review=0, metadata=msgspec.json.encode(metadata).decode()
    )
    return Change(record.id, reason, expected=fields_of(record, COLUMNS), after=fields_of(accepted, _ACCEPTED))


SAID_OF_ITERATIONS = tuple(
    name for name in IterationRow.__struct_fields__ if name not in ("record_id", "position", "total_cost")
)


def iterations_of(entry: Entry) -> list[list[Any]]:
    """Return what the iterations of a row say, apart from their costs."""
    return [[getattr(each, name) for name in SAID_OF_ITERATIONS] for each in entry.iterations]


def is_corrected(record: Record) -> bool:
    return metadata_of(record).get("_manually_updated") == 1


def is_accepted(record: Record) -> bool:
    return metadata_of(record).get("_accepted") == 1


def is_final(record: Record) -> bool:
    """Whether a row's usage is final, said by upstream or by a person; `filters.FINAL` in SQL."""
    return record.usage_state == "complete" or is_corrected(record)


def worth(record: Record) -> tuple[int, int]:
    """Return what a row is worth, to compare: more where it was accepted, and of two lower bounds the larger one."""
    if is_corrected(record):
        return 2 * len(STATES), 0
    rank = STATES.index(record.usage_state) if record.usage_state in STATES else 0
    is_partial = record.usage_state == "partial"
    return 2 * rank + is_accepted(record), record.total_tokens if is_partial else 0
