"""The Admin API: one GET after the other, with the patience it asks for.

Room: upstream. Imports the standard library, its neighbours in this room and `urllib3`, whose `Retry` knows
`retry-after` and backs off. Promises that the key is sent to the one address and stands in no message, and that
whatever the API answers instead of a report is a `BillError` that says what to do.
"""

import json
import os
from collections.abc import Sequence
from urllib.parse import urlencode, urlsplit

import urllib3
from urllib3.util import Retry, Timeout

from usage_ledger import __version__
from usage_ledger.upstream.answers import BillError

BASE_URL = "https://api.anthropic.com"
KEY = "ANTHROPIC_ADMIN_KEY"
API_VERSION = "2023-06-01"
BODY_LIMIT = 256 * 1024 * 1024

_AGAIN = (408, 409, 429, 500, 502, 503, 504, 529)
"""HTTP statuses that pass (529: overloaded)."""


class AdminApi:
    """An Admin API at an address, with a key from the environment."""

    def __init__(self, base_url: str = BASE_URL, tries: int = 8) -> None:
        """Raise `BillError` where there is no key, or no address."""
        try:
            parts = urlsplit(base_url)
            is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            is_address = False
        if not is_address:
            raise BillError(f"{base_url!r} is no address; say {BASE_URL}")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise BillError(f"an address has no password and no query; say {BASE_URL}")
        if parts.scheme == "http" and parts.hostname not in ("127.0.0.1", "localhost", "::1"):
            raise BillError(f"{base_url} would carry the key unencrypted; use https")
        self.base_url = base_url.rstrip("/")
        self._key = key = os.environ.get(KEY, "").strip()
        if not key:
            raise BillError(f"set {KEY} to an Admin API key (sk-ant-admin…; Console, settings, admin keys)")
        if not key.isascii() or not key.isprintable():
            raise BillError(f"{KEY} is not an API key")
        retry = Retry(
            total=tries,
            redirect=0,  # a key is not carried to where somebody else says
            status_forcelist=_AGAIN,
            backoff_factor=0.5,
            backoff_max=60,
            backoff_jitter=0.2,
            raise_on_status=False,
            raise_on_redirect=False,
            retry_after_max=300,
        )
        headers = {
            "x-api-key": key,
            "anthropic-version": API_VERSION,
            "accept": "application/json",
            "user-agent": f"claude-usage-ledger/{__version__}",
        }
        self._pool = urllib3.PoolManager(headers=headers, retries=retry, timeout=Timeout(connect=10, read=120))

    def get(self, path: str, parameters: Sequence[tuple[str, str]]) -> str:
        """Return the body of an answer that is JSON; raise `BillError` for everything else.

        Should it have the key in it, that is taken out: it is to be in no ledger and in no message.
        """
        url = f"{self.base_url}{path}?{urlencode(parameters)}"
        try:
            answer = self._pool.request("GET", url, preload_content=False)
            body = answer.read(BODY_LIMIT + 1, decode_content=True).replace(self._key.encode(), b"(the key)")
            answer.release_conn()
        except urllib3.exceptions.ProtocolError:
            raise BillError(f"an answer of {self.base_url} broke off; run it again, it goes on where it was") from None
        except (urllib3.exceptions.HTTPError, ValueError) as error:
            raise BillError(f"{self.base_url} cannot be reached: {_plainly(error)}") from None  # it may quote headers
        if answer.status != 200:
            raise BillError(_refusal(self.base_url, answer.status, body))
        if len(body) > BODY_LIMIT or "json" not in answer.headers.get("content-type", ""):
            raise BillError(f"{self.base_url} does not answer as an Admin API does; is --base-url right?")
        try:
            return body.decode()
        except UnicodeDecodeError as error:
            raise BillError(f"{self.base_url} answers with what is not UTF-8 text") from error


def _plainly(error: BaseException) -> str:
    """Say what went wrong, without the request in which it did."""
    while isinstance(inner := getattr(error, "reason", None), BaseException):
        error = inner
    return str(error).rpartition(": ")[2] or type(error).__name__


def _refusal(base_url: str, status: int, body: bytes) -> str:
    """Say in one line what an error answer means."""
    said = ""
    try:
        error = json.loads(body)["error"]
        said = f": {str(error['message'])[:200]}"
    except (ValueError, LookupError, TypeError, RecursionError):
        pass
    if status in (401, 403):
        return (
            f"the Admin API refuses the key ({status}{said}); {KEY} must be an Admin API key (sk-ant-admin…) of an "
            "organization, which individual accounts do not have"
        )
    if status in (301, 302, 303, 307, 308):
        return f"{base_url} answers with a redirect ({status}), which a key does not follow; is --base-url right?"
    if status == 404:
        return f"{base_url} has no Admin API (404{said}); is --base-url right?"
    if status in _AGAIN:
        return f"{base_url} answers {status}{said}, again and again; try later, it goes on where it was"
    return f"{base_url} refuses the request ({status}{said})"
