"""The addon: mitmproxy's hooks, each a few lines.

Room: proxy. Imports mitmproxy and its neighbours in this room. The path of one request: `requestheaders` (only where
bodies are streamed) and `request` write its pending row before it goes upstream, `responseheaders` puts the tap on its
stream, and whichever of `response`, `error` and `done` comes first settles it; `response` returns once the row is on
disk, and only then is the client sent the end of the message.
"""

import asyncio
import logging
from collections.abc import Awaitable

from mitmproxy import ctx, http
from mitmproxy.addonmanager import Loader
from mitmproxy.addons.errorcheck import ErrorCheckHandler

from usage_ledger.ledger.writer import Writer, writer_for
from usage_ledger.messages import Ending
from usage_ledger.proxy import options
from usage_ledger.proxy.exchange import Exchange
from usage_ledger.proxy.replay import replayed_entry
from usage_ledger.proxy.rows import log_line

REPLAYED_AT_ONCE = 512
"""Replayed flows are handed to the writer without waiting; after so many, the replay waits for them to be stored."""

_log = logging.getLogger("usage_ledger")

# By flow id. Kept here and not on the addon: a reload of the script makes a new addon, while this module and the
# requests in flight live on.
_in_flight: dict[str, Exchange] = {}


class UsageLedger:
    """Meters Claude: one row per request."""

    name = "usage_ledger"

    def __init__(self) -> None:
        self._settings: options.Settings | None = None
        self._is_running = False
        self._started = False
        self._replayed = 0

    # The life of the addon.

    def load(self, loader: Loader) -> None:
        options.declare(loader)

    def configure(self, updated: set[str]) -> None:
        self._settings = options.settings_from(ctx.options)
        if "usage_db" in updated and self._is_running:
            self.running()

    def running(self) -> None:
        self._is_running = True
        _log.info(f"usage ledger: {self._ready().ledger}")
        self._start_writer()

    def _start_writer(self) -> None:
        # mitmdump ends itself when an error is logged before it is up. A ledger in trouble must not stop traffic, so
        # the writer, which would log that, starts once the start-up check is over. What flows hand in meanwhile waits.
        if any(isinstance(handler, ErrorCheckHandler) for handler in logging.getLogger().handlers):
            asyncio.get_running_loop().call_later(0.02, self._start_writer)
        else:
            self._started = True
            self._writer().start()

    def done(self) -> Awaitable[None] | None:
        # At a reload the requests in flight go on; only at the end of the program are they settled here. A plain
        # function, because an async `done` keeps mitmproxy from loading the new script.
        return self._stop() if ctx.master.should_exit.is_set() else None

    async def _stop(self) -> None:
        for exchange in list(_in_flight.values()):
            exchange.settle(Ending.PROXY_STOPPED)
        _in_flight.clear()
        writer = self._writer()
        writer.start()
        await writer.flush()

    # The life of a request.

    async def requestheaders(self, flow: http.HTTPFlow) -> None:
        # With `stream_large_bodies` the request may leave before the `request` hook, so its row has to come first.
        if self._ready().streams_large_bodies and self._is_metered(flow):
            exchange = await self._begin(flow)
            if not exchange.answered_by_proxy:
                exchange.stream_request()

    async def request(self, flow: http.HTTPFlow) -> None:
        exchange = _in_flight.get(flow.id)
        if exchange is not None and exchange.flow is flow:
            exchange.read_body()
        elif self._is_metered(flow):
            await self._begin(flow)

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        exchange = _in_flight.get(flow.id)
        if exchange is not None and exchange.flow is flow:
            exchange.watch_response()

    async def response(self, flow: http.HTTPFlow) -> None:
        exchange = self._ended(flow)
        if exchange is not None:
            await _stored(exchange.settle(Ending.FINISHED))
        elif not flow.live and flow.error is None:
            await self._replay(flow)

    async def error(self, flow: http.HTTPFlow) -> None:
        exchange = self._ended(flow)
        if exchange is not None:
            await _stored(exchange.settle(exchange.ending_of_error()))
        elif not flow.live:
            await self._replay(flow)

    def _ended(self, flow: http.HTTPFlow) -> Exchange | None:
        """Return the exchange of a live flow, once. A captured flow may have the id of one that is in flight."""
        exchange = _in_flight.get(flow.id)
        return _in_flight.pop(flow.id) if exchange is not None and exchange.flow is flow else None

    async def _begin(self, flow: http.HTTPFlow) -> Exchange:
        """Write the pending row of a request, or answer it where it may not pass without one."""
        settings = self._ready()
        exchange = _in_flight[flow.id] = Exchange(flow, settings, self._writer())
        if settings.block and exchange.writer.trouble is not None:
            exchange.refuse()
            return exchange
        if flow.request.raw_content is not None:
            exchange.read_body()
        if not await exchange.write_pending() and settings.block:
            exchange.refuse()
        return exchange

    async def _replay(self, flow: http.HTTPFlow) -> None:
        settings = self._ready()
        if not settings.flow_filter(flow):
            return
        writer = self._writer()
        entry = replayed_entry(flow, settings, writer.name)
        if entry is None:
            return
        line, warns = log_line(entry.record)
        _log.log(logging.WARNING if warns else logging.INFO, line)
        stored = writer.submit(entry)
        self._replayed += 1
        if self._replayed % REPLAYED_AT_ONCE == 0:
            await asyncio.shield(stored)

    def _is_metered(self, flow: http.HTTPFlow) -> bool:
        return bool(flow.live) and flow.response is None and bool(self._ready().flow_filter(flow))

    def _ready(self) -> options.Settings:
        if self._settings is None:
            self._settings = options.settings_from(ctx.options)
        return self._settings

    def _writer(self) -> Writer:
        settings = self._ready()
        writer = writer_for(settings.ledger, settings.durability)
        if self._started:
            writer.start()
        return writer


async def _stored(outcome: "asyncio.Future[bool] | None") -> None:
    """Wait until a row is on disk, or is known to wait for better times. Its batch is shared: never cancel it."""
    if outcome is not None:
        await asyncio.shield(outcome)
