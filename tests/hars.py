"""HAR files as mitmproxy writes them, for tests that need one of traffic that is hard to have."""

import json
from pathlib import Path
from typing import Any

REQUEST = '{"model": "claude-asked", "stream": true}'


def har_entry(
    started: str = "2026-11-01T08:00:00.123456+00:00",
    body: str | None = None,
    headers: dict[str, str] | None = None,
    *,
    status: int = 200,
    host: str = "api.anthropic.com",
    server: str | None = "192.0.2.1",
) -> dict[str, Any]:
    """Return the entry of a request. `status` 0: it has no response; `server` None: it never went upstream."""
    told = {"content-type": "text/event-stream", **(headers or {})} if status else {}
    content = {"mimeType": "text/event-stream"} | ({} if body is None else {"text": body})
    entry = {
        "startedDateTime": started,
        "time": 1000,
        "request": {
            "method": "POST",
            "url": f"https://{host}/v1/messages",
            "httpVersion": "HTTP/1.1",
            "headers": [{"name": "host", "value": host}],
            "postData": {"mimeType": "application/json", "text": REQUEST, "params": []},
        },
        "response": {
            "status": status,
            "httpVersion": "HTTP/1.1",
            "headers": [{"name": name, "value": value} for name, value in told.items()],
            "content": content,
        },
        "timings": {"connect": -1.0, "ssl": -1.0, "send": 0.25, "receive": 1.5, "wait": 2.5},
    }
    return entry | ({} if server is None else {"serverIPAddress": server})


def write_har(path: Path, *entries: dict[str, Any], creator: str = "mitmproxy") -> Path:
    """Write a HAR of these entries."""
    log = {"version": "1.2", "creator": {"name": creator, "version": "12.2.3"}, "pages": [], "entries": entries}
    path.write_text(json.dumps({"log": log}, indent=4))
    return path
