"""The exchange: one metered request in flight, from its pending row to its settled one.

Room: proxy. Imports mitmproxy, the flows and the messages room, and the ledger. Promises that an exchange settles once,
from whichever of response, error and shutdown comes first, and that nothing here blocks the event loop.
"""

import asyncio
import logging
import time
from copy import copy

from mitmproxy import connection, flow, http

from usage_ledger.flows import bodies, rows
from usage_ledger.flows.identity import folded
from usage_ledger.flows.notes import REFUSED_HEADER, forget, note
from usage_ledger.ledger.record import Entry
from usage_ledger.ledger.writer import Writer
from usage_ledger.messages import Ending, MessageReader, Verdict, read_request
from usage_ledger.proxy import recorded
from usage_ledger.proxy.marks import mark, unmark
from usage_ledger.proxy.options import Settings
from usage_ledger.proxy.tap import RequestTap, ResponseTap

PROGRESS_SECONDS = 1.0
"""A stream open for longer than this gets the usage read so far into its pending row."""

REFUSAL = (
    b'{"type":"error","error":{"type":"overloaded_error","message":'
    b'"The usage ledger cannot be written, and this proxy lets no request pass unrecorded. Try again later."}}'
)

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
        self._is_pending = False
        self._left_at: float | None = None  # Unix time, seconds
        self._request_tap: RequestTap | None = None
        self._tap: ResponseTap | None = None
        self._progress: asyncio.TimerHandle | None = None
        unmark(http_flow)  # a client replay brings what was said and noted of the first request
        forget(http_flow)
        tag = http_flow.request.headers.get(settings.tag_header) if settings.tag_header else None
        if tag is not None:
            del http_flow.request.headers[settings.tag_header]
            note(http_flow, tag=tag)
        try:
            self.record = rows.pending_record(http_flow, settings.account, tag, writer.name)
        except Exception as error:  # noqa: BLE001 - a rule of ours failed; the request still gets its row
            self.record = rows.bare_record(http_flow, writer.name)
            self._report(error)

    def _report(self, error: Exception) -> None:
        _log.error(f"usage ledger: cannot read all of request {self.record.id}, please report this: {error!r}")

    # The request.

    def stream_request(self) -> None:
        """Let the request's body go upstream as it comes, and keep it for its fields."""
        inner = self.flow.request.stream
        self._request_tap = RequestTap(bodies.REQUEST_LIMIT, inner if callable(inner) else None)
        self.flow.request.stream = self._request_tap.pass_on

    def read_body(self) -> None:
        """Take what the request's body tells."""
        if self._body_read:
            return
        self._body_read = True
        request = self.flow.request
        body = request.raw_content if self._request_tap is None else self._request_tap.body()
        if not body:
            return
        try:
            rows.add_request_fields(self.record, read_request(body, request.headers.get("content-encoding", "")))
        except Exception as error:  # noqa: BLE001 - a rule of ours failed; the request still gets its row
            self._report(error)

    async def write_pending(self) -> bool:
        """Write the pending row; False where the ledger could not take it now."""
        self._is_pending = True
        written = await asyncio.shield(self.writer.submit(Entry(copy(self.record))))
        loop = asyncio.get_running_loop()
        # The request leaves once this hook returns. An error before the loop's next turn means that it did not.
        loop.call_soon(self.has_left)
        self._progress = loop.call_later(PROGRESS_SECONDS, self._save_progress)
        return written

    def has_left(self) -> None:
        """The request is on its way upstream."""
        self._left_at = time.time()

    def add_streamed_body(self) -> None:
        """The body of a streamed request has passed: its row, which came first, gets what that tells."""
        self.read_body()
        if not self.settled:
            self.writer.submit(Entry(copy(self.record)))

    # The response.

    def watch_response(self) -> None:
        """Put the tap on a streamed response, or note that the proxy itself gave the answer."""
        response = self.flow.response
        assert response is not None
        if response.raw_content is not None or self.flow.is_replay == "response":
            self.answered_by_proxy = True  # upstream's answers have no body yet when their headers come
            return
        headers = folded(response.headers)
        media_type = bodies.media_type(headers)
        streams = response.stream or media_type == bodies.EVENT_STREAM or self.settings.streams_large_bodies
        if streams or (self.record.stream and media_type != "application/json"):
            inner = response.stream
            self._tap = ResponseTap(
                MessageReader(headers.get("content-encoding", "")),
                self.settings.capture_limit,
                inner if callable(inner) else None,
            )
            response.stream = self._tap.pass_on

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
        headers = {"content-type": "application/json", "retry-after": "5", REFUSED_HEADER: "blocked"}
        self.flow.response = http.Response.make(503, REFUSAL, headers)

    def refuse_upload(self) -> None:
        """Refuse a request whose body mitmproxy is about to pass on: it cannot be answered, only cut off."""
        self.answered_by_proxy = True
        self.flow.kill()

    def settle(self, ending: Ending) -> "asyncio.Future[bool] | None":
        """Settle the row and say so in the log; the future tells when it is on disk. None: settled before."""
        if self.settled:
            return None
        self.settled = True
        if self._progress is not None:
            self._progress.cancel()
        if self.answered_by_proxy:
            note(self.flow, answered_by_proxy=True)
            return self.writer.withdraw(self.record.id) if self._is_pending else None
        self.read_body()
        try:
            entry = self._settled_entry(ending)
        except Exception as error:  # noqa: BLE001 - a rule of ours failed; the request still gets its row
            self._report(error)
            entry = rows.unjudged_entry(copy(self.record), self.flow, ending)
        stored = self.writer.submit(entry)
        recorded.tell(entry.record)  # after it, for a log may fail
        if self.settings.alerts is not None:
            self.settings.alerts.count(bool(entry.record.requires_manual_review))
        return stored

    def _settled_entry(self, ending: Ending) -> Entry:
        response = self.flow.response
        # Another addon may have put something else in the tap's place, so that it has seen nothing.
        tap = self._tap
        if tap is not None and not tap.size and (response is None or response.stream != tap.pass_on):
            tap = None
        verdict = self._verdict(ending, tap)
        finished_at = response.timestamp_end if response is not None and ending is Ending.FINISHED else None
        ended_at = finished_at or time.time()
        entry = rows.settled_entry(copy(self.record), response, verdict, self.settings.account, ended_at)
        if tap is not None:
            entry.record.response_bytes = tap.size
            if tap.first_token_at is not None:
                first_token = tap.first_token_at - self.flow.request.timestamp_start
                entry.record.time_to_first_token_ms = max(0, round(first_token * 1000))
        elif response is not None and response.raw_content is not None:
            entry.record.response_bytes = len(response.raw_content)
        self._put_bodies_back(tap)
        note(self.flow, ending=ending.name, captured=tap is None or tap.is_kept)
        if tap is not None and tap.over_limit:
            note(self.flow, over_limit=True)
        mark(self.flow, verdict, ended_at - self.flow.request.timestamp_start)
        return entry

    def _verdict(self, ending: Ending, tap: ResponseTap | None) -> Verdict:
        response = self.flow.response
        reader = MessageReader()
        if tap is not None:
            reader = tap.reader
            reader.finish(ending is Ending.FINISHED)
        elif response is not None and response.raw_content and response.status_code < 400:
            reader = bodies.read_whole(response, clean=ending is Ending.FINISHED)
        return reader.verdict(ending, None if response is None else response.status_code, rows.day(self.flow))

    def _put_bodies_back(self, tap: ResponseTap | None) -> None:
        """Give the flow the bodies that streamed past, so that what saves flows saves all of it."""
        request, response = self.flow.request, self.flow.response
        if self._request_tap is not None:
            body = self._request_tap.body()
            if request.raw_content is None and self._request_tap.is_kept and len(body) <= self.settings.capture_limit:
                request.raw_content = body
            self._request_tap.clear()
        if tap is not None and tap.is_kept and response is not None and response.raw_content is None:
            response.raw_content = tap.kept()

    @property
    def is_over(self) -> bool:
        """Whether the flow has ended. One that was killed is not live any more, and may go on to its end."""
        killed = self.flow.error is not None and self.flow.error.msg == flow.Error.KILLED_MESSAGE
        gone = self.flow.client_conn.state is connection.ConnectionState.CLOSED
        return not self.flow.live and (gone or not killed)

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
        server, error = self.flow.server_conn, self.flow.error
        connected = server.timestamp_tcp_setup is not None and (
            not server.tls or server.timestamp_tls_setup is not None
        )
        gone_before = server.timestamp_end is not None and server.timestamp_end < self.flow.request.timestamp_start
        if self._left_at is None or not connected or gone_before:
            return True
        # Killed by a script behind this one, in the same hook; a request that is killed later has been sent.
        return message == flow.Error.KILLED_MESSAGE and error is not None and error.timestamp <= self._left_at
