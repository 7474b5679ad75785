"""Filters: which rows a reading command is about.

Room: ledger. Imports the standard library only. Every value from outside is bound, never written into SQL.
"""

import dataclasses
import re

CORRECTED = (
    "(CASE WHEN instr(metadata, '_manually_updated') AND json_valid(metadata) "
    "THEN json_extract(metadata, '$._manually_updated') END IS 1)"
)
"""SQL: rows that a person has corrected. Most metadata does not have the word, and need not be read as JSON."""

FINAL = f"(usage_state = 'complete' OR {CORRECTED})"
"""SQL: rows whose usage is final, said by upstream or corrected by a person. Only these are priced."""

UNPRICED = f"money(CAST(total_cost AS BLOB)) IS NULL AND {FINAL}"
"""SQL: rows that could have a cost and have none (`money` is the reader's function)."""

MISPRICED = (
    f"CASE WHEN {FINAL} THEN price_source IS NULL ELSE total_cost IS NOT CASE usage_state WHEN 'none' THEN '0' END END"
)
"""SQL: rows whose cost cannot be: it says no price data, or stands where no usage is final."""

PENDING = "usage_state = 'pending'"
"""SQL: requests that are in flight."""

OF_A_SUBSCRIPTION = "credential_kind IS 'oauth'"
"""SQL: rows that no API bill has, because a subscription pays for them."""

NOT_OF_A_SUBSCRIPTION = "credential_kind IS NOT 'oauth'"
"""SQL: rows that are on the API bill, or will be."""

CHARGED = f"{NOT_OF_A_SUBSCRIPTION} AND {FINAL} AND money(CAST(total_cost AS BLOB)) IS NOT NULL"
"""SQL: rows that cost something on the bill (`money` is the reader's function)."""

ON_THE_BILL = f"({NOT_OF_A_SUBSCRIPTION} AND NOT {PENDING})"
"""SQL: rows that the API bill is about: not those of subscriptions, and not what is still in flight."""

FLAGGED = "requires_manual_review = 1"
"""SQL: rows that want a person."""

CAME_WITHOUT = f"usage_state = 'missing' AND review_reason IS NOT 'body_not_captured' AND NOT {CORRECTED}"
"""SQL: requests of which upstream told no usage (of a body that was not captured nobody knows), nor a person since."""


@dataclasses.dataclass(frozen=True)
class Filters:
    """The shared filters. Times are as in the ledger (`moments`); `since` is included, `until` is not.

    Several values of one filter mean any of them; a `*` in one stands for any characters.
    """

    since: str | None = None
    until: str | None = None
    accounts: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    states: tuple[str, ...] = ()
    flagged: bool = False

    def where(self) -> tuple[str, list[str]]:
        """Return an SQL condition over `usage_records`, and the values to bind."""
        conditions, values = ["true"], []
        for operator, moment in ((">=", self.since), ("<", self.until)):
            if moment is not None:
                conditions.append(f"occurred_at {operator} ?")
                values.append(moment)
        for column, wanted in (
            ("account_id", self.accounts),
            ("api_key_hint", self.keys),
            ("model", self.models),
            ("tag", self.tags),
            ("usage_state", self.states),
        ):
            if wanted:
                found = [_matches(column, value) for value in wanted]
                conditions.append("(" + " OR ".join(condition for condition, _ in found) + ")")
                values += [value for _, value in found]
        if self.flagged:
            conditions.append(FLAGGED)
        return " AND ".join(conditions), values


def _matches(column: str, wanted: str) -> tuple[str, str]:
    """Return an SQL condition that a column is what is wanted, and the value to bind; `*` stands for any characters."""
    if "*" not in wanted:
        return f"{column} = ?", wanted
    # Leave `*` its meaning in GLOB, and take theirs from the other special characters.
    return f"{column} GLOB ?", re.sub(r"[\[?]", lambda found: f"[{found[0]}]", wanted)
