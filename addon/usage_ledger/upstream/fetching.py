"""Fetching: the bill from the Admin API, page by page, into the ledger.

Room: upstream. Imports the standard library, the ledger and its neighbours in this room. Each page is stored as it
comes, whole buckets at a time, so that fetching that was interrupted goes on where it was.
"""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from usage_ledger.ledger.bill import Answer, Bucket, Stored, bucket_spans, store_buckets, store_keys, was_loaded_late
from usage_ledger.ledger.editing import Editor
from usage_ledger.ledger.moments import format_moment, now
from usage_ledger.upstream import answers
from usage_ledger.upstream.answers import EPOCH, BillError
from usage_ledger.upstream.api import AdminApi


class Width(NamedTuple):
    """A width of buckets: how long they are, and how many of them one answer has at most (API docs)."""

    span: timedelta
    limit: int


WIDTHS = {
    "1d": Width(timedelta(days=1), 31),
    "1h": Width(timedelta(hours=1), 168),
    "1m": Width(timedelta(minutes=1), 1440),
}
GROUP_BY = ("api_key_id", "workspace_id", "model", "service_tier", "inference_geo")
"""What usage is asked for by: the API takes five at most."""


def fetch_usage(
    editor: Editor, api: AdminApi, since: str, until: str, width: str, progress: Callable[[int], object]
) -> Stored:
    """Fetch the usage report of a span, but for buckets that the ledger has and that are final."""
    parameters = [("bucket_width", width), *(("group_by[]", name) for name in GROUP_BY)]
    return _fetch(editor, api, "usage", since, until, width, parameters, progress)


def fetch_costs(editor: Editor, api: AdminApi, since: str, until: str, progress: Callable[[int], object]) -> Stored:
    """Fetch the cost report of a span, in the same way; it has days alone."""
    parameters = [("bucket_width", "1d"), ("group_by[]", "workspace_id"), ("group_by[]", "description")]
    return _fetch(editor, api, "costs", since, until, "1d", parameters, progress)


def fetch_keys(editor: Editor, api: AdminApi) -> Stored:
    """Fetch the list of API keys, by which a row's hint finds the key that the bill names."""
    path = "/v1/organizations/api_keys"
    after: str | None = None
    seen: set[str] = set()
    stored = Stored(0, 0, 0)
    while True:
        body = api.get(path, [("limit", "100"), *([("after_id", after)] if after else [])])
        keys, after = answers.key_page(body.encode())
        stored = _plus(stored, store_keys(editor, Answer("keys", "api", f"{api.base_url}{path}", body, now()), keys))
        if after is None:
            return stored
        if after in seen or not keys:
            raise BillError(f"{api.base_url} goes on for ever: a page brings nothing new, and there is a next one")
        seen.add(after)


def spans(since: str, until: str, width: str) -> int:
    """Return how many buckets a span has."""
    first, last = _aligned(since, until, width)
    return int((last - first) / WIDTHS[width].span)


def _fetch(
    editor: Editor,
    api: AdminApi,
    kind: str,
    since: str,
    until: str,
    width: str,
    parameters: list[tuple[str, str]],
    progress: Callable[[int], object],
) -> Stored:
    path = f"/v1/organizations/{'usage_report/messages' if kind == 'usage' else 'cost_report'}"
    read = answers.usage_page if kind == "usage" else answers.cost_page
    span, limit = WIDTHS[width]
    first, last = _aligned(since, until, width)
    known = _final_buckets(editor, kind, first, last, span)
    progress(len(known))
    stored = Stored(0, 0, len(known))
    for start, end in _gaps(first, last, span, known):
        page: str | None = None
        seen: set[str] = set()
        while True:
            asked = [
                ("starting_at", _rfc3339(start)),
                ("ending_at", _rfc3339(end)),
                ("limit", str(limit)),
                *parameters,
                *([("page", page)] if page else []),
            ]
            body = api.get(path, asked)
            buckets, page = read(body.encode())
            for bucket in buckets:
                if not _is_asked_for(bucket, start, end, span) or bucket.since in seen:
                    raise BillError(
                        f"{api.base_url} answers with a bucket from {bucket.since}, which was not asked for"
                    )
                seen.add(bucket.since)
            answer = Answer(kind, "api", f"{api.base_url}{path}", body, now())
            stored = _plus(stored, store_buckets(editor, answer, buckets, replace=True))
            progress(len(buckets))
            if page is None:
                break
            if not buckets:
                raise BillError(f"{api.base_url} goes on for ever: a page has no buckets, and there is a next one")
    return stored


def _is_asked_for(bucket: Bucket, start: datetime, end: datetime, span: timedelta) -> bool:
    wide = datetime.fromisoformat(bucket.until) - datetime.fromisoformat(bucket.since)
    return format_moment(start) <= bucket.since < bucket.until <= format_moment(end) and wide == span


def _aligned(since: str, until: str, width: str) -> tuple[datetime, datetime]:
    """Return the span of whole buckets in which a span lies."""
    span = WIDTHS[width].span
    first, last = datetime.fromisoformat(since), datetime.fromisoformat(until)
    first -= (first - EPOCH) % span
    last += -(last - EPOCH) % span
    if first >= last:
        raise BillError("the span ends before it begins")
    return first, last


def _final_buckets(editor: Editor, kind: str, first: datetime, last: datetime, span: timedelta) -> set[datetime]:
    """Return where the buckets of this width begin that are in the ledger and final."""
    return {
        datetime.fromisoformat(each.since)
        for each in bucket_spans(editor, kind, format_moment(first), format_moment(last))
        if each.origin == "api"
        and datetime.fromisoformat(each.until) - datetime.fromisoformat(each.since) == span
        and was_loaded_late(each.until, each.loaded_at)
    }


def _gaps(
    first: datetime, last: datetime, span: timedelta, known: set[datetime]
) -> Iterator[tuple[datetime, datetime]]:
    """Yield the spans between known buckets."""
    start: datetime | None = None
    moment = first
    while moment < last:
        if moment in known:
            if start is not None:
                yield start, moment
            start = None
        elif start is None:
            start = moment
        moment += span
    if start is not None:
        yield start, last


def _rfc3339(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _plus(one: Stored, other: Stored) -> Stored:
    return Stored(*(mine + theirs for mine, theirs in zip(one, other, strict=True)))
