"""Bodies: what a response's body is by its headers, and who reads it.

Room: flows. Imports mitmproxy and the messages room.
"""

from collections.abc import Mapping

from mitmproxy import http

from usage_ledger.messages import MessageReader

REQUEST_LIMIT = 64 * 1024 * 1024
"""Bytes of a streamed request body that are kept for its few fields."""

EVENT_STREAM = "text/event-stream"


def media_type(headers: Mapping[str, str]) -> str:
    """Return the media type that a response's headers tell, without parameters."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def is_event_stream(response: http.Response) -> bool:
    """Whether a response is a stream of server-sent events by its content type."""
    return media_type(response.headers) == EVENT_STREAM


def read_whole(response: http.Response, clean: bool) -> MessageReader:
    """Read a body that is there in one piece."""
    reader = MessageReader(response.headers.get("content-encoding", ""))
    reader.feed(response.raw_content or b"")
    reader.finish(clean)
    return reader
