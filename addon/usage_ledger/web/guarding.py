"""Guarding: who is shown the pages, and what leaves with them.

Room: web. Imports the standard library and Datasette's answers. Promises that nobody is answered who does not know the
token of this start, or whom a page of elsewhere has sent, that pages ask no other host for anything, and that no cell
of a CSV is one that a spreadsheet takes for a formula.
"""

import csv
import hmac
import io
import re
import sys
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

from datasette.utils.asgi import Response

type Scope = dict[str, Any]
type Send = Callable[[dict[str, Any]], Awaitable[None]]
type App = Callable[[Scope, Any, Send], Awaitable[None]]

PARAMETER = "token"
"""What the token is called in the address that is opened first."""

_HEADERS = {
    b"content-security-policy": (
        b"default-src 'self'; style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline'; "
        b"img-src 'self' data:; frame-ancestors 'none'; form-action 'self'; base-uri 'none'"
    ),
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-resource-policy": b"same-origin",
    b"cache-control": b"no-store",
}
"""No page may ask another host for anything, be part of another page, or be kept."""

_HOST = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d{1,5})?", re.IGNORECASE)
_NUMBER = re.compile(r"[-+]?\d+(\.\d+)?(e[-+]?\d+)?", re.IGNORECASE)


class Guard:
    """An application before another one.

    All users of a machine can ask for 127.0.0.1, so the address that is printed has a token. A browser that opens it
    gets a cookie for it; programs may send it as `Authorization: Bearer`.
    """

    def __init__(self, app: App, token: str, safe: Callable[[str], str]) -> None:
        """Guard `app`; `safe` makes a text fit for a cell of a spreadsheet."""
        self._app, self._token, self._safe = app, token, safe

    async def __call__(self, scope: Scope, receive: Any, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sending = self._sending(scope, send)
        answer = self._instead(scope)
        if answer is None:
            await self._app(scope, receive, sending)
        else:
            await answer.asgi_send(sending)

    def _instead(self, scope: Scope) -> Response | None:
        """Return what is answered in place of the page; None where it may be seen."""
        hosts = _values(scope, b"host")
        if len(hosts) != 1 or not _HOST.fullmatch(hosts[0]):
            # A page elsewhere can make a browser ask here under a name of its own (DNS rebinding).
            return Response.text("ask for 127.0.0.1\n", status=421)
        if scope["method"] not in ("GET", "HEAD"):
            return Response.text("there is nothing to write here\n", status=405)
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        cookie = f"usage_ledger_{(scope.get('server') or ('', 0))[1]}"  # browsers keep one set for all ports
        if any(name == PARAMETER and self._is_right(value) for name, value in query):
            rest = urlencode([(name, value) for name, value in query if name != PARAMETER])
            path = "/" + quote(scope["path"].lstrip("/\\"), safe="/~")
            answer = Response.redirect(f"{path}?{rest}" if rest else path, status=303)
            answer.set_cookie(cookie, self._token, httponly=True, samesite="strict")
            return answer
        if any(value not in ("same-origin", "none") for value in _values(scope, b"sec-fetch-site")):
            return Response.text("a page of elsewhere has asked for this; open it by yourself\n", status=403)
        pairs = [pair.strip().partition("=") for value in _values(scope, b"cookie") for pair in value.split(";")]
        told = [value for name, _, value in pairs if name == cookie]
        told += [value.removeprefix("Bearer ") for value in _values(scope, b"authorization")]
        if not any(map(self._is_right, told)):
            return Response.text("open the address that usage-ledger serve has printed: it has a token\n", status=403)
        return None

    def _is_right(self, token: str) -> bool:
        return hmac.compare_digest(token.encode(), self._token.encode())

    def _sending(self, scope: Scope, send: Send) -> Send:
        """Return a `send` that adds the headers, and makes the cells of a CSV safe."""
        cells: _Cells | None = None

        async def sending(message: dict[str, Any]) -> None:
            nonlocal cells
            if message["type"] == "http.response.start":
                if message["status"] == 200 and scope["path"].endswith(".csv"):
                    cells = _Cells(self._safe)
                kept = [pair for pair in message["headers"] if pair[0].lower() not in _HEADERS]
                message = {**message, "headers": [*kept, *_HEADERS.items()]}
            elif cells is not None:
                goes_on = message.get("more_body", False)
                message = {**message, "body": cells.through(message.get("body", b""), goes_on)}
                if not goes_on and cells.is_broken:
                    return  # so that the transfer fails: half of a CSV looks like one
            await send(message)

        return sending


class _Cells:
    """A CSV on its way to a spreadsheet, in pieces."""

    def __init__(self, safe: Callable[[str], str]) -> None:
        self._safe = safe
        self._rest = b""
        self.is_broken = False
        """Whether it ended within a line, as Datasette ends one with what went wrong."""
        csv.field_size_limit(sys.maxsize)

    def through(self, piece: bytes, goes_on: bool) -> bytes:
        """Take the next piece; return the lines that are whole by now, without a formula in them."""
        self._rest += piece
        if goes_on and (self._rest.count(b'"') % 2 or not self._rest.endswith(b"\n")):
            return b""
        self.is_broken = bool(self._rest) and not self._rest.endswith(b"\n")
        lines, self._rest = self._rest.decode("utf-8", "replace"), b""
        out = io.StringIO()
        told = csv.reader(io.StringIO(lines, newline=""))
        csv.writer(out, lineterminator="\r\n").writerows(map(self._cell, line) for line in told)
        return out.getvalue().encode()

    def _cell(self, text: str) -> str:
        return text if _NUMBER.fullmatch(text) else self._safe(text)


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]
