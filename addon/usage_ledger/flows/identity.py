"""Who a request is from and what it answers to: the columns that come from its headers.

Room: flows. Imports mitmproxy, the messages room and the ledger's record. Promises that no credential leaves here but
as the hint the Console shows and as a short hash. Headers are given by their names in lower case (`folded`).
"""

import hashlib
import re
from collections.abc import Mapping

from mitmproxy import http

from usage_ledger.ledger.record import Record
from usage_ledger.messages import text_or_none

_KEY = re.compile(r"(sk-ant-[a-z]+[0-9]*-)(.*)", re.DOTALL)
_ANYWHERE = re.compile(r"sk-ant-[A-Za-z0-9_-]+")
_SECRET_ENOUGH = 20
"""A credential whose secret part is shorter than this is hinted at without any of it."""


def folded(headers: http.Headers) -> dict[str, str]:
    """Return headers by their names in lower case, those of one name as mitmproxy joins them.

    Each look into mitmproxy's own headers goes over all of them (10 microseconds); rows take a dozen looks.
    """
    found: dict[str, str] = {}
    for raw_name, raw_value in headers.fields:
        name = raw_name.lower().decode("utf-8", "surrogateescape")
        value = raw_value.decode("utf-8", "surrogateescape")
        found[name] = f"{found[name]}, {value}" if name in found else value
    return found


def credential_of(headers: Mapping[str, str]) -> tuple[str, str]:
    """Return the credential a request carries ("" for none), and its kind (`api_key`, `oauth`, `other`, `none`)."""
    key = headers.get("x-api-key", "")
    scheme, _, token = headers.get("authorization", "").partition(" ")
    bearer = token.strip() if scheme.lower() == "bearer" else ""
    credential = key or bearer
    if not credential:
        return "", "other" if scheme else "none"
    if credential.startswith("sk-ant-oat"):
        return credential, "oauth"
    return credential, "api_key" if key or bearer.startswith("sk-ant-api") else "other"


def hint_of(credential: str) -> str | None:
    """Return a credential the way the Console shows it: `sk-ant-api03-R2D...igAA`."""
    if not credential:
        return None
    known = _KEY.fullmatch(credential)
    prefix, secret = known.groups() if known else ("", credential)
    if len(secret) < _SECRET_ENOUGH:
        return f"{text_or_none(prefix, 32) or ''}..."
    return text_or_none(f"{prefix}{secret[:3]}...{secret[-4:]}", 64)


def without_keys(text: str) -> str:
    """Return text from outside (a path, a tag) with hints in the place of API keys that somebody has put there."""
    return _ANYWHERE.sub(lambda found: hint_of(found[0]) or "", text)


def name_requester(record: Record, headers: Mapping[str, str], account: str) -> None:
    """Fill in what the request's headers tell: account (as far as known yet), credential, session."""
    credential, record.credential_kind = credential_of(headers)
    record.api_key_hint = hint_of(credential)
    if account:
        record.account_id = text_or_none(account) or "unknown"
    elif credential:
        digest = hashlib.sha256(credential.encode("utf-8", "surrogateescape")).hexdigest()
        record.account_id = f"key:{digest[:12]}"
    record.session_id = text_or_none(without_keys(headers.get("x-claude-code-session-id", "")), 128)


def name_answer(record: Record, headers: Mapping[str, str], account: str) -> None:
    """Fill in what the response's headers tell: organization, workspace, request id."""
    record.organization_id = text_or_none(headers.get("anthropic-organization-id"), 128)
    record.workspace_id = text_or_none(headers.get("anthropic-workspace-id"), 128)
    record.request_id = text_or_none(headers.get("request-id"), 128)
    if not account and record.organization_id:
        record.account_id = record.organization_id


def rate_limits(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the `anthropic-ratelimit-*` headers (names as in `folded`) under their full names, cleaned."""
    limits: dict[str, str] = {}
    for name, value in headers.items():
        if name.startswith("anthropic-ratelimit-") and len(limits) < 32:
            limits[text_or_none(name, 64) or ""] = text_or_none(value, 64) or ""
    return limits
