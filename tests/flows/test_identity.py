"""Who a request is from: credentials leave only as the Console's hint and a short hash."""

import pytest
from mitmproxy import http
from usage_ledger.flows.identity import credential_of, folded, hint_of, name_requester, rate_limits
from usage_ledger.ledger.record import Record

API_KEY = "sk-ant-api03-R2D2abcdefghijklmnopqrstuvwxyzigAA"
OAUTH = "sk-ant-oat01-abcdefghijklmnopqrstuvwxyz0123456789"


@pytest.mark.parametrize(
    ("headers", "kind", "hint"),
    [
        ({"x-api-key": API_KEY}, "api_key", "sk-ant-api03-R2D...igAA"),
        ({"authorization": f"Bearer {API_KEY}"}, "api_key", "sk-ant-api03-R2D...igAA"),
        ({"authorization": f"bearer {OAUTH}"}, "oauth", "sk-ant-oat01-abc...6789"),
        ({"x-api-key": "relay-key-of-somebody-else-0001"}, "api_key", "rel...0001"),
        ({"authorization": "Bearer relay-token-of-somebody-9"}, "other", "rel...dy-9"),
        ({"authorization": "Basic dXNlcjpwYXNz"}, "other", None),
        ({"x-api-key": "sk-ant-api03-short"}, "api_key", "sk-ant-api03-..."),
        ({"x-api-key": "short"}, "api_key", "..."),
        ({}, "none", None),
    ],
)
def test_a_credential_is_known_by_its_kind_and_its_hint(headers: dict[str, str], kind: str, hint: str | None) -> None:
    credential, found = credential_of(http.Headers(**{name.replace("-", "_"): v for name, v in headers.items()}))
    assert (found, hint_of(credential)) == (kind, hint)


def test_the_account_of_a_key_is_the_same_each_time_and_does_not_tell_the_key() -> None:
    records = [Record(id="", occurred_at="", host="", path="") for _ in range(3)]
    name_requester(records[0], http.Headers(x_api_key=API_KEY), "")
    name_requester(records[1], http.Headers(authorization=f"Bearer {API_KEY}"), "")
    name_requester(records[2], http.Headers(x_api_key=API_KEY), "acme")
    assert records[0].account_id == records[1].account_id
    assert records[0].account_id.startswith("key:")
    assert len(records[0].account_id) == len("key:") + 12
    assert records[2].account_id == "acme"
    assert all("abcdefghij" not in str(record) for record in records)


def test_headers_that_are_no_text_become_text() -> None:
    record = Record(id="", occurred_at="", host="", path="")
    name_requester(
        record, http.Headers([(b"x-api-key", b"\xff\xfe" * 20), (b"x-claude-code-session-id", b"\x1b[2J")]), ""
    )
    assert record.session_id == "\ufffd[2J"
    assert "\udcff" not in str(record)
    limits = rate_limits(http.Headers([(b"anthropic-ratelimit-requests-limit", b"5\xff"), (b"other", b"1")]))
    assert limits == {"anthropic-ratelimit-requests-limit": "5\ufffd"}


def test_headers_are_folded_as_mitmproxy_folds_them() -> None:
    fields = [(b"X-Api-Key", b"a"), (b"x-api-key", b"b"), (b"Request-Id", b"r\xff"), (b"ACCEPT", b"")]
    headers = http.Headers(fields)
    assert folded(headers) == {name: headers[name] for name in ("x-api-key", "request-id", "accept")}
