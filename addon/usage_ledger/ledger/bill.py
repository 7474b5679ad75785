"""The bill: what upstream says was used and what it cost, in tables beside the rows.

Room: ledger. Imports the standard library and its neighbours in this room. Counts are tokens (and web searches), money
is USD as exact text, times are as everywhere in the ledger. A bucket is a span of time with the lines that upstream
billed in it; whole buckets are stored, each with the answer or file that it came from. Promises that storing the same
bucket again changes nothing, and that one that says something else is never stored beside the first.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from usage_ledger.ledger.marks import LedgerError
from usage_ledger.ledger.moments import start_of
from usage_ledger.ledger.reading import Reader
from usage_ledger.ledger.revisions import who

if TYPE_CHECKING:
    from usage_ledger.ledger.editing import Editor

KINDS = (
    "input_tokens",
    "output_tokens",
    "cache_creation_5m_input_tokens",
    "cache_creation_1h_input_tokens",
    "cache_read_input_tokens",
    "web_search_requests",
)
"""What a bill counts."""


class UsageLine(NamedTuple):
    """What was used of one model by one key, and how. `api_key` and `workspace` are ids or, in a Console's CSV, names.

    None stands for what the source does not say; the default workspace has no id.
    """

    model: str | None = None
    api_key: str | None = None
    workspace: str | None = None
    service_tier: str | None = None
    context_window: str | None = None
    inference_geo: str | None = None
    speed: str | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    cache_creation_5m_input_tokens: int = 0
    cache_creation_1h_input_tokens: int = 0
    cache_read_input_tokens: int = 0
    web_search_requests: int = 0


class CostLine(NamedTuple):
    """What something cost. `amount` is USD."""

    amount: str
    description: str | None = None
    model: str | None = None
    api_key: str | None = None
    workspace: str | None = None
    service_tier: str | None = None
    context_window: str | None = None
    inference_geo: str | None = None
    speed: str | None = None
    token_type: str | None = None
    cost_type: str | None = None


class KeyLine(NamedTuple):
    """An API key as upstream lists it: `hint` is what the Console shows of it, and what rows have."""

    id: str
    name: str | None
    hint: str | None
    workspace: str | None
    status: str | None


class Bucket(NamedTuple):
    """A span of time, and what was billed in it; the order of its lines means nothing."""

    since: str
    until: str
    lines: tuple[UsageLine | CostLine, ...]


class Answer(NamedTuple):
    """What buckets or keys came from: an answer of an API (`source` is its address) or a file (its name), as it came.

    `kind` is `usage`, `costs` or `keys`; `origin` is `api` or `csv`, which say keys and workspaces in different words.
    `as_of` is the ledger time of which it tells.
    """

    kind: str
    origin: str
    source: str
    body: str
    as_of: str


class Stored(NamedTuple):
    """How many buckets (or keys) were new, said something else than before, or were known."""

    new: int
    changed: int
    same: int


_TABLES: dict[str, tuple[str, type[UsageLine] | type[CostLine]]] = {
    "usage": ("bill_usage", UsageLine),
    "costs": ("bill_costs", CostLine),
}


LATE = timedelta(minutes=10)
"""A bucket is final once it was loaded so long after its end. The API docs say that usage shows within 5 minutes."""


def was_loaded_late(until: str, loaded_at: str) -> bool:
    """Whether a bucket was loaded late enough to be all that is billed in it."""
    return datetime.fromisoformat(loaded_at) >= datetime.fromisoformat(until) + LATE


class OverlapError(LedgerError):
    """A bucket that says something else than the ledger has of it."""


def store_buckets(editor: "Editor", answer: Answer, buckets: Sequence[Bucket], replace: bool = False) -> Stored:
    """Store buckets in one transaction: those that are known change nothing.

    One that says something else takes the place of the former with `replace`, else it is an `OverlapError` that shows
    both, and nothing is stored.
    """
    new = changed = same = 0
    with editor.transaction():
        number: int | None = None
        for bucket in buckets:
            known = _known(editor, answer, bucket)
            if known is not None and Counter(known.lines) == Counter(bucket.lines):
                same += 1
                if not was_loaded_late(bucket.until, known.loaded_at) and known.loaded_at < answer.as_of:
                    editor.connection.execute(
                        "UPDATE bill_buckets SET loaded_at = ? WHERE number = ?", (answer.as_of, known.number)
                    )
                continue
            if known is not None:
                if not replace:
                    raise OverlapError(_difference(bucket, known.lines))
                _forget(editor, answer.kind, known.number)
            changed += known is not None
            new += known is None
            number = _store_answer(editor, answer) if number is None else number
            _store_bucket(editor, answer, bucket, number)
        if not replace:
            _compare_with_others(editor, answer, buckets)
        _forget_unused(editor)
    editor.check_current()
    return Stored(new, changed, same)


def _compare_with_others(editor: "Editor", answer: Answer, buckets: Sequence[Bucket]) -> None:
    """Raise `OverlapError` where a day that was just stored has other numbers in another source, or by hours."""
    if answer.kind != "usage":
        return
    for day in sorted({date.fromisoformat(bucket.since[:10]) for bucket in buckets}):
        covers = whole_covers(bucket_spans(editor, "usage", start_of(day), start_of(day + timedelta(1))))
        totals = {}
        for (origin, width), spans in covers.items():
            lines = [line for span in spans for line in lines_of(editor, "usage", span.number)]
            totals[f"{origin} by {_WORDS.get(width, width)}"] = {
                name: sum(getattr(line, name) for line in lines) for name in KINDS
            }
        if len({tuple(each.values()) for each in totals.values()}) > 1:
            shown = "; ".join(f"{name}: {_differing(told, totals)}" for name, told in totals.items())
            raise OverlapError(f"{day} has other numbers in another source ({shown}); --replace takes both")


_WORDS = {timedelta(days=1): "day", timedelta(hours=1): "hours", timedelta(minutes=1): "minutes"}


def _differing(told: dict[str, int], totals: dict[str, dict[str, int]]) -> str:
    names = [name for name in KINDS if len({each[name] for each in totals.values()}) > 1]
    return ", ".join(f"{name} {told[name]}" for name in names)


def whole_covers(spans: Iterable["BucketSpan"]) -> dict[tuple[str, timedelta], list["BucketSpan"]]:
    """Return the buckets of one day by where they are from and how long they are, where they make up all of it."""
    found: dict[tuple[str, timedelta], list[BucketSpan]] = {}
    for each in spans:
        width = datetime.fromisoformat(each.until) - datetime.fromisoformat(each.since)
        found.setdefault((each.origin, width), []).append(each)
    return {key: each for key, each in found.items() if len(each) * key[1] == timedelta(days=1)}


def store_keys(editor: "Editor", answer: Answer, keys: Iterable[KeyLine]) -> Stored:
    """Store API keys; what is said of a known one takes the place of what was said before."""
    new = changed = same = 0
    with editor.transaction():
        number: int | None = None
        known = {key.id: key for key in api_keys(editor)}
        for key in keys:
            if known.get(key.id) == key:
                same += 1
                continue
            new += key.id not in known
            changed += key.id in known
            number = _store_answer(editor, answer) if number is None else number
            editor.connection.execute(
                "INSERT OR REPLACE INTO bill_keys (id, name, hint, workspace, status, answer) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                (*key, number),
            )
        _forget_unused(editor)
    editor.check_current()
    return Stored(new, changed, same)


def api_keys(reader: Reader) -> list[KeyLine]:
    """Return the API keys that are known, by id."""
    if not reader.has_table("bill_keys"):
        return []
    found = reader.connection.execute("SELECT id, name, hint, workspace, status FROM bill_keys ORDER BY id")
    return [KeyLine(*row) for row in found]


class BucketSpan(NamedTuple):
    """A bucket without its lines: where it is from, and when it was loaded."""

    number: int
    origin: str
    since: str
    until: str
    loaded_at: str


def bucket_spans(reader: Reader, kind: str, since: str, until: str) -> list[BucketSpan]:
    """Return the buckets of a kind that lie within a span, oldest first."""
    if not reader.has_table("bill_buckets"):
        return []
    found = reader.connection.execute(
        "SELECT number, origin, since, until, loaded_at FROM bill_buckets "
        "WHERE kind = ? AND since >= ? AND until <= ? ORDER BY since, until, origin",
        (kind, since, until),
    )
    return [BucketSpan(*row) for row in found]


def lines_of(reader: Reader, kind: str, number: int) -> list[Any]:
    """Return the lines (`UsageLine` or `CostLine`) of a bucket."""
    table, line = _TABLES[kind]
    found = reader.connection.execute(
        f"SELECT {', '.join(line._fields)} FROM {table} WHERE bucket = ? ORDER BY rowid", (number,)
    )
    return [line(*row) for row in found]


class _Known(NamedTuple):
    """What is known of a bucket."""

    number: int
    lines: list[Any]
    loaded_at: str


def _known(editor: "Editor", answer: Answer, bucket: Bucket) -> _Known | None:
    found = editor.connection.execute(
        "SELECT number, loaded_at FROM bill_buckets WHERE kind = ? AND origin = ? AND since = ? AND until = ?",
        (answer.kind, answer.origin, bucket.since, bucket.until),
    ).fetchone()
    return None if found is None else _Known(found[0], lines_of(editor, answer.kind, found[0]), found[1])


def _store_answer(editor: "Editor", answer: Answer) -> int:
    digest = hashlib.sha256(answer.body.encode()).hexdigest()
    number = editor.connection.execute(
        "INSERT INTO bill_answers (loaded_at, loaded_by, kind, origin, source, digest, body) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)",
        (answer.as_of, who(), answer.kind, answer.origin, answer.source, digest, answer.body),
    ).lastrowid
    assert number is not None
    return number


def _store_bucket(editor: "Editor", answer: Answer, bucket: Bucket, answer_number: int) -> None:
    table, line = _TABLES[answer.kind]
    number = editor.connection.execute(
        "INSERT INTO bill_buckets (kind, origin, since, until, loaded_at, answer) VALUES (?, ?, ?, ?, ?, ?)",
        (answer.kind, answer.origin, bucket.since, bucket.until, answer.as_of, answer_number),
    ).lastrowid
    places = ", ".join("?" for _ in range(len(line._fields) + 1))
    editor.connection.executemany(
        f"INSERT INTO {table} (bucket, {', '.join(line._fields)}) VALUES ({places})",
        [(number, *each) for each in bucket.lines],
    )


def _forget(editor: "Editor", kind: str, number: int) -> None:
    editor.connection.execute(f"DELETE FROM {_TABLES[kind][0]} WHERE bucket = ?", (number,))
    editor.connection.execute("DELETE FROM bill_buckets WHERE number = ?", (number,))


def _forget_unused(editor: "Editor") -> None:
    """Drop answers of which nothing is left: a bucket of today is asked for again and again."""
    editor.connection.execute(
        "DELETE FROM bill_answers WHERE number NOT IN (SELECT answer FROM bill_buckets) "
        "AND number NOT IN (SELECT answer FROM bill_keys)"
    )


def _difference(bucket: Bucket, known: list[Any]) -> str:
    """Show the first line in which two accounts of one bucket differ, as it was and as it is."""
    before, now = Counter(known), Counter(bucket.lines)
    gone, come = next(iter(before - now), None), next(iter(now - before), None)
    return (
        f"{bucket.since} to {bucket.until} is in the ledger with other numbers: {_shown(gone)} before, "
        f"{_shown(come)} now; --replace takes the new ones"
    )


def _shown(line: Any) -> str:
    if line is None:
        return "nothing"
    return "(" + ", ".join(f"{name} {value}" for name, value in line._asdict().items() if value not in (None, 0)) + ")"
