"""Anthropic's billing rules for refusals, as dated data.

Room: messages. Imports nothing but the standard library. The rule of September 2026 (API docs, "Refusals and
fallback"): a request that is refused before any output is billed only in the categories below; one refused after
output began is billed for its input and the output so far. When Anthropic changes the rule, add an entry with the day
from which it holds; the old ones stay, because old captures are still replayed.
"""

from datetime import date

BILLED_REFUSALS: tuple[tuple[date, frozenset[str]], ...] = (
    (date(2026, 9, 1), frozenset({"bio", "frontier_llm", "reasoning_extraction"})),
)
"""From which day (UTC) on which categories of a refusal without output are billed, oldest first."""


def refusal_is_billed(category: str | None, day: date | None = None) -> bool:
    """Whether a refusal without output in `category` is billed on `day` (None: today's rule, the last one).

    Before the first entry nothing else is known, so the first rule holds there as well.
    """
    billed = BILLED_REFUSALS[0][1]
    for start, categories in BILLED_REFUSALS:
        if day is None or start <= day:
            billed = categories
    return category in billed
