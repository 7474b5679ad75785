"""The names of the ledger's columns, for readers that need no more than names.

Room: ledger. Imports nothing. A test holds them to the schema and to `record.Record`.
"""

COUNT_COLUMNS = (
    "input_tokens",
    "output_tokens",
    "cache_creation_input_tokens",
    "cache_creation_5m_input_tokens",
    "cache_creation_1h_input_tokens",
    "cache_read_input_tokens",
    "thinking_tokens",
    "web_search_requests",
    "web_fetch_requests",
)
"""The counts that upstream tells."""

STATES = ("pending", "missing", "partial", "none", "complete")
"""The states of a row's usage, those that are worth more behind those that are worth less."""

TOTALLED = ("input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
"""The counts that `total_tokens` adds up."""

CACHE_DURATIONS = ("cache_creation_5m_input_tokens", "cache_creation_1h_input_tokens")
"""What `cache_creation_input_tokens` is told apart into; where upstream does not say, their sum is less."""

ITERATION_COUNTS = COUNT_COLUMNS[:6]
"""The counts of an iteration; thinking and web tools are counted for whole rows alone."""

COUNT_LIMIT = 10**15
"""A count above this is not a count (SQLite's integers end at 9.2e18, and sums must fit as well)."""

COLUMNS = (
    "id",
    "occurred_at",
    "completed_at",
    "account_id",
    "api_key_hint",
    "credential_kind",
    "organization_id",
    "workspace_id",
    "request_id",
    "session_id",
    "tag",
    "host",
    "path",
    "requested_model",
    "model",
    "message_id",
    "stop_reason",
    "service_tier",
    "inference_geo",
    "speed",
    "stream",
    "http_status",
    *COUNT_COLUMNS,
    "total_tokens",
    "usage_state",
    "requires_manual_review",
    "review_reason",
    "total_cost",
    "price_source",
    "duration_ms",
    "time_to_first_token_ms",
    "response_bytes",
    "origin",
    "usage_raw",
    "metadata",
    "writer",
)

NUMBER_COLUMNS = (
    *COUNT_COLUMNS,
    "stream",
    "http_status",
    "total_tokens",
    "requires_manual_review",
    "duration_ms",
    "time_to_first_token_ms",
    "response_bytes",
)
"""The columns that hold whole numbers; all others hold text."""

ITERATION_COLUMNS = (
    "record_id",
    "position",
    "type",
    "model",
    "billed",
    *ITERATION_COUNTS,
    "total_cost",
)
"""The columns of `usage_iterations`."""

JSON_COLUMNS = ("usage_raw", "metadata")
