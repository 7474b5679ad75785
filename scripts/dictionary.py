"""The data dictionary, which `./scripts/reference` writes: each column of a row, its type, and what it says."""

import tempfile
from contextlib import closing
from pathlib import Path

from usage_ledger.ledger.presence import new_writer_id
from usage_ledger.ledger.store import Store

MEANINGS = {
    "id": "start in microseconds (hexadecimal), then the flow's id: read again, a capture finds its row; sent again, a "
    "request gets another",
    "occurred_at": "when the request began, as `2026-11-25T08:00:00.000Z` (UTC)",
    "completed_at": "when its response ended (UTC)",
    "account_id": "`usage_account`, else the organization, else `key:` and 12 hex digits of the credential's SHA-256, "
    "else `unknown`",
    "api_key_hint": "the key as the Console shows it, `sk-ant-api03-R2D...igAA`",
    "credential_kind": "`api_key`; `oauth` (a subscription, which no API bill has); `other`; `none`",
    "organization_id": "response header `anthropic-organization-id`",
    "workspace_id": "response header `anthropic-workspace-id`",
    "request_id": "response header `request-id`",
    "session_id": "header `x-claude-code-session-id`, else the session in the request's `metadata.user_id`",
    "tag": "the request header that `usage_tag_header` names",
    "host": "where the request went, as its Host header says",
    "path": "the same, without the query",
    "requested_model": "the model in the request",
    "model": "the model that answered, else the requested one, else `unknown`",
    "message_id": "as upstream said",
    "stop_reason": "as upstream said",
    "service_tier": "as upstream said: `standard`, `priority`, `batch`",
    "inference_geo": "as upstream said: where it was computed",
    "speed": "as upstream said: `standard`, `fast`",
    "stream": "1: the response was an event stream, or one was asked for and none came",
    "http_status": "status of the response; NULL where there was none",
    "input_tokens": "billed input, without cache tokens",
    "output_tokens": "billed output, thinking included",
    "cache_creation_input_tokens": "written to the cache, for 5 minutes, an hour or an untold time",
    "cache_creation_5m_input_tokens": "of these, for 5 minutes",
    "cache_creation_1h_input_tokens": "of these, for an hour",
    "cache_read_input_tokens": "read from the cache",
    "thinking_tokens": "of the output, thinking",
    "web_search_requests": "web searches, which are billed each",
    "web_fetch_requests": "web fetches",
    "total_tokens": "input, output, cache writes and cache reads together",
    "usage_state": "`pending`, `complete`, `partial` (a lower bound), `missing`, `none` (nothing is billed)",
    "requires_manual_review": "1: a person has to look at it",
    "review_reason": "why: one of those in the README's table of states",
    "total_cost": "USD, exact; `0` where nothing is billed; NULL while it is not known",
    "price_source": "name and version of the price data",
    "duration_ms": "from the request's start to the response's end",
    "time_to_first_token_ms": "from the request's start to the first output",
    "response_bytes": "bytes of the body as received, still compressed",
    "origin": "`live` or `replay`",
    "usage_raw": "JSON: `usage` as upstream sent it, merged over the stream's events",
    "metadata": "JSON: flags (`_no_usage_data`, `_partial_usage`, `_requires_manual_review`, `_manually_updated`, "
    "`_accepted`), `rate_limits`, `user_agent` and the like",
    "writer": "version and process that wrote the row",
}


def dictionary() -> str:
    """The columns of `usage_records`, as a table."""
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(Store(Path(folder, "x.db"), "normal", new_writer_id())) as new,
    ):
        columns = new.connection.execute("SELECT name, type, \"notnull\", pk FROM pragma_table_info('usage_records')")
        lines = [_line(*column) for column in columns]
    return "\n".join(["| column | type | what it says |", "|---|---|---|", *lines]) + "\n"


def _line(name: str, type_: str, not_null: int, key: int) -> str:
    kind = f"{type_}, key" if key else f"{type_}, always" if not_null else type_
    return f"| `{name}` | {kind} | {MEANINGS[name]} |"
