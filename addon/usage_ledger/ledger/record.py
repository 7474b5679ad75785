"""The record: one row of `usage_records`, as everything outside this room builds it.

Room: ledger. Imports the standard library and `msgspec`. A record's fields are the columns in table order, in which
they are bound to the statements that write rows (`statements`), and in which a spilled row is a JSON array (`spill`).
"""

from collections.abc import Iterable
from typing import Any

import msgspec


class IterationRow(msgspec.Struct, array_like=True):
    """One row of `usage_iterations`. `billed`: 1, 0, or None where upstream does not say. All counts are tokens.

    `total_cost` is USD, for its tokens alone; None where it is not billed, or not priced.
    """

    record_id: str
    position: int
    type: str | None
    model: str | None
    billed: int | None
    input_tokens: int = 0
    output_tokens: int = 0
    cache_creation_input_tokens: int = 0
    cache_creation_5m_input_tokens: int = 0
    cache_creation_1h_input_tokens: int = 0
    cache_read_input_tokens: int = 0
    total_cost: str | None = None


class Record(msgspec.Struct, array_like=True, kw_only=True):
    """One request. Times are ISO 8601 UTC with milliseconds and `Z`, `_ms` are milliseconds, `total_cost` is USD.

    `usage_raw` and `metadata` are JSON text. The fields are the table's columns, in its order.
    """

    id: str
    occurred_at: str
    completed_at: str | None = None
    account_id: str = "unknown"
    api_key_hint: str | None = None
    credential_kind: str = "none"
    organization_id: str | None = None
    workspace_id: str | None = None
    request_id: str | None = None
    session_id: str | None = None
    tag: str | None = None
    host: str
    path: str
    requested_model: str | None = None
    model: str = "unknown"
    message_id: str | None = None
    stop_reason: str | None = None
    service_tier: str | None = None
    inference_geo: str | None = None
    speed: str | None = None
    stream: int = 0
    http_status: int | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    cache_creation_input_tokens: int = 0
    cache_creation_5m_input_tokens: int = 0
    cache_creation_1h_input_tokens: int = 0
    cache_read_input_tokens: int = 0
    thinking_tokens: int = 0
    web_search_requests: int = 0
    web_fetch_requests: int = 0
    total_tokens: int = 0
    usage_state: str = "pending"
    requires_manual_review: int = 0
    review_reason: str | None = None
    total_cost: str | None = None
    price_source: str | None = None
    duration_ms: int | None = None
    time_to_first_token_ms: int | None = None
    response_bytes: int | None = None
    origin: str = "live"
    usage_raw: str | None = None
    metadata: str = "{}"
    writer: str = ""


class Entry(msgspec.Struct):
    """What is handed to the writer: a record with its iterations, and how it finds its row.

    `identify` is set for flows whose id is new at each read (HAR), `alias` for those of a capture: it is the id under
    which a HAR of the same flow has made its row. Either finds its row by what else lasts (`statements.finding`).
    `only_new` adds a row but changes none. `redacted`: who asked, and where, is filler here, so that a row which is
    there keeps what it says of that.
    """

    record: Record
    iterations: list[IterationRow] = msgspec.field(default_factory=list)
    identify: bool = False
    alias: str | None = None
    only_new: bool = False
    redacted: bool = False


def fields_of(record: Record, names: Iterable[str]) -> dict[str, Any]:
    """Return what a row says in these columns."""
    return {name: getattr(record, name) for name in names}


def metadata_of(record: Record) -> dict[str, Any]:
    """Return a row's metadata; nothing where another program has made something else of it than a JSON object."""
    try:
        metadata = msgspec.json.decode(record.metadata)
    except (msgspec.DecodeError, RecursionError):
        return {}
    return metadata if isinstance(metadata, dict) else {}
