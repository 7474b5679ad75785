"""Pages: what Datasette shows of a ledger beside its tables.

Room: web. Imports Datasette, the ledger's reading side, the upstream room's results and its neighbours in this room.
Promises that whatever comes from traffic is shown as the text it is, and that the event loop reads no ledger.
"""

import asyncio
import csv
import io
import json
import sys
import traceback
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from datasette import hookimpl
from datasette.app import Datasette
from datasette.utils import tilde_decode, tilde_encode
from datasette.utils.asgi import BadRequest, Base400, NotFound, Request, Response
from datasette.views.base import DatasetteError
from markupsafe import Markup, escape

from usage_ledger.ledger import overview as overview_of
from usage_ledger.ledger.closing import archived_before
from usage_ledger.ledger.marks import LedgerError
from usage_ledger.ledger.moments import format_moment
from usage_ledger.ledger.reading import Reader, open_for_reading
from usage_ledger.ledger.reconciliations import last_reconciliation
from usage_ledger.upstream import results
from usage_ledger.web import costs, reconciled, rows
from usage_ledger.web.charts import Chart, charts_of, seen, shown

LEDGER = "ledger"
"""What Datasette calls the database."""

DAYS = 30
"""The overview begins so many days ago, unless somebody says otherwise."""

QUEUE = 50
"""Rows of the review queue on a page."""

MOST = 1_000
"""Rows that Datasette tells at once as JSON."""

CELL, WHOLE = 200, 4_000
"""Characters of a cell of Datasette's tables, and of what a pointer is shown of it; a row's own page has all."""

type Part = tuple[list[overview_of.Group], list[overview_of.Spent], dict[str, overview_of.Waits]]

_REQUESTS = {
    "_sort_desc": "occurred_at",
    "_facet": ["account_id", "api_key_hint", "model", "tag", "usage_state", "review_reason"],
    "_col": [
        *("occurred_at", "account_id", "api_key_hint", "model", "tag", "usage_state", "review_reason"),
        *("input_tokens", "output_tokens", "cache_read_input_tokens", "total_tokens", "total_cost"),
    ],
}


class _Elsewhere(Exception):  # noqa: N818 - no error
    """What is asked for is at another address, which this is."""


class Pages:
    """A plugin of Datasette's, for one ledger."""

    __name__ = "usage_ledger.web"  # plugins are modules, as a rule; in this one are its templates

    def __init__(self, path: Path) -> None:
        self._path = path

    @hookimpl
    def register_routes(self) -> list[tuple[str, Callable[..., Any]]]:
        return [
            (r"^/$", self.overview),
            (r"^/overview/(?P<name>[a-z]+)\.(?P<form>csv|json)$", self.figure),
            (r"^/review$", self.review),
            (r"^/reconciliation$", self.reconciliation),
            (r"^/reconciliation\.(?P<form>csv|json)$", self.comparison),
        ]

    @hookimpl(tryfirst=True)
    def render_cell(self, value: object, column: str, table: str | None) -> object:
        """Show a cell as the text it is. (Datasette would make a link of what looks like an address.)"""
        if table == "usage_records" and column == "id":
            return None  # Datasette's own link to the row
        return _cell(value, CELL)

    @hookimpl
    def prepare_jinja2_environment(self, env: Any) -> None:
        env.filters["urlencode_lists"] = lambda query: urlencode(query, doseq=True)
        env.filters["tilde"] = tilde_encode
        env.filters["cell"] = _cell
        env.globals |= {"ledger_path": str(self._path), "requests_query": _REQUESTS}

    @hookimpl
    def extra_template_vars(self, view_name: str, table: str | None, request: Request | None) -> object:
        async def told() -> dict[str, object]:
            if view_name != "row" or table != "usage_records" or request is None:
                return {}
            row_id = tilde_decode(request.url_vars["pks"])
            return await self._read(lambda reader: rows.beside(reader, row_id))

        return told

    async def _read[T](self, read: Callable[[Reader], T]) -> T:
        """Read the ledger in a thread, over a connection of its own and as it is at one moment."""

        def reading() -> T:
            with open_for_reading(self._path) as reader, reader.snapshot():
                return read(reader)

        return await asyncio.to_thread(reading)

    @hookimpl
    def filters_from_request(self, request: Request, table: str) -> None:
        """Lead to where costs are compared as numbers."""
        if table == "usage_records" and (address := costs.compared(request)):
            raise _Elsewhere(address)

    @hookimpl
    def handle_exception(self, datasette: Datasette, request: Request, exception: Exception) -> object:
        """Say what went wrong in one line: 503 where the ledger cannot be read now."""

        async def told() -> Response:
            if isinstance(exception, _Elsewhere):
                return Response.redirect(str(exception))
            status, message = _fault(exception)
            if request.path.endswith(".json"):
                return Response.json({"ok": False, "error": message, "status": status}, status=status)
            if request.path.endswith(".csv"):
                return Response.text(f"{message}\n", status=status)
            more = {"title": getattr(exception, "title", None), "status": status, "error": message}
            return Response.html(await datasette.render_template("error.html", more, request=request), status=status)

        return told

    # Overview.

    async def overview(self, datasette: Datasette, request: Request) -> Response:
        since, until, wrong = _span(request)
        (now, archived), (found, charts) = await asyncio.gather(
            self._read(lambda reader: (overview_of.now(reader), archived_before(reader))), self._charts(since, until)
        )
        archived = archived[:10] if archived is not None and format_moment(since) < archived else None
        query = f"since={since.date()}&until={(until - timedelta(days=1)).date()}"
        return await _page(
            datasette,
            request,
            "usage_overview.html",
            now=now,
            today=f"{now.today:,.4f}",
            cost=shown(sum(each.cost for each in found), "USD"),
            listed=shown(sum(each.listed for each in found) or None, "USD"),
            archived=archived,
            unpriced=sum(each.unpriced for each in found),
            requests=f"{sum(each.requests for each in found):,}",
            charts=[(chart, Markup(chart.drawing()), _cells(chart)) for chart in charts],  # noqa: S704 - pygal's XML
            since=since.date(),
            until=(until - timedelta(days=1)).date(),
            query=query,
            wrong=wrong,
            spans=[(days, datetime.now(UTC).date() - timedelta(days=days - 1)) for days in (1, 7, 30, 90)],
        )

    async def _charts(self, since: datetime, until: datetime) -> tuple[list[overview_of.Group], list[Chart]]:
        steps = overview_of.steps(since, until)
        half = len(steps) // 2

        def part(reader: Reader, steps: list[overview_of.Step]) -> Part:
            found = overview_of.groups(reader, steps)
            return found, overview_of.spent(reader, steps, found), overview_of.waits(reader, steps)

        # Two parts at a time, each of one moment: SQLite reads without Python's lock.
        one, other = await asyncio.gather(
            self._read(lambda reader: part(reader, steps[:half])), self._read(lambda reader: part(reader, steps[half:]))
        )
        found = one[0] + other[0]
        return found, charts_of([step.name for step in steps], found, one[1] + other[1], one[2] | other[2])

    async def figure(self, request: Request) -> Response:
        """A figure of the overview by itself, as CSV or JSON."""
        since, until, wrong = _span(request)
        if wrong:
            raise BadRequest(wrong)
        charts = {chart.name: chart for chart in (await self._charts(since, until))[1]}
        chart = charts.get(request.url_vars["name"])
        if chart is None:
            raise NotFound("there is no such figure")
        head, *lines = chart.rows()
        if request.url_vars["form"] == "json":
            return Response.json([dict(zip(map(str, head), line, strict=True)) for line in lines])
        return _as_csv([head, *lines])

    # Review.

    async def review(self, datasette: Datasette, request: Request) -> Response:
        reason, at, after = (request.args.get(name) or "" for name in ("reason", "at", "after"))
        reasons, found = await self._read(
            lambda reader: (rows.reasons(reader), rows.queue(reader, reason, at, after, QUEUE + 1))
        )
        return await _page(
            datasette,
            request,
            "usage_review.html",
            reasons=reasons,
            reason=reason,
            many=sum(count for name, count in reasons if reason in ("", name)) > MOST,
            rows=[{**row, "line": rows.backfill_line(str(row["id"]), self._path)} for row in found[:QUEUE]],
            last=found[QUEUE - 1] if len(found) > QUEUE else None,
        )

    # Reconciliation.

    async def reconciliation(self, datasette: Datasette, request: Request) -> Response:
        found, result = await self._read(_last_result)
        tables: dict[str, object] = {}
        if found is not None and result is not None:
            tables = {
                "lines": reconciled.summed_up(result, found["by"]),
                "prices": reconciled.prices(result),
                "verdicts": reconciled.verdicts(result),
            }
        return await _page(datasette, request, "usage_reconciliation.html", found=found, result=result, **tables)

    async def comparison(self, request: Request) -> Response:
        """The latest reconciliation by itself, as CSV or JSON."""
        found, result = await self._read(_last_result)
        if found is None or result is None:
            raise NotFound("the rows were not compared with the bill yet")
        if request.url_vars["form"] == "json":
            return Response.json(result)
        return _as_csv([*results.lines(result, found["by"])])


def _fault(exception: Exception) -> tuple[int, str]:
    """Return the HTTP status for what went wrong, and what is said of it."""
    if isinstance(exception, DatasetteError):
        status = 400 if exception.status == 500 else exception.status  # what it cannot do is what it was asked for
        return status, Markup(exception.message) if exception.message_is_html else exception.message  # noqa: S704
    if isinstance(exception, Base400):
        return exception.status, str(exception)
    if isinstance(exception, (LedgerError, OSError)):
        return 503, " ".join(str(exception).split())
    traceback.print_exception(exception, file=sys.stderr)
    return 500, f"{type(exception).__name__}: {exception}"


def _as_csv(table: list[list[Any]]) -> Response:
    out = io.StringIO()
    csv.writer(out, lineterminator="\r\n").writerows(table)
    return Response(out.getvalue(), content_type="text/csv; charset=utf-8")


def _last_result(reader: Reader) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Return the latest reconciliation, and what it came to."""
    found = last_reconciliation(reader)
    return found, None if found is None else json.loads(found["result"])


async def _page(datasette: Datasette, request: Request, template: str, **more: object) -> Response:
    return Response.html(await datasette.render_template(template, more, request=request, view_name=template))


def _cell(value: object, room: int = 0) -> Markup:
    """Return what a page shows of a value; with `room`, no more than so many characters of it, and the whole beside."""
    if value is None:
        return Markup('<span class="none">-</span>')
    text = seen(f"{value:,}" if isinstance(value, int) else str(value))
    if not room or len(text) <= room:
        return escape(text)
    return Markup('<span title="{}">{}</span>').format(text[:WHOLE], f"{text[: room - 1]}\u2026")


def _span(request: Request) -> tuple[datetime, datetime, str]:
    """Return the span that a page is asked for (days of UTC, the last one included), and what is wrong with it."""
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    since, until, wrong = today - timedelta(days=DAYS - 1), today, ""
    try:
        if told := request.args.get("until"):
            until = datetime.combine(date.fromisoformat(told), datetime.min.time(), UTC)
            since = until - timedelta(days=DAYS - 1)
        if told := request.args.get("since"):
            since = datetime.combine(date.fromisoformat(told), datetime.min.time(), UTC)
        if not datetime(2000, 1, 1, tzinfo=UTC) <= since <= until <= datetime(2100, 1, 1, tzinfo=UTC):
            raise ValueError("from after to")
    except (ValueError, OverflowError):
        wrong = "the days cannot be read, or the first one is after the last"
        since, until = today - timedelta(days=DAYS - 1), today
    return since, until + timedelta(days=1), wrong


def _cells(chart: Chart) -> list[list[str]]:
    """Return a figure's table as it is read; the lines in which nothing happened are left out."""
    head, *lines = chart.rows()
    empty = (None,) if chart.kind == "lines" else (None, 0)
    told = [
        [str(label), *(shown(number, chart.unit) for number in numbers)]
        for label, *numbers in lines
        if any(number not in empty for number in numbers)
    ]
    return [[str(each) for each in head], *told]
