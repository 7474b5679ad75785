"""`usage-ledger check`: for cron and monitoring, whether the books want somebody.

Room: cli. Imports click and the ledger's reading side; prometheus-client for its own format alone. Promises that the
exit code tells it all: 0 in order, 1 a threshold is passed, 2 it could not be checked.
"""

import json
import math
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

import click

from usage_ledger.cli.options import Span, filters_from, with_filters, with_ledgers
from usage_ledger.cli.output import FOUND, for_people, for_programs, has_colours, on_one_line
from usage_ledger.ledger.reading import open_for_reading

if TYPE_CHECKING:
    from usage_ledger.ledger.watching import Watched


class _Share(click.FloatRange):
    """A number from 0 to 1."""

    def __init__(self) -> None:
        super().__init__(0, 1)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        share = float(super().convert(value, param, ctx))
        if math.isnan(share):
            self.fail(f"{value!r} is no number from 0 to 1", param, ctx)
        return share


class _Check(NamedTuple):
    """One number and what it may be at most (None: nothing is expected of it), and both in words."""

    name: str
    value: float | None
    most: float | None
    words: str
    limit: str

    @property
    def is_ok(self) -> bool:
        return self.most is None or (self.value is not None and self.value <= self.most)


class _Limits(NamedTuple):
    """What the numbers may be: a share, counts, and spans of time (`quiet_after` None: any)."""

    flagged: float
    unpriced: int
    stuck_after: timedelta
    quiet_after: timedelta | None
    late: int


@click.command()
@with_ledgers
@with_filters
@click.option(
    "--max-flagged",
    type=_Share(),
    default=0.0,
    show_default=True,
    metavar="SHARE",
    help="The share of flagged requests (0 to 1) above which it fails.",
)
@click.option(
    "--max-unpriced",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    metavar="COUNT",
    help="Rows with final usage and no cost above which it fails.",
)
@click.option(
    "--stuck-after",
    type=Span(),
    default="1h",
    show_default=True,
    help="A request that is in flight for longer makes it fail.",
)
@click.option("--quiet-after", type=Span(), help="It fails when the newest request is older. Default: never.")
@click.option(
    "--max-late",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    metavar="COUNT",
    help="Rows that came or changed after their period was closed above which it fails.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(("text", "json", "openmetrics")),
    default="text",
    show_default=True,
    help="The form.",
)
def check(
    dbs: tuple[Path, ...],
    max_flagged: float,
    max_unpriced: int,
    stuck_after: timedelta,
    quiet_after: timedelta | None,
    max_late: int,
    form: str,
    **filters: Any,
) -> int:
    """Check that the books are in order, for cron and monitoring.

    It fails when requests are flagged, have no price, are stuck in flight, or came or changed after their period was
    closed, each above its threshold; and, with --quiet-after, when no traffic comes. Filters choose among the rows;
    late rows are counted over all of them, and the newest one is that of any time.

    Exit code 0: in order; 1: a threshold is passed; 2: it could not be checked.

    \b
    Examples:
      usage-ledger check
      usage-ledger check --since 24h --max-flagged 0.01 --quiet-after 2h
      usage-ledger check --format openmetrics > /var/lib/node_exporter/usage_ledger.prom
    """
    from usage_ledger.ledger.closing import late
    from usage_ledger.ledger.watching import watch

    with open_for_reading(*dbs) as ledger:
        watched = watch(ledger, filters_from(filters), stuck_after)
    late_rows = 0
    for db in dbs:  # each has closed periods of its own
        with open_for_reading(db) as ledger:
            late_rows += sum(1 for _ in late(ledger))
    told = {**watched._asdict(), "late": late_rows}
    checks = list(_checks(watched, late_rows, _Limits(max_flagged, max_unpriced, stuck_after, quiet_after, max_late)))
    is_ok = all(each.is_ok for each in checks)
    click.get_current_context().meta[FOUND] = int(not is_ok)
    if form == "json":
        _write_json(checks, told, is_ok, for_programs())
    elif form == "openmetrics":
        _write_openmetrics(checks, told, is_ok, for_programs())
    else:
        _write_text(checks, is_ok, for_people())
    return 0 if is_ok else 1


def _checks(watched: "Watched", late: int, limits: _Limits) -> Iterator[_Check]:
    yield _Check(
        "flagged_share",
        watched.flagged_share,
        limits.flagged,
        f"{watched.flagged:,} of {watched.requests:,} ({100 * watched.flagged_share:.2f} %) flagged",
        f"{100 * limits.flagged:g} %",
    )
    unpriced = f"{watched.unpriced:,} without a price"
    yield _Check("unpriced", watched.unpriced, limits.unpriced, unpriced, f"{limits.unpriced:,}")
    stuck = f"{watched.stuck:,} in flight for more than {_span(limits.stuck_after)}"
    yield _Check("stuck", watched.stuck, 0, stuck, "0")
    yield _Check("late", late, limits.late, f"{late:,} late, of closed periods", f"{limits.late:,}")
    yield _Check(
        "seconds_since_newest",
        _age(watched.newest),
        None if limits.quiet_after is None else limits.quiet_after.total_seconds(),
        "no request yet" if watched.newest is None else f"newest request at {watched.newest}",
        "" if limits.quiet_after is None else f"{_span(limits.quiet_after)} ago",
    )


def _age(newest: str | None) -> float | None:
    """Return how many seconds ago a ledger time is, at least 0; None where there is none, or it is no time."""
    try:
        moment = datetime.fromisoformat(newest or "")
        return max(0.0, round((datetime.now(UTC) - moment).total_seconds(), 3))
    except (ValueError, TypeError, OverflowError):
        return None


def _span(span: timedelta) -> str:
    """Write a span of time the way it is given."""
    seconds = int(span.total_seconds())
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds and seconds % length == 0:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


def _write_text(checks: list[_Check], is_ok: bool, out: TextIO) -> None:
    colours = has_colours(out)
    for each in checks:
        line = f"{'ok    ' if each.is_ok else 'FAILED'}  {each.words}"
        if not each.is_ok:
            line += f"; at most {each.limit}"
        text = on_one_line(line, out.encoding)
        out.write((click.style(text, fg="red") if colours and not each.is_ok else text) + "\n")
    if not is_ok:
        out.write("see usage-ledger review, price --dry-run and verify\n")


def _write_json(checks: list[_Check], watched: dict[str, Any], is_ok: bool, out: TextIO) -> None:
    told = [{"name": each.name, "value": each.value, "most": each.most, "ok": each.is_ok} for each in checks]
    out.write(json.dumps({"ok": is_ok, **watched, "checks": told}, indent=2) + "\n")


def _write_openmetrics(checks: list[_Check], watched: dict[str, Any], is_ok: bool, out: TextIO) -> None:
    from prometheus_client import CollectorRegistry, Gauge
    from prometheus_client.openmetrics.exposition import generate_latest

    registry = CollectorRegistry()

    def gauge(name: str, says: str, value: float) -> None:
        Gauge(f"usage_ledger_{name}", says, registry=registry).set(value)

    gauge("ok", "Whether no threshold is passed.", int(is_ok))
    gauge("requests", "Requests that match.", watched["requests"])
    gauge("flagged", "Requests that want a manual review.", watched["flagged"])
    gauge("unpriced", "Requests with final usage and no cost.", watched["unpriced"])
    gauge("stuck", "Requests that are in flight for too long.", watched["stuck"])
    gauge("late", "Rows that came or changed after their period was closed.", watched["late"])
    age = next(each.value for each in checks if each.name == "seconds_since_newest")
    if age is not None:
        gauge("newest_request_age_seconds", "How long ago the newest request began.", age)
    failed = Gauge("usage_ledger_check_failed", "Whether this threshold is passed.", ["check"], registry=registry)
    for each in checks:
        failed.labels(each.name).set(int(not each.is_ok))
    out.write(generate_latest(registry).decode())
