"""The exchange: one metered request in flight, from its pending row to its settled one.

Room: proxy. Imports mitmproxy, the messages room and the ledger. Promises that an exchange settles once, from whichever
of response, error and shutdown comes first, and that nothing here blocks the event loop.
"""

import asyncio
import logging
import time
from copy import copy
from typing import Any

from mitmproxy import connection, flow, http

from usage_ledger.ledger.record import Entry
from usage_ledger.ledger.writer import Writer
from usage_ledger.messages import Ending, MessageReader, Verdict, read_request
from usage_ledger.proxy import rows
from usage_ledger.proxy.options import Settings
from usage_ledger.proxy.tap import RequestTap, ResponseTap

METADATA = "usage_ledger"
"""The key in `flow.metadata` under which a saved flow tells a replay what only the live proxy knew."""

PROGRESS_SECONDS = 1.0
"""A stream open for longer than this gets the usage read so far into its pending row."""

_log = logging.getLogger("usage_ledger")

_CANCEL = "CANCEL"  # the HTTP/2 error code of a client that resets a stream it no longer wants (RFC 9113 section 7)


class Exchange:
    """The state of one metered request."""

    def __init__(self, http_flow: http.HTTPFlow, settings: Settings, writer: Writer) -> None:
        self.flow = http_flow
        self.settings = settings
        self.writer = writer
        self.settled = False
        self.answered_by_proxy = False
        self._body_read = False
        self._left_proxy = False
        self._request_tap: RequestTap | None = None
        self._tap: ResponseTap | None = None
        self._progress: asyncio.TimerHandle | None = None
        tag = http_flow.request.headers.get(settings.tag_header) if settings.tag_header else None
        if tag is not None:
            del http_flow.request.headers[settings.tag_header]
            self.note(tag=tag)
        self.record = rows.pending_record(http_flow, http_flow.request.host, settings.account, tag, writer.name)

    def note(self, **facts: Any) -> None:
        """Leave plain facts on the flow for a later replay of its capture."""
        known = self.flow.metadata.get(METADATA)
        self.flow.metadata[METADATA] = {**(known if isinstance(known, dict) else {}), **facts}

    # The request.

    def stream_request(self) -> None:
        """Let the request's body go upstream as it comes, and keep it for its fields."""
        inner = self.flow.request.stream
        self._request_tap = RequestTap(rows.BODY_LIMIT, inner if callable(inner) else None)
        self.flow.request.stream = self._request_tap

    def read_body(self) -> None:
        """Take what the request's body tells."""
        if self._body_read:
            return
        request = self.flow.request
        body = request.raw_content if self._request_tap is None else self._request_tap.body()
        if body:
            rows.add_request_fields(self.record, read_request(body, request.headers.get("content-encoding", "")))
        self._body_read = True

    async def write_pending(self) -> bool:
        """Write the pending row; False where the ledger could not take it now."""
        written = await asyncio.shield(self.writer.submit(Entry(copy(self.record))))
        loop = asyncio.get_running_loop()
        # The request leaves once this hook returns. An error before the loop's next turn means that it did not.
        loop.call_soon(self._leave_proxy)
        self._progress = loop.call_later(PROGRESS_SECONDS, self._save_progress)
        return written

    def _leave_proxy(self) -> None:
        self._left_proxy = True

    # The response.

    def watch_response(self) -> None:
        """Put the tap on a streamed response, or note that the proxy itself gave the answer."""
        response = self.flow.response
        assert response is not None
        if response.raw_content is not None or self.flow.is_replay == "response":
            self.answered_by_proxy = True  # upstream's answers have no body yet when their headers come
            return
        streams = rows.is_event_stream(response) or self.settings.streams_large_bodies
        asked_for_stream = self.record.stream and rows.content_type(response) != "application/json"
        if streams or asked_for_stream:
            inner = response.stream
            self._tap = ResponseTap(
                rows.reader_for(response), self.settings.capture_limit, inner if callable(inner) else None
            )
            response.stream = self._tap

    def _save_progress(self) -> None:
        """Write the usage that an open stream has told into its pending row, so that a crash leaves it behind."""
        if self.settled:
            return
        response = self.flow.response
        if response is not None and self._tap is not None and self._tap.reader.usage_begun:
            verdict = self._tap.reader.verdict(Ending.PROXY_STOPPED, response.status_code)
            record = rows.progress_record(copy(self.record), response, verdict, self.settings.account)
            self.writer.submit(Entry(record))
        else:
            self._progress = asyncio.get_running_loop().call_later(PROGRESS_SECONDS / 2, self._save_progress)

    # The end.

    def refuse(self) -> None:
        """Answer in upstream's place: the books cannot be written, and the operator wants no traffic without them."""
        self.answered_by_proxy = True
        self.flow.request.stream = False  # mitmproxy cannot answer a request whose body it is passing on
        self.flow.response = http.Response.make(
            503,
            b'{"type":"error","error":{"type":"overloaded_error","message":'
            b'"The usage ledger cannot be written, and this proxy lets no request pass unrecorded. Try again later."}}',
            {"content-type": "application/json", "retry-after": "5"},
        )

    def settle(self, ending: Ending) -> "asyncio.Future[bool] | None":
        """Settle the row and say so in the log; the future tells when it is on disk. None: settled before."""
        if self.settled:
            return None
        self.settled = True
        if self._progress is not None:
            self._progress.cancel()
        if self.answered_by_proxy:
            self.note(answered_by_proxy=True)
            return self.writer.withdraw(self.record.id)
        self.note(ending=ending.name)
        self.read_body()
        verdict = self._verdict(ending)
        response = self.flow.response
        finished_at = response.timestamp_end if response is not None and ending is Ending.FINISHED else None
        entry = rows.settled_entry(
            copy(self.record), response, verdict, self.settings.account, finished_at or time.time()
        )
        if self._tap is not None:
            entry.record.response_bytes = self._tap.size
            if self._tap.first_token_at is not None:
                first_token = self._tap.first_token_at - self.flow.request.timestamp_start
                entry.record.time_to_first_token_ms = max(0, round(first_token * 1000))
            self._put_body_back(self._tap)
        elif response is not None and response.raw_content is not None:
            entry.record.response_bytes = len(response.raw_content)
        line, warns = rows.log_line(entry.record)
        _log.log(logging.WARNING if warns else logging.INFO, line)
        return self.writer.submit(entry)

    def _verdict(self, ending: Ending) -> Verdict:
        response = self.flow.response
        status = None if response is None else response.status_code
        try:
            reader = MessageReader()
            if self._tap is not None:
                reader = self._tap.reader
                reader.finish(ending is Ending.FINISHED)
            elif response is not None and response.raw_content and response.status_code < 400:
                reader = rows.read_whole(response, clean=ending is Ending.FINISHED)
            return reader.verdict(ending, status, rows.day(self.flow))
        except Exception as error:  # noqa: BLE001 - a rule of ours failed; the request still gets its row
            _log.error(f"usage ledger: cannot judge {self.record.id}, please report this: {error!r}")
            reader = MessageReader()
            reader.give_up()
            return reader.verdict(ending, status)

    def _put_body_back(self, tap: ResponseTap) -> None:
        """Give the flow the body that streamed past, so that what saves flows saves all of it."""
        body = tap.take_kept()
        if body is not None and self.flow.response is not None:
            self.flow.response.raw_content = body
        elif tap.over_limit:
            self.flow.comment = (self.flow.comment + " " if self.flow.comment else "") + (
                "usage ledger: the body was longer than usage_capture_limit and was not kept"
            )

    def ending_of_error(self) -> Ending:
        """Tell how an exchange ended for which mitmproxy fired `error`."""
        message = self.flow.error.msg if self.flow.error else ""
        # mitmproxy's HTTP/2 messages name the wrong side; a closed client connection and the code are what is sure.
        client_left = self.flow.client_conn.state is connection.ConnectionState.CLOSED or _CANCEL in message
        if self.flow.response is None:
            if self._never_sent(message):
                return Ending.NOT_SENT
            return Ending.CLIENT_DISCONNECTED if client_left else Ending.NO_RESPONSE
        return Ending.CLIENT_DISCONNECTED if client_left else Ending.UPSTREAM_CLOSED

    def _never_sent(self, message: str) -> bool:
        server = self.flow.server_conn
        connected = server.timestamp_tcp_setup is not None and (
            not server.tls or server.timestamp_tls_setup is not None
        )
        gone_before = server.timestamp_end is not None and server.timestamp_end < self.flow.request.timestamp_start
        return not self._left_proxy or message == flow.Error.KILLED_MESSAGE or not connected or gone_before
