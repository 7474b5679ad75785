"""Usage objects: what upstream counts, how the reports of one message merge, and what of them is billed.

Room: messages. Imports the standard library, `msgspec` and its neighbours in this room. All counts are whole tokens (or
requests, for the web tools). Promises that nothing is estimated: a count is what upstream said last, or 0.
"""

from typing import Any

import msgspec

from usage_ledger.messages.text import text_or_none

COUNT_LIMIT = 10**15
"""A count above this is not a count (SQLite's integers end at 9.2e18, and sums must fit as well)."""

USAGE_LIMIT = 64 * 1024
"""Bytes kept of one message's usage as JSON (recorded ones have a few hundred); beyond it only what is counted."""

_DEPTH_LIMIT = 4
_ENTRIES_LIMIT = 256


class Counts(msgspec.Struct):
    """Tokens by kind. `input_tokens` excludes cache tokens, `thinking_tokens` are part of `output_tokens`."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_creation_input_tokens: int = 0
    cache_creation_5m_input_tokens: int = 0
    cache_creation_1h_input_tokens: int = 0
    cache_read_input_tokens: int = 0
    thinking_tokens: int = 0
    web_search_requests: int = 0
    web_fetch_requests: int = 0

    @property
    def total_tokens(self) -> int:
        return self.input_tokens + self.output_tokens + self.cache_creation_input_tokens + self.cache_read_input_tokens

    @property
    def cache_split_unknown(self) -> bool:
        """Whether cache creation is not told apart into 5 minutes and 1 hour, or not in a way that adds up."""
        split = self.cache_creation_5m_input_tokens + self.cache_creation_1h_input_tokens
        return self.cache_creation_input_tokens != split

    def add(self, other: "Counts") -> None:
        for name in COUNT_NAMES:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def any(self) -> bool:
        return any(getattr(self, name) for name in COUNT_NAMES)


COUNT_NAMES = Counts.__struct_fields__

COUNT_PATHS: tuple[tuple[str, ...], ...] = (
    ("input_tokens",),
    ("output_tokens",),
    ("cache_creation_input_tokens",),
    ("cache_creation", "ephemeral_5m_input_tokens"),
    ("cache_creation", "ephemeral_1h_input_tokens"),
    ("cache_read_input_tokens",),
    ("output_tokens_details", "thinking_tokens"),
    ("server_tool_use", "web_search_requests"),
    ("server_tool_use", "web_fetch_requests"),
)
"""Where the API keeps each of `COUNT_NAMES` (SDK type `BetaUsage`)."""

PRICED_BY = ("service_tier", "inference_geo", "speed")
"""What of a usage object its price goes by, beside the model."""

_TEXTS = (*PRICED_BY, "type", "model")
_ALONE = tuple(path[0] for path in COUNT_PATHS if len(path) == 1)
_GROUPS = {path[0]: tuple(each[1] for each in COUNT_PATHS if each[0] == path[0]) for path in COUNT_PATHS if path[1:]}


class Iteration(msgspec.Struct):
    """One entry of `usage.iterations`: an attempt, an advisor's turn or a compaction, with its own counts.

    `billed` is None where upstream does not say: an attempt that was declined without output.
    """

    type: str | None
    model: str | None
    billed: bool | None
    counts: Counts


def as_count(value: object) -> int | None:
    """Return a whole number >= 0 as int (`500.0` is one), None for anything else. `true` is not a number."""
    if type(value) is int:
        return value if 0 <= value <= COUNT_LIMIT else None
    if type(value) is float and value.is_integer():
        return as_count(int(value))
    return None


def value_at(usage: Any, path: tuple[str, ...]) -> Any:
    """Return what a usage object has at a path of names; None where it has nothing there."""
    for name in path:
        usage = usage.get(name) if isinstance(usage, dict) else None
    return usage


def sift(usage: object) -> tuple[dict[str, Any] | None, bool]:
    """Take one usage object as upstream sent it; return it without invalid counts, and whether it had any.

    None stands for no usage: null, `{}`, or something that is not an object (which is invalid as well).
    """
    if usage is None or usage == {}:
        return None, False
    if not isinstance(usage, dict):
        return None, True
    good, malformed = _sift_counts(usage)
    entries = usage.get("iterations")
    if entries is not None:
        if isinstance(entries, list) and len(entries) <= _ENTRIES_LIMIT:
            sifted = [_sift_counts(entry) for entry in entries if isinstance(entry, dict)]
            malformed = malformed or len(sifted) < len(entries) or any(bad for _, bad in sifted)
            good["iterations"] = [entry for entry, _ in sifted]
        else:
            malformed = True
            del good["iterations"]
    return good, malformed


def _sift_counts(usage: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    good = dict(usage)
    malformed = _drop_invalid(good, _ALONE)
    for group, names in _GROUPS.items():
        value = usage.get(group)
        if isinstance(value, dict):
            good[group] = held = dict(value)
            malformed = _drop_invalid(held, names) or malformed
        elif value is not None:
            malformed = True
            del good[group]
    return good, malformed


def _drop_invalid(holder: dict[str, Any], names: tuple[str, ...]) -> bool:
    """Keep what of these is a count, as int; return whether anything is none."""
    malformed = False
    for name in names:
        value = holder.get(name)
        if value is not None:
            count = as_count(value)
            if count is None:
                malformed = True
                del holder[name]
            else:
                holder[name] = count
    return malformed


def says_output(usage: dict[str, Any]) -> bool:
    """Whether a sifted usage object tells the output, itself or in its iterations."""
    return usage.get("output_tokens") is not None or any(
        entry.get("output_tokens") is not None for entry in usage.get("iterations") or ()
    )


def says_anything(usage: dict[str, Any]) -> bool:
    """Whether a sifted usage object tells any count at all, itself or in its iterations."""
    return any(
        value_at(each, path) is not None for each in (usage, *(usage.get("iterations") or ())) for path in COUNT_PATHS
    )


def merge(known: dict[str, Any], news: dict[str, Any], depth: int = 0) -> None:
    """Merge a later usage object into `known`: the last positive value of each field wins.

    A later null, 0, empty text or empty list erases nothing; numbers are never added up, because the API's counts are
    cumulative (docs: "the token counts shown in the usage field of the message_delta event are cumulative").
    """
    for key, value in news.items():
        if key not in known:
            known[key] = value
        elif key == "iterations" and isinstance(value, list) and isinstance(known[key], list):
            _merge_entries(known[key], value, depth)
        elif isinstance(value, dict):
            if isinstance(known[key], dict) and depth < _DEPTH_LIMIT:
                merge(known[key], value, depth + 1)
            elif not known[key]:
                known[key] = value
        elif isinstance(value, int | float) and not isinstance(value, bool):
            if value > 0:
                known[key] = value
        elif value or (value is False and known[key] is None):
            known[key] = value


def _merge_entries(known: list[Any], news: list[Any], depth: int) -> None:
    """Merge a later `iterations` list, entry by entry: it goes on where the earlier one ended."""
    for place, entry in enumerate(news):
        if place >= len(known):
            known.append(entry)
        elif depth < _DEPTH_LIMIT and _is_same_entry(known[place], entry):
            merge(known[place], entry, depth + 1)
        else:
            known[place] = entry


def _is_same_entry(one: object, other: object) -> bool:
    return (
        isinstance(one, dict)
        and isinstance(other, dict)
        and all(one.get(name) == other.get(name) or other.get(name) is None for name in ("type", "model"))
    )


def bounded(usage: dict[str, Any]) -> dict[str, Any]:
    """Return a usage object as it is, or what is counted of it where all of it is more than `USAGE_LIMIT`."""
    try:
        fits = len(msgspec.json.encode(usage)) <= USAGE_LIMIT
    except (msgspec.MsgspecError, ValueError, RecursionError, OverflowError):
        fits = False
    return usage if fits else _counted(usage)


def _counted(usage: dict[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for path in COUNT_PATHS:
        count = as_count(value_at(usage, path))
        if count is not None:
            (kept if len(path) == 1 else kept.setdefault(path[0], {}))[path[-1]] = count
    kept |= {name: value[:256] for name in _TEXTS if isinstance(value := usage.get(name), str)}
    entries = usage.get("iterations")
    if isinstance(entries, list):
        kept["iterations"] = [_counted(entry) for entry in entries[:_ENTRIES_LIMIT] if isinstance(entry, dict)]
    return kept


def counts_of(usage: dict[str, Any]) -> Counts:
    """Read the counts of a sifted usage object (or of one iteration); absent ones are 0.

    Where upstream told no cache creation total, it is the sum of its split; a total that was told stands, and what the
    split does not explain is of unknown duration (`Counts.cache_split_unknown`).
    """
    counts = Counts(*(as_count(value_at(usage, path)) or 0 for path in COUNT_PATHS))
    if not counts.cache_creation_input_tokens:
        split = counts.cache_creation_5m_input_tokens + counts.cache_creation_1h_input_tokens
        counts.cache_creation_input_tokens = split
    return counts


def _tell_split(top: Counts, iterations: list[Iteration]) -> None:
    """Give the one entry that wrote to the cache the durations that only the top level tells."""
    writers = [each.counts for each in iterations if each.counts.cache_creation_input_tokens]
    if len(writers) != 1 or top.cache_split_unknown:
        return
    (counts,) = writers
    told = counts.cache_creation_5m_input_tokens or counts.cache_creation_1h_input_tokens
    if not told and counts.cache_creation_input_tokens == top.cache_creation_input_tokens:
        counts.cache_creation_5m_input_tokens = top.cache_creation_5m_input_tokens
        counts.cache_creation_1h_input_tokens = top.cache_creation_1h_input_tokens


def billed_by(usage: dict[str, Any]) -> tuple[Counts, list[Iteration]]:
    """Return what a merged usage object bills, and its iterations.

    "The `usage.iterations` array is the per-attempt record of what you're billed. The top-level counts describe only
    the attempt that produced the returned message" (API docs, refusals and fallback). So the billed entries are added
    up where they say anything, else the top level stands. What entries never carry (web tools, thinking) comes from
    the top level.
    """
    top = counts_of(usage)
    entries = [entry for entry in usage.get("iterations") or () if isinstance(entry, dict)]
    fell_back = any(entry.get("type") == "fallback_message" for entry in entries)
    iterations = []
    for entry in entries:
        counts = counts_of(entry)
        # Whether a declined attempt without output is billed depends on its refusal's category, which is not told.
        declined = fell_back and entry.get("type") == "message" and counts.output_tokens == 0
        iterations.append(
            Iteration(
                type=text_or_none(entry.get("type"), 64),
                model=text_or_none(entry.get("model"), 128),
                billed=None if declined else True,
                counts=counts,
            )
        )
    if not any(iteration.counts.total_tokens for iteration in iterations):
        return top, iterations
    _tell_split(top, iterations)
    total = _billed(iterations)
    for name in ("thinking_tokens", "web_search_requests", "web_fetch_requests"):
        setattr(total, name, max(getattr(total, name), getattr(top, name)))
    return total, iterations


def billed_beside_refusal(iterations: list[Iteration]) -> Counts:
    """Mark the attempt that an unbilled refusal ended as not billed, and return what the other entries bill."""
    attempts = [each for each in iterations if each.type in (None, "message", "fallback_message")]
    if attempts:
        attempts[-1].billed = False
    return _billed(iterations)


def _billed(iterations: list[Iteration]) -> Counts:
    """Add up what is billed of iterations."""
    total = Counts()
    for iteration in iterations:
        if iteration.billed:
            total.add(iteration.counts)
    return total
