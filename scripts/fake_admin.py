"""A fake Admin API on loopback that bills what the fake Console really served, by the Console's own clock.

It computes its reports from `FakeConsole.served` alone, never from the ledger or with its code: so a difference between
the two is a finding. Which instant the real bill buckets by is not documented, so tests let it bucket by a request's
start or its end, and put its clock off. Only someone with an admin key gets an answer.
"""

import json
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from scripts.fake_console import Served

ADMIN_KEY = "sk-ant-admin01-of-no-value-whatsoever"
WIDTHS = {"1m": (timedelta(minutes=1), 60, 1440), "1h": (timedelta(hours=1), 24, 168), "1d": (timedelta(days=1), 7, 31)}
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DIMENSIONS = ("api_key_id", "workspace_id", "model", "service_tier", "context_window", "inference_geo", "speed")

PRICES = {
    # USD for a million tokens: input, output, 5-minute and 1-hour cache writes, cache reads (Anthropic's price page).
    "claude-sonnet-4-6": ("3", "15", "3.75", "6", "0.30"),
    "claude-sonnet-4-5": ("3", "15", "3.75", "6", "0.30"),
    "claude-haiku-4-5": ("1", "5", "1.25", "2", "0.10"),
    "claude-opus-4-7": ("5", "25", "6.25", "10", "0.50"),
}
KINDS = ("uncached_input_tokens", "output_tokens", "cache_5m", "cache_1h", "cache_read_input_tokens")

Fault = tuple[int, dict[str, str], bytes]


class FakeAdmin:
    """The server; use it with `with`. `served` is asked anew for each report.

    `bucket_by` is `start` or `end`, `skew` is how far its clock is ahead. `faults` are answered first, one a request.
    `requests` are the paths and parameters that were asked for.
    """

    def __init__(
        self, served: Callable[[], Iterable[Served]], bucket_by: str = "start", skew: timedelta = timedelta()
    ) -> None:
        self.served = served
        self.bucket_by = bucket_by
        self.skew = skew
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, dict[str, list[str]]]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                asked = parse_qs(parts.query)
                outer.requests.append((parts.path, asked))
                status, headers, body = outer.answer(parts.path, asked, self.headers.get("x-api-key", ""))
                self.send_response(status)
                for name, value in {"content-type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "FakeAdmin":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, asked: dict[str, list[str]], key: str) -> Fault:
        if self.faults:
            return self.faults.pop(0)
        if key != ADMIN_KEY:
            return refusal(401, "authentication_error", "invalid x-api-key")
        if path == "/v1/organizations/api_keys":
            return self._keys(asked)
        if path == "/v1/organizations/usage_report/messages":
            return self._report(asked, self._usage_results)
        if path == "/v1/organizations/cost_report":
            return self._report(asked, self._cost_results)
        return refusal(404, "not_found_error", "Not found")

    def _keys(self, asked: dict[str, list[str]]) -> Fault:
        keys = sorted({each.key.id: each.key for each in self.served()}.items())
        after, limit = asked.get("after_id", [""])[0], int(asked.get("limit", ["20"])[0])
        left = [key for id_, key in keys if id_ > after]
        page = [
            {
                "id": key.id,
                "type": "api_key",
                "name": key.name,
                "partial_key_hint": key.hint,
                "workspace_id": key.workspace,
                "status": "active",
            }
            for key in left[:limit]
        ]
        more = len(left) > limit
        return good({"data": page, "has_more": more, "last_id": page[-1]["id"] if page else None})

    def _report(self, asked: dict[str, list[str]], results: Callable[..., list[dict[str, Any]]]) -> Fault:
        """A report: buckets of one width, so many a page."""
        width = asked.get("bucket_width", ["1d"])[0]
        groups = asked.get("group_by[]", [])
        if width not in WIDTHS or "starting_at" not in asked or len(groups) > 5:
            return refusal(400, "invalid_request_error", "bucket_width, starting_at or group_by[] cannot be so")
        span, default, most = WIDTHS[width]
        limit = int(asked.get("limit", [str(default)])[0])
        if not 1 <= limit <= most:
            return refusal(400, "invalid_request_error", f"limit: at most {most}")
        start = datetime.fromisoformat(asked["starting_at"][0])
        end = datetime.fromisoformat(asked["ending_at"][0]) if "ending_at" in asked else datetime.now(UTC)
        start -= (start - EPOCH) % span
        first = datetime.fromisoformat(asked["page"][0].removeprefix("page_")) if "page" in asked else start
        found: dict[datetime, list[Served]] = defaultdict(list)
        for each in self.served():
            moment = (each.start if self.bucket_by == "start" else each.end) + self.skew
            found[moment - (moment - EPOCH) % span].append(each)
        data: list[dict[str, Any]] = []
        moment = first
        while moment < end and len(data) < limit:
            data.append(
                {
                    "starting_at": stamp(moment),
                    "ending_at": stamp(moment + span),
                    "results": results(found.get(moment, []), groups),
                }
            )
            moment += span
        more = moment < end
        return good({"data": data, "has_more": more, "next_page": f"page_{stamp(moment)}" if more else None})

    def _usage_results(self, served: list[Served], groups: list[str]) -> list[dict[str, Any]]:
        sums: dict[tuple[str | None, ...], dict[str, int]] = defaultdict(lambda: defaultdict(int))
        for each in served:
            for part in each.billed:
                told = {
                    "api_key_id": each.key.id,
                    "workspace_id": each.key.workspace,
                    "model": part.model,
                    "service_tier": part.tier,
                    "context_window": "0-200k",
                    "inference_geo": "not_available",
                    "speed": "standard",
                }
                group = sums[tuple(told[name] if name in groups else None for name in DIMENSIONS)]
                for kind, count in part.counts.items():
                    group[kind] += count
        return [
            {
                **dict(zip(DIMENSIONS, group, strict=True)),
                "uncached_input_tokens": counts["uncached_input_tokens"],
                "cache_creation": {
                    "ephemeral_5m_input_tokens": counts["cache_5m"],
                    "ephemeral_1h_input_tokens": counts["cache_1h"],
                },
                "cache_read_input_tokens": counts["cache_read_input_tokens"],
                "output_tokens": counts["output_tokens"],
                "server_tool_use": {"web_search_requests": counts["web_searches"]},
            }
            for group, counts in sums.items()
        ]

    def _cost_results(self, served: list[Served], _groups: list[str]) -> list[dict[str, Any]]:
        sums: dict[tuple[str | None, str, str, str], Decimal] = defaultdict(Decimal)
        for each in served:
            for part in each.billed:
                prices = PRICES.get(part.model.partition("-20")[0])
                for kind, price in zip(KINDS, prices or (), strict=False):
                    if part.counts.get(kind):
                        half = Decimal("0.5") if part.tier == "batch" else Decimal(1)
                        cents = Decimal(price) * part.counts[kind] * half / 10_000
                        sums[each.key.workspace, part.model, part.tier, kind] += cents
                if part.counts.get("web_searches"):
                    sums[each.key.workspace, part.model, part.tier, "web_searches"] += part.counts["web_searches"]
        return [
            {
                "amount": str(amount),
                "currency": "USD",
                "cost_type": "web_search" if kind == "web_searches" else "tokens",
                "description": f"{model} Usage - {kind}",
                "model": None if kind == "web_searches" else model,
                "token_type": None if kind == "web_searches" else kind,
                "service_tier": tier,
                "workspace_id": workspace,
                "context_window": "0-200k",
            }
            for (workspace, model, tier, kind), amount in sums.items()
        ]


def stamp(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def good(told: dict[str, Any]) -> Fault:
    return 200, {}, json.dumps(told).encode()


def refusal(status: int, kind: str, message: str) -> Fault:
    return status, {}, json.dumps({"type": "error", "error": {"type": kind, "message": message}}).encode()
