"""Parts: what of a row is priced, each part as the request of its own that it was.

Room: prices. Imports the standard library and the ledger's record. Prices may go by the length of a prompt, so tokens
of different requests are never added up before they are priced.
"""

from collections.abc import Sequence
from typing import NamedTuple

from usage_ledger.ledger.record import IterationRow, Record


class UnpricedError(LookupError):
    """Something has no price that is known. The message says what."""


class Tokens(NamedTuple):
    """Whole tokens by what they cost. `input` excludes cache tokens; `output` includes thinking."""

    input: int
    output: int
    cache_write_5m: int
    cache_write_1h: int
    cache_read: int


class Part(NamedTuple):
    """One billed request to one model. `place` is that of the iteration it is; None: it is all of the row."""

    model: str
    tokens: Tokens
    place: int | None = None


def parts_of(record: Record, iterations: Sequence[IterationRow], corrected: bool) -> list[Part]:
    """Return what is billed of a row.

    Its billed iterations, each under its own model, where they say anything ("the `usage.iterations` array is the
    per-attempt record of what you're billed", API docs); else its columns. A corrected row is what its columns say.
    Raises `UnpricedError` where a count is below 0, or where the iterations do not add up to the columns.
    """
    whole = Part(record.model, _tokens(record))
    if corrected or not any(any(_counts(iteration)) for iteration in iterations):
        return [whole]
    billed = [(place, iteration) for place, iteration in enumerate(iterations) if iteration.billed]
    if _counts(record) != tuple(map(sum, zip((0, 0, 0, 0), *(_counts(each) for _, each in billed), strict=True))):
        raise UnpricedError("its iterations do not add up to its tokens")
    return [Part(each.model or record.model, _tokens(each), place) for place, each in billed] or [whole]


def _counts(counted: Record | IterationRow) -> tuple[int, ...]:
    """The counts that make up the total."""
    return (
        counted.input_tokens,
        counted.output_tokens,
        counted.cache_creation_input_tokens,
        counted.cache_read_input_tokens,
    )


def _tokens(counted: Record | IterationRow) -> Tokens:
    """Read the counts; cache writes whose duration is not told are 5-minute ones, the API's default."""
    written = counted.cache_creation_input_tokens
    for_an_hour = min(counted.cache_creation_1h_input_tokens, written)
    tokens = Tokens(
        counted.input_tokens, counted.output_tokens, written - for_an_hour, for_an_hour, counted.cache_read_input_tokens
    )
    if min(tokens) < 0:
        raise UnpricedError("a count is below 0")
    return tokens
