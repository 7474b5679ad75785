"""The addon: mitmproxy's hooks, each a few lines.

Room: proxy. Imports mitmproxy, the flows, the messages and the prices room, the ledger and its neighbours in this room.
The path of one request: `request` (`requestheaders` where its body is streamed) writes its pending row before it goes
upstream, `responseheaders` puts the tap on its stream, and whichever of `response`, `error` and `done` comes first
settles it; `response` returns once the row is on disk, and only then is the client sent the end of the message.

Where another script raises in a hook, mitmproxy calls none of the scripts after it for that hook. So each hook here
makes up for those that may have been missed before it, and a sweep settles what no last hook came for.
"""

import asyncio
import logging
import os
from collections.abc import Awaitable
from pathlib import Path
from weakref import WeakSet

from mitmproxy import contentviews, ctx, http
from mitmproxy.addonmanager import Loader
from mitmproxy.addons.errorcheck import ErrorCheckHandler

from usage_ledger.flows.files import is_har_of_mitmproxys
from usage_ledger.flows.metered import is_chosen, metered
from usage_ledger.flows.notes import is_noted, note, note_not_connected
from usage_ledger.flows.replay import is_from_har, judge
from usage_ledger.ledger.writer import Writer, writer_for
from usage_ledger.messages import Ending
from usage_ledger.prices import loading
from usage_ledger.proxy import options, recorded
from usage_ledger.proxy.exchange import Exchange
from usage_ledger.proxy.marks import mark
from usage_ledger.proxy.replaying import Replaying, as_the_ledger_says
from usage_ledger.proxy.view import UsageView

SWEEP_SECONDS = 1.0

_log = logging.getLogger("usage_ledger")

# Kept here and not on the addon: a reload of the script makes a new addon, while this module and the requests in flight
# live on. By the flow object's identity, because flows of a capture that is replayed several times share their id.
_in_flight: dict[int, Exchange] = {}
_in_use: options.Settings | None = None
_live: WeakSet[http.HTTPFlow] = WeakSet()
"""Flows of this proxy's own traffic; all others were read from a file."""


class UsageLedger:
    """Meters Claude: one row per request."""

    name = "usage_ledger"

    def __init__(self) -> None:
        self._settings: options.Settings | None = None
        self._is_running = False
        self._started = False
        self._replaying = Replaying()
        self._written_by: tuple[options.Settings, Writer] | None = None
        self._sweep: asyncio.TimerHandle | None = None
        self._over: set[int] = set()
        self._leaving: asyncio.Future[None] | None = None

    # The life of the addon.

    def load(self, loader: Loader) -> None:
        contentviews.add(UsageView)
        options.declare(loader)
        options.refuse_what_mitmproxy_cannot_set(ctx.options.deferred)

    def configure(self, updated: set[str]) -> None:
        global _in_use
        reads_prices = not updated.isdisjoint({"usage_prices", "usage_db"})
        self._settings = _in_use = options.settings_from(ctx.options, _in_use, reads_prices)
        if self._is_running:
            self._writer()  # prices rows as the options say from now on
            if "usage_db" in updated:
                self.running()

    def running(self) -> None:
        self._is_running = True
        settings = self._ready()
        _log.info(f"usage ledger: {settings.ledger}")
        if settings.pricer.own is not None:
            _log.info(f"usage ledger: own prices from {settings.pricer.own.path}")
        self._start_writer()
        if self._sweep is None:
            self._sweep = asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._settle_what_is_over)

    def _start_writer(self) -> None:
        # mitmdump ends itself when an error is logged before it is up. A ledger in trouble must not stop traffic, so
        # the writer, which would log that, starts once the start-up check is over. What flows hand in meanwhile waits.
        if any(isinstance(handler, ErrorCheckHandler) for handler in logging.getLogger().handlers):
            asyncio.get_running_loop().call_later(0.02, self._start_writer)
        else:
            self._started = True
            self._writer().start()
            loading.load()

    def done(self) -> Awaitable[None] | None:
        # At a reload the requests in flight go on; only at the end of the program are they settled here. A plain
        # function, because an async `done` keeps mitmproxy from loading the new script.
        if self._sweep is not None:
            self._sweep.cancel()
        if ctx.master.should_exit.is_set():
            return self._stop()
        self._leaving = asyncio.ensure_future(self._replaying.finish())
        return None

    async def _stop(self) -> None:
        for exchange in list(_in_flight.values()):
            exchange.settle(Ending.PROXY_STOPPED)
        _in_flight.clear()
        writer = self._writer()
        writer.start()
        await self._replaying.finish()
        await writer.flush()
        self._replaying.end()

    # The life of a request.

    async def requestheaders(self, flow: http.HTTPFlow) -> None:
        _remember(flow)
        # A request that is streamed leaves before the `request` hook, so its row has to come first.
        if flow.error is None and self._leaves_early(flow) and self._is_metered(flow):
            exchange = self._begin(flow)
            written = await exchange.write_pending()
            if exchange.settings.block and not written:
                exchange.refuse_upload()
            else:
                exchange.stream_request()

    async def request(self, flow: http.HTTPFlow) -> None:
        _remember(flow)
        exchange = _in_flight.get(id(flow))
        if exchange is not None:
            exchange.add_streamed_body()
        elif self._is_metered(flow):
            exchange = self._begin(flow)
            exchange.read_body()
            blocked = exchange.settings.block and exchange.writer.trouble is not None
            if blocked or (not await exchange.write_pending() and exchange.settings.block):
                exchange.refuse()
        elif flow.live and flow.response is not None and self._is_chosen(flow):
            note(flow, answered_by_proxy=True)
        elif flow not in _live and flow.response is None and flow.error is None:
            await self._replay(flow)  # it was saved in flight: for what has no end, mitmproxy calls no later hook

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        _remember(flow)
        exchange = _in_flight.get(id(flow))
        if exchange is None and flow.response is not None and flow.response.raw_content is None:
            exchange = self._begin_late(flow)
        if exchange is not None:
            exchange.watch_response()

    async def response(self, flow: http.HTTPFlow) -> None:
        exchange = _in_flight.pop(id(flow), None)
        if exchange is not None:
            await _stored(exchange.settle(Ending.FINISHED))
        elif flow not in _live and flow.error is None:
            await self._replay(flow)

    async def error(self, flow: http.HTTPFlow) -> None:
        exchange = _in_flight.pop(id(flow), None)
        if exchange is None and flow in _live and flow.response is None and flow.request.timestamp_end is not None:
            exchange = self._begin_late(flow)
            _in_flight.pop(id(flow), None)
        if exchange is not None:
            await _stored(exchange.settle(exchange.ending_of_error()))
        elif flow not in _live:
            await self._replay(flow)

    def _leaves_early(self, flow: http.HTTPFlow) -> bool:
        """Whether a request's body may go upstream before the `request` hook.

        mitmproxy has decided so by now where it knows the body's length. Where it does not, it decides later and asks
        nobody, so such a body is streamed from the start.
        """
        if not self._ready().streams_large_bodies:
            return bool(flow.request.stream)
        unknown = "content-length" not in flow.request.headers and flow.request.method not in ("GET", "HEAD")
        return bool(flow.request.stream) or unknown

    def _begin(self, flow: http.HTTPFlow) -> Exchange:
        exchange = _in_flight[id(flow)] = Exchange(flow, self._ready(), self._writer())
        return exchange

    def _begin_late(self, flow: http.HTTPFlow) -> Exchange | None:
        """Begin an exchange whose request has left unseen, because another script failed; None where not metered."""
        if flow not in _live or is_noted(flow) or not self._is_chosen(flow):
            return None
        exchange = self._begin(flow)
        exchange.has_left()
        exchange.read_body()
        return exchange

    def _settle_what_is_over(self) -> None:
        """Settle exchanges whose flow has ended without a last hook, seen so twice: the hook may be under way."""
        over = {key for key, exchange in _in_flight.items() if exchange.is_over}
        for key in over & self._over:
            exchange = _in_flight.pop(key)
            exchange.settle(Ending.FINISHED if exchange.flow.error is None else exchange.ending_of_error())
        self._over = over
        self._sweep = asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._settle_what_is_over)

    async def _replay(self, flow: http.HTTPFlow) -> None:
        settings, writer = self._ready(), self._writer()
        try:
            chosen = metered(flow, settings.flow_filter)
            if is_from_har(flow) and flow.server_conn.address is None and _reads_har_of_mitmproxys():
                note_not_connected(flow)
            judged = judge(flow, settings.account, settings.tag_header, writer.name) if chosen is not None else None
        except Exception as error:  # noqa: BLE001 - a damaged capture may hold anything
            _log.warning(f"usage ledger: flow {flow.id} of the capture is damaged ({error!r}), and leaves no row")
            return
        if judged is None:
            return
        if judged.entry.only_new:
            judged = await asyncio.to_thread(as_the_ledger_says, judged, settings.ledger)
        shows_flows = getattr(ctx.options, "flow_detail", 0)  # an option of mitmdump's
        (recorded.tell_at_once if shows_flows else recorded.tell)(judged.entry.record)
        duration = judged.entry.record.duration_ms
        mark(flow, judged.verdict, None if duration is None else duration / 1000, judged.is_end_told)
        await self._replaying.add(judged.entry, writer)

    def _is_metered(self, flow: http.HTTPFlow) -> bool:
        return bool(flow.live) and flow.response is None and self._is_chosen(flow)

    def _is_chosen(self, flow: http.HTTPFlow) -> bool:
        return is_chosen(self._ready().flow_filter, flow)

    def _ready(self) -> options.Settings:
        if self._settings is None:  # an option was refused at a reload
            self._settings = _in_use or options.settings_from(ctx.options)
        return self._settings

    def _writer(self) -> Writer:
        settings = self._ready()
        if self._written_by is None or self._written_by[0] is not settings:
            self._written_by = settings, writer_for(settings.ledger, settings.durability)
        writer = self._written_by[1]
        writer.price = settings.pricer.fill
        if self._started:
            writer.start()
        return writer


def _remember(flow: http.HTTPFlow) -> None:
    """Mark a flow as this proxy's own traffic, which it stays when it is no longer live."""
    if flow.live:
        _live.add(flow)


def _reads_har_of_mitmproxys() -> bool:
    """Whether the file that this program was told to read (`-r`) is a HAR that mitmproxy has made."""
    path = getattr(ctx.options, "rfile", None)
    return bool(path) and is_har_of_mitmproxys(Path(os.path.expanduser(str(path))))  # as mitmproxy does


async def _stored(outcome: "asyncio.Future[bool] | None") -> None:
    """Wait until a row is on disk, or is known to wait for better times. Its batch is shared: never cancel it."""
    if outcome is not None:
        await asyncio.shield(outcome)
